"""The driver's record of a study: where it stands, and each trial's results as it ends.

The driver alone writes: tables, checkpoints and tracked runs, in a thread beside Ray's event loop.
"""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imavae.config.settings import StudyConfig
from imavae.data.storage import previous_of
from imavae.runs import interrupts as signals
from imavae.runs.ledger import Ledger
from imavae.runs.records import failed_record, partial_record, trial_record
from imavae.runs.session import Session, cache_of, resolve_device
from imavae.search.progress import Snapshot
from imavae.search.space import Point
from imavae.search.stopping import read_note
from imavae.search.writer import Writer
from imavae.tracking.base import PROGRESS_PERIOD

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

NO_ROOM = 2**18  # bytes; a disk with fewer is full
RETRIES = 3  # times that a trial is started again without having got any further
NOTICE_PERIOD = 1.0  # seconds between two notices of where the study stands
PATIENCE = 4.0  # seconds that what is being written gets when the study is interrupted


@dataclass
class _Running:
    """What the driver knows of a Ray trial."""

    place: Path  # of its checkpoint
    points: dict[int, Point]  # by their numbers in the study
    result: dict[str, Any] = field(default_factory=dict)
    past: dict[str, float] = field(default_factory=dict)  # work done before a restart
    reached: int = 0  # the epoch where it was when it had to be started again
    shown: float = -math.inf  # when its curves were last passed on, in seconds of the monotonic clock
    ended: bool = False


