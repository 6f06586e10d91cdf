"""Tracker that writes to MLflow: a study is a run, and its trials are nested in it; members only where asked for.

A metric has one name at every level: ``val/mcc`` is a member's value at its best state, a trial's median over members,
and a study's best. A study has it as a curve over the trials that have ended. A trial has curves over epochs
(``curves/mcc``, with quartiles) and the table of its members. Runs are found again by their tags, and a metric's
timestamp is the study's start plus its step in milliseconds, so MLflow drops what a resumed study writes again. MLflow
indexes each metric of each run, so a study's trials have the main ones; its best trial's are all in the study's run.
MLflow is imported when a tracker opens: it takes a second.
"""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlencode, urlsplit

import numpy as np
import yaml

from imavae import tracking
from imavae.config.mapping import build, flatten
from imavae.config.settings import Members, Objective, Tracking
from imavae.data.storage import csv_of
from imavae.errors import require
from imavae.metrics.glossary import NEARLY_LINEAR
from imavae.tracking import Finals, Lasting, Row, Status, Tracker, TrialRecord, server
from imavae.tracking.server import OUTAGE_CODES, filter_for_tags, ignoring, retried

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run

PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # tag with a run's description
CURVE = "curves/"  # begins the names of a trial's curves
SYMBOLS = {"model.gamma": "γ", "model.hidden_factor": "h", "model.n_layers": "L"}  # in names of trials
CHAMPION = "champion"  # alias of the best model
QUESTION, SCORE = "imavae.question", "imavae.score"  # tags of a registered version
LOADER_MODULE = "imavae.training.checkpoint"  # its `_load_pyfunc(path)` is called by MLflow's generic loader
NEWEST_FIRST = ["attributes.start_time DESC"]
FIGURE_SUFFIXES = (".png", ".pdf")  # files that are stored under figures/
LINEAR_ICA = "val/mcc_linear_ica"
MAIN = ("mcc", "neg_elbo", "cima", "agreement", "mcc_linear_ica", "nonlinear_gain")  # of a study's trials, by split
EXPERIMENT_NOTE = (
    "Each run is a study or a training run; its child runs are trials. *Columns* adds scores and parameters."
)
RANKING = ("val/mcc", "test/mcc", "val/neg_elbo", "test/neg_elbo")  # the scores of a model
MAX_ENTITIES, MAX_PARAMS, MAX_LENGTH, MAX_RUNS = 1000, 100, 6000, 50_000  # MLflow's limits per call


def open_tracker(settings: Tracking, output_dir: Path, experiment: str, later: bool = False) -> Tracker:
    """Tracker that the settings choose. Called by the driver alone: it creates MLflow's database and experiment.

    With ``later``, the tracker of a database file is opened when it is needed; that the file is writable is checked.

    Raises:
        UserError: the address is not reachable or of an unknown kind (known within 5 seconds), or the experiment is
            deleted.
    """
    if settings.name == "none":
        return Tracker()
    uri = server.tracking_uri(settings, output_dir)
    artifacts = None if server.is_server(uri) else output_dir.resolve() / "mlartifacts"
    opening = functools.partial(MLflowTracker, uri, experiment, artifacts, settings.members, settings.metrics == "all")
    if later and server.database_file(uri):
        server.reach(uri)
        return Lasting(retried(opening), later)
    opened = opening()
    return Lasting(lambda: opened, later=False)


@dataclass
class _TrialRun:
    """Run of a trial that is not complete."""

    id: str
    tags: Mapping[str, str]  # when it was created or found
    artifacts: str  # address of their folder
    epoch: int = -1  # last epoch in its curves
    written: float = -math.inf  # time of the last update, seconds of the monotonic clock

    @classmethod
    def of(cls, run: Run) -> _TrialRun:
        return cls(run.info.run_id, run.data.tags, run.info.artifact_uri)


@dataclass(frozen=True)
class _Tracked:
    """A complete trial, as its run has it."""

    number: int
    name: str
    params: Mapping[str, Any]  # the trial's point
    metrics: Finals


