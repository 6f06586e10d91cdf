"""The driver's record of a study: where it stands, and each trial's results as it ends.

The driver alone writes: tables, checkpoints and tracked runs, in a thread beside Ray's event loop.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imavae.config import StudyConfig
from imavae.errors import UserError
from imavae.run import Outcome, Session, failed_record, resolve_device
from imavae.search.progress import Snapshot
from imavae.search.space import Point
from imavae.search.trainable import STATE
from imavae.tracking import PROGRESS_PERIOD

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


@dataclass
class _Running:
    """What the driver knows of a Ray trial."""

    first: int  # number of its first point, when it has one
    points: dict[int, Point]  # by their numbers in the study
    result: dict[str, Any] = field(default_factory=dict)
    past: dict[str, float] = field(default_factory=dict)  # work done before a restart
    shown: float = -math.inf  # when its curves were last passed on, in seconds of the monotonic clock
    ended: bool = False


class Recorder:
    """Follows the trials: tells where the study stands, and records each trial as it ends."""

    def __init__(
        self, config: StudyConfig, outcome: Outcome, n_points: int, n_trials: int, notify: Callable[[Snapshot], None]
    ) -> None:
        self._config, self._outcome, self._notify = config, outcome, notify
        self._n_points, self._n_trials = n_points, n_trials
        self._trials: dict[str, _Running] = {}
        # It evaluates beside workers that have every core: a second thread would wait for them at each operation.
        self._writer = ThreadPoolExecutor(max_workers=1, initializer=torch.set_num_threads, initargs=(1,))
        self._written: list[Future[None]] = []
        self._start = self._said = time.monotonic()
        self.failures: list[str] = []

    def started(self, trial: Trial) -> None:
        """Number the trial's points: a grid's by their place in it, others by their arrival."""
        if trial.trial_id in self._trials:
            return
        listed = trial.config.get("points")
        if listed is None:
            number = len(self._trials)
            points = {number: dict(trial.config)}
        else:
            points = {number: dict(values) for number, values in listed}
        self._trials[trial.trial_id] = _Running(min(points), points)

    def reported(self, trial: Trial, result: dict[str, Any]) -> None:
        """Remember a report, and pass the curves so far on to the tracker."""
        running = self._trials[trial.trial_id]
        if running.result and result["member_steps"] < running.result["member_steps"]:
            for name in ("member_steps", "train_seconds", "validate_seconds"):  # its worker was restarted
                running.past[name] = running.past.get(name, 0) + running.result[name]
        running.result = result
        now = time.monotonic()
        if trial.checkpoint and now - running.shown >= PROGRESS_PERIOD:  # a checkpoint is read for it
            running.shown = now
            self._writer.submit(self._progress, running, Path(trial.checkpoint.path))

    def ended(self, trial: Trial, failed: bool) -> None:
        """Record a trial that has completed, was stopped by the scheduler, or has failed for good."""
        running = self._trials[trial.trial_id]
        running.ended = True
        if failed or not trial.checkpoint:
            reason = str(trial.get_pickled_error() or "no checkpoint").strip().splitlines()[-1]
            self.failures.append(reason)
            self._written.append(self._writer.submit(self._record_failure, running))
        else:
            self._written.append(self._writer.submit(self._record, running, Path(trial.checkpoint.path)))

    def tell(self) -> None:
        """Notify of where the study stands, once a second."""
        now = time.monotonic()
        if now - self._said >= 1:
            self._said = now
            self._notify(self.snapshot())

    def close(self) -> None:
        """Wait until all is written; an error in writing surfaces here."""
        self._writer.shutdown(wait=True)
        self._notify(self.snapshot())
        for written in self._written:
            written.result()

    def total(self, *names: str) -> float:
        """Work done by all trials so far, what restarted workers did included."""
        trials = self._trials.values()
        return float(sum(t.result.get(name, 0) + t.past.get(name, 0) for t in trials for name in names))

    def snapshot(self) -> Snapshot:
        """Where the study stands now."""
        seconds = time.monotonic() - self._start
        trials = list(self._trials.values())
        work = sum(1.0 if t.ended else t.result.get("epoch", 0) / self._config.training.max_epochs for t in trials)
        count = self._config.members.count
        stopped = [len(t.points) * count - t.result["active"] for t in trials if t.result and not t.ended]
        scores = {
            number: score for t in trials for number, score in zip(t.points, t.result.get("scores", ()), strict=False)
        }
        pick = max if self._config.objective.mode == "max" else min
        best = pick(scores, key=lambda number: scores[number]) if scores else None
        points = {number: point for t in trials for number, point in t.points.items()}
        ended = sum(row["status"] != "finished" for r in self._outcome.records for row in r.members)
        return Snapshot(
            trials_total=self._n_points,
            finished=sum(len(t.points) for t in trials if t.ended),
            running=sum(len(t.points) for t in trials if not t.ended),
            members_stopped=sum(stopped) + ended,
            best_score=None if best is None else scores[best],
            best_point=None if best is None else dict(points[best]),
            member_steps_per_s=self.total("member_steps") / max(seconds, 1e-9),
            seconds_left=seconds * (self._n_trials - work) / work if work > 0 else None,
            seconds=seconds,
            metric=self._config.objective.metric,
        )

    def _progress(self, running: _Running, checkpoint: Path) -> None:
        try:
            session = Session.load(checkpoint / STATE, resolve_device("cpu"))
        except UserError:
            return  # Ray has replaced it by a later one already, which will be shown
        for i, (number, point) in enumerate(running.points.items()):
            self._outcome.tracker.progress(session.partial_record(i, number, point, self._config.objective))

    def _record(self, running: _Running, checkpoint: Path) -> None:
        folder = self._outcome.folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        kept = folder / f"ensemble-{running.first:03d}.pt"
        shutil.copyfile(checkpoint / STATE, kept)
        session = Session.load(kept, resolve_device("cpu"))
        for i, (number, point) in enumerate(running.points.items()):
            self._outcome.add(session.record(i, number, point, self._config.objective), kept, i)

    def _record_failure(self, running: _Running) -> None:
        for number, point in running.points.items():
            self._outcome.add(failed_record(number, point), None, 0)
