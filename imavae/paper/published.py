"""The paper's numbers, with their origin. Quantities have the column names of ``members.csv``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

FOLDER = Path(__file__).parent / "numbers"

ELBO_LOG_PX, ELBO_L_IMA = 14.851, 7.779  # E[log p(x)] and E[L_IMA] of the table elbo_gap_triangular_mlp, in nats


class Spread(NamedTuple):
    """Published median and quartiles of one quantity at one point, over ``n`` runs."""

    n: int
    median: float
    q25: float
    q75: float


@dataclass(frozen=True)
class Table:
    """One published table.

    Attributes:
        rows: the numbers.
        origin: how they were published.
        setting: what they were measured with.
        draw: quantity -> standard deviation of its median over draws of the data; see ``origins.yaml``.
    """

    rows: pd.DataFrame
    origin: str
    setting: str
    draw: dict[str, float]

    def spread(self, gamma_sq: float, quantity: str) -> Spread | None:
        """Return the published numbers of a quantity at one γ², or None."""
        near = np.isclose(self.rows["gamma_sq"], gamma_sq, rtol=1e-6)
        found = self.rows[near & (self.rows["quantity"] == quantity)]
        if not len(found):
            return None
        row = found.iloc[0]
        return Spread(int(row["n"]), float(row["median"]), float(row["q25"]), float(row["q75"]))

    def column(self, name: str) -> Spread:
        """Return median and quartiles of a column with one row per run."""
        values = np.array(self.rows[name], dtype=np.float64)
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        return Spread(len(values), float(median), float(low), float(high))


@functools.cache
def table(name: str) -> Table:
    """Return the published table of this name, from ``numbers/NAME.csv``."""
    return Table(pd.read_csv(FOLDER / f"{name}.csv"), **origins()[name])


@functools.cache
def origins() -> dict[str, dict[str, Any]]:
    """Return the content of ``origins.yaml`` by table."""
    content: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "origins.yaml").read_text(encoding="utf-8"))
    return content
