"""Medians over members with bootstrap intervals (percentile method).

What is drawn again is what was drawn independently: members that share a mixing, if there is one for all; else whole
mixings, with all that trained on them, so that the interval is over mixings and initialisations. The percentile method
rather than BCa, whose jackknife does not work for a median (Efron and Tibshirani 1993, chapter 11).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from imavae.report.summary import Floats, counted, quartiles

RESAMPLES = 2000
CONFIDENCE = 0.95
HUGE = 1e300  # stands for the infinite value of a diverged member, which has no place between two others


class Summary(NamedTuple):
    """Of one quantity over the members of one point."""

    n: int
    median: float
    q25: float
    q75: float
    low: float  # of the median's 95 % interval
    high: float


def summarise(members: pd.DataFrame, column: str) -> Summary:
    """Median, quartiles and the median's interval; a diverged member counts as the worst, a missing value is left out.

    With a single independent draw there is no interval: both ends are NaN.
    """
    values = counted(members, column) if column in members else np.full(len(members), np.nan)
    keep = ~np.isnan(values)
    worlds = np.array(members["data.seed"]) if "data.seed" in members else np.arange(len(members))
    low, median, high = quartiles(values)
    return Summary(int(keep.sum()), median, low, high, *interval(values[keep], worlds[keep]))


def interval(values: Floats, units: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median of values, (n,); those of one unit are drawn together."""
    groups = [np.nan_to_num(values[units == unit], posinf=HUGE) for unit in np.unique(units)]
    if len(groups) < 2:
        return np.nan, np.nan
    table = np.full((len(groups), max(map(len, groups))), np.nan)  # a row each; a place without a value has none
    for row, group in zip(table, groups, strict=True):
        row[: len(group)] = group

    def median(drawn: np.ndarray, axis: int) -> np.ndarray:
        """Of the rows that were drawn, (..., rows) along the last axis."""
        found: np.ndarray = np.nanmedian(table[drawn].reshape(*drawn.shape[:-1], -1), axis=axis)
        return found

    with np.errstate(all="ignore"):
        found = stats.bootstrap(
            (np.arange(len(groups)),),
            median,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),  # the same members give the same interval
        ).confidence_interval
    low, high = (np.inf if end >= HUGE / 2 else float(end) for end in (found.low, found.high))
    return low, high
