"""The maximum-likelihood gamma: where it goes, and what becomes of recovery on the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imavae.paper import style as paper
from imavae.paper.figure import Entry
from imavae.paper.gamma import estimators
from imavae.paper.judge import Row
from imavae.paper.quantities import AT, CONTRAST, MCC, NEG_ELBO, Quantity
from imavae.paper.statistics import summarise
from imavae.paper.studies import Study
from imavae.paper.style import Look
from imavae.report.drawing import BLUE, GREY, floats
from imavae.report.summary import AT_BEST_MCC, quartiles

GAMMA = Quantity("gamma", "γ² (precision of the decoder)", f"val/gamma {AT}", log=True)
STATES = {"min −ELBO": AT, "max MCC": AT_BEST_MCC}


def rows(studies: Sequence[Study]) -> list[Row]:
    """Gamma, recovery, contrast and −ELBO at each of a member's two best states; nothing was published."""
    [study] = studies

    def row(point: str, state: str, quantity: Quantity) -> Row:
        columns = [None if column is None else column.replace(AT, state) for column in quantity[2:4]]
        ours, corrected = (None if column is None else summarise(study.members, column) for column in columns)
        assert ours is not None  # noqa: S101  -- every quantity has a column
        return Row(study.name, point, quantity.label, ours, corrected=corrected)

    return [
        row(point, state, quantity) for point, state in STATES.items() for quantity in (GAMMA, MCC, CONTRAST, NEG_ELBO)
    ]


def draw(studies: Sequence[Study]) -> Figure:
    """γ², MCC and c_IMA over the epochs: each member, and the median with its quartiles."""
    history = studies[0].history.assign(**{"val/gamma_sq": studies[0].history["val/gamma"] ** 2})
    figure, axes = paper.panels(1, 3, 2.1)
    shown = (("val/gamma_sq", GAMMA), ("val/mcc", MCC), ("val/cima", CONTRAST))
    for one, (column, quantity) in zip(axes, shown, strict=True):
        one.set_xlabel("epoch")
        paper.quantity_axis(one, quantity)
        for _, curve in history.groupby("seed"):
            one.plot(floats(curve["epoch"]), floats(curve[column]), color=GREY, linewidth=0.5, alpha=0.6)
        _median(one, [(float(epoch), floats(group[column])) for epoch, group in history.groupby("epoch")])  # type: ignore[arg-type]
    axes[0].plot([], [], color=GREY, linewidth=0.5, label="a member")
    paper.legend(figure, axes)
    return figure


def _median(axes: Axes, groups: list[tuple[float, np.ndarray]]) -> None:
    look = Look("median and quartiles, corrected estimators", BLUE, "", "-")
    x = np.array([epoch for epoch, _ in groups])
    low, middle, high = np.array([quartiles(values) for _, values in groups]).T
    axes.fill_between(x, low, high, color=look.colour, alpha=0.2, linewidth=0)
    axes.plot(x, middle, look.line, color=look.colour, linewidth=1.4, label=look.label)


ENTRIES = (
    Entry(
        name="gamma_mle",
        shows="γ² set to its most likely value after each epoch, and MCC and c_IMA on the way",
        searches=("paper/moebius_learned_gamma",),
        minutes=2,
        rows=rows,
        draw=draw,
        differs=estimators(),
    ),
)
