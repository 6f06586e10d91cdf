"""Common look of the figures: colours, axes, legends and files.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart. Whatever differs in colour also differs
in shape or stroke.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from imavae.report.display import compact
from imavae.report.summary import Floats

BLUE, VERMILLION, GREY, FAINT, INK = "#0072B2", "#D55E00", "#9AA5B1", "#52606D", "#1F2933"
NEAR_ONE = 0.9  # an MCC is drawn as 1 − MCC, on a log axis, if all values are above this
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"  # of the HTML report
SEED_COLOURS = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")


def floats(column: Iterable[object]) -> Floats:
    """A column as floats, (n,)."""
    return np.array(column, dtype=np.float64)


def finite_or_nan(values: Floats) -> Floats:
    """Values, (..., n), with NaN, which leaves a gap in a line, in place of infinity."""
    return np.where(np.isfinite(values), values, np.nan)


def new_figure(title: str, width: float = 6.6, height: float = 4.4) -> Figure:
    """An empty figure, in inches. It is created without pyplot: no global state, no window."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    set_title(figure, title)
    return figure


def set_title(figure: Figure, title: str) -> None:
    """Set the title of a whole figure."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)


def dress(axes: Axes, x_label: str, y_label: str, note: str = "") -> None:
    """Give finished axes the common look, labels, and a note above them on the right."""
    axes.set_facecolor("white")
    axes.set_xlabel(x_label, color=INK, fontsize=10)
    axes.set_ylabel(y_label, color=INK, fontsize=10)
    axes.set_title(note, loc="right", color=FAINT, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(visible=True, color=GREY)
    axes.tick_params(which="both", color=GREY, labelcolor=INK, labelsize=9)
    axes.grid(axis="x", visible=False)
    axes.grid(axis="y", color="#E4E7EB", linewidth=0.8)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":  # Matplotlib's own labels overlap, or are missing, within two decades
            decades = float(np.ptp(np.log10(axis.get_view_interval())))
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
            axis.set_major_formatter(lambda value, _: compact(value))
            axis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Add a legend below the axes, in rows of similar length."""
    if handles:
        rows = -(-len(handles) // int(figure.get_figwidth() / 1.75))
        columns = -(-len(handles) // rows)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def write_on(axes: Axes, text: str) -> None:
    """Write a text in the middle of empty axes, to explain why they are empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=INK)


def write(figures: Mapping[str, Figure], folder: Path, pdf: bool = False, dpi: int = 150) -> list[Path]:
    """Save each figure as NAME.png, with ``pdf`` as NAME.pdf too, without a date in them, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.set_dpi(dpi)
        canvas: Any = FigureCanvasAgg(figure)  # `figure.savefig` would draw it twice, first to find its layout
        canvas.print_png(str(folder / f"{name}.png"), metadata={"Software": None})
        if pdf:
            figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    return [folder / f"{name}.{suffix}" for name in figures for suffix in ("png", *["pdf"] * pdf)]
