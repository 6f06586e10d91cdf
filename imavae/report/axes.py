"""The axes of searched parameters: where values lie, on which scale, and what stands beside them.

Gamma is drawn as the paper draws it, as gamma squared on a log axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator

from imavae.report.summary import Floats
from imavae.report.text import compact, short_names
from imavae.search.space import Parameter, Value

GAMMA, WIDTH = "model.gamma", "model.hidden_factor"
LABELS = {GAMMA: "γ² (decoder precision)", WIDTH: "hidden_factor (width / dimension)"}
LOG_RATIO = 20  # positive numbers that span more than this factor have a log axis
MISSING_AT = -0.14  # the place below an upright axis for trials that have no such parameter


@dataclass(frozen=True)
class Axis:
    """Where a searched parameter's values lie: numbers as they are, gamma squared, other choices by their rank."""

    parameter: Parameter
    label: str
    log: bool

    @property
    def key(self) -> str:
        """The parameter's dotted key."""
        return self.parameter.key

    @property
    def name(self) -> str:
        """The label without what stands in brackets."""
        return self.label.split(" (")[0]

    @property
    def choices(self) -> tuple[Value, ...]:
        """The choices where they are no numbers; empty for numbers."""
        values = self.parameter.values
        return () if all(_is_number(value) for value in values) else values

    def place(self, values: Iterable[object]) -> Floats:
        """The position of each value, in the axis's own unit, (n,); NaN for a missing one."""
        return np.array([self._at(value) for value in values], dtype=np.float64)

    def even(self, places: Floats) -> Floats:
        """Positions, (n,), on the scale along which the parameter is searched: decades on a log axis."""
        return np.log10(places) if self.log else places

    @property
    def ends(self) -> tuple[float, float]:
        """What was searched, on the even scale; a whole number reaches half-way to its neighbours."""
        places, half = self.place(self.parameter.ends), 0.5 if self.parameter.type == "int" else 0.0
        low, high = self.even(np.array([places.min() - half, places.max() + half])).tolist()
        return low, high

    def marks(self, low: float, high: float) -> list[tuple[float, str]]:
        """Round places from ``low`` to ``high``, in the axis's unit, and their texts; or all choices."""
        if self.choices:
            return [(float(n), compact(choice)) for n, choice in enumerate(self.choices)]
        if not self.log:
            return [
                (at, compact(at)) for at in _within(MaxNLocator(6, integer=self.parameter.type == "int"), low, high)
            ]
        for digits in ((1.0,), (1.0, 2.0, 5.0), (1.0, 2.0, 3.0, 5.0, 7.0)):
            found = _within(LogLocator(subs=digits, numticks=8), low, high)
            if len(found) > 3:
                break
        return [(at, compact(at)) for at in found]

    def _at(self, value: object) -> float:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return math.nan
        if self.choices:
            return float(self.choices.index(value))
        number = float(value)  # type: ignore[arg-type]
        return number**2 if self.key == GAMMA else number


def axes_of(trials: pd.DataFrame, parameters: Sequence[Parameter]) -> list[Axis]:
    """An axis for each parameter that differs between the trials, or is missing in some of them."""
    names = short_names([parameter.key for parameter in parameters])
    axes = []
    for parameter in parameters:
        key, listed = parameter.key, [float(value) for value in parameter.values if _is_number(value)]
        if trials[key].nunique(dropna=False) > 1:
            wide = len(listed) > 0 and 0 < LOG_RATIO * min(listed) < max(listed)
            axes.append(Axis(parameter, LABELS.get(key, names[key]), key == GAMMA or parameter.log or wide))
    return axes


class Upright(NamedTuple):
    """An axis from 0 up to 1, one of several side by side."""

    label: str
    heights: Floats  # of each trial; MISSING_AT where it has no value
    ticks: list[tuple[float, str]]  # height and text


def upright(axis: Axis, values: Iterable[object]) -> Upright:
    """The values of a searched parameter on an upright axis as long as their range."""
    places = axis.place(values)
    missing = np.isnan(places)
    low, high = (0.0, len(axis.choices) - 1.0) if axis.choices else (float(np.nanmin(places)), float(np.nanmax(places)))
    ends = axis.even(np.array([low, high]))
    heights = np.where(missing, MISSING_AT, _heights(axis.even(places), *ends))
    marks = axis.marks(low, high)
    at = _heights(axis.even(np.array([place for place, _ in marks])), *ends)
    ticks = [(float(height), text) for height, (_, text) in zip(at, marks, strict=True)]
    return Upright(axis.label, heights, ticks + ([(MISSING_AT, "none")] if missing.any() else []))


def upright_score(label: str, scores: Floats) -> Upright:
    """Scores, (trial,), on an upright axis as long as their range."""
    low, high = float(scores.min()), float(scores.max())
    marks = _within(MaxNLocator(6, steps=[1, 2, 5, 10]), low, high)
    at = _heights(np.array(marks), low, high)
    ticks = [(float(height), compact(mark)) for height, mark in zip(at, marks, strict=True)]
    return Upright(label, _heights(scores, low, high), ticks)


def _heights(places: Floats, low: float, high: float) -> Floats:
    return (places - low) / (high - low) if high > low else np.full(len(places), 0.5)


def _within(locator: LogLocator | MaxNLocator, low: float, high: float) -> list[float]:
    slack = 1e-9 * (abs(low) + abs(high))
    found = [float(mark) for mark in locator.tick_values(low, high)]
    return [mark for mark in found if low - slack <= mark <= high + slack] or [low]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
