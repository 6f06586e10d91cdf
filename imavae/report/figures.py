"""Figures of a study and of a run, each as PNG (150 dpi) and PDF.

They are drawn on ``Figure`` objects, never through pyplot: no global state, no window, no backend to choose. The files
carry no date, and jitter has a seed of its own, so that the same numbers give the same bytes. What differs in colour
differs in shape or stroke, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from imavae.config.settings import Objective
from imavae.report.axes import LOG_RATIO
from imavae.report.drawing import (
    BLUE,
    FAINT,
    INK,
    VERMILLION,
    dress,
    finite_or_nan,
    floats,
    legend,
    new_figure,
    say,
    whole_numbers,
    write,
)
from imavae.report.over_gamma import CONTRAST, MCC, SEEDS, over_gamma
from imavae.report.summary import Floats, has_sources, scores
from imavae.report.text import compact, short_names

SEED_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
STYLE_OF = {"finished": ("o", "finished"), "stopped": ("v", "stopped early")}  # a trial's marker and what it is called

LABELS = {"val/mcc": "MCC", "val/agreement": "agreement of seeds", "val/neg_elbo": "−ELBO (nats)"}

FEW_VALUES = 8  # whole numbers in a range below it are jittered, like categories


def study_figures(
    members: pd.DataFrame, trials: pd.DataFrame, keys: Sequence[str], objective: Objective, folder: Path
) -> list[Path]:
    """Draw a study: MCC (without sources, the agreement of seeds) and c_IMA over gamma², the optimisation's history,
    the score against each searched parameter.

    Args:
        members: rows of ``members.csv`` of all trials.
        trials: one row per trial: ``trial``, ``score``, ``status`` and a column for each of ``keys``.
        keys: dotted keys that were searched.
        objective: what the score is, and which direction is the better one.
        folder: where the files go; made if there is none.

    Returns:
        The files, all of them always: a figure that has nothing to show says so.
    """
    score, quantity = ("mcc_vs_gamma", MCC) if has_sources(members) else ("agreement_vs_gamma", SEEDS)
    figures = {
        score: over_gamma(members, quantity),
        "cima_vs_gamma": over_gamma(members, CONTRAST),
        "optimisation_history": _optimisation_history(trials, objective),
        "score_vs_parameters": _score_vs_parameters(trials, keys, objective),
    }
    return write(figures, folder)


def solo_figures(history: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw the learning curves of one point's members, and return the files.

    Args:
        history: rows of ``history.csv``: ``seed``, ``epoch``, ``val/mcc`` (without sources ``val/agreement`` takes its
            place, if there are several seeds) and ``val/neg_elbo``.
        folder: where the files go; made if there is none.
    """
    figure = new_figure("Learning curves of the members", 9.6, 4.0)
    panels = figure.subplots(1, 2)
    score = "val/mcc" if "val/mcc" in history else "val/agreement"
    seeds = list(dict.fromkeys(history["seed"]))
    many = len(seeds) > len(SEED_COLOURS)
    for axes, column, best in zip(panels, (score, "val/neg_elbo"), (np.nanargmax, np.nanargmin), strict=True):
        dress(axes, "epoch", f"{LABELS[column]}, validation split")
        if column not in history:
            say(axes, "no sources, and a single seed")
            continue
        for n, seed in enumerate(seeds):
            curve = history[history["seed"] == seed].sort_values("epoch")
            epoch, value = floats(curve["epoch"]), finite_or_nan(floats(curve[column]))
            colour, width = (BLUE, 0.8) if many else (SEED_COLOURS[n], 1.3)
            axes.plot(epoch, value, color=colour, linewidth=width, alpha=0.5 if many else 0.9, label=f"seed {seed}")
            if np.isfinite(value).any():
                top = best(value)
                axes.plot(epoch[top], value[top], "o", color=colour, markersize=4)
        axes.xaxis.set_major_locator(whole_numbers(7))
        if not np.isfinite(floats(history[column])).any():
            say(axes, "no finite value")
    panels[0].set_ylim(-0.02, 1.02)
    _leave_out_the_start(panels[1], history)
    handles, labels = panels[1].get_legend_handles_labels()
    dot = panels[0].plot([], [], "o", color=INK, markersize=4)
    shown = (handles[:1], [f"each of {len(seeds)} members"]) if many else (handles, labels)
    legend(figure, [*shown[0], *dot], [*shown[1], "best value"])
    return write({"learning_curves": figure}, folder)


