"""A metric over the decoder's precision γ²: a violin over seeds at each of a few gammas, a band along many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from imavae.report.drawing import BLUE, INK, VERMILLION, dress, finite_or_nan, floats, legend, new_figure, say
from imavae.report.summary import (
    AGREEMENT,
    AT_BEST_MCC,
    AT_BEST_NEG_ELBO,
    BEST_MCC,
    Floats,
    counted,
    diverged,
    has_sources,
    quartiles,
)

CONTRAST_FLOOR = 1e-8  # of the log axis: a contrast below it is rounding
FEW_GAMMAS = 10  # up to so many distinct gammas each one gets a column of its own
AT_CHOSEN, AT_PAPER = "median, best val/mcc", "median, smallest −ELBO"  # the two protocols, in a legend
VIOLIN_MEMBERS = 8  # a column of fewer members shows them and their quartiles only


class Band(NamedTuple):
    """Quartiles along an axis; NaN where there are none, or infinite ones."""

    low: Floats
    median: Floats
    high: Floats


class Quantity(NamedTuple):
    """What a figure over gamma shows of each member."""

    name: str
    title: str
    label: str
    column: str  # read at the best val/mcc
    paper: str  # the same, read at the smallest val/neg_elbo: the one state that there is without sources
    log: bool


MCC = Quantity(
    "MCC",
    "Recovery of the sources over the decoder's precision",
    "MCC of a member, validation split",
    BEST_MCC,
    f"val/mcc {AT_BEST_NEG_ELBO}",
    False,
)
CONTRAST = Quantity(
    "c_IMA (nats)",
    "Local IMA contrast over the decoder's precision",
    r"$c_{\mathrm{IMA}}$ of a decoder (nats), validation split",
    f"val/cima {AT_BEST_MCC}",
    f"val/cima {AT_BEST_NEG_ELBO}",
    True,
)

SEEDS = Quantity(
    "agreement of seeds",
    "Agreement of seeds over the decoder's precision",
    "agreement of seeds, validation split",
    AGREEMENT,
    AGREEMENT,
    False,
)


@dataclass(frozen=True)
class Reading:
    """A quantity of all members that have a finite gamma, as it is drawn and counted."""

    quantity: Quantity
    members: pd.DataFrame  # rows of members.csv
    x: Floats  # gamma squared of each
    chosen: Floats  # at its best val/mcc; without sources at its smallest val/neg_elbo
    paper: Floats  # at its smallest val/neg_elbo

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Which members have diverged, (member,): they count as the worst."""
        return diverged(self.members)

    @property
    def healthy(self) -> NDArray[np.bool_]:
        """Which members have a value of their own, (member,)."""
        return ~self.failed & np.isfinite(self.chosen)

    @property
    def gap(self) -> float:
        """Decades between the two nearest gammas squared."""
        return float(np.diff(np.log10(np.unique(self.x))).min(initial=1.0))

    @property
    def few(self) -> bool:
        """Whether each gamma can have a column of its own."""
        at = np.unique(self.x)
        return len(at) <= FEW_GAMMAS and self.gap >= float(np.log10(at[-1] / at[0])) / 25

    def lines(self) -> tuple[Floats, Band, Band]:
        """Gammas squared, (gamma,), and, there, the quartiles by either protocol: at a few, or along all."""
        at = np.unique(self.x)
        if len(at) <= FEW_GAMMAS:  # what lies between them nobody knows
            return at, _at_each(self.x, self.chosen, at), _at_each(self.x, self.paper, at)
        at = np.geomspace(at[0], at[-1], 200)
        chosen, paper = (_nearby(self.x, values, at, self.quantity.log) for values in (self.chosen, self.paper))
        return at, chosen, paper


def read(members: pd.DataFrame, quantity: Quantity) -> Reading:
    """One quantity of all members, by both protocols."""
    members = members[np.isfinite(floats(members["gamma_sq"]))]
    columns = (quantity.column if has_sources(members) else quantity.paper, quantity.paper)
    chosen, paper = (_values(members, column, quantity.log) for column in columns)
    return Reading(quantity, members, floats(members["gamma_sq"]), chosen, paper)


def over_gamma(members: pd.DataFrame, quantity: Quantity) -> Figure:
    """Draw one quantity of all members over their gamma², with its medians by both protocols.

    A diverged member is marked at the worst end of the axis, and counts as the worst in the medians and quartiles.
    """
    figure = new_figure(quantity.title)
    axes = figure.subplots()
    dress(axes, "γ² (decoder precision)", quantity.label)
    reading = read(members, quantity)
    x, chosen, failed, healthy = reading.x, reading.chosen, reading.failed, reading.healthy
    if not np.isfinite([chosen[~failed], reading.paper[~failed]]).any():
        say(axes, "no finite value")
    if not x.size:
        return figure
    axes.set_xscale("log")
    axes.set_yscale("log" if quantity.log else "linear")
    _limits(axes, x, chosen[healthy], quantity.log)
    at, middle, dashed = reading.lines()
    if reading.few:
        _columns(axes, x[healthy], chosen[healthy], min(0.28, 0.42 * reading.gap))
    else:
        axes.scatter(x[healthy], chosen[healthy], s=9, color=BLUE, alpha=0.4, linewidths=0, label="member")
        axes.fill_between(at, middle.low, middle.high, color=BLUE, alpha=0.18, linewidth=0, label="quartiles nearby")
    dot, diamond = ("o", "D") if len(at) <= FEW_GAMMAS else ("", "")
    sources = has_sources(members)
    label = AT_CHOSEN if sources else AT_PAPER
    axes.plot(at, middle.median, f"-{dot}", color=BLUE, lw=1.8, mec="white", label=label)
    if sources:
        axes.plot(at, dashed.median, f"--{diamond}", color=VERMILLION, lw=1.4, mfc="none", label=AT_PAPER)
    if failed.any():
        edge = 0.98 if quantity.log else 0.02  # the worst end of the axis
        spot, label = axes.get_xaxis_transform(), lost(failed)
        axes.plot(x[failed], np.full(failed.sum(), edge), "x", color=INK, ms=5, transform=spot, label=label)
    legend(figure, *axes.get_legend_handles_labels())
    return figure


