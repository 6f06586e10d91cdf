"""Tracking: a study is a parent run, a trial its child, a member the trial's child; winners are logged models.

A trial's run has the curves (median and quartiles over members, one step per epoch); a member's run has its axes and
final values. All is found again by name and tag, and a metric's timestamp is the study's start plus its epoch in
milliseconds, so that a replay after a resume adds nothing. MLflow is imported when a tracker opens: it takes a second.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from imavae.config.settings import Tracking
from imavae.errors import UserError
from imavae.tracking import models as winners
from imavae.tracking import page as mlflow_page
from imavae.tracking.base import (
    PROGRESS_PERIOD,
    Row,
    Status,
    Tracker,
    TrialRecord,
    finite_metrics,
    member_name,
    quartile_curves,
)
from imavae.tracking.provenance import provenance
from imavae.tracking.retry import insist, unless_away
from imavae.tracking.server import check_reachable, is_server, open_client, tracking_uri, where

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, Run, RunTag

PARENT = "mlflow.parentRunId"
FIGURES = (".png", ".pdf")  # files that come to lie under figures/
BATCH = 1000  # entities in one of MLflow's batches, of which ...
BATCH_PARAMS = 100  # ... so many parameters
PARAM_LENGTH = 6000  # characters of a parameter's value
NONE: Mapping[str, Any] = MappingProxyType({})


def open_tracker(settings: Tracking, output_dir: Path, experiment: str) -> Tracker:
    """The tracker that the settings ask for; MLflow's database and experiment are created here, by the driver alone.

    Raises:
        UserError: an address of an unknown kind, or one that can't be reached or opened (known within 5 seconds).
    """
    if settings.name == "none":
        return Tracker()
    uri = tracking_uri(settings, output_dir)
    check_reachable(uri)
    folder = None if is_server(uri) else output_dir.resolve() / "mlartifacts" / model_name(experiment)
    return MLflowTracker(uri, experiment, folder)


def model_name(experiment: str) -> str:
    """The registered model's name: the experiment's, without the characters that MLflow refuses there."""
    return experiment.replace("/", "-").replace(":", "-")


@dataclass
class _TrialRun:
    """What the tracker remembers of a trial's run."""

    run_id: str
    start: int  # milliseconds
    done: bool = False
    named: bool = False  # its point's values are written
    epoch: int = -1  # the last one whose curves are written
    written: float = -math.inf  # when that was, seconds of the monotonic clock
    members: dict[str, str] = field(default_factory=dict)  # run ids by name


