"""Figures of members: learning curves, latents against sources, posterior variances, gamma over time, and images.

A run has them of all its members, a study of its champion, beside the learning curves of its best trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from imavae.config.data import FileData, SyntheticData, image_shape
from imavae.data.storage import write_text
from imavae.metrics.evaluate import ImagePanels, PosteriorShapes, image_panels, latent_rows, posterior_shapes
from imavae.metrics.forward import shortened
from imavae.metrics.references import Reference, references
from imavae.model.export import ENDS, Traversal
from imavae.report import drawing
from imavae.report.display import compact
from imavae.report.drawing import BLUE, FAINT, GREY, INK, NEAR_ONE, SEED_COLOURS, VERMILLION, dress, floats, legend
from imavae.report.summary import column_values, linear_mcc
from imavae.runs.ledger import WINNERS
from imavae.runs.models import model_session
from imavae.runs.records import at_best, best_member
from imavae.runs.results import Results
from imavae.runs.session import Session, cache_of
from imavae.tracking import QUARTILES, Row, member_name, quartile_curves
from imavae.training.checkpoint import load_member

LABELS = {"val/mcc": "MCC", "val/agreement": "agreement of seeds", "val/neg_elbo": "−ELBO (nats)"}
MAX_MEMBERS = 8  # members that a figure of latents, variances or images shows
MAX_WRITTEN = 12  # sources up to which a table of correlations has numbers
NEAR_ZERO = 0.01  # nats below which the axes of the plane of solutions are linear
CELL, GAP = 0.85, 0.08  # size of an image in inches, and the share of it that is left white between two
TRAVERSED_ROWS = 10_000  # at most, whose quantiles bound a traversal


def draw_run(results: Results, session: Session) -> list[Path]:
    """Draw a run's members at their best states on the validation split, and tabulate the latents of the best one;
    return the files.
    """
    history, [record] = results.history, results.records
    if not len(history):
        return []
    best = best_member(record.members)
    rows = torch.arange(len(session.ensemble), device=session.ensemble.device)
    names = [f"seed {member_name(session.axes(row))}" for row in rows.tolist()]
    factors = [factor.name for factor in results.config.data.source_factors]
    shapes = posterior_shapes(session.ensemble, session.best_weights, rows, session.data.val)
    figures = run_figures(shapes, names, factors, history, linear_mcc(results.members).tolist())
    shown = 0 if best is None else record.members.index(best)
    return _written(results, figures, session, session.best_weights, names, shown)


def draw_champion(results: Results) -> list[Path]:
    """Draw the champion of a study and the learning curves of its best trials, as far as there are any, and tabulate
    the champion's latents; return the files.
    """
    history, figures = results.history, dict[str, Figure]()
    curves: dict[int, list[Any]] = {
        record.number: history[history["trial"] == record.number].to_dict("records")
        for record in results.ranked()[:WINNERS]
        if len(history)  # not if all members diverged before their first validation
    }
    if curves := {number: rows for number, rows in curves.items() if rows}:
        figures["best_trials"] = trial_curves(curves)
    if not results.names.champion.is_file():  # all members of the best trial diverged
        return drawing.write(figures, results.names.figures, results.config.pdf)
    session, weights = model_session(results.names.champion, cache_of(results.names.output_dir))
    data = session.points[0].data
    if data.has_sources:
        shapes = posterior_shapes(session.ensemble, weights, torch.arange(1), session.data.val)
        figures |= champion_figures(shapes, [factor.name for factor in data.source_factors])
    return _written(results, figures, session, weights, ["champion"], 0)


def _written(
    results: Results, figures: dict[str, Figure], session: Session, weights: Tensor, names: list[str], best: int
) -> list[Path]:
    """Write figures, those of the ``best`` of the members with these ``weights``, and its latents; return the files."""
    ensemble, val, point, at = session.ensemble, session.data.val, session.points[0], slice(best, best + 1)
    rows = torch.arange(len(names), device=ensemble.device)
    latents = latent_rows(ensemble, weights[at], best, shortened(val, point.data.features))
    write_text(results.names.latents, pd.DataFrame(latents).to_csv(index=False))
    if isinstance(point.data, FileData) and results.names.champion.is_file():
        model = load_member(results.names.champion).requires_grad_(False)
        x = val.observations[ensemble.world_of(rows[at])][0, :TRAVERSED_ROWS].cpu()
        x = x * model.column_std + model.column_mean
        figures["traversals"] = column_traversals(model.traverse(x), x, point.data.columns)
    if isinstance(point.data, SyntheticData) and point.latents == point.data.dim == point.data.features:
        data = replace(point.data, seed=ensemble.members[best].world)  # its mixing has an exact log p(x)
        members = _of_world(results, data.seed)
        figures["solution_plane"] = solution_plane(members, references(data), linear_mcc(members[:1]).tolist())
    if val.images is not None:
        panels = image_panels(ensemble, weights, rows, val, best)
        figures["reconstructions"] = _reconstructions(panels, names)
        figures["traversals"] = _traversals(panels, names[best])
    return [results.names.latents, *drawing.write(figures, results.names.figures, results.config.pdf)]


def _of_world(results: Results, seed: int) -> pd.DataFrame:
    """The members that share the data of the best trial, and the number of its latents, in the world of ``seed``."""
    best, members = results.ranked()[0], results.members
    same = {key: value for key, value in best.values.items() if key.startswith("data.") or key == "model.dim"}
    trials = [record.number for record in results.records if same.items() <= record.values.items()]
    members = members[members["trial"].isin(trials)]
    return members[members["data.seed"] == seed] if "data.seed" in members else members


def run_figures(
    shapes: PosteriorShapes,
    names: list[str],
    factors: list[str],
    history: pd.DataFrame,
    linear_ica: Sequence[float] = (),
) -> dict[str, Figure]:
    """Draw one point's members, by the names of the figures' files.

    Without sources, latents have no figure, and ``val/agreement`` takes the place of ``val/mcc`` in ``history`` (rows
    of ``history.csv``), if there are several seeds. ``linear_ica`` has the MCC of linear ICA in each world.
    """
    figures = {"learning_curves": learning_curves(history, linear_ica)}
    if shapes.variance is not None:
        figures["posterior_variance"] = _variances(shapes, names)
    if shapes.sources.shape[1]:
        figures["latents"] = _latents(shapes, names, factors)
    if "val/gamma" in history and history["val/gamma"].nunique() > 1:
        figures["gamma"] = _gamma(history)
    return figures


def champion_figures(shapes: PosteriorShapes, factors: list[str]) -> dict[str, Figure]:
    """Draw a champion's latents over the sources, and all of their correlations, by the names of the files."""
    latents = _latents(shapes, ["champion"], factors)
    return {"champion_latents": latents, "champion_correlations": _correlations(shapes, factors)}


