"""Tracker that writes to MLflow: a study is a run, its trials are nested in it, and members in their trials.

A trial's run has curves (median and quartiles over members, one step per epoch); a member's run has its axes and final
values. Runs are found again by their tags, and a metric's timestamp is the study's start plus its epoch in
milliseconds, so MLflow drops what a resumed study writes again. MLflow is imported when a tracker opens: it takes a
second.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from imavae import tracking
from imavae.config.mapping import build, flatten
from imavae.config.settings import Members, Tracking
from imavae.errors import require
from imavae.tracking import Row, Status, Tracker, TrialRecord, server
from imavae.tracking.server import OUTAGE_CODES, filter_for_tags, ignoring, retried

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run

PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # tag with a run's description
VIEW = "mlflow.sharedViewState.trials"  # tag of an experiment with the columns that its page shows
CHAMPION = "champion"  # alias of the best model
LOADER_MODULE = "imavae.training.checkpoint"  # its `_load_pyfunc(path)` is called by MLflow's generic loader
NEWEST_FIRST = ["attributes.start_time DESC"]
FIGURE_SUFFIXES = (".png", ".pdf")  # files that are stored under figures/
MAX_ENTITIES, MAX_PARAMS, MAX_PARAM_LENGTH, MAX_RUNS = 1000, 100, 6000, 50_000  # MLflow's limits per call


def open_tracker(settings: Tracking, output_dir: Path, experiment: str) -> Tracker:
    """Tracker that the settings choose. Called by the driver alone: it creates MLflow's database and experiment.

    Raises:
        UserError: the address is not reachable or of an unknown kind (known within 5 seconds), or the experiment is
            deleted.
    """
    if settings.name == "none":
        return Tracker()
    uri = server.tracking_uri(settings, output_dir)
    return MLflowTracker(uri, experiment, None if server.is_server(uri) else output_dir.resolve() / "mlartifacts")


@dataclass
class _TrialRun:
    """Run of a trial that is not complete."""

    id: str
    start: int  # milliseconds
    epoch: int = -1  # last epoch in its curves
    written: float = -math.inf  # time of the last update, seconds of the monotonic clock


class MLflowTracker(Tracker):
    """Tracks to MLflow through its client, without global state. :func:`open_tracker` makes one.

    All methods but :meth:`progress` wait for a locked database or an absent server.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | None) -> None:
        """Open or create the experiment. Artifacts go below the folder ``artifacts``; a server stores its own."""
        self._client = server.open_client(uri)
        self._model = experiment.replace("/", "-").replace(":", "-")  # MLflow refuses / and : in names of models
        location = None if artifacts is None else (artifacts / self._model).as_uri()
        kind = {"mlflow.experimentKind": "custom_model_development"}  # else the page opens on language models
        with ignoring("RESOURCE_ALREADY_EXISTS"):
            self._client.create_experiment(experiment, location, kind)
        found = cast("Experiment", self._client.get_experiment_by_name(experiment))
        self._experiment = found.experiment_id
        remedy = f"restore it by `MLFLOW_TRACKING_URI={uri} mlflow experiments restore -x {self._experiment}`"
        require(found.lifecycle_stage == "active", f"the MLflow experiment {experiment!r} is active", "deleted", remedy)
        self._study = ""  # run id
        self._start = 0  # of the study's run, milliseconds
        self._trials: dict[int, _TrialRun] = {}
        self._complete: set[int] = set()

    def start(self, name: str, config: Mapping[str, Any], tags: Mapping[str, str], resume: bool = False) -> None:
        tags, begun = {**tags, "imavae.kind": "study"}, int(1000 * time.time())

        @retried
        def open_study() -> None:
            found = self._search({**tags, "mlflow.runName": name})
            # A run with this start was created by an earlier attempt whose answer was lost.
            known = next((run for run in found if resume or run.info.start_time == begun), None)
            study = known or self._create_run(name, tags | tracking.provenance(), begun)
            self._study, self._start = study.info.run_id, study.info.start_time
            if study.info.status != "RUNNING":
                self._client.update_run(self._study, status="RUNNING")
            # MLflow refuses to change a parameter: the values of the first driver stay.
            params = {k: v for k, v in flatten(config).items() if k not in study.data.params}
            self._log(self._study, params=params, tags={NOTE: describe(config, self._model)})
            # MLflow's page shows no metric and no parameter by default.
            columns = ["metrics.`score`", "metrics.`max val/mcc`", "tags.`imavae.status`"]
            columns += [f"params.`{name}`" for name in _searched(config) or ["gamma"]]
            self._client.set_experiment_tag(self._experiment, VIEW, json.dumps({"selectedColumns": columns}))
            files = {"config.yaml": dict(config)}
            if config.get("search"):
                files["search_space.yaml"] = {"search": config["search"]}
            for file, content in files.items():
                self._client.log_text(self._study, yaml.safe_dump(content, sort_keys=False), file)
            complete = self._search({PARENT: self._study}, "FINISHED")
            self._trials, self._complete = {}, {int(run.data.tags["imavae.trial"]) for run in complete}

        open_study()

    def progress(self, trial: TrialRecord) -> None:
        """See :class:`Tracker`. Does not wait for MLflow: :meth:`finish_trial` adds what is missing."""
        if self.is_complete(trial.number):
            return
        with ignoring(*OUTAGE_CODES):
            if trial.number not in self._trials:
                self._trials[trial.number] = self._open_trial(trial)
            if time.monotonic() - self._trials[trial.number].written >= tracking.PROGRESS_PERIOD:
                self._log_curves(self._trials[trial.number], trial)

    def is_complete(self, trial: int) -> bool:
        return trial in self._complete

    @retried
    def finish_trial(self, trial: TrialRecord) -> None:
        if self.is_complete(trial.number):
            return
        # Removed first: a second attempt looks up what the first one has written.
        run = self._trials.pop(trial.number, None) or self._open_trial(trial)
        self._log_curves(run, trial)
        members = {known.data.tags["imavae.member"]: known.info.run_id for known in self._search({PARENT: run.id})}
        for row in trial.members:
            self._finish_member(run, members.get(tracking.member_name(row)), row, trial.number)
        # No slash in these names: MLflow's page makes a section of charts of each prefix.
        counts = Counter(row["status"] for row in trial.members)
        summary = {f"members {status}": float(count) for status, count in counts.items()}
        summary |= {} if trial.score is None else {"score": trial.score}
        summary |= {f"score {metric.removeprefix('val/')}": value for metric, value in trial.further.items()}
        self._log(run.id, [(0, summary)], tags={"imavae.status": trial.status})
        # Last, as this marks the trial as complete.
        self._client.set_terminated(run.id, "FAILED" if trial.status == "failed" else "FINISHED")
        self._complete.add(trial.number)

    def _finish_member(self, trial: _TrialRun, member: str | None, row: Row, number: int) -> None:
        """Write a member's run, whose id is ``member`` if an earlier attempt has created it."""
        name, status = tracking.member_name(row), str(row["status"])
        if member is None:
            tags = {PARENT: trial.id, "imavae.kind": "member", "imavae.study": self._study, "imavae.status": status}
            tags |= {"imavae.trial": str(number), "imavae.member": name}
            member = self._create_run(f"seed {name} of trial {number}", tags, trial.start).info.run_id
        axes = {k: v for k, v in row.items() if "/" not in k and k not in ("trial", "status", "epochs")}
        values = {k: float(v) for k, v in row.items() if "/" in k or k == "epochs"}
        self._log(member, [(0, values)], axes)
        self._client.set_terminated(member, "FAILED" if status == "diverged" else "FINISHED")

    @retried
    def log_model(self, file: Path, trial: int, member: str, metrics: Mapping[str, float], champion: bool) -> str:
        """See :class:`Tracker`. A champion is registered, and moves the alias ``champion`` of the study's model."""
        from mlflow import pyfunc
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus
        from mlflow.models import Model

        tags = {"imavae.study": self._study, "imavae.trial": str(trial), "imavae.member": member}
        run = next((run.info.run_id for run in self._search(tags)), self._study)
        found = self._client.search_logged_models([self._experiment], filter_for_tags(tags))
        name = f"trial-{trial}-seed-{member}".replace("/", "-world-")
        model = found[0] if found else self._client.create_logged_model(self._experiment, name, run, tags)
        if model.status != LoggedModelStatus.READY:
            description = Model(model_id=model.model_id)  # for MLflow's generic loader; nothing is pickled
            pyfunc.add_to_model(description, loader_module=LOADER_MODULE, data=file.name)
            with tempfile.TemporaryDirectory() as folder:
                description.save(f"{folder}/MLmodel")
                self._client.log_model_artifact(model.model_id, f"{folder}/MLmodel")
            self._client.log_model_artifact(model.model_id, str(file))
            outputs = self._client.get_run(run).outputs
            if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
                self._client.log_outputs(run, [LoggedModelOutput(model.model_id, step=0)])  # link on the run's page
            self._client.finalize_logged_model(model.model_id, "READY")
        self._log(run, [(0, metrics)], model_id=model.model_id)
        return self._register_champion(model.model_id, run) if champion else f"models:/{model.model_id}"

    def _register_champion(self, model_id: str, run_id: str) -> str:
        """Register a logged model once, move the alias ``champion`` to it, and return the alias' address."""
        with ignoring("RESOURCE_ALREADY_EXISTS"):
            self._client.create_registered_model(self._model)
        # Not "models:/ID", which MLflow would look up at its global address instead of the client's.
        location = self._client.get_logged_model(model_id).artifact_location
        versions = self._client.search_model_versions(f"name = '{self._model}'")
        version = next((known for known in versions if known.source == location), None)
        if version is None:
            version = self._client.create_model_version(self._model, location, run_id, model_id=model_id)
        with ignoring("BAD_REQUEST"):  # another study has just created the alias; now it can be moved
            self._client.set_registered_model_alias(self._model, CHAMPION, version.version)
        self._client.set_registered_model_alias(self._model, CHAMPION, version.version)
        return f"models:/{self._model}@{CHAMPION}"

    def finish(self, status: Status, metrics: Mapping[str, float], artifacts: Iterable[Path]) -> None:
        """See :class:`Tracker`. Figures go to ``figures/``. Unfinished trials are marked as killed until a resume."""
        files = list(artifacts)

        def end_runs() -> None:
            for trial in self._search({PARENT: self._study}, "RUNNING"):
                self._client.set_terminated(trial.info.run_id, "KILLED")
            self._log(self._study, [(0, metrics)])
            for path in files:
                self._client.log_artifact(self._study, str(path), "figures" if path.suffix in FIGURE_SUFFIXES else None)
            ends = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
            self._client.set_terminated(self._study, ends[status])

        if status == "stopped":  # an interrupted study does not wait for MLflow; a resume reopens its runs
            with ignoring(*OUTAGE_CODES):
                end_runs()
        else:
            retried(end_runs)()

    def _create_run(self, name: str, tags: Mapping[str, str], start: int | None = None) -> Run:
        return self._client.create_run(self._experiment, start_time=start, tags=dict(tags), run_name=name)

    def _open_trial(self, trial: TrialRecord) -> _TrialRun:
        """Find a trial's run with what it has already, or create it."""
        tags = {PARENT: self._study, "imavae.kind": "trial", "imavae.trial": str(trial.number)}
        found = self._search(tags)
        run = found[0] if found else self._create_run(f"trial {trial.number}", tags)
        self._log(run.info.run_id, params={k: v for k, v in trial.values.items() if k not in run.data.params})
        return _TrialRun(run.info.run_id, run.info.start_time)

    def _log_curves(self, run: _TrialRun, trial: TrialRecord) -> None:
        """Write the epochs that the run has not got yet."""
        curves = list(tracking.quartile_curves(trial.history, after=run.epoch))
        self._log(run.id, curves)
        run.epoch = curves[-1][0] if curves else run.epoch
        run.written = time.monotonic()

    def _search(self, tags: Mapping[str, str], status: str = "") -> list[Run]:
        """Runs with all of these tags and this status, newest first."""
        rule = filter_for_tags(tags) + (f" AND attributes.status = '{status}'" if status else "")
        return list(self._client.search_runs([self._experiment], rule, max_results=MAX_RUNS, order_by=NEWEST_FIRST))

    def _log(
        self,
        run_id: str,
        metrics: Iterable[tuple[int, Mapping[str, float]]] = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        model_id: str | None = None,
    ) -> None:
        """Write finite metrics, as (epoch, values), parameters and tags, in batches within MLflow's limits.

        With ``model_id``, the metrics are those of a model, too.
        """
        from mlflow.entities import Metric, Param, RunTag

        points = [
            Metric(name, float(value), self._start + epoch, epoch, model_id=model_id, run_id=run_id)
            for epoch, values in metrics
            for name, value in values.items()
            if math.isfinite(value)
        ]
        texts = [Param(key, str(value)[:MAX_PARAM_LENGTH]) for key, value in (params or {}).items()]
        labels = [RunTag(key, value) for key, value in (tags or {}).items()]
        room = MAX_ENTITIES - MAX_PARAMS - len(labels)
        while points or texts or labels:
            self._client.log_batch(run_id, points[:room], texts[:MAX_PARAMS], labels)
            points, texts, labels = points[room:], texts[MAX_PARAMS:], []