class MLflowTracker(Tracker):
    """Tracks to MLflow through its client, without global state. :func:`open_tracker` makes one.

    All methods but :meth:`progress` wait for a locked database or an absent server.
    """

    def __init__(
        self, uri: str, experiment: str, artifacts: Path | None, members: bool = False, all_metrics: bool = False
    ) -> None:
        """Open or create the experiment. Artifacts go below the folder ``artifacts``; a server stores its own.

        ``members`` makes a run of each member of a study, too; ``all_metrics`` gives a study's trials all metrics
        instead of the main ones.
        """
        self._client = server.open_client(uri)
        self._model = _model_name(experiment)  # under which champions are registered
        location = None if artifacts is None else (artifacts / self._model).as_uri()
        kind = {"mlflow.experimentKind": "custom_model_development"}  # else the page opens on language models
        with ignoring("RESOURCE_ALREADY_EXISTS"):
            self._client.create_experiment(experiment, location, kind)
        found = cast("Experiment", self._client.get_experiment_by_name(experiment))
        self._experiment = found.experiment_id
        remedy = f"restore it by `MLFLOW_TRACKING_URI={uri} mlflow experiments restore -x {self._experiment}`"
        require(found.lifecycle_stage == "active", f"the MLflow experiment {experiment!r} is active", "deleted", remedy)
        self._members, self._all_metrics = members, all_metrics
        self._name, self._study = "", ""  # name and id of the study's run
        self._start = 0  # of the study's run, milliseconds
        self._config: Mapping[str, Any] = {}
        self._objectives: Sequence[Objective] = ()
        self._asked: set[int] = set()  # trials that may have a run already
        self._trials: dict[int, _TrialRun] = {}  # open ones
        self._complete: dict[int, str] = {}  # trial -> run id
        self._scored: set[int] = set()  # complete trials with a score
        self._best: _Tracked | None = None  # one of them
        self._scores: list[tuple[int, dict[str, float]]] = []  # best score after each of them, to be written
        self._written = -math.inf  # time at which they were written last

    def start(
        self,
        name: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        objectives: Sequence[Objective] = (),
        resume: bool = False,
    ) -> None:
        self._name, self._config, self._objectives = name, config, objectives
        if config.get("name"):
            self._model = _model_name(config["name"])
        alone = not config.get("search")
        self._members, self._all_metrics = self._members or alone, self._all_metrics or alone
        self._open_study({**tags, "imavae.kind": "study"}, int(1000 * time.time()), resume)

    @retried
    def _open_study(self, tags: Mapping[str, str], begun: int, resume: bool) -> None:
        found = self._search({**tags, "mlflow.runName": self._name})
        # A run with this start was created by an earlier attempt whose answer was lost.
        known = next((run for run in found if resume or run.info.start_time == begun), None)
        study = known or self._create_run(self._name, {**tags, **tracking.provenance()}, begun)
        self._study, self._start = study.info.run_id, study.info.start_time
        if study.info.status != "RUNNING":
            self._client.update_run(self._study, status="RUNNING")
        # MLflow refuses to change a parameter: the values of the first driver stay, and what is searched comes last.
        searched = _searched(self._config)
        left_out = {*study.data.params, *searched}
        params = {key: value for key, value in flatten(self._config).items() if key not in left_out}
        tags_given = self._config.get("tracking", {}).get("tags") or {}
        own = {str(key): str(value) for key, value in tags_given.items()}
        self._log(self._study, params=params, tags={**own, NOTE: describe(self._config, self._model)})
        files = {"config.yaml": dict(self._config)}
        if self._config.get("search"):
            files["search_space.yaml"] = {"search": self._config["search"]}
        for file, content in files.items():
            self._client.log_text(self._study, yaml.safe_dump(content, sort_keys=False), file)
        self._trials, self._complete, self._best, self._scored, self._scores = {}, {}, None, set(), []
        trials = self._search({PARENT: self._study, "imavae.kind": "trial"}) if known else []
        for run in trials:
            number = int(run.data.tags["imavae.trial"])
            if run.info.status == "FINISHED":
                self._complete[number] = run.info.run_id
            else:
                self._trials[number] = _TrialRun.of(run)
        self._asked = set(self._trials)

    def progress(self, trial: TrialRecord) -> None:
        """See :class:`Tracker`. Does not wait for MLflow: :meth:`finish_trial` adds what is missing."""
        if self.is_complete(trial.number):
            return
        with ignoring(*OUTAGE_CODES):
            run = self._open_trial(trial)
            if time.monotonic() - run.written >= tracking.PROGRESS_PERIOD:
                curves = self._curves(run, trial)
                self._log(run.id, curves, trial.values if run.epoch < 0 else {})
                run.epoch = curves[-1][0] if curves else run.epoch
                run.written = time.monotonic()
            self._trials[trial.number] = run

    def is_complete(self, trial: int) -> bool:
        return trial in self._complete

    @retried
    def finish_trial(self, trial: TrialRecord, members: Sequence[Finals]) -> None:
        finals = medians(members)
        scores = {} if trial.score is None else {self._objectives[0].metric: trial.score, **trial.further}
        if not self.is_complete(trial.number):
            main = [f"{split}/{metric}" for split in ("val", "test") for metric in MAIN]
            shown = finals if self._all_metrics else {name: finals[name] for name in main if name in finals}
            self._finish_run(trial, members, shown, scores)
        self._count(_Tracked(trial.number, trial_name(trial), trial.values, {**finals, **scores}))
        if time.monotonic() - self._written >= tracking.PROGRESS_PERIOD:
            with ignoring(*OUTAGE_CODES):  # the next trial, or the study's end, writes what is missing
                self._log_scores()

    def _finish_run(self, trial: TrialRecord, members: Sequence[Finals], finals: Finals, scores: Finals) -> None:
        """Write a trial's run and end it; with all ``members`` in the table, and in runs where they have them."""
        shown = ", ".join(f"{metric} {value:.4g}" for metric, value in scores.items()) or trial.failure or "no score"
        note = f"{trial_name(trial)}: {shown}; {trial.status}. Medians over {len(trial.members)} members (members.csv)."
        ends = {"imavae.status": trial.status, NOTE: note[:MAX_LENGTH]}
        run = self._open_trial(trial, ends)  # a run that is new has them from its start: each call is a transaction
        if self._members:
            known = {found.data.tags["imavae.member"]: found.info.run_id for found in self._search({PARENT: run.id})}
            for row, values in zip(trial.members, members, strict=True):
                self._finish_member(run, known.get(tracking.member_name(row)), trial.number, row, values)
        if trial.members:
            self._log_table(run, csv_of(trial.members))
        statuses = Counter(f"members {row['status']}" for row in trial.members)
        points = [*self._curves(run, trial), (0, {**finals, **scores, **statuses})]
        self._log(run.id, points, trial.values, dict(ends.items() - run.tags.items()))
        # Last, as this marks the trial as complete.
        self._client.set_terminated(run.id, "FAILED" if trial.status == "failed" else "FINISHED")
        self._complete[trial.number] = run.id

    def _log_table(self, run: _TrialRun, table: str) -> None:
        """Store a trial's ``members.csv``. MLflow's client would write it twice, and keep an object for each run."""
        address = urlsplit(run.artifacts)
        if address.scheme == "file":
            folder = Path(unquote(address.path))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "members.csv").write_text(table, encoding="utf-8")
        else:
            self._client.log_text(run.id, table, "members.csv")

    def _count(self, trial: _Tracked) -> None:
        """Add a complete trial to the study's curve."""
        goal = self._objectives[0]
        if goal.metric not in trial.metrics or trial.number in self._scored:
            return

        def rank(one: _Tracked) -> tuple[float, int]:
            return one.metrics[goal.metric] * (1 if goal.mode == "max" else -1), -one.number

        self._best = trial if self._best is None else max(self._best, trial, key=rank)
        self._scored.add(trial.number)
        self._scores.append((len(self._scored), {goal.metric: self._best.metrics[goal.metric]}))

    def _log_scores(self) -> None:
        if self._best is not None:
            self._log(self._study, self._scores, tags={"imavae.best": self._best.name})
            page = f"#/experiments/{self._experiment}/runs/{self._study}"
            found, *more = self._answer(self._best)
            note = "\n\n".join([f"[{self._name}]({page}): {found}", *more, EXPERIMENT_NOTE])  # the first line is shown
            self._client.set_experiment_tag(self._experiment, NOTE, note)
        self._scores, self._written = [], time.monotonic()

    def _answer(self, best: _Tracked) -> list[str]:
        """The best trial, its score and linear ICA's, in one or two sentences."""
        linear, metric = best.metrics.get(LINEAR_ICA), self._objectives[0].metric
        found = f"{best.name}, {metric} {best.metrics[metric]:.4g}"
        if linear is None:
            return [f"{found}."]
        nearly = "These data are nearly linear, so the answer is no evidence of nonlinear recovery."
        return [f"{found}; linear ICA: {linear:.4g}.", *[nearly] * (linear > NEARLY_LINEAR)]

    def _finish_member(self, trial: _TrialRun, run_id: str | None, number: int, row: Row, values: Finals) -> None:
        """Write a member's run, whose id is ``run_id`` if an earlier attempt has created it."""
        name, status = tracking.member_name(row), str(row["status"])
        if run_id is None:
            tags = {PARENT: trial.id, "imavae.kind": "member", "imavae.study": self._study, "imavae.status": status}
            tags |= {"imavae.trial": str(number), "imavae.member": name}
            run_id = self._create_run(f"seed {name} · trial {number}{self._suffix}", tags).info.run_id
        axes = {k: v for k, v in row.items() if "/" not in k and k not in ("trial", "status", "epochs")}
        self._log(run_id, [(0, {**values, "epochs": float(row["epochs"])})], axes)
        self._client.set_terminated(run_id, "FAILED" if status == "diverged" else "FINISHED")

    @retried
    def log_model(
        self, file: Path, trial: TrialRecord, member: str, metrics: Mapping[str, float], question: str | None = None
    ) -> str:
        """See :class:`Tracker`. A champion is registered: its address is that of a version, which never moves."""
        from mlflow import pyfunc
        from mlflow.entities import LoggedModelStatus
        from mlflow.models import Model

        tags = {"imavae.study": self._study, "imavae.trial": str(trial.number), "imavae.member": member}
        members = self._search(tags) if self._members else []
        run = members[0].info.run_id if members else self._complete[trial.number]
        found = self._client.search_logged_models([self._experiment], filter_for_tags(tags))
        name = f"trial-{trial.number}-seed-{member}".replace("/", "-world-")
        model = found[0] if found else self._client.create_logged_model(self._experiment, name, run, tags)
        if model.status != LoggedModelStatus.READY:
            description = Model(model_id=model.model_id)  # for MLflow's generic loader; nothing is pickled
            pyfunc.add_to_model(description, loader_module=LOADER_MODULE, data=file.name)
            with tempfile.TemporaryDirectory() as folder:
                description.save(f"{folder}/MLmodel")
                self._client.log_model_artifact(model.model_id, f"{folder}/MLmodel")
            self._client.log_model_artifact(model.model_id, str(file))
            self._link(run, model.model_id)
            self._client.finalize_logged_model(model.model_id, "READY")
        # MLflow gives them to the run, too: they are older than the trial's own, so that it shows those.
        scores = {key: metrics[key] for key in RANKING if key in metrics}
        self._log(run, [(0, scores)], model_id=model.model_id, later=-1)
        if question is None:
            return f"models:/{model.model_id}"
        self._link(self._study, model.model_id)
        return self._register(model.model_id, run, trial, member, metrics, question)

    def _link(self, run_id: str, model_id: str) -> None:
        """Show a model on a run's page."""
        from mlflow.entities import LoggedModelOutput

        outputs = self._client.get_run(run_id).outputs
        if model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])

    def _register(
        self, model_id: str, run_id: str, trial: TrialRecord, member: str, metrics: Mapping[str, float], question: str
    ) -> str:
        """Register a champion once and return its version's address. The alias moves to it if its score is better."""
        with ignoring("RESOURCE_ALREADY_EXISTS"):
            text = f"Champions of studies. The best one: `imavae.load_model('models:/{self._model}@{CHAMPION}')`"
            self._client.create_registered_model(self._model, description=text)
        # Not "models:/ID", which MLflow would look up at its global address instead of the client's.
        location = self._client.get_logged_model(model_id).artifact_location
        versions = self._client.search_model_versions(f"name = '{self._model}'")
        version = next((known for known in versions if known.source == location), None)
        goal, score = self._objectives[0], cast("float", trial.score)
        if version is None:
            scores = ", ".join(f"{key} {metrics[key]:.4g}" for key in RANKING if key in metrics)
            description = (
                f"{self._name}, {trial_name(trial)}, seed {member}: {scores}; "
                f"{goal.aggregate} {goal.metric} of the trial {score:.4g}"
            )
            tags = {QUESTION: question, SCORE: repr(score)}
            version = self._client.create_model_version(
                self._model, location, run_id, tags, description=description, model_id=model_id
            )
        if self._leads(question, score):
            with ignoring("BAD_REQUEST"):  # another study has just created the alias; now it can be moved
                self._client.set_registered_model_alias(self._model, CHAMPION, version.version)
            self._client.set_registered_model_alias(self._model, CHAMPION, version.version)
        return f"models:/{self._model}/{version.version}"

    def _leads(self, question: str, score: float) -> bool:
        """Return whether a score is better than that of the alias' version; not if that answers another question."""
        best = self._client.get_registered_model(self._model).aliases.get(CHAMPION)
        if best is None:
            return True
        tags = self._client.get_model_version(self._model, best).tags
        if tags.get(QUESTION) != question:
            return QUESTION not in tags  # it is of a release whose models can't be read any more
        lead = score - float(tags[SCORE])
        return lead > 0 if self._objectives[0].mode == "max" else lead < 0

    def finish(self, status: Status, metrics: Mapping[str, float], artifacts: Iterable[Path]) -> None:
        """See :class:`Tracker`. Figures go to ``figures/``. Unfinished trials are marked as killed until a resume."""
        files = list(artifacts)

        def end_runs() -> None:
            for trial in self._search({PARENT: self._study}, "RUNNING"):
                self._client.set_terminated(trial.info.run_id, "KILLED")
            self._log_scores()
            if self._best is not None and status == "finished":
                known = self._client.get_run(self._study).data.params  # of an earlier end: MLflow keeps them
                params = {key: value for key, value in self._best.params.items() if key not in known}
                finals = {k: v for k, v in self._best.metrics.items() if k != self._objectives[0].metric}
                note = {NOTE: describe(self._config, self._model, " ".join(self._answer(self._best)))}
                self._log(self._study, [(0, finals)], params, note, later=len(self._scored))
            self._log(self._study, [(0, metrics)], later=len(self._scored))
            for path in files:
                self._client.log_artifact(self._study, str(path), "figures" if path.suffix in FIGURE_SUFFIXES else None)
            ends = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
            self._client.set_terminated(self._study, ends[status])

        if status == "stopped":  # an interrupted study does not wait for MLflow; a resume reopens its runs
            with ignoring(*OUTAGE_CODES):
                end_runs()
        else:
            retried(end_runs)()

    @property
    def _suffix(self) -> str:
        """End of the names of a study's trials: MLflow's page cuts names off, so what differs comes first."""
        return f" · {self._name}"

    def _create_run(self, name: str, tags: Mapping[str, str], start: int | None = None) -> Run:
        return self._client.create_run(self._experiment, start_time=start, tags=dict(tags), run_name=name)

    def _open_trial(self, trial: TrialRecord, more: Mapping[str, str] | None = None) -> _TrialRun:
        """Take a trial's run from the open ones, find it if an earlier attempt may have created it, or create it.

        A run that is created has the tags ``more``, too.
        """
        if trial.number in self._trials:
            return self._trials.pop(trial.number)
        tags = {PARENT: self._study, "imavae.kind": "trial", "imavae.trial": str(trial.number)}
        found = self._search(tags) if trial.number in self._asked else []
        self._asked.add(trial.number)
        name = trial_name(trial) + self._suffix
        return _TrialRun.of(found[0] if found else self._create_run(name, {**tags, **(more or {})}))

    def _curves(self, run: _TrialRun, trial: TrialRecord) -> list[tuple[int, dict[str, float]]]:
        """The epochs that the run has not got yet."""
        metrics = dict.fromkeys([*(objective.metric for objective in self._objectives), *tracking.CURVES])
        curves = tracking.quartile_curves(trial.history, list(metrics), after=run.epoch)
        train = [name for name in tracking.CURVES if name.startswith("train/")]
        left_out = {name + suffix for name in train for suffix in tracking.QUARTILES if suffix}  # to keep rows few
        return [
            (epoch, {CURVE + name.removeprefix("val/"): v for name, v in row.items() if name not in left_out})
            for epoch, row in curves
        ]

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
        later: int = 0,
    ) -> None:
        """Write finite metrics, as (step, values), parameters and tags, in batches within MLflow's limits.

        With ``model_id``, the metrics are those of a model, too. Of two values at the same step, MLflow shows the
        ``later`` one.
        """
        from mlflow.entities import Metric, Param, RunTag

        points = [
            Metric(name, float(value), self._start + step + later, step, model_id=model_id, run_id=run_id)
            for step, values in metrics
            for name, value in values.items()
            if math.isfinite(value)
        ]
        texts = [Param(key, str(value)[:MAX_LENGTH]) for key, value in (params or {}).items()]
        labels = [RunTag(key, value) for key, value in (tags or {}).items()]
        room = MAX_ENTITIES - MAX_PARAMS - len(labels)
        while points or texts or labels:
            self._client.log_batch(run_id, points[:room], texts[:MAX_PARAMS], labels)
            points, texts, labels = points[room:], texts[MAX_PARAMS:], []


