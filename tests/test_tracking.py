"""The tracker on a real SQLite database: nothing is lost or duplicated, and stored models load again."""

import math
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient, pyfunc
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, TEMPORARILY_UNAVAILABLE

import imavae.tracking
from imavae.config.settings import Objective, Tracking
from imavae.errors import UserError
from imavae.tracking import Lasting, Status, Tracker, TrialRecord, Value, quartile_curves, server
from imavae.tracking import mlflow as tracking
from imavae.tracking.mlflow import MLflowTracker, open_tracker
from imavae.tracking.server import fetch_model

SETTINGS = Tracking()
CONFIG = {
    "model": {"gamma": 10.0},
    "search": {
        "model": {"gamma": {"type": "float"}, "prior": {"name": "uniform"}},
        "training": {"beta": {"type": "int"}},
    },
    "objective": {"metric": "val/neg_elbo", "mode": "min", "aggregate": "mean"},
    "members": {"seed": [1, 2, 3], "data": {"seed": [7, 8]}},
    "tracking": {"note": "A pilot.", "tags": {"project": "pilot", "round": 2}},
}
OBJECTIVE = Objective("val/neg_elbo", "min", "mean")
METRICS = ("val/mcc", "val/neg_elbo")
SEEDS = (1, 2, 3)
KINDS = ("study", "trial", "member")
QUESTION = "a digest"


def a_trial(number: int, epochs: int = 3, status: Status = "finished") -> TrialRecord:
    rng = np.random.default_rng(number)
    history: list[dict[str, Value]] = [
        {"trial": number, "seed": seed, "epoch": epoch, **{name: float(rng.random()) for name in METRICS}}
        for epoch in range(epochs)
        for seed in SEEDS
    ]
    axes: dict[str, Value] = {"gamma": 10.0, "gamma_sq": 100.0, "status": "stopped", "epochs": epochs}
    columns = ("val/mcc at max val/mcc", "test/mcc at max val/mcc")
    members: list[dict[str, Value]] = [
        {"trial": number, "seed": seed, **axes, **{name: float(rng.random()) for name in columns}} for seed in SEEDS
    ]
    return TrialRecord(number, {"model.gamma": 10.0 + number}, status, 0.5 - number / 10, history, members)


def finals(trial: TrialRecord) -> list[dict[str, float]]:
    return [{c.split(" at ")[0]: float(row[c]) for c in row if " at " in c} for row in trial.members]


