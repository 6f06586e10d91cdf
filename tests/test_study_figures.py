"""Figures over a study's trials: each on a case with a known answer, and where there is nothing to show."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from optuna.importance import get_param_importances
from optuna.study import Study

from imavae.config.settings import study_config
from imavae.report.drawing import write
from imavae.report.study_figures import (
    COST,
    TrialPlot,
    draw_trial_plots,
    optuna_study,
    trial_plots,
    trial_sections,
    without_outliers,
)
from imavae.report.summary import Floats, member_steps
from imavae.runs.results import pareto
from imavae.search.space import Parameter
from imavae.tracking import TrialRecord

GAMMA = Parameter("model.gamma", "float", 3.0, 1000.0, log=True)
WIDTH = Parameter("model.hidden_factor", "int", 5, 40, log=True)
LAYERS = Parameter("model.n_layers", "int", 2, 4)
ACTIVATION = Parameter("model.activation", "choice", values=("leaky_relu", "tanh", "silu"))
SLOPE = Parameter("model.slope", "float", 0.0, 1.0)  # only of the leaky ReLU
PARAMETERS = [GAMMA, WIDTH, LAYERS, ACTIVATION, SLOPE]
MCC = {"score": "max"}
ENERGY = {"val/neg_elbo": "min"}


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


def plots(trials: pd.DataFrame, goals: dict[str, str] = MCC) -> dict[str, TrialPlot]:
    """The figures over these trials, by file."""
    return {plot.file: plot for plot in trial_plots(trials, PARAMETERS, goals)}


def shares(plot: TrialPlot) -> dict[str, float]:
    """The importances that a figure shows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `normalize` is experimental
        return get_param_importances(
            plot.study, evaluator=plot.options["evaluator"], normalize=False
        )  # shares of the whole variance


def trial_values(study: Study, name: str) -> list[object]:
    """A parameter of each trial of a study in memory, None where it is missing."""
    return [trial.params.get(name) for trial in study.trials]


# ---- importances


def test_a_score_of_gamma_alone_makes_gamma_all_important() -> None:
    trials = points(100)
    found = shares(plots(trials.assign(score=np.exp(-((decades(trials) - 4) ** 2))))["importances"])
    assert next(iter(found)) == "γ²"
    assert found["γ²"] > 0.9
    assert max(share for key, share in found.items() if key != "γ²") < 0.05


def test_importances_are_shares_of_the_variance_over_the_search_scale() -> None:
    """A step in the middle decade has half of it on each side; on a linear scale, 97 % of all gammas are above it."""
    trials = points(200)
    middle = (decades(trials) > np.log10(9e6) / 2).astype(float)  # 3 x 1000: the middle of 9 to 1e6 in decades
    wide = np.log(trials["model.hidden_factor"] / 5) / np.log(8)  # even between 0 and 1
    found = shares(plots(trials.assign(score=middle + wide))["importances"])
    step, slope = 1 / 4, 1 / 12  # their variances
    assert found["γ²"] == pytest.approx(step / (step + slope), abs=0.07)
    assert found["hidden_factor"] == pytest.approx(slope / (step + slope), abs=0.07)


def test_a_conditional_parameter_matters_where_it_applies() -> None:
    trials = points(200)
    score = np.where(trials["model.slope"].notna(), trials["model.slope"], 0.5)
    assert next(iter(shares(plots(trials.assign(score=score))["importances"]))) == "slope"


def test_each_objective_has_its_own_importances() -> None:
    trials = points(100)
    trials["score"], trials["val/neg_elbo"] = decades(trials), trials["model.n_layers"]
    found = plots(trials, MCC | ENERGY)
    assert next(iter(shares(found["importances"]))) == "γ²"
    assert next(iter(shares(found["importances_2"]))) == "n_layers"


def test_a_grid_has_importances_and_a_log_axis() -> None:
    gamma = Parameter("model.gamma", "choice", values=(3.0, 30.0, 300.0))
    layers = Parameter("model.n_layers", "choice", values=(2, 3))
    rows = [(g, n) for g in (3.0, 30.0, 300.0) for n in (2, 3)] * 4
    trials = pd.DataFrame(rows, columns=["model.gamma", "model.n_layers"])
    trials = trials.assign(trial=range(24), status="finished", score=np.log(trials["model.gamma"]))
    found = {plot.file: plot for plot in trial_plots(trials, [gamma, layers], MCC)}
    assert shares(found["importances"])["γ²"] > 0.9
    distribution = found["contour"].study.trials[0].distributions["γ²"]
    assert (distribution.low, distribution.high, distribution.log) == (9.0, 9e4, True)  # type: ignore[attr-defined]


# ---- the study in memory


def test_the_study_in_memory_has_the_trials_values_scores_and_numbers() -> None:
    trials = points(6).assign(score=np.arange(6.0)).drop(index=2)  # trial 2 has not ended
    study = optuna_study(trials, PARAMETERS, MCC)
    assert [trial.number for trial in study.trials if trial.values] == [0, 1, 3, 4, 5]
    assert [trial.values[0] for trial in study.trials if trial.values] == [0, 1, 3, 4, 5]
    kept = [value for n, value in enumerate(trial_values(study, "γ²")) if n != 2]
    assert kept == pytest.approx((trials["model.gamma"] ** 2).tolist())
    missing = [value is None for n, value in enumerate(trial_values(study, "slope")) if n != 2]
    assert missing == trials["model.slope"].isna().tolist()


