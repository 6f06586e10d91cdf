"""The paper's numbers, as data with their origin: what ours are drawn beside and judged against.

Quantities are called like the columns of ``members.csv``; ``_batch`` are the published estimators.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path(__file__).parent / "numbers"

ELBO_LOG_PX, ELBO_L_IMA = 14.851, 7.779  # E[log p(x)] and E[L_IMA] of the table elbo_gap_triangular_mlp, in nats


class Spread(NamedTuple):
    """What was published of one quantity at one point: median and quartiles over so many runs."""

    n: int
    median: float
    q25: float
    q75: float


@dataclass(frozen=True)
class Table:
    """One published table."""

    name: str
    origin: str
    setting: str
    draw: dict[str, float]  # quantity -> standard deviation of its median over draws of the data, see origins.yaml
    rows: pd.DataFrame

    def spread(self, gamma_sq: float, quantity: str) -> Spread | None:
        """What was published of a quantity at a gamma squared; None where nothing was."""
        near = np.isclose(self.rows["gamma_sq"], gamma_sq, rtol=1e-6)
        found = self.rows[near & (self.rows["quantity"] == quantity)]
        if not len(found):
            return None
        row = found.iloc[0]
        return Spread(int(row["n"]), float(row["median"]), float(row["q25"]), float(row["q75"]))

    def column(self, name: str) -> Spread:
        """Median and quartiles of a column with one row per run."""
        values = np.array(self.rows[name], dtype=np.float64)
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        return Spread(len(values), float(median), float(low), float(high))


@functools.cache
def table(name: str) -> Table:
    """The published table of this name; its file is ``numbers/NAME.csv``."""
    import pandas as pd

    return Table(name, **origins()[name], rows=pd.read_csv(FOLDER / f"{name}.csv"))


@functools.cache
def origins() -> dict[str, dict[str, Any]]:
    """What ``origins.yaml`` says of each table."""
    content: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "origins.yaml").read_text(encoding="utf-8"))
    return content