def first_page(uri: str) -> str:
    """Path of the newest study's experiment on MLflow's page, or of the list of experiments if there is no study."""
    client = server.open_client(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    studies = filter_for_tags({"imavae.kind": "study"})
    newest = client.search_runs(experiments, studies, max_results=1, order_by=NEWEST_FIRST)
    path = "/#/experiments?workflowType=machine_learning"  # the part of the page that is not about language models
    if not newest:
        return path
    path = path.replace("?", f"/{newest[0].info.experiment_id}/runs?")
    params = newest[0].data.params
    if "objective.metric" not in params:  # a run of one point
        return path
    rising = str(params["objective.mode"] == "min").lower()
    order = {"orderByKey": f"metrics.`{params['objective.metric']}`", "orderByAsc": rising}
    return f"{path}&{urlencode(order)}"  # a page that does not know these fields ignores them


def _model_name(name: str) -> str:
    """A name for a registered model: MLflow refuses / and : in it."""
    return name.replace("/", "-").replace(":", "-")


def trial_name(trial: TrialRecord) -> str:
    """Number and point of a trial: ``trial 23 · γ=67 h=40 L=3``."""
    names = {key: SYMBOLS.get(key, key.removesuffix(".name").rpartition(".")[2]) for key in trial.values}
    point = " ".join(f"{names[k]}={f'{v:.3g}' if isinstance(v, float) else v}" for k, v in trial.values.items())
    return f"trial {trial.number} · {point}" if point else f"trial {trial.number}"


def medians(members: Sequence[Finals]) -> dict[str, float]:
    """Median over members of each of their metrics, finite values only."""
    found: dict[str, list[float]] = {}
    for name, value in (item for member in members for item in member.items()):
        if math.isfinite(value):
            found.setdefault(name, []).append(value)
    return {name: float(np.median(values)) for name, values in found.items()}


def describe(config: Mapping[str, Any], model: str, answer: str = "") -> str:
    """Description of a run or study in Markdown; ``model`` is the registered model's name."""
    members = build(Members, config["members"]).count
    searched = _searched(config)
    lines = [text for text in (config.get("tracking", {}).get("note"), config.get("question")) if text]
    if searched:
        goal = config["objective"]
        extreme = "largest" if goal["mode"] == "max" else "smallest"
        if answer:
            lines.append(f"**Answer**: {answer}")
        lines.append(
            f"Searched: {', '.join(searched)}. The score of a trial is the {goal['aggregate']}, over its {members} "
            f"members, of each one's {extreme} {goal['metric']}."
        )
    else:
        lines.append(f"One point, trained with {members} members.")
    lines.append(
        f"""\
- **Trials** are the child runs. *Model metrics* of a trial has medians over its members (seeds): curves over epochs
  with quartiles (`curves/...`), and values at each member's best state (`val/...`, `test/...`). Its *Artifacts* have
  the table of its members.
- **Artifacts** has the figures, all values (`members.csv`, `history.csv`) and the settings (`config.yaml`).
- **Champion**: a version of the registered model [{model}](#/models/{model}). Its alias `{CHAMPION}` is at the best
  score of all studies with the same objective and data.
"""
    )
    return "\n\n".join(lines)


def _searched(config: Mapping[str, Any]) -> list[str]:
    """Dotted keys of the searched parameters."""
    return [key.removesuffix(".type") for key in flatten(config.get("search", {})) if key.endswith(".type")]