def trial_curves(histories: Mapping[int, Sequence[Row]]) -> Figure:
    """Draw the median score and −ELBO over members, with quartiles, over epochs: a line per trial, by its number.

    A member that has stopped counts with its last value. Where all trials end near an MCC of 1, the axis is 1 − MCC.
    """
    figure = drawing.new_figure("Learning curves of the best trials", 9.6, 4.0)
    left, right = figure.subplots(1, 2)
    score = next((name for name in ("val/mcc", "val/agreement") for rows in histories.values() if name in rows[0]), "")
    curves = {n: list(quartile_curves(rows, [score, "val/neg_elbo"])) for n, rows in histories.items()}
    ends = [rows[-1][1].get(score, np.nan) for rows in curves.values() if rows]
    near = score == "val/mcc" and min(ends, default=0.0) > NEAR_ONE
    for axes, name in ((left, score), (right, "val/neg_elbo")):
        flip = near and axes is left
        if not name:
            drawing.write_on(axes, "no sources, and a single seed")
        for colour, (number, rows) in zip(SEED_COLOURS, curves.items() if name else (), strict=False):
            epoch = [epoch for epoch, row in rows if name in row]
            values = {q: floats([row[name + q] for _, row in rows if name in row]) for q in QUARTILES}
            middle, low, high = (1 - value if flip else value for value in values.values())
            axes.plot(epoch, middle, color=colour, linewidth=1.4, label=f"trial {number}")
            axes.fill_between(epoch, low, high, color=colour, alpha=0.15, linewidth=0)
        if flip:
            axes.set_yscale("log")
            axes.invert_yaxis()
        label = f"{'1 − ' * flip}{LABELS[name]}, validation split" if name else ""
        dress(axes, "epoch", label, "medians and quartiles" * (axes is right))
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    legend(figure, *right.get_legend_handles_labels())
    return figure


