"""Whole studies with Ray, Optuna and MLflow on SQLite; small data, few epochs."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
import torch
import yaml
from mlflow.entities import Run

from imavae.config.settings import StudyConfig, base_of, study_config
from imavae.errors import UserError
from imavae.runs.ledger import Ledger, run_point
from imavae.runs.models import load_model
from imavae.runs.session import Session
from imavae.search import trials
from imavae.search.stored import write_notes
from imavae.search.study import run_study
from imavae.search.trials import Snapshot
from imavae.training.loop import Progress

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

GAMMA = {"type": "float", "low": 3.0, "high": 300.0, "log": True}


def ignore(snapshot: Snapshot) -> None:
    """Nobody watches."""


def config(tmp_path: Path, **other: Any) -> StudyConfig:
    base: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "study": "paper/tiny",
        "data": {"n_obs": 700},
        "members": {"seed": [1, 2, 3]},
        "training": {"max_epochs": 4, "validate_every": 1},
        "search": {"model": {"gamma": GAMMA}},
        "budget": {"trials": 3},
        "cluster": {"cpus": 1},
    }
    return study_config(base | other)


BROKEN = """
from dataclasses import dataclass
from imavae.config.data import MIXINGS
from imavae.config.data import MixingSettings

@MIXINGS.register
@dataclass(frozen=True)
class Broken(MixingSettings):
    name: str = "broken"

    def build(self, data, generator):
        raise RuntimeError("this can't be built")
