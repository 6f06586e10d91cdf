"""Figures of a study, drawn by Matplotlib for files and by Plotly for the HTML report.

Optuna draws what concerns trials (history, importances, contour, slices, Pareto fronts), from a
study in memory (:func:`optuna_study`). So a grid, a resumed study and a study of several objectives look the same.
Metrics over gamma are drawn by :mod:`imavae.report.over_gamma`: Optuna shows one score per trial, and the spread over
seeds, the diverged members and the two protocols of selection would be lost.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
import optuna.visualization as optuna_plotly
import optuna.visualization.matplotlib as optuna_matplotlib
import pandas as pd
from matplotlib import pyplot
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator

from imavae.config.settings import WORST_SCORE, StudyConfig
from imavae.report import drawing, summary
from imavae.report.display import compact, short_names
from imavae.report.drawing import BLUE, INK, NEAR_ONE, VERMILLION, floats
from imavae.report.over_gamma import GAMMA, Section, draw_over_gamma, dressed, gamma_quantities
from imavae.report.summary import Floats
from imavae.runs.results import Results
from imavae.search.space import Parameter, parse

COST = "training steps of all members"  # a column of the table of trials
WIDTH = "model.hidden_factor"
ENOUGH_TRIALS = 4  # fewer trials have no importances, parallel coordinates or cost
ENOUGH_FOR_CONTOUR = 20  # a contour interpolates: between fewer trials it would be made up
PANEL = 170  # pixels of each panel's width on the page, at least
LOG_RATIO = 20  # an axis whose largest positive value is more than this times its smallest is logarithmic
HISTORY, SLICE = "plot_optimization_history", "plot_slice"
IMPORTANCES, CONTOUR, FRONT = "plot_param_importances", "plot_contour", "plot_pareto_front"
READINGS = {  # how to read a figure, by the function of Optuna that draws it
    HISTORY: "The score of each trial, and the best so far.",
    SLICE: "Each dot is a trial, darker for later ones.",
    IMPORTANCES: "The share of the score's variance that each parameter explains by itself (fANOVA). Optuna's page has "
    "PED-ANOVA instead: it tells what sets the best tenth of the trials apart, so its shares differ.",
    CONTOUR: "Interpolated between the trials (dots), which differ in other parameters, too.",
    FRONT: "No trial is better than one on the front in one respect without being worse in the other.",
}


@dataclass(frozen=True)
class TrialPlot:
    """A figure over trials, drawn by a function of the same name in both of Optuna's packages of figures."""

    file: str  # without suffix
    title: str
    function: str
    study: optuna.Study
    options: Mapping[str, Any]  # further arguments of the function
    ranges: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)  # of x and y; None: logarithmic
    note: str = ""  # what it leaves out or moves
    linear_ica: float = math.nan  # on the y axis; NaN for no line


def trial_plots_of(results: Results) -> list[TrialPlot]:
    """The figures over the trials of a study."""
    assert isinstance(results.config, StudyConfig)  # noqa: S101
    goals = {f"{objective.aggregate} {objective.metric}": objective.mode for objective in results.objectives}
    columns = ["score", *(objective.metric for objective in results.objectives[1:])]
    trials = results.trials.rename(columns=dict(zip(columns, goals, strict=True)))
    trials[COST] = trials["trial"].map(summary.member_steps(results.records, results.config))
    linear_ica = {
        goal: summary.median(results.members, summary.LINEAR_ICA)
        for goal, objective in zip(goals, results.objectives, strict=True)
        if objective.metric == "val/mcc"
    }
    return list(trial_plots(trials, parse(results.config), goals, linear_ica))


