"""Figures of a study: each once as a description, drawn by Matplotlib for files and by Plotly for the HTML report.

Optuna draws what concerns trials (history, importances, contour, slices, parallel coordinates, Pareto fronts), from a
study in memory (:func:`optuna_study`). So a grid, a resumed study and a study of several objectives look the same.
Metrics over gamma are drawn here (:class:`OverGamma`): Optuna shows one score per trial, and the spread over seeds, the
diverged members and the two protocols of selection would be lost.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from imavae.config.settings import WORST_SCORE, StudyConfig
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
    set_title,
    whole_numbers,
    write,
    write_on,
)
from imavae.report.summary import (
    AGREEMENT,
    Floats,
    counted,
    diverged,
    has_sources,
    member_steps,
    quartiles,
)
from imavae.report.text import compact, point_text, short_names
from imavae.runs.records import BEST_MCC, at_best
from imavae.runs.results import Results
from imavae.search.space import Parameter, parse
from imavae.tracking.base import Value, member_name

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from plotly.graph_objects import Figure as PlotlyFigure

COST = "member_steps"
GAMMA, WIDTH = "model.gamma", "model.hidden_factor"
ENOUGH_TRIALS = 4  # fewer trials have no importances, contour, parallel coordinates or cost
LOG_RATIO = 20  # an axis whose largest positive value is more than this times its smallest is logarithmic
GROUPS = 12  # members of more gammas than this are drawn in so many groups of neighbouring gammas
CONTRAST_FLOOR = 1e-8  # lower end of the log axis of c_IMA: smaller values are rounding errors
AT_CHOSEN, AT_PAPER = "median, best val/mcc", "median, smallest −ELBO"  # the two protocols of selection
READINGS = {  # how to read a figure, by the function of Optuna that draws it
    "plot_optimization_history": "The score of each trial, and the best so far.",
    "plot_slice": "Each dot is a trial, darker for later ones.",
    "plot_parallel_coordinate": "Each line is a trial.",
    "plot_param_importances": "The share of the score's variance that each parameter explains by itself (fANOVA).",
    "plot_contour": "Interpolated between the trials (dots), which differ in other parameters, too.",
    "plot_pareto_front": "No trial is better than one on the front in one respect without being worse in the other.",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


class Section(NamedTuple):
    """An interactive figure under its heading."""

    heading: str
    reading: str  # how to read the figure
    figure: PlotlyFigure


# ---- figures over trials, by Optuna


class Goal(NamedTuple):
    """A score of a study: its column in the table of trials, and its better direction."""

    column: str
    label: str
    mode: Literal["max", "min"]


class Span(NamedTuple):
    """The visible part of an axis."""

    low: float
    high: float
    log: bool
    hidden: int  # outliers that lie outside


@dataclass(frozen=True)
class TrialPlot:
    """A figure over trials.

    Attributes:
        file: name of the file, without suffix.
        function: name of the function that draws it, in ``optuna.visualization`` and in its Matplotlib counterpart.
        options: further arguments of the function.
        spans: of the x and y axes, where they show a score or the cost.
    """

    file: str
    title: str
    function: str
    study: optuna.Study
    options: Mapping[str, Any]
    spans: tuple[Span | None, Span | None] = (None, None)


def trial_plots(trials: pd.DataFrame, parameters: Sequence[Parameter], goals: Sequence[Goal]) -> Iterator[TrialPlot]:
    """The figures over trials that have something to show.

    Args:
        trials: one row per trial: ``trial``, ``status``, a column per goal and per parameter (NaN where a conditional
            parameter does not apply), and ``member_steps`` if the cost is known.
        parameters: the searched parameters.
        goals: the scores; the first one ranks the trials.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    values = trials[[goal.column for goal in goals]].to_numpy(dtype=np.float64)
    trials = trials[(np.abs(values) < WORST_SCORE).all(axis=1) & (trials["status"] != "failed")]
    moved = [p for p in parameters if p.key in trials and trials[p.key].nunique(dropna=False) > 1]
    if not len(trials):
        return
    study, named = optuna_study(trials, moved, goals[:1]), {"target_name": goals[0].label}
    spans = (None, _span(trials, goals[0]))
    yield TrialPlot("optimisation_history", "Optimisation history", "plot_optimization_history", study, named, spans)
    if moved:
        title = "Score against each searched parameter"
        yield TrialPlot("score_vs_parameters", title, "plot_slice", study, named, spans)
    if len(trials) < ENOUGH_TRIALS:
        return
    for n, goal in enumerate(goals, 1):
        study, named = optuna_study(_without_outliers(trials, goal), moved, [goal]), {"target_name": goal.label}
        if len(moved) > 1:
            file, title = _numbered("parallel_coordinates", n), f"All trials: {goal.label}"
            yield TrialPlot(file, title, "plot_parallel_coordinate", study, named)
        if len(moved) > 1 and trials[goal.column].nunique() > 1:
            # Optuna's default evaluator, PED-ANOVA, takes noise for importance in studies of fewer than 100 trials.
            evaluator = FanovaImportanceEvaluator(seed=0)
            scaled = optuna_study(trials, moved, [goal], search_scale=True)
            file, title = _numbered("importances", n), f"Importance of the parameters for {goal.label}"
            yield TrialPlot(file, title, "plot_param_importances", scaled, {"evaluator": evaluator, **named})
            pair = _contour_pair(trials, moved, list(get_param_importances(scaled, evaluator=evaluator)))
            if pair:
                file, title = _numbered("contour", n), f"{goal.label} over {pair[0]} and {pair[1]}"
                yield TrialPlot(file, title, "plot_contour", study, {"params": pair, **named})
        if COST in trials and trials[COST].nunique() > 1:
            file, title = _numbered("score_vs_cost", n), f"{goal.label} against cost"
            yield _front(file, title, trials, moved, (Goal(COST, "training steps of all members", "min"), goal))
    for n, two in enumerate(combinations(goals, 2), 1):
        title = f"Pareto front of {two[0].label} and {two[1].label}"
        yield _front(_numbered("pareto_front", n), title, trials, moved, two)


