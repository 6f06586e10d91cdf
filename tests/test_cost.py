"""The dry run counts correctly and infers from its timings; the times themselves are not tested."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from imavae.cli import commands
from imavae.config.settings import RunConfig, StudyConfig, base_of, study_config, with_values
from imavae.errors import UserError
from imavae.runs import ledger
from imavae.search import dry_run, study
from imavae.search.dry_run import Timing, makespan
from imavae.search.space import Point

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


def test_other_ensembles_are_interpolated_between_the_timed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def timing(points: list[RunConfig], weights: int, device: torch.device) -> Timing:  # noqa: ARG001
        sizes.append(weights)
        return Timing(3, weights, epoch=float(weights), validation=2.0 * weights)

    monkeypatch.setattr(dry_run, "_timing", timing)
    layers: list[Point] = [{"model.gamma": 9.0, "model.n_layers": n} for n in (4, 2, 5, 3, 2)]
    cost = dry_run.estimate(config(tmp_path), layers, [[n] for n in range(5)], 1)
    assert len(set(sizes)) == len(sizes) == 3
    # 7 epochs and 4 validations; the time grows with the weights as one line, so that all are right
    weights = [dry_run._weights([with_values(base_of(config(tmp_path)), point)]) for point in layers]
    assert cost.seconds == pytest.approx((7 + 4 * 2) * sum(weights))
    assert cost.member_steps == 5 * 3 * 7 * 22  # 1,400 observations in batches of 64
    assert not cost.stops_early


@pytest.mark.parametrize(
    "other", [{"training": {"max_epochs": 7, "patience": 1}}, {"scheduler": {"name": "asha"}}], ids=["patience", "asha"]
)
def test_a_bound_is_told_from_an_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    monkeypatch.setattr(dry_run, "_timing", lambda *_: Timing(3, 1, 1.0, 1.0))
    point: Point = {"model.gamma": 9.0, "model.n_layers": 2}
    assert dry_run.estimate(config(tmp_path, **other), [point], [[0]], 1).stops_early


def test_a_dry_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ledger, "open_tracker", None)
    monkeypatch.chdir(tmp_path)
    commands.tune(config(tmp_path, dry_run=True, sampler={"pack": 2}))
    assert "model.gamma" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_the_first_points_are_those_that_the_study_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as no score decides: here, all of them."""
    monkeypatch.setattr(dry_run, "_timing", lambda *_: Timing(3, 1, 1.0, 1.0))
    settings = config(tmp_path, sampler={"name": "random", "pack": 2}, tracking={"name": "none"}, cluster={"cpus": 1})
    cost = dry_run.dry_run(settings)
    assert (cost.packs, cost.slots) == ([[0, 1], [2, 3], [4]], 1)
    trained = study.run_study(settings, lambda _: None)
    assert [dict(record.values) for record in trained.results.records] == cost.points


def test_a_dry_run_of_a_resumed_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dry_run is not for a study that is resumed"):
        config(tmp_path, dry_run=True, resume=True)
