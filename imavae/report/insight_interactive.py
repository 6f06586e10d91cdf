"""The figures of :mod:`imavae.report.insight` for a page to explore, by Plotly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imavae.report.axes import LOG_RATIO, Axis
from imavae.report.drawing import BLUE, GREY, VERMILLION, floats
from imavae.report.insight import COST, COST_LABEL, Goal, Insight, Shares, Surface, cost_front, drawable
from imavae.report.interactive import Section, broken, new_plot
from imavae.report.summary import Floats
from imavae.report.text import compact, point_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter


def sections(insight: Insight) -> Iterator[Section]:
    """All that there is to show, in the order of the page."""
    goals = insight.goals
    for goal, rank in zip(goals, insight.importances, strict=True):
        if rank:
            reading = "The share of the score's variance that a parameter explains by itself (fANOVA)."
            yield Section(f"Importances for {goal.label}", reading, _importances(insight, rank))
    if insight.uprights:
        reading = "Each line is a trial. Drag along an axis to keep those that pass there."
        room = 110 * len(insight.uprights) + 150  # a finger needs room between two axes
        yield Section("All trials", reading, _parallel(insight), room)
    for goal, field in zip(goals, insight.surfaces, strict=True):
        if field and insight.pair:
            reading = "A smooth surface through the trials, which differ in other parameters, too; blank far from all."
            figure = _contour(insight, insight.pair, field, goal)
            yield Section(f"{goal.label} over {insight.pair[0].name} and {insight.pair[1].name}", reading, figure)
    for goal in goals if insight.has_costs else ():
        reading = "The line is the best score that was to be had for so many training steps or fewer."
        yield Section(f"{goal.label} against cost", reading, _cost(insight, goal))
    for across, up in combinations(goals, 2):
        reading = "A trial is on the front if none is better in one score without being worse in another."
        yield Section(f"Pareto front of {across.label} and {up.label}", reading, _front(insight, across, up))


def _importances(insight: Insight, rank: Shares) -> Figure:
    from plotly.graph_objects import Bar

    keys = list(rank)[::-1]
    names = {axis.key: broken(axis.label) for axis in insight.axes}
    shares = [rank[key] for key in keys]
    look = {"orientation": "h", "marker": {"color": BLUE}, "hoverinfo": "skip", "cliponaxis": False}
    text = {"text": [f"{share:.2f}" for share in shares], "textposition": "outside"}
    figure = new_plot(90 + 44 * len(keys), [Bar(x=shares, y=[names[key] for key in keys], **text, **look)])
    return figure.update_xaxes(range=[0, 1.08], title="share")


def _parallel(insight: Insight) -> Figure:
    from plotly.graph_objects import Parcoords

    goal = insight.goals[0]
    columns = [
        {
            "label": broken(column.label),
            "values": column.heights,
            "range": [min(0.0, float(column.heights.min())), 1.0],
            "tickvals": [height for height, _ in column.ticks],
            "ticktext": [text for _, text in column.ticks],
        }
        for column in insight.uprights
    ]
    line = {"color": drawable(insight.scores(goal), goal), "showscale": True, **_colours(goal)}
    figure = new_plot(440, [Parcoords(dimensions=columns, line={**line, "colorbar": _bar(goal)}, labelside="bottom")])
    return figure.update_layout(margin={"l": 60, "r": 10, "t": 20, "b": 60})


def _contour(insight: Insight, pair: tuple[Axis, Axis], field: Surface, goal: Goal) -> Figure:
    from plotly.graph_objects import Contour

    score = drawable(insight.scores(goal), goal)
    low, high = float(score.min()), float(score.max())
    places = [axis.place(insight.trials[axis.key]) for axis in pair]
    line = {"width": 0.5, "color": "white"}
    z = np.where(np.isnan(field.score), None, field.score)  # type: ignore[call-overload]
    surface = Contour(x=field.x, y=field.y, z=z, zmin=low, zmax=high, line=line, hoverinfo="skip")
    surface.update(colorbar=_bar(goal), **_colours(goal))
    best = np.arange(len(score)) == insight.best(goal)
    marker = {"color": score[~best], "cmin": low, "cmax": high, "size": 9, "line": {"width": 1.5, "color": "white"}}
    star = {"color": VERMILLION, "size": 15, "symbol": "star", "line": marker["line"]}
    dots = [
        _dots(insight, places, ~best, "a trial", {**marker, **_colours(goal)}),
        _dots(insight, places, best, "the best one", star),
    ]
    figure = new_plot(460, [surface, *dots])
    for axis, update, at in zip(pair, (figure.update_xaxes, figure.update_yaxes), (field.x, field.y), strict=True):
        marks = axis.marks(float(at.min()), float(at.max()))
        ticks = {"tickvals": [mark for mark, _ in marks], "ticktext": [text for _, text in marks]}
        update(title=axis.label, type="log" if axis.log else "linear", **ticks)
    return figure


def _cost(insight: Insight, goal: Goal) -> Figure:
    from plotly.graph_objects import Scatter

    trials = insight.trials
    cost, score = floats(trials[COST]), insight.scores(goal)
    finished = (trials["status"] == "finished").to_numpy()
    front = cost_front(trials, goal)
    steps = {"x": [*front[COST], cost.max()], "y": [*front[goal.column], front[goal.column].iloc[-1]]}
    line = {"shape": "hv", "color": VERMILLION, "width": 2}
    blue = {"color": BLUE, "size": 9}
    traces = [
        _dots(insight, [cost, score], finished, "finished", blue),
        _dots(insight, [cost, score], ~finished, "stopped early", {**blue, "symbol": "triangle-down-open"}),
        Scatter(**steps, mode="lines", line=line, name="the best for so little", hoverinfo="skip"),
    ]
    log = cost.max() > LOG_RATIO * cost.min() > 0
    figure = new_plot(400, traces).update_yaxes(title=goal.label, range=_range(score, goal))
    return figure.update_xaxes(title=broken(COST_LABEL), type="log" if log else "linear", exponentformat="power")


def _front(insight: Insight, across: Goal, up: Goal) -> Figure:
    x, y = insight.scores(across), insight.scores(up)
    best = {"color": VERMILLION, "size": 11, "symbol": "diamond"}
    traces = [
        _dots(insight, [x, y], ~insight.front, "beaten by another", {"color": GREY, "size": 8}),
        _dots(insight, [x, y], insight.front, "on the front", best),
    ]
    figure = new_plot(420, traces).update_xaxes(title=across.label, range=_range(x, across))
    return figure.update_yaxes(title=up.label, range=_range(y, up))


def _dots(
    insight: Insight, places: Sequence[Floats], shown: NDArray[np.bool_], name: str, marker: dict[str, Any]
) -> Scatter:
    """Trials as dots that say on hovering which they are."""
    from plotly.graph_objects import Scatter

    x, y = places
    texts = np.array([_text(insight, n) for n in range(len(x))], dtype=object)
    return Scatter(
        x=x[shown], y=y[shown], mode="markers", name=name, marker=marker, text=texts[shown], hoverinfo="text"
    )


def _text(insight: Insight, row: int) -> str:
    trial = insight.trials.iloc[row]
    point = point_text({axis.key: trial[axis.key] for axis in insight.axes}).split(" ")
    scores = [f"{goal.label} {compact(float(trial[goal.column]), 4)}" for goal in insight.goals]
    return "<br>".join(map(escape, [f"trial {trial['trial']}, {trial['status']}", *scores, *point]))


def _range(scores: Floats, goal: Goal) -> list[float] | None:
    """Ends of an axis that leaves out the very bad scores; None where there are none."""
    shown = drawable(scores, goal)
    if (shown == scores).all():
        return None
    low, high = float(shown.min()), float(shown.max())
    return [low - 0.05 * (high - low), high + 0.05 * (high - low)]


def _colours(goal: Goal) -> dict[str, Any]:
    """Bright is good."""
    return {"colorscale": "Viridis", "reversescale": goal.mode == "min"}


def _bar(goal: Goal) -> dict[str, Any]:
    return {"title": {"text": goal.label, "side": "right"}, "thickness": 12, "outlinewidth": 0}