def _front(
    file: str, title: str, trials: pd.DataFrame, parameters: Sequence[Parameter], pair: tuple[Goal, Goal]
) -> TrialPlot:
    options = {"target_names": [goal.label for goal in pair]}
    spans = (_span(trials, pair[0]), _span(trials, pair[1]))
    return TrialPlot(file, title, "plot_pareto_front", optuna_study(trials, parameters, pair), options, spans)


def _numbered(file: str, n: int) -> str:
    return file if n == 1 else f"{file}_{n}"


def trial_plots_of(results: Results) -> list[TrialPlot]:
    """The figures over the trials of a study."""
    assert isinstance(results.config, StudyConfig)  # noqa: S101
    columns = ["score", *(objective.metric for objective in results.objectives[1:])]
    goals = [Goal(c, f"{o.aggregate} {o.metric}", o.mode) for c, o in zip(columns, results.objectives, strict=True)]
    trials = results.trials
    costs = trials["trial"].map(member_steps(results.records, results.config))
    return list(trial_plots(trials.assign(**{COST: costs}), parse(results.config), goals))


def optuna_study(
    trials: pd.DataFrame, parameters: Sequence[Parameter], goals: Sequence[Goal], search_scale: bool = False
) -> optuna.Study:
    """A study in memory that Optuna can draw: labels as names of parameters, and gamma squared in place of gamma.

    With ``search_scale``, values lie on the scale on which they are searched, and random values stand for missing ones
    of conditional parameters: Optuna's fANOVA ignores ``log``, and leaves out parameters that some trials lack.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize" if goal.mode == "max" else "minimize" for goal in goals])
    names, random = _labels(parameters), np.random.default_rng(0)
    spread = {p.key: _distribution(p) for p in parameters}
    known = {int(row["trial"]): row for row in trials.to_dict("records")}
    for number in range(max(known) + 1):  # Optuna numbers trials by their order
        if number not in known:
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
            continue
        row = known[number]
        values: dict[str, Any] = {}
        kinds: dict[str, BaseDistribution] = {}
        for key, kind in spread.items():
            value, missing = row[key], bool(pd.isna(row[key]))
            if isinstance(kind, CategoricalDistribution):
                value = random.choice(np.array(kind.choices, dtype=object)) if missing else value
            elif isinstance(kind, FloatDistribution):
                low, high = kind.low, kind.high
                value = float(np.clip(float(value) ** (2 if key == GAMMA else 1), low, high))
                if search_scale:
                    low, high, value = np.log10([low, high, value]).tolist() if kind.log else (low, high, value)
                    value, kind = random.uniform(low, high) if missing else value, FloatDistribution(low, high)
            if search_scale or not missing:
                values[names[key]], kinds[names[key]] = value, kind
        scores = [float(row[goal.column]) for goal in goals]
        study.add_trial(optuna.trial.create_trial(params=values, distributions=kinds, values=scores))
    return study


def draw_trial_plots(plots: Sequence[TrialPlot]) -> dict[str, Figure]:
    """Draw figures over trials by Matplotlib, by the names of their files."""
    import optuna.visualization.matplotlib as draw
    from matplotlib import pyplot
    from optuna.exceptions import ExperimentalWarning

    figures = {}
    for plot in plots:
        with warnings.catch_warnings(), mpl.rc_context(), pyplot.ioff():  # Optuna sets a style and uses pyplot
            mpl.rcParams["figure.constrained_layout.use"] = True
            warnings.simplefilter("ignore", ExperimentalWarning)
            figure = np.ravel(getattr(draw, plot.function)(plot.study, **plot.options))[0].figure
            pyplot.close(figure)
        _restyle(figure, plot)
        figures[plot.file] = figure
    return figures


def trial_sections(plots: Sequence[TrialPlot]) -> Iterator[Section]:
    """Draw figures over trials by Plotly."""
    import optuna.visualization as draw
    from optuna.exceptions import ExperimentalWarning

    for plot in plots:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            figure = _look(getattr(draw, plot.function)(plot.study, **plot.options))
        if plot.function == "plot_pareto_front":
            for trace in figure.data:  # Optuna colours both kinds of trials by their numbers
                best = trace.marker.colorbar.title.text == "Best Trial"
                trace.update(name="on the front" if best else "other trial", showlegend=True)
                trace.marker = {"color": VERMILLION if best else BLUE, "size": 9 if best else 7}
        if plot.function == "plot_parallel_coordinate":
            figure.update_layout(margin={"l": 70})
        for span, update in zip(plot.spans, (figure.update_xaxes, figure.update_yaxes), strict=True):
            if span:
                update(type="log" if span.log else "linear", range=None if span.log else [span.low, span.high])
        yield Section(plot.title, READINGS[plot.function], figure)


def _restyle(figure: Figure, plot: TrialPlot) -> None:
    """Give a figure of Optuna's the common look."""
    main = figure.axes[0]
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    named = zip(*main.get_legend_handles_labels(), strict=True)
    shown = {label: handle for handle, label in named if not label.startswith("Infeasible")}
    figure.set_size_inches(max(6.6, 1.5 * len(figure.axes)), 4.4)
    if len(panels) == len(figure.axes):  # with a colour bar it is already so
        figure.set_layout_engine("constrained")
    set_title(figure, plot.title)
    for axes in panels:
        if old := axes.get_legend():
            old.remove()
        axes.set_title("")
        axes.set_title("", loc="left")
        dress(axes, axes.get_xlabel().replace("Hyperparameter Importance", "importance"), axes.get_ylabel())
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                decades = float(np.ptp(np.log10(axis.get_view_interval())))
                axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
                axis.set_minor_formatter(NullFormatter())
    if plot.function == "plot_param_importances":
        main.set_ylabel("")
        main.grid(visible=False)
    if plot.function == "plot_parallel_coordinate":
        main.tick_params(axis="x", rotation=0)
        for axes in panels:
            axes.spines["right"].set_visible(axes is not main)
            axes.grid(visible=False)
            if isinstance(axes.yaxis.get_major_locator(), AutoLocator) and all(map(float.is_integer, axes.get_ylim())):
                axes.yaxis.set_major_locator(whole_numbers(6))
            for label in axes.get_yticklabels():
                label.set_bbox({"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75})
    for span, side in zip(plot.spans, "xy", strict=True):
        if span:
            main.set(**{f"{side}scale": "log"} if span.log else {f"{side}lim": (span.low, span.high)})
            if span.hidden:
                main.set_title(f"{span.hidden} worse not shown", loc="right", color=FAINT, fontsize=8)
    if len(shown) > 1:
        legend(figure, list(shown.values()), list(shown))


def _span(trials: pd.DataFrame, goal: Goal) -> Span:
    """The visible part of the axis of a goal."""
    values = floats(trials[goal.column])
    if goal.column == COST and values.max() > LOG_RATIO * values.min() > 0:
        return Span(values.min(), values.max(), log=True, hidden=0)
    shown = values if goal.column == COST else without_outliers(values, goal.mode)
    pad = 0.08 * float(np.ptp(shown)) or 0.5
    return Span(float(shown.min()) - pad, float(shown.max()) + pad, log=False, hidden=int((shown != values).sum()))


def _without_outliers(trials: pd.DataFrame, goal: Goal) -> pd.DataFrame:
    return trials.assign(**{goal.column: without_outliers(floats(trials[goal.column]), goal.mode)})


def without_outliers(scores: Floats, mode: str) -> Floats:
    """Scores, (trial,), of which the very bad ones are clipped, so that the differences of the others can be seen.

    Very bad is farther from the worse quartile than three times the distance between the quartiles.
    """
    worse, better = np.quantile(scores, [0.25, 0.75] if mode == "max" else [0.75, 0.25])
    fence = worse - 3 * (better - worse)
    clipped: Floats = np.maximum(scores, fence) if mode == "max" else np.minimum(scores, fence)
    return clipped


def _labels(parameters: Sequence[Parameter]) -> dict[str, str]:
    return short_names([parameter.key for parameter in parameters]) | {GAMMA: "γ²"}


def _distribution(parameter: Parameter) -> BaseDistribution:
    """The range of a parameter as it is drawn: a grid of numbers spans an interval, gamma is squared."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    ends = parameter.ends
    if any(isinstance(end, (bool, str)) for end in ends):
        return CategoricalDistribution(ends)
    low, high = min(map(float, ends)), max(map(float, ends))
    log = parameter.log or parameter.key == GAMMA or 0 < LOG_RATIO * low < high
    return FloatDistribution(*((low**2, high**2) if parameter.key == GAMMA else (low, high)), log=log)


def _contour_pair(trials: pd.DataFrame, parameters: Sequence[Parameter], order: list[str]) -> list[str] | None:
    """Labels of gamma and the width if both were searched, else of the two most important numbers."""
    names = _labels(parameters)
    numbers = [
        p.key for p in parameters if pd.api.types.is_numeric_dtype(trials[p.key]) and trials[p.key].nunique() > 1
    ]
    numbers.sort(key=lambda key: (key != GAMMA, key != WIDTH, order.index(names[key])))
    return [names[key] for key in numbers[:2]] if len(numbers) > 1 else None


# ---- metrics of members over gamma


class Quantity(NamedTuple):
    """A metric that is drawn over gamma: columns at the best val/mcc, and at the smallest val/neg_elbo."""

    name: str
    title: str
    chosen: str
    paper: str
    log: bool = False


MCC = Quantity("MCC", "Recovery of the sources over γ²", BEST_MCC, at_best("val/mcc", "val/neg_elbo"))
SEEDS = Quantity("agreement of seeds", "Agreement of seeds over γ²", AGREEMENT, AGREEMENT)
CONTRAST = Quantity(
    "c_IMA (nats)",
    "Local IMA contrast over γ²",
    at_best("val/cima", "val/mcc"),
    at_best("val/cima", "val/neg_elbo"),
    log=True,
)


@dataclass(frozen=True)
class OverGamma:
    """A quantity of all members that have a finite gamma, over gamma squared.

    Members of up to ``GROUPS`` gammas are grouped by gamma, others in groups of neighbouring gammas.
    """

    quantity: Quantity
    members: pd.DataFrame  # rows of members.csv
    x: Floats  # gamma squared of each member
    y: Floats  # of each member, at its best val/mcc; without sources at its smallest val/neg_elbo
    failed: NDArray[np.bool_]  # the members that diverged: they count as the worst
    groups: pd.DataFrame  # a row per group: x, low, median and high (quartiles of y), and paper (the other protocol's)
    each: bool  # whether each gamma is a group

    @classmethod
    def of(cls, members: pd.DataFrame, quantity: Quantity) -> OverGamma:
        """Collect a quantity from rows of ``members.csv``."""
        members = members[np.isfinite(floats(members["gamma_sq"]))]
        x, floor = floats(members["gamma_sq"]), CONTRAST_FLOOR if quantity.log else -np.inf
        columns = (quantity.chosen if has_sources(members) else quantity.paper, quantity.paper)
        y, paper = (np.maximum(counted(members, column), floor) for column in columns)
        gammas = np.unique(x)
        rows = []
        for group in np.array_split(gammas, min(len(gammas), GROUPS)) if len(gammas) else ():
            inside = (x >= group[0]) & (x <= group[-1])
            middle = float(np.exp(np.median(np.log(x[inside]))))
            rows.append((middle, *quartiles(y[inside]), quartiles(paper[inside]).median))
        table = finite_or_nan(np.array(rows, dtype=np.float64).reshape(-1, 5))
        groups = pd.DataFrame(table, columns=["x", "low", "median", "high", "paper"])
        return cls(quantity, members, x, y, diverged(members), groups, len(gammas) <= GROUPS)

    @property
    def sound(self) -> NDArray[np.bool_]:
        """The members that have a value, (member,)."""
        return ~self.failed & np.isfinite(self.y)

    @property
    def lines(self) -> list[tuple[str, str, str]]:
        """Column of ``groups``, name and colour of each line: one per protocol, just one without sources."""
        if not has_sources(self.members):
            return [("median", AT_PAPER, BLUE)]
        return [("median", AT_CHOSEN, BLUE), ("paper", AT_PAPER, VERMILLION)]

    @property
    def scattered(self) -> Floats:
        """Positions of the members along x: beside their gamma if it has several, so that they hide each other less."""
        if not self.each:
            return self.x
        gap = float(np.diff(np.log10(np.unique(self.x))).min(initial=1.0))
        return self.x * 10 ** np.random.default_rng(0).uniform(-0.08 * gap, 0.08 * gap, len(self.x))

    @property
    def lost(self) -> str:
        """The name of the diverged members in a legend."""
        return f"diverged ({int(self.failed.sum())}), counted as worst"


def gamma_quantities(members: pd.DataFrame) -> dict[str, OverGamma]:
    """The quantities that a study shows over gamma, by the names of their files."""
    file, quantity = ("mcc_vs_gamma", MCC) if has_sources(members) else ("agreement_vs_gamma", SEEDS)
    return {file: OverGamma.of(members, quantity), "cima_vs_gamma": OverGamma.of(members, CONTRAST)}


def draw_over_gamma(shown: OverGamma) -> Figure:
    """Draw members, quartiles and medians over gamma by Matplotlib; diverged members at the worst end of the axis."""
    figure, log = new_figure(shown.quantity.title), shown.quantity.log
    axes = figure.subplots()
    dress(axes, "γ² (decoder precision)", f"{shown.quantity.name}, validation split")
    if not shown.sound.any():
        write_on(axes, "no finite value")
    if not len(shown.x):
        return figure
    axes.set(xscale="log", yscale="log" if log else "linear")
    _give_room(axes, shown)
    at, groups = shown.groups["x"], shown.groups
    x, y = shown.scattered[shown.sound], shown.y[shown.sound]
    axes.scatter(x, y, s=9, color=BLUE, alpha=0.4, linewidths=0, label="member")
    if shown.each:
        axes.vlines(at, groups["low"], groups["high"], color=BLUE, linewidth=5, alpha=0.4, label="quartiles")
    else:
        axes.fill_between(at, groups["low"], groups["high"], color=BLUE, alpha=0.18, lw=0, label="quartiles nearby")
    for (column, name, colour), stroke in zip(shown.lines, ("-o", "--D"), strict=False):
        axes.plot(at, groups[column], stroke, color=colour, linewidth=1.6, markersize=5, mec="white", label=name)
    if shown.failed.any():
        worst = np.full(shown.failed.sum(), 0.98 if log else 0.02)
        place = axes.get_xaxis_transform()
        axes.plot(shown.x[shown.failed], worst, "x", color=INK, ms=5, transform=place, label=shown.lost)
    legend(figure, *axes.get_legend_handles_labels())
    return figure


def gamma_sections(members: pd.DataFrame, points: Mapping[int, Mapping[str, Value]]) -> Iterator[Section]:
    """Draw the quantities over gamma by Plotly, as far as members have values; each member tells its trial and seed.

    Args:
        members: rows of ``members.csv``.
        points: the searched values of each trial, by its number.
    """
    reading = "Each dot is a member: hover over it to see its trial and seed. Click a name in the legend to hide it."
    for shown in gamma_quantities(members).values():
        if shown.sound.any():
            yield Section(f"{shown.quantity.name} over γ²", reading, _plot_over_gamma(shown, points))


def _plot_over_gamma(shown: OverGamma, points: Mapping[int, Mapping[str, Value]]) -> PlotlyFigure:
    from plotly.graph_objects import Figure, Scatter

    log, failed = shown.quantity.log, shown.failed
    worst = 2 * float(shown.y[shown.sound].max()) if log else 0.0
    early = (shown.members["status"] == "stopped").to_numpy()
    y = np.where(failed, worst, shown.y)
    texts = np.array([_about_member(shown, row, points) for row in range(len(y))], dtype=object)
    figure = _look(Figure())
    for mask, name, marker in (
        (shown.sound & ~early, "member", {"color": BLUE, "opacity": 0.5}),
        (shown.sound & early, "member that stopped early", {"color": BLUE, "symbol": "triangle-down-open"}),
        (failed, shown.lost, {"color": INK, "symbol": "x-thin", "line": {"color": INK, "width": 2}}),
    ):
        if mask.any():
            where = {"x": shown.scattered[mask], "y": y[mask], "text": texts[mask], "hoverinfo": "text"}
            figure.add_trace(Scatter(**where, mode="markers", name=name, marker={"size": 7, **marker}))
    for (column, name, colour), dash in zip(shown.lines, ("solid", "dash"), strict=False):
        where = {"x": shown.groups["x"], "y": shown.groups[column], "hoverinfo": "skip"}
        line = {"color": colour, "width": 2, "dash": dash}
        figure.add_trace(Scatter(**where, mode="lines+markers", name=name, line=line, marker={"size": 8}))
    figure.update_xaxes(title="γ² (decoder precision)", type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(title=f"{shown.quantity.name}, validation split", exponentformat="power")
    return figure.update_yaxes(type="log", dtick=1) if log else figure.update_yaxes(range=[-0.03, 1.03])


def _about_member(shown: OverGamma, row: int, points: Mapping[int, Mapping[str, Value]]) -> str:
    """Facts about a member, a line each, as HTML."""
    member: Any = shown.members.iloc[row].to_dict()
    trial = int(member["trial"])
    lines = [
        f"trial {trial}, seed {member_name(member)}",
        "" if shown.failed[row] else f"{shown.quantity.name} {compact(float(shown.y[row]))}",
        f"γ² {compact(float(member['gamma_sq']))}",
        f"{member['status']} after {int(member['epochs'])} epochs",
        *point_text({k: v for k, v in points[trial].items() if k != GAMMA}).split(" "),
    ]
    return "<br>".join(escape(line) for line in lines if line)


def _give_room(axes: Axes, shown: OverGamma) -> None:
    """Set the limits with a margin; a log axis spans two decades or more, so that two of its ticks have labels."""
    if not shown.quantity.log:
        axes.set_ylim(-0.03, 1.03)
    for side, at in (("xlim", shown.x), ("ylim", shown.y[shown.sound] if shown.quantity.log else floats([]))):
        if at.size:
            low, high = np.log10(at.min()), np.log10(at.max())
            pad = max(0.08 * (high - low), (2.2 - (high - low)) / 2)
            axes.set(**{side: (10 ** (low - pad), 10 ** (high + pad))})


def _look(figure: PlotlyFigure) -> PlotlyFigure:
    """Give a Plotly figure the common look."""
    legend = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0}
    font = {"family": FONT, "size": 13, "color": INK}
    figure.update_layout(template="simple_white", height=460, width=None, title=None, font=font, legend=legend)
    figure.update_layout(hovermode="closest")
    figure.update_layout(margin={"l": 10, "r": 10, "t": 30, "b": 10})
    return figure.update_xaxes(automargin=True).update_yaxes(automargin=True)


# ---- all of them


def draw_study(members: pd.DataFrame, plots: Sequence[TrialPlot], folder: Path) -> list[Path]:
    """Draw all figures of a study into a folder, as PNG and PDF, and return the files."""
    over_gamma = {file: draw_over_gamma(shown) for file, shown in gamma_quantities(members).items()}
    return write(over_gamma | draw_trial_plots(plots), folder)
