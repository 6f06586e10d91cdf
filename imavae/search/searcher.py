"""Optuna's side of a study: the stored study, and the searcher through which Ray asks for trials.

Ray's own Optuna adapter knows one point and one score per trial. A trial here trains several points; this searcher
hands them out with their numbers in Optuna's study, which are their numbers everywhere, and reports each one's score.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import sqlite3
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import optuna
from filelock import FileLock
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher as RaySearcher
from sqlalchemy.exc import DatabaseError

from imavae.config.settings import SAMPLERS, Objective, StudyConfig
from imavae.errors import UserError, check_interruption, require
from imavae.runs.folder import LockedFolder, Numbered
from imavae.runs.ledger import WINNERS, Ledger
from imavae.runs.results import Results
from imavae.search.space import Parameter, Point, shared
from imavae.search.worker import read_stops
from imavae.tracking import TrialRecord
from imavae.tracking.server import LONGEST_OUTAGE, sqlite_uri
from imavae.tracking.ui import OPTUNA_DATABASE

P = ParamSpec("P")
T = TypeVar("T")

DIRECTIONS = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
WRITE_TIMEOUT = 2.0  # seconds that one attempt waits for another process's write, and that Ctrl-C waits for it


def _waiting(act: Callable[P, T]) -> Callable[P, T]:
    """Decorate a statement to be repeated while the database is locked, for as long as MLflow is waited for."""

    @functools.wraps(act)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        end = time.monotonic() + LONGEST_OUTAGE
        while True:
            try:
                return act(*args, **kwargs)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
            check_interruption()
            rule, got = f"{OPTUNA_DATABASE} can be written within {LONGEST_OUTAGE:g} s", "another process locks it"
            require(time.monotonic() < end, rule, got, "finished trials are kept: resume=true goes on")

    return call


class _Cursor(sqlite3.Cursor):
    execute = _waiting(sqlite3.Cursor.execute)
    executemany = _waiting(sqlite3.Cursor.executemany)


class _Connection(sqlite3.Connection):
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
            f"`{path} is an Optuna database` must hold, but it can't be read ({reason}); move it away: a resumed "
            "study rebuilds its part from its own records"
        ) from None


def open_study(storage: BaseStorage, name: str, objectives: Sequence[Objective], resume: bool = False) -> optuna.Study:
    """Optuna's study with the name of the study's folder; ``resume`` continues the one of an earlier driver.

    Without ``resume`` an existing study of this name is deleted: its folder is gone.
    """
    if not resume and name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    directions = [DIRECTIONS[objective.mode] for objective in objectives]
    study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=resume)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # Optuna's version is pinned
    study.set_metric_names([objective.metric for objective in objectives])  # shown by optuna-dashboard
    return study


def synchronised(
    config: StudyConfig, storage: BaseStorage, parameters: Sequence[Parameter], points: Sequence[Point], ledger: Ledger
) -> optuna.Study:
    """Optuna's study with the start ``points`` and everything that an earlier driver has asked for.

    A score is reported to Optuna before its trial is recorded, so Optuna knows at least as much as the study's folder.
    If its database was replaced, it is rebuilt from the folder.
    """
    home, name = ledger.home, ledger.folder.name
    study = open_study(storage, name, config.objectives, resume=config.resume)
    records = {record.number: record for record in ledger.records}
    known = {number: dict(values) for pack in home.asked for number, values in pack}
    known |= {number: dict(record.values) for number, record in records.items()}
    trials = study.get_trials(deepcopy=False)
    if not all(
        number < len(trials) and all(trials[number].params.get(key, value) == value for key, value in values.items())
        for number, values in known.items()
    ):
        home.notices.append(f"{OPTUNA_DATABASE} lacked points of {name}: they were restored from the study's records")
        study = open_study(storage, name, config.objectives)
        for number in range(max(known) + 1):
            if number in records:
                study.add_trial(_frozen(records[number], parameters, config))
            else:
                study.enqueue_trial(known.get(number, {}))
    for values in points[len(study.get_trials(deepcopy=False)) :]:
        study.enqueue_trial(dict(values))
    study.set_user_attr("question", config.question)
    study.set_user_attr("folder", str(ledger.folder))
    return study


def write_notes(results: Results, answer: Sequence[str]) -> None:
    """Write the notes that Optuna's page shows, if it is installed: the answer, and how to load the best trials.

    A note takes several transactions, so most trials have none: the study's says how to load any.
    """
    if not importlib.util.find_spec("optuna_dashboard"):
        return
    from optuna_dashboard import save_note

    study = optuna.load_study(study_name=results.folder.name, storage=open_storage(results.names.output_dir))
    model = f"{results.loading('load_results')}.model"
    parts = [f"Report: {results.names.report}", f"The model of trial N:\n\n```python\n{model}(trial=N)\n```"]
    save_note(study, "\n\n".join([*answer, *parts]))
    trials = study.get_trials(deepcopy=False)
    for record in results.ranked()[:WINNERS]:
        trial = optuna.trial.Trial(study, trials[record.number]._trial_id)
        save_note(trial, f"```python\n{model}(trial={record.number})\n```")


class Searcher(RaySearcher):
    """Gives Ray the points of each trial and reports their scores to Optuna, whose storage holds all lasting state."""

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        parameters: Sequence[Parameter],
        config: StudyConfig,
        waiting: Sequence[Sequence[int]],
        home: LockedFolder | None,
        exhausted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train the existing points ``waiting`` first, a list of numbers per trial; then propose new ones.

        ``home`` records the points of each trial; without it (in a dry run) no trial can end. No trial begins once the
        budget is ``exhausted``.
        """
        super().__init__()
        self._study, self._storage, self._home, self._exhausted = study, storage, home, exhausted
        self._parameters, self._settings, self._waiting = parameters, config.sampler, list(waiting)
        self._asked = len(study.get_trials(deepcopy=False))
        self._budget = 0 if self._settings.name == "grid" else config.budget.trials or 0
        self._numbers: dict[str, list[int]] = {}  # of the points of each Ray trial
        self._ended: set[int] = set()  # points without a member in training
        self.n_trials = len(waiting) + math.ceil(max(0, self._budget - self._asked) / (self._settings.pack or 1))

    def __reduce__(self) -> tuple[Any, ...]:
        return RaySearcher, ()  # Ray saves its search algorithm; the copy is never used

    def suggest(self, trial_id: str) -> Any:
        """The next trial's ``points``, a list of (number, values), or FINISHED.

        The points of a pack share the first one's settings, except for per-member ones, which are proposed for each.
        """
        if self._exhausted():
            return RaySearcher.FINISHED
        if self._waiting:
            points = [self._existing(number) for number in self._waiting.pop(0)]
        elif self._asked < self._budget:
            count = min(self._settings.pack or 1, self._budget - self._asked)
            points = [self._ask({})]
            points += [self._ask(shared(points[0][1])) for _ in range(count - 1)]
            if self._home is not None:
                self._home.ask(points)
        else:
            return RaySearcher.FINISHED
        self._numbers[trial_id] = [number for number, _ in points]
        return {"points": points}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Store each point's score as an intermediate value, up to the epoch at which it stopped."""
        stopped = self._stopped(trial_id)
        for number, (score, *_), alive in zip(self._numbers[trial_id], result["scores"], result["alive"], strict=True):
            if number not in self._ended and result["epoch"] <= stopped.get(number, math.inf):
                self._storage.set_trial_intermediate_value(self._id(number), result["epoch"], score)
            if not alive:
                self._ended.add(number)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report each point to Optuna as complete, pruned or failed."""
        stopped, numbers = self._stopped(trial_id), self._numbers.pop(trial_id)
        ended = {trial.number for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()}
        for i, number in enumerate(numbers):
            if number in ended:
                continue  # reported by an earlier driver, which died before it recorded the trial
            about = result["about"][i] if result and "about" in result else {}
            for name, value in {**about, "folder": str(self._home.path) if self._home else ""}.items():
                self._storage.set_trial_user_attr(self._id(number), name, value)
            if error or not result or "scores" not in result:
                self._study.tell(number, state=TrialState.FAIL)
            elif number in stopped and len(result["scores"][i]) == 1:  # Optuna prunes for a single objective only
                [score] = result["scores"][i]
                self._storage.set_trial_intermediate_value(self._id(number), stopped[number], score)
                self._study.tell(number, state=TrialState.PRUNED)  # its value is the last intermediate one
            else:
                self._study.tell(number, result["scores"][i])

    def save(self, checkpoint_path: str) -> None:  # Optuna's storage has everything
        pass

    def _stopped(self, trial_id: str) -> dict[int, int]:
        """Epochs at which points of a trial were stopped, by number."""
        return read_stops(self._home.names.stop_file(min(self._numbers[trial_id]))) if self._home else {}

    def _ask(self, fixed: Point) -> Numbered:
        """A new point; the sampler proposes what is not fixed."""
        self._use_sampler(self._asked)
        if fixed:
            self._study.enqueue_trial(fixed)
        trial = self._study.ask()
        self._asked += 1
        return [trial.number, self._suggested(trial)]

    def _existing(self, number: int) -> Numbered:
        """A point that Optuna's study has already, enqueued or left by an earlier driver."""
        found = self._study.get_trials(deepcopy=False)[number]
        if found.state.is_finished():
            self._ended.add(number)
            return [number, dict(found.params)]
        if found.state == TrialState.WAITING:
            self._storage.set_trial_state_values(self._id(number), state=TrialState.RUNNING)
        self._use_sampler(number)
        return [number, self._suggested(optuna.trial.Trial(self._study, self._id(number)))]

    def _id(self, number: int) -> int:
        """The storage's identifier of a point."""
        study_id = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def _use_sampler(self, number: int) -> None:
        """Propose the point of this number by a sampler whose seed follows from ``sampler.seed`` and the number.

        A resumed study therefore proposes the same points as an uninterrupted one.
        """
        seed = int(np.random.SeedSequence([self._settings.seed, number]).generate_state(1)[0])
        distributions = {parameter.key: parameter.distribution() for parameter in self._parameters}
        self._study.sampler = SAMPLERS[self._settings.name].build(self._settings, distributions, seed)

    def _suggested(self, trial: optuna.Trial) -> Point:
        point: Point = {}
        for parameter in self._parameters:
            point |= {parameter.key: parameter.suggest(trial)} if parameter.active(point) else {}
        return point


def _frozen(record: TrialRecord, parameters: Sequence[Parameter], config: StudyConfig) -> FrozenTrial:
    """A recorded trial in Optuna's form."""
    score, stopped = record.score or 0.0, record.status == "stopped" and not config.further_objectives
    epoch = max(int(row["epochs"]) for row in record.members)
    return create_trial(
        state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
        values=[score, *(record.further[objective.metric] for objective in config.further_objectives)],
        params=dict(record.values),
        distributions={p.key: p.distribution() for p in parameters if p.key in record.values},
        intermediate_values={epoch: score} if stopped else None,
    )
