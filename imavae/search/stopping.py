"""Early stopping of points: by Ray's rules (ASHA, median), applied to each point of a trial instead of to the trial,
and by the study's budget of time.

A worker waits after each report until the driver has handled it. The driver decides then and writes a stop file into
the study's folder, which the worker reads before it trains on: it freezes the members of stopped points and trains the
others. A trial ends when all of its points have stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from imavae.config.settings import Objective, StudyConfig
from imavae.runs.folder import RunFolder
from imavae.runs.ledger import Ledger
from imavae.runs.session import Session
from imavae.search.worker import read_stops, write_stops
from imavae.training.checkpoint import SEAL

Report = tuple[int, list[float], int]  # epoch, the point's scores, its members that still train


class PointTrial(NamedTuple):
    """The part of a Ray trial that its rules read, for a point."""

    trial_id: str


class Stopping(FIFOScheduler):
    """Ray scheduler that trains trials in the order of their creation and stops points."""

    _supports_buffered_results = False  # each report is judged before its worker goes on

    def __init__(self, config: StudyConfig, names: RunFolder) -> None:
        """Read the stop files that an earlier driver has left in the study's folder."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._names, self._rule, self._objectives = names, _rule(config), config.objectives
        self._judged: dict[int, int] = {}  # last epoch at which each point was judged
        self._ended: set[int] = set()  # points whose members have all stopped by themselves
        self.stopped: dict[int, int] = {}  # epoch at which each stopped point was stopped
        self._config, self._start = config, time.monotonic()
        self.spent: str | None = None  # what has ended the study before its last point
        for path in names.stop_files():
            self.stopped |= read_stops(path)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Judge the points of a report, and stop the trial if no point is left to train."""
        numbers = [number for number, _ in trial.config["points"]]
        points = list(zip(numbers, result["scores"], result["alive"], strict=True))
        new = [number for number, scores, alive in points if self._judge(number, result["epoch"], scores, alive)]
        if self._over(result):
            rest = [number for number, _, alive in points if alive and number not in self.stopped]
            self.stopped |= dict.fromkeys(rest, result["epoch"])
            new += rest
        if new:
            self._write(numbers)
        left = any(alive and number not in self.stopped for number, _, alive in points)
        return str(TrialScheduler.CONTINUE if left or not new else TrialScheduler.STOP)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first trial that waits for a worker, also after a restart. Ray would look at the ended ones, too."""
        waiting = [trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING]
        return min(waiting, key=lambda trial: min(number for number, _ in trial.config["points"]), default=None)

    def exhausted(self) -> bool:
        """Whether the hours are over or the target is reached: no more points are proposed."""
        hours = self._config.budget.hours
        if hours is not None and time.monotonic() - self._start > 3600 * hours:
            self.spent = self.spent or f"budget.hours={hours:g} are over"
        return self.spent is not None

    def _over(self, result: dict[str, Any]) -> bool:
        """Return whether the trial of a report is to end now."""
        minutes = self._config.budget.trial_minutes
        if result["epoch"] >= self._config.training.settled:
            self._reach([scores[0] for scores in result["scores"]])
        return self.exhausted() or (minutes is not None and result["seconds"] > 60 * minutes)

    def _reach(self, scores: Sequence[float]) -> None:
        """Note that the study is over if one of these scores reaches its target."""
        target, sign = self._config.budget.target, 1 if self._config.objective.mode == "max" else -1
        if target is not None and any(sign * score >= sign * target for score in scores):
            self.spent = self.spent or f"budget.target={target:g} is reached"

    def catch_up(self, ledger: Ledger) -> None:
        """Show the rule what the points of an earlier driver have reported, by their checkpoints.

        The last report of a point that has not ended is judged: the earlier driver may not have come to it.
        """
        for record in ledger.records:
            if record.score is not None:
                self._reach([record.score])
        for pack in sorted([number for number, _ in pack] for pack in ledger.home.asked):
            path = SEAL.newest(self._names.ensemble(min(pack))) if self._rule else None
            if path is None:
                continue
            reports = _reports(Session.load(path, torch.device("cpu")), self._objectives)
            for number, mine in zip(pack, reports, strict=True):
                stopped_at = self.stopped.get(number)
                # Up to the report at which it was stopped, the point had members in training.
                known = [(epoch, scores, alive or int(epoch == stopped_at)) for epoch, scores, alive in mine]
                last = [] if ledger.has(number) or stopped_at is not None else known[-1:]
                for report in known[: len(known) - len(last)]:
                    self._pass_on(number, *report)
                if any(self._judge(number, *report) for report in last):
                    self._write(pack)

    def _write(self, numbers: Sequence[int]) -> None:
        """Tell the worker that trains these points which of them are stopped."""
        stopped = {number: self.stopped[number] for number in numbers if number in self.stopped}
        write_stops(self._names.stop_file(min(numbers)), stopped)

    def _judge(self, number: int, epoch: int, scores: list[float], alive: int) -> bool:
        """Return whether a point is stopped now, given its epoch, scores and members in training.

        A report that is repeated after a worker's restart is not judged again.
        """
        over = self._rule is None or number in self.stopped or number in self._ended
        if over or epoch <= self._judged.get(number, 0):
            return False
        if self._pass_on(number, epoch, scores, alive):
            self.stopped[number] = epoch
        return number in self.stopped

    def _pass_on(self, number: int, epoch: int, scores: list[float], alive: int) -> bool:
        """Pass a report on to the rule; return whether it stops the point."""
        point, result = PointTrial(str(number)), {"epoch": epoch, "score": scores[0]}
        if number not in self._judged:
            self._rule.on_trial_add(None, point)
        self._judged[number] = epoch
        if alive:
            return bool(self._rule.on_trial_result(None, point, result) == TrialScheduler.STOP)
        self._ended.add(number)
        self._rule.on_trial_complete(None, point, result)
        return False


def _rule(config: StudyConfig) -> Any:
    """Ray's scheduler of the configured name, or None. (Any: it is given points instead of Ray's trials.)"""
    settings, horizon, mode = config.scheduler, config.training.max_epochs, config.objective.mode
    grace = min(settings.grace, horizon)
    if settings.name == "asha":
        return ASHAScheduler("epoch", "score", mode, horizon, grace, settings.reduction)
    if settings.name == "median":
        rule: Any = MedianStoppingRule  # annotates its time slice as an int
        return rule("epoch", "score", mode, grace, settings.samples, min_time_slice=math.inf)  # never pause a trial
    return None


def _reports(session: Session, objectives: Sequence[Objective]) -> Iterator[list[Report]]:
    """The reports that a session has made of each of its points, one per validation."""
    state, epochs = session.state, session.state.epochs.tolist()
    active = set(state.active.tolist())
    by_time = []
    for k, validation in enumerate(state.history):
        status = [s if epochs[row] <= validation.epoch else "running" for row, s in enumerate(state.status)]
        then = replace(session, state=replace(state, history=state.history[: k + 1], status=status))
        by_time.append((validation.epoch, then.scores(objectives)))
    for point in range(len(session.points)):
        rows = session.members_of(point)
        yield [
            (epoch, scores[point], sum(row in active or epochs[row] > epoch for row in rows))
            for epoch, scores in by_time
            if any(epochs[row] >= epoch for row in rows)
        ]
