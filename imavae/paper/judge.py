"""Whether a median of ours agrees with the published one, or with the law it must obey.

If our n members were drawn from the published distribution, of which m runs are known, the two medians would differ by
a standard error of  s sqrt(pi / 2) sqrt(1/m + 1/n),  with s = (q75 − q25) / 1.349, a normal's standard deviation from
its published quartiles. Quartiles of m runs know s to a share of 1.17 / sqrt(m) only, as a sample's standard deviation
does with m / 2.7 degrees of freedom, so that Student's t with so many says how many standard errors are too many: one
row in 370 fails by chance, which are 3 errors for many runs and 4.4 for 20. What all seeds share, one draw of the data,
moves either median by the table's ``draw`` besides; three of it are allowed. Our own spread does not enter, or a bad
replication would excuse itself.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from scipy import stats

from imavae.paper.published import Spread
from imavae.paper.statistics import Summary

ERRORS = 3.0  # standard errors that a row may be off, where these are known
CHANCE = 2 * stats.norm.sf(ERRORS)  # of a row that should pass to fail: 1 in 370
IQR_OF_NORMAL = 1.349  # interquartile range over standard deviation
RUNS_PER_FREEDOM = 2.72  # the variance of (q75 − q25) / 1.349 is 1.36 s² / m, that of a standard deviation s² / 2 ν
FEW = 5  # of so many published runs quartiles say something
PASS, FAIL, NOT_PUBLISHED, NOT_JUDGED = "PASS", "FAIL", "not published", "not judged"


@dataclass(frozen=True)
class Row:
    """One quantity at one point of a study: what was published, what ours is, and whether they agree.

    ``ours`` is by the published estimator, ``corrected`` by the one of the glossary that replaces it (None: it is the
    same one). ``expected`` and ``tolerance`` are None where there is nothing to judge by.
    """

    study: str
    point: str  # what it was read at, as in γ² = 1e3
    quantity: str  # what it is called in the table
    ours: Summary
    published: Spread | None = None
    corrected: Summary | None = None
    expected: float | None = None
    tolerance: float | None = None
    unjudged: str = NOT_PUBLISHED  # what its verdict is called where there is nothing to judge by

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or why there is neither."""
        if self.expected is None or self.tolerance is None:
            return self.unjudged
        return PASS if abs(self.ours.median - self.expected) <= self.tolerance else FAIL  # NaN fails


def beside(row: Row, published: Spread | None, draw: float = 0.0, worlds: int = 1) -> Row:
    """The row with what was published, and judged by it where there are runs enough to know their spread."""
    if published is None:
        return row
    if published.n < FEW:
        return dataclasses.replace(row, published=published, unjudged=NOT_JUDGED)
    limit = tolerance(published, row.ours.n, draw, worlds)
    return dataclasses.replace(row, published=published, expected=published.median, tolerance=limit)


def tolerance(published: Spread, seeds: int, draw: float = 0.0, worlds: int = 1) -> float:
    """How far the median of so many members may lie from the published one, in the quantity's own unit.

    Args:
        published: the median, quartiles and runs that were published.
        seeds: our members.
        draw: standard deviation of a median over draws of what all seeds share; the published one is of one draw.
        worlds: draws among our members (``members.data.seed``).
    """
    spread = (published.q75 - published.q25) / IQR_OF_NORMAL
    error = spread * math.sqrt(math.pi / 2 * (1 / published.n + 1 / max(1, seeds)))
    errors = float(stats.t.isf(CHANCE / 2, published.n / RUNS_PER_FREEDOM))
    return math.hypot(errors * error, ERRORS * draw * math.sqrt(1 + 1 / worlds))


def correlation_tolerance(published: float, runs: int, mixings: int) -> float:
    """The same for a rank correlation, of standard error (1 − rho²) sqrt(1.06 / (n − 3)) (Fieller et al. 1957)."""
    error = (1 - published**2) * math.sqrt(1.06 * (1 / (runs - 3) + 1 / max(1, mixings - 3)))
    return ERRORS * error