def column_traversals(traversal: Traversal, x: Tensor, columns: Sequence[str]) -> Figure:
    """Draw how each column moves with each latent, a panel per latent: in standard deviations from its mean over rows
    ``x``. Of many columns, those that move most are shown.
    """
    moved = ((traversal.observations - x.mean(0)) / x.std(0)).double().numpy()
    most = np.ptp(moved, axis=1).max(0)
    shown = np.sort(np.argsort(-most, stable=True)[: len(SEED_COLOURS)])
    dim = min(len(moved), MAX_MEMBERS)
    across = min(dim, 4)
    down = -(-dim // across)
    figure = drawing.new_figure("How columns move with each latent", max(6.6, 2.4 * across), 2.3 * down + 1.3)
    panels = figure.subplots(down, across, squeeze=False, sharey=True)
    for k, axes in enumerate(panels.flat):
        axes.set_visible(k < dim)
        for n, column in enumerate(shown if k < dim else ()):
            style = {"color": SEED_COLOURS[n], "linestyle": ("-", "--")[n % 2], "linewidth": 1.4}
            axes.plot(traversal.values[k].numpy(), moved[k, :, column], label=columns[column], **style)
        left = k % across == 0
        dress(axes, f"latent {k + 1}", "standard deviations" * left, "")
    if len(columns) > len(shown):
        panels[0, -1].set_title(f"{len(shown)} of {len(columns)} columns", loc="right", color=FAINT, fontsize=8)
    legend(figure, *panels[0, 0].get_legend_handles_labels())
    return figure


def solution_plane(members: pd.DataFrame, references: Sequence[Reference], linear_ica: Sequence[float]) -> Figure:
    """Draw where members stand between the truth and spurious solutions: their contrast, −ELBO and MCC, which is the
    colour, at the smallest −ELBO. ``members`` are rows of ``members.csv`` of one world, ``linear_ica`` its MCC there.

    The −ELBO is that above −E[log p(x)], so that a decoder which generates the law of x lies on the diagonal, if its
    precision is large enough.
    """
    figure = drawing.new_figure("Between the truth and spurious solutions", 6.6, 5.0)
    axes = figure.subplots()
    axes.set_xscale("symlog", linthresh=NEAR_ZERO)
    axes.set_yscale("symlog", linthresh=NEAR_ZERO)
    scale: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 1}
    names = (at_best(f"val/{name}", "val/neg_elbo") for name in ("cima", "gap_log_px", "mcc"))
    x, y, mcc = (column_values(members, name) for name in names)
    sound = np.isfinite(x) & np.isfinite(y)
    kinds = {
        "truth": ("*", 190, "the true mixing f"),
        "f ∘ a": ("s", 42, "f ∘ a, an automorphism of 15° to 90°"),
        "Darmois": ("D", 60, "Darmois construction"),
    }
    largest = max([0.1, *x[sound], *y[sound], *(one.cima for one in references)])
    axes.plot([0, largest], [0, largest], "--", color=GREY, linewidth=1, label="the law of a large γ")
    dots = axes.scatter(x[sound], y[sound], c=mcc[sound], s=26, edgecolors=INK, linewidths=0.4, **scale, label="member")
    for kind, (marker, size, label) in kinds.items():
        of_kind = [one for one in references if one.name.startswith(kind)]
        at, colours = [one.cima for one in of_kind], [one.mcc for one in of_kind]
        if of_kind:
            axes.scatter(
                at, at, c=colours, s=size, marker=marker, edgecolors=VERMILLION, linewidths=1.2, label=label, **scale
            )
    bar = figure.colorbar(dots, label="MCC")
    for level in linear_ica:
        bar.ax.axhline(level, color=VERMILLION, linewidth=2)
        bar.ax.set_title("line: linear ICA", fontsize=8, color=FAINT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: compact(value))
    missing = int((~sound).sum())
    dress(axes, "c_IMA of the decoder (nats)", "−ELBO + E[log p(x)] (nats)", f"{missing} not shown" * (missing > 0))
    axes.legend(loc="lower right", frameon=False, fontsize=9)  # no −ELBO lies below the law
    return figure


