"""A person's own source and mixing: files of theirs, named in the configuration; the examples in docs/ among them.

Own priors and networks have their own file of tests, test_own_models.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from imavae.config.data import SOURCES, SyntheticData
from imavae.config.mapping import to_mapping
from imavae.config.registry import load_plugins
from imavae.config.settings import RunConfig, run_config
from imavae.data import dataset
from imavae.data.dataset import build_source
from imavae.data.mixings import moved
from imavae.errors import UserError
from imavae.rng import stream
from tests.helpers import normal, pointwise_jacobian

pytestmark = pytest.mark.usefixtures("forget_plugins")
DOCS = Path(__file__).resolve().parent.parent / "docs"
SOURCE, MIXING = str(DOCS / "own_source.py"), str(DOCS / "own_mixing.py")


def point(plugins: list[str], **data: Any) -> RunConfig:
    prior = {"name": "gaussian"}
    return run_config({"plugins": plugins, "data": {"n_obs": 1000, **data}, "model": {"prior": prior}})


def test_the_example_of_a_source_is_the_law_that_it_says() -> None:
    config = point([SOURCE], source={"name": "logistic", "mean": 0.5, "scale": 0.3})
    assert isinstance(config.data, SyntheticData)
    built, law = build_source(config.data.source), scipy.stats.logistic(0.5, 0.3)
    s = built.sample(20_000, 3, stream(1, "sources"))
    assert s.dtype == torch.float64
    assert min(scipy.stats.kstest(column, law.cdf).pvalue for column in s.T.numpy()) > 1e-3
    np.testing.assert_allclose(built.log_prob(s).numpy(), law.logpdf(s.numpy()).sum(1), rtol=1e-9)
    middle, half_width = config.data.source.extent
    assert 0.001 < float(((s - middle).abs() > half_width).double().mean()) < 0.01
    observations = dataset.make(config.data, (1,), torch.float32).train.observations  # the default Möbius mixing
    assert observations.isfinite().all()


@pytest.mark.parametrize("twist", [0.0, 3.0, None])
def test_the_example_of_a_mixing_agrees_with_itself(twist: float | None) -> None:
    config = point([MIXING], dim=2, mixing={"name": "swirl", "twist": twist})
    world = dataset.make(config.data, (1, 2), torch.float64)
    f, s = world.mixings[1], normal(50, 2)
    x = f.forward(s)
    torch.testing.assert_close(f.inverse(x), s, rtol=1e-11, atol=1e-11)
    jacobian = f.jacobian(s)
    torch.testing.assert_close(jacobian, pointwise_jacobian(f.forward, s), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(f.log_det(s), torch.linalg.slogdet(jacobian).logabsdet, rtol=0, atol=1e-10)
    together = torch.cat([split.observations for split in (world.train, world.val, world.test)], 1)
    assert together.mean(1).abs().max() < 1e-12
    turned = [moved(f, "cpu").jacobian(s) for f in world.mixings]
    assert torch.allclose(turned[0], turned[1]) == (twist is not None)  # each world draws what is left open


def test_own_variants_go_through_a_mapping_and_back() -> None:
    config = point([SOURCE, MIXING], dim=2, source={"name": "logistic"}, mixing={"name": "swirl", "twist": 2.0})
    assert run_config(to_mapping(config)) == config


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        ({"source": {"name": "logistic", "scale": -1.0}}, "data.source.scale > 0"),
        ({"source": {"name": "logistic", "width": 1.0}}, "`data.source.width` is not a setting"),
        ({"mixing": {"name": "swirl"}}, "data.dim is 2 for the swirl"),
        ({"source": {"name": "logistik"}}, "did you mean logistic"),
        ({"mixing": {"name": "mine"}}, "data.mixing.name.*swirl.*'mine'"),
        ({"mixing": {}}, "data.mixing.name"),
        ({"mixing": None}, "data.mixing is a mapping"),
    ],
)
def test_own_variants_are_checked_like_the_packages(data: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        point([SOURCE, MIXING], **data)


def test_segments_need_a_source_that_can_be_scaled() -> None:
    config = point([SOURCE], source={"name": "logistic"}, n_segments=3)
    with pytest.raises(UserError, match="n_segments is 1 for a source without a method scaled"):
        dataset.make(config.data, (1,), torch.float64)


def test_a_moebius_pole_needs_to_know_where_an_own_source_lies(tmp_path: Path) -> None:
    file = written(tmp_path, SOURCE, ("def extent", "def reaches"))
    with pytest.raises(UserError, match=r"data.source has a finite extent"):
        point([file], source={"name": "logistic"})
    assert point([file], source={"name": "logistic"}, mixing={"name": "mlp"}).data.support == (-math.inf, math.inf)


def written(folder: Path, example: str, *changes: tuple[str, str]) -> str:
    """An example with some of its text replaced, as a file."""
    text = Path(example).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "own.py").write_text(text, encoding="utf-8")
    return str(folder / "own.py")


@pytest.mark.parametrize(
    ("example", "change", "rule"),
    [
        (SOURCE, ("def build", "def make"), "data.source has a method build"),
        (SOURCE, ("def log_prob", "def log_density"), "without log_prob"),
        (SOURCE, ("dtype=torch.float64)", "dtype=torch.float32)"), "data.source gives finite float64"),
        (SOURCE, ("rand(n, dim,", "rand(n, 1,"), "data.source gives finite float64 numbers of shape"),
        (MIXING, ("def build", "def make"), "data.mixing has a method build"),
        (MIXING, ("def log_det", "def log_determinant"), "without log_det"),
        (MIXING, ("sum(1)), s)", "sum(1)), s) / 0"), "data.mixing gives finite float64"),
    ],
)
def test_own_code_that_gives_something_else_is_refused(
    example: str, change: tuple[str, str], rule: str, tmp_path: Path
) -> None:
    own = {"source": {"name": "logistic"}} if example == SOURCE else {"mixing": {"name": "swirl"}}
    config = point([written(tmp_path, example, change)], dim=2, **own)
    with pytest.raises(UserError, match=rule):
        dataset.make(config.data, (1,), torch.float64)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (("import math", "import maths"), "plugins can be imported.*ModuleNotFoundError: No module named 'maths'"),
        (("import math", "import math = 3"), "plugins can be imported.*SyntaxError"),
        (("import math", "1 / 0"), "plugins can be imported.*ZeroDivisionError"),
        (('"logistic"', '"uniform"'), "every variant of data.source has a unique name.*'uniform'"),
        (('"logistic"', '""'), "every variant of data.source has a unique name"),
        (
            ("@SOURCES.register\n@checked_dataclass(frozen=True)", "@SOURCES.register\n@checked_dataclass"),
            "cannot inherit non-frozen",
        ),
        (("@SOURCES.register\n@checked_dataclass(frozen=True)", "@SOURCES.register"), "a frozen dataclass of settings"),
    ],
)
def test_a_file_that_registers_nothing_proper_is_refused(change: tuple[str, str], rule: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rule):
        point([written(tmp_path, SOURCE, change)])
    assert set(SOURCES.names()) == {"uniform", "gaussian", "laplace", "beta"}


@pytest.mark.parametrize("path", ["missing.py", "", "docs", "README.md"])
def test_a_file_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="plugins are Python files"):
        load_plugins([str(DOCS.parent / path) if path else path])


def test_a_file_is_loaded_once_and_only_if_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source\.name"):
        point([], source={"name": "logistic"})
    for _ in range(2):
        point([SOURCE], source={"name": "logistic"})
    copy = written(tmp_path, SOURCE, ('"logistic"', '"other"'))
    load_plugins([copy])
    assert {"logistic", "other"} < set(SOURCES.names())