def finish(tracker: Tracker, trial: TrialRecord) -> None:
    tracker.finish_trial(trial, finals(trial))


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An MLflow database without studies, and the process that has created it: creation takes seconds, a copy none."""
    folder = tmp_path_factory.mktemp("mlflow")
    code = (
        "import sys; from pathlib import Path; from imavae.tracking import mlflow as tracking;"
        "from imavae.config.settings import Tracking;"
        "assert 'mlflow' not in sys.modules;"
        "tracking.open_tracker(Tracking(), Path(sys.argv[1]), 'any').start('any', {'members': {'seed': [1]}}, {})"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", code, str(folder)]
    created = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return folder / "mlflow.db", created


@pytest.fixture
def output_dir(
    new_database: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(imavae.tracking, "PROGRESS_PERIOD", 0.0)
    with sqlite3.connect(new_database[0]) as source, sqlite3.connect(tmp_path / "mlflow.db") as copy:
        source.backup(copy)
    return tmp_path


def opened(output_dir: Path, members: bool = False) -> MLflowTracker:
    lasting = open_tracker(Tracking(members=members), output_dir, "paper/grid")
    assert isinstance(lasting, Lasting)
    tracker = lasting._opening()
    assert isinstance(tracker, MLflowTracker)
    return tracker


def started(output_dir: Path, resume: bool = False, members: bool = False) -> MLflowTracker:
    tracker = opened(output_dir, members)
    tracker.start("grid", CONFIG, {"imavae.folder": str(output_dir)}, [OBJECTIVE], resume)
    return tracker


def track_two_trials(tracker: MLflowTracker) -> None:
    for number in range(2):
        finish(tracker, a_trial(number))
    tracker.finish("finished", {"seconds": 0.6}, [])


def client(output_dir: Path) -> MlflowClient:
    return server.open_client(server.tracking_uri(SETTINGS, output_dir))


def experiment_id(output_dir: Path, name: str = "paper/grid") -> str:
    experiment = client(output_dir).get_experiment_by_name(name)
    assert experiment is not None
    return str(experiment.experiment_id)


def runs(output_dir: Path, kind: str) -> list[Run]:
    return list(client(output_dir).search_runs([experiment_id(output_dir)], f"tags.`imavae.kind` = '{kind}'"))


def curve(output_dir: Path, run: Run, name: str) -> list[tuple[int, float]]:
    history = client(output_dir).get_metric_history(run.info.run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def stored_rows(output_dir: Path, table: str = "metrics") -> int:
    """Rows of a table in the database, however they came there."""
    with sqlite3.connect(output_dir / "mlflow.db") as connection:
        return int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])  # noqa: S608


@pytest.mark.parametrize("shown_before", [False, True])
def test_a_long_failure_fits_into_a_tag(output_dir: Path, shown_before: bool) -> None:
    """Whether the tag comes with the run's creation or later: MLflow's databases on servers refuse a longer one."""
    tracker = started(output_dir)
    trial = replace(a_trial(0, status="failed"), failure="no luck" * 3000, members=[], score=None)
    if shown_before:
        tracker.progress(trial)
    finish(tracker, trial)
    [run] = runs(output_dir, "trial")
    assert 1000 < len(run.data.tags[tracking.NOTE]) <= 8000
    assert run.data.tags["imavae.status"] == "failed"


def with_diverged(trial: TrialRecord) -> TrialRecord:
    """The trial with a first member that has diverged."""
    first, *rest = trial.members
    return replace(trial, members=[{**first, "status": "diverged", "val/mcc at max val/mcc": math.nan}, *rest])


def test_a_study_with_its_trials(output_dir: Path) -> None:
    trials = [with_diverged(a_trial(0)), a_trial(1)]
    artifacts = [output_dir / name for name in ("mcc.png", "report.html", "members.csv")]
    for path in artifacts:
        path.write_text("content")
    tracker = started(output_dir)
    for trial in trials:
        finish(tracker, trial)
    tracker.finish("finished", {"seconds": 0.6, "hopeless": math.nan}, artifacts)

    (study,) = runs(output_dir, "study")
    mlflow = client(output_dir)
    files = {file.path for folder in (None, "figures") for file in mlflow.list_artifacts(study.info.run_id, folder)}
    assert files == {"config.yaml", "search_space.yaml", "members.csv", "report.html", "figures", "figures/mcc.png"}
    assert yaml.safe_load(Path(mlflow.download_artifacts(study.info.run_id, "config.yaml")).read_text()) == CONFIG
    assert study.data.params["model.gamma"] == "11.0"  # of the best trial, not the default of 10
    assert curve(output_dir, study, "val/neg_elbo") == [(1, 0.5), (2, 0.4)]
    best = finals(trials[1])
    medians = {name: np.median([member[name] for member in best]) for name in ("val/mcc", "test/mcc")}
    assert study.data.metrics == pytest.approx({"val/neg_elbo": 0.4, **medians, "seconds": 0.6})
    assert study.data.tags["imavae.best"] == "trial 1 · γ=11"
    assert "imavae.version.mlflow" in study.data.tags

    found = {int(run.data.tags["imavae.trial"]): run for run in runs(output_dir, "trial")}
    for number, run in found.items():
        assert run.data.tags[tracking.PARENT] == study.info.run_id
        assert run.data.params == {"model.gamma": str(10.0 + number)}
        assert run.data.metrics["val/neg_elbo"] == trials[number].score
        table = pd.read_csv(mlflow.download_artifacts(run.info.run_id, "members.csv"))
        assert table.to_dict("records") == pd.DataFrame(trials[number].members).to_dict("records") or number == 0
        assert run.data.metrics["val/mcc"] == pytest.approx(table["val/mcc at max val/mcc"].median())
    assert found[0].data.metrics["members diverged"] == 1
    assert found[0].info.run_name == "trial 0 · γ=10 · grid"
    for name in METRICS:
        values = np.array([float(row[name]) for row in trials[0].history]).reshape(-1, len(SEEDS))
        for suffix, share in (("", 0.5), ("/q25", 0.25), ("/q75", 0.75)):
            name_of_curve = f"curves/{name.removeprefix('val/')}{suffix}"
            steps, quantiles = zip(*curve(output_dir, found[0], name_of_curve), strict=True)
            assert steps == tuple(range(len(values)))
            assert quantiles == pytest.approx(np.quantile(values, share, axis=1))
    assert not runs(output_dir, "member")
    assert {run.info.status for run in (study, *found.values())} == {"FINISHED"}


@pytest.mark.parametrize("metrics", ["main", "all"])
def test_trials_of_a_study_have_the_main_metrics_and_the_study_all_of_its_best_trial(
    metrics: Literal["main", "all"], output_dir: Path
) -> None:
    def of(number: int) -> list[dict[str, float]]:
        return [one | {"val/kl": number, "test/amari": 1.0} for one in finals(a_trial(number))]

    for resume in (False, True):  # the best trial is the first one, which a resume finds complete
        tracker = open_tracker(Tracking(metrics=metrics), output_dir, "paper/grid")
        tracker.start("grid", CONFIG, {}, [replace(OBJECTIVE, mode="max")], resume)
        for number in range(1 + resume):
            tracker.finish_trial(a_trial(number), of(number))
        tracker.finish("finished" if resume else "stopped", {}, [])
    [study], trials = runs(output_dir, "study"), runs(output_dir, "trial")
    further = {"val/kl", "test/amari"}
    assert study.data.metrics["val/kl"] == 0
    assert study.data.metrics.keys() >= further
    for trial in trials:
        assert trial.data.metrics.keys() >= {"val/mcc", "test/mcc", "val/neg_elbo"}
        assert further & trial.data.metrics.keys() == (further if metrics == "all" else set())


def test_members_are_runs_where_they_are_asked_for_and_of_a_run_without_search(output_dir: Path) -> None:
    trial = with_diverged(a_trial(0))
    finish(started(output_dir, members=True), trial)
    alone = opened(output_dir)
    alone.start("run", {"members": {"seed": [1, 2, 3]}}, {"imavae.folder": "a run's"}, [OBJECTIVE])
    finish(alone, replace(trial, values={}))

    parents = {run.info.run_id: run.info.run_name for run in runs(output_dir, "trial")}
    assert set(parents.values()) == {"trial 0 · γ=10 · grid", "trial 0 · run"}
    for parent in parents:
        of_parent = [run for run in runs(output_dir, "member") if run.data.tags[tracking.PARENT] == parent]
        members = {run.data.params["seed"]: run for run in of_parent}
        assert members["2"].data.params == {"seed": "2", "gamma": "10.0", "gamma_sq": "100.0"}
        assert members["2"].data.metrics == {**finals(trial)[1], "epochs": 3}
        assert "val/mcc" not in members["1"].data.metrics
        assert [members[seed].info.status for seed in "123"] == ["FAILED", "FINISHED", "FINISHED"]


def test_a_curve_stands_still_for_a_member_that_has_stopped_or_diverged() -> None:
    history: list[dict[str, Value]] = [
        {"trial": 0, "seed": seed, "epoch": epoch, "val/mcc": value, "val/log_px": 1.5}
        for seed, values in {1: [0.1, 0.2], 2: [0.5], 3: [0.9, math.nan], 4: [math.nan, math.inf]}.items()
        for epoch, value in enumerate(values)
    ]
    curves = dict(quartile_curves(history, ["val/mcc", "val/log_px", "val/none"]))
    assert {epoch: values["val/mcc"] for epoch, values in curves.items()} == {0: 0.5, 1: 0.5}
    assert curves[1] == {"val/mcc": 0.5, "val/mcc/q25": 0.35, "val/mcc/q75": 0.7}  # without what never changes
    assert list(dict(quartile_curves(history, ["val/mcc"], after=0))) == [1]


def test_what_progress_has_written_is_not_written_again(output_dir: Path) -> None:
    whole, part = a_trial(0, epochs=4), a_trial(0, epochs=2)
    at_once, bit_by_bit = started(output_dir), started(output_dir)
    finish(at_once, whole)
    expected = stored_rows(output_dir)
    bit_by_bit.progress(part)
    bit_by_bit.progress(part)
    bit_by_bit.progress(replace(whole, members=[]))
    finish(bit_by_bit, whole)
    assert stored_rows(output_dir) == 2 * expected


@pytest.mark.parametrize(("members", "calls_left"), [(False, 0), (False, 1), (False, 2), (True, 0), (True, 8)])
def test_a_resumed_study_doubles_nothing(
    output_dir: Path, members: bool, calls_left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is killed after some calls; the next driver leaves the same rows as an undisturbed one."""

    class Killed(BaseException):
        pass

    left = [calls_left]

    def dying(call: Any) -> Any:
        def attempt(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return call(*args, **kwargs)

        return attempt

    first = started(output_dir, members=members)
    finish(first, a_trial(0))
    first.progress(a_trial(1, epochs=2))
    for name in ("create_run", "log_batch", "set_terminated"):
        monkeypatch.setattr(first._client, name, dying(getattr(first._client, name)))
    with pytest.raises(Killed):
        finish(first, a_trial(1))
    track_two_trials(started(output_dir, resume=True, members=members))
    assert [len(runs(output_dir, kind)) for kind in KINDS] == [1, 2, 2 * len(SEEDS) * members]
    assert {run.info.status for kind in KINDS for run in runs(output_dir, kind)} == {"FINISHED"}
    resumed = stored_rows(output_dir)
    track_two_trials(started(output_dir, members=members))
    assert stored_rows(output_dir) == 2 * resumed


CALLS = (
    *("create_run", "log_batch", "set_terminated", "create_logged_model", "log_model_artifact", "log_outputs"),
    *("finalize_logged_model", "create_registered_model", "create_model_version", "set_registered_model_alias"),
)


def all_of_a_study(tracker: MLflowTracker, model: Path) -> None:
    """Track a study of one trial."""
    tracker.start("grid", CONFIG, {"imavae.folder": str(model.parent)}, [OBJECTIVE])
    tracker.progress(a_trial(0, epochs=2))
    finish(tracker, a_trial(0))
    tracker.log_model(model, a_trial(0), "1", {"val/mcc": 0.5}, QUESTION)
    tracker.finish("finished", {"seconds": 0.6}, [])


@pytest.mark.parametrize(("members", "answered"), [(False, 0), (False, 1), (True, 0), (True, 2)])
def test_a_call_whose_answer_is_lost_is_not_carried_out_twice(
    members: bool, answered: int, output_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of call is carried out, but its answer is lost after some that were answered."""
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.01)
    model = output_dir / "model.pt"
    model.write_bytes(b"a model")
    tracker, lost = opened(output_dir, members), []

    def losing(name: str) -> Any:
        call, left = getattr(tracker._client, name), [answered]

        def attempt(*args: Any, **kwargs: Any) -> Any:
            answer = call(*args, **kwargs)
            left[0] -= 1
            if left[0] == -1:
                lost.append(name)
                raise MlflowException("no answer")
            return answer

        return attempt

    for name in CALLS:
        monkeypatch.setattr(tracker._client, name, losing(name))
    all_of_a_study(tracker, model)
    assert {"create_run", "log_batch", "set_terminated"} <= set(lost)
    assert set(lost) == set(CALLS) or answered
    assert [len(runs(output_dir, kind)) for kind in KINDS] == [1, 1, len(SEEDS) * members]
    assert {run.info.status for kind in KINDS for run in runs(output_dir, kind)} == {"FINISHED"}
    tables = ("metrics", "logged_models", "inputs", "model_versions")
    before = [stored_rows(output_dir, table) for table in tables]
    all_of_a_study(opened(output_dir, members), model)
    assert [stored_rows(output_dir, table) for table in tables] == [2 * rows for rows in before]


def test_an_interrupted_study_does_not_wait_for_its_server(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = started(output_dir)
    for name in CALLS:
        monkeypatch.setattr(tracker._client, name, Mock(side_effect=MlflowException("no answer")))
    tracker.progress(a_trial(0))
    tracker.finish("stopped", {"score": 0.5}, [])
    assert [len(runs(output_dir, kind)) for kind in ("study", "trial")] == [1, 0]


def test_calls_that_a_locked_database_refuses_are_repeated(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy import sql

    text = sql.text  # MLflow itself waits for 20 s: here for 0.2 s
    monkeypatch.setattr(
        sql, "text", lambda statement: text(statement.replace("busy_timeout = 20000", "busy_timeout = 200"))
    )
    tracker = started(output_dir)
    finish(tracker, a_trial(0))
    connection = sqlite3.connect(output_dir / "mlflow.db", isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    threading.Timer(1.0, connection.execute, ["ROLLBACK"]).start()
    track_two_trials(tracker)
    connection.close()
    once = stored_rows(output_dir)
    assert [len(runs(output_dir, kind)) for kind in KINDS] == [1, 2, 0]
    track_two_trials(started(output_dir))
    assert stored_rows(output_dir) == 2 * once


def test_an_alias_that_another_study_has_just_created_is_moved(
    output_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = started(output_dir)
    model = output_dir / "model.pt"
    model.write_bytes(b"a model")
    finish(tracker, a_trial(0))
    set_alias, tried = tracker._client.set_registered_model_alias, []

    def late(*arguments: str) -> None:
        tried.append(arguments)
        if len(tried) == 1:  # the other study was first
            set_alias(*arguments)
            raise MlflowException("UNIQUE constraint failed", BAD_REQUEST)
        set_alias(*arguments)

    monkeypatch.setattr(tracker._client, "set_registered_model_alias", late)
    assert tracker.log_model(model, a_trial(0), "1", {}, QUESTION) == "models:/paper-grid/1"
    assert len(tried) == 2


def test_an_error_that_is_no_outage_is_raised_at_once(output_dir: Path) -> None:
    tracker = started(output_dir)
    tracker._study = "0" * 32
    with pytest.raises(MlflowException, match="not found"):
        tracker.finish("finished", {}, [])


def test_only_a_resume_takes_up_a_run_and_only_of_the_same_tags(output_dir: Path) -> None:
    started(output_dir)
    started(output_dir)
    assert len(runs(output_dir, "study")) == 2
    started(output_dir, resume=True)
    assert len(runs(output_dir, "study")) == 2
    other = open_tracker(SETTINGS, output_dir, "paper/grid")
    other.start("grid", CONFIG, {"imavae.folder": "/someone/else's"}, [OBJECTIVE], resume=True)
    other.start("grid", CONFIG, {"imavae.folder": "/someone/else's"}, [OBJECTIVE], resume=True)
    assert len(runs(output_dir, "study")) == 3


def test_batches_keep_to_mlflows_limits(output_dir: Path) -> None:
    tracker = started(output_dir)
    long = {f"key{i}": "x" * 10_000 for i in range(150)}
    history: list[dict[str, Value]] = [
        {"trial": 0, "seed": 1, "epoch": epoch, "val/neg_elbo": -float(epoch)} for epoch in range(700)
    ]
    finish(tracker, TrialRecord(0, long, "finished", None, history, []))
    (run,) = runs(output_dir, "trial")
    assert len(run.data.params) == 150
    assert [step for step, _ in curve(output_dir, run, "curves/neg_elbo/q75")] == list(range(700))


STAND_IN = """
import numpy as np

class Model:
    def __init__(self, path):
        self.weight = float(open(path).read())
    def predict(self, x):
        return self.weight * np.asarray(x)

def _load_pyfunc(path):
    return Model(path)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader of models that are one number."""
    (tmp_path / "a_stand_in_loader.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(tracking, "LOADER_MODULE", "a_stand_in_loader")


@pytest.mark.usefixtures("stand_in")
def test_the_champion_loads_by_mlflows_own_loader(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = started(output_dir)
    finish(tracker, a_trial(0))
    model = output_dir / "member.pt"
    model.write_text("3")
    address = tracker.log_model(model, a_trial(0), "2", {"val/mcc": 0.9, "test/mcc": math.nan}, QUESTION)
    assert address == "models:/paper-grid/1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.tracking_uri(SETTINGS, output_dir))
    frame = pd.DataFrame([[1.0, 2.0]])
    np.testing.assert_array_equal(pyfunc.load_model(address).predict(frame), [[3.0, 6.0]])


def test_models_are_ranked_by_their_metrics_and_stored_once(output_dir: Path) -> None:
    tracker = started(output_dir)
    finish(tracker, a_trial(0))
    paths = {seed: output_dir / f"member{seed}.pt" for seed in SEEDS}
    found = {}
    for seed, mcc in zip(SEEDS, (0.5, 0.9, 0.7), strict=True):
        paths[seed].write_text(f"weights {seed}")
        found[seed] = tracker.log_model(paths[seed], a_trial(0), str(seed), {"val/mcc": mcc})
    champion = tracker.log_model(paths[2], a_trial(0), "2", {"val/mcc": 0.9}, QUESTION)
    assert tracker.log_model(paths[2], a_trial(0), "2", {"val/mcc": 0.9}, QUESTION) == champion
    mlflow = client(output_dir)
    models = mlflow.search_logged_models(
        [experiment_id(output_dir)], order_by=[{"field_name": "metrics.val/mcc", "ascending": False}]
    )
    assert [model.tags["imavae.member"] for model in models] == ["2", "3", "1"]
    assert len(mlflow.search_model_versions("name = 'paper-grid'")) == 1
    (study,), (trial,) = runs(output_dir, "study"), runs(output_dir, "trial")
    assert trial.data.metrics["val/mcc"] == pytest.approx(np.median([one["val/mcc"] for one in finals(a_trial(0))]))
    outputs = mlflow.get_run(study.info.run_id).outputs
    assert outputs is not None
    [of_study] = outputs.model_outputs
    assert of_study.model_id == models[0].model_id
    for address, seed in {
        champion: 2,
        "models:/paper-grid@champion": 2,
        found[1]: 1,
        f"runs:/{trial.info.run_id}": 2,
        f"runs:/{study.info.run_id}": 2,
    }.items():
        assert fetch_model(address, SETTINGS, output_dir).read_text() == f"weights {seed}"


def crowned(output_dir: Path, study: str, score: float, question: str = QUESTION, **config: str) -> str:
    """Track a study of one trial with this score, whose champion's file holds the study's name; return its address."""
    tracker = opened(output_dir)
    tracker.start(study, {**CONFIG, **config}, {"imavae.folder": study}, [OBJECTIVE])
    trial = replace(a_trial(0), score=score)
    finish(tracker, trial)
    model = output_dir / f"{study}.pt"
    model.write_text(study)
    address = tracker.log_model(model, trial, "2", {"val/mcc": 0.9, "test/mcc": 0.8}, question)
    tracker.finish("finished", {}, [])
    return address


def test_the_alias_is_at_the_best_score_of_its_question_and_an_address_never_moves(output_dir: Path) -> None:
    def loaded(address: str) -> str:
        return fetch_model(address, SETTINGS, output_dir).read_text()

    champion = "models:/paper-grid@champion"
    addresses = {}
    # The smallest is best. The third study is worse, the fourth no better, and the fifth asks something else.
    studies = [
        ("a", -1.0, "a"),
        ("b", -3.0, "b"),
        ("c", -2.0, "b"),
        ("d", -3.0, "b"),
        ("e", -9.0, "b"),
        ("f", -4.0, "f"),
    ]
    for study, score, best in studies:
        addresses[study] = crowned(output_dir, study, score, "another" if study == "e" else QUESTION)
        assert loaded(champion) == best
    assert addresses == {study: f"models:/paper-grid/{n}" for n, study in enumerate("abcdef", 1)}
    assert all(loaded(address) == study for study, address in addresses.items())
    description = client(output_dir).get_model_version("paper-grid", "2").description or ""
    assert all(part in description for part in ("b", "trial 0", "γ=10", "seed 2", "0.9", "0.8", "-3"))


def test_a_study_with_a_name_of_its_own_has_its_own_model(output_dir: Path) -> None:
    assert crowned(output_dir, "grid", -3.0) == "models:/paper-grid/1"
    assert crowned(output_dir, "mine-2", -1.0, name="mine") == "models:/mine/1"
    assert fetch_model("models:/mine@champion", SETTINGS, output_dir).read_text() == "mine-2"
    assert fetch_model("models:/paper-grid@champion", SETTINGS, output_dir).read_text() == "grid"


def test_without_sources_a_study_stands_for_its_model_of_lowest_neg_elbo(output_dir: Path) -> None:
    tracker = started(output_dir, members=True)
    finish(tracker, a_trial(0))
    for member, neg_elbo in {"1": 7.0, "2": -5.5, "3": -4.0}.items():
        path = output_dir / f"member{member}.pt"
        path.write_text(member)
        tracker.log_model(path, a_trial(0), member, {"val/neg_elbo": neg_elbo, "val/kl": 1.0})
    (study,) = runs(output_dir, "study")
    expected = {run.info.run_id: run.data.params["seed"] for run in runs(output_dir, "member")}
    for run_id, seed in {**expected, study.info.run_id: "2"}.items():
        assert fetch_model(f"runs:/{run_id}", SETTINGS, output_dir).read_text() == seed


@pytest.mark.parametrize(
    "address", ["models:/paper-grid@champion", "models:/m-0", "runs:/0", "runs:/STUDY", "models:/", "models:/a/b"]
)
def test_a_missing_model_is_a_users_mistake(output_dir: Path, address: str) -> None:
    started(output_dir)
    (study,) = runs(output_dir, "study")
    with pytest.raises(UserError, match=r"(models|runs):/|has none"):
        fetch_model(address.replace("STUDY", study.info.run_id), SETTINGS, output_dir)


def test_no_database_is_made_to_find_that_a_model_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make tune"):
        fetch_model("models:/any@champion", replace(SETTINGS, uri=f"sqlite:///{tmp_path / 'none.db'}"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_address_where_nothing_answers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECT_TIMEOUT", 0.2)
    (tmp_path / "text.db").write_text("no database" * 100)
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # accepts, and never answers
        closed.bind(("127.0.0.1", 0))
        bad = [
            f"http://127.0.0.1:{closed.getsockname()[1]}",
            f"http://127.0.0.1:{silent.getsockname()[1]}",
            f"postgresql://user@127.0.0.1:{closed.getsockname()[1]}/db",
            f"sqlite:///{tmp_path / 'text.db'}",
            f"sqlite:///{tmp_path / 'text.db' / 'below.db'}",
            "ftp://127.0.0.1/x",
            "mlruns",
        ]
        for uri in bad:
            with pytest.raises(UserError, match="tracking"):
                open_tracker(replace(SETTINGS, uri=uri), tmp_path / "out", "any")
    assert not (tmp_path / "out").exists()


def test_a_deleted_experiment_says_how_to_bring_it_back(output_dir: Path) -> None:
    open_tracker(SETTINGS, output_dir, "gone")
    client(output_dir).delete_experiment(experiment_id(output_dir, "gone"))
    with pytest.raises(UserError, match="mlflow experiments restore"):
        open_tracker(SETTINGS, output_dir, "gone")


def test_the_address_is_the_settings_then_the_environments_then_the_output_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert server.tracking_uri(SETTINGS, Path("out")) == f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert server.tracking_uri(SETTINGS, Path("out")) == "http://server"
    assert server.tracking_uri(Tracking(uri="sqlite:///my.db"), Path("out")) == f"sqlite:///{tmp_path / 'my.db'}"


def test_mlflows_page_shows_scores_and_what_is_searched(output_dir: Path) -> None:
    tracker = started(output_dir)
    (study,) = runs(output_dir, "study")
    for part in ("model.gamma, training.beta.", "mean", "6 members", "smallest val/neg_elbo", "(#/models/paper-grid)"):
        assert part in study.data.tags[tracking.NOTE]
    assert study.data.tags[tracking.NOTE].startswith("A pilot.")
    assert (study.data.tags["project"], study.data.tags["round"]) == ("pilot", "2")
    experiment = client(output_dir).get_experiment(experiment_id(output_dir))
    path = f"/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    order = "&orderByKey=metrics.%60val%2Fneg_elbo%60&orderByAsc=true"
    assert tracking.first_page(server.tracking_uri(SETTINGS, output_dir)) == path + order
    finish(tracker, a_trial(0))
    finish(tracker, a_trial(1))
    tracker.finish("finished", {}, [])
    experiment = client(output_dir).get_experiment(experiment_id(output_dir))
    [answer] = [
        line for line in experiment.tags[tracking.NOTE].splitlines() if "trial 1 · γ=11, val/neg_elbo 0.4" in line
    ]
    assert f"/runs/{study.info.run_id}" in answer  # the page shows the first line
    assert experiment.tags[tracking.NOTE].startswith(answer)


def test_no_tracking_leaves_nothing(tmp_path: Path) -> None:
    tracker = open_tracker(Tracking(name="none"), tmp_path, "any")
    assert type(tracker) is Tracker
    tracker.start("any", CONFIG, {})
    tracker.progress(a_trial(0))
    finish(tracker, a_trial(0))
    assert tracker.log_model(tmp_path / "member.pt", a_trial(0), "1", {}, QUESTION) == str(tmp_path / "member.pt")
    tracker.finish("finished", {}, [])
    assert not list(tmp_path.iterdir())


def test_mlflow_prints_nothing_and_is_imported_only_when_a_tracker_opens(
    new_database: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    done = new_database[1]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_outage_is_waited_for_once_and_what_it_hid_is_tracked_later(
    output_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, outage = [0.0], MlflowException("away", error_code=TEMPORARILY_UNAVAILABLE)
    monkeypatch.setattr(server, "LONGEST_OUTAGE", 50.0)
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(server, "time", clock)
    tracker = open_tracker(SETTINGS, output_dir, "paper/grid")
    tracker.start("grid", CONFIG, {}, [OBJECTIVE])
    finish(tracker, a_trial(0))
    assert tracker.lost is None
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_batch", Mock(side_effect=outage))
        for number in (1, 2):
            finish(tracker, a_trial(number))
    assert 50 <= now[0] < 50 + server.LONGEST_PAUSE
    finish(tracker, a_trial(3))  # it is back, but nobody asks
    assert tracker.lost is not None
    tracker.finish("finished", {}, [])
    tracker = open_tracker(SETTINGS, output_dir, "paper/grid")
    tracker.start("grid", CONFIG, {}, [OBJECTIVE], True)
    assert [tracker.is_complete(number) for number in range(4)] == [True, False, False, False]
    for number in range(4):
        finish(tracker, a_trial(number))
    tracker.finish("finished", {}, [])
    names = [run.info.run_name.split(" ·")[0] for run in runs(output_dir, kind="trial")]
    assert sorted(names) == [f"trial {number}" for number in range(4)]


def test_a_moved_folder_reads_and_writes_its_own_artifacts(output_dir: Path, tmp_path: Path) -> None:
    first, moved, model = tmp_path / "first", tmp_path / "mo ved", tmp_path / "a.pt"
    first.mkdir()
    (output_dir / "mlflow.db").rename(first / "mlflow.db")
    model.write_bytes(b"of the first place")
    tracker = opened(first)
    tracker.start("grid", CONFIG, {"imavae.folder": str(first / "studies" / "grid")}, [OBJECTIVE])
    finish(tracker, a_trial(0))
    tracker.log_model(model, a_trial(0), "seed 1", {"val/mcc": 0.5}, QUESTION)
    tracker.finish("finished", {}, [model])
    first.rename(moved)

    assert fetch_model("models:/paper-grid/1", SETTINGS, moved).read_bytes() == model.read_bytes()
    again = opened(moved)
    again.start("other", CONFIG, {"imavae.folder": str(moved)}, [OBJECTIVE])
    again.finish("finished", {}, [model])
    assert len(list(moved.rglob("artifacts/a.pt"))) == 3  # of two runs and a model
    assert not first.exists()
    client = MlflowClient(f"sqlite:///{moved}/mlflow.db")
    [experiment] = [one for one in client.search_experiments() if one.name == "paper/grid"]
    folders = {run.data.tags.get("imavae.folder") for run in client.search_runs([experiment.experiment_id])}
    assert folders == {None, str(moved), str(moved / "studies" / "grid")}
