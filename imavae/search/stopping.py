"""Early stopping of points: Ray's rules (ASHA, median), asked for each point of a trial, not for the trial.

A worker that reports waits until the driver has taken the report in. So the driver decides then, and leaves a note in
the study's folder, which the worker reads before it goes on: the members of a stopped point are frozen and cost nothing
more, the others train on. A trial whose points have all been stopped ends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from imavae.config.settings import StudyConfig
from imavae.data.storage import Seal
from imavae.runs.folder import RunFolder

AGAIN = "remove it: the point is judged again when it is resumed"
NOTES = Seal(b"imavae note", 1, "note", AGAIN, AGAIN, "resume the study with the version of imavae that wrote it")

Report = tuple[int, list[float], int]  # epoch, the point's scores, its members that are still training


@dataclass(frozen=True)
class StandIn:
    """What a rule needs of a Ray trial, for a point."""

    trial_id: str


def read_note(note: Path) -> dict[int, int]:
    """The epochs at which points were stopped, by their numbers. Raises UserError for a note that is damaged."""
    if not note.exists():
        return {}
    return {int(number): int(epoch) for number, epoch in json.loads(NOTES.read(note)).items()}


def write_note(note: Path, stopped: dict[int, int]) -> None:
    """Note the epochs at which points were stopped, by their numbers."""
    note.parent.mkdir(exist_ok=True)
    NOTES.write(note, json.dumps(stopped).encode())


class Stopping(FIFOScheduler):
    """Ray's scheduler of a study. It trains trials in the order in which they come, and stops points."""

    _supports_buffered_results = False  # each report is judged before its worker goes on

    def __init__(self, config: StudyConfig, names: RunFolder) -> None:
        """Of the study with these files; what it has noted there before still holds."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._names, self._rule = names, _rule(config)
        self._seen: dict[int, int] = {}  # the last epoch that each point was judged at
        self._ended: set[int] = set()  # points whose members have all stopped by themselves
        self.stopped: dict[int, int] = {}  # the epochs at which points were stopped, by their numbers
        for note in names.notes():
            self.stopped |= read_note(note)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Judge the points of a report; stop the trial where none is left to train."""
        numbers = [number for number, _ in trial.config["points"]]
        points = list(zip(numbers, result["scores"], result["alive"], strict=True))
        new = [number for number, scores, alive in points if self.judge(number, result["epoch"], scores, alive)]
        if new:
            self.note(numbers)
        left = [number for number, _, alive in points if alive and number not in self.stopped]
        decision: str = TrialScheduler.CONTINUE if left or not new else TrialScheduler.STOP
        return decision

    def note(self, numbers: Sequence[int]) -> None:
        """Tell the worker that trains these points which of them are stopped."""
        write_note(self._names.note(min(numbers)), {n: self.stopped[n] for n in numbers if n in self.stopped})

    def remember(self, number: int, reports: Sequence[Report]) -> None:
        """Show the rule what an earlier driver has shown it; what was decided then stands in the notes."""
        if self._rule is None:
            return
        point = StandIn(str(number))
        self._rule.on_trial_add(None, point)
        for epoch, scores, alive in reports:
            self._seen[number] = epoch
            result = {"epoch": epoch, "score": scores[0]}
            if alive:
                self._rule.on_trial_result(None, point, result)
            else:
                self._ended.add(number)
                self._rule.on_trial_complete(None, point, result)

    def judge(self, number: int, epoch: int, scores: list[float], alive: int) -> bool:
        """Whether a point is to be stopped now, at this epoch, with this score and so many members in training.

        A report that comes again, after a worker's restart, is not judged again.
        """
        if self._rule is None or number in self.stopped or number in self._ended or epoch <= self._seen.get(number, 0):
            return False
        point, result = StandIn(str(number)), {"epoch": epoch, "score": scores[0]}
        if number not in self._seen:
            self._rule.on_trial_add(None, point)
        self._seen[number] = epoch
        if not alive:
            self._ended.add(number)
            self._rule.on_trial_complete(None, point, result)
        elif self._rule.on_trial_result(None, point, result) == TrialScheduler.STOP:
            self.stopped[number] = epoch
        return number in self.stopped


def _rule(config: StudyConfig) -> Any:
    """Ray's own scheduler of that name; None for none. (Any: what is fed to it are stand-ins for Ray's trials.)"""
    settings, horizon, mode = config.scheduler, config.training.max_epochs, config.objective.mode
    grace = min(settings.grace, horizon)
    if settings.name == "asha":
        return ASHAScheduler("epoch", "score", mode, horizon, grace, settings.reduction)
    if settings.name == "median":
        rule: Any = MedianStoppingRule  # whose time slice is annotated as an int
        return rule("epoch", "score", mode, grace, settings.samples, min_time_slice=math.inf)  # nobody waits for others
    return None
