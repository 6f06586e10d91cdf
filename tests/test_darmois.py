"""The Darmois construction: independent uniform variables from any density, and how far it stands from the truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

import imavae
from imavae.config.data import SyntheticData
from imavae.config.settings import run_config
from imavae.data.dataset import world
from imavae.data.mixings.darmois import OfDensity, OfMixture
from imavae.metrics import ima
from imavae.metrics.references import Reference, references
from imavae.report.run_figures import solution_plane
from tests.helpers import normal
from tests.pages import ROOT, blocks

MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
FACTOR = torch.tensor([[2.0, 0.0, 0.0], [-1.5, 0.5, 0.0], [0.7, 0.3, 1.2]], dtype=torch.float64)
CENTRES = 2 * normal(5, 3)


def log_normal(x: Tensor, mean: Tensor = MEAN) -> Tensor:
    """The log-density of the normal law with this mean and the factor of its covariance."""
    factor = FACTOR[: x.shape[1], : x.shape[1]]
    law = stats.multivariate_normal(mean[: x.shape[1]].numpy(), (factor @ factor.T).numpy())
    return torch.from_numpy(np.atleast_1d(law.logpdf(x.numpy())))


def linear_gaussian(dim: int, n: int = 2000) -> tuple[Tensor, Tensor]:
    """Draws of a normal law, and their Darmois construction: Φ of the whitening by the Cholesky factor."""
    x = MEAN[:dim] + normal(n, dim) @ FACTOR[:dim, :dim].T
    return x, torch.special.ndtr(torch.linalg.solve(FACTOR[:dim, :dim], (x - MEAN[:dim]).T).T)


def test_of_linear_gaussian_data_it_is_the_whitening_by_the_cholesky_factor() -> None:
    x, expected = linear_gaussian(3)
    construction = OfMixture(MEAN[None], FACTOR)
    torch.testing.assert_close(construction.forward(x), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(construction.log_det(x), log_normal(x), rtol=1e-12, atol=1e-12)


def test_its_jacobian_is_triangular_and_has_the_density_as_determinant() -> None:
    construction, x = OfMixture(CENTRES, FACTOR), 2 * normal(50, 3, seed=1)
    jacobian = construction.jacobian(x)
    assert not jacobian.triu(1).any()
    log_p = torch.stack([log_normal(x, centre) for centre in CENTRES]).logsumexp(0)
    torch.testing.assert_close(construction.log_det(x), log_p - math.log(len(CENTRES)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, construction.log_det(x))


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = blocks(ROOT / "docs/theory.md", "python")
    exec(code, {})  # noqa: S102
    assert "tensor(0.0" in capsys.readouterr().out


def require_uniform(u: Tensor) -> None:
    """Each column is uniform, and no pair of columns depends on each other, at a level of 1e-4 each."""
    for i, column in enumerate(u.T.numpy()):
        assert stats.kstest(column, "uniform").pvalue > 1e-4
        for other in u.T.numpy()[:i]:
            counts = np.histogram2d(column, other, 8, [(0, 1), (0, 1)])[0]
            assert stats.chi2_contingency(counts).pvalue > 1e-4


def test_it_makes_a_known_density_uniform_and_independent() -> None:
    generator = torch.Generator().manual_seed(3)
    which = torch.randint(len(CENTRES), (20_000,), generator=generator)
    x = CENTRES[which] + torch.randn(20_000, 3, generator=generator, dtype=torch.float64) @ FACTOR.T
    require_uniform(OfMixture(CENTRES, FACTOR).forward(x))


def test_that_of_a_sample_agrees_with_the_closed_form_as_its_size_allows() -> None:
    """Hoeffding's bound, 2 exp(−2 n e²), for the weighted mean of n_eff = 1 / Σ w² levels at each of 200 points."""
    x, exact = linear_gaussian(2, 4200)
    sample, at = x[:4000], x[4000:]
    construction = OfMixture.of_sample(sample)
    error = (construction.forward(at) - exact[4000:]).abs()
    distance = (at[:, None, 0] - construction.centres[:, 0]) / construction.factor[0, 0]
    weight = torch.softmax(-0.5 * distance.square(), 1)
    sizes = torch.stack([torch.full((200,), 4000.0, dtype=torch.float64), 1 / weight.square().sum(1)], 1)
    bound = (math.log(2 / (1e-3 / 400)) / (2 * sizes)).sqrt()
    assert (error < bound).all()
    assert bound[:, 0].max() < 0.05
    assert bound[:, 1].median() < 0.1


