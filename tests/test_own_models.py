"""A person's own prior and network: the examples in docs/, trained, stored and read back by the scripts' own ways."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

import imavae
from imavae.cli.compose import compose
from imavae.cli.main import EVALUATE, TRAIN, launch
from imavae.config.registry import load_plugins
from imavae.config.settings import NETWORKS, PRIORS, RunConfig, run_config, support
from imavae.errors import UserError
from imavae.model import vae
from imavae.model.networks import Layout
from imavae.rng import stream
from imavae.runs.models import load_model, member_parts
from imavae.runs.session import Session
from imavae.training import checkpoint
from imavae.training.checkpoint import save_member
from imavae.training.step import train_epoch
from tests.helpers import normal, pointwise_jacobian, trained

pytestmark = pytest.mark.usefixtures("forget_plugins")
DOCS = Path(__file__).resolve().parent.parent / "docs"
PRIOR, NETWORK = str(DOCS / "own_prior.py"), str(DOCS / "own_network.py")
QUICK = ["data.n_obs=1000", "training.max_epochs=2", "training.validate_every=1", "members.seed=[1,2]", "tracking=none"]
OWN = {
    "prior": [f"plugins=[{PRIOR}]", "data/source=gaussian", "model/prior=own", "model.prior={name: logistic}"],
    "learned prior": [
        f"plugins=[{PRIOR}]",
        "data/source=gaussian",
        "model/prior=own",
        "model.prior={name: logistic, scale: 0.5, parameters: learned}",
    ],
    "conditional prior": [
        f"plugins=[{PRIOR}]",
        "data/source=gaussian",
        "data.n_segments=3",
        "model/prior=own",
        "model.prior={name: logistic, parameters: conditional}",
    ],
    "network": [f"plugins=[{NETWORK}]", "model.name=residual", "model.n_layers=4"],
}
each_own = pytest.mark.parametrize("own", OWN)


def configured(*arguments: str) -> RunConfig:
    """What scripts/train.py makes of a command line."""
    return TRAIN.check(compose(TRAIN, list(arguments)).settings)


@each_own
def test_the_examples_train_and_are_stored(own: str, tmp_path: Path) -> None:
    config = configured(*OWN[own], *QUICK, f"output_dir={tmp_path}")
    session = trained([config])
    assert session.state.status == ["finished", "finished"]
    first, last = session.state.history[0].values, session.state.history[-1].values
    assert (last["val/neg_elbo"] < first["val/neg_elbo"]).all()
    assert (last["val/gap_log_px"] > -0.1).all()  # the bound: no ELBO above the exact log-likelihood
    save_member(tmp_path / "model.pt", *member_parts(session, 1, "val/mcc", {}))
    x = session.data.test.observations[0]
    model = load_model(tmp_path / "model.pt")
    assert model.architecture == session.ensemble.model
    assert torch.equal(model.encode(x), load_model(tmp_path / "model.pt").encode(x))
    session.save(tmp_path / "ensemble.pt")
    assert torch.equal(Session.load(tmp_path / "ensemble.pt", torch.device("cpu")).state.frozen, session.state.frozen)


@each_own
def test_a_member_with_an_own_variant_trains_alone_as_among_others(own: str) -> None:
    settings = [*OWN[own], *QUICK, "training.dtype=float64"]
    company = trained([configured(*settings, "members.seed=[1,2,3]")])
    alone = trained([configured(*settings, "members.seed=[2]")])
    torch.testing.assert_close(company.state.frozen[1], alone.state.frozen[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (-1.0, 0.3)])
def test_the_example_of_a_prior_is_the_law_that_it_says(mean: float, scale: float) -> None:
    prior_settings = {"name": "logistic", "mean": mean, "scale": scale}
    config = run_config(
        {"plugins": [PRIOR], "data": {"source": {"name": "gaussian"}}, "model": {"prior": prior_settings}}
    )
    prior, law = config.model.prior.build(support(config)), scipy.stats.logistic(mean, scale)
    theta = tuple(torch.tensor(value, dtype=torch.float64) for value in prior.start)
    y = torch.linspace(-20, 20, 81, dtype=torch.float64)
    assert torch.equal(prior.latent(y), y)
    np.testing.assert_allclose(prior.log_prob(y, theta).numpy(), law.logpdf(y.numpy()), rtol=1e-12)
    np.testing.assert_allclose(prior.cdf(y, theta).numpy(), law.cdf(y.numpy()), rtol=1e-12)
    assert float(prior.variance(theta)) == pytest.approx(law.var())
    second = torch.func.vmap(torch.func.grad(torch.func.grad(lambda at: prior.log_prob(at, theta))))(y)
    torch.testing.assert_close(prior.curvature(y, theta), -second, rtol=1e-9, atol=1e-14)
    assert prior.log_prob(torch.tensor([-1e3, 1e3]), theta).isfinite().all()


def test_the_example_of_a_learned_prior_starts_where_it_is_told_and_moves() -> None:
    session = Session.start([configured(*OWN["learned prior"], *QUICK)], torch.device("cpu"))
    model = session.ensemble.model
    views = model.layout.views(session.state.weights)
    assert float(model.theta(views, None)[1].exp().mean()) == pytest.approx(0.5)
    train_epoch(session.ensemble, session.state, session.data.train)
    mean, log_scale = model.theta(model.layout.views(session.state.weights.detach()), None)
    assert ((log_scale.exp() - 0.5).abs() > 1e-4).all()
    assert (mean == 0).all()  # the encoder absorbs a shift


@pytest.mark.parametrize("n_layers", [1, 4, 7])
def test_the_example_of_a_network_is_residual_and_its_jacobian_is_that_of_autograd(n_layers: int) -> None:
    model = {"name": "residual", "n_layers": n_layers, "hidden_factor": 3}
    config = run_config({"plugins": [NETWORK], "model": model, "training": {"dtype": "float64"}})
    network = vae.build(config).decoder
    layout = Layout(network.shapes)
    assert sum("weight" in name for name in network.shapes) == 2 + 2 * max(1, (n_layers - 1) // 2)
    flat = torch.stack([layout.initial(stream(seed, "init")) for seed in range(2)])
    x, views = normal(2, 3, 11), layout.views(flat)
    outputs, jacobian = network.jacobian(views, x)
    assert torch.equal(outputs, network(views, x))
    for member in range(2):
        one = layout.views(flat[member : member + 1])
        expected = pointwise_jacobian(lambda rows, one=one: network(one, rows.T[None])[0].T, x[member].T)  # type: ignore[misc]
        torch.testing.assert_close(jacobian[member], expected.permute(1, 2, 0), rtol=1e-11, atol=1e-12)
    for name in views:  # without its blocks it is linear
        if ".b." in name:
            views[name].zero_()
    torch.testing.assert_close(network(views, 2 * x) - network(views, x), network(views, x) - network(views, 0 * x))


@pytest.mark.parametrize("kind", ["model", "ensemble"])
@pytest.mark.parametrize("own", ["prior", "network"])
def test_evaluate_reads_an_own_variant_with_its_plugin_and_says_so_without(
    own: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session.start([configured(*OWN[own], *QUICK)], torch.device("cpu"))
    path = tmp_path / f"{kind}.pt"
    if kind == "model":
        save_member(path, *member_parts(session, 0, "val/mcc", {}))
    else:
        session.save(path)
    plugin = forgotten(own)
    arguments = [f"checkpoint={path}", "tracking=none", f"output_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    assert launch(EVALUATE) == 2
    out, message = capsys.readouterr()
    assert out == ""
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert [part for part in ("plugins=[FILE.py]", plugin_name(own)) if part not in message] == []
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, f"plugins=[{plugin}]"])
    assert launch(EVALUATE) == 0
    assert "test/mcc" in capsys.readouterr().out


def plugin_name(own: str) -> str:
    return {"prior": "logistic", "network": "residual"}[own]


def forgotten(own: str) -> str:
    """Make as if this process had not yet loaded the plugin; its path."""
    path = {"prior": PRIOR, "network": NETWORK}[own]
    PRIORS.entries.pop("logistic", None)
    NETWORKS.entries.pop("residual", None)
    for name in [name for name in sys.modules if name.startswith("imavae_plugin_")]:
        del sys.modules[name]
    return path


def test_a_checkpoint_that_names_a_plugin_does_not_run_it(tmp_path: Path) -> None:
    trap, target = tmp_path / "trap.py", tmp_path / "sprung"
    trap.write_text(f"from pathlib import Path\nPath({str(target)!r}).mkdir()\n")
    config = dataclasses.replace(RunConfig(), plugins=(str(trap),))
    weights = vae.build(config).layout
    views = weights.views(weights.initial(stream(1, "init"))[None])
    checkpoint.save_member(tmp_path / "model.pt", config, {name: view[0] for name, view in views.items()}, {})
    assert str(trap) in str(checkpoint.load(tmp_path / "model.pt")["config"]["plugins"])
    assert checkpoint.load_member(tmp_path / "model.pt").config.plugins == ()
    session = Session.start(
        [dataclasses.replace(config, data=dataclasses.replace(config.data, n_obs=1000))], torch.device("cpu")
    )
    session.save(tmp_path / "ensemble.pt")
    Session.load(tmp_path / "ensemble.pt", torch.device("cpu"))
    assert not target.exists()
    load_plugins([str(trap)])
    assert target.exists()  # it was live


BAD: list[tuple[list[str], dict[str, Any], str]] = [
    ([], {"name": "residual"}, r"model\.name.*'residual'"),
    ([NETWORK], {"name": "residul"}, r"model\.name.*did you mean residual"),
    ([NETWORK], {"name": "residual", "n_layers": 0}, r"model\.n_layers >= 1"),
    ([], {"prior": {"name": "logistic"}}, r"model\.prior\.name.*'logistic'"),
    ([PRIOR], {"prior": {"name": "logistik"}}, "did you mean logistic"),
    ([PRIOR], {"prior": {"name": "logistic", "scale": -1.0}}, r"model\.prior\.scale > 0"),
    ([PRIOR], {"prior": {"name": "logistic", "width": 1.0}}, r"`model\.prior\.width` is not a setting"),
    ([PRIOR], {"prior": {"name": "logistic", "parameters": "conditional"}}, r"data\.n_segments > 1"),
    ([PRIOR], {"prior": {"name": "logistic", "parameters": "lerned"}}, "'fixed', 'learned' or 'conditional'"),
    ([PRIOR], {"prior": {"name": "logistic"}, "kl": "analytic"}, "analytic only where there is a closed form"),
    ([PRIOR], {"prior": None}, r"model\.prior is a mapping"),
]


@pytest.mark.parametrize(("plugins", "model", "rule"), BAD)
def test_own_variants_are_checked_like_the_packages(plugins: list[str], model: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        run_config({"plugins": plugins, "data": {"source": {"name": "gaussian"}}, "model": model})


def test_an_own_prior_without_build_is_refused(tmp_path: Path) -> None:
    text = Path(PRIOR).read_text(encoding="utf-8").replace("def build", "def make")
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    prior = {"name": "logistic"}
    config = run_config(
        {"plugins": [str(tmp_path / "own.py")], "data": {"source": {"name": "gaussian"}}, "model": {"prior": prior}}
    )
    with pytest.raises(UserError, match=r"model.prior has a method build.*LogisticPrior"):
        vae.build(config)


def test_an_own_network_whose_name_is_taken_is_refused(tmp_path: Path) -> None:
    text = Path(NETWORK).read_text(encoding="utf-8").replace('"residual"', '"mlp"')
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"has a unique name.*'mlp'"):
        load_plugins([str(tmp_path / "own.py")])
    assert math.prod(vae.build(RunConfig()).decoder.shapes["decoder.0.weight"]) == 90  # the package's is still there


def test_the_printed_line_loads_an_own_network_in_any_folder(tmp_path: Path) -> None:
    tiny = {"data": {"n_obs": 700}, "training": {"max_epochs": 1, "validate_every": 1}, "output_dir": str(tmp_path)}
    run = imavae.train(tiny, plugins=[NETWORK], model={"name": "residual"}, members={"seed": [1, 2]})
    load = f"{run.loading('load_model')}.config.model.name, len({run.loading('load_results')}.members)"
    command = [sys.executable, "-c", f"import imavae; print({load})"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "residual 2\n"
