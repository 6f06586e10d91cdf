"""Table of val/mcc over gamma, learning rate, width, depth and activation, which test searches query.

``python -m tests.response`` trains every node and writes ``data/response.csv``: the published Möbius map (6,000
observations, 12 epochs, five seeds, float32) at each of 3,510 points, scored as a study scores them, by the median over
seeds of each one's best val/mcc. A point between nodes has the score of the node in whose cell it lies; the cells of
gamma and learning rate have equal width on a log scale.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from imavae.config.settings import Objective, run_config, with_values
from imavae.runs.session import Session

FILE = Path(__file__).parent / "data" / "response.csv"
PACK = 26  # points that train in one ensemble
OWN: dict[str, list[float]] = {  # may differ within an ensemble
    "model.gamma": [float(f"{10 ** (k / 4):.4g}") for k in range(2, 15)],  # 3.162 to 3,162
    "training.learning_rate": [float(f"{10 ** (k / 3):.4g}") for k in range(-12, -2)],  # 1e-4 to 1e-1
}
SHARED: dict[str, list[Any]] = {
    "model.hidden_factor": [3, 6, 12],
    "model.n_layers": [2, 3, 4],
    "model.activation": ["leaky_relu", "tanh", "silu"],
}
BASE: dict[str, Any] = {
    "data": {
        "n_obs": 6000,
        "mixing": {
            "name": "moebius",
            "matrix": [
                [0.89529806, 0.07969353, 0.4382811],
                [-0.33718466, 0.76419597, 0.54982818],
                [-0.29111491, -0.64004176, 0.71105461],
            ],
            "centre": [1.74481176, -0.7612069, 1.46210794],
        },
    },
    "training": {"max_epochs": 12, "validate_every": 3},  # too few epochs for a member to stop early
    "members": {"seed": [1, 2, 3, 4, 5]},
}
SEARCH: dict[str, Any] = {  # space of the table
    "model": {
        "gamma": {"type": "float", "low": 10**0.375, "high": 10**3.625, "log": True},
        "hidden_factor": {"type": "choice", "values": SHARED["model.hidden_factor"]},
        "n_layers": {"type": "int", "low": 2, "high": 4},
        "activation": {"type": "choice", "values": SHARED["model.activation"]},
    },
    "training": {"learning_rate": {"type": "float", "low": 10 ** (-12.5 / 3), "high": 10 ** (-2.5 / 3), "log": True}},
}


class Response:
    """The table, as a function of a point."""

    def __init__(self) -> None:
        table = pd.read_csv(FILE, comment="#").set_index([*SHARED, *OWN])["score"]
        self._scores: dict[Any, float] = table.to_dict()
        self.best = float(table.max())

    def __call__(self, point: Mapping[str, float | int | str]) -> float:
        """Score of a point with a value for each setting."""
        own = [min(nodes, key=lambda node: abs(np.log(node / float(point[key])))) for key, nodes in OWN.items()]
        return self._scores[(*(point[key] for key in SHARED), *own)]

    def share_above(self, goal: float) -> float:
        """Share of the nodes, and so of random points, that have at least this score."""
        return sum(score >= goal for score in self._scores.values()) / len(self._scores)


def trained(architecture: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of one architecture."""
    base = with_values(run_config(BASE), architecture)
    points = [dict(zip(OWN, values, strict=True)) for values in itertools.product(*OWN.values())]
    rows = []
    for start in range(0, len(points), PACK):
        some = points[start : start + PACK]
        session = Session.start([with_values(base, point) for point in some], torch.device("cpu"))
        for _ in session.train():
            pass
        scores = session.scores([Objective()])
        rows += [{**architecture, **point, "score": score} for point, [score] in zip(some, scores, strict=True)]
    return rows


def main() -> None:
    """Train every node."""
    torch.set_num_threads(1)
    architectures = [dict(zip(SHARED, values, strict=True)) for values in itertools.product(*SHARED.values())]
    write([row for architecture in architectures for row in trained(architecture)])


def write(rows: list[dict[str, Any]]) -> None:
    """Write the table with its origin in the first line."""
    table = pd.DataFrame(rows).round({"score": 4})
    FILE.parent.mkdir(exist_ok=True)
    origin = f"imavae {version('imavae')}, torch {torch.__version__}, {date.today()}"
    FILE.write_text(f"# python -m tests.response ({origin})\n" + table.to_csv(index=False))


if __name__ == "__main__":
    main()
