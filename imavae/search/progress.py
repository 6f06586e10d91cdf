"""Where a study stands: what its live display shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Snapshot:
    """Where a study stands at one moment."""

    trials_total: int
    finished: int  # trials that have ended, however they did
    running: int  # trials
    members_stopped: int  # members that stopped early, over all trials
    best_score: float | None  # None: no trial has reported yet
    best_point: dict[str, object] | None  # dotted key -> value, of the trial with the best score
    member_steps_per_s: float
    seconds_left: float | None  # None: not known yet
    seconds: float  # since the study started
    metric: str  # what is scored, such as val/mcc