class MLflowTracker(Tracker):
    """Tracks to MLflow, through its client alone: no global state is set. :func:`open_tracker` makes one."""

    def __init__(self, uri: str, experiment: str, artifacts: Path | None) -> None:
        """Open or create the experiment; its artifacts lie in the folder ``artifacts``, or where a server puts them."""
        self._client = open_client(uri)
        self._model_name = model_name(experiment)
        found = self._client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment must not be deleted, but {experiment!r} is; bring it back with "
                f"`MLFLOW_TRACKING_URI={uri} mlflow experiments restore -x {found.experiment_id}`"
            )
        location = None if artifacts is None else artifacts.as_uri()
        kind = {"mlflow.experimentKind": "custom_model_development"}  # the page opens on runs, not on language models
        self._experiment: str = found.experiment_id if found else self._create(experiment, location, kind)
        self._study = ""  # its run's id
        self._start = 0  # of its run, milliseconds
        self._trials: dict[int, _TrialRun] = {}
        self._asked: set[int] = set()  # trials for which a run was asked for: it may be there, unanswered

    def _create(self, experiment: str, location: str | None, tags: dict[str, str]) -> str:
        """Make the experiment, unless another process has just done so."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.create_experiment(experiment, location, tags))
        except MlflowException as error:
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                raise error from None
            return str(found.experiment_id)

    def start(self, name: str, config: Mapping[str, Any], tags: Mapping[str, str], resume: bool = False) -> None:
        """See :class:`Tracker`. As everywhere, a database that is locked, or a server that is away, is waited for."""
        own, begun = {**tags, "imavae.kind": "study"}, int(1000 * time.time())

        def search() -> list[Run]:
            return self._search({**own, "mlflow.runName": name})

        def create() -> Run:
            return self._new_run(name, own | provenance(), begun)

        def unanswered() -> Run:
            return next((run for run in search() if run.info.start_time == begun), None) or create()

        found = insist(search)[:1] if resume else []
        study = found[0] if found else insist(create, again=unanswered)
        self._study, self._start = study.info.run_id, study.info.start_time
        insist(lambda: self._describe(study, config))
        self._trials = insist(self._trials_there) if found else {}

    def _describe(self, study: Run, config: Mapping[str, Any]) -> None:
        if study.info.status != "RUNNING":
            self._client.update_run(self._study, status="RUNNING")
        # MLflow refuses to change a parameter: what an earlier driver has logged stays.
        self._log(self._study, params={k: v for k, v in _flatten(config).items() if k not in study.data.params})
        self._client.log_text(self._study, yaml.safe_dump(dict(config), sort_keys=False), "config.yaml")
        if config.get("search"):
            space = yaml.safe_dump({"search": config["search"]}, sort_keys=False)
            self._client.log_text(self._study, space, "search_space.yaml")
        if config.get("members"):  # a run that has trials
            self._log(self._study, tags={mlflow_page.NOTE: mlflow_page.note(config, self._model_name)})
            self._client.set_experiment_tag(self._experiment, mlflow_page.VIEW, mlflow_page.view(config))

    def progress(self, trial: TrialRecord) -> None:
        """See :class:`Tracker`. Nothing is waited for: what is missing is written when the trial ends."""
        with unless_away():
            run = self._trial(trial)
            if not run.done and time.monotonic() - run.written >= PROGRESS_PERIOD:
                self._write_curves(run, trial)

    def is_complete(self, trial: int) -> bool:
        """See :class:`Tracker`."""
        return trial in self._trials and self._trials[trial].done

    def finish_trial(self, trial: TrialRecord) -> None:
        """See :class:`Tracker`."""
        insist(lambda: self._finish_trial(trial), again=lambda: self._finish_trial_again(trial))

    def _finish_trial_again(self, trial: TrialRecord) -> None:
        """After a call that failed, which may have been carried out all the same: look what is there."""
        self._trials.pop(trial.number, None)
        self._finish_trial(trial)

    def _finish_trial(self, trial: TrialRecord) -> None:
        run = self._trial(trial)
        if run.done:
            return
        self._write_curves(run, trial)
        for row in trial.members:
            self._write_member(run, row, trial.number)
        # No slash in these names: the page makes a section of charts of whatever stands before one.
        summary = {f"members {status}": float(n) for status, n in Counter(m["status"] for m in trial.members).items()}
        scores = {} if trial.score is None else {"score": trial.score}
        scores |= {f"score {metric.removeprefix('val/')}": value for metric, value in trial.further.items()}
        summary |= {name: value for name, value in scores.items() if math.isfinite(value)}
        self._log(run.run_id, summary, tags={"imavae.status": trial.status})
        self._end(run.run_id, failed=trial.status == "failed")  # last of all: this is what marks a trial as complete
        run.done = True

    def log_model(self, file: Path, trial: int, member: str, metrics: Mapping[str, float], champion: bool) -> str:
        """See :class:`Tracker`."""
        values = {k: float(v) for k, v in metrics.items() if math.isfinite(v)}
        return insist(lambda: self._log_model(file, trial, member, values, champion))

    def _log_model(self, model_file: Path, trial: int, member: str, values: dict[str, float], champion: bool) -> str:
        from mlflow.entities import LoggedModelStatus, Metric

        source = self._member_run(trial, member)
        tags = {"imavae.study": self._study, "imavae.trial": str(trial), "imavae.member": member}
        found = self._client.search_logged_models([self._experiment], where(tags))
        model = min(found, key=lambda known: known.status != LoggedModelStatus.READY, default=None)
        if model is None:
            name = f"trial-{trial}-seed-{member}".replace("/", "-world-")
            model = self._client.create_logged_model(self._experiment, name, source, tags)
        winners.complete(self._client, model, source, model_file)
        model_id = model.model_id
        rows = [Metric(k, v, self._start, 0, model_id=model_id, run_id=source) for k, v in values.items()]
        self._client.log_batch(source, metrics=rows)
        return winners.crown(self._client, self._model_name, model_id, source) if champion else f"models:/{model_id}"

    def finish(self, status: Status, metrics: Mapping[str, float], artifacts: Iterable[Path]) -> None:
        """See :class:`Tracker`. Unfinished trials are marked as killed, until a resume goes on with them."""
        files = list(artifacts)
        if status == "stopped":  # whoever breaks off does not wait; a resume takes up the runs as they are
            with unless_away():
                self._finish(status, metrics, files)
        else:
            insist(lambda: self._finish(status, metrics, files))

    def _finish(self, status: Status, metrics: Mapping[str, float], artifacts: Iterable[Path]) -> None:
        for run in self._trials.values():
            if not run.done:
                self._client.set_terminated(run.run_id, "KILLED")
        self._log(self._study, {k: float(v) for k, v in metrics.items() if math.isfinite(v)})
        for path in artifacts:
            self._client.log_artifact(self._study, str(path), "figures" if path.suffix in FIGURES else None)
        if status == "stopped":
            self._client.set_terminated(self._study, "KILLED")
        else:
            self._end(self._study, failed=status == "failed")

    def _new_run(self, name: str, tags: Mapping[str, str], start: int | None = None) -> Run:
        return self._client.create_run(self._experiment, start_time=start, tags=dict(tags), run_name=name)

    def _end(self, run_id: str, failed: bool) -> None:
        self._client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    def _trial(self, trial: TrialRecord) -> _TrialRun:
        """The trial's run: known, found when the study was resumed, or new."""
        if trial.number not in self._trials:
            tags = {PARENT: self._study, "imavae.kind": "trial", "imavae.trial": str(trial.number)}
            found = self._search(tags)[:1] if trial.number in self._asked else []
            self._asked.add(trial.number)
            if found:
                self._trials[trial.number] = self._found(found[0])
            else:
                info = self._new_run(f"trial {trial.number}", tags).info
                self._trials[trial.number] = _TrialRun(info.run_id, info.start_time)
        run = self._trials[trial.number]
        if not run.named:
            self._log(run.run_id, params=trial.values)
            run.named = True
        return run

    def _trials_there(self) -> dict[int, _TrialRun]:
        return {int(run.data.tags["imavae.trial"]): self._found(run) for run in self._search({PARENT: self._study})}

    def _found(self, run: Run) -> _TrialRun:
        """What an earlier driver has left of a trial's run."""
        known = _TrialRun(run.info.run_id, run.info.start_time, done=run.info.status == "FINISHED")
        known.named = bool(run.data.params)
        if not known.done:
            members = self._search({PARENT: known.run_id})
            known.members = {member.data.tags["imavae.member"]: member.info.run_id for member in members}
            name = next((name for name in run.data.metrics if name.endswith("/q25")), None)
            steps = [m.step for m in self._client.get_metric_history(known.run_id, name)] if name else []
            known.epoch = max(steps, default=0) - 1  # the last one again, in case it was cut off
        return known

    def _write_curves(self, run: _TrialRun, trial: TrialRecord) -> None:
        """Write the epochs that are not there yet."""
        curves = list(quartile_curves(trial.history, after=run.epoch))
        self._send(run.run_id, self._metrics((k, v, epoch) for epoch, values in curves for k, v in values.items()))
        run.epoch = curves[-1][0] if curves else run.epoch
        run.written = time.monotonic()

    def _write_member(self, trial: _TrialRun, row: Row, number: int) -> None:
        """A member's run, in three calls; one that is there already is completed."""
        member, status = member_name(row), str(row["status"])
        if member not in trial.members:
            tags = {PARENT: trial.run_id, "imavae.kind": "member", "imavae.study": self._study, "imavae.status": status}
            tags |= {"imavae.trial": str(number), "imavae.member": member}
            trial.members[member] = self._new_run(f"seed {member} of trial {number}", tags, trial.start).info.run_id
        axes = {k: v for k, v in row.items() if "/" not in k and k not in ("trial", "status", "epochs")}
        self._log(trial.members[member], {**finite_metrics(row), "epochs": float(row["epochs"])}, axes)
        self._end(trial.members[member], failed=status == "diverged")

    def _member_run(self, trial: int, member: str) -> str:
        """The id of a member's run, or of the study's where the member has none."""
        known = self._trials.get(trial)
        if known is not None and member in known.members:
            return known.members[member]
        found = self._search({"imavae.study": self._study, "imavae.trial": str(trial), "imavae.member": member})
        return str(found[0].info.run_id) if found else self._study

    def _search(self, tags: Mapping[str, str]) -> list[Run]:
        """All runs with these tags, the newest first."""
        runs: list[Run] = []
        token: str | None = None
        while token is None or token:
            page = self._client.search_runs(
                [self._experiment], where(tags), order_by=["attributes.start_time DESC"], page_token=token
            )
            runs += page
            token = page.token or ""
        return runs

    def _metrics(self, values: Iterable[tuple[str, float, int]]) -> list[Metric]:
        """MLflow's form of (name, value, epoch), with the timestamp that makes a replay add nothing."""
        from mlflow.entities import Metric

        return [Metric(name, value, self._start + epoch, epoch) for name, value, epoch in values]

    def _log(
        self, run_id: str, metrics: Mapping[str, float] = NONE, params: Row = NONE, tags: Mapping[str, str] = NONE
    ) -> None:
        """Write final values, parameters and tags."""
        from mlflow.entities import Param, RunTag

        final = self._metrics((name, value, 0) for name, value in metrics.items())
        texts = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in params.items()]
        self._send(run_id, final, texts, [RunTag(key, value) for key, value in tags.items()])

    def _send(
        self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param] = (), tags: Sequence[RunTag] = ()
    ) -> None:
        """Write in as few batches as MLflow's limits allow."""
        while metrics or params or tags:
            room = BATCH - BATCH_PARAMS - len(tags) if params else BATCH - len(tags)
            self._client.log_batch(run_id, metrics[:room], params[:BATCH_PARAMS], tags)
            metrics, params, tags = metrics[room:], params[BATCH_PARAMS:], ()


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key to the text of its value."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat
