"""What a study's trials say together: importances of parameters, the score over two of them, cost, and Pareto fronts.

All is a pure function of a table with a row per trial: ``trial``, ``status``, a column per score, ``member_steps`` and
a column per searched parameter, in which a conditional one is missing where it does not apply. So a grid, a resumed
study and one of several objectives are looked at alike, whatever has proposed their points.

Importances are fANOVA's main effects (Hutter, Hoos and Leyton-Brown 2014) by Optuna: the share of the score's variance
over the searched space that one parameter explains by itself, whatever the others are. Optuna gets the trials as a
study in memory, with the numbers on their own scales, or it would weigh a log one as if it were linear. Where a
conditional parameter is missing it can't matter: a value drawn at random stands for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from imavae.config.settings import WORST_SCORE, StudyConfig
from imavae.report.axes import GAMMA, WIDTH, Axis, Upright, axes_of, upright, upright_score
from imavae.report.summary import Floats, member_steps
from imavae.runs.ledger import Ledger
from imavae.runs.results import pareto
from imavae.search.space import Parameter, parse

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

COST = "member_steps"
COST_LABEL = "cost of a trial (training steps of all its members)"
ENOUGH_TRIALS = 4  # below it, a figure over trials says nothing
GRID = 80  # points of a surface in each direction
MOST = 400  # trials that a surface is fitted to, drawn at random from more: its time grows with their cube
NEAR = 0.3  # of the searched range: a surface is shown as far as this from a trial

Shares = dict[str, float]  # the importance of each parameter, by its key, the largest first


class Goal(NamedTuple):
    """One of a study's scores."""

    column: str  # of the table
    label: str
    mode: Literal["max", "min"]


class Surface(NamedTuple):
    """A score over two parameters: ``score[j, i]`` at ``x[i]`` and ``y[j]``, NaN where no trial is near."""

    x: Floats
    y: Floats
    score: Floats


@dataclass(frozen=True)
class Insight:
    """All that the figures show."""

    trials: pd.DataFrame  # those that have every score, by number
    goals: tuple[Goal, ...]
    axes: tuple[Axis, ...]  # of the parameters that differ between trials
    importances: tuple[Shares | None, ...]  # for each goal; None: there is nothing to compare
    pair: tuple[Axis, Axis] | None  # gamma and the width if both were searched, else the two numbers that matter most
    surfaces: tuple[Surface | None, ...]  # for each goal, over the pair; None: it is flat, or there are too few trials
    uprights: tuple[Upright, ...]  # the parameters and the goals, side by side; empty where there is nothing to compare
    front: NDArray[np.bool_]  # which trials no other beats in all goals

    def scores(self, goal: Goal) -> Floats:
        """One score of every trial: (trial,)."""
        return _scores(self.trials, goal)

    def best(self, goal: Goal) -> int:
        """The row of the best trial, the first of equal ones."""
        scores = self.scores(goal)
        return int(np.argmax(scores) if goal.mode == "max" else np.argmin(scores))

    @property
    def has_costs(self) -> bool:
        """Whether there are costs that differ."""
        return COST in self.trials and self.trials[COST].nunique() > 1


def insight(trials: pd.DataFrame, parameters: Sequence[Parameter], goals: Sequence[Goal]) -> Insight:
    """Look at a study.

    Args:
        trials: one row per trial, as this module's docstring says.
        parameters: what was searched.
        goals: the scores.
    """
    columns = [goal.column for goal in goals]
    trials = trials.reindex(columns=list(dict.fromkeys([*trials, *(parameter.key for parameter in parameters)])))
    trials = trials.sort_values("trial", ignore_index=True)
    values = trials[columns].to_numpy(dtype=np.float64)
    scored = (np.abs(values) < WORST_SCORE).all(axis=1) & (trials["status"] != "failed").to_numpy()
    trials = trials[scored]
    axes = axes_of(trials, parameters)
    ranks = tuple(importances(trials, axes, goal) for goal in goals)
    pair = _pair(trials, axes, ranks[0])
    surfaces = tuple(_surface_of(trials, pair, goal) for goal in goals)
    front = pareto(values[scored], [goal.mode for goal in goals])
    return Insight(trials, tuple(goals), tuple(axes), ranks, pair, surfaces, _uprights(trials, axes, goals), front)


def insight_of(ledger: Ledger, config: StudyConfig) -> Insight | None:
    """Look at what a study has so far; None if its trials are too few for that."""
    columns = ["score", *(objective.metric for objective in config.further_objectives)]
    goals = [Goal(c, f"{o.aggregate} {o.metric}", o.mode) for c, o in zip(columns, config.objectives, strict=True)]
    trials, costs = ledger.trials, member_steps(ledger.records, config)
    found = insight(trials.assign(**{COST: trials["trial"].map(costs)}), parse(config), goals)
    return found if len(found.trials) >= ENOUGH_TRIALS else None


