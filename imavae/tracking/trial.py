"""What is known of a trial, and the curves over its members that a tracker shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Value = float | int | str
Row = Mapping[str, Value]
Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """What is known of one trial.

    Attributes:
        number: its place in the study, from 0.
        values: its point, dotted key to value (``model.gamma``).
        status: how it ended; ``stopped`` means by the scheduler, before its members stopped.
        score: the aggregate over its members, or None where it has none.
        history: a row per member and validation, complete up to its last epoch: trial, seed, epoch, ``SPLIT/METRIC``.
        members: the rows of ``members.csv``; empty while the trial runs.
        further: the scores by a study's further objectives, metric to score.
        failure: why it has failed, in one line; empty for one that has not.
    """

    number: int
    values: Mapping[str, Value]
    status: Status
    score: float | None
    history: list[dict[str, Value]]
    members: list[dict[str, Value]]
    further: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


def member_name(row: Row) -> str:
    """What a member is called within its trial: its seed, and its world's (``1/7``) where there are several."""
    return "/".join(str(row[axis]) for axis in ("seed", "data.seed") if axis in row)


def quartile_curves(history: Iterable[Row], after: int = -1) -> Iterator[tuple[int, dict[str, float]]]:
    """Median, ``/q25`` and ``/q75`` over members of every ``SPLIT/METRIC``, for each epoch later than ``after``.

    A member that has stopped, or whose value is not finite, stands with its last finite value: a curve is always over
    all members, and does not jump when one of them leaves.
    """
    by_epoch: dict[int, list[Row]] = {}
    for row in history:
        by_epoch.setdefault(int(row["epoch"]), []).append(row)
    latest: dict[Value, dict[str, float]] = {}
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
    quantile = np.nanquantile if np.isnan(table).any() else np.quantile  # the first is much slower
    curves: dict[str, float] = {}
    for name, (low, middle, high) in zip(names, quantile(table, [0.25, 0.5, 0.75], axis=0).T.tolist(), strict=True):
        curves |= {name: middle, f"{name}/q25": low, f"{name}/q75": high}
    return curves


def finite_metrics(row: Row) -> dict[str, float]:
    """The metrics of a row, which are the keys with a slash, as far as they are finite numbers."""
    return {k: float(v) for k, v in row.items() if "/" in k and not isinstance(v, str) and math.isfinite(v)}
