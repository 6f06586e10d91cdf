"""Quantities that the figures show, the points at which they show them, and medians over members.

Intervals are bootstrap intervals of the median (percentile method). Independent draws are resampled: single members
if all share one mixing, otherwise whole mixings with all members trained on them, so that the interval covers mixings
and initialisations. BCa is not used: its jackknife fails for a median (Efron and Tibshirani 1993, chapter 11).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from imavae.report.display import compact
from imavae.report.drawing import floats
from imavae.report.summary import Floats, counted, quartiles
from imavae.runs.records import BEST_MCC, BEST_NEG_ELBO

AT = f"at {BEST_NEG_ELBO}"  # the paper's protocol: metrics are read at the smallest validation −ELBO
STATES = {"min −ELBO": AT, "max MCC": f"at {BEST_MCC}"}
RESAMPLES = 2000
CONFIDENCE = 0.95
HUGE = 1e300  # replaces the infinite value of a diverged member, which can't be interpolated
FEW_FOR_CORRELATION = 5


class Quantity(NamedTuple):
    """A quantity with its column names, which ``members.csv`` and the published tables share."""

    label: str  # in tables
    axis: str  # in figures, with its unit
    column: str  # by the published estimator
    corrected: str | None = None  # by the corrected estimator; None if both are the same
    log: bool = False  # whether its axis is logarithmic
    limits: tuple[float, float] | None = None  # of its axis

    @property
    def best(self) -> str:
        """The column by the corrected estimator, or the only one."""
        return self.corrected or self.column

    def at(self, state: str) -> Quantity:
        """The same quantity read at another best state of each member."""
        corrected = None if self.corrected is None else self.corrected.replace(AT, state)
        return self._replace(column=self.column.replace(AT, state), corrected=corrected)


MCC = Quantity("MCC", "MCC", f"val/mcc_batch {AT}", f"val/mcc {AT}", limits=(0.0, 1.02))
CONTRAST = Quantity("c_IMA", r"$c_{\mathrm{IMA}}$ (nats)", f"val/cima_batch {AT}", f"val/cima {AT}", log=True)
NEG_ELBO = Quantity("−ELBO", "−ELBO (nats)", BEST_NEG_ELBO)
ERROR = Quantity("x error", r"mean of $(g(\mu(x)) - x)^2$", f"val/mse_obs {AT}", log=True)
RATIO = Quantity(  # its first column is derived: see figures.with_published_ratio
    "σ² ratio",
    "posterior variance\nover its formula",
    f"val/self_consistency_published {AT}",
    f"val/self_consistency {AT}",
)
GAP = Quantity("ELBO gap", "$E[\\log p(x)] -$ ELBO\n(nats)", f"val/gap_log_px {AT}", log=True)
GAP_IMA = Quantity("IMA gap", r"$E[L_{\mathrm{IMA}}] -$ ELBO* (nats)", f"val/gap_ima {AT}")
GAMMA = Quantity("gamma", "γ² (precision of the decoder)", f"val/gamma {AT}", log=True)
TRUTH = f"val/cima_truth {AT}"  # contrast of the mixing
LINEAR = "cima_of_linear_map"  # contrast of a mixing's linear map, derived: see figures.with_linear_contrast


@dataclass(frozen=True)
class Points:
    """The points of a figure: searched settings that group the members, with a name in tables and an axis."""

    keys: tuple[str, ...]
    label: Callable[..., str]  # of the keys' values
    axis: str = ""
    log: bool = False
    kinds: bool = False  # values are kinds, kept in the study's order and not joined by a line
    square: bool = False  # the axis shows the square of the setting

    def groups(self, members: pd.DataFrame) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
        """Values of the keys and the members of each point."""
        return list(members.groupby(list(self.keys), sort=not self.kinds))

    def positions(self, members: pd.DataFrame) -> Floats:
        """Position of each point on the axis, (point,)."""
        values = [key[0] for key, _ in self.groups(members)]
        return np.arange(len(values), dtype=np.float64) if self.kinds else floats(values) ** (2 if self.square else 1)


OVER_GAMMA = Points(
    ("model.gamma",),
    lambda gamma: f"γ²={compact(float(gamma) ** 2)}",
    "γ² (precision of the decoder)",
    log=True,
    square=True,
)
OVER_COSINE = Points(
    ("data.mixing.cosine",),
    lambda cosine: f"cos θ={cosine:g}",
    r"$\cos\theta$ between the columns of the linear map",
)
OVER_DIMENSION = Points(("data.dim",), "d={}".format, "number of sources, d")
OVER_PRIOR = Points(("model.prior.name", "data.dim"), "{}, d={}".format, kinds=True)
OVER_TRANSFORM = Points(("data.transform",), str, "map of the factors", kinds=True)


class Summary(NamedTuple):
    """Statistics of one quantity over the members of one point."""

    n: int
    median: float
    q25: float
    q75: float
    low: float  # of the median's 95 % interval
    high: float


def summarise(members: pd.DataFrame, column: str) -> Summary:
    """Return median, quartiles and the median's interval of a column.

    A diverged member counts as the worst value; a missing value is left out. With a single independent draw there is no
    interval: both ends are NaN.
    """
    values = counted(members, column) if column in members else np.full(len(members), np.nan)
    keep = ~np.isnan(values)
    worlds = np.array(members["data.seed"]) if "data.seed" in members else np.arange(len(members))
    low, median, high = quartiles(values)
    return Summary(int(keep.sum()), median, low, high, *interval(values[keep], worlds[keep]))


def interval(values: Floats, units: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median of values, (n,); values of one unit are resampled together."""
    groups = [np.nan_to_num(values[units == unit], posinf=HUGE) for unit in np.unique(units)]
    if len(groups) < 2:
        return np.nan, np.nan
    table = np.full((len(groups), max(map(len, groups))), np.nan)  # a row per unit, padded with NaN
    for row, group in zip(table, groups, strict=True):
        row[: len(group)] = group

    def median(drawn: np.ndarray, axis: int) -> np.ndarray:
        """Return the median over the resampled rows, (..., rows) along the last axis."""
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


def correlation(members: pd.DataFrame, x: str, y: str) -> Summary:
    """Return Spearman's rank correlation of two columns with its 95 % interval (Fisher's transformation)."""
    first, second = floats(members[x]), floats(members[y])
    sound = np.isfinite(first) & np.isfinite(second)
    n = int(sound.sum())
    if n < FEW_FOR_CORRELATION:
        return Summary(n, *[np.nan] * 5)
    value = float(stats.spearmanr(first[sound], second[sound]).statistic)
    error = 1.96 * np.sqrt(1.06 / (n - 3))
    low, high = (float(np.tanh(np.arctanh(value) + side * error)) for side in (-1, 1))
    return Summary(n, value, np.nan, np.nan, low, high)