def learning_curves(history: pd.DataFrame, linear_ica: Sequence[float] = ()) -> Figure:
    """Draw the score and −ELBO of each member over epochs, with its best value, and linear ICA's in each world.

    Curves of the training split are dotted.
    """
    figure = drawing.new_figure("Learning curves of the members", 9.6, 4.0)
    left, right = figure.subplots(1, 2)
    score = "val/mcc" if "val/mcc" in history else "val/agreement"
    curves = list(history.groupby("seed", sort=False))
    many = len(curves) > len(SEED_COLOURS)
    for axes, column, best in ((left, score, np.nanargmax), (right, "val/neg_elbo", np.nanargmin)):
        known = column in history
        if not (known and np.isfinite(floats(history[column])).any()):
            drawing.write_on(axes, "no finite value" if known else "no sources, and a single seed")
        for n, (seed, curve) in enumerate(curves if known else ()):
            epoch, value = floats(curve["epoch"]), drawing.finite_or_nan(floats(curve[column]))
            colour, width, alpha = (BLUE, 0.8, 0.5) if many else (SEED_COLOURS[n], 1.3, 0.9)
            axes.plot(epoch, value, color=colour, linewidth=width, alpha=alpha, label=f"seed {seed}")
            if (seen := column.replace("val/", "train/")) in curve:
                axes.plot(epoch, floats(curve[seen]), color=colour, linewidth=0.8, alpha=alpha, linestyle=":")
            if np.isfinite(value).any():
                axes.plot(epoch[best(value)], value[best(value)], "o", color=colour, markersize=4)
        dress(axes, "epoch", LABELS[column])
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    left.set_ylim(-0.02, 1.02)
    everything, epoch = floats(history["val/neg_elbo"]), floats(history["epoch"])
    late = everything[np.isfinite(everything) & (epoch > epoch.max(initial=0) / 10)]
    if late.size and np.ptp(everything[np.isfinite(everything)]) > 3 * np.ptp(late) > 0:
        pad = 0.05 * np.ptp(late)
        right.set_ylim(late.min() - pad, late.max() + pad)
        right.set_title("first epochs lie above", loc="right", color=FAINT, fontsize=8)
    handles, labels = right.get_legend_handles_labels()
    if many:
        handles, labels = handles[:1], [f"each of {len(curves)} members"]
    marks = left.plot([], [], "o", color=INK, markersize=4)
    marks += left.plot([], [], ":", color=INK, linewidth=0.8)
    marks += [left.axhline(level, color=INK, linewidth=1, linestyle="-.") for level in linear_ica][:1]
    labels = [*labels, "best value", "training split", "linear ICA"]
    legend(figure, [*handles, *marks], labels[: len(handles + marks)])
    return figure