def lost(failed: NDArray[np.bool_]) -> str:
    """What the diverged members, marked in (member,), are called in a legend."""
    return f"diverged ({int(failed.sum())}), counted as worst"


def _values(members: pd.DataFrame, column: str, log: bool) -> Floats:
    """Values as they are drawn and counted: not below the log axis's floor, the diverged at the worst."""
    values = counted(members, column)
    return np.maximum(values, CONTRAST_FLOOR) if log else values


def _at_each(x: Floats, y: Floats, at: Floats) -> Band:
    columns = np.array([quartiles(y[x == value]) for value in at])
    return Band(*finite_or_nan(columns).T)


def _nearby(x: Floats, y: Floats, at: Floats, log: bool) -> Band:
    return Band(*(10**row for row in _smoothed(x, np.log10(y), at))) if log else _smoothed(x, y, at)


def _smoothed(x: Floats, y: Floats, at: Floats) -> Band:
    """Quartiles of the members near each point: those of their distances from a local line, added to the line.

    Without the line a steep slope would turn the window's edges into steps.
    """
    known = ~np.isnan(y)
    order = np.argsort(x[known])
    u, y = np.log10(x[known][order]), y[known][order]
    finite = np.isfinite(y)
    if not finite.any():
        return Band(*np.full((3, len(at)), np.nan))
    away = y - _local_line(u[finite], y[finite], u)
    order = np.argsort(away)
    rows = []
    for weight in _window(u, np.log10(at))[:, order]:
        with np.errstate(invalid="ignore"):  # next to an infinite (diverged) value
            rows.append(np.interp((0.25, 0.5, 0.75), np.cumsum(weight) - weight / 2, away[order]))
    bands = _local_line(u[finite], y[finite], np.log10(at)) + finite_or_nan(np.array(rows)).T
    return Band(*np.clip(bands, y[finite].min(), y[finite].max()))  # the line may overshoot where it is steep


def _window(u: Floats, centres: Floats) -> Floats:
    """Gaussian weights of the points around each centre, a twelfth of the range wide; each row sums to 1."""
    square = ((centres[:, None] - u) / max(0.05, np.ptp(u) / 12)) ** 2
    weight: Floats = np.exp(
        -0.5 * (square - square.min(axis=1, keepdims=True))
    )  # in a wide gap the nearest still count
    weight /= weight.sum(axis=1, keepdims=True)
    return weight


def _local_line(u: Floats, v: Floats, centres: Floats) -> Floats:
    """The value at each centre of the line that fits the points in its window best."""
    weight = _window(u, centres)
    middle, level = weight @ u, weight @ v
    away = u - middle[:, None]
    slope: Floats = ((weight * away) @ v) / ((weight * away**2).sum(axis=1) + 1e-9)
    return level + slope * (centres - middle)


def _columns(axes: Axes, x: Floats, y: Floats, half: float) -> None:
    """At each gamma its members and, where there are enough of them, a violin ``half`` decades wide to either side."""
    unnamed = False  # one legend entry for all columns
    for at in np.unique(x):
        here = y[x == at]
        if len(here) >= VIOLIN_MEMBERS:
            level, density = _density(here, axes.get_yscale() == "log")
            left, right = at * 10 ** (-half * density), at * 10 ** (half * density)
            axes.fill_betweenx(level, left, right, facecolor=BLUE, alpha=0.18, edgecolor=BLUE, linewidth=0.8)
        shift = np.random.default_rng(0).uniform(-0.22, 0.22, len(here)) * half
        axes.scatter(at * 10**shift, here, s=9, color=BLUE, alpha=0.5, linewidths=0, label="_" if unnamed else "member")
        low, _, high = quartiles(here)
        axes.vlines(at, low, high, color=BLUE, linewidth=4, alpha=0.75, label="_" if unnamed else "quartiles")
        unnamed = True


def _density(values: Floats, log: bool) -> tuple[Floats, Floats]:
    """Levels and the values' kernel density there, its peak scaled to 1; on a log axis a density over decades."""
    v = np.log10(values) if log else values
    width = max(0.6 * float(np.std(v)) * len(v) ** -0.2, 0.03 if log else 0.006)
    level = np.linspace(v.min() - 2 * width, v.max() + 2 * width, 120)
    density = np.exp(-0.5 * ((level[:, None] - v) / width) ** 2).sum(axis=1)
    return (10**level if log else np.clip(level, 0.0, 1.0)), density / density.max()


def _limits(axes: Axes, x: Floats, y: Floats, log: bool) -> None:
    """Room to either side, and two decades in all on a log axis: between two ticks nobody can read a value."""
    low, high = np.log10(x.min()), np.log10(x.max())
    pad = max(0.06 * (high - low), (2.2 - (high - low)) / 2, 0.35)
    axes.set_xlim(10 ** (low - pad), 10 ** (high + pad))
    if not log:
        axes.set_ylim(-0.03, 1.03)
    elif y.size:
        low, high = np.log10(y.min()), np.log10(y.max())
        pad = max(0.15 * (high - low), (2.2 - (high - low)) / 2)
        axes.set_ylim(10 ** (low - pad), 10 ** (high + pad))
