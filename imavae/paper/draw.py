"""Drawings for the text width of a page, in the style ``STYLE``. Series differ in colour, marker and line, so that they
can be told apart in grey and by colour-blind readers.

The first functions each draw one kind of figure from its studies; the others draw their parts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter, NullLocator

from imavae.paper import quantities as q
from imavae.paper.quantities import ELBO_L_IMA, ELBO_LOG_PX, Points, Quantity, Study, Table, summarise, table
from imavae.report.drawing import BLUE, GREY, INK, VERMILLION, finite_or_nan, floats
from imavae.report.summary import Floats, column_values, quartiles

WIDTH = 5.5  # inches: the text of a NeurIPS page
GREEN, ORANGE, PURPLE = "#009E73", "#E69F00", "#CC79A7"  # of Okabe and Ito
STYLE = Path(__file__).with_name("paper.mplstyle")
FLOOR = 1e-8  # of a log axis: values below are rounding errors
WIDE_RATIO = 3.0  # a variance ratio above it needs a log axis
ENTROPY = 1.5 * math.log(2 * math.pi * math.e)  # of three standard Gaussians (the rotation's data), in nats
ASIDE = 0.05  # distance of a kind's marks from its tick
BESIDE = 10**0.08  # factor of γ² by which published marks are moved, so that no bars overlap
SHOWN = (q.MCC, q.CONTRAST)  # of most figures


@dataclass(frozen=True)
class Look:
    """Label, colour, marker and line of a series."""

    label: str
    colour: str
    marker: str
    line: str
    hollow: bool = False


PUBLISHED = Look("published", VERMILLION, "D", "--", hollow=True)
OURS = Look("ours, published estimator", BLUE, "o", "-")
CORRECTED = Look("ours, corrected estimator", GREEN, "s", ":")
LINEAR_ICA = Look("linear ICA", INK, "_", "-.")
PRIOR_LOOKS = ((BLUE, "o", "-"), (ORANGE, "^", "--"), (PURPLE, "s", ":"))


def recovery(studies: Sequence[Study], points: Points, published: str | None, truth: bool) -> Figure:
    """Draw MCC and c_IMA over points by both estimators, beside published medians over γ².

    ``truth`` adds the contrast of the mixing itself.
    """
    [study] = studies
    figure, axes = _panels(1, 2, 2.3, SHOWN)
    aside = ASIDE if points.kinds else 0.0
    for one, quantity in zip(axes, SHOWN, strict=True):
        _points_axis(one, points, study.members)
        _medians(one, OURS, points, study.members, quantity.column, -aside)
        _medians(one, CORRECTED, points, study.members, quantity.best, aside)
        if published is not None:
            _published(one, table(published), quantity)
    _medians(axes[0], LINEAR_ICA, points, study.members, q.LINEAR_ICA.column)
    if truth:
        x = points.positions(study.members)
        medians = [summarise(members, q.TRUTH).median for _, members in points.groups(study.members)]
        label = "contrast of the mixing itself"  # the first one, of orthogonal columns, is 0
        axes[1].plot(x[1:], medians[1:], "--", color=VERMILLION, linewidth=1, label=label)
    _legend(figure, axes)
    return figure


def by_prior(studies: Sequence[Study], points: Points) -> Figure:
    """Draw corrected MCC and c_IMA over points, with a series per prior."""
    [study] = studies
    figure, axes = _panels(1, 2, 2.3, SHOWN)
    for one, quantity in zip(axes, SHOWN, strict=True):
        _points_axis(one, points, study.members)
        one.set_xticks(points.positions(study.members))
        priors = study.members.groupby("model.prior.name", sort=False)
        for look, (prior, members) in zip(itertools.cycle(PRIOR_LOOKS), priors, strict=False):
            label = f"{prior} prior".replace("gaussian", "Gaussian")
            _medians(one, Look(label, *look), points, members, quantity.best)
    _medians(axes[0], LINEAR_ICA, points, study.members, q.LINEAR_ICA.column)
    _legend(figure, axes)
    return figure


def over_contrast(studies: Sequence[Study], contrast: str, published: str | None) -> Figure:
    """Draw MCC and the decoder's c_IMA over a contrast of the mixing, a dot per member.

    With published runs only the published estimator is drawn, beside them.
    """
    [study] = studies
    figure, axes = _panels(1, 2, 2.3, SHOWN)
    for one, quantity in zip(axes, SHOWN, strict=True):
        if published is not None:
            _dots(one, table(published).rows, contrast, quantity.column, PUBLISHED)
        else:
            _dots(one, study.members, contrast, quantity.best, CORRECTED)
        _dots(one, study.members, contrast, quantity.column, OURS)
        one.set_xlabel(rf"$c_{{\mathrm{{IMA}}}}$ of the {'linear map' if contrast == q.LINEAR else 'mixing'} (nats)")
    _dots(axes[0], study.members, contrast, q.LINEAR_ICA.column, LINEAR_ICA)
    _legend(figure, axes)
    return figure


def self_consistency(studies: Sequence[Study]) -> Figure:
    """Draw variance ratio, reconstruction error, ELBO gap and MCC over γ² of the rotation and of the MLP."""
    rotation, mlp = (study.members for study in studies)
    looks = (
        Look("rotation, published estimator", BLUE, "o", "-"),
        Look("rotation, corrected", GREEN, "s", ":"),
        Look("MLP mixing, corrected", ORANGE, "^", "-."),
    )
    shown = (q.RATIO, q.ERROR, q.GAP, q.MCC)
    figure, axes = _panels(2, 2, 1.9, shown)
    known = table("rotation_gamma_gaussian")
    for one, quantity in zip(axes, shown, strict=True):
        _points_axis(one, q.OVER_GAMMA)
        _medians(one, looks[0], q.OVER_GAMMA, rotation, quantity.column)
        if quantity.corrected is not None:
            _medians(one, looks[1], q.OVER_GAMMA, rotation, quantity.corrected)
        _medians(one, looks[2], q.OVER_GAMMA, mlp, quantity.best)
        if quantity is q.RATIO:
            one.axhline(1, color=GREY, linewidth=0.8)
        if quantity is q.GAP:  # the −ELBO was published
            _published(one, known, q.NEG_ELBO, -ENTROPY)
        else:
            _published(one, known, quantity)
    for look, members in ((looks[0], rotation), (looks[2], mlp)):
        look = dataclasses.replace(look, label=f"{look.label.partition(',')[0]}, linear ICA", marker="_", line="-.")
        _medians(axes[3], look, q.OVER_GAMMA, members, q.LINEAR_ICA.column)
    if axes[0].get_ylim()[1] > WIDE_RATIO:
        axes[0].set_yscale("log")
    _legend(figure, axes, columns=2)
    return figure


def elbo_gap(studies: Sequence[Study]) -> Figure:
    """Draw ELBO* over γ² with its two candidate limits: our two mixings, and the published curve."""
    figure, axes = _panels(1, 3, 2.2)
    titles = ("ours, triangular MLP", "ours, Möbius map", "published, triangular MLP")
    limits = [[float(np.median(floats(s.members[f"val/{n} {q.AT}"]))) for n in ("log_px", "l_ima")] for s in studies]
    for one, title, (log_px, l_ima) in zip(axes, titles, [*limits, (ELBO_LOG_PX, ELBO_L_IMA)], strict=True):
        one.axhline(log_px, color=INK, linewidth=0.9, linestyle="-.", label=r"$E[\log p(x)]$")
        one.axhline(l_ima, color=GREEN, linewidth=1.2, linestyle=":", label=r"$E[L_{\mathrm{IMA}}]$")
        _points_axis(one, dataclasses.replace(q.OVER_GAMMA, axis="γ²"))
        one.set_title(title)
    for one, study in zip(axes, studies, strict=False):
        look = Look("ELBO*, ours", BLUE, "o", "-")
        _medians(one, look, q.OVER_GAMMA, study.members, f"val/neg_elbo {q.AT}", negated=True)
    known = table("elbo_gap_triangular_mlp").rows
    x, mean, std = (floats(known[name]) for name in ("log10_gamma_sq", "elbo_mean", "elbo_std"))
    curve = dataclasses.replace(PUBLISHED, label="ELBO*, published (mean, standard deviation)")
    _marks(axes[2], curve, 10**x * BESIDE, mean, std)
    axes[0].set_ylabel("nats")
    _legend(figure, axes, columns=2)
    return figure


def over_epochs(studies: Sequence[Study]) -> Figure:
    """Draw γ², MCC and c_IMA over the epochs: each member, and medians with quartiles."""
    [study] = studies
    history = study.history.assign(**{"val/gamma_sq": study.history["val/gamma"] ** 2})
    figure, axes = _panels(1, 3, 2.1, (q.GAMMA, *SHOWN))
    for one, column in zip(axes, ("val/gamma_sq", "val/mcc", "val/cima"), strict=True):
        one.set_xlabel("epoch")
        for _, curve in history.groupby("seed"):
            one.plot(floats(curve["epoch"]), floats(curve[column]), color=GREY, linewidth=0.5, alpha=0.6)
        by_epoch = {epoch: quartiles(floats(group[column])) for epoch, group in history.groupby("epoch")}
        x, (low, middle, high) = floats(list(by_epoch)), np.array(list(by_epoch.values())).T
        one.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0)
        one.plot(x, middle, color=BLUE, linewidth=1.4, label="median and quartiles, corrected estimators")
    axes[0].plot([], [], color=GREY, linewidth=0.5, label="a member")
    level = summarise(study.members, q.LINEAR_ICA.column).median
    axes[1].axhline(level, color=INK, linewidth=1, linestyle="-.", label="linear ICA")
    _legend(figure, axes)
    return figure


def _panels(rows: int, columns: int, height: float, quantities: Sequence[Quantity] = ()) -> tuple[Figure, list[Axes]]:
    """Return a page-wide figure with panels of ``height`` inches, whose y-axes show the quantities."""
    figure = Figure(figsize=(WIDTH, height * rows + 0.45), layout="constrained", facecolor="white")
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes, quantity in zip(panels, quantities, strict=False):
        axes.set_ylabel(quantity.axis)
        if quantity.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=6))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if quantity.limits:
            axes.set_ylim(*quantity.limits)
    return figure, panels


def _medians(
    axes: Axes,
    look: Look,
    points: Points,
    members: pd.DataFrame,
    column: str,
    aside: float = 0.0,
    negated: bool = False,
) -> None:
    """Draw medians of a column (or of its negative) over points, each with a bar for its 95 % interval.

    Numbers are joined by a line, and their quartiles by a band; kinds are not.
    """
    x = points.positions(members) + aside
    parts = finite_or_nan(np.array([summarise(group, column)[1:] for _, group in points.groups(members)]).T)
    if negated:
        parts = -parts[[0, 2, 1, 4, 3]]
    if axes.get_yscale() == "log":
        parts = np.maximum(parts, FLOOR)
    median, low, high, bottom, top = parts
    if points.kinds:
        look = dataclasses.replace(look, line="none")
    else:
        axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)
    bars = np.array([median - bottom, top - median]).clip(min=0)
    _marks(axes, look, x, median, np.nan_to_num(bars))


def _published(axes: Axes, known: Table, quantity: Quantity, shift: float = 0.0) -> None:
    """Draw the published medians and quartiles of a quantity over γ², with ``shift`` added to them."""
    rows = known.rows[known.rows["quantity"] == quantity.column].sort_values("gamma_sq")
    x, middle, low, high = (floats(rows[key]) for key in ("gamma_sq", "median", "q25", "q75"))
    _marks(axes, PUBLISHED, x * BESIDE, middle + shift, np.abs(np.array([low, high]) + shift - (middle + shift)))


def _marks(axes: Axes, look: Look, x: Floats, y: Floats, bars: Floats) -> None:
    face = "white" if look.hollow else look.colour
    axes.errorbar(
        x, y, bars, label=look.label, color=look.colour, marker=look.marker, mfc=face, ls=look.line, elinewidth=0.8
    )


def _dots(axes: Axes, rows: pd.DataFrame, x: str, y: str, look: Look) -> None:
    face = "none" if look.hollow else look.colour
    places = floats(rows[x]), column_values(rows, y)
    axes.plot(*places, look.marker, color=look.colour, mfc=face, ms=3, mew=0.7, alpha=0.75, label=look.label)


def _points_axis(axes: Axes, points: Points, members: pd.DataFrame | None = None) -> None:
    """Label and scale the x-axis; kinds stand at whole numbers, a log axis has a tick at each (other) decade."""
    axes.set_xlabel(points.axis)
    if points.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=7))
        axes.xaxis.set_minor_locator(NullLocator())
    elif points.kinds and members is not None:
        names = [points.label(*key) for key, _ in points.groups(members)]
        axes.set_xticks(np.arange(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)


def _legend(figure: Figure, axes: Sequence[Axes], columns: int = 3) -> None:
    """Draw one legend for all panels below them; equal labels appear once."""
    found: dict[str, Any] = {}
    for one in axes:
        _mark_short_logs(one)
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=min(columns, len(found)))


def _mark_short_logs(axes: Axes) -> None:
    """Add ticks between the powers of ten to a log axis that shows fewer than two of them."""
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        if axis.get_scale() == "log" and sum(low <= mark <= high for mark in axis.get_majorticklocs()) < 2:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(np.inf, np.inf)))
            axis.set_minor_locator(NullLocator())