@pytest.mark.parametrize("dim", [2, 3])
def test_that_of_a_density_on_a_grid_agrees_with_the_closed_form(dim: int) -> None:
    x, exact = linear_gaussian(dim)
    construction = OfDensity.on_box(log_normal, x.min(0).values - 1, x.max(0).values + 1)
    torch.testing.assert_close(construction.forward(x), exact, rtol=0, atol=0.015)
    jacobian, closed = construction.jacobian(x), OfMixture(MEAN[None, :dim], FACTOR[:dim, :dim]).jacobian(x)
    assert not jacobian.triu(1).any()
    assert (jacobian - closed).abs().mean() < 0.05 * closed.abs().mean()
    assert torch.linalg.slogdet(jacobian).logabsdet.sub(log_normal(x)).abs().median() < 0.08


def test_references_of_a_moebius_map_keep_its_law() -> None:
    data = run_config({"data": {"dim": 2, "n_obs": 20_000}}).data
    assert isinstance(data, SyntheticData)
    truth, *turned, darmois = references(data)
    assert (truth.cima, truth.mcc) == pytest.approx((0.0, 1.0), abs=1e-9)
    assert [one.mcc for one in turned] == pytest.approx([0.963, 0.859, 0.695, 0.852, 0.962, 1.0], abs=0.02)
    assert [one.cima for one in turned] == pytest.approx([0.159, 0.271, 0.317, 0.271, 0.159, 0.0], abs=0.02)
    assert 0.18 < darmois.cima < 0.24  # 0.208 on a grid of 2048 cells
    assert darmois.mcc < 0.9
    drawn = world(data)

    def log_prob(x: Tensor) -> Tensor:
        s = drawn.mixing.inverse(x)
        return drawn.source.log_prob(s) - drawn.mixing.log_det(s)

    x = drawn.observations
    u = OfDensity.on_box(log_prob, x.min(0).values, x.max(0).values).forward(x[:4000])
    require_uniform(u[u.isfinite().all(1)])


def test_references_of_a_linear_gaussian_world_are_in_closed_form() -> None:
    linear = {"name": "linear", "weights": "general"}
    given = {"data": {"dim": 3, "mixing": linear, "source": {"name": "gaussian"}}}
    data = run_config({**given, "model": {"prior": {"name": "gaussian"}}}).data
    assert isinstance(data, SyntheticData)
    found = {one.name: one.cima for one in references(data)}
    matrix = world(data).mixing.jacobian(torch.zeros(1, 3, dtype=torch.float64))[0]
    factors = torch.stack([matrix, torch.linalg.cholesky(matrix @ matrix.T)])
    expected = ima.contrast(factors[..., None]).values[:, 0].tolist()
    assert [found["truth"], found["Darmois"]] == pytest.approx(expected, rel=0.05)


def test_segments_and_more_dimensions_have_the_references_that_keep_their_law() -> None:
    segments, four = (
        run_config({"data": {"n_obs": 2000, **data}}).data
        for data in ({"n_segments": 3}, {"dim": 4, "mixing": {"name": "flow"}})
    )
    assert isinstance(segments, SyntheticData)
    assert isinstance(four, SyntheticData)
    assert [one.name for one in references(segments)] == ["truth"]
    assert {one.name.partition(",")[0] for one in references(four)} == {"truth", "f ∘ a"}


def test_the_plane_has_each_member_and_reference_at_its_contrast_and_elbo() -> None:
    best = "at min val/neg_elbo"
    columns = {f"val/cima {best}": [0.1, 0.02, np.nan], f"val/gap_log_px {best}": [0.5, 0.4, np.inf]}
    members = pd.DataFrame({**columns, f"val/mcc {best}": [0.7, 0.9, np.nan]})
    found = [Reference("truth", 0.0, 1.0), Reference("f ∘ a, 15°", 0.2, 0.9), Reference("Darmois", 0.3, 0.7)]
    axes = solution_plane(members, found, [0.8]).axes[0]
    shown: list[Any] = list(axes.collections)
    dots = [np.hstack([one.get_offsets(), one.get_array()[:, None]]).tolist() for one in shown]
    assert dots == [[[0.1, 0.5, 0.7], [0.02, 0.4, 0.9]], [[0, 0, 1]], [[0.2, 0.2, 0.9]], [[0.3, 0.3, 0.7]]]
    assert axes.get_title("right") == "1 not shown"


def test_a_run_of_a_known_mixing_draws_the_plane_of_one_world(tmp_path: Path) -> None:
    given: dict[str, Any] = {"data": {"dim": 2, "n_obs": 1000}, "output_dir": str(tmp_path)}
    given |= {"training": {"max_epochs": 2, "validate_every": 1}, "tracking": {"name": "none"}}
    run = imavae.train(members={"seed": [1, 2], "data": {"seed": [4, 5]}}, **given)
    assert (run.folder / "figures/solution_plane.png").stat().st_size > 5000
    assert "solution plane" in (run.folder / "report.html").read_text()
