"""Figures of a run: learning curves, latents against sources, posterior variances, gamma over time, and images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from imavae.metrics.evaluate import ENDS, ImagePanels, PosteriorShapes
from imavae.report.drawing import (
    BLUE,
    FAINT,
    GREY,
    INK,
    SEED_COLOURS,
    VERMILLION,
    dress,
    finite_or_nan,
    floats,
    legend,
    new_figure,
    whole_numbers,
    write,
    write_on,
)
from imavae.report.summary import Floats

LABELS = {"val/mcc": "MCC", "val/agreement": "agreement of seeds", "val/neg_elbo": "−ELBO (nats)"}
MAX_MEMBERS = 8  # members that a figure of latents, variances or images shows
CELL, GAP = 0.85, 0.08  # size of an image in inches, and the share of it that is left white between two


def run_figures(
    shapes: PosteriorShapes, names: list[str], factors: list[str], history: pd.DataFrame, folder: Path
) -> list[Path]:
    """Draw one point's members into a folder, and return the files.

    Args:
        shapes: of the members at their best states, on the validation split; without sources, latents have no figure.
        names: the members' names.
        factors: the sources' names.
        history: rows of ``history.csv``: ``seed``, ``epoch``, ``val/gamma``, ``val/neg_elbo`` and ``val/mcc`` (without
            sources ``val/agreement`` takes its place, if there are several seeds).
        folder: created if it does not exist.
    """
    figures = {"learning_curves": learning_curves(history)}
    if shapes.sources.shape[1]:
        figures["latents"] = _latents(shapes, names, factors)
    figures["posterior_variance"] = _variances(shapes, names)
    if history["val/gamma"].nunique() > 1:
        figures["gamma"] = _gamma(history)
    return write(figures, folder)


def image_figures(panels: ImagePanels, names: list[str], best: int, folder: Path) -> list[Path]:
    """Draw reconstructions of all members and latent traversals of one, and return the files.

    Args:
        panels: images of the validation split at the members' best states.
        names: the members' names.
        best: the member whose latents are traversed.
        folder: created if it does not exist.
    """
    figures = {"reconstructions": _reconstructions(panels, names), "traversals": _traversals(panels, names[best])}
    return write(figures, folder)


def learning_curves(history: pd.DataFrame) -> Figure:
    """Draw the score and −ELBO of each member over epochs, with its best value."""
    figure = new_figure("Learning curves of the members", 9.6, 4.0)
    panels = figure.subplots(1, 2)
    score = "val/mcc" if "val/mcc" in history else "val/agreement"
    seeds = list(dict.fromkeys(history["seed"]))
    many = len(seeds) > len(SEED_COLOURS)
    for axes, column, best in zip(panels, (score, "val/neg_elbo"), (np.nanargmax, np.nanargmin), strict=True):
        dress(axes, "epoch", f"{LABELS[column]}, validation split")
        axes.xaxis.set_major_locator(whole_numbers(7))
        if column not in history:
            write_on(axes, "no sources, and a single seed")
            continue
        if not np.isfinite(floats(history[column])).any():
            write_on(axes, "no finite value")
        for n, seed in enumerate(seeds):
            curve = history[history["seed"] == seed].sort_values("epoch")
            epoch, value = floats(curve["epoch"]), finite_or_nan(floats(curve[column]))
            colour, width = (BLUE, 0.8) if many else (SEED_COLOURS[n], 1.3)
            axes.plot(epoch, value, color=colour, linewidth=width, alpha=0.5 if many else 0.9, label=f"seed {seed}")
            if np.isfinite(value).any():
                axes.plot(epoch[best(value)], value[best(value)], "o", color=colour, markersize=4)
    panels[0].set_ylim(-0.02, 1.02)
    _leave_out_the_start(panels[1], history)
    handles, labels = panels[1].get_legend_handles_labels()
    if many:
        handles, labels = handles[:1], [f"each of {len(seeds)} members"]
    legend(figure, [*handles, *panels[0].plot([], [], "o", color=INK, markersize=4)], [*labels, "best value"])
    return figure


def _leave_out_the_start(axes: Axes, history: pd.DataFrame) -> None:
    """Fit the −ELBO axis to what follows the first tenth of the epochs, which can be a thousand times as high."""
    value, epoch = floats(history["val/neg_elbo"]), floats(history["epoch"])
    everything = value[np.isfinite(value)]
    late = value[np.isfinite(value) & (epoch > epoch.max(initial=0) / 10)]
    if late.size and np.ptp(everything) > 3 * np.ptp(late) > 0:
        axes.set_ylim(late.min() - 0.05 * np.ptp(late), late.max() + 0.05 * np.ptp(late))
        axes.set_title("first epochs lie above", loc="right", color=FAINT, fontsize=8)


def _latents(shapes: PosteriorShapes, names: list[str], factors: list[str]) -> Figure:
    members, dim = min(len(names), MAX_MEMBERS), shapes.sources.shape[1]
    figure = new_figure("Latents against the sources that they match", 1.7 * dim + 1.2, 1.45 * members + 0.9)
    panels = figure.subplots(members, dim, squeeze=False, sharex="col")
    for (m, k), axes in np.ndenumerate(panels):
        dress(axes, factors[k] if m == members - 1 else "", names[m] if k == 0 else "")
        axes.plot(shapes.sources[m, k], shapes.latents[m, k], ".", color=BLUE, markersize=1.5, alpha=0.5)
        axes.tick_params(labelsize=7)
    return figure


def _variances(shapes: PosteriorShapes, names: list[str]) -> Figure:
    figure = new_figure("Posterior variance against self-consistency", 5.4, 4.6)
    axes = figure.subplots()
    dress(axes, "σ² = 1 / (−(log p)″ + γ² ‖J‖²)", "variance of the posterior")
    formula, variance = shapes.formula.double().numpy(), shapes.variance.double().numpy()
    sound = np.isfinite(formula) & np.isfinite(variance) & (formula > 0) & (variance > 0)
    if not sound.any():
        write_on(axes, "no member has finite variances")
        return figure
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):  # Matplotlib's labels overlap if the range is less than a decade
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    handles = []
    for m, colour in zip(range(min(len(names), MAX_MEMBERS)), SEED_COLOURS, strict=False):
        axes.plot(formula[m][sound[m]], variance[m][sound[m]], ".", color=colour, markersize=2, alpha=0.4)
        handles += axes.plot([], [], "o", color=colour, markersize=4)  # large enough for a legend
    ends = [min(formula[sound].min(), variance[sound].min()), max(formula[sound].max(), variance[sound].max())]
    handles += axes.plot(ends, ends, "--", color=INK, linewidth=1)
    legend(figure, handles, [*names[:MAX_MEMBERS], "equal"])
    return figure


def _gamma(history: pd.DataFrame) -> Figure:
    figure = new_figure("Decoder precision over time", 5.4, 3.8)
    axes = figure.subplots()
    dress(axes, "epoch", "γ² (decoder precision)")
    axes.set_yscale("log")
    history = history.assign(square=history["val/gamma"] ** 2)
    for _, curve in history.groupby(["seed", "data.seed"] if "data.seed" in history else ["seed"]):
        axes.plot(floats(curve["epoch"]), floats(curve["square"]), color=FAINT, linewidth=0.9, alpha=0.7)
    median = history.groupby("epoch")["square"].median()
    [line] = axes.plot(floats(median.index), floats(median), color=VERMILLION, linewidth=2)
    legend(figure, [axes.lines[0], line], ["member", "median"])
    return figure


def _reconstructions(panels: ImagePanels, names: list[str]) -> Figure:
    rows: list[tuple[str, Tensor]] = []
    shown = None
    for member, name in enumerate(names[:MAX_MEMBERS]):
        if panels.worlds[member] != shown:
            shown = panels.worlds[member]
            rows.append(("observed", panels.observations[member]))
        rows.append((name, panels.reconstructions[member]))
    figure, axes = _image_grid("Reconstructions", [images for _, images in rows])
    axes.set_yticks(_centres(len(rows)), [name for name, _ in rows])
    return figure


def _traversals(panels: ImagePanels, name: str) -> Figure:
    dim, steps = panels.values.shape
    figure, axes = _image_grid(f"Latent traversals of {name}", list(panels.traversals))
    labels = [f"latent {k + 1}" + (f"\n({factor})" if factor else "") for k, factor in enumerate(panels.factors)]
    axes.set_yticks(_centres(dim), labels)
    at = _centres(steps)
    axes.set_xticks([at[0], at[-1]], [f"{100 * end:g} %" for end in ENDS])
    axes.set_xlabel("quantile of the latent, the others at their medians", color=INK)
    for row, values in zip(_centres(dim), panels.values.double().numpy(), strict=True):
        text = f"{values[0]:.2f}\nto {values[-1]:.2f}".replace("-", "−")
        axes.text(at[-1] + 0.6, row, text, ha="left", va="center", fontsize=8, color=INK)
    return figure


def _image_grid(title: str, rows: list[Tensor]) -> tuple[Figure, Axes]:
    """Axes on which cell (row, column), of width and height 1 + GAP, holds an image."""
    columns = len(rows[0])
    figure = new_figure(title, CELL * columns * (1 + GAP) + 2.2, CELL * len(rows) * (1 + GAP) + 1.0)
    axes = figure.subplots()
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            left, top = column * (1 + GAP), row * (1 + GAP)
            axes.imshow(_pixels(image), extent=(left, left + 1, top + 1, top), interpolation="nearest")
    axes.set_xlim(0, columns * (1 + GAP) - GAP)
    axes.set_ylim(len(rows) * (1 + GAP) - GAP, 0)
    axes.set_aspect("equal")
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.tick_params(length=0, color=GREY, labelcolor=INK, labelsize=9)
    return figure, axes


def _centres(count: int) -> list[float]:
    return [0.5 + n * (1 + GAP) for n in range(count)]


def _pixels(image: Tensor) -> Floats:
    side = math.isqrt(len(image) // 3)
    pixels: Floats = image.double().reshape(3, side, side).permute(1, 2, 0).numpy()
    return pixels
