"""Optuna's study of a study: in memory for the sampler, with a copy in ``optuna.db``.

The copy is what Optuna's page shows, and what a resumed study remembers beyond its own records: the state of a sampler
and the curves of trials. A statement of SQL takes milliseconds, so trials do not wait for it.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import sqlite3
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DatabaseError

from imavae.config.settings import Objective, StudyConfig
from imavae.errors import UserError, check_interruption, require
from imavae.runs.ledger import WINNERS, Ledger
from imavae.runs.results import Results
from imavae.search.space import Parameter, Point
from imavae.tracking import TrialRecord
from imavae.tracking.server import PAGE, lengthen_log, sqlite_uri
from imavae.tracking.ui import OPTUNA_DATABASE

CREATED = "created"  # attribute of a study: the time at which its folder was made

P = ParamSpec("P")
T = TypeVar("T")

DIRECTIONS = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
WRITE_TIMEOUT = 2.0  # seconds that one attempt waits for another process's write, and that Ctrl-C waits for it
LONGEST_LOCK = 60.0  # seconds that a statement waits for it, time after time


def open_study(storage: BaseStorage, name: str, objectives: Sequence[Objective]) -> optuna.Study:
    """The study of this name in ``storage``, which is made if it is not there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = [DIRECTIONS[objective.mode] for objective in objectives]
    study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # Optuna's version is pinned
    study.set_metric_names([objective.metric for objective in objectives])  # shown by optuna-dashboard
    return study


def remembered(
    config: StudyConfig,
    storage: BaseStorage,
    parameters: Sequence[Parameter],
    points: Sequence[Point],
    ledger: Ledger,
    earlier: Sequence[FrozenTrial],
) -> optuna.Study:
    """A new study with the start ``points`` and everything that an earlier driver has asked for.

    ``earlier`` are the trials of its copy, which is seconds behind; they are left out if they disagree with the folder.
    """
    home, study = ledger.home, open_study(storage, ledger.folder.name, config.objectives)
    records = {record.number: record for record in ledger.records}
    known = {number: dict(values) for pack in home.asked for number, values in pack}
    known |= {number: dict(record.values) for number, record in records.items()}

    def agrees(trial: FrozenTrial) -> bool:
        return all(trial.params.get(key, value) == value for key, value in known.get(trial.number, {}).items())

    trials = list(earlier) if all(map(agrees, earlier)) else []
    for trial in [trial for trial in trials if trial.number in known]:
        number, values, ended = trial.number, known[trial.number], trial.state.is_finished()
        if number in records and (not ended or (records[number].score is not None and trial.state == TrialState.FAIL)):
            trials[number] = _frozen(records[number], parameters, config)  # the copy lags behind
        elif number not in records and (
            trial.state == TrialState.FAIL or (not ended and not trial.params.items() >= values.items())
        ):
            trials[number] = create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": values})
        trials[number].system_attrs = {**trial.system_attrs, **trials[number].system_attrs}  # some samplers' memory
    if records and not trials:
        home.notices.append(f"{OPTUNA_DATABASE} lacked {ledger.folder.name}: it was restored from the study's records")
    study.add_trials(trials)
    for number in range(len(trials), max(known, default=-1) + 1):
        if number in records:
            study.add_trial(_frozen(records[number], parameters, config))
        else:
            study.enqueue_trial(known.get(number, {}))
    for values in points[len(study.get_trials(deepcopy=False)) :]:
        study.enqueue_trial(dict(values))
    return study


def _frozen(record: TrialRecord, parameters: Sequence[Parameter], config: StudyConfig) -> FrozenTrial:
    """A recorded trial in Optuna's form."""
    distributions = {p.key: p.distribution() for p in parameters if p.key in record.values}
    if record.score is None:
        return create_trial(state=TrialState.FAIL, params=dict(record.values), distributions=distributions)
    stopped = record.status == "stopped" and not config.further_objectives
    epoch = max(int(row["epochs"]) for row in record.members)
    return create_trial(
        state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
        values=[record.score, *(record.further[objective.metric] for objective in config.further_objectives)],
        params=dict(record.values),
        distributions=distributions,
        intermediate_values={epoch: record.score} if stopped else None,
    )