"""


def test_a_study_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "RETRIES", 0)
    (tmp_path / "mine.py").write_text(BROKEN)
    own = {"plugins": [str(tmp_path / "mine.py")], "data": {"n_obs": 700, "mixing": {"name": "broken"}}}
    with pytest.raises(UserError, match=r"has a result: RuntimeError: this can't be built; see .*ray"):
        run_study(config(tmp_path, budget={"trials": 1}, tracking={"name": "none"}, **own), ignore)


HANGING = {"model.gamma": 40.0}


@pytest.mark.usefixtures("shared_ray")
def test_trials_that_raise_die_or_hang_say_why_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, hangs, kill_stuck = tmp_path / "failing_metric.py", tmp_path / "hangs", trials.Recorder._kill_stuck
    shutil.copy(Path(__file__).with_name(plugin.name), plugin)

    def kill_hanging(recorder: trials.Recorder, running: list[Any]) -> None:
        for trial in running:
            if hangs.exists() and trial.config["points"][0][1] == HANGING:
                recorder._trials[trial.trial_id].reported = -math.inf  # as if it had hung for long
                hangs.unlink()
        kill_stuck(recorder, running)

    monkeypatch.setattr(trials.Recorder, "_kill_stuck", kill_hanging)
    monkeypatch.setattr(trials, "RETRIES", 1)
    settings = config(
        tmp_path,
        plugins=[str(plugin)],
        search={"model": {"gamma": {"type": "choice", "values": [20.0, 30.0, 40.0, 10.0]}}},
        sampler={"name": "grid", "pack": 1},
        budget={"trials": None},
        cluster={"cpus": 2},
    )
    ledger = finished(run_study(settings, ignore))
    reasons = {record.values["model.gamma"]: record.failure for record in ledger.records}
    assert reasons[10.0] == ""
    assert reasons[20.0] == "RuntimeError: no such number"
    assert "was killed" in reasons[30.0]
    assert "cluster.stuck_after=120" in reasons[40.0]
    notes = "".join(run.data.tags["mlflow.note.content"] for run in runs_of(tmp_path, "trial"))
    assert all(reason in notes for reason in reasons.values())


def runs_of(tmp_path: Path, kind: str) -> list[Run]:
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [experiment] = [e.experiment_id for e in client.search_experiments() if e.name == "paper/tiny"]
    return sorted(
        client.search_runs([experiment], f"tags.`imavae.kind` = '{kind}'"), key=lambda run: run.info.start_time
    )


def finished(ledger: Ledger) -> Ledger:
    ledger.crown()
    ledger.tracker.finish("finished", {}, [])
    return ledger


class Study(NamedTuple):
    """A finished study."""

    settings: StudyConfig
    ledger: Ledger
    snapshots: list[Snapshot]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """TPE in packs of four, and ASHA."""
    settings = config(
        tmp_path_factory.mktemp("packed"),
        training={"max_epochs": 6, "validate_every": 1},
        search={"model": {"gamma": {**GAMMA, "low": 1.0}, "n_layers": {"type": "choice", "values": [2, 3]}}},
        sampler={"pack": 4, "startup": 3},
        scheduler={"name": "asha", "grace": 1, "reduction": 2},
        budget={"trials": 10},
    )
    snapshots: list[Snapshot] = []
    return Study(settings, finished(run_study(settings, snapshots.append)), snapshots)


def test_a_study_is_recorded_whole(packed: Study) -> None:
    settings, ledger, snapshots = packed
    assert ledger.folder == Path(settings.output_dir) / "studies" / "paper-tiny"
    assert yaml.safe_load((ledger.folder / "config.yaml").read_text())["search"] == settings.search
    members = pd.read_csv(ledger.folder / "members.csv")
    history = pd.read_csv(ledger.folder / "history.csv")
    assert members.groupby("trial")["seed"].apply(list).tolist() == [[1, 2, 3]] * 10
    assert not history.duplicated(["trial", "seed", "epoch"]).any()
    for row in members.to_dict("records"):
        curve = history[(history["trial"] == row["trial"]) & (history["seed"] == row["seed"])]
        assert len(curve) == row["epochs"]
        assert row["max val/mcc"] == row["val/mcc at max val/mcc"] == curve["val/mcc"].max()
        assert row["min val/neg_elbo"] == curve["val/neg_elbo"].min()
    assert members["test/mcc at max val/mcc"].notna().all()
    assert set(members["status"]) <= {"finished", "stopped"}
    for trial, score in zip(ledger.results.trials["trial"], ledger.results.trials["score"], strict=True):
        assert score == pytest.approx(members[members["trial"] == trial]["max val/mcc"].median())
    assert snapshots[-1].finished == snapshots[-1].trials_total == 10
    assert snapshots[-1].best_score == ledger.results.trials["score"].max()


def test_the_champion_is_the_best_member_of_the_best_trial(packed: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, ledger, _ = packed
    members = ledger.results.members
    best = members.loc[members["trial"] == ledger.results.ranked()[0].number].sort_values("max val/mcc").iloc[-1]
    model = load_model(ledger.results.champion_address, settings.output_dir)
    assert ledger.results.champion_address == "models:/paper-tiny/1"
    assert model.about["seed"] == best["seed"]
    assert model.gamma == pytest.approx(best["gamma"])
    x = torch.linspace(-0.1, 0.1, 6).view(2, 3)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{settings.output_dir}/mlflow.db")
    predictor = mlflow.pyfunc.load_model(ledger.results.champion_address)  # MLflow's own loader
    np.testing.assert_allclose(predictor.predict(x.numpy()), model.encode(x).detach().numpy())


def test_points_of_a_pack_are_stopped_tracked_and_told_each_on_its_own(packed: Study) -> None:
    settings, ledger, _ = packed
    trials = ledger.results.trials
    assert trials["trial"].tolist() == list(range(10))
    packs = [trials[0:4], trials[4:8], trials[8:10]]
    assert [len(set(pack["model.n_layers"])) for pack in packs] == [1, 1, 1]
    assert trials["model.gamma"].nunique() == 10
    mixed = [pack for pack in packs if set(pack["status"]) == {"finished", "stopped"}]
    assert mixed, "some pack must have points that were stopped beside points that were not"
    stopped = trials[trials["status"] == "stopped"]
    assert stopped["epochs"].max() < 6

    told = optuna.load_study(study_name="paper-tiny", storage=f"sqlite:///{settings.output_dir}/optuna.db").trials
    assert [trial.value for trial in told] == trials["score"].tolist()
    assert [t.state.name == "PRUNED" for t in told] == (trials["status"] == "stopped").tolist()
    assert [trial.params["model.gamma"] for trial in told] == trials["model.gamma"].tolist()
    for trial, epochs in zip(told, trials["epochs"], strict=True):
        rows = ledger.results.members.query(f"trial == {trial.number}")["max val/mcc"]
        assert list(trial.intermediate_values) == list(range(1, epochs + 1))
        assert trial.user_attrs["val/mcc/q25"] == pytest.approx(rows.quantile(0.25))
        assert trial.user_attrs["val/mcc/q75"] == pytest.approx(rows.quantile(0.75))
        assert {"val/cima", "val/neg_elbo"} < set(trial.user_attrs)
        assert trial.user_attrs["folder"] == str(ledger.folder)
    runs = {run.data.tags["imavae.trial"]: run for run in runs_of(Path(settings.output_dir), "trial")}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert [runs[str(n)].data.metrics["val/mcc"] for n in range(10)] == pytest.approx(trials["score"].tolist())
    assert [float(runs[str(n)].data.params["model.gamma"]) for n in range(10)] == trials["model.gamma"].tolist()
    [study] = runs_of(Path(settings.output_dir), "study")
    assert study.data.metrics["val/mcc"] == trials["score"].max()
    assert float(study.data.params["model.gamma"]) == trials["model.gamma"].tolist()[int(trials["score"].argmax())]
    assert not runs_of(Path(settings.output_dir), "member")


def test_optunas_page_has_the_answer_and_how_to_load_the_best_trial(packed: Study) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="an optional extra")
    settings, ledger, _ = packed
    write_notes(ledger.results, ["It recovers them."])
    found = optuna.load_study(study_name="paper-tiny", storage=f"sqlite:///{settings.output_dir}/optuna.db")
    assert dashboard.get_note(found).startswith("It recovers them.")
    best = ledger.results.ranked()[0].number
    note = dashboard.get_note(optuna.trial.Trial(found, found.trials[best]._trial_id))
    assert ledger.results.loading("load_results") + f".model(trial={best})" in note


@pytest.fixture(scope="module")
def branched(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two objectives; the width is searched where the network is deep."""
    model = {
        "activation": "silu",
        "hidden_factor": {"type": "int", "low": 5, "high": 9, "when": {"model": {"n_layers": {"at_least": 3}}}},
        "n_layers": {"type": "int", "low": 2, "high": 3},
    }
    further = [{"metric": "val/cima", "mode": "min"}]
    folder = tmp_path_factory.mktemp("branched")
    settings = config(folder, search={"model": model}, further_objectives=further, budget={"trials": 6})
    return Study(settings, finished(run_study(settings, ignore)), [])