def trial_plots(
    trials: pd.DataFrame,
    parameters: Sequence[Parameter],
    goals: Mapping[str, str],
    linear_ica: Mapping[str, float] | None = None,
) -> Iterator[TrialPlot]:
    """The figures over trials that have something to show.

    ``trials`` has a row per trial: ``trial``, ``status``, the searched parameters (NaN where one does not apply), the
    cost if known, and the ``goals``: scores with their better directions, of which the first one ranks the trials.
    ``linear_ica`` has the value of linear ICA for those that are an MCC.
    """
    values = trials[list(goals)].to_numpy(dtype=np.float64)
    trials = trials[(np.abs(values) < WORST_SCORE).all(axis=1) & (trials["status"] != "failed")]
    moved = [p for p in parameters if p.key in trials and trials[p.key].nunique(dropna=False) > 1]
    if not len(trials):
        return
    # Scores near 1 are drawn as their distance from it, on a logarithmic axis.
    near = {
        g: f"1 − {g}" for g, mode in goals.items() if mode == "max" and trials[g].between(NEAR_ONE, 1, "neither").all()
    }
    trials = trials.assign(**{goal: 1 - trials[goal].astype(float) for goal in near}).rename(columns=near)
    goals = {near.get(goal, goal): "min" if goal in near else mode for goal, mode in goals.items()}
    levels = {near.get(goal, goal): 1 - y if goal in near else y for goal, y in (linear_ica or {}).items()}
    linear = [goal for goal in goals if goal not in near.values()]
    clipped = trials.assign(**{goal: without_outliers(floats(trials[goal]), goals[goal]) for goal in linear})
    outside = {goal: int((clipped[goal] != trials[goal]).sum()) for goal in goals}

    def ranged(file: str, title: str, function: str, **axes: str) -> TrialPlot:
        study = optuna_study(trials, moved, {goal: goals.get(goal, "min") for goal in axes.values()})
        options = {"target_names": list(axes.values())} if function == FRONT else {"target_name": axes["y"]}
        inside = {goal: trials[goal][clipped[goal] == trials[goal]] for goal in axes.values()}
        level = levels.get(axes["y"], math.nan)
        inside[axes["y"]] = pd.concat([inside[axes["y"]], pd.Series([level]).dropna()]).rename(axes["y"])
        ranges = {s: _range(inside[goal]) if goal in (*linear, COST) else None for s, goal in axes.items()}
        hidden = sum(
            int((~trials[goal].between(*limits)).sum())
            for limits, goal in zip(ranges.values(), inside, strict=True)
            if limits
        )
        note = f"{hidden} worse not shown" * (hidden > 0)
        return TrialPlot(file, title, function, study, options, ranges, note, level)

    first = next(iter(goals))
    yield ranged("optimisation_history", "Optimisation history", HISTORY, y=first)
    if moved:
        yield ranged("score_vs_parameters", "Score against each searched parameter", SLICE, y=first)
    if len(trials) < ENOUGH_TRIALS:
        return
    for n, (goal, mode) in enumerate(goals.items(), 1):
        number, named, study = f"_{n}" * (n > 1), {"target_name": goal}, optuna_study(clipped, moved, {goal: mode})
        fence = clipped[goal].min() if mode == "max" else clipped[goal].max()
        note = f"{outside[goal]} worse drawn as {compact(fence)}" if outside[goal] else ""
        if len(moved) > 1 and trials[goal].nunique() > 1:
            scaled = optuna_study(trials, moved, {goal: mode}, search_scale=True)
            evaluator = Importances(scaled)
            title = f"Importance of the parameters for {goal}"
            yield TrialPlot(f"importances{number}", title, IMPORTANCES, scaled, {"evaluator": evaluator, **named})
            # A contour is over gamma and the width if both were searched, else over the two most important numbers.
            names, order = _labels(moved), list(evaluator.shares)
            numbers = [p.key for p in moved if trials[p.key].dtype.kind in "if" and trials[p.key].nunique() > 1]
            numbers.sort(key=lambda key: (key != GAMMA, key != WIDTH, order.index(names[key])))
            if len(numbers) > 1 and len(trials) >= ENOUGH_FOR_CONTOUR:
                pair = [names[key] for key in numbers[:2]]
                title, options = f"{goal} over {pair[0]} and {pair[1]}", {"params": pair, **named}
                yield TrialPlot(f"contour{number}", title, CONTOUR, study, options, note=note)
        if COST in trials and trials[COST].nunique() > 1:
            yield ranged(f"score_vs_cost{number}", f"{goal} against cost", FRONT, x=COST, y=goal)
    for n, (x, y) in enumerate(combinations(goals, 2), 1):
        yield ranged("pareto_front" + f"_{n}" * (n > 1), f"Pareto front of {x} and {y}", FRONT, x=x, y=y)


