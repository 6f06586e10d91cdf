"""A response that a search has really met: val/mcc over gamma, learning rate, width and depth, as a table.

``python -m tests.response`` trains all of it anew and writes ``response.csv`` beside this file: 6,000 observations of
the default MLP mixing of five uniform sources, five epochs, three seeds, float32; the median over seeds of val/mcc, as
a study scores it. Few points are good after so short a time, so that there is something to search for. Between its
nodes the response is linear in log gamma, log rate, log width and depth.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.interpolate import RegularGridInterpolator

from imavae.config import Objective, run_config, with_values

FILE = Path(__file__).with_suffix(".csv")
AXES: dict[str, list[float]] = {
    "model.gamma": [round(10 ** (k / 2), 4) for k in range(-1, 10)],  # 0.316 to 31,623
    "training.learning_rate": [round(10 ** (k / 2), 8) for k in range(-10, -1)],  # 1e-5 to 1e-1
    "model.hidden_factor": [4, 8, 16],
    "model.n_layers": [2, 3],
}
BASE = {
    "data": {"dim": 5, "n_obs": 6000, "mixing": {"name": "mlp"}},
    "training": {"max_epochs": 5},
    "members": {"seed": [1, 2, 3]},
}


class Response:
    """The table, as a function of a point."""

    def __init__(self) -> None:
        table = pd.read_csv(FILE).sort_values(list(AXES))["score"].to_numpy()
        nodes = [np.log(values) if key != "model.n_layers" else np.array(values) for key, values in AXES.items()]
        self.best = float(table.max())
        self._between = RegularGridInterpolator(nodes, table.reshape([len(values) for values in AXES.values()]))

    def __call__(self, point: dict[str, float | int | str]) -> float:
        """The score of a point, which has a value for each axis."""
        place = [float(point[key]) if key == "model.n_layers" else np.log(float(point[key])) for key in AXES]
        return float(self._between(place)[0])


def main() -> None:
    """Train every node; an architecture's points train in one ensemble."""
    from imavae.run import Session

    torch.set_num_threads(1)
    base = run_config(BASE)
    shared = [key for key in AXES if key in ("model.hidden_factor", "model.n_layers")]
    own = [key for key in AXES if key not in shared]
    rows = []
    for architecture in itertools.product(*(AXES[key] for key in shared)):
        inner = list(itertools.product(*(AXES[key] for key in own)))
        points = [dict(zip([*shared, *own], [*architecture, *values], strict=True)) for values in inner]
        session = Session.start([with_values(base, point) for point in points], torch.device("cpu"))
        for _ in session.train():
            pass
        rows += [
            {**point, "score": score} for point, [score] in zip(points, session.scores([Objective()]), strict=True)
        ]
        print(architecture, max(row["score"] for row in rows), flush=True)
    pd.DataFrame(rows)[[*AXES, "score"]].sort_values(list(AXES)).round({"score": 6}).to_csv(FILE, index=False)


if __name__ == "__main__":
    main()
