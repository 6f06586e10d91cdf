"""An interrupted study continues where it was, with any sampler and scheduler."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient

from imavae.config.settings import StudyConfig, Tracking, base_of, study_config
from imavae.runs.ledger import Ledger, run_point
from imavae.runs.session import Session
from imavae.search import trials
from imavae.search.study import run_study
from imavae.search.trials import Snapshot
from imavae.training.loop import Progress

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

GAMMA = {"type": "float", "low": 1.0, "high": 300.0, "log": True}
LAYERS = {"type": "choice", "values": [2, 3]}


def config(tmp_path: Path, **other: Any) -> StudyConfig:
    """One trial at a time, so that all of it can be repeated to the byte."""
    base: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "study": "tiny",
        "data": {"n_obs": 700},
        "members": {"seed": [1, 2]},
        "training": {"max_epochs": 6, "validate_every": 1},
        "search": {"model": {"gamma": GAMMA, "n_layers": LAYERS}},
        "sampler": {"startup": 3, "pack": 2},
        "scheduler": {"name": "asha", "grace": 1, "reduction": 2},
        "budget": {"trials": 8},
        "cluster": {"cpus": 1},
        "tracking": {"name": "none"},
    }
    return study_config(base | other)


def run(settings: StudyConfig, until: Callable[[Snapshot], bool] = lambda _: False, **other: Any) -> Ledger:
    """Run a study until its end, or interrupt it at the first snapshot for which ``until`` holds."""

    def watch(snapshot: Snapshot) -> None:
        if until(snapshot):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "SNAPSHOT_PERIOD", 0.0)  # or the study may end before the first snapshot
        ledger = run_study(dataclasses.replace(settings, **other), watch, said.append)
    ledger.close("stopped" if ledger.interrupted else "finished")
    return ledger


said: list[str] = []


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    said.clear()


def tables(ledger: Ledger) -> list[bytes]:
    return [(ledger.folder / name).read_bytes() for name in ("members.csv", "history.csv")]


def told(ledger: Ledger) -> list[tuple[Any, ...]]:
    """The trials in Optuna's study."""
    database = ledger.folder.parent.parent / "optuna.db"
    study = optuna.load_study(study_name=ledger.folder.name, storage=f"sqlite:///{database}")
    return [(trial.number, trial.state, trial.params, trial.values) for trial in study.trials]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """An undisturbed study."""
    return run(config(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a study that was interrupted while its second or third ensemble trained."""
    folder = tmp_path_factory.mktemp("broken")
    record = folder / "studies" / "tiny" / "records" / "trial-000.json"

    def two_have_ended_and_one_is_recorded(snapshot: Snapshot) -> bool:
        while snapshot.finished >= 2 and not record.exists():
            time.sleep(0.01)  # the driver goes no further meanwhile
        return snapshot.finished >= 2

    ledger = run(config(folder), two_have_ended_and_one_is_recorded)
    assert ledger.interrupted is not None
    assert ledger.work_seconds > 0
    assert 0 < len(ledger.records) < 8
    return folder


@pytest.fixture
def left(broken_off: Path, tmp_path: Path) -> StudyConfig:
    """The settings that resume a copy of it."""
    shutil.copytree(broken_off, tmp_path, dirs_exist_ok=True)
    return dataclasses.replace(config(tmp_path), resume=True)


def test_it_ends_as_if_it_had_not_been_broken_off(whole: Ledger, left: StudyConfig) -> None:
    """Proposals by TPE, points stopped by ASHA, packs: all of it to the byte."""
    resumed = run(left)
    assert tables(resumed) == tables(whole)
    assert told(resumed) == told(whole)
    assert len(said) == 1  # the phase, and no notice of damage


def test_what_optuna_has_lost_it_is_told_again(whole: Ledger, left: StudyConfig) -> None:
    (Path(left.output_dir) / "optuna.db").unlink()
    resumed = run(left)
    assert tables(resumed) == tables(whole)
    assert told(resumed) == told(whole)
    assert len(said) == 2  # this, and the phase


def test_damaged_parts_are_said_and_made_again(whole: Ledger, left: StudyConfig) -> None:
    folder = Path(left.output_dir) / "studies" / "tiny"
    for path in [folder / "records" / "trial-000.json", *folder.glob("checkpoints/ensemble-*[0-9].pt")]:
        path.write_bytes(path.read_bytes()[:-1])
    for path in [folder / "records" / "ensemble-000.json", *folder.glob("stopped/*.json")]:
        path.write_bytes(b"")
    resumed = run(left)
    numbers = resumed.results.trials["trial"].tolist()
    assert numbers == list(range(8))
    assert not resumed.results.history.duplicated(["trial", "seed", "epoch"]).any()
    assert tables(whole)[0].splitlines()[1] in tables(resumed)[0]
    assert len(said) >= 3


def test_a_damaged_database_of_optuna_costs_nothing_but_its_page(whole: Ledger, left: StudyConfig) -> None:
    for log in Path(left.output_dir).glob("optuna.db-*"):  # which SQLite would repair it from
        log.unlink()
    (Path(left.output_dir) / "optuna.db").write_bytes(b"no database" * 1000)
    assert tables(run(left)) == tables(whole)
    assert "optuna.db" in said[-1]


def test_a_raised_budget_adds_trials_and_leaves_the_others(whole: Ledger, tmp_path: Path) -> None:
    shutil.copytree(whole.folder.parent.parent, tmp_path, dirs_exist_ok=True)
    again = run(config(tmp_path, budget={"trials": 11}), resume=True)
    assert again.results.trials["trial"].tolist() == list(range(11))
    for table, before in zip(tables(again), tables(whole), strict=True):
        assert table.startswith(before.rstrip())
    with sqlite3.connect(tmp_path / "optuna.db") as connection:
        assert connection.execute("SELECT COUNT(*) FROM trials").fetchone() == (11,)


def test_a_copy_that_lags_behind_changes_no_proposal(whole: Ledger, tmp_path: Path) -> None:
    """A driver was killed before the last trials had reached optuna.db, or while they were running there."""
    ledgers = []
    for name in ("level", "behind"):
        folder = tmp_path / name
        shutil.copytree(whole.folder.parent.parent, folder)
        if name == "behind":
            with sqlite3.connect(folder / "optuna.db") as connection:
                connection.execute("UPDATE trials SET state = 'RUNNING' WHERE number >= 4")
                late = "trial_id IN (SELECT trial_id FROM trials WHERE number >= {})"
                for what, first in (("values", 4), ("params", 6), ("intermediate_values", 6), ("user_attributes", 6)):
                    connection.execute(f"DELETE FROM trial_{what} WHERE {late.format(first)}")  # noqa: S608
                connection.execute("DELETE FROM trials WHERE number >= 6")
        said.clear()
        ledgers.append(run(config(folder, budget={"trials": 11}), resume=True))
        assert len(said) == 1  # the phase
    assert tables(ledgers[1]) == tables(ledgers[0])
    assert told(ledgers[1]) == told(ledgers[0])


def test_a_finished_study_is_reported_again(whole: Ledger, tmp_path: Path) -> None:
    shutil.copytree(whole.folder.parent.parent, tmp_path, dirs_exist_ok=True)
    again = run(config(tmp_path), resume=True)
    assert tables(again) == tables(whole)
    assert json.loads((again.folder / "study.json").read_text().partition("\n")[2])["finished"]


def test_a_resume_says_that_the_training_step_has_changed(
    whole: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.folder.parent.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("imavae.runs.ledger.training_step", lambda _: ("autograd", "no compiler"))
    for times in (1, 0):  # the second resume finds that step
        said.clear()
        run(config(tmp_path), resume=True)
        assert sum("autograd" in line and "compiled" in line for line in said) == times


def in_mlflow(settings: StudyConfig) -> tuple[list[str], dict[int, float]]:
    """The statuses of all studies' runs, and the score of each trial's, in MLflow's database."""
    client = MlflowClient(f"sqlite:///{settings.output_dir}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=1000)
    trials = [run for run in runs if "imavae.trial" in run.data.tags]
    assert all(run.info.status in ("FINISHED", "KILLED") for run in trials)
    assert len({run.data.tags["imavae.trial"] for run in trials}) == len(trials)
    scores = {int(run.data.tags["imavae.trial"]): run.data.metrics["val/mcc"] for run in trials}
    return [run.info.status for run in runs if run not in trials], scores


def test_a_study_without_a_tracker_is_tracked_when_it_is_resumed(whole: Ledger, tmp_path: Path) -> None:
    """Its trials are not trained again, and doing so twice adds nothing."""
    shutil.copytree(whole.folder.parent.parent, tmp_path, dirs_exist_ok=True)
    settings = dataclasses.replace(config(tmp_path), resume=True, tracking=Tracking())
    for _ in range(2):
        again = run(settings)
        assert tables(again) == tables(whole)
        statuses, scores = in_mlflow(settings)
        assert statuses == ["FINISHED"]
        assert scores == {record.number: pytest.approx(record.score) for record in whole.records}


def test_an_interrupted_study_without_a_tracker_is_tracked_whole(whole: Ledger, left: StudyConfig) -> None:
    settings = dataclasses.replace(left, tracking=Tracking())
    assert tables(run(settings)) == tables(whole)
    statuses, scores = in_mlflow(settings)
    assert statuses == ["FINISHED"]
    assert scores.keys() == {record.number for record in whole.records}


def test_a_grid_goes_on_in_the_packs_that_it_began_with(tmp_path: Path) -> None:
    gamma = {"type": "choice", "values": [1.0, 10.0, 100.0]}
    grid = {"search": {"model": {"gamma": gamma, "n_layers": LAYERS}}, "scheduler": {"name": "none"}}
    settings = config(tmp_path, **grid, sampler={"name": "grid"}, budget={}, cluster={"cpus": 2})
    first = run(settings, lambda snapshot: bool(snapshot.running))
    assert first.interrupted is not None
    second = run(settings, resume=True, cluster=dataclasses.replace(settings.cluster, cpus=1))
    files = sorted(path.name for path in (second.folder / "checkpoints").glob("*.pt"))
    assert files == ["ensemble-000.pt", "ensemble-003.pt"] or len(files) == 2
    assert second.results.trials["trial"].tolist() == list(range(6))


def test_a_run_goes_on_too(tmp_path: Path) -> None:
    settings = base_of(config(tmp_path, training={"max_epochs": 6, "validate_every": 2, "patience": 9}))
    epochs: list[int] = []

    def note(_: Session, progress: Progress) -> None:
        epochs.append(progress.epoch)

    def break_off(_: Session, progress: Progress) -> None:
        if progress.epoch == 5:
            raise KeyboardInterrupt

    whole, _ = run_point(dataclasses.replace(settings, name="whole"), note)
    with pytest.raises(KeyboardInterrupt):
        run_point(settings, break_off)
    epochs.clear()
    resumed, _ = run_point(dataclasses.replace(settings, resume=True), note)
    assert resumed.folder.name == "train"
    assert epochs == [5, 6]  # from the last validation
    assert tables(resumed) == tables(whole)
