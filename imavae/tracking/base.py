"""The tracker's interface, the record of a trial that it receives, and the curves over a trial's members."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Value = float | int | str
Row = Mapping[str, Value]
Status = Literal["finished", "stopped", "failed"]

PROGRESS_PERIOD = 5.0  # seconds between two updates of a running trial's curves; an update takes 15 ms


@dataclass(frozen=True)
class TrialRecord:
    """Result of one trial.

    Attributes:
        number: index in the study, from 0.
        values: the trial's point, dotted key to value (``model.gamma``).
        status: ``finished``, ``failed``, or ``stopped`` by the scheduler before the members stopped by themselves.
        score: aggregate over the members; None if there is none.
        history: one row per member and validation (trial, seed, epoch, ``SPLIT/METRIC``), up to the last epoch.
        members: rows of ``members.csv``; empty while the trial runs.
        further: scores by a study's further objectives, by metric.
        failure: reason in one line; empty unless the trial failed.
    """

    number: int
    values: Mapping[str, Value]
    status: Status
    score: float | None
    history: list[dict[str, Value]]
    members: list[dict[str, Value]]
    further: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


class Tracker:
    """Destination of a study's results besides its folder. This base class tracks nothing (``tracking=none``).

    Every method but :meth:`start` needs a started study.
    """

    def start(self, name: str, config: Mapping[str, Any], tags: Mapping[str, str], resume: bool = False) -> None:
        """Open a run for the study; with ``resume``, reopen the newest run with this name and these tags, if any."""

    def progress(self, trial: TrialRecord) -> None:
        """Update the curves of a running trial, at most every :data:`PROGRESS_PERIOD` seconds."""

    def is_complete(self, trial: int) -> bool:
        """Return whether a trial and all of its members are tracked."""
        return True

    def finish_trial(self, trial: TrialRecord) -> None:
        """Track a trial and its members, and end their runs. A trial that is complete already is left alone."""

    def log_model(self, file: Path, trial: int, member: str, metrics: Mapping[str, float], champion: bool) -> str:
        """Store a member's model with the metrics that rank it; return the address that ``load_model`` takes."""
        return str(file)

    def finish(self, status: Status, metrics: Mapping[str, float], artifacts: Iterable[Path]) -> None:
        """End the study's run with its metrics and files."""


def member_name(row: Row) -> str:
    """Name of a member within its trial: its seed, or ``SEED/DATA_SEED`` if there are several worlds."""
    return "/".join(str(row[axis]) for axis in ("seed", "data.seed") if axis in row)


def finite_metrics(row: Row) -> dict[str, float]:
    """Finite metrics of a row; metrics are the keys with a slash."""
    return {k: float(v) for k, v in row.items() if "/" in k and not isinstance(v, str) and math.isfinite(v)}


def quartile_curves(history: Iterable[Row], after: int = -1) -> Iterator[tuple[int, dict[str, float]]]:
    """Median, ``/q25`` and ``/q75`` over members of every ``SPLIT/METRIC``, for each epoch later than ``after``.

    A member that has stopped, or whose value is not finite, counts with its last finite value. So every point of a
    curve is over all members, and the curve does not jump when a member stops.
    """
    by_epoch: dict[int, list[Row]] = {}
    for row in history:
        by_epoch.setdefault(int(row["epoch"]), []).append(row)
    latest: dict[str, dict[str, float]] = {}
    for epoch in sorted(by_epoch):
        for row in by_epoch[epoch]:
            latest.setdefault(member_name(row), {}).update(finite_metrics(row))
        if epoch > after:
            yield epoch, _quartiles(list(latest.values()))


def _quartiles(rows: list[dict[str, float]]) -> dict[str, float]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return {}
    table = np.array([[row.get(name, math.nan) for name in names] for row in rows])
    quantile = np.nanquantile if np.isnan(table).any() else np.quantile  # np.nanquantile is much slower
    curves: dict[str, float] = {}
    for name, (low, middle, high) in zip(names, quantile(table, [0.25, 0.5, 0.75], axis=0).T.tolist(), strict=True):
        curves |= {name: middle, f"{name}/q25": low, f"{name}/q75": high}
    return curves