def _optimisation_history(trials: pd.DataFrame, objective: Objective) -> Figure:
    figure = new_figure("Optimisation history")
    axes = figure.subplots()
    dress(axes, "trial", f"score: {objective.aggregate} {objective.metric}")
    trials = trials.sort_values("trial")
    number, score = floats(trials["trial"]), scores(trials)
    status = np.array(trials["status"], dtype=str)
    scored = np.isfinite(score)
    for name, (marker, label) in STYLE_OF.items():
        here = scored & (status == name)
        face = BLUE if name == "finished" else "white"
        if here.any():
            axes.scatter(number[here], score[here], 34, face, marker=marker, edgecolor=BLUE, label=label, zorder=3)
    if not scored.any():
        say(axes, "no trial has a score")
    else:
        best = (np.fmax if objective.mode == "max" else np.fmin).accumulate(score)
        axes.step(number, best, where="post", color=VERMILLION, linewidth=1.8, label="best so far")
    if not scored.all():
        edge = np.full((~scored).sum(), 0.02)
        axes.plot(number[~scored], edge, "x", color=INK, ms=5, transform=axes.get_xaxis_transform(), label="no score")
    axes.xaxis.set_major_locator(whole_numbers(9))
    axes.set_xlim(number.min() - 0.5, number.max() + 0.5)
    axes.margins(y=0.1)
    legend(figure, *axes.get_legend_handles_labels())
    return figure


def _score_vs_parameters(trials: pd.DataFrame, keys: Sequence[str], objective: Objective) -> Figure:
    columns = max(1, min(3, len(keys)))
    rows = max(1, -(-len(keys) // columns))
    figure = new_figure("Score against each searched parameter", max(6.4, 3.4 * columns), 0.8 + 3.2 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    trials = trials[np.isfinite(scores(trials))]
    for axes in panels[max(1, len(keys)) :]:
        axes.set_axis_off()
    if not len(trials) or not keys:
        panels[0].set_axis_off()
        say(panels[0], "no trial has a score" if keys else "no parameter was searched")
        return figure
    number = floats(trials["trial"])
    colours = ScalarMappable(Normalize(number.min(), number.max()), "viridis")
    for n, (axes, (key, name)) in enumerate(zip(panels, short_names(keys).items(), strict=False)):
        dress(axes, name, "" if n % columns else f"score: {objective.aggregate} {objective.metric}")
        _score_panel(axes, trials, key, colours)
    if len(number) > 1:
        bar = figure.colorbar(colours, ax=list(panels), label="trial", pad=0.02, aspect=30 * rows)
        bar.locator = whole_numbers(6)
        bar.outline.set_visible(False)
    legends = [axes.get_legend_handles_labels() for axes in panels]
    shown = {label: handle for handles, labels in legends for handle, label in zip(handles, labels, strict=True)}
    legend(figure, list(shown.values()), list(shown))
    return figure


def _score_panel(axes: Axes, trials: pd.DataFrame, key: str, colours: ScalarMappable) -> None:
    trials = trials[trials[key].notna()]  # a conditional parameter is missing where it does not apply
    x = _place(axes, list(trials[key]))
    score, status = floats(trials["score"]), np.array(trials["status"], dtype=str)
    tint = colours.to_rgba(floats(trials["trial"]))
    for name, (marker, label) in STYLE_OF.items():
        here = status == name
        if here.any():
            axes.scatter(x[here], score[here], 34, tint[here], marker=marker, edgecolor="white", lw=0.5, label=label)


def _place(axes: Axes, values: list[object]) -> Floats:
    """Where values lie on the x axis, which is made linear, logarithmic or one of categories to suit them."""
    numeric = all(isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in values)
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
    if not numeric:
        texts = [compact(v) for v in values]
        distinct = sorted(set(texts))
        axes.set_xticks(range(len(distinct)), [text if len(text) <= 16 else f"{text[:15]}…" for text in distinct])
        if sum(map(len, distinct)) > 24:
            for tick in axes.get_xticklabels():
                tick.set(rotation=25, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.5, len(distinct) - 0.5)
        return np.array([distinct.index(text) for text in texts]) + jitter
    x = np.array(values, dtype=np.float64)
    if x.size and x.min() > 0 and x.max() / x.min() > LOG_RATIO:
        axes.set_xscale("log")
    elif (x == np.round(x)).all():
        axes.xaxis.set_major_locator(whole_numbers(6))
        return x + jitter if len(np.unique(x)) < len(x) and np.ptp(x) < FEW_VALUES else x
    return x


def _leave_out_the_start(axes: Axes, history: pd.DataFrame) -> None:
    """Fit the −ELBO axis to what follows the first tenth of the epochs, which can be a thousand times as high."""
    value, epoch = floats(history["val/neg_elbo"]), floats(history["epoch"])
    everything = value[np.isfinite(value)]
    late = value[np.isfinite(value) & (epoch > epoch.max(initial=0) / 10)]
    if late.size and np.ptp(everything) > 3 * np.ptp(late) > 0:
        axes.set_ylim(late.min() - 0.05 * np.ptp(late), late.max() + 0.05 * np.ptp(late))
        axes.set_title("first epochs lie above", loc="right", color=FAINT, fontsize=8)