def test_a_contour_is_over_gamma_and_width_or_the_two_most_important_numbers() -> None:
    trials = points(60)
    score = trials["model.n_layers"] + 0.2 * np.log(trials["model.hidden_factor"])
    assert plots(trials.assign(score=score))["contour"].options["params"] == ["γ²", "hidden_factor"]
    trials = trials.assign(score=score, **{"model.slope": np.arange(60) / 300})
    found = trial_plots(trials, [ACTIVATION, LAYERS, SLOPE, WIDTH], MCC)
    [contour] = [plot for plot in found if plot.file == "contour"]
    assert set(contour.options["params"]) == {"n_layers", "hidden_factor"}


def test_a_very_bad_score_does_not_flatten_the_others() -> None:
    score = np.array([-4.0, -3.9, -3.5, -3.0, 900.0])
    assert without_outliers(score, "min").tolist() == [-4.0, -3.9, -3.5, -3.0, pytest.approx(-0.3)]
    assert without_outliers(-score, "max").tolist() == [4.0, 3.9, 3.5, 3.0, pytest.approx(0.3)]
    assert without_outliers(score[:4], "min").tolist() == score[:4].tolist()
    trials = points(5).assign(**{"val/neg_elbo": score})
    plot = plots(trials, ENERGY)["optimisation_history"]
    limits = plot.ranges["y"]
    assert limits is not None
    assert limits[1] < 1
    assert plot.note.startswith("1 ")
    sections = {section.heading: section for section in trial_sections([plot])}
    assert plot.note in sections[plot.title].reading
    assert not any(plot.note for plot in plots(trials[:4], ENERGY).values())


def test_scores_near_one_are_drawn_as_their_distance_from_it_on_a_log_axis() -> None:
    score = 1 - np.geomspace(1e-4, 0.09, 30)
    found = plots(points(30).assign(score=score))
    history = found["optimisation_history"]
    assert [trial.values[0] for trial in history.study.trials] == pytest.approx(1 - score)
    assert history.ranges["y"] is None
    [figure] = draw_trial_plots([history]).values()
    assert figure.axes[0].get_yscale() == "log"
    [section] = trial_sections([history])
    assert section.figure.layout.yaxis.type == "log"
    score[3] = 0.89
    assert plots(points(30).assign(score=score))["optimisation_history"].ranges["y"] is not None


def test_a_contour_needs_enough_trials_to_interpolate_between() -> None:
    trials = points(40).assign(score=np.arange(40.0))
    assert "contour" in plots(trials)
    assert "contour" not in plots(trials[:12])


# ---- fronts and costs


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


FIRST = {"optimisation_history", "score_vs_parameters"}


def test_every_figure_is_drawn_and_can_be_explored(tmp_path: Path) -> None:
    trials = points(30)
    trials["score"] = np.exp(-((decades(trials) - 4) ** 2))
    trials["val/neg_elbo"] = trials["model.hidden_factor"] / 10 - trials["score"]
    trials.loc[[3, 5], "status"] = ["stopped", "failed"]
    found = plots(trials, MCC | ENERGY)
    each = {"importances", "contour", "score_vs_cost"}
    assert set(found) == FIRST | each | {f"{name}_2" for name in each} | {"pareto_front"}
    figures = [section.figure for section in trial_sections(list(found.values()))]
    assert len(figures) == len(found)
    scores = trials.drop(index=5)["score"].tolist()
    history = figures[list(found).index("optimisation_history")]
    assert list(history.data[0].y) == pytest.approx(scores)
    few = [found[name] for name in ("importances", "contour", "score_vs_cost", *FIRST)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = write(draw_trial_plots(few), tmp_path)
    assert {path.name for path in files} == {f"{plot.file}.png" for plot in few}
    assert all(path.stat().st_size > 5000 for path in files)


CASES = {
    "one trial": (points(1).assign(score=0.5), {"optimisation_history"}),
    "no trial with a score": (points(6).assign(score=np.nan), set()),
    "all failed": (points(6).assign(score=0.5, status="failed"), set()),
    "a constant score": (points(9).assign(score=0.5), {*FIRST, "score_vs_cost"}),
    "one parameter": (
        points(9).assign(score=np.arange(9.0))[["trial", "status", "score", "model.gamma", COST]],
        {*FIRST, "score_vs_cost"},
    ),
    "no number but one, and no cost": (
        points(9).assign(score=np.arange(9.0))[["trial", "status", "score", "model.n_layers", "model.activation"]],
        {*FIRST, "importances"},
    ),
    "a parameter that no trial has": (
        points(9).assign(score=np.arange(9.0)).drop(columns=["model.slope", COST]),
        {*FIRST, "importances"},
    ),
    "infinite scores": (
        points(9).assign(score=[0.1, 1e12, np.inf, -np.inf, 0.4, 0.5, 0.6, 0.7, 0.8]),
        {*FIRST, "importances", "score_vs_cost"},
    ),
}


@pytest.mark.parametrize(("trials", "expected"), CASES.values(), ids=CASES.keys())
def test_figures_with_nothing_to_show_are_left_out(trials: pd.DataFrame, expected: set[str]) -> None:
    found = plots(trials)
    assert set(found) == expected
    assert len(list(trial_sections(list(found.values())))) == len(expected)
    assert len(draw_trial_plots(list(found.values()))) == len(expected)
