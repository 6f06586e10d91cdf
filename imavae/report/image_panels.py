"""Figures of images: reconstructions beside what was observed, and the traversal of each latent."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from imavae.metrics.figure_data import ENDS, ImagePanels
from imavae.report.drawing import GREY, INK, new_figure, write

SHOWN = 8  # members, at the most
CELL, GAP = 0.85, 0.08  # inches of an image, and the share of it that is left white between two

Floats = NDArray[np.float64]


def image_figures(panels: ImagePanels, names: list[str], best: int, folder: Path) -> list[Path]:
    """Draw reconstructions of all members and latent traversals of the ``best``-th one, and return the files.

    Args:
        panels: images of the validation split at the members' best states.
        names: what its members are called.
        best: the member whose latents are traversed.
        folder: where the files go; made if there is none.
    """
    figures = {"reconstructions": _reconstructions(panels, names), "traversals": _traversals(panels, names[best])}
    return write(figures, folder)


def _reconstructions(panels: ImagePanels, names: list[str]) -> Figure:
    rows: list[tuple[str, Tensor]] = []
    shown = None
    for member, name in enumerate(names[:SHOWN]):
        if panels.worlds[member] != shown:
            shown = panels.worlds[member]
            rows.append(("observed", panels.observations[member]))
        rows.append((name, panels.reconstructions[member]))
    figure, axes = _grid("Reconstructions", [images for _, images in rows])
    axes.set_yticks(_centres(len(rows)), [name for name, _ in rows])
    return figure


def _traversals(panels: ImagePanels, name: str) -> Figure:
    dim, steps = panels.values.shape
    figure, axes = _grid(f"Latent traversals of {name}", list(panels.traversals))
    labels = [f"latent {k + 1}" + (f"\n({factor})" if factor else "") for k, factor in enumerate(panels.factors)]
    axes.set_yticks(_centres(dim), labels)
    low, high = (f"{100 * end:g} %" for end in ENDS)
    at = _centres(steps)
    axes.set_xticks([at[0], at[-1]], [low, high])
    axes.set_xlabel("quantile of the latent, the others at their medians", color=INK)
    for row, values in zip(_centres(dim), panels.values.double().numpy(), strict=True):
        text = f"{values[0]:.2f}\nto {values[-1]:.2f}".replace("-", "−")
        axes.text(at[-1] + 0.6, row, text, ha="left", va="center", fontsize=8, color=INK)
    return figure


def _grid(title: str, rows: list[Tensor]) -> tuple[Figure, Axes]:
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
