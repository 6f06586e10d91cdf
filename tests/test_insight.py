"""Figures over a study's trials, each on a case with a known answer, and on those where there is nothing to show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from imavae.config.settings import StudyConfig, study_config
from imavae.report.axes import MISSING_AT
from imavae.report.drawing import write
from imavae.report.insight import (
    COST,
    Goal,
    Insight,
    cost_front,
    drawable,
    insight,
    insight_of,
    surface,
)
from imavae.report.insight_drawn import drawn
from imavae.report.insight_interactive import sections
from imavae.report.page import figures
from imavae.report.summary import Floats, member_steps
from imavae.runs.folder import Stored, create
from imavae.runs.ledger import Ledger
from imavae.runs.results import pareto
from imavae.search.space import Parameter
from imavae.tracking.base import Tracker, TrialRecord

GAMMA = Parameter("model.gamma", "float", 3.0, 1000.0, log=True)
WIDTH = Parameter("model.hidden_factor", "int", 5, 40, log=True)
LAYERS = Parameter("model.n_layers", "int", 2, 4)
ACTIVATION = Parameter("model.activation", "choice", values=("leaky_relu", "tanh", "silu"))
SLOPE = Parameter("model.slope", "float", 0.0, 1.0)  # only of the leaky ReLU
PARAMETERS = [GAMMA, WIDTH, LAYERS, ACTIVATION, SLOPE]
MCC = Goal("score", "median val/mcc", "max")
ENERGY = Goal("val/neg_elbo", "median val/neg_elbo", "min")


def points(count: int, seed: int = 0) -> pd.DataFrame:
    """Random points of the space, without scores."""
    random = np.random.default_rng(seed)
    activation = random.choice(ACTIVATION.values, count)
    return pd.DataFrame(
        {
            "trial": np.arange(count),
            "status": "finished",
            "model.gamma": np.exp(random.uniform(np.log(3), np.log(1000), count)),
            "model.hidden_factor": np.exp(random.uniform(np.log(5), np.log(40), count)).round().astype(int),
            "model.n_layers": random.integers(2, 5, count),
            "model.activation": activation,
            "model.slope": np.where(activation == "leaky_relu", random.random(count), np.nan),
            COST: random.integers(10_000, 1_000_000, count),
        }
    )


def decades(trials: pd.DataFrame) -> Floats:
    """log10 of gamma squared."""
    log: Floats = 2 * np.log10(trials["model.gamma"].to_numpy(dtype=np.float64))
    return log


def looked_at(trials: pd.DataFrame, goals: list[Goal] | None = None) -> Insight:
    return insight(trials, PARAMETERS, goals or [MCC])


# ---- importances


def test_a_score_of_gamma_alone_makes_gamma_all_important() -> None:
    trials = points(100)
    shares = looked_at(trials.assign(score=np.exp(-((decades(trials) - 4) ** 2)))).importances[0]
    assert shares is not None
    assert next(iter(shares)) == "model.gamma"
    assert shares["model.gamma"] > 0.9
    assert max(share for key, share in shares.items() if key != "model.gamma") < 0.05


def test_importances_are_shares_of_the_variance_over_the_scale_that_is_searched() -> None:
    """A step in the middle decade has half of it on each side; on a linear scale, 97 % of all gammas are above it."""
    trials = points(200)
    middle = (decades(trials) > np.log10(9e6) / 2).astype(float)  # 3 x 1000: the middle of 9 to 1e6 in decades
    wide = np.log(trials["model.hidden_factor"] / 5) / np.log(8)  # even between 0 and 1
    shares = looked_at(trials.assign(score=middle + wide)).importances[0]
    assert shares is not None
    step, slope = 1 / 4, 1 / 12  # their variances
    assert shares["model.gamma"] == pytest.approx(step / (step + slope), abs=0.07)
    assert shares["model.hidden_factor"] == pytest.approx(slope / (step + slope), abs=0.07)


def test_a_conditional_parameter_matters_where_it_applies() -> None:
    trials = points(200)
    there = trials["model.slope"].notna()
    shares = looked_at(trials.assign(score=np.where(there, trials["model.slope"], 0.5))).importances[0]
    assert shares is not None
    assert next(iter(shares)) == "model.slope"


def test_each_objective_has_importances_of_its_own() -> None:
    trials = points(100)
    trials["score"], trials["val/neg_elbo"] = decades(trials), trials["model.n_layers"]
    first, second = looked_at(trials, [MCC, ENERGY]).importances
    assert first is not None
    assert second is not None
    assert (max(first, key=first.__getitem__), max(second, key=second.__getitem__)) == ("model.gamma", "model.n_layers")


def test_a_grid_has_importances() -> None:
    gamma = Parameter("model.gamma", "choice", values=(3.0, 30.0, 300.0))
    layers = Parameter("model.n_layers", "choice", values=(2, 3))
    rows = [(g, n) for g in (3.0, 30.0, 300.0) for n in (2, 3)]
    trials = pd.DataFrame(rows, columns=["model.gamma", "model.n_layers"])
    trials = trials.assign(trial=range(6), status="finished", score=np.log(trials["model.gamma"]))
    shares = insight(trials, [gamma, layers], [MCC]).importances[0]
    assert shares is not None
    assert shares["model.gamma"] > 0.9


# ---- surface


def test_the_surface_is_highest_where_the_score_is() -> None:
    """A ridge along gamma² = 1e4 with its top at a hidden_factor of 20, under noise of 0.02."""
    trials = points(80)
    noise = np.random.default_rng(1).normal(0, 0.02, len(trials))
    width = np.log(trials["model.hidden_factor"] / 20)
    found = looked_at(trials.assign(score=np.exp(-((decades(trials) - 4) ** 2) - width**2) + noise))
    assert found.pair is not None
    assert [axis.key for axis in found.pair] == ["model.gamma", "model.hidden_factor"]
    [field] = found.surfaces
    assert field is not None
    row, column = np.unravel_index(np.nanargmax(field.score), field.score.shape)
    assert np.log10(field.x[column]) == pytest.approx(4, abs=0.3)
    assert np.log(field.y[row] / 20) == pytest.approx(0, abs=0.3)


def test_a_surface_goes_through_a_plane_and_ends_near_its_trials() -> None:
    random = np.random.default_rng(0)
    x, y = random.uniform(0, 10, 60), random.uniform(-1, 1, 60)
    x[0], y[0], x[1], y[1] = 0, -1, 10, -1  # nothing is near (10, 1)
    away = (x > 5) & (y > 0)
    field = surface(x[~away], y[~away], 2 * x[~away] + y[~away])
    known = ~np.isnan(field.score)
    np.testing.assert_allclose(field.score[known], (2 * field.x + field.y[:, None])[known], atol=0.7)
    assert known[0].all()
    assert not known[-1, -1]


def test_without_gamma_and_width_the_two_numbers_that_matter_most_are_drawn() -> None:
    trials = points(60)
    parameters = [ACTIVATION, LAYERS, SLOPE, WIDTH]
    score = trials["model.n_layers"] + 0.2 * np.log(trials["model.hidden_factor"])
    found = insight(trials.assign(score=score, **{"model.slope": 0.2 * np.arange(60) / 60}), parameters, [MCC])
    assert found.pair is not None
    assert {axis.key for axis in found.pair} == {"model.n_layers", "model.hidden_factor"}


# ---- fronts


@pytest.mark.parametrize("modes", [("max", "min"), ("min", "min", "max")])
def test_the_front_is_that_of_brute_force(modes: tuple[str, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 6, (60, len(modes))).astype(np.float64)  # with equal ones
    signs = [1 if mode == "max" else -1 for mode in modes]

    def beats(a: int, b: int) -> bool:
        gains = [sign * (values[a, k] - values[b, k]) for k, sign in enumerate(signs)]
        return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)

    expected = [not any(beats(other, row) for other in range(60)) for row in range(60)]
    assert pareto(values, modes).tolist() == expected
    assert 0 < sum(expected) < 60


def test_the_best_for_a_cost_gets_better_with_it() -> None:
    trials = points(50).assign(score=np.random.default_rng(1).random(50))
    front = cost_front(trials, MCC)
    assert front[COST].is_monotonic_increasing
    assert front["score"].is_monotonic_increasing
    for cost, score in zip(front[COST], front["score"], strict=True):
        assert score == trials.loc[trials[COST] <= cost, "score"].max()
    assert front["score"].iloc[-1] == trials["score"].max()


def test_a_trial_costs_the_steps_of_all_its_members() -> None:
    sizes = {"type": "choice", "values": [64, 100]}
    counts = {"type": "choice", "values": [1000, 2000]}
    config = study_config(
        {
            "data": {"n_obs": 1000, "train": 0.65},
            "search": {"data": {"n_obs": counts}, "training": {"batch_size": sizes}},
        }
    )
    members: list[dict[str, float | int | str]] = [{"epochs": 3}, {"epochs": 4}]
    points: list[dict[str, float | int | str]] = [{"training.batch_size": 64}, {"training.batch_size": 100}]
    points.append({"training.batch_size": 64, "data.n_obs": 2000})
    records = [TrialRecord(n, point, "finished", 0.5, [], members) for n, point in enumerate(points)]
    assert member_steps(records, config) == {0: 7 * 11, 1: 7 * 7, 2: 7 * 21}  # of 650 observations, the last of 1300


# ---- what is drawn


def files(found: Insight, folder: Path) -> set[str]:
    return {path.name for path in write(drawn(found), folder) if path.suffix == ".png"}


def test_every_figure_is_drawn_and_can_be_explored(tmp_path: Path) -> None:
    trials = points(30)
    trials["score"] = np.exp(-((decades(trials) - 4) ** 2))
    trials["val/neg_elbo"] = trials["model.hidden_factor"] / 10 - trials["score"]
    trials.loc[[3, 5], "status"] = ["stopped", "failed"]
    found = looked_at(trials, [MCC, ENERGY])
    assert len(found.trials) == 29
    expected = {"importances", "parallel_coordinates", "contour", "score_vs_cost", "pareto_front"}
    assert files(found, tmp_path) == {f"{name}.png" for name in expected}

    assert [section.heading for section in sections(found)] == [
        "Importances for median val/mcc",
        "Importances for median val/neg_elbo",
        "All trials",
        "median val/mcc over γ² and hidden_factor",
        "median val/neg_elbo over γ² and hidden_factor",
        "median val/mcc against cost",
        "median val/neg_elbo against cost",
        "Pareto front of median val/mcc and median val/neg_elbo",
    ]
    html = figures(sections(found))
    assert html.count("* plotly.js v") == 1
    assert html == figures(sections(found))  # the same bytes each time


CASES = {
    "one trial": (points(1).assign(score=0.5), set()),
    "no trial with a score": (points(6).assign(score=np.nan), set()),
    "all failed": (points(6).assign(score=0.5, status="failed"), set()),
    "a score that is always the same": (points(9).assign(score=0.5), {"parallel_coordinates", "score_vs_cost"}),
    "one parameter": (
        points(9).assign(score=np.arange(9.0))[["trial", "status", "score", "model.gamma", COST]],
        {"score_vs_cost"},
    ),
    "no number but one, and no cost": (
        points(9).assign(score=np.arange(9.0))[["trial", "status", "score", "model.n_layers", "model.activation"]],
        {"importances", "parallel_coordinates"},
    ),
    "equal costs": (
        points(9).assign(score=np.arange(9.0), **{COST: 5}),
        {"importances", "parallel_coordinates", "contour"},
    ),
    "a parameter that no trial has": (
        points(9).assign(score=np.arange(9.0)).drop(columns=["model.slope", COST]),
        {"importances", "parallel_coordinates", "contour"},
    ),
    "infinite scores": (
        points(9).assign(score=[0.1, 1e12, np.inf, -np.inf, 0.4, 0.5, 0.6, 0.7, 0.8]),
        {"importances", "parallel_coordinates", "contour", "score_vs_cost"},
    ),
}


@pytest.mark.parametrize(("trials", "expected"), CASES.values(), ids=CASES.keys())
def test_where_there_is_nothing_to_show_there_is_no_figure(
    trials: pd.DataFrame, expected: set[str], tmp_path: Path
) -> None:
    found = looked_at(trials)
    assert files(found, tmp_path) == {f"{name}.png" for name in expected}
    assert len(list(sections(found))) == len(expected)


def test_on_the_page_a_dot_over_the_surface_has_the_colour_of_its_own_score() -> None:
    trials = points(30).assign(score=np.random.default_rng(1).random(30))
    [figure] = [section.figure for section in sections(looked_at(trials)) if " over " in section.heading]
    [dots] = [trace for trace in figure.data if trace.name == "a trial"]
    scores = dict(zip(trials["model.gamma"] ** 2, trials["score"], strict=True))
    assert [scores[x] for x in dots.x] == list(dots.marker.color)


def test_parallel_axes_have_gamma_squared_in_decades_and_a_place_for_what_is_missing() -> None:
    trials = points(40)
    uprights = looked_at(trials.assign(score=decades(trials))).uprights
    assert [column.label.split(" ")[0] for column in uprights] == [
        "γ²",
        "hidden_factor",
        "n_layers",
        "activation",
        "slope",
        "median",
    ]
    gamma, *_, slope, score = uprights
    np.testing.assert_allclose(gamma.heights, score.heights)  # the score is log10 gamma² here
    assert {"100", "1e3", "1e4", "1e5"} <= {text for _, text in gamma.ticks}
    np.testing.assert_array_equal(slope.heights == MISSING_AT, trials["model.slope"].isna())
    assert (MISSING_AT, "none") in slope.ticks


def test_a_very_bad_score_does_not_flatten_the_others() -> None:
    score = np.array([-4.0, -3.9, -3.5, -3.0, 900.0])
    assert drawable(score, ENERGY).tolist() == [-4.0, -3.9, -3.5, -3.0, pytest.approx(-0.3)]
    assert drawable(-score, MCC).tolist() == [4.0, 3.9, 3.5, 3.0, pytest.approx(0.3)]
    assert drawable(score[:4], ENERGY).tolist() == score[:4].tolist()


def ledger(config: StudyConfig, count: int) -> Ledger:
    """A study of so many trials, of two members each."""
    points: list[dict[str, float | int | str]] = [
        {"model.gamma": 10.0 * (n + 1), "model.n_layers": 2 + n % 2} for n in range(count)
    ]
    records = [
        TrialRecord(n, point, "finished", 0.1 * n, [], [{"epochs": 3}, {"epochs": 4 + n}], {"val/cima": 0.1 * n * n})
        for n, point in enumerate(points)
    ]
    stored = [Stored(record, None, 0) for record in records]
    return Ledger(config, create(config, "studies", "study"), Tracker(), stored)


def test_a_study_of_four_trials_has_these_figures_and_one_of_three_has_not(tmp_path: Path) -> None:
    search = {"gamma": {"type": "float", "low": 3.0, "high": 99.0}, "n_layers": {"type": "int", "low": 2, "high": 3}}
    further = [{"metric": "val/cima", "mode": "min"}]
    config = study_config(
        {
            "search": {"model": search},
            "budget": {"trials": 4},
            "further_objectives": further,
            "output_dir": str(tmp_path),
        }
    )
    found = insight_of(ledger(config, 4), config)
    assert found is not None
    expected = {"importances", "parallel_coordinates", "contour", "score_vs_cost", "pareto_front"}
    assert files(found, tmp_path) == {f"{name}.png" for name in expected}
    assert insight_of(ledger(config, 3), config) is None