def importances(trials: pd.DataFrame, axes: Sequence[Axis], goal: Goal) -> Shares | None:
    """The share of a score's variance that each parameter explains by itself, by its key, the largest first.

    None for one parameter, few trials, or a score that is always the same.
    """
    score = _scores(trials, goal)
    if len(axes) < 2 or len(score) < ENOUGH_TRIALS or np.ptp(score) == 0:
        return None
    import optuna
    from optuna.exceptions import ExperimentalWarning
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()  # in memory
    distributions = {axis.key: _distribution(axis) for axis in axes}
    columns = {axis.key: _filled(axis, trials) for axis in axes}
    for n, value in enumerate(score.tolist()):
        point = {key: float(column[n]) for key, column in columns.items()}
        study.add_trial(create_trial(params=point, distributions=distributions, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of `normalize`
        shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), normalize=False)
    return {key: float(share) for key, share in shares.items()}


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if axis.parameter.type == "choice":
        return CategoricalDistribution(axis.place(axis.parameter.values).tolist())
    return FloatDistribution(*axis.ends)


def _filled(axis: Axis, trials: pd.DataFrame) -> Floats:
    """Where each trial's value lies, with random places for missing ones."""
    random = np.random.default_rng(0)
    if axis.parameter.type == "choice":
        places, other = axis.place(trials[axis.key]), random.choice(axis.place(axis.parameter.values), len(trials))
    else:
        even = axis.even(axis.place(trials[axis.key]))
        # A value at an end may be rounded to beyond it, which Optuna would refuse.
        places, other = np.clip(even, *axis.ends), random.uniform(*axis.ends, len(trials))
    return np.where(np.isnan(places), other, places)


def _pair(trials: pd.DataFrame, axes: Sequence[Axis], ranks: Shares | None) -> tuple[Axis, Axis] | None:
    order = [GAMMA, WIDTH, *(ranks or ())]
    numbers = [axis for axis in axes if not axis.choices and trials[axis.key].nunique() > 1]
    numbers.sort(key=lambda axis: order.index(axis.key) if axis.key in order else len(order))
    return (numbers[0], numbers[1]) if len(numbers) > 1 else None


def _uprights(trials: pd.DataFrame, axes: Sequence[Axis], goals: Sequence[Goal]) -> tuple[Upright, ...]:
    if len(axes) < 2:
        return ()
    scores = [upright_score(goal.label, drawable(_scores(trials, goal), goal)) for goal in goals]
    return (*(upright(axis, trials[axis.key]) for axis in axes), *scores)


def _scores(trials: pd.DataFrame, goal: Goal) -> Floats:
    return trials[goal.column].to_numpy(dtype=np.float64)


def _surface_of(trials: pd.DataFrame, pair: tuple[Axis, Axis] | None, goal: Goal) -> Surface | None:
    if pair is None:
        return None
    x, y = (axis.place(trials[axis.key]) for axis in pair)
    there = ~(np.isnan(x) | np.isnan(y))
    score = drawable(_scores(trials, goal), goal)[there]
    if there.sum() < ENOUGH_TRIALS or np.ptp(score) == 0 or np.ptp(x[there]) == 0 or np.ptp(y[there]) == 0:
        return None
    even = surface(pair[0].even(x[there]), pair[1].even(y[there]), score)
    back = [10**at if axis.log else at for axis, at in zip(pair, even[:2], strict=True)]
    return Surface(back[0], back[1], even.score)


def surface(x: Floats, y: Floats, score: Floats) -> Surface:
    """The mean of a Gaussian process through scattered scores, (trial,), over the range of their places.

    What differs between trials at one place, by other parameters or by chance, is its noise, whose size is fitted.
    """
    from scipy.spatial import KDTree
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    low, span = np.array([x.min(), y.min()]), np.array([np.ptp(x), np.ptp(y)])
    at = (np.stack([x, y], 1) - low) / span
    some = np.random.default_rng(0).permutation(len(at))[:MOST]
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF([0.3, 0.3], (0.1, 10.0)) + WhiteKernel(0.05, (1e-5, 1.0))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    side = np.linspace(0, 1, GRID)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a scale at its bound: the score does not depend on it
        mean = process.fit(at[some], score[some]).predict(grid)
    away, _ = KDTree(at).query(grid)
    shown: Floats = np.where(away < NEAR, mean, np.nan).reshape(GRID, GRID)
    return Surface(low[0] + span[0] * side, low[1] + span[1] * side, shown)


def drawable(score: Floats, goal: Goal) -> Floats:
    """Scores, (trial,), the very bad ones raised to where they no longer flatten all others.

    Very bad is what lies by more than three times the quartiles' distance beyond the worse quartile.
    """
    worse, better = np.quantile(score, [0.25, 0.75] if goal.mode == "max" else [0.75, 0.25])
    fence = worse - 3 * (better - worse)
    shown: Floats = np.maximum(score, fence) if goal.mode == "max" else np.minimum(score, fence)
    return shown


def cost_front(trials: pd.DataFrame, goal: Goal) -> pd.DataFrame:
    """The trials that no other beats in a score at less or equal cost, the cheapest first."""
    front = pareto(trials[[goal.column, COST]].to_numpy(dtype=np.float64), (goal.mode, "min"))
    return trials[front].sort_values([COST, "trial"])
