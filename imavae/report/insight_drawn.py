"""The figures of :mod:`imavae.report.insight`, drawn by Matplotlib: none of them needs a browser."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from imavae.report.axes import LOG_RATIO, Axis
from imavae.report.drawing import BLUE, FAINT, GREY, INK, VERMILLION, dress, floats, legend, new_figure
from imavae.report.figures import STYLE_OF
from imavae.report.insight import COST, COST_LABEL, Goal, Insight, cost_front, drawable
from imavae.report.summary import Floats

HALO = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}  # under text on lines


def drawn(insight: Insight) -> dict[str, Figure]:
    """The figures that have something to show, by their files' names."""
    figures = {
        "importances": _importances(insight),
        "parallel_coordinates": _parallel(insight),
        "contour": _contours(insight),
        "score_vs_cost": _costs(insight),
        "pareto_front": _fronts(insight),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _importances(insight: Insight) -> Figure | None:
    known = [(goal, rank) for goal, rank in zip(insight.goals, insight.importances, strict=True) if rank]
    if not known:
        return None
    names = {axis.key: axis.label for axis in insight.axes}
    height = 1.0 + len(known) * (0.7 + 0.34 * len(names))
    figure = new_figure(f"Importance of the parameters, from {len(insight.trials)} trials", 6.6, height)
    panels = figure.subplots(len(known), 1, squeeze=False).ravel()
    for axes, (goal, rank) in zip(panels, known, strict=True):
        dress(axes, f"share of the variance of {goal.label}\nthat a parameter explains by itself (fANOVA)", "")
        axes.grid(axis="y", visible=False)
        keys = list(rank)[::-1]
        axes.barh(range(len(keys)), [rank[key] for key in keys], 0.62, color=BLUE)
        for n, key in enumerate(keys):
            axes.text(rank[key] + 0.012, n, f"{rank[key]:.2f}", va="center", color=INK, fontsize=9)
        axes.set_yticks(range(len(keys)), [names[key] for key in keys])
        axes.set_xlim(0, 1.09)
        axes.set_xticks(np.linspace(0, 1, 6))
    return figure


def _parallel(insight: Insight) -> Figure | None:
    if not insight.uprights:
        return None
    goal, count = insight.goals[0], len(insight.uprights)
    figure = new_figure("All trials: each line a point, the brighter the better", max(6.6, 1.6 + 1.4 * count), 4.6)
    axes = figure.subplots()
    axes.set_xlim(-0.3, count - 0.8)
    lowest = min(0.0, float(min(column.heights.min() for column in insight.uprights)))
    axes.set_ylim(lowest - 0.18, 1.04)
    axes.set_axis_off()
    score = drawable(insight.scores(goal), goal)
    colours = _colours(score, goal)
    heights = np.stack([column.heights for column in insight.uprights], 1)
    order = np.argsort(score if goal.mode == "max" else -score)  # the best last, on top
    lines = [np.stack([np.arange(count), heights[n]], 1) for n in order]
    axes.add_collection(LineCollection(lines, colors=colours.to_rgba(score[order]), linewidths=1.3, alpha=0.8))
    best = insight.best(goal)
    [line] = axes.plot(np.arange(count), heights[best], color=VERMILLION, linewidth=2.4)
    for n, column in enumerate(insight.uprights):
        axes.vlines(n, 0, 1, color=INK, linewidth=1)
        for height, text in column.ticks:
            axes.plot([n - 0.02, n], [height, height], color=INK, linewidth=1)
            axes.text(n - 0.04, height, text, ha="right", va="center", fontsize=8, color=INK, bbox=HALO)
        axes.text(n, lowest - 0.06, column.label.replace(" (", "\n("), ha="center", va="top", fontsize=9, color=INK)
    _colour_bar(figure, colours, axes, goal, insight.scores(goal))
    legend(figure, [line], [f"best trial ({insight.trials['trial'].iloc[best]})"])
    return figure


def _contours(insight: Insight) -> Figure | None:
    known = [(goal, field) for goal, field in zip(insight.goals, insight.surfaces, strict=True) if field]
    if insight.pair is None or not known:
        return None
    across, up = insight.pair
    figure = new_figure(f"Score over {across.name} and {up.name}", 6.6, 0.6 + 4.2 * len(known))
    for axes, (goal, field) in zip(figure.subplots(len(known), 1, squeeze=False).ravel(), known, strict=True):
        dress(axes, across.label, up.label)
        _scale(axes.xaxis, across, field.x)
        _scale(axes.yaxis, up, field.y)
        score = drawable(insight.scores(goal), goal)
        colours = _colours(score, goal)
        levels, shown = np.linspace(score.min(), score.max(), 13), np.clip(field.score, score.min(), score.max())
        axes.contourf(field.x, field.y, shown, levels, cmap=colours.cmap, norm=colours.norm)
        axes.contour(field.x, field.y, shown, levels[1:-1], colors="white", linewidths=0.4, linestyles="solid")
        x, y = (axis.place(insight.trials[axis.key]) for axis in insight.pair)
        edge = {"edgecolor": "white", "linewidths": 0.9, "clip_on": False}
        axes.scatter(x, y, 26, colours.to_rgba(score), zorder=3, **edge)
        best = insight.best(goal)
        [star] = axes.plot(x[best], y[best], "*", color=VERMILLION, mec="white", ms=15, zorder=4, clip_on=False)
        _colour_bar(figure, colours, axes, goal, insight.scores(goal))
    dots = axes.scatter([], [], 26, FAINT, **edge)
    legend(figure, [dots, star], ["a trial", "the best one"])
    return figure


def _costs(insight: Insight) -> Figure | None:
    if not insight.has_costs:
        return None
    trials = insight.trials
    cost, status = floats(trials[COST]), np.array(trials["status"], dtype=str)
    figure = new_figure("Score against cost", 6.6, 1.0 + 3.4 * len(insight.goals))
    panels = figure.subplots(len(insight.goals), 1, squeeze=False).ravel()
    for axes, goal in zip(panels, insight.goals, strict=True):
        dress(axes, COST_LABEL, goal.label)
        axes.set_xscale("log" if cost.max() > LOG_RATIO * cost.min() > 0 else "linear")
        score = insight.scores(goal)
        for name, (marker, label) in STYLE_OF.items():
            here = status == name
            if here.any():
                face = BLUE if name == "finished" else "white"
                axes.scatter(cost[here], score[here], 34, face, marker=marker, edgecolor=BLUE, label=label, zorder=3)
        front = cost_front(trials, goal)
        ends = floats([*front[COST], cost.max()]), floats([*front[goal.column], front[goal.column].iloc[-1]])
        axes.step(*ends, where="post", color=VERMILLION, linewidth=1.8, label="the best for so little or less")
        _leave_out_very_bad(axes, axes.set_ylim, score, goal)
    legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def _fronts(insight: Insight) -> Figure | None:
    trials, goals = insight.trials, insight.goals
    if len(goals) < 2 or len(trials) < 2:
        return None
    pairs, best = list(combinations(goals, 2)), insight.front
    figure = new_figure("Pareto front: trials that no other beats in all scores", 6.6, 0.9 + 3.6 * len(pairs))
    panels = figure.subplots(len(pairs), 1, squeeze=False).ravel()
    for axes, (across, up) in zip(panels, pairs, strict=True):
        dress(axes, across.label, up.label)
        x, y = insight.scores(across), insight.scores(up)
        axes.scatter(x[~best], y[~best], 26, GREY, label="beaten by another trial")
        axes.scatter(x[best], y[best], 40, VERMILLION, marker="D", edgecolor="white", label="on the front", zorder=3)
        if len(goals) == 2:
            order, side = np.argsort(x[best], kind="stable"), "pre" if across.mode == "max" else "post"
            axes.step(x[best][order], y[best][order], where=side, color=VERMILLION, linewidth=1.2)
        for limit, score, goal in ((axes.set_xlim, x, across), (axes.set_ylim, y, up)):
            _leave_out_very_bad(axes, limit, score, goal)
    legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def _colours(score: Floats, goal: Goal) -> ScalarMappable:
    """Bright is good."""
    return ScalarMappable(Normalize(score.min(), score.max()), "viridis" if goal.mode == "max" else "viridis_r")


def _colour_bar(figure: Figure, colours: ScalarMappable, axes: Axes, goal: Goal, scores: Floats) -> None:
    """Its end is an arrow where some scores are worse than the worst colour."""
    cut = (drawable(scores, goal) != scores).any()
    extend = "neither" if not cut else "min" if goal.mode == "max" else "max"
    bar = figure.colorbar(colours, ax=axes, label=goal.label, pad=0.02, aspect=30, extend=extend)
    bar.outline.set_visible(False)


def _scale(axis: XAxis | YAxis, shown: Axis, places: Floats) -> None:
    """Give an axis of a plot the scale and the marks of a parameter."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log" if shown.log else "linear"})
    marks = shown.marks(float(places.min()), float(places.max()))
    axis.set_ticks([mark for mark, _ in marks], [text for _, text in marks])
    axis.set_minor_formatter(NullFormatter())


def _leave_out_very_bad(axes: Axes, limit: Callable[[float, float], object], scores: Floats, goal: Goal) -> None:
    """Set an axis's limits to the scores, but for those that would flatten all others; say how many those are."""
    shown = drawable(scores, goal)
    low, high = float(shown.min()), float(shown.max())
    pad = 0.08 * (high - low) or 0.5
    limit(low - pad, high + pad)
    if (beyond := int((shown != scores).sum())) > 0:
        axes.set_title(f"{beyond} worse not shown", loc="right", color=FAINT, fontsize=8)