class Copy:
    """The copy of a study in the database of its output folder.

    A database that can't be used costs nothing but the copy: ``problem`` says why.
    """

    def __init__(self, config: StudyConfig, folder: Path, created: float) -> None:
        """The time at which ``folder`` was ``created`` tells its study from an earlier one of the same name."""
        self._config, self._folder, self._created, self.problem = config, folder, created, ""
        self._study: optuna.Study | None = None
        self._updated = -math.inf  # time of the last update

    def trials(self) -> list[FrozenTrial]:
        """The trials of an earlier driver of this study."""
        if self._config.resume:
            with suppress(Exception):  # told when it is written
                study = optuna.load_study(study_name=self._folder.name, storage=open_storage(self._output_dir))
                if study.user_attrs.get(CREATED, self._created) == self._created:
                    return study.get_trials()
        return []

    def update(self, study: optuna.Study, period: float = 0.0) -> None:
        """Copy what is new since the last update, unless that was within a ``period`` in seconds.

        Each statement is a transaction, but a trial that has ended takes one, if it is new to the copy.
        """
        if not self.problem and time.monotonic() - self._updated >= period:
            self._updated = time.monotonic()
            try:
                self._update(study.get_trials(deepcopy=False))
            except Exception as error:  # a copy is worth no trial
                name = self._folder.name
                reason = str(getattr(error.__cause__, "orig", error)).split("\n")[0]
                self.problem = (
                    f"{OPTUNA_DATABASE} lacks trials of {name} ({reason}): `resume=true name={name}` adds them"
                )

    @functools.cached_property
    def _storage(self) -> BaseStorage:  # opened when the first trial has reported: it would delay the workers
        return open_storage(self._output_dir)

    @property
    def _output_dir(self) -> Path:
        return Path(self._config.output_dir)

    def _open(self, afresh: bool) -> optuna.Study:
        if afresh and self._folder.name in optuna.get_all_study_names(self._storage):
            optuna.delete_study(study_name=self._folder.name, storage=self._storage)
        study = open_study(self._storage, self._folder.name, self._config.objectives)
        study.set_user_attr("question", self._config.question)
        study.set_user_attr("folder", str(self._folder))
        study.set_user_attr(CREATED, self._created)
        return study

    def _update(self, trials: Sequence[FrozenTrial]) -> None:
        self._study = self._study or self._open(afresh=not self._config.resume)
        there = self._study.get_trials(deepcopy=False)
        if len(there) > len(trials) or not all(map(_continues, there, trials)):
            self._study, there = self._open(afresh=True), []
        for old, new in zip(there, trials, strict=False):
            if not old.state.is_finished():
                self._renew(old, new)
        for new in trials[len(there) :]:
            self._storage.create_new_trial(self._study._study_id, new)

    def _renew(self, old: FrozenTrial, new: FrozenTrial) -> None:
        trial, storage = old._trial_id, self._storage
        for name in new.params.keys() - old.params.keys():
            law = new.distributions[name]
            storage.set_trial_param(trial, name, law.to_internal_repr(new.params[name]), law)
        for epoch, score in new.intermediate_values.items() - old.intermediate_values.items():
            storage.set_trial_intermediate_value(trial, epoch, score)
        for name in new.user_attrs.keys() - old.user_attrs.keys():
            storage.set_trial_user_attr(trial, name, new.user_attrs[name])
        for name in new.system_attrs.keys() - old.system_attrs.keys():
            storage.set_trial_system_attr(trial, name, new.system_attrs[name])
        if old.state == TrialState.WAITING != new.state:
            storage.set_trial_state_values(trial, TrialState.RUNNING)  # which notes its start
        if new.state.is_finished():
            storage.set_trial_state_values(trial, new.state, new.values)


def _continues(old: FrozenTrial, new: FrozenTrial) -> bool:
    """True if ``new`` is a later state of the trial ``old``."""
    return new.params.items() >= old.params.items() and (not old.state.is_finished() or old.values == new.values)


def _waiting(act: Callable[P, T]) -> Callable[P, T]:
    """Decorate a statement to be repeated while the database is locked."""

    @functools.wraps(act)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        end = time.monotonic() + LONGEST_LOCK
        while True:
            try:
                return act(*args, **kwargs)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
            check_interruption()
            rule, got = f"{OPTUNA_DATABASE} can be written within {LONGEST_LOCK:g} s", "another process locks it"
            require(time.monotonic() < end, rule, got, "finished trials are kept: resume=true goes on")
            time.sleep(0.05)  # some statements do not wait for the lock by themselves

    return call


class _Cursor(sqlite3.Cursor):
    execute = _waiting(sqlite3.Cursor.execute)
    executemany = _waiting(sqlite3.Cursor.executemany)


class _Connection(sqlite3.Connection):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        execute = self.cursor().execute  # waits for a lock
        if not execute("PRAGMA page_count").fetchone()[0]:  # a new database
            execute(f"PRAGMA page_size = {PAGE}")
            execute("PRAGMA journal_mode = WAL")
        if execute("PRAGMA journal_mode").fetchone()[0] == "wal":  # else of an earlier version
            lengthen_log(execute)

    commit = _waiting(sqlite3.Connection.commit)

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)


def open_storage(output_dir: Path) -> BaseStorage:
    """Database of all studies in an output folder. Raises UserError for a damaged file."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = output_dir.resolve() / OPTUNA_DATABASE
    try:
        with FileLock(path.with_name(f".{OPTUNA_DATABASE}.lock")):  # one process alone creates the tables
            arguments = {"connect_args": {"timeout": WRITE_TIMEOUT, "factory": _Connection}}
            return optuna.storages.get_storage(optuna.storages.RDBStorage(sqlite_uri(path), arguments))
    except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"`{path} is an Optuna database` must hold, but it can't be read ({reason}); move it and the files "
            f"{path.name}-* away: a resumed study rebuilds its part from its own records"
        ) from None


def write_notes(results: Results, answer: Sequence[str]) -> None:
    """Write the notes that Optuna's page shows, if it is installed: the answer, and how to load the best trials.

    A note takes several transactions, so most trials have none: the study's says how to load any.
    """
    if not importlib.util.find_spec("optuna_dashboard"):
        return
    with suppress(Exception):  # the study has said what its copy lacks
        _write_notes(results, answer)


def _write_notes(results: Results, answer: Sequence[str]) -> None:
    from optuna_dashboard import save_note

    study = optuna.load_study(study_name=results.folder.name, storage=open_storage(results.names.output_dir))
    model = f"{results.loading('load_results')}.model"
    parts = [f"Report: {results.names.report}", f"The model of trial N:\n\n```python\n{model}(trial=N)\n```"]
    save_note(study, "\n\n".join([*answer, *parts]))
    trials = study.get_trials(deepcopy=False)
    for record in results.ranked()[:WINNERS]:
        trial = optuna.trial.Trial(study, trials[record.number]._trial_id)
        save_note(trial, f"```python\n{model}(trial={record.number})\n```")
