"""The driver of a study: it hands Ray the trials, and its callback records them.

Only the driver writes records, tables and tracked runs; it does so in a thread beside Ray's event loop.
"""

from __future__ import annotations

import gc
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import ray
import torch
from optuna.storages import InMemoryStorage
from ray import tune
from ray.tune import Callback
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial

from imavae.config.mapping import to_mapping
from imavae.config.settings import StudyConfig, base_of
from imavae.data.storage import previous_of
from imavae.errors import UserError, check_interruption, interruption_of, require
from imavae.runs.ledger import Ledger
from imavae.runs.records import partial_record, trial_record
from imavae.runs.session import Session, cache_of, resolve_device
from imavae.search import cluster
from imavae.search.searcher import Searcher
from imavae.search.space import Parameter, Point, packs_of
from imavae.search.stopping import Stopping
from imavae.search.stored import Copy, remembered
from imavae.search.worker import REMEDY, WORK, read_stops, trainable
from imavae.tracking import PROGRESS_PERIOD, TrialRecord
from imavae.training.checkpoint import SEAL

FULL_DISK = 2**18  # free bytes below which a disk counts as full
KILLED = ("Worker unexpectedly exits", "killing policy")  # in Ray's reports: by the system, or by Ray
RETRIES = 3  # restarts of a trial that gets no further
SNAPSHOT_PERIOD = 1.0  # seconds between two snapshots
COPY_PERIOD = 2.0  # seconds between two updates of Optuna's database
LAST_WRITE_TIMEOUT = 4.0  # seconds that the write in progress gets when the study is interrupted


class RunningTrial(NamedTuple):
    """Progress of a trial that has not ended."""

    number: int
    point: Point
    epoch: int  # of its last validation; 0 before the first
    active: int  # members that still train
    score: float | None  # so far


@dataclass(frozen=True)
class Snapshot:
    """Progress of a study at one moment."""

    trials_total: int
    finished: int  # trials that have ended, with or without a result
    running: Sequence[RunningTrial]
    stopped: int  # trials that the scheduler has ended early
    members: int  # of each trial
    best_score: float | None  # None before the first report
    best_point: dict[str, object] | None  # values of the best trial by dotted key
    member_steps_per_s: float
    seconds_left: float | None  # None if not known yet
    seconds: float  # since the start
    metric: str  # of the score, such as val/mcc


@dataclass
class _Running:
    """A Ray trial as the driver knows it."""

    checkpoint: Path
    points: dict[int, Point]  # by number in the study
    result: dict[str, Any] = field(default_factory=dict)  # last report
    past: dict[str, float] = field(default_factory=dict)  # work of earlier workers
    reached: int = 0  # epoch of the last restart
    shown: float = field(default_factory=time.monotonic)  # time at which the tracker last got the curves, or the start
    reported: float = 0.0  # time of the last report or start
    stuck: int = 0  # times that it was, since it last got further
    ended: bool = False

    def keep_work(self) -> None:
        """Add the work of the last report to ``past``."""
        self.past = {name: self.past.get(name, 0) + self.result.get(name, 0) for name in WORK}


