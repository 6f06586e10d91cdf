"""Rows of a figure's table, their verdicts, and the tables as text.

A row passes if our median agrees with the published one, or with the law that it must obey.

Suppose that our n members are drawn from the published distribution, of which m runs are known. The difference of the
two medians then has the standard error  s sqrt(pi / 2) sqrt(1/m + 1/n),  where s = (q75 − q25) / 1.349 estimates the
standard deviation of a normal distribution from the published quartiles. The relative error of s is 1.17 / sqrt(m), as
of a sample's standard deviation with m / 2.7 degrees of freedom. Student's t with these degrees of freedom gives the
number of standard errors that one row in 370 exceeds by chance: 3 for many runs, 4.4 for 20. One draw of the data,
which all seeds share, also moves either median, by the table's ``draw``; three times that is allowed. Our own spread
does not enter, so that a bad replication can't excuse itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich.table import Table
from scipy import stats

from imavae.paper.quantities import MCC, NEG_ELBO, RATIO, Summary
from imavae.report.display import MISSING, compact
from imavae.report.tables import plain_table

ERRORS = 3.0  # standard errors that a row may be off, where these are known
CHANCE = 2 * stats.norm.sf(ERRORS)  # probability that a row that should pass fails: 1 in 370
IQR_OF_NORMAL = 1.349  # interquartile range over standard deviation
RUNS_PER_FREEDOM = 2.72  # the variance of (q75 − q25) / 1.349 is 1.36 s² / m, that of a standard deviation s² / 2 ν
FEWEST_RUNS = 5  # fewer published runs don't tell the spread
PASS, FAIL, NOT_PUBLISHED, NOT_JUDGED = "PASS", "FAIL", "not published", "not judged"


@dataclass(frozen=True)
class Row:
    """One quantity at one point of a study."""

    study: str  # its name
    point: str  # as in γ²=1e3
    quantity: str  # its label
    ours: Summary  # our members, by the published estimator
    published: Summary | None = None
    corrected: Summary | None = None  # our members, by the corrected estimator; None if both are the same
    expected: float | None = None  # value that `ours` is judged by; None if the row is not judged
    tolerance: float | None = None  # largest distance from it that passes
    unjudged: str = NOT_PUBLISHED  # verdict of a row that is not judged

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or the reason for neither."""
        if self.expected is None or self.tolerance is None:
            return self.unjudged
        return PASS if abs(self.ours.median - self.expected) <= self.tolerance else FAIL  # NaN fails


def compare(row: Row, published: Summary | None, draw: float = 0.0, worlds: int = 1, comparable: bool = True) -> Row:
    """Return the row with the published numbers, judged by them if it is comparable and they rest on enough runs."""
    if published is None:
        return row
    if published.n < FEWEST_RUNS or not comparable:
        return dataclasses.replace(row, published=published, unjudged=NOT_JUDGED)
    limit = tolerance(published, row.ours.n, draw, worlds)
    return dataclasses.replace(row, published=published, expected=published.median, tolerance=limit)


def tolerance(published: Summary, seeds: int, draw: float = 0.0, worlds: int = 1) -> float:
    """Return the allowed distance of a median of our members from the published one, in the quantity's unit.

    Args:
        published: the published median, quartiles and number of runs.
        seeds: number of our members.
        draw: standard deviation of a median over draws of the data; the published runs share one draw.
        worlds: number of draws among our members (``members.data.seed``).
    """
    spread = (published.q75 - published.q25) / IQR_OF_NORMAL
    error = spread * math.sqrt(math.pi / 2 * (1 / published.n + 1 / max(1, seeds)))
    errors = float(stats.t.isf(CHANCE / 2, published.n / RUNS_PER_FREEDOM))
    return math.hypot(errors * error, ERRORS * draw * math.sqrt(1 + 1 / worlds))


def correlation_tolerance(published: float, runs: int, mixings: int) -> float:
    """Return the same for a rank correlation: standard error (1 − rho²) sqrt(1.06 / (n − 3)) (Fieller et al. 1957)."""
    return ERRORS * ((1 - published**2) * math.sqrt(1.06 * (1 / (runs - 3) + 1 / max(1, mixings - 3))))


def terminal_table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows as a table of 80 columns; quartiles are below the medians."""
    table = plain_table(title, "Medians, their quartiles below; ours and its 95 % interval by the published estimator.")
    heads = {name: name for name in ("at", "quantity", "published", "ours", "95 %", "corrected", "verdict")}
    heads |= {"quantity": "what", "corrected": "cor-\nrected"}
    if all(row.corrected is None for row in rows):
        del heads["corrected"]
    for name, head in heads.items():
        words = name in ("quantity", "verdict")  # these may be wrapped, numbers never
        table.add_column(head, justify="left" if words or name == "at" else "right", no_wrap=not words)
    for row in rows:
        cells = _cells(row)
        cells |= {name: cells[name].replace(" (", "\n").rstrip(")") for name in ("published", "ours")}
        table.add_row(*(cells[name] for name in heads), style="bold" if row.verdict == FAIL else None)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    cells = [_cells(row) for row in rows]
    lines = [list(cells[0]), ["---"] * len(cells[0]), *(row.values() for row in cells)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return every number of every row, at full precision."""
    records: list[dict[str, object]] = []
    for row in rows:
        record: dict[str, object] = {"study": row.study, "at": row.point, "quantity": row.quantity}
        for prefix, numbers in (("published", row.published), ("ours", row.ours), ("corrected", row.corrected)):
            if numbers is not None:
                shown = numbers._fields[: 4 if prefix == "published" else None]  # without an interval
                record |= {f"{prefix} {name}": getattr(numbers, name) for name in shown}
        records.append(record | {"expected": row.expected, "tolerance": row.tolerance, "verdict": row.verdict})
    return pd.DataFrame(records)


def _cells(row: Row) -> dict[str, str]:
    """Return the cells of a row by column; medians have three or four digits, numbers around them one less."""
    nats = row.quantity == NEG_ELBO.label
    fine = row.quantity in (MCC.label, RATIO.label)

    def show(value: float, digits: int = 4 if nats else 3) -> str:
        whole = nats and 1000 <= abs(value) < math.inf  # powers of ten would hide differences: images have 1e4 nats
        return f"{value:.0f}" if whole else compact(value, digits)

    def between(low: float, high: float) -> str:
        return "" if math.isnan(low) else "–".join(show(end, 3 if nats or fine else 2) for end in (low, high))

    def median(of: Summary) -> str:
        quartiles = between(of.q25, of.q75)
        return f"{show(of.median)} ({quartiles})" if quartiles else show(of.median)

    law = MISSING if row.expected is None else f"{show(row.expected)} (by law)"
    return {
        "at": row.point,
        "quantity": row.quantity,
        "published": law if row.published is None else median(row.published),
        "ours": median(row.ours),
        "95 %": between(row.ours.low, row.ours.high) or MISSING,
        "corrected": MISSING if row.corrected is None else show(row.corrected.median),
        "n": str(row.ours.n),
        "tolerance": MISSING if row.tolerance is None else f"±{compact(row.tolerance, 2)}",
        "verdict": row.verdict,
    }
