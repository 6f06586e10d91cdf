"""The rows of a figure as a table for the terminal, for a spreadsheet and for a page."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import pandas as pd
from rich.table import Table

from imavae.paper.judge import FAIL, Row
from imavae.paper.published import Spread
from imavae.paper.statistics import Summary
from imavae.report.tables import plain_table
from imavae.report.text import MISSING, compact


def terminal_table(rows: Sequence[Row], title: str) -> Table:
    """A row each, in 80 columns: medians with what they lie between below them; the files have the rest."""
    table = plain_table(title, "Medians, their quartiles below; ours and its 95 % interval by the published estimator.")
    cells = [_cells(row) for row in rows]
    names = ["at", "quantity", "published", "ours", "95 %", "corrected", "verdict"]
    if all(row.corrected is None for row in rows):
        names.remove("corrected")
    for row in cells:
        row |= {name: row[name].replace(" (", "\n").rstrip(")") for name in ("published", "ours")}
    for name in names:
        words = name in ("quantity", "verdict")  # which may be broken over lines, numbers never
        header = {"corrected": "cor-\nrected", "quantity": "what"}.get(name, name)
        left = words or name == "at"
        table.add_column(header, justify="left" if left else "right", no_wrap=not words)
    for row in cells:
        table.add_row(*(row[name] for name in names), style="bold" if row["verdict"] == FAIL else None)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """The same, whole, for a page."""
    cells = [_cells(row) for row in rows]
    if not cells:
        return ""
    lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(row.values()) for row in cells)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Every number of every row, at full precision."""

    def numbers(prefix: str, of: Summary | Spread | None) -> dict[str, object]:
        return {} if of is None else {f"{prefix} {name}": value for name, value in of._asdict().items()}

    return pd.DataFrame(
        [
            {"study": row.study, "at": row.point, "quantity": row.quantity}
            | numbers("published", row.published)
            | numbers("ours", row.ours)
            | numbers("corrected", row.corrected)
            | {"expected": row.expected, "tolerance": row.tolerance, "verdict": row.verdict}
            for row in rows
        ]
    )


def _cells(row: Row) -> dict[str, str]:
    published, ours, corrected = row.published, row.ours, row.corrected
    nats = row.quantity == "−ELBO"
    form = functools.partial(_nats if nats else compact, digits=4 if nats else 3)
    about = functools.partial(
        _nats if nats else compact, digits=3 if nats or row.quantity in ("MCC", "σ² ratio") else 2
    )
    expected = MISSING if row.expected is None else f"{form(row.expected)} (by law)"
    if published is not None:
        expected = _with(form(published.median), _between(about, published.q25, published.q75))
    return {
        "at": row.point,
        "quantity": row.quantity,
        "published": expected,
        "ours": _with(form(ours.median), _between(about, ours.q25, ours.q75)),
        "95 %": _between(about, ours.low, ours.high) or MISSING,
        "corrected": MISSING if corrected is None else form(corrected.median),
        "n": str(ours.n),
        "tolerance": MISSING if row.tolerance is None else f"±{compact(row.tolerance, 2)}",
        "verdict": row.verdict,
    }


def _nats(value: float, digits: int) -> str:
    """In whole nats where powers of ten would hide what differs: the −ELBO of images is in tens of thousands."""
    return f"{value:.0f}" if 1000 <= abs(value) < math.inf else compact(value, digits)


def _between(form: Callable[[float], str], low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{form(low)}–{form(high)}"


def _with(median: str, between: str) -> str:
    return f"{median} ({between})" if between else median