class Recorder(Callback):
    """Follows a study's trials in the driver: notifies of progress, and records each trial when it ends."""

    def __init__(self, config: StudyConfig, ledger: Ledger, notify: Callable[[Snapshot], None]) -> None:
        self._config, self._ledger, self._notify = config, ledger, notify
        self.n_trials = 0  # of Ray, to come
        self.copy: Callable[..., None] = lambda *_: None  # what Optuna knows, into its database
        self._trials: dict[str, _Running] = {}
        # One thread for torch: workers have every core, and a second thread would wait for them at each operation.
        self._writer = ThreadPoolExecutor(max_workers=1, initializer=torch.set_num_threads, initargs=(1,))
        self._writes: list[Future[None]] = []  # pending or failed
        self._opened: Future[None] | None = None  # the tracker
        self._start = self._notified = time.monotonic()
        self._before = len(ledger.records)  # trials that an earlier process has finished

    def __reduce__(self) -> tuple[Any, ...]:
        return Callback, ()  # Ray saves its callbacks; the copy is never used

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if trial.trial_id not in self._trials:
            points = {number: dict(values) for number, values in trial.config["points"]}
            self._trials[trial.trial_id] = _Running(self._ledger.names.ensemble(min(points)), points)
        self._trials[trial.trial_id].reported = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a report, and pass the curves on to the tracker every now and then."""
        running = self._trials[trial.trial_id]
        if running.result and result["member_steps"] < running.result["member_steps"]:
            running.keep_work()  # the worker was restarted
        if result["epoch"] > running.result.get("epoch", 0):
            running.stuck = 0
        running.result, running.reported = result, time.monotonic()
        self._opened = self._opened or self._write(self._ledger.tracker.open)  # not before: it would delay the workers
        now = time.monotonic()
        if now - running.shown >= PROGRESS_PERIOD:  # it reads a checkpoint
            running.shown = now
            self._write(self._track_progress, running)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Grant a failed trial more restarts, as long as it gets further between them."""
        running = self._trials.get(trial.trial_id)
        epoch = running.result.get("epoch", 0) if running else 0
        if running and epoch > running.reached:
            running.reached = epoch
            trial.max_failures = trial.num_failures + RETRIES

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(trial, self._record)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record a trial that has failed for good, possibly before it got a worker: its node may be lost."""
        self.on_trial_start(iteration, trials, trial)
        rule = f"no validation within cluster.stuck_after={self._config.cluster.stuck_after} minutes, twice"
        stuck = self._trials[trial.trial_id].stuck > 1
        self._end(trial, self._record_failure, rule if stuck else failure_reason(trial, self._ledger.folder))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Notify of progress every now and then; raise an interrupt that a library has swallowed, or no tracker."""
        check_interruption()
        if error := cluster.lost():
            raise error
        if self._opened and self._opened.done():
            self._opened.result()
        now = time.monotonic()
        if now - self._notified >= SNAPSHOT_PERIOD:
            self._notified = now
            self._notify(self.snapshot())
            self._kill_stuck([trial for trial in trials if trial.status == Trial.RUNNING])

    def _kill_stuck(self, trials: list[Trial]) -> None:
        """Kill the workers of trials that get no further: Ray restarts them from their checkpoints, or they fail."""
        limit = 60 * (self._config.cluster.stuck_after or math.inf)
        for trial in trials:
            running = self._trials[trial.trial_id]
            if time.monotonic() - running.reported > limit and (actor := trial.temporary_state.ray_actor):
                running.reported, running.stuck = time.monotonic(), running.stuck + 1
                if running.stuck > 1:
                    trial.max_failures = trial.num_failures
                ray.kill(actor)

    def close(self) -> None:
        """Wait until everything is written, and raise the first error of a write."""
        self._write(self.copy)
        self._writer.shutdown()
        for write in self._writes:
            write.result()
        self._notify(self.snapshot())

    def abandon(self) -> None:
        """Drop all writes but the one in progress, and wait for that a few seconds; a resumed study repeats them."""
        self._writer.shutdown(wait=False, cancel_futures=True)
        wait(self._writes, LAST_WRITE_TIMEOUT)

    def total(self, *names: str) -> float:
        """Sum of these kinds of work over all trials, including that of workers which were restarted."""
        trials = self._trials.values()
        return float(sum(t.result.get(name, 0) + t.past.get(name, 0) for t in trials for name in names))

    def snapshot(self) -> Snapshot:
        seconds, count = time.monotonic() - self._start, self._config.members.count
        trials, records = list(self._trials.values()), list(self._ledger.records)
        work = sum(1.0 if t.ended else t.result.get("epoch", 0) / self._config.training.max_epochs for t in trials)
        scores = {record.number: record.score for record in records if record.score is not None}
        points: dict[int, Any] = {record.number: record.values for record in records}
        for trial in trials:
            points |= trial.points
            scores |= {n: s for n, (s, *_) in zip(trial.points, trial.result.get("scores", ()), strict=False)}
        pick = max if self._config.objective.mode == "max" else min
        best = pick(scores, key=lambda number: scores[number], default=None)
        running = [
            RunningTrial(number, point, trial.result.get("epoch", 0), active, scores.get(number))
            for trial in trials
            if not trial.ended
            for (number, point), active in zip(
                trial.points.items(), trial.result.get("alive", [count] * len(trial.points)), strict=True
            )
        ]
        return Snapshot(
            trials_total=self._ledger.home.state.points,
            finished=self._before + sum(len(t.points) for t in trials if t.ended),
            running=running,
            stopped=sum(record.status == "stopped" for record in records),
            members=count,
            best_score=None if best is None else scores[best],
            best_point=None if best is None else dict(points[best]),
            member_steps_per_s=self.total("member_steps") / max(seconds, 1e-9),
            seconds_left=seconds * (self.n_trials - work) / work if work > 0 else None,
            seconds=seconds,
            metric=self._config.objective.metric,
        )

    def _end(self, trial: Trial, record: Callable[..., None], *arguments: Any) -> None:
        running = self._trials[trial.trial_id]
        running.ended = True
        running.keep_work()
        running.result = {"scores": running.result.get("scores", ())}  # needed until the trial is recorded
        for statistics in (trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps):
            statistics.clear()  # Ray keeps those of each ended trial
        self._write(record, running, *arguments)

    def _write(self, action: Callable[..., None], *arguments: Any) -> Future[None]:
        """Queue an action for the writing thread."""
        self._writes = [write for write in self._writes if not write.done() or write.exception()]
        self._writes.append(self._writer.submit(action, *arguments))
        return self._writes[-1]

    def _session(self, running: _Running) -> Session:
        return Session.load(running.checkpoint, resolve_device("cpu"), cache_of(self._ledger.names.output_dir))

    def _left(self, running: _Running) -> Iterator[tuple[int, int, Point]]:
        """Index, number and values of the points without a record: an earlier driver may have died amid a pack."""
        for i, (number, point) in enumerate(running.points.items()):
            if not self._ledger.has(number):
                yield i, number, point

    def _track_progress(self, running: _Running) -> None:
        self.copy(COPY_PERIOD)
        with suppress(Exception):  # all of it is written again when the trial ends
            session = self._session(running)
            for part in self._left(running):
                self._ledger.tracker.progress(partial_record(session, *part, self._config.objectives))

    def _record(self, running: _Running) -> None:
        session = self._session(running)
        names, first = self._ledger.names, min(running.points)
        stopped = read_stops(names.stop_file(first))
        for i, number, point in self._left(running):
            if number in stopped:
                session.stop(i)  # the checkpoint is older than the driver's last decision
            self._ledger.add(trial_record(session, i, number, point, self._config.objectives), running.checkpoint, i)
        for leftover in (previous_of(running.checkpoint), names.ensemble_lock(first)):
            leftover.unlink(missing_ok=True)
        self.copy(COPY_PERIOD)

    def _record_failure(self, running: _Running, reason: str) -> None:
        for _, number, point in self._left(running):
            self._ledger.add(TrialRecord(number, point, "failed", None, [], [], failure=reason), None, 0)
        self.copy(COPY_PERIOD)