def test_a_conditional_setting_is_trained_and_tracked_where_it_holds(branched: Study) -> None:
    settings, ledger, _ = branched
    trials = ledger.results.trials
    deep = trials["model.n_layers"] == 3
    assert 0 < deep.sum() < 6
    assert (trials["model.hidden_factor"].notna() == deep).all()
    for trial, stored in ledger.stored.items():
        path = ledger.folder / str(stored.checkpoint)
        built = Session.load(path, torch.device("cpu")).points[stored.point].model
        assert built.activation == "silu"
        assert built.hidden_factor == (trials["model.hidden_factor"][trial] if deep[trial] else 10)  # else the base's
    params = [set(run.data.params) for run in runs_of(Path(settings.output_dir), "trial")]
    assert sum("model.hidden_factor" in names for names in params) == deep.sum()


def test_several_objectives_have_a_front(branched: Study) -> None:
    settings, ledger, _ = branched
    trials, members = ledger.results.trials, ledger.results.members
    for trial, cima in zip(trials["trial"], trials["val/cima"], strict=True):
        mine = members[members["trial"] == trial]
        assert cima == pytest.approx(mine["val/cima at max val/mcc"].median())
    study = optuna.load_study(study_name="paper-tiny", storage=f"sqlite:///{settings.output_dir}/optuna.db")
    front = [record.number for record in ledger.results.front()]
    assert sorted(front) == sorted(trial.number for trial in study.best_trials)
    assert front[0] == trials["trial"].iloc[int(trials["score"].argmax())]
    runs = runs_of(Path(settings.output_dir), "trial")
    metrics = {run.data.tags["imavae.trial"]: run.data.metrics for run in runs}
    assert [metrics[str(n)]["val/cima"] for n in range(6)] == pytest.approx(trials["val/cima"].tolist())