def _latents(shapes: PosteriorShapes, names: list[str], factors: list[str]) -> Figure:
    """A panel per member and source, empty for a source without a latent. Each row names its unmatched latents."""
    members, dim = min(len(names), MAX_MEMBERS), shapes.sources.shape[1]
    figure = drawing.new_figure("Latents against the sources that they match", 1.7 * dim + 1.2, 1.55 * members + 1.0)
    own = shapes.correlation.abs().take_along_dim(shapes.matched.clamp_min(0)[:, :, None], 2)[:, :, 0]
    mcc = (own * (shapes.matched >= 0)).mean(1)
    left = [", ".join(f"{number + 1}" for number in row[dim:]) for row in shapes.numbers.tolist()]
    for (m, k), axes in np.ndenumerate(figure.subplots(members, dim, squeeze=False, sharex="col")):
        place, note = int(shapes.matched[m, k]), "no latent"
        if place >= 0:
            match = float(shapes.correlation[m, k, place])
            latent = -shapes.latents[m, place] if match < 0 else shapes.latents[m, place]
            axes.plot(shapes.sources[m, k], latent, ".", color=BLUE, markersize=1.5, alpha=0.5)
            note = f"{'−z' if match < 0 else 'z'}, |r| {abs(match):.3f}"
        else:
            axes.set_yticks([])
        label = f"{names[m]}\nMCC of μ {mcc[m]:.3f}" + f"\nunmatched: {left[m]}" * bool(left[m]) if k == 0 else ""
        dress(axes, factors[k] if m == members - 1 else "", label, note)
        axes.tick_params(labelsize=7)
    return figure


def _correlations(shapes: PosteriorShapes, factors: list[str]) -> Figure:
    """A cell per source and latent, with the sign of each latent such that it rises with its source."""
    table, labels = shapes.correlation[0].double().numpy(), [f"latent {n + 1}" for n in shapes.numbers[0].tolist()]
    for source, place in enumerate(shapes.matched[0].tolist()):
        if place >= 0:
            labels[place] = factors[source]
            table[:, place] *= -1 if table[source, place] < 0 else 1
    height, width = (0.62 * count for count in table.shape)
    figure = drawing.new_figure("Correlations of the champion", width + 2.2, height + 1.7)
    axes = figure.subplots()
    image = axes.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1)
    if max(table.shape) <= MAX_WRITTEN:
        for (s, z), value in np.ndenumerate(table):
            text, colour = f"{value:.2f}".replace("-", "−"), "white" if abs(value) > 0.6 else INK
            axes.text(z, s, text, ha="center", va="center", color=colour)
    dress(axes, "latent that is matched with it", "source")
    axes.set_xticks(range(len(labels)), labels, rotation=90 if max(map(len, labels)) > 3 else 0)
    axes.set_yticks(range(len(factors)), factors)
    axes.grid(visible=False)
    figure.colorbar(image, ticks=[-1, 0, 1])
    return figure