def failure_reason(trial: Trial, folder: Path) -> str:
    """Why a trial of the study in ``folder`` has failed, in one line."""
    if shutil.disk_usage(folder).free < FULL_DISK:  # Ray's report may be missing then
        return "no space left on device"
    # On the node where the trial ran; Ray copies it into the study's folder later.
    report = Path((trial.storage and trial.error_file) or "")
    text = report.read_text(errors="replace") if report.is_file() else ""
    if any(sign in text for sign in KILLED):
        return "its worker was killed, probably because the memory was short; lower members, data or trials at a time"
    lines = text.split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "its worker has ended without a message")


def train(
    config: StudyConfig,
    parameters: list[Parameter],
    points: list[Point],
    ledger: Ledger,
    slots: int,
    notify: Callable[[Snapshot], None],
    say: Callable[[str], None],
) -> None:
    """Train what is left of a study on the running Ray; an interrupt is noted in the ledger."""
    recorder, copy = Recorder(config, ledger, notify), Copy(config, ledger.folder, ledger.home.state.created)
    try:
        searcher, stopping = _plan(config, parameters, points, ledger, slots, copy)
        recorder.copy = partial(copy.update, searcher.study)
        for notice in ledger.home.notices:
            say(notice)
        if searcher.n_trials:
            recorder.n_trials = searcher.n_trials
            say("training")
            with patch("ray.air._internal.usage.tag_callbacks"):  # it imports MLflow, for statistics that are off
                _tuner(config, searcher, stopping, slots, ledger, recorder).fit()
        recorder.close()
        if copy.problem:
            say(copy.problem)
        if stopping.spent:
            trained, asked = len(ledger.records), ledger.home.state.points
            ledger.spent = stopping.spent if trained < asked else None
            say(f"{stopping.spent}: {trained} of {asked} points have ended")
    except KeyboardInterrupt as error:
        ledger.interrupted = interruption_of(error)
        recorder.abandon()
        error.__traceback__ = None  # it refers to Ray's controller, whose end ends the workers
        gc.collect()
    except BaseException:
        with suppress(Exception):
            recorder.close()  # write what has finished
        ledger.close("failed")
        raise
    finally:
        at_once = min(slots, recorder.n_trials or 1)
        ledger.work_seconds = recorder.total("train_seconds", "validate_seconds") / at_once