def test_a_run_that_is_broken_off_is_not_left_running(tmp_path: Path) -> None:
    def break_off(session: Session, progress: Progress) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_point(base_of(config(tmp_path)), break_off)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "train"]
    assert {run.info.status for run in client.search_runs([experiment.experiment_id])} == {"KILLED"}


def test_a_study_that_reached_its_target_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    own: dict[str, Any] = {"tracking": {"name": "none"}, "name": "mine"}
    first = run_study(config(tmp_path, **own, budget={"trials": 3, "target": 0.0}), ignore)
    first.close("finished")
    assert [record.status for record in first.records] == ["stopped"]
    assert first.results.interrupted
    again = run_study(config(tmp_path, **own, resume=True), ignore)
    assert [record.status for record in again.results.records] == ["stopped", "finished", "finished"]
    assert again.results.members["epochs"].unique().tolist() == [1, 4]
    assert not again.results.interrupted


def on_one_and_two_slots(tmp_path: Path, **own: Any) -> tuple[Ledger, list[Snapshot]]:
    """The second of two studies that differ in the number of trials at a time; their tables are equal to the byte."""
    tables, snapshots = [], list[Snapshot]()
    for cpus in (1, 2):
        settings = config(tmp_path / str(cpus), **own, tracking={"name": "none"}, cluster={"cpus": cpus})
        ledger = run_study(settings, snapshots.append)
        tables.append([(ledger.folder / name).read_bytes() for name in ("members.csv", "history.csv")])
    assert tables[0] == tables[1]
    return ledger, snapshots


def test_each_point_of_a_grid_has_its_own_trial_and_numbers_however_many_run_at_once(tmp_path: Path) -> None:
    search = {"model": {"gamma": {"type": "choice", "values": [3.0, 30.0, 300.0]}}}
    ledger, _ = on_one_and_two_slots(tmp_path, search=search, sampler={"name": "grid", "pack": 2}, budget={})
    assert ledger.results.trials["model.gamma"].tolist() == [3.0, 30.0, 300.0]
    members = ledger.results.members
    assert members.groupby("trial")["gamma"].unique().tolist() == [[3.0], [30.0], [300.0]]
    assert sorted(p.name for p in (ledger.folder / "checkpoints").iterdir()) == ["ensemble-000.pt", "ensemble-001.pt"]
    pack = Session.load(ledger.folder / "checkpoints" / "ensemble-000.pt", torch.device("cpu"))
    assert [point.model.gamma for point in pack.points] == [3.0, 300.0]


def test_a_sequence_over_several_worlds_has_its_numbers_however_many_run_at_once(tmp_path: Path) -> None:
    members = {"seed": [1, 2], "data": {"seed": [1, 2]}}
    ledger, snapshots = on_one_and_two_slots(tmp_path, members=members, sampler={"name": "qmc"}, budget={"trials": 4})
    assert len(ledger.results.members) == 4 * 4
    assert all(0 <= trial.active <= 4 for snapshot in snapshots for trial in snapshot.running)
