"""Figures of one run: what its members have made of the sources, and whether their posteriors agree with theory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from imavae.metrics.figure_data import PosteriorShapes
from imavae.report.drawing import BLUE, FAINT, INK, VERMILLION, dress, floats, legend, new_figure, say, write
from imavae.report.figures import SEED_COLOURS

SHOWN = 8  # members, at the most


def run_figures(
    shapes: PosteriorShapes, names: list[str], factors: list[str], history: pd.DataFrame, folder: Path
) -> list[Path]:
    """Draw latents against sources, posterior variances against their formula and, where it moves, gamma over time.

    Args:
        shapes: of the members at their best states, on the validation split; without sources, latents have no figure.
        names: what its members are called.
        factors: what its sources are called.
        history: rows of ``history.csv``, with ``seed``, ``epoch`` and ``val/gamma``.
        folder: where the files go.

    Returns:
        The files.
    """
    figures = {"posterior_variance": _variances(shapes, names)}
    if shapes.sources.shape[1]:
        figures = {"latents": _latents(shapes, names, factors)} | figures
    if history["val/gamma"].nunique() > 1:
        figures["gamma"] = _gamma(history)
    return write(figures, folder)


def _latents(shapes: PosteriorShapes, names: list[str], factors: list[str]) -> Figure:
    members, dim = min(len(names), SHOWN), shapes.sources.shape[1]
    figure = new_figure("Latents against the sources that they match", 1.7 * dim + 1.2, 1.45 * members + 0.9)
    panels = figure.subplots(members, dim, squeeze=False, sharex="col")
    for m in range(members):
        for k in range(dim):
            axes = panels[m, k]
            dress(axes, factors[k] if m == members - 1 else "", names[m] if k == 0 else "")
            axes.plot(shapes.sources[m, k], shapes.latents[m, k], ".", color=BLUE, markersize=1.5, alpha=0.5)
            axes.tick_params(labelsize=7)
    return figure


def _variances(shapes: PosteriorShapes, names: list[str]) -> Figure:
    figure = new_figure("Posterior variance against its formula", 5.4, 4.6)
    axes = figure.subplots()
    dress(axes, "σ² = 1 / (−(log p)″ + γ² ‖J‖²)", "variance of the posterior")
    formula, variance = shapes.formula.double().numpy(), shapes.variance.double().numpy()
    sound = np.isfinite(formula) & np.isfinite(variance) & (formula > 0) & (variance > 0)
    if not sound.any():
        say(axes, "no member has finite variances")
        return figure
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):  # Matplotlib labels every tick of a range under a decade, one over another
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    handles = []
    for m in range(min(len(names), SHOWN)):
        keep = sound[m].ravel()
        x, y = formula[m].ravel()[keep], variance[m].ravel()[keep]
        colour = SEED_COLOURS[m % len(SEED_COLOURS)]
        axes.plot(x, y, ".", color=colour, markersize=2, alpha=0.4)
        handles += axes.plot([], [], "o", color=colour, markersize=4)  # the legend's: one that can be seen
    ends = [min(formula[sound].min(), variance[sound].min()), max(formula[sound].max(), variance[sound].max())]
    handles += axes.plot(ends, ends, "--", color=INK, linewidth=1)
    legend(figure, handles, [*names[:SHOWN], "equal"])
    return figure


def _gamma(history: pd.DataFrame) -> Figure:
    figure = new_figure("Precision of the decoder over time", 5.4, 3.8)
    axes = figure.subplots()
    dress(axes, "epoch", "γ² (decoder precision)")
    axes.set_yscale("log")
    axis = ["seed", "data.seed"] if "data.seed" in history else ["seed"]
    for _, curve in history.groupby(axis):
        axes.plot(floats(curve["epoch"]), floats(curve["val/gamma"]) ** 2, color=FAINT, linewidth=0.9, alpha=0.7)
    median = history.assign(square=history["val/gamma"] ** 2).groupby("epoch")["square"].median()
    [line] = axes.plot(floats(median.index), floats(median), color=VERMILLION, linewidth=2)
    legend(figure, [axes.lines[0], line], ["member", "median"])
    return figure