def _plan(
    config: StudyConfig, parameters: list[Parameter], points: list[Point], ledger: Ledger, slots: int, copy: Copy
) -> tuple[Searcher, Stopping]:
    """Plan a new study, or what an earlier driver has left of it.

    A point that was asked for and has not ended keeps its number, its values and its ensemble.
    """
    home, storage = ledger.home, InMemoryStorage()
    study = remembered(config, storage, parameters, points, ledger, copy.trials())
    trials = study.get_trials(deepcopy=False)
    n_points = len(points) if config.sampler.name == "grid" else config.budget.trials or 0
    packed = {number for pack in home.asked for number, _ in pack} | {record.number for record in ledger.records}
    free = [number for number in range(min(len(trials), n_points)) if number not in packed]
    known = [number for number in free if number < len(points)]
    dealt = packs_of(config, parameters, [points[number] for number in known], slots)
    packs = [[known[i] for i in pack] for pack in dealt]
    # A driver that died while it asked for a pack has left a run of consecutive numbers.
    asked = enumerate(number for number in free if number >= len(points))
    packs += [[number for _, number in run] for _, run in itertools.groupby(asked, key=lambda item: item[1] - item[0])]
    for pack in sorted(packs):
        home.ask([[n, trials[n].system_attrs.get("fixed_params", trials[n].params)] for n in pack])
    numbers = [[number for number, _ in pack] for pack in home.asked]
    waiting = sorted(pack for pack in numbers if not all(ledger.has(n) or n >= n_points for n in pack))
    _rename_damaged(ledger, waiting)
    stopping = Stopping(config, ledger.names)
    stopping.catch_up(ledger)
    home.state.points = n_points
    home.save_state()
    return Searcher(study, storage, parameters, config, waiting, home, stopping.exhausted), stopping


def _rename_damaged(ledger: Ledger, packs: Sequence[Sequence[int]]) -> None:
    """Rename damaged checkpoints and stop files; an ensemble continues from its previous checkpoint or its start."""
    checkpoints = [path for pack in packs if (path := ledger.names.ensemble(min(pack))).exists()]
    readers: dict[Path, Callable[[Path], object]] = dict.fromkeys(checkpoints, SEAL.read)
    numbers = {min(number for number, _ in pack): {number for number, _ in pack} for pack in ledger.home.asked}

    def read_own(path: Path) -> None:
        own, rule = numbers.get(int(path.stem), set()) >= read_stops(path).keys(), "a stop file names its own points"
        require(own, rule, path, REMEDY)

    for path, read in (readers | dict.fromkeys(ledger.names.stop_files(), read_own)).items():
        try:
            read(path)
        except UserError as error:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            ledger.home.notices.append(f"{error} (it was renamed to {aside.name})")


def _tuner(
    config: StudyConfig, searcher: Searcher, stopping: Stopping, slots: int, ledger: Ledger, recorder: Recorder
) -> Any:
    objectives = [asdict(objective) for objective in config.objectives]
    base, folder, asked = to_mapping(base_of(config)), str(ledger.folder), config.cluster
    bound = tune.with_parameters(trainable, base=base, objectives=objectives, folder=folder)
    class_cache.DEFAULT_ENV_VARS.clear()  # with a variable of Tune's own, its actors could not use Ray's first workers
    resources = {"cpu": asked.cpus_per_trial, "gpu": asked.gpus_per_trial, **(asked.resources or {})}
    return tune.Tuner(
        tune.with_resources(bound, resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=stopping,
            num_samples=searcher.n_trials,
            max_concurrent_trials=slots,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=ledger.names.ray.name,
            storage_path=folder,
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
