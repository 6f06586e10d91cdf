"""The dry run counts rightly, and infers rightly from its timings; the times themselves are not tested."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from imavae.cli import commands
from imavae.config.settings import StudyConfig, study_config
from imavae.errors import UserError
from imavae.runs import ledger
from imavae.search import dry_run as cost
from imavae.search import study
from imavae.search.dry_run import Size, Times, driver_seconds, makespan, spread, stops_early, trial_seconds

GAMMA = {"type": "float", "low": 3.0, "high": 300.0, "log": True}


def config(tmp_path: Path, **other: Any) -> StudyConfig:
    base: dict[str, Any] = {
        "output_dir": str(tmp_path / "outputs"),
        "data": {"n_obs": 2000},
        "members": {"seed": [1, 2, 3]},
        "training": {"max_epochs": 7, "validate_every": 2, "patience": 100},
        "search": {"model": {"gamma": GAMMA, "n_layers": {"type": "int", "low": 2, "high": 4}}},
        "budget": {"trials": 5},
        "cluster": {"cpus": 2},
    }
    return study_config(base | other)


def size(tensors: int, weights: int, **other: int) -> Size:
    base = Size(tensors, weights, steps=10, batch=64, points=400, epochs=20, validations=5, members=8)
    return base._replace(**other)


def times(s: Size, dispatch: float = 1e-5, arithmetic: float = 1e-9) -> Times:
    """What a machine of these costs takes."""
    evaluation = dispatch * s.tensors + arithmetic * s.weights * s.points
    return Times(0.5, dispatch * s.tensors + arithmetic * s.weights * s.batch, evaluation, 0.1, 4 * evaluation)


@pytest.mark.parametrize(
    ("seconds", "slots", "expected"),
    [
        ([3.0, 1.0, 2.0], 1, 6.0),
        ([3.0, 1.0, 2.0], 2, 3.0),
        ([3.0, 1.0, 2.0], 9, 3.0),
        ([1.0, 1.0, 1.0, 5.0], 2, 6.0),  # in their order: the long one begins last
    ],
)
def test_trials_begin_as_soon_as_a_slot_is_free(seconds: list[float], slots: int, expected: float) -> None:
    assert makespan(seconds, slots) == expected


def test_a_trial_of_another_size_follows_from_three() -> None:
    known = [(s, times(s)) for s in (size(4, 1000), size(8, 2000), size(12, 9000))]
    other = size(6, 5000, epochs=30, validations=6, members=9)
    expected, constant = times(other), cost.TRIAL + 6 * cost.REPORT
    worked = expected.data + 30 * 10 * expected.step + 6 * (expected.validation + expected.report)
    assert trial_seconds(other, known, 1.0) == pytest.approx(worked + constant)
    assert trial_seconds(other, known, 3.0) == pytest.approx(worked + 3 * constant)
    beside = cost.TRIAL + 9 * cost.MEMBER
    assert driver_seconds(other, known, 2.0) == pytest.approx(expected.final + 2 * beside)


def test_one_timing_is_scaled_and_never_negative() -> None:
    known = [(size(4, 1000), times(size(4, 1000)))]
    assert trial_seconds(size(4, 1000), known, 0.0) == pytest.approx(
        0.5 + 200 * known[0][1].step + 5 * (known[0][1].validation + 0.1)
    )
    falling = [(s, times(s)._replace(step=step)) for s, step in ((size(4, 1000), 2e-3), (size(4, 9000), 1e-3))]
    assert trial_seconds(size(4, 50), falling, 0.0) > 0


def test_the_cheapest_the_middle_and_the_dearest_are_timed() -> None:
    sizes = [size(4, weights) for weights in (500, 100, 400, 200, 300)]
    assert sorted(sizes[i].weights for i in spread(sizes)) == [100, 300, 500]
    assert len(spread([size(4, 100)] * 6)) == 1


def test_a_bound_is_told_from_an_estimate(tmp_path: Path) -> None:
    assert not stops_early(config(tmp_path))
    assert stops_early(config(tmp_path, training={"max_epochs": 7, "patience": 1}))
    assert stops_early(config(tmp_path, scheduler={"name": "asha"}))


def test_a_dry_run_counts_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "SECONDS", 0.1)
    monkeypatch.setattr(ledger, "open_tracker", None)
    monkeypatch.chdir(tmp_path)
    commands.tune(config(tmp_path, dry_run=True, sampler={"pack": 2}))
    said = capsys.readouterr().out
    steps = 22  # of 1,400 observations in batches of 64
    assert (
        f"5 trials x 3 members x {7 * steps} steps: {5 * 3 * 7 * steps:,} member-steps in 3 ensembles, 2 at a" in said
    )
    assert "model.gamma" in said
    assert "about 0:" in said
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_the_first_points_are_those_that_the_study_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as no score decides: here, all of them."""
    monkeypatch.setattr(cost, "estimate", lambda *arguments: arguments)
    settings = config(tmp_path, sampler={"name": "random", "pack": 2}, tracking={"name": "none"}, cluster={"cpus": 1})
    estimated: Any = study.dry_run(settings)
    _, points, packs, slots = estimated
    assert (packs, slots) == ([[0, 1], [2, 3], [4]], 1)
    trained = study.run_study(settings, lambda _: None)
    assert [dict(record.values) for record in trained.sorted()] == points


def test_a_dry_run_of_a_resumed_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dry_run is not for a study that is resumed"):
        config(tmp_path, dry_run=True, resume=True)
