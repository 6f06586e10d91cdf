"""Flows: the laws of their layers, their loss, their ensembles, and all that is done with a model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import imavae
from imavae.config.settings import RunConfig, run_config
from imavae.errors import UserError
from imavae.model import vae
from imavae.model.networks import Network
from imavae.rng import stream
from imavae.runs.records import member_rows
from imavae.runs.session import Session, training_step
from imavae.training.step import ByAutograd
from tests.helpers import BETA, GAUSSIAN, LAPLACE, UNIFORM, config, normal, trained

FLOW: dict[str, Any] = {"name": "flow", "activation": "silu", "hidden_factor": 4, "couplings": 3}
PRIORS = [UNIFORM, BETA, GAUSSIAN, LAPLACE]
each_prior = pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: prior["name"])
each_dim = pytest.mark.parametrize("dim", [2, 3, 4, 5])


def flow(dim: int, prior: dict[str, Any] = UNIFORM, **model: Any) -> RunConfig:
    source = {key: value for key, value in prior.items() if key != "parameters"}
    data = {"dim": dim, "n_obs": 2000, "train": 0.2, "val": 0.7, "source": source}
    return config(data, {**FLOW, "prior": prior, **model})


def members_of(at: RunConfig, count: int = 2) -> tuple[vae.Flow, Tensor]:
    """The architecture and flat weights, none of which is zero."""
    model = vae.build(at)
    assert isinstance(model, vae.Flow)
    rows = torch.stack([model.layout.initial(stream(seed, "init")) for seed in range(count)])
    return model, rows + 0.2 * normal(*rows.shape, seed=9)


def jacobians(model: vae.Flow, row: Tensor, x: Tensor) -> Tensor:
    """J[n] of y = h(x), at the columns of x, by autograd, of one member."""
    views = model.layout.views(row[None])
    forward = lambda one: model.encoder(views, one[None, :, None])[0, :, 0]  # noqa: E731
    return torch.stack([torch.func.jacrev(forward)(one) for one in x.T])


@each_dim
def test_the_inverse_undoes_the_flow_inside_and_outside_of_the_splines(dim: int) -> None:
    model, rows = members_of(flow(dim))
    weights, x = model.layout.views(rows), 3 * normal(2, dim, 200)
    y = model.encoder(weights, x)
    assert (y.abs() > 8).any()
    assert (y.abs() < 8).any()
    torch.testing.assert_close(model.encoder.inverse(weights, y), x, rtol=1e-8, atol=1e-8)


@each_dim
def test_log_determinant_contrast_and_jacobian_are_those_of_autograd(dim: int) -> None:
    model, rows = members_of(flow(dim))
    x = normal(2, dim, 20)
    passed = model.encoder.passed(model.layout.views(rows), x, columns=True)
    assert passed.contrast is not None
    assert passed.inverse_jacobian is not None
    for m in range(2):
        forward = jacobians(model, rows[m], x[m])
        inverse, log_det = torch.linalg.inv(forward), torch.linalg.slogdet(forward)[1]
        torch.testing.assert_close(passed.log_det[m], log_det, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(passed.inverse_jacobian[m].permute(2, 0, 1), inverse, rtol=1e-7, atol=1e-9)
        contrast = inverse.norm(dim=1).log().sum(1) + log_det
        torch.testing.assert_close(passed.contrast[m], contrast, rtol=1e-8, atol=1e-8)
        assert contrast.min() > 0.01


@each_prior
def test_the_decoder_is_the_inverse_on_the_priors_support_with_its_jacobian(prior: dict[str, Any]) -> None:
    model, rows = members_of(flow(3, prior))
    weights, x = model.layout.views(rows), 0.5 * normal(2, 3, 30)
    z = model.prior.latent(model.posterior(weights, x).mean)
    outputs, jacobian = model.decoder.jacobian(weights, z)
    torch.testing.assert_close(outputs, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(jacobian, Network.jacobian(model.decoder, weights, z)[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("prior", [GAUSSIAN, UNIFORM], ids=lambda prior: prior["name"])
def test_the_density_integrates_to_one(prior: dict[str, Any]) -> None:
    model, rows = members_of(flow(2, prior, couplings=2), 1)
    rows *= 0.5  # a density that a grid resolves
    weights = model.layout.views(rows)
    y = torch.cartesian_prod(*[torch.linspace(-12, 12, 60, dtype=torch.float64)] * 2).T[None]
    ends = model.encoder.inverse(weights, y)[0].aminmax(dim=1)
    axes = [torch.linspace(float(low), float(high), 1000, dtype=torch.float64) for low, high in zip(*ends, strict=True)]
    x = torch.cartesian_prod(*axes).T[None]
    passed = model.encoder.passed(weights, x)
    log_px = model.prior.log_prob(passed.y, model.theta(weights, None)).sum(1) + passed.log_det
    area = math.prod(float(axis[1] - axis[0]) for axis in axes)
    assert float(log_px.exp().sum() * area) == pytest.approx(1, abs=2e-3)


@each_prior
def test_the_loss_is_the_likelihood_and_the_weight_adds_the_contrast_of_the_inverse(prior: dict[str, Any]) -> None:
    model, rows = members_of(flow(3, prior))
    x, one = 0.5 * normal(2, 3, 9), torch.ones(2, dtype=torch.float64)
    with_it, without = torch.zeros_like(rows), torch.zeros_like(rows)
    weight = torch.tensor([0.0, 0.7], dtype=torch.float64)
    ByAutograd(model, rows, with_it, one, True, weight)(x, x, None)
    ByAutograd(model, rows, without, one, True)(x, x, None)
    torch.testing.assert_close(with_it[0], without[0], rtol=1e-10, atol=1e-12)
    for m in range(2):
        row = rows[m].clone().requires_grad_()
        views, jacobian = model.layout.views(row[None]), jacobians(model, row, x[m])
        log_det = torch.linalg.slogdet(jacobian)[1]
        log_prior = model.prior.log_prob(model.encoder(views, x[m : m + 1]), model.theta(views, None))[0].sum(0)
        [expected] = torch.autograd.grad(-(log_prior + log_det).mean(), row, retain_graph=True)
        torch.testing.assert_close(without[m], expected, rtol=1e-7, atol=1e-9)
        contrast = torch.linalg.inv(jacobian).norm(dim=1).log().sum(1) + log_det
        [expected] = torch.autograd.grad(weight[m] * contrast.mean(), row)
        torch.testing.assert_close(with_it[m] - without[m], expected, rtol=1e-6, atol=1e-9)


def run(seeds: list[int], ima_weight: float = 0.0, **training: Any) -> RunConfig:
    settings = {"max_epochs": 2, "validate_every": 1, "learning_rate": 5e-3, "dtype": "float64", **training}
    model = {**FLOW, "ima_weight": ima_weight}
    return run_config({"data": {"n_obs": 1500}, "model": model, "members": {"seed": seeds}, "training": settings})


@pytest.mark.parametrize("ima_weight", [0.0, 1.0])
def test_a_member_trains_alone_as_among_others_of_other_weights(ima_weight: float) -> None:
    alone = trained([run([7], ima_weight)])
    company = trained([run([5, 7, 8], weight) for weight in (10 * ima_weight, ima_weight)])
    difference = (company.state.frozen - alone.state.frozen[0]).abs().amax(1)
    assert difference[4] < 1e-12
    assert difference[[3, 5]].min() > 1e-2  # other seeds
    assert (difference[1] > 1e-4) == (ima_weight > 0)  # another weight


def test_the_weight_lowers_the_contrast() -> None:
    session = trained([run([1], 0.01, max_epochs=6), run([1], 3.0, max_epochs=6)])
    few, large = session.evaluate("val", session.state.frozen, torch.arange(2))["val/cima"].tolist()
    assert large < 0.5 * few


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_resumed_run_is_that_without_an_interruption_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    points = [run([1], 0.5, dtype=dtype), run([1], 2.0, dtype=dtype)]
    whole, broken = trained(points), Session.start(points, torch.device("cpu"))
    for progress in broken.train():
        if progress.epoch == 1:
            break
    broken.save(tmp_path / "checkpoint.pt")
    resumed = Session.resume(tmp_path / "checkpoint.pt", points, torch.device("cpu"))
    assert resumed is not None
    for _ in resumed.train():
        pass
    assert torch.equal(resumed.state.frozen, whole.state.frozen)


def test_metrics_of_a_flow_are_exact_and_those_of_a_posterior_are_absent() -> None:
    session = trained([run([1, 2])])
    [row, _] = member_rows(session, 0, 0)
    at = "at min val/neg_elbo"
    known = {name.split(" ")[0] for name in row if name.endswith(at)}
    assert {"test/mcc", "test/cima", "test/amari", "test/agreement", "test/log_px", "test/gap_log_px"} <= known
    absent = ("kl", "log_px_z", "self_consistency", "gamma", "gap_ima", "mse_obs", "mse_source")
    assert not {f"{split}/{name}" for name in absent for split in ("val", "test")} & known
    assert math.isnan(float(row["gamma"]))
    # the likelihood by hand
    model, flat = session.ensemble.model, session.state.best["val/neg_elbo"].weights[:1]
    assert isinstance(model, vae.Flow)
    x, views = session.data.test.block(torch.tensor([0]), slice(None)), model.layout.views(flat)
    passed = model.encoder.passed(views, x)
    log_px = model.prior.log_prob(passed.y, model.theta(views, None)).sum(1) + passed.log_det
    assert float(row[f"test/neg_elbo {at}"]) == pytest.approx(-float(log_px.mean()), rel=1e-10)
    truth = session.data.test.truth
    assert truth is not None
    kl = float(truth.log_px[0].mean() - log_px.mean())
    assert float(row[f"test/gap_log_px {at}"]) == pytest.approx(kl, rel=1e-8)
    assert float(row[f"test/mcc {at}"]) == float(row[f"test/mcc_mean {at}"])


@pytest.mark.parametrize(
    "prior", [{**GAUSSIAN, "parameters": "learned"}, {**BETA, "parameters": "learned"}], ids=lambda p: p["name"]
)
def test_parameters_of_the_prior_are_learned(prior: dict[str, Any]) -> None:
    session = trained([dataclasses.replace(flow(2, prior), training=run([1]).training)])
    assert session.ensemble.model.layout.views(session.state.frozen)["prior.offset"].abs().min() > 0


def test_a_run_has_a_report_and_a_model_that_encodes_and_decodes(tmp_path: Path) -> None:
    given = run([1, 2], 0.1, dtype="float32")
    results = imavae.train(given, output_dir=str(tmp_path), name="flow", tracking={"name": "none"})
    assert (results.folder / "report.html").is_file()
    assert not (results.folder / "figures" / "posterior_variance.png").exists()
    model = imavae.load_model(results.folder)
    x = torch.as_tensor(imavae.world(model).observations)
    z = model.encode(x)
    assert float((z.abs() <= 0.5).float().mean()) == 1
    torch.testing.assert_close(model.decode(z), x, rtol=1e-3, atol=1e-3)
    latents = imavae.encode(model, x.numpy())
    assert np.all(latents.std == 0)
    assert latents.error.max() < 1e-4


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "gamma": ({"model": {"gamma": 30.0}}, r"model\.gamma is left alone for model=flow.*got 30"),
    "precision": ({"model": {"precision": "learned"}}, r"model\.precision is left alone"),
    "beta": ({"model": {"beta": 2.0}}, r"model\.beta is left alone"),
    "posterior": ({"model": {"posterior": "full"}}, r"model\.posterior is left alone"),
    "decoder": ({"model": {"decoder": "mixing"}}, r"model\.decoder is left alone"),
    "encoder": ({"model": {"encoder": {"n_layers": 3}}}, r"model\.encoder is left alone"),
    "gamma schedule": (
        {"training": {"gamma_schedule": {"shape": "linear"}}},
        r"training\.gamma_schedule is constant for model=flow",
    ),
    "images": ({"data": {"kind": "sprites"}}, r"as many latents as observed numbers.*4 latents of 12288"),
    "no coupling": ({"model": {"couplings": 0}}, r"model\.couplings >= 1"),
    "step": ({"training": {"step": "compiled"}}, r"model=flow needs autograd"),
    "couplings of a VAE": ({"model": {"name": "mlp"}}, r"model\.couplings is left alone but for a flow.*got 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_mean_nothing_are_refused(name: str) -> None:
    wrong, message = WRONG[name]
    model = {**FLOW, **wrong.get("model", {})}
    with pytest.raises(UserError, match=message):
        training_step(run_config({**wrong, "model": model}))


def test_fewer_latents_than_columns_and_a_single_latent_are_refused() -> None:
    for columns, dim in ((3, 2), (1, 1)):
        x = normal(300, columns).numpy()
        with pytest.raises(UserError, match=f"as many latents as observed numbers.*{dim} latents? of {columns}"):
            imavae.train(x, model=FLOW, data={"dim": dim})


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_study_searches_the_weight_tracks_it_and_stores_its_champion(tmp_path: Path) -> None:
    weights = {"type": "choice", "values": [0.0, 1.0]}
    results = imavae.tune(
        run([1, 2], dtype="float32", max_epochs=1),
        search={"model": {"ima_weight": weights}},
        sampler={"name": "grid"},
        cluster={"cpus": 1},
        output_dir=str(tmp_path),
        study="flows",
    )
    assert results.trials["model.ima_weight"].tolist() == [0.0, 1.0]
    assert results.members["gamma"].isna().all()
    assert not list((results.folder / "figures").glob("*gamma*"))
    model = imavae.load_model("models:/flows@champion", str(tmp_path))
    x = torch.as_tensor(imavae.world(model).observations)
    torch.testing.assert_close(model.decode(model.encode(x)), x, rtol=1e-3, atol=1e-3)
