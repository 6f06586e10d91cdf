"""Schedules of gamma, beta and the IMA weight, and a warm start: what an epoch trains with, and which state is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import imavae
from imavae.config.settings import Objective, RunConfig, WarmUp, run_config
from imavae.errors import UserError
from imavae.model.vae import GAMMA
from imavae.runs.session import Session
from imavae.training.checkpoint import save_member
from tests.helpers import trained, weight

CPU = torch.device("cpu")
SHAPES: tuple[Any, ...] = ("linear", "geometric", "cosine")


def config(model: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    model = {"gamma": 30.0, "hidden_factor": 4, **(model or {})}
    training = {"max_epochs": 6, "validate_every": 1, "patience": 1, **training}
    return run_config({"data": {"n_obs": 1000}, "model": model, "members": {"seed": [1, 2]}, "training": training})


def test_shares_rise_from_the_start_to_one_and_stay() -> None:
    for shape in SHAPES:
        shares = [WarmUp(shape=shape, start=0.01, until=5).share(epoch) for epoch in range(8)]
        assert shares[0] == pytest.approx(0.01)
        assert shares[4:] == [1.0] * 4
        assert shares == sorted(shares)
    middle = {shape: WarmUp(shape=shape, start=0.01, until=5).share(2) for shape in SHAPES}
    assert middle == pytest.approx({"linear": 0.505, "geometric": 0.1, "cosine": 0.505})
    assert WarmUp(shape="cosine", start=0.0, until=5).share(1) == pytest.approx(0.5 - 0.125**0.5)
    assert WarmUp(shape="linear", start=3.0, until=3).share(1) == pytest.approx(2.0)  # it may fall, too
    assert {WarmUp(start=0.2).share(epoch) for epoch in (0, 1, 50)} == {1.0}


@pytest.mark.parametrize("step", ["compiled", "autograd"])
def test_an_epoch_trains_with_its_gamma_and_the_last_ones_with_the_settings(step: str) -> None:
    at = config(step=step, gamma_schedule={"shape": "geometric", "start": 0.25, "until": 3})
    session = Session.start([at], CPU)
    views = session.ensemble.model.layout.views
    seen = [views(session.state.weights)[GAMMA].exp().tolist() for _ in session.train()]
    expected = [[7.5] * 2, [15.0] * 2, *[[30.0] * 2] * (len(seen) - 3)]
    assert seen[:-1] == [pytest.approx(row, rel=1e-5) for row in expected]
    assert weight(session, GAMMA).exp().tolist() == pytest.approx([30.0] * 2)


@pytest.mark.parametrize(("name", "setting"), [("gamma", "gamma"), ("beta", "beta"), ("ima", "ima_weight")])
def test_an_epoch_at_half_a_value_is_one_of_half_the_setting(name: str, setting: str) -> None:
    half = {"shape": "linear", "start": 0.5, "until": 2}
    whole = config({setting: 8.0}, max_epochs=2, **{f"{name}_schedule": half})
    other, states = config({setting: 4.0}, max_epochs=2), []
    for at in (whole, other):
        session = Session.start([at], CPU)
        for _ in session.train():
            states.append(session.state.weights.clone())
            break
    first, expected = states
    torch.testing.assert_close(first, expected, rtol=1e-6, atol=1e-6)


def test_without_a_schedule_no_number_moves() -> None:
    plain, explicit = (trained([one]) for one in (config(), config(gamma_schedule={"start": 0.5, "until": 3})))
    assert torch.equal(plain.state.frozen, explicit.state.frozen)


def test_states_before_the_schedules_end_count_only_while_there_is_no_later_one() -> None:
    at = config(max_epochs=8, patience=2, gamma_schedule={"shape": "linear", "start": 0.01, "until": 5})
    goals, scores = [Objective(metric="val/neg_elbo", mode="min")], []
    session = Session.start([at], CPU)
    for _ in session.train(goals):
        scores.append(session.scores(goals)[0][0])
        last, epochs = session.state.history[-1], session.state.best["val/neg_elbo"].epoch
        if session.state.epoch < 5:
            assert (epochs == session.state.epoch).all()  # however good the former ones were
            assert scores[-1] == pytest.approx(float(last.values["val/neg_elbo"].mean()))  # of two members
            assert session.state.status == ["running"] * 2  # patience begins later
    assert (session.state.best["val/neg_elbo"].epoch >= 5).all()
    assert (session.state.best["val/mcc"].epoch >= 5).all()


def test_members_start_from_a_stored_model_at_their_own_gamma(tmp_path: Path) -> None:
    source = trained([config(max_epochs=1)])
    stored = {name: row[1] for name, row in source.ensemble.model.layout.views(source.state.frozen).items()}
    save_member(tmp_path / "one.pt", source.points[0], stored, {})
    at = config({"gamma": 50.0}, init=str(tmp_path / "one.pt"))
    session = Session.start([at], CPU)
    for name, rows in session.ensemble.model.layout.views(session.state.weights).items():
        expected = torch.tensor(50.0).log() if name == GAMMA else stored[name]
        torch.testing.assert_close(rows, expected.expand_as(rows))
    session.save(tmp_path / "state.pt")
    (tmp_path / "one.pt").unlink()
    assert torch.equal(Session.load(tmp_path / "state.pt", CPU).state.weights, session.state.weights)


def test_weights_of_another_architecture_are_refused_before_a_run_or_study_begins(tmp_path: Path) -> None:
    source = trained([config(max_epochs=1)])
    stored = {name: row[1] for name, row in source.ensemble.model.layout.views(source.state.frozen).items()}
    save_member(tmp_path / "one.pt", source.points[0], stored, {})
    source.save(tmp_path / "ensemble.pt")
    here: dict[str, Any] = {"output_dir": str(tmp_path / "out"), "tracking": {"name": "none"}}
    at = config({"hidden_factor": 5}, init=str(tmp_path / "one.pt"))
    with pytest.raises(UserError, match=r"hidden_factor=4 there and 5 here.*set model\.hidden_factor=4"):
        imavae.train(at, **here)
    with pytest.raises(UserError, match=r"training\.init is of one model"):
        imavae.train(at, training={"init": str(tmp_path / "ensemble.pt")}, **here)
    search = {"model": {"n_layers": {"type": "choice", "values": [2, 3]}}}
    study: dict[str, Any] = {"search": search, "sampler": {"name": "grid"}, "model": {"hidden_factor": 4}}
    with pytest.raises(UserError, match=r"search\.model\.n_layers` reaches 3.*n_layers=2 there and 3 here"):
        imavae.tune(at, **study, **here)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"training": {"gamma_schedule": {"shape": "linear", "start": 0.0}}}, "gamma_schedule.start > 0"),
        ({"training": {"beta_schedule": {"shape": "geometric", "start": 0.0}}}, "beta_schedule.start > 0"),
        ({"training": {"ima_schedule": {"shape": "linear", "start": -0.1}}}, "ima_schedule.start >= 0"),
        ({"training": {"beta_schedule": {"shape": "linear", "until": 1}}}, "beta_schedule.until >= 2"),
        (
            {"training": {"max_epochs": 9, "beta_schedule": {"shape": "cosine", "until": 10}}},
            r"beta_schedule.until <= training.max_epochs.*10 of 9",
        ),
        ({"training": {"beta_schedule": {"shape": "square"}}}, "beta_schedule.shape.*'square'"),
        (
            {"model": {"precision": "learned"}, "training": {"gamma_schedule": {"shape": "linear"}}},
            "gamma_schedule is constant unless model.precision=fixed",
        ),
        ({"training": {"init": "nowhere.pt"}}, "training.init is a file.*nowhere.pt"),
    ],
)
def test_schedules_that_cannot_be_are_refused(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        run_config(settings)
