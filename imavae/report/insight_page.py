"""The figures of :mod:`imavae.report.insight` as one page to explore: Plotly, with its library inside the file.

The page asks nothing of the network, and opens from a folder as well as from MLflow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imavae.report.axes import LOG_RATIO, Axis
from imavae.report.display import compact, point_text
from imavae.report.drawing import BLUE, GREY, INK, VERMILLION, floats
from imavae.report.insight import COST, COST_LABEL, Goal, Insight, Shares, Surface, cost_front, drawable
from imavae.report.tables import Floats

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 960px; padding: 0 16px 32px; font: 16px/1.45 {font}; color: {ink}; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2rem 0 0; }}
p {{ margin: 0.3rem 0 0.6rem; }}
.wide {{ overflow-x: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
{sections}
</body>
</html>
"""


class Section(NamedTuple):
    """A figure of the page."""

    heading: str
    reading: str  # how to read it
    figure: Figure
    room: int = 0  # pixels below which it does not shrink: it scrolls then


def page(insight: Insight, title: str) -> str:
    """The page's HTML: a heading, a line on how to read it and a figure for all that there is to show."""
    import plotly.io

    parts = []
    for number, section in enumerate(sections(insight)):
        div = plotly.io.to_html(
            section.figure,
            config={"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d"]},
            include_plotlyjs=number == 0,
            full_html=False,
            div_id=f"figure-{number}",
        )
        parts.append(f"<h2>{escape(section.heading)}</h2>\n<p>{escape(section.reading)}</p>")
        parts.append(f'<div class="wide"><div style="min-width: {section.room}px">{div}</div></div>')
    goals = " and ".join(f"{goal.label} ({goal.mode})" for goal in insight.goals)
    summary = f"{len(insight.trials)} trials with a score: {goals}. Drag to zoom, double-click to go back."
    return PAGE.format(title=escape(title), font=FONT, ink=INK, summary=escape(summary), sections="\n".join(parts))


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
    names = {axis.key: _broken(axis.label) for axis in insight.axes}
    shares = [rank[key] for key in keys]
    look = {"orientation": "h", "marker": {"color": BLUE}, "hoverinfo": "skip", "cliponaxis": False}
    text = {"text": [f"{share:.2f}" for share in shares], "textposition": "outside"}
    figure = _figure(90 + 44 * len(keys), [Bar(x=shares, y=[names[key] for key in keys], **text, **look)])
    return figure.update_xaxes(range=[0, 1.08], title="share")


def _parallel(insight: Insight) -> Figure:
    from plotly.graph_objects import Parcoords

    goal = insight.goals[0]
    columns = [
        {
            "label": _broken(column.label),
            "values": column.heights,
            "range": [min(0.0, float(column.heights.min())), 1.0],
            "tickvals": [height for height, _ in column.ticks],
            "ticktext": [text for _, text in column.ticks],
        }
        for column in insight.uprights
    ]
    line = {"color": drawable(insight.scores(goal), goal), "showscale": True, **_colours(goal)}
    figure = _figure(440, [Parcoords(dimensions=columns, line={**line, "colorbar": _bar(goal)}, labelside="bottom")])
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
    figure = _figure(460, [surface, *dots])
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
    figure = _figure(400, traces).update_yaxes(title=goal.label, range=_range(score, goal))
    return figure.update_xaxes(title=_broken(COST_LABEL), type="log" if log else "linear", exponentformat="power")


def _front(insight: Insight, across: Goal, up: Goal) -> Figure:
    x, y = insight.scores(across), insight.scores(up)
    best = {"color": VERMILLION, "size": 11, "symbol": "diamond"}
    traces = [
        _dots(insight, [x, y], ~insight.front, "beaten by another", {"color": GREY, "size": 8}),
        _dots(insight, [x, y], insight.front, "on the front", best),
    ]
    figure = _figure(420, traces).update_xaxes(title=across.label, range=_range(x, across))
    return figure.update_yaxes(title=up.label, range=_range(y, up))


def _figure(height: int, traces: list[Any]) -> Figure:
    from plotly.graph_objects import Figure

    legend = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0}
    font = {"family": FONT, "size": 13, "color": INK}
    figure = Figure(traces).update_layout(template="simple_white", height=height, font=font, legend=legend)
    figure.update_layout(margin={"l": 10, "r": 10, "t": 30, "b": 10}, hovermode="closest")
    return figure.update_xaxes(automargin=True).update_yaxes(automargin=True)


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


def _broken(label: str) -> str:
    """A label in two lines, the second one in brackets."""
    return escape(label).replace(" (", "<br>(")
