"""The paper's look: serif letters (Matplotlib's own STIX; no LaTeX), the text width of a page, series that differ in
colour, marker and stroke, so that they can be told apart in grey and by colour-blind readers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter, NullLocator

from imavae.paper.quantities import Quantity
from imavae.paper.statistics import Summary
from imavae.report.drawing import BLUE, GREY, INK, VERMILLION, finite_or_nan
from imavae.report.summary import Floats

WIDTH = 5.5  # inches: the text of a NeurIPS page
GREEN, ORANGE, PURPLE = "#009E73", "#E69F00", "#CC79A7"  # Okabe and Ito's
STYLE: Any = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.labelcolor": INK,
    "pdf.fonttype": 42,  # letters stay letters
}
FLOOR = 1e-8  # of a log axis: what is below is rounding


@dataclass(frozen=True)
class Look:
    """How a series is told from the others."""

    label: str
    colour: str
    marker: str
    line: str
    hollow: bool = False


PUBLISHED = Look("published", VERMILLION, "D", "--", hollow=True)
OURS = Look("ours, published estimator", BLUE, "o", "-")
CORRECTED = Look("ours, corrected estimator", GREEN, "s", ":")
LOOKS = (  # of series that are no estimators
    Look("", BLUE, "o", "-"),
    Look("", ORANGE, "^", "--"),
    Look("", PURPLE, "s", ":"),
)


@contextmanager
def style() -> Iterator[None]:
    """Within it figures are drawn, and saved, as on paper."""
    with mpl.rc_context(STYLE):
        yield


def panels(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A page-wide figure of so many panels, ``height`` inches each."""
    figure = Figure(figsize=(WIDTH, height * rows + 0.45), layout="constrained", facecolor="white")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#E4E7EB", linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def line(
    axes: Axes, look: Look, x: Floats, summaries: Sequence[Summary], quantity: Quantity, joined: bool = True
) -> None:
    """Medians over x, (n,), with a bar for the median's 95 % interval; joined by a line, and the quartiles by a band,
    unless x stands for kinds rather than numbers.
    """
    parts = np.array([(s.median, s.q25, s.q75, s.low, s.high) for s in summaries], dtype=np.float64).reshape(-1, 5).T
    parts = finite_or_nan(parts)
    if quantity.log:
        parts = np.maximum(parts, FLOOR)
    median, low, high, bottom, top = parts
    if joined:
        axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)
    else:
        look = dataclasses.replace(look, line="none")
    bars = np.array([median - bottom, top - median]).clip(min=0)
    _marked(axes, look, x, median, np.nan_to_num(bars))


def published_line(axes: Axes, look: Look, x: Floats, medians: Floats, quartiles: Floats) -> None:
    """Published medians with bars between the quartiles (2, x), a little aside, so that no bars cover each other."""
    aside = x * 10**0.08 if axes.get_xscale() == "log" else x
    _marked(axes, look, aside, medians, np.abs(quartiles - medians))


def _marked(axes: Axes, look: Look, x: Floats, y: Floats, bars: Floats) -> None:
    face = "white" if look.hollow else look.colour
    axes.errorbar(
        x,
        y,
        bars,
        color=look.colour,
        linestyle=look.line,
        linewidth=1.1,
        elinewidth=0.8,
        capsize=2,
        marker=look.marker,
        markersize=4,
        markerfacecolor=face,
        markeredgewidth=0.8,
        label=look.label,
    )


def gamma_axis(axes: Axes, label: str = "γ² (precision of the decoder)") -> None:
    """γ² on a log axis, a tick at each of its decades or at every other one."""
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())


def quantity_axis(axes: Axes, quantity: Quantity) -> None:
    """The quantity's name, unit, scale and limits."""
    axes.set_ylabel(quantity.axis)
    if quantity.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if quantity.limits:
        axes.set_ylim(*quantity.limits)


def legend(figure: Figure, axes: Sequence[Axes], columns: int = 3) -> None:
    """One legend for all panels, under them; of equal labels the first."""
    found: dict[str, Any] = {}
    for one in axes:
        _mark_short_logs(one)
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncols=min(columns, len(found)), frameon=False
    )


def _mark_short_logs(axes: Axes) -> None:
    """Give a log axis that spans no two powers of ten marks between them."""
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        if axis.get_scale() == "log" and sum(low <= mark <= high for mark in axis.get_majorticklocs()) < 2:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(np.inf, np.inf)))
            axis.set_minor_locator(NullLocator())
