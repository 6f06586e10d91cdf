"""Drawings for the text width of a page, in the style ``STYLE``. Series differ in colour, marker and line, so that they
can be told apart in grey and by colour-blind readers.

The first functions each draw one kind of figure from its studies; the others draw their parts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter, NullLocator

from imavae.paper import quantities as q
from imavae.paper.quantities import Points, Quantity, Study, summarise, table
from imavae.report.drawing import BLUE, GREY, INK, VERMILLION, finite_or_nan, floats
from imavae.report.summary import Floats, column_values, quartiles
from imavae.runs.records import metric_of

WIDTH = 5.5  # inches: the text of a NeurIPS page
GREEN, ORANGE, PURPLE = "#009E73", "#E69F00", "#CC79A7"  # of Okabe and Ito
STYLE = Path(__file__).with_name("paper.mplstyle")
FLOOR = 1e-8  # of a log axis: values below are rounding errors
WIDE_RATIO = 3.0  # a variance ratio above it needs a log axis
ENTROPY = 1.5 * math.log(2 * math.pi * math.e)  # of three standard Gaussians (the rotation's data), in nats
ASIDE = 0.05  # distance of a kind's marks from its tick
BESIDE = 10**0.08  # factor of γ² by which published marks are moved, so that no bars overlap
SHOWN = (q.MCC, q.CONTRAST)  # of most figures
OVER_GAMMA = dataclasses.replace(q.OVER_GAMMA, axis="γ²")  # where panels are small
FITTED = (q.LOCATION_MCC, q.CONTRAST, q.GAP._replace(axis="distance from the\ntrue likelihood (nats)", log=False))


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
            _published(one, table(published).where(quantity.column, {}))
    _medians(axes[0], LINEAR_ICA, points, study.members, q.LINEAR_ICA.column)
    if truth:
        x = points.positions(study.members)
        medians = [summarise(members, q.TRUTH).median for _, members in points.groups(study.members)]
        label = "contrast of the mixing itself"  # the first one, of orthogonal columns, is 0
        axes[1].plot(x[1:], medians[1:], "--", color=VERMILLION, linewidth=1, label=label)
    _legend(figure, axes)
    return figure


def by_prior(studies: Sequence[Study]) -> Figure:
    """Draw MCC and c_IMA at the last validation over γ², by the published estimator, with a series per prior.

    A column of panels is a study of one number of sources. Published medians have hollow marks.
    """
    figure, panels = _panels(2, len(studies), 1.6, [quantity for quantity in SHOWN for _ in studies])
    known = table("moebius_priors_dimensions")
    for one, (quantity, study) in zip(panels, itertools.product(SHOWN, studies), strict=True):
        dim, column = study.config.data.dim, quantity.at(q.LAST).column
        _points_axis(one, OVER_GAMMA)
        priors = study.members.groupby("model.prior.name", sort=False)
        for look, (prior, members) in zip(PRIOR_LOOKS, priors, strict=True):
            name = {"gaussian": "Gaussian", "laplace": "Laplace"}.get(str(prior), str(prior))
            _medians(one, Look(f"{name} prior, ours", *look), OVER_GAMMA, members, column)
            there = known.where(column, {"prior": prior, "dim": dim})
            colour, marker, _ = look
            _published(one, there, Look(f"{name} prior, published", colour, marker, "none", hollow=True))
        if quantity is q.MCC:
            _medians(one, LINEAR_ICA, OVER_GAMMA, study.members, q.LINEAR_ICA.column)
            one.set_title(f"d = {dim}")
        if study is not studies[0]:
            one.set_ylabel("")
    _legend(figure, panels)
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
        if contrast == q.MIXING:
            one.set_xscale("log")
    _dots(axes[0], study.members, contrast, q.LINEAR_ICA.column, LINEAR_ICA)
    _legend(figure, axes)
    return figure


def self_consistency(studies: Sequence[Study]) -> Figure:
    """Draw variance ratio, reconstruction error and its inverse, the most likely γ², ELBO gap, MCC and c_IMA over γ² of
    the rotation and of the MLP.
    """
    rotation, mlp = (study.members for study in studies)
    looks = (
        Look("rotation, published estimator", BLUE, "o", "-"),
        Look("rotation, corrected", GREEN, "s", ":"),
        Look("MLP mixing, corrected", ORANGE, "^", "-."),
    )
    shown = (q.RATIO, q.ERROR, q.PRECISION, q.GAP, *SHOWN)
    figure, axes = _panels(2, 3, 1.9, shown)
    known = table("rotation_gamma_gaussian")
    for one, quantity in zip(axes, shown, strict=True):
        _points_axis(one, OVER_GAMMA)
        _medians(one, looks[0], OVER_GAMMA, rotation, quantity.column)
        if quantity.corrected is not None:
            _medians(one, looks[1], OVER_GAMMA, rotation, quantity.corrected)
        _medians(one, looks[2], OVER_GAMMA, mlp, quantity.best)
        if quantity is q.RATIO:
            one.axhline(1, color=GREY, linewidth=0.8)
        if quantity is q.PRECISION:  # the error was published
            _published(one, known.where(q.ERROR.column, {}), by=lambda error: 1 / error)
            one.plot(*[[10, 1e6]] * 2, color=GREY, linewidth=0.8, label="γ²")
        elif quantity is q.GAP:  # the −ELBO was published
            _published(one, known.where(q.NEG_ELBO.column, {}), by=lambda neg_elbo: neg_elbo - ENTROPY)
        else:
            _published(one, known.where(quantity.column, {}))
    for look, members in ((looks[0], rotation), (looks[2], mlp)):
        look = dataclasses.replace(look, label=f"{look.label.partition(',')[0]}, linear ICA", marker="_", line="-.")
        _medians(axes[4], look, OVER_GAMMA, members, q.LINEAR_ICA.column)
    if axes[0].get_ylim()[1] > WIDE_RATIO:
        axes[0].set_yscale("log")
    _legend(figure, axes, columns=2)
    return figure


def elbo_gap(studies: Sequence[Study]) -> Figure:
    """Draw ELBO* over γ² with its two candidate limits: our two mixings, and two published curves."""
    figure, axes = _panels(2, 2, 1.9)
    titles = ("ours, triangular MLP", "ours, Möbius map", "published, triangular MLP", "published, zero contrast")
    limits = [[float(np.median(floats(s.members[f"val/{n} {q.AT}"]))) for n in ("log_px", "l_ima")] for s in studies]
    limits += [[q.ELBO_LOG_PX, q.ELBO_L_IMA], [q.ELBO_CONFORMAL] * 2]
    for one, title, (log_px, l_ima) in zip(axes, titles, limits, strict=True):
        one.axhline(log_px, color=INK, linewidth=0.9, linestyle="-.", label=r"$E[\log p(x)]$")
        one.axhline(l_ima, color=GREEN, linewidth=1.2, linestyle=":", label=r"$E[L_{\mathrm{IMA}}]$")
        _points_axis(one, OVER_GAMMA)
        one.set_title(title)
    for one, study in zip(axes, studies, strict=False):
        look = Look("ELBO*, ours", BLUE, "o", "-")
        _medians(one, look, OVER_GAMMA, study.members, f"val/neg_elbo {q.AT}", negated=True)
    known = table("elbo_gap_triangular_mlp").rows
    x, mean, std = (floats(known[name]) for name in ("log10_gamma_sq", "elbo_mean", "elbo_std"))
    curve = dataclasses.replace(PUBLISHED, label="ELBO*, published (mean, standard deviation)")
    _marks(axes[2], curve, 10**x * BESIDE, mean, std)
    conformal = table("elbo_gap_ima_class").rows
    curve = dataclasses.replace(PUBLISHED, label="ELBO*, published")
    _marks(axes[3], curve, *(floats(conformal[name]) for name in ("gamma_sq", "elbo_star")))
    for one in axes[::2]:
        one.set_ylabel("nats")
    _legend(figure, axes, columns=2)
    return figure


def spurious(studies: Sequence[Study]) -> Figure:
    """Draw likelihood, ELBO* and its law, MCC and c_IMA of true decoders f ∘ a over the angle of a: a row per study."""
    figure, axes = _panels(len(studies), 3, 1.8, (q.LIKELIHOOD, q.MCC, q.EXACT) * len(studies))
    for study, left, middle, right in zip(studies, axes[::3], axes[1::3], axes[2::3], strict=True):
        law = study.members.assign(law=study.members[q.LIKELIHOOD.column] - study.members[q.EXACT.column])
        for one in (left, middle, right):
            _points_axis(one, q.OVER_ANGLE)
            one.set_xticks([0, 30, 60, 90])
        _medians(left, Look("log-likelihood", INK, "none", "-."), q.OVER_ANGLE, law, q.LIKELIHOOD.column)
        _medians(left, Look("the law, exact", GREEN, "none", ":"), q.OVER_ANGLE, law, "law")
        _medians(left, Look("ELBO*", BLUE, "o", "none"), q.OVER_ANGLE, law, q.NEG_ELBO.column, negated=True)
        _medians(right, Look("the law, exact", GREEN, "none", ":"), q.OVER_ANGLE, law, q.EXACT.column)
        for one, quantity in ((middle, q.MCC), (right, q.CONTRAST)):
            _medians(one, Look("of the trained encoder", ORANGE, "^", "none"), q.OVER_ANGLE, law, quantity.best)
        left.set_title(study.name.partition("_")[2])
    _legend(figure, axes, columns=4)
    return figure


def axis_of(study: Study) -> Points:
    """Return λ for a study of flows, and γ² for one of VAEs."""
    return q.OVER_WEIGHT if study.config.model.is_flow else OVER_GAMMA


def vae_and_flow(studies: Sequence[Study]) -> Figure:
    """Draw MCC, c_IMA and distance from the true likelihood, over γ² or λ: a row per study."""
    figure, axes = _panels(len(studies), 3, 1.45, FITTED * len(studies))
    for row, study in enumerate(studies):
        points, panels = axis_of(study), axes[3 * row : 3 * row + 3]
        look = Look("flow", VERMILLION, "s", "-") if study.config.model.is_flow else Look("VAE", BLUE, "o", "-")
        for one, quantity in zip(panels, FITTED, strict=True):
            _points_axis(one, points, study.members)
            _medians(one, look, points, study.members, quantity.best)
        _medians(panels[0], LINEAR_ICA, points, study.members, q.LINEAR_ICA.column)
        truth = summarise(study.members, q.TRUTH).median
        if truth > FLOOR:
            panels[1].axhline(truth, color=INK, linewidth=1, linestyle="--", label="contrast of the mixing itself")
        panels[1].set_title(f"{look.label}, {study.name.partition('_')[2].replace('_', ' ')}")
    _legend(figure, axes, columns=4)
    return figure


def over_epochs(
    studies: Sequence[Study], quantities: Sequence[Quantity], corrected: bool = True, published: str | None = None
) -> Figure:
    """Draw quantities over the epochs: each member, and medians with quartiles; and published means with deviations."""
    [study] = studies
    history = study.history.assign(**{"val/gamma": study.history["val/gamma"] ** 2})
    figure, axes = _panels(1, len(quantities), 2.1, quantities)
    for one, quantity in zip(axes, quantities, strict=True):
        column = metric_of(quantity.best if corrected else quantity.column)
        one.set_xlabel("epoch")
        for _, curve in history.groupby("seed"):
            one.plot(floats(curve["epoch"]), floats(curve[column]), color=GREY, linewidth=0.5, alpha=0.6)
        by_epoch = {epoch: quartiles(floats(group[column])) for epoch, group in history.groupby("epoch")}
        x, (low, middle, high) = floats(list(by_epoch)), np.array(list(by_epoch.values())).T
        one.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0)
        label = f"median and quartiles, {'corrected' if corrected else 'published'} estimators"
        marker = "o" if len(x) == 1 else None  # a single validation makes no line
        one.plot(x, middle, color=BLUE, linewidth=1.4, marker=marker, label=label)
        if quantity is q.MCC:
            level = summarise(study.members, q.LINEAR_ICA.column).median
            one.axhline(level, color=INK, linewidth=1, linestyle="-.", label="linear ICA")
        if published is not None:
            known, name = table(published).rows, column.removeprefix("val/")
            look = dataclasses.replace(PUBLISHED, label="published (mean, standard deviation)")
            _marks(one, look, *(floats(known[key]) for key in ("epoch", f"{name}_mean", f"{name}_std")))
    axes[0].plot([], [], color=GREY, linewidth=0.5, label="a member")
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


def _published(
    axes: Axes, rows: pd.DataFrame, look: Look = PUBLISHED, by: Callable[[Floats], Floats] = lambda value: value
) -> None:
    """Draw published medians and quartiles over γ²; the monotone function ``by`` is applied to them."""
    rows = rows.sort_values("gamma_sq")
    middle, *quartiles = (by(floats(rows[key])) for key in ("median", "q25", "q75"))
    _marks(axes, look, floats(rows["gamma_sq"]) * BESIDE, middle, np.abs(np.sort(quartiles, axis=0) - middle))


def _marks(axes: Axes, look: Look, x: Floats, y: Floats, bars: Floats | None = None) -> None:
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
