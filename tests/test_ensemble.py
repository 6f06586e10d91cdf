"""The ensemble contract: a member's result does not depend on its company, its place, or an interruption."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imavae.config.settings import Objective, RunConfig, run_config
from imavae.runs.records import history_rows, member_rows, trial_record
from imavae.runs.session import Session
from imavae.training.ensemble import SELECTION, initial_state
from imavae.training.step import BETAS, Adam, step_sizes

CPU = torch.device("cpu")


def config(seeds: list[int], gamma: float = 30.0, **training: Any) -> RunConfig:
    return run_config(
        {
            "data": {"n_obs": 3000},
            "model": {"gamma": gamma},
            "members": {"seed": seeds},
            "training": {"max_epochs": 3, "validate_every": 1, **training},
        }
    )


def trained(points: list[RunConfig], objectives: Sequence[Objective] = ()) -> Session:
    session = Session.start(points, CPU)
    for _ in session.train(objectives):
        pass
    return session


def weights_of(session: Session, point: int, seed: int) -> Tensor:
    [row] = [i for i, m in enumerate(session.ensemble.members) if (m.point, m.seed) == (point, seed)]
    return session.state.frozen[row]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-12)])
def test_a_member_trains_alone_as_among_119_others(dtype: str, tolerance: float) -> None:
    alone = trained([config([7], 100.0, dtype=dtype)])
    points = [config(list(range(20)), gamma, dtype=dtype) for gamma in (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)]
    company = trained(points)
    assert len(company.ensemble) == 120
    expected = weights_of(alone, 0, 7)
    assert (weights_of(company, 3, 7) - expected).abs().max() < tolerance
    assert (weights_of(company, 3, 8) - expected).abs().max() > 1e-2  # another seed is another model


def test_a_member_is_clipped_alone_as_among_others() -> None:
    settings: dict[str, Any] = {"dtype": "float64", "clip": 20.0}
    alone, free = (trained([config([7], 100.0, **changed)]) for changed in (settings, {"dtype": "float64"}))
    company = trained([config([7, 8], gamma, **settings) for gamma in (3.0, 100.0, 1000.0)])
    expected = weights_of(alone, 0, 7)
    assert (weights_of(company, 1, 7) - expected).abs().max() < 1e-12
    assert (weights_of(free, 0, 7) - expected).abs().max() > 1e-3  # it was clipped


def test_compaction_changes_no_remaining_member() -> None:
    settings: dict[str, Any] = {"max_epochs": 14, "patience": 1, "dtype": "float64", "learning_rate": 5e-3}
    points = [config([1, 2, 3, 4], gamma, **settings) for gamma in (3.0, 100.0)]
    company = trained(points)
    assert len(set(company.state.epochs.tolist())) > 2, "members must have stopped at different epochs"
    for row, member in enumerate(company.ensemble.members):
        alone = trained([config([member.seed], member.gamma, **settings)])
        assert alone.state.epochs[0] == company.state.epochs[row]
        assert (alone.state.frozen[0] - company.state.frozen[row]).abs().max() < 1e-9
        for name in SELECTION:
            assert alone.state.best[name].epoch[0] == company.state.best[name].epoch[row]
            torch.testing.assert_close(alone.state.best[name].value[0], company.state.best[name].value[row])


def test_every_seed_has_its_own_start_batches_and_noise() -> None:
    state = Session.start([config([1, 2])], CPU).state
    assert not torch.equal(state.weights[0], state.weights[1])
    draws = [[torch.rand(4, generator=g) for g in streams] for streams in (state.batches, state.noise)]
    for first, second in draws:
        assert not torch.equal(first, second)
    assert not torch.equal(draws[0][0], draws[1][0])


def test_adam_is_torchs_with_a_rate_and_a_count_per_member() -> None:
    session = Session.start([config([1, 2, 3], dtype="float64")], CPU)
    state, rates = session.state, torch.tensor([1e-3, 1e-2, 3e-4], dtype=torch.float64)
    references = [torch.nn.Parameter(row.clone()) for row in state.weights]
    optimizers = [torch.optim.Adam([p], lr=float(r), betas=BETAS) for p, r in zip(references, rates, strict=True)]
    generator = torch.Generator().manual_seed(0)
    adam = Adam(state, *step_sizes(state, rates, 30))
    for step in range(30):
        if step == 20:  # an epoch that is over, and the next
            adam.finish()
            adam = Adam(state, *step_sizes(state, rates, 10))
        gradient = torch.randn(state.weights.shape, generator=generator, dtype=torch.float64) * 10.0 ** (step % 5 - 3)
        adam.step(gradient)
        for parameter, optimizer, row in zip(references, optimizers, gradient, strict=True):
            parameter.grad = row.clone()
            optimizer.step()
    torch.testing.assert_close(state.weights, torch.stack([p.detach() for p in references]), rtol=1e-12, atol=1e-14)


def test_a_masked_member_stays_where_it_is_even_with_a_broken_gradient() -> None:
    state = Session.start([config([1, 2])], CPU).state
    before = state.weights.clone()
    state.finite[0] = False
    gradient = torch.full_like(before, torch.nan)
    gradient[1] = 1.0
    adam = Adam(state, *step_sizes(state, torch.tensor([1e-3, 1e-3]), 1))
    adam.step(gradient)
    adam.finish()
    assert torch.equal(state.weights[0], before[0])
    assert bool((state.weights[1] != before[1]).all())
    assert state.finite.tolist() == [False, True]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_one_value_that_is_not_finite_stops_its_member_for_good(bad: float) -> None:
    state = Session.start([config([1, 2])], CPU).state
    adam = Adam(state, *step_sizes(state, torch.tensor([1e-3, 1e-3]), 2))
    before = state.weights.clone()
    gradient = torch.ones_like(before)
    gradient[0, 3] = bad
    adam.step(gradient)
    adam.step(torch.ones_like(before))
    adam.finish()
    assert torch.equal(state.weights[0], before[0])
    assert bool((state.weights[1] != before[1]).all())
    assert state.finite.tolist() == [False, True]


def test_a_member_that_goes_nan_is_isolated_and_counted_as_the_worst() -> None:
    session = Session.start([config([1, 2, 3])], CPU)
    session.state.weights[1] = 1e30  # overflows in the first forward pass
    linear = Objective(metric="val/r2_linear", aggregate="min")
    for _ in session.train([linear]):
        pass
    assert session.state.status == ["finished", "diverged", "finished"]
    assert bool((session.state.frozen[1] == 1e30).all()), "frozen at its last finite state"
    assert session.state.epochs.tolist() == [3, 1, 3]
    others = trained([config([1, 3])])
    torch.testing.assert_close(session.state.frozen[[0, 2]], others.state.frozen, rtol=0, atol=2e-5)
    assert session.scores([Objective(aggregate="min")]) == [[0]]
    median, least = (Objective(aggregate=name) for name in ("median", "min"))
    assert session.scores([median])[0] == pytest.approx(others.scores([least])[0])
    assert session.scores([linear]) == [[0]]
    assert session.scores([Objective(metric="val/neg_elbo", mode="min", aggregate="max")]) == [[1e12]]
    row = member_rows(session, 0, 0)[1]
    assert row["status"] == "diverged"
    assert row["max val/mcc"] != row["max val/mcc"]  # NaN: it was never validated


def test_a_study_of_diverged_members_alone_ends_with_the_worst_score() -> None:
    session = Session.start([config([1, 2])], CPU)
    session.state.weights[:] = 1e30
    progress = list(session.train())
    assert [p.validated for p in progress] == [False]
    assert session.scores([Objective()]) == [[0]]
    assert session.scores([Objective(metric="val/neg_elbo", mode="min")]) == [[1e12]]


def test_a_point_that_is_stopped_is_frozen_and_the_others_train_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    points = [config([1, 2], gamma, max_epochs=6) for gamma in (10.0, 50.0)]
    session = Session.start(points, CPU)
    for progress in session.train():
        if progress.epoch == 2:
            session.stop(0)
            assert (session.alive(0), session.alive(1)) == ([], [2, 3])
    assert session.state.epochs.tolist() == [2, 2, 6, 6]
    assert session.state.status == ["stopped", "stopped", "finished", "finished"]
    torch.testing.assert_close(session.state.frozen[2:], trained(points[1:]).state.frozen, rtol=0, atol=2e-5)
    session.save(tmp_path / "state.pt")
    restored = Session.load(tmp_path / "state.pt", CPU)
    assert [trial_record(restored, i, i, {}, [Objective()]).status for i in range(2)] == ["stopped", "finished"]


def test_several_scores_are_those_of_one_set_of_states() -> None:
    objectives = [Objective(), Objective(metric="val/cima", mode="min"), Objective(aggregate="max")]
    session = trained([config([1, 2, 3], 10.0, max_epochs=8, learning_rate=1e-2)], objectives)
    rows = member_rows(session, 0, 0)
    expected = [
        np.median([row["max val/mcc"] for row in rows]),
        np.median([row["val/cima at max val/mcc"] for row in rows]),
        max(row["max val/mcc"] for row in rows),
    ]
    assert session.scores(objectives)[0] == pytest.approx(expected)


def test_best_states_and_early_stopping_follow_the_history() -> None:
    session = trained([config([1, 2, 3, 4], 10.0, max_epochs=30, patience=2, learning_rate=1e-2)])
    state = session.state
    assert "stopped" in state.status
    for row in range(len(session.ensemble)):
        curve = {
            name: torch.stack([v.values[name][v.rows == row][0] for v in state.history if row in v.rows])
            for name in SELECTION
        }
        epochs = torch.tensor([v.epoch for v in state.history if row in v.rows])
        best: dict[str, Callable[[Tensor], Tensor]] = {"val/mcc": torch.argmax, "val/neg_elbo": torch.argmin}
        for name, pick in best.items():
            at = pick(curve[name])
            assert state.best[name].epoch[row] == epochs[at]
            assert state.best[name].value[row] == curve[name][at]
            again = session.evaluate("val", state.best[name].weights[row : row + 1], torch.tensor([row]))
            torch.testing.assert_close(again[name][0], curve[name][at])
        if state.status[row] == "stopped":
            assert len(epochs) - 1 - torch.argmin(curve["val/neg_elbo"]) == 2  # validations without a lower one


def test_an_interrupted_run_repeats_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    points = [config([1, 2, 3], gamma, max_epochs=12, patience=1, learning_rate=1e-2) for gamma in (10.0, 50.0)]
    whole = trained(points)
    for stop in (1, 4, 9):  # before and after members have stopped
        session = Session.start(points, CPU)
        for progress in session.train():
            if progress.epoch == stop:
                break
        session.save(tmp_path / "state.pt")
        resumed = Session.load(tmp_path / "state.pt", CPU)
        for _ in resumed.train():
            pass
        assert resumed.state.status == whole.state.status
        assert torch.equal(resumed.state.frozen, whole.state.frozen)
        assert repr(history_rows(resumed, 0, 0)) == repr(history_rows(whole, 0, 0))  # NaN is like NaN
        assert repr(member_rows(resumed, 1, 1)) == repr(member_rows(whole, 1, 1))


def test_members_of_different_points_differ_in_nothing_but_what_the_points_say() -> None:
    points = [config([5], 10.0), dataclasses.replace(config([5], 10.0))]
    state = initial_state(Session.start(points, CPU).ensemble)
    assert torch.equal(state.weights[0], state.weights[1])