class Recorder:
    """Follows the trials: tells where the study stands, and records each trial as it ends."""

    def __init__(self, config: StudyConfig, ledger: Ledger, notify: Callable[[Snapshot], None]) -> None:
        self._config, self._outcome, self._notify = config, ledger, notify
        self._n_points = self._n_trials = 0
        self._trials: dict[str, _Running] = {}
        self._writer = Writer()
        # It evaluates beside workers that have every core: a second thread would wait for them at each operation.
        self._writer.submit(functools.partial(torch.set_num_threads, 1))
        self._start = self._said = time.monotonic()
        self._before = len(ledger.records)  # trials that an earlier process has finished

    def expect(self, n_points: int, n_trials: int) -> None:
        """Know how many points the study has, and how many Ray trials are to come."""
        self._n_points, self._n_trials = n_points, n_trials

    def started(self, trial: Trial) -> None:
        """A trial has got a worker: its first, or another one after a failure."""
        if trial.trial_id in self._trials:
            return
        points = {number: dict(values) for number, values in trial.config["points"]}
        self._trials[trial.trial_id] = _Running(self._outcome.names.ensemble(min(points)), points)

    def reported(self, trial: Trial, result: dict[str, Any]) -> None:
        """Remember a report, and pass the curves so far on to the tracker."""
        running = self._trials[trial.trial_id]
        if running.result and result["member_steps"] < running.result["member_steps"]:
            for name in ("member_steps", "train_seconds", "validate_seconds"):  # its worker was restarted
                running.past[name] = running.past.get(name, 0) + running.result[name]
        running.result = result
        now = time.monotonic()
        if now - running.shown >= PROGRESS_PERIOD:  # a checkpoint is read for it
            running.shown = now
            self._writer.submit(functools.partial(self._progress, running))

    def restarted(self, trial: Trial) -> None:
        """A trial's worker has failed or died, and gets a successor. That ends when it gets no further any more."""
        running = self._trials.get(trial.trial_id)
        epoch = running.result.get("epoch", 0) if running else 0
        if running and epoch > running.reached:
            running.reached = epoch
            trial.max_failures = trial.num_failures + RETRIES

    def ended(self, trial: Trial, failed: bool) -> None:
        """Record a trial that has completed, was stopped by the scheduler, or has failed for good."""
        running = self._trials[trial.trial_id]
        running.ended = True
        if failed:
            reason = _reason(trial, self._outcome.folder)
            self._writer.submit(functools.partial(self._record_failure, running, reason))
        else:
            self._writer.submit(functools.partial(self._record, running))

    def tell(self) -> None:
        """Notify of where the study stands, every now and then."""
        signals.check()
        now = time.monotonic()
        if now - self._said >= NOTICE_PERIOD:
            self._said = now
            self._notify(self.snapshot())

    def close(self) -> None:
        """Wait until all is written; an error in writing surfaces here."""
        self._writer.close()
        self._notify(self.snapshot())

    def abandon(self) -> None:
        """End soon: a trial that has ended and is not recorded yet will be when the study is resumed."""
        self._writer.abandon(PATIENCE)

    def total(self, *names: str) -> float:
        """Work done by all trials so far, what restarted workers did included."""
        trials = self._trials.values()
        return float(sum(t.result.get(name, 0) + t.past.get(name, 0) for t in trials for name in names))

    def snapshot(self) -> Snapshot:
        """Where the study stands now."""
        seconds = time.monotonic() - self._start
        trials = list(self._trials.values())
        work = sum(1.0 if t.ended else t.result.get("epoch", 0) / self._config.training.max_epochs for t in trials)
        records, count = list(self._outcome.records), self._config.members.count
        stopped = [len(t.points) * count - sum(t.result["alive"]) for t in trials if t.result and not t.ended]
        scores = {record.number: record.score for record in records if record.score is not None} | {
            number: score
            for t in trials
            for number, (score, *_) in zip(t.points, t.result.get("scores", ()), strict=False)
        }
        pick = max if self._config.objective.mode == "max" else min
        best = pick(scores, key=lambda number: scores[number]) if scores else None
        points: dict[int, Any] = {record.number: record.values for record in records}
        points |= {number: point for t in trials for number, point in t.points.items()}
        ended = sum(row["status"] != "finished" for record in records for row in record.members)
        return Snapshot(
            trials_total=self._n_points,
            finished=self._before + sum(len(t.points) for t in trials if t.ended),
            running=sum(len(t.points) for t in trials if not t.ended),
            members_stopped=sum(stopped) + ended,
            best_score=None if best is None else scores[best],
            best_point=None if best is None else dict(points[best]),
            member_steps_per_s=self.total("member_steps") / max(seconds, 1e-9),
            seconds_left=seconds * (self._n_trials - work) / work if work > 0 else None,
            seconds=seconds,
            metric=self._config.objective.metric,
        )

    def _progress(self, running: _Running) -> None:
        with suppress(Exception):  # all of it is written again when the trial ends
            session = self._session(running)
            for i, (number, point) in enumerate(running.points.items()):
                if not self._outcome.has(number):
                    self._outcome.tracker.progress(partial_record(session, i, number, point, self._config.objectives))

    def _session(self, running: _Running) -> Session:
        return Session.load(running.place, resolve_device("cpu"), cache_of(self._outcome.names.output_dir))

    def _record(self, running: _Running) -> None:
        session = self._session(running)
        stopped = read_note(self._outcome.names.note(min(running.points)))
        for i, (number, point) in enumerate(running.points.items()):
            if self._outcome.has(number):
                continue  # an earlier driver was cut off amid the points of a pack
            if number in stopped:
                session.stop(i)  # the state is that from before the driver's last decision
            self._outcome.add(trial_record(session, i, number, point, self._config.objectives), running.place, i)
        lock = self._outcome.names.ensemble_lock(min(running.points))
        for needless in (previous_of(running.place), lock):
            needless.unlink(missing_ok=True)

    def _record_failure(self, running: _Running, reason: str) -> None:
        for number, point in running.points.items():
            if not self._outcome.has(number):
                self._outcome.add(failed_record(number, point, reason), None, 0)


def _reason(trial: Trial, folder: Path) -> str:
    """Why a trial has failed, in one line; a disk that is full has no room for Ray's account of it."""
    if shutil.disk_usage(folder).free < NO_ROOM:
        return "no space left on device"
    told = trial.error_file if trial.storage else None  # of a trial without a place Ray can't say where
    account = Path(told or "")  # where the trial ran: in the study's folder Ray puts it later
    lines = account.read_text(errors="replace").split("\n") if account.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "its worker has ended without a word")