class Importances(BaseImportanceEvaluator):
    """The share of a study's variance that each parameter explains, the largest first: computed once, drawn twice."""

    def __init__(self, study: optuna.Study) -> None:
        # Optuna's default evaluator, PED-ANOVA, takes noise for importance in studies of fewer than 100 trials.
        # Trees of more trials take longer, but differ less from each other: fewer than Optuna's 64 do.
        trees = min(64, max(16, 4000 // len(study.trials)))
        self.shares = FanovaImportanceEvaluator(n_trees=trees, seed=0).evaluate(study)

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Return them, of the same study."""
        return self.shares


def optuna_study(
    trials: pd.DataFrame, parameters: Sequence[Parameter], goals: Mapping[str, str], search_scale: bool = False
) -> optuna.Study:
    """A study in memory that Optuna can draw: labels as names of parameters, and gamma squared in place of gamma.

    With ``search_scale``, values lie on the scale on which they are searched, and random values stand for missing ones
    of conditional parameters: Optuna's fANOVA ignores ``log``, and leaves out parameters that some trials lack.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize" if mode == "max" else "minimize" for mode in goals.values()])
    random, trials = np.random.default_rng(0), trials.set_index("trial")
    kinds: dict[str, BaseDistribution] = {}
    columns: dict[str, Any] = {}  # the values of each parameter, by the numbers of the trials
    for parameter in parameters:
        name, ends = _labels(parameters)[parameter.key], parameter.ends
        column: Any = trials[parameter.key]
        if any(isinstance(end, (bool, str)) for end in ends):
            kinds[name] = CategoricalDistribution(ends)
            fill = pd.Series(random.choice(np.array(ends, dtype=object), len(trials)), trials.index)
        else:  # a grid of numbers spans an interval
            power = 2 if parameter.key == GAMMA else 1
            low, high = min(map(float, ends)) ** power, max(map(float, ends)) ** power
            log = parameter.log or power == 2 or 0 < LOG_RATIO * low < high
            column = (column.astype(float) ** power).clip(low, high)
            if search_scale and log:
                low, high, column, log = float(np.log10(low)), float(np.log10(high)), np.log10(column), False
            kinds[name] = FloatDistribution(low, high, log=log)
            fill = pd.Series(random.uniform(low, high, len(trials)), trials.index)
        columns[name] = column.where(column.notna(), fill) if search_scale else column
    known = set(trials.index)
    for number in range(max(known) + 1):  # Optuna numbers trials by their order
        if number in known:
            values = {name: column[number] for name, column in columns.items() if not pd.isna(column[number])}
            scores = [float(trials[goal][number]) for goal in goals]
            mine = {name: kinds[name] for name in values}
            study.add_trial(optuna.trial.create_trial(params=values, distributions=mine, values=scores))
        else:
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    return study


def _range(values: pd.Series[float]) -> tuple[float, float] | None:
    """The visible part of an axis; None if it is logarithmic."""
    low, high = float(values.min()), float(values.max())
    if values.name == COST and high > LOG_RATIO * low > 0:
        return None
    pad = 0.08 * (high - low) or 0.5
    return low - pad, high + pad


def _labels(parameters: Sequence[Parameter]) -> dict[str, str]:
    return short_names([parameter.key for parameter in parameters]) | {GAMMA: "γ²"}


def draw_trial_plots(plots: Sequence[TrialPlot]) -> dict[str, Figure]:
    """Draw figures over trials by Matplotlib, by the names of their files."""
    figures = {}
    for plot in plots:
        with warnings.catch_warnings(), mpl.rc_context(), pyplot.ioff():  # Optuna sets a style and uses pyplot
            mpl.rcParams["figure.constrained_layout.use"] = True
            warnings.simplefilter("ignore")  # some of these figures are experimental
            axes = getattr(optuna_matplotlib, plot.function)(plot.study, **plot.options)
            figures[plot.file] = np.ravel(axes)[0].figure
            pyplot.close(figures[plot.file])
        _restyle(figures[plot.file], plot)
    return figures


def _restyle(figure: Figure, plot: TrialPlot) -> None:
    """Give a figure of Optuna's the common look."""
    main, panels = figure.axes[0], [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    named = zip(*main.get_legend_handles_labels(), strict=True)
    shown = {label: handle for handle, label in named if not label.startswith("Infeasible")}
    figure.set_size_inches(max(6.6, 1.5 * len(figure.axes)), 4.4)
    if len(panels) == len(figure.axes):  # with a colour bar it is already so
        figure.set_layout_engine("constrained")
    drawing.set_title(figure, plot.title)
    for side, limits in plot.ranges.items():
        main.set(**{f"{side}lim": limits} if limits else {f"{side}scale": "log"})
    for axes in panels:
        if old := axes.get_legend():
            old.remove()
        for place in ("center", "left"):
            axes.set_title("", loc=place)
        note = plot.note if axes is main else ""
        x_label = axes.get_xlabel().replace("Hyperparameter Importance", "importance")
        drawing.dress(axes, x_label, axes.get_ylabel(), note)
    if plot.function == IMPORTANCES:
        main.set_ylabel("")
        main.grid(visible=False)
    if np.isfinite(plot.linear_ica):
        lines = [axes.axhline(plot.linear_ica, color=INK, linewidth=1, linestyle="-.") for axes in panels]
        shown["linear ICA"] = lines[0]
    if len(shown) > 1 or "linear ICA" in shown:
        drawing.legend(figure, list(shown.values()), list(shown))


def trial_sections(plots: Sequence[TrialPlot]) -> Iterator[Section]:
    """Draw figures over trials by Plotly."""
    for plot in plots:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of these figures are experimental
            figure = dressed(getattr(optuna_plotly, plot.function)(plot.study, **plot.options))
        if plot.function == FRONT:
            for trace in figure.data:  # Optuna colours both kinds of trials by their numbers
                best = trace.marker.colorbar.title.text == "Best Trial"
                trace.update(name="on the front" if best else "other trial", showlegend=True)
                trace.marker = {"color": VERMILLION if best else BLUE, "size": 9 if best else 7}
        if plot.function == SLICE:  # a bar beside the panels leaves them no room on a phone
            figure.update_traces(marker_showscale=False)
        elif plot.function == CONTOUR:
            bar = {"orientation": "h", "y": -0.25, "yanchor": "top", "thickness": 14}
            figure.update_traces(colorbar=bar, selector={"type": "contour"})
        elif plot.function == IMPORTANCES:
            figure.update_traces(textposition="auto", textangle=0).update_xaxes(title="importance").update_yaxes(
                title=""
            )
        reading = [READINGS[plot.function]]
        if np.isfinite(plot.linear_ica):
            figure.add_hline(plot.linear_ica, line={"color": INK, "width": 1.5, "dash": "dashdot"})
            reading.append("The horizontal line is linear ICA.")
        for side, limits in plot.ranges.items():
            getattr(figure, f"update_{side}axes")(type="linear" if limits else "log", range=limits)
        width = PANEL * sum(axis.title.text is not None for axis in figure.select_xaxes())
        yield Section(plot.title, " ".join([*reading, *[f"{plot.note}."] * bool(plot.note)]), figure, width)


def without_outliers(scores: Floats, mode: str) -> Floats:
    """Scores, (trial,), of which the very bad ones are clipped, so that the differences of the others can be seen.

    Very bad is farther from the worse quartile than three times the distance between the quartiles.
    """
    worse, better = np.quantile(scores, [0.25, 0.75] if mode == "max" else [0.75, 0.25])
    fence = worse - 3 * (better - worse)
    return np.clip(scores, *((fence, None) if mode == "max" else (None, fence)))


def draw_study(results: Results, plots: Sequence[TrialPlot]) -> list[Path]:
    """Draw all figures of a study into its folder, and return the files."""
    figures = {file: draw_over_gamma(shown) for file, shown in gamma_quantities(results).items()}
    return drawing.write(figures | draw_trial_plots(plots), results.names.figures, results.config.pdf)
