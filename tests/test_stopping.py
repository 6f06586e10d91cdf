"""Early stopping of points: Ray's rules see each point of a trial as if it were a trial of its own."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from imavae.config.settings import StudyConfig, study_config
from imavae.errors import UserError
from imavae.runs.folder import RunFolder
from imavae.runs.ledger import Ledger
from imavae.search.stopping import PointTrial, Stopping
from imavae.search.worker import read_stops

CURVES = {0: [0.6, 0.62, 0.9], 1: [0.1, 0.2, 0.3], 2: [0.5, 0.6, 0.7], 3: [0.3, 0.35, 0.4]}


def config(mode: str = "max", budget: dict[str, float] | None = None, **scheduler: Any) -> StudyConfig:
    metric = {"max": "val/mcc", "min": "val/neg_elbo"}[mode]
    return study_config(
        {
            "search": {"model": {"gamma": {"type": "float", "low": 1.0, "high": 2.0}}},
            "training": {"max_epochs": 4},
            "objective": {"metric": metric, "mode": mode},
            "scheduler": scheduler,
            "budget": budget or {},
        }
    )


def report(stopping: Stopping, points: dict[int, float], epoch: int, alive: int = 2, seconds: float = 0.0) -> str:
    """The decision on a trial whose points have these scores."""
    trial = Trial("any", config={"points": [[number, {}] for number in points]}, stub=True)
    scores = [[score] for score in points.values()]
    result = {"epoch": epoch, "scores": scores, "alive": [alive] * len(points), "seconds": seconds}
    return stopping.on_trial_result(None, trial, result)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_points_of_one_trial_are_stopped_as_rays_asha_stops_trials(tmp_path: Path, mode: str) -> None:
    sign = 1 if mode == "max" else -1
    stopping = Stopping(config(mode, name="asha", grace=1, reduction=2), RunFolder(tmp_path))
    asha: Any = ASHAScheduler("epoch", "score", mode, 4, 1, 2)
    expected: dict[int, int] = {}
    for number in CURVES:
        asha.on_trial_add(None, PointTrial(str(number)))
    for epoch in (1, 2, 3):
        assert report(stopping, {n: sign * curve[epoch - 1] for n, curve in CURVES.items()}, epoch) == "CONTINUE"
        for number, curve in CURVES.items():
            result = {"epoch": epoch, "score": sign * curve[epoch - 1]}
            if number not in expected and asha.on_trial_result(None, PointTrial(str(number)), result) == "STOP":
                expected[number] = epoch
    assert stopping.stopped == expected == {1: 1, 2: 2, 3: 1}
    assert read_stops(RunFolder(tmp_path).stop_file(0)) == expected


def test_the_median_rule_stops_a_point_below_the_others_once_it_knows_enough_of_them(tmp_path: Path) -> None:
    stopping = Stopping(config(name="median", grace=2, samples=3), RunFolder(tmp_path))
    for number, score in enumerate([0.5, 0.6, 0.7]):
        for epoch in (1, 2):
            assert report(stopping, {number: score}, epoch) == "CONTINUE"
    assert report(stopping, {3: 0.1, 4: 0.9}, 1) == "CONTINUE"  # grace
    assert report(stopping, {3: 0.1, 4: 0.9}, 2) == "CONTINUE"  # the trial goes on with 4
    assert stopping.stopped == {3: 2}
    assert report(stopping, {5: 0.2}, 2) == "STOP"  # nothing of this trial is left


def test_a_report_that_comes_again_is_not_judged_again(tmp_path: Path) -> None:
    stopping = Stopping(config(name="asha", grace=1, reduction=2), RunFolder(tmp_path))
    report(stopping, {0: 0.9, 1: 0.95}, 1)
    assert report(stopping, {0: 0.1, 1: 0.1}, 1) == "CONTINUE"
    assert stopping.stopped == {}


def test_a_point_that_has_ended_is_never_stopped_and_its_score_counts(tmp_path: Path) -> None:
    stopping = Stopping(config(name="asha", grace=1, reduction=2), RunFolder(tmp_path))
    assert report(stopping, {0: 0.5}, 1) == "CONTINUE"
    assert report(stopping, {0: 0.9}, 2, alive=0) == "CONTINUE"
    report(stopping, {1: 0.8}, 1)
    assert report(stopping, {1: 0.8}, 2) == "STOP"


def test_what_was_noted_holds_for_the_next_driver(tmp_path: Path) -> None:
    settings = config(name="asha", grace=1, reduction=2)
    report(Stopping(settings, RunFolder(tmp_path)), {7: 0.9, 8: 0.1}, 1)
    assert Stopping(settings, RunFolder(tmp_path)).stopped == {8: 1}


def test_no_scheduler_stops_nothing(tmp_path: Path) -> None:
    stopping = Stopping(config(name="none"), RunFolder(tmp_path))
    assert {report(stopping, {0: 0.9, 1: 0.0}, epoch) for epoch in (1, 2, 3)} == {TrialScheduler.CONTINUE}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mode", "before", "reached"), [("max", 0.79, 0.8), ("min", 0.81, 0.8)])
def test_a_target_ends_every_trial_at_its_next_report(tmp_path: Path, mode: str, before: float, reached: float) -> None:
    stopping = Stopping(config(mode, {"target": 0.8}), RunFolder(tmp_path))
    assert report(stopping, {0: before, 1: before}, 1) == "CONTINUE"
    assert not stopping.exhausted()
    assert report(stopping, {2: before, 3: reached}, 1) == "STOP"
    assert stopping.exhausted()
    assert report(stopping, {0: before, 1: before}, 2) == "STOP"
    assert stopping.stopped == {0: 2, 1: 2, 2: 1, 3: 1}


def test_a_target_that_a_finished_trial_has_reached_is_not_sought_again(tmp_path: Path) -> None:
    stopping = Stopping(config(budget={"target": 0.8}), RunFolder(tmp_path))
    home = SimpleNamespace(asked=[])
    stopping.catch_up(Mock(spec=Ledger, home=home, records=[SimpleNamespace(score=None), SimpleNamespace(score=0.7)]))
    assert not stopping.exhausted()
    stopping.catch_up(Mock(spec=Ledger, home=home, records=[SimpleNamespace(score=0.81)]))
    assert stopping.exhausted()


def test_a_target_waits_until_the_schedules_are_over(tmp_path: Path) -> None:
    settings = config(budget={"target": 0.8})
    training = replace(
        settings.training, gamma_schedule=replace(settings.training.gamma_schedule, shape="linear", until=3)
    )
    stopping = Stopping(replace(settings, training=training), RunFolder(tmp_path))
    assert report(stopping, {0: 0.9}, 1) == "CONTINUE"
    assert report(stopping, {0: 0.9}, 3) == "STOP"


def test_a_trial_ends_when_its_minutes_are_over_and_others_go_on(tmp_path: Path) -> None:
    stopping = Stopping(config(budget={"trial_minutes": 1}), RunFolder(tmp_path))
    assert report(stopping, {0: 0.5, 1: 0.6}, 1, seconds=60) == "CONTINUE"
    assert report(stopping, {0: 0.5, 1: 0.6}, 2, seconds=61) == "STOP"
    assert report(stopping, {2: 0.5}, 1, seconds=1) == "CONTINUE"
    assert not stopping.exhausted()


def test_a_study_ends_when_its_hours_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = Stopping(config(budget={"hours": 2}), RunFolder(tmp_path))
    assert report(stopping, {0: 0.5}, 1) == "CONTINUE"
    later = time.monotonic() + 2 * 3600
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert stopping.exhausted()
    assert report(stopping, {0: 0.5}, 2) == "STOP"


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_population_based_training_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"scheduler\.name"):
        config(name=name)
