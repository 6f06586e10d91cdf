"""Every option of a model, trained: no member disturbs another, precisions and priors do what they say."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imavae.config.settings import RunConfig, run_config
from imavae.model import vae
from imavae.runs.models import load_model, member_parts
from imavae.runs.records import history_rows, member_rows
from imavae.runs.session import Session
from imavae.training.checkpoint import save_member
from imavae.training.step import train_epoch
from tests.helpers import normal, plain_model, pointwise_jacobian, random_members, trained, weight

CPU = torch.device("cpu")
GAUSSIAN = {"source": {"name": "gaussian"}, "mixing": {"name": "mlp"}}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of data, of the model
    "beta prior": ({}, {"prior": {"name": "beta"}}),
    "learned beta prior": ({}, {"prior": {"name": "beta", "parameters": "learned"}}),
    "learned prior": (GAUSSIAN, {"prior": {"name": "gaussian", "parameters": "learned"}}),
    "conditional prior": (
        {**GAUSSIAN, "n_segments": 3},
        {"prior": {"name": "laplace", "parameters": "conditional"}, "gamma": 5.0},
    ),
    "full posterior": ({}, {"posterior": "full"}),
    "learned gamma": ({}, {"precision": "learned"}),
    "mle gamma": ({}, {"precision": "mle"}),
    "beta": ({}, {"beta": 3.0}),
    "analytic": (GAUSSIAN, {"prior": {"name": "laplace"}, "kl": "analytic"}),
    "activation": ({}, {"activation": "silu", "encoder": {"n_layers": 3, "hidden_factor": 5}}),
    "mixing as decoder": ({}, {"decoder": "mixing"}),
}
each_option = pytest.mark.parametrize("option", OPTIONS)


def configured(option: str, seeds: list[int], worlds: list[int] | None = None, **training: Any) -> RunConfig:
    """A short run in float64."""
    data, model = OPTIONS.get(option, ({}, {}))
    return run_config(
        {
            "data": {"n_obs": 1000, **data},
            "model": {"gamma": 20.0, **model},
            "training": {"dtype": "float64", "max_epochs": 2, "validate_every": 1, **training},
            "members": {"seed": seeds, "data": {"seed": worlds}},
        }
    )


@each_option
def test_a_member_trains_alone_as_among_others(option: str) -> None:
    company, alone = trained([configured(option, [1, 2, 3])]), trained([configured(option, [2])])
    assert company.state.status == ["finished"] * 3
    torch.testing.assert_close(company.state.frozen[1], alone.state.frozen[0], rtol=0, atol=1e-12)
    assert (company.state.frozen[0] - alone.state.frozen[0]).abs().max() > 1e-2
    for together, single in zip(company.state.history, alone.state.history, strict=True):
        for name, value in single.values.items():
            torch.testing.assert_close(together.values[name][1:2], value, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("option", ["plain", "full posterior", "mle gamma", "conditional prior"])
def test_a_member_of_several_worlds_trains_as_in_its_world_alone(option: str) -> None:
    company = trained([configured(option, [1, 2], [4, 9, 6])])
    members = [(member.world, member.seed) for member in company.ensemble.members]
    assert members == [(world, seed) for world in (4, 9, 6) for seed in (1, 2)]
    alone = trained([configured(option, [1, 2], [9])])
    point = configured(option, [1, 2])
    by_data_seed = trained([dataclasses.replace(point, data=dataclasses.replace(point.data, seed=9))])
    for one in (alone, by_data_seed):
        torch.testing.assert_close(company.state.frozen[2:4], one.state.frozen, rtol=0, atol=1e-12)
        for name, value in one.state.history[-1].values.items():
            found = company.state.history[-1].values[name][2:4]
            torch.testing.assert_close(found, value, rtol=1e-8, atol=1e-10, msg=name)
    assert (company.state.frozen[0] - company.state.frozen[2]).abs().max() > 1e-2  # one seed, two worlds


def test_members_with_betas_of_their_own_train_as_points_of_their_own() -> None:
    points = [configured("plain", [1]), configured("beta", [1])]
    company = trained(points)
    for row, point in enumerate(points):
        torch.testing.assert_close(company.state.frozen[row], trained([point]).state.frozen[0], rtol=0, atol=1e-12)
    assert (company.state.frozen[0] - company.state.frozen[1]).abs().max() > 1e-3


@pytest.mark.parametrize("option", ["learned gamma", "mle gamma", "learned prior", "conditional prior"])
def test_an_interrupted_run_goes_on_bit_for_bit(option: str, tmp_path: Path) -> None:
    point = configured(option, [1, 2], dtype="float32", max_epochs=4)
    whole = trained([point])
    session = Session.start([point], CPU)
    for progress in session.train():
        if progress.epoch == 2:
            break
    session.save(tmp_path / "state.pt")
    resumed = Session.load(tmp_path / "state.pt", CPU)
    for _ in resumed.train():
        pass
    assert torch.equal(resumed.state.frozen, whole.state.frozen)
    assert repr(history_rows(resumed, 0, 0)) == repr(history_rows(whole, 0, 0))
    assert repr(member_rows(resumed, 0, 0)) == repr(member_rows(whole, 0, 0))


def test_gamma_stays_where_it_is_fixed_and_moves_where_it_is_learned() -> None:
    start = math.log(20.0)
    for option in set(OPTIONS) - {"learned gamma", "mle gamma", "conditional prior"}:
        assert weight(trained([configured(option, [1, 2])]), vae.GAMMA).tolist() == [start, start], option
    learned = weight(trained([configured("learned gamma", [1, 2])]), vae.GAMMA)
    assert ((learned - start).abs() > 1e-3).all()
    assert learned[0] != learned[1]


def test_learned_gamma_takes_the_step_of_the_gradient_by_its_logarithm() -> None:
    """d/d log gamma of the loss is gamma² E‖x − g(z)‖² − d: at a tiny gamma it must rise, at a huge one fall."""
    for gamma, sign in ((1e-2, 1), (1e5, -1)):
        point = configured("learned gamma", [1])
        point = dataclasses.replace(point, model=dataclasses.replace(point.model, gamma=gamma))
        assert float(weight(trained([point]), vae.GAMMA) - math.log(gamma)) * sign > 0


def test_mle_gamma_is_the_inverse_root_of_the_obvious_mean_squared_residual() -> None:
    session = Session.start([configured("mle gamma", [1, 2], [4, 9])], CPU)
    for _ in range(2):
        train_epoch(session.ensemble, session.state, session.data.train)
    for row, member in enumerate(session.ensemble.members):
        model = plain_model(session.points[0], session.state.weights[row].detach())
        x = session.data.train.observations[session.ensemble.worlds.index(member.world)]
        assert model.gamma**-2 == pytest.approx(float((model(x) - x).square().mean()), rel=1e-10)


def test_what_precision_has_become_is_reported_and_stored(tmp_path: Path) -> None:
    session = trained([configured("mle gamma", [1, 2])])
    final = session.state.history[-1].values["val/gamma"]
    torch.testing.assert_close(final, weight(session, vae.GAMMA).exp())
    assert (final != session.state.history[0].values["val/gamma"]).all()
    assert [row["gamma"] for row in member_rows(session, 0, 0)] == pytest.approx(final.tolist())
    save_member(tmp_path / "model.pt", *member_parts(session, 0, "val/neg_elbo", {}))
    epoch = int(session.state.best["val/neg_elbo"].epoch[0])
    then = float(session.state.history[epoch - 1].values["val/gamma"][0])
    assert load_model(tmp_path / "model.pt").gamma == pytest.approx(then)


@each_option
def test_what_is_reported_has_beta_one(option: str) -> None:
    session = trained([configured(option, [1, 2])])
    for validation in session.state.history:
        values = validation.values
        torch.testing.assert_close(values["val/neg_elbo"], values["val/kl"] - values["val/log_px_z"])
    other = configured(option, [1, 2])
    other = dataclasses.replace(other, model=dataclasses.replace(other.model, beta=7.0))
    flat, rows = session.state.frozen, torch.arange(2)
    again = Session.start([other], CPU).evaluate("val", flat, rows)
    for name, value in session.evaluate("val", flat, rows).items():
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize("prior", ["gaussian", "laplace", "beta"])
def test_a_learned_prior_starts_at_the_given_parameters_and_moves(prior: str) -> None:
    given = {"gaussian": {"mean": 0.3, "std": 0.7}, "laplace": {"mean": 0.3, "scale": 0.7}, "beta": {"alpha": 2.5}}
    data = {} if prior == "beta" else GAUSSIAN
    settings = {"data": {"n_obs": 1000, **data}, "model": {"prior": {"name": prior, **given[prior]}}}
    settings["training"] = {"dtype": "float64"}
    fixed = run_config(settings)
    learned = run_config({**settings, "model": {"prior": {"name": prior, **given[prior], "parameters": "learned"}}})
    session = Session.start([learned], CPU)
    model, state = session.ensemble.model, session.state
    start = vae.build(fixed).theta({}, None)
    theta = model.theta(model.layout.views(state.weights), None)
    assert all(bool((now == at).all()) for now, at in zip(theta, start, strict=True))
    train_epoch(session.ensemble, state, session.data.train)
    moved = model.theta(model.layout.views(state.weights.detach()), None)
    for i, (now, at) in enumerate(zip(moved, start, strict=True)):
        if i in model.prior.free:
            assert ((now - at).abs() > 1e-5).all(), i
            assert len(set(now.flatten().tolist())) == now.numel()  # each member and latent has its own
        else:
            assert bool((now == at).all())


@pytest.mark.parametrize("prior", ["gaussian", "laplace", "beta"])
def test_a_conditional_priors_parameters_are_a_loop_over_segments(prior: str) -> None:
    data = {"n_segments": 4, **({} if prior == "beta" else GAUSSIAN)}
    settings = {"name": prior, "parameters": "conditional"}
    at = run_config({"data": data, "model": {"prior": settings}, "training": {"dtype": "float64"}})
    model, flat = vae.build(at), random_members(at, [1, 2])
    weights = model.layout.views(flat)
    u = torch.randint(4, (2, 50), generator=torch.Generator().manual_seed(0))
    theta = model.theta(weights, u)
    for member in range(2):
        for n in range(50):
            one = torch.nn.functional.one_hot(u[member, n], 4).double()
            hidden = torch.tanh(weights["prior.0.weight"][member] @ one + weights["prior.0.bias"][member])
            offsets = (weights["prior.1.weight"][member] @ hidden + weights["prior.1.bias"][member]).view(-1, 3)
            for i, start in enumerate(model.prior.start):
                torch.testing.assert_close(theta[i][member, :, n], start + offsets[i], rtol=1e-12, atol=1e-12)


def test_a_conditional_prior_tells_segments_apart_after_training() -> None:
    session = trained([configured("conditional prior", [1])])
    model = session.ensemble.model
    assert model.prior_network is not None
    views = model.layout.views(session.state.frozen)
    scales = model.theta(views, torch.arange(3)[None])[1]
    assert float(scales.std(2).min()) > 1e-3
    with pytest.raises(ValueError, match="needs segments"):
        model.theta(views, None)


def test_the_mixing_as_decoder_has_no_weights_and_the_mixings_jacobian() -> None:
    at = configured("mixing as decoder", [1, 2])
    session = Session.start([at], CPU)
    model, f = session.ensemble.model, session.data.mixings[0]
    assert {name.split(".")[0] for name in model.layout.shapes} == {"encoder", vae.GAMMA}
    s = session.data.val.sources[0, :40]
    stacked = torch.stack([s.T, 0.5 * s.T])
    outputs, jacobian = model.decoder.jacobian({}, stacked)
    torch.testing.assert_close(outputs[0].T, session.data.val.observations[0, :40], rtol=1e-12, atol=1e-12)
    assert torch.equal(outputs, model.decoder({}, stacked))
    for member in range(2):
        expected = pointwise_jacobian(f.forward, stacked[member].T).permute(1, 2, 0)
        torch.testing.assert_close(jacobian[member], expected, rtol=1e-10, atol=1e-12)
    values = trained([at]).evaluate("val", session.state.weights, torch.arange(2))
    torch.testing.assert_close(values["val/cima"], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)  # Möbius


def test_the_decoder_of_a_world_is_that_worlds_mixing() -> None:
    """Also in a stored model, whose mixing is made again from its seed."""
    at = configured("mixing as decoder", [1])
    other = dataclasses.replace(at, data=dataclasses.replace(at.data, seed=5))
    z = 0.3 * normal(6, 3)
    first, second = (plain_model(point, random_members(point, [1])[0]).decode(z) for point in (at, other))
    exact = Session.start([other], CPU).data.mixings[0].forward(z)
    torch.testing.assert_close(second, exact, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(first, second)


def test_the_rate_falls_along_a_cosine_where_it_is_told_to() -> None:
    def first_step(epoch: int, schedule: str) -> Tensor:
        session = Session.start([configured("plain", [1], max_epochs=8, schedule=schedule)], CPU)
        session.state.epoch, before = epoch, session.state.weights.clone()
        train_epoch(session.ensemble, session.state, session.data.train)
        return session.state.weights.detach() - before

    assert torch.equal(first_step(0, "constant"), first_step(5, "constant"))
    assert torch.equal(first_step(0, "cosine"), first_step(0, "constant"))
    sizes = [float(first_step(epoch, "cosine").norm()) for epoch in (0, 2, 4, 6, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] == pytest.approx(sizes[0] / 2, rel=0.1)
    assert sizes[-1] == 0