def _variances(shapes: PosteriorShapes, names: list[str]) -> Figure:
    """A panel per member: each point and latent has a dot, on the line where the formula holds."""
    members = min(len(names), MAX_MEMBERS)
    columns = min(members, 4)
    rows = -(-members // columns)
    size = max(4.2, 2.1 * columns + 0.6), max(4.2, 2.1 * rows + 1.0)
    figure = drawing.new_figure("Posterior variance against self-consistency", *size)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    assert shapes.formula is not None and shapes.variance is not None  # noqa: S101, PT018  -- else there is no figure
    formula, variance = shapes.formula.double().numpy(), shapes.variance.double().numpy()
    sound = np.isfinite(formula) & np.isfinite(variance) & (formula > 0) & (variance > 0)
    both = np.concatenate([formula[sound], variance[sound]])
    ends = [both.min(initial=np.inf), both.max(initial=0)]
    for m, axes in enumerate(panels.flat):
        axes.set_visible(m < members)
        if m < members and sound[m].any():
            axes.set(xscale="log", yscale="log")
            axes.plot(formula[m][sound[m]], variance[m][sound[m]], ".", color=BLUE, markersize=2, alpha=0.4)
            axes.plot(ends, ends, "--", color=INK, linewidth=1)
        elif m < members:
            drawing.write_on(axes, "no finite variance")
        dress(axes, "", "", names[m] if m < members else "")
    figure.supxlabel("σ² = 1 / (−(log p)″ + γ² ‖J‖²)", color=INK, fontsize=10)
    figure.supylabel("variance of the posterior (dashed: equal)", color=INK, fontsize=10)
    return figure


def _gamma(history: pd.DataFrame) -> Figure:
    figure = drawing.new_figure("Decoder precision over time", 5.4, 3.8)
    axes = figure.subplots()
    axes.set_yscale("log")
    history = history.assign(square=history["val/gamma"] ** 2)
    for _, curve in history.groupby(["seed", "data.seed"] if "data.seed" in history else ["seed"]):
        axes.plot(floats(curve["epoch"]), floats(curve["square"]), color=FAINT, linewidth=0.9, alpha=0.7)
    median = history.groupby("epoch")["square"].median()
    [line] = axes.plot(floats(median.index), floats(median), color=VERMILLION, linewidth=2)
    legend(figure, [axes.lines[0], line], ["member", "median"])
    dress(axes, "epoch", "γ² (decoder precision)")
    return figure


def _reconstructions(panels: ImagePanels, names: list[str]) -> Figure:
    rows: list[tuple[str, Tensor]] = []
    for m, name in enumerate(names[:MAX_MEMBERS]):
        if m == 0 or panels.worlds[m] != panels.worlds[m - 1]:
            rows.append(("observed", panels.observations[m]))
        rows.append((name, panels.reconstructions[m]))
    labels, images = zip(*rows, strict=True)
    figure, _ = _image_grid("Reconstructions", images, labels)
    return figure


def _traversals(panels: ImagePanels, name: str) -> Figure:
    known = any(panels.factors)
    named = [factor or "unmatched" * known for factor in panels.factors]
    labels = [f"latent {k + 1}" + f"\n({name})" * bool(name) for k, name in enumerate(named)]
    figure, axes = _image_grid(f"Latent traversals of {name}", list(panels.traversals), labels)
    columns = _centres(panels.values.shape[1])
    axes.set_xticks([columns[0], columns[-1]], [f"{100 * end:g} %" for end in ENDS])
    axes.set_xlabel("quantile of the latent, the others at their medians", color=INK)
    for row, values in zip(_centres(len(labels)), panels.values.tolist(), strict=True):
        text = f"{values[0]:.2f}\nto {values[-1]:.2f}".replace("-", "−")
        axes.text(columns[-1] + 0.6, row, text, ha="left", va="center", fontsize=8, color=INK)
    return figure


def _image_grid(title: str, rows: Sequence[Tensor], labels: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes on which cell (row, column), of width and height 1 + GAP, holds an image."""
    columns, step = len(rows[0]), 1 + GAP
    figure = drawing.new_figure(title, CELL * columns * step + 2.2, CELL * len(rows) * step + 1.0)
    axes = figure.subplots()
    for row, images in enumerate(rows):
        channels, side = image_shape(images.shape[1])
        pixels = images.double().reshape(-1, channels, side, side).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
        for column, image in enumerate(pixels):
            extent = column * step, column * step + 1, row * step + 1, row * step
            axes.imshow(image, extent=extent, interpolation="nearest")
    axes.set(xlim=(0, columns * step - GAP), ylim=(len(rows) * step - GAP, 0), aspect="equal", xticks=[])
    axes.set_yticks(_centres(len(rows)), labels)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, color=GREY, labelcolor=INK, labelsize=9)
    return figure, axes


def _centres(count: int) -> list[float]:
    return [0.5 + n * (1 + GAP) for n in range(count)]