def first_page(uri: str) -> str:
    """Path of the newest study's runs on MLflow's page, or of the list of experiments if there is no study."""
    client = server.open_client(uri)
    experiments = {experiment.experiment_id: experiment for experiment in client.search_experiments()}
    studies = filter_for_tags({"imavae.kind": "study"})
    newest = client.search_runs(list(experiments), studies, max_results=1, order_by=NEWEST_FIRST)
    path = "/#/experiments?workflowType=machine_learning"  # the part of the page that is not about language models
    if not newest:
        return path
    experiment = experiments[newest[0].info.experiment_id]
    shared = "&viewStateShareKey=trials" if VIEW in experiment.tags else ""  # MLflow shows an error without the tag
    return path.replace("?", f"/{experiment.experiment_id}/runs?") + shared


def describe(config: Mapping[str, Any], model: str) -> str:
    """Description of a run or study in Markdown; ``model`` is the registered model's name."""
    members = build(Members, config["members"]).count
    searched = _searched(config)
    question = f"One point, trained with {members} members."
    if searched:
        goal = config["objective"]
        best = "largest" if goal["mode"] == "max" else "smallest"
        question = f"Searched: {', '.join(searched)}. The score of a trial is the {goal['aggregate']}, over its "
        question += f"{members} members, of each one's {best} {goal['metric']}."
    return f"""{question}

- **Trials** are the child runs, and **members** (seeds) are children of trials. *Model metrics* of a trial has its
  curves: medians and quartiles over members.
- **Artifacts** has the figures, all values (`members.csv`, `history.csv`) and the settings (`config.yaml`).
- **Champion**: the registered model [{model}](#/models/{model}), alias `{CHAMPION}`.
"""


def _searched(config: Mapping[str, Any]) -> list[str]:
    """Dotted keys of the searched parameters."""
    return [key.removesuffix(".type") for key in flatten(config.get("search", {})) if key.endswith(".type")]
