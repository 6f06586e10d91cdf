"""What a report says of known results, and that it holds up when results are few, missing or bad."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import RenderableType

from imavae.config.settings import Objective, study_config
from imavae.report.drawing import write
from imavae.report.over_gamma import CONTRAST, MCC, OverGamma, draw_over_gamma
from imavae.report.run_figures import learning_curves, trial_curves
from imavae.report.summary import chosen_numbers, counted, quartiles
from imavae.report.tables import best_trials, chosen_table, front_table, member_table, metric_table
from imavae.runs.folder import Stored
from imavae.runs.results import Results
from imavae.search.space import Parameter
from imavae.tracking import Row, TrialRecord
from tests.helpers import console, text_of

KEYS = ["model.gamma", "model.hidden_factor", "model.n_layers"]


def results(trial: int, gamma: float, seeds: int, quality: float = 1.0) -> pd.DataFrame:
    """Members like those of a Möbius study: at chance below γ² of 300, recovered above 3000."""
    rng = np.random.default_rng(trial)
    level = 1 / (1 + np.exp(-3.2 * (np.log10(gamma**2) - 3))) * quality
    mcc = np.clip(0.05 + 0.9 * level + rng.normal(0, 0.02 + 0.08 * level * (1 - level), seeds), 0.01, 0.999)
    cima = 10 ** (-3.2 + 1.4 * (1 - level) + 0.25 * np.log10(gamma) + rng.normal(0, 0.25, seeds))
    neg_elbo = -4.9 * level + rng.normal(0, 0.03, seeds)
    paper = np.clip(mcc - np.abs(rng.normal(0, 0.03, seeds)), 0, 1)
    return pd.DataFrame(
        {
            "trial": trial,
            "seed": np.arange(1, seeds + 1),
            "gamma": gamma,
            "gamma_sq": gamma**2,
            "status": "finished",
            "epochs": rng.integers(40, 400, seeds),
            "min val/neg_elbo": neg_elbo,
            "max val/mcc": mcc,
            "val/mcc at min val/neg_elbo": paper,
            "val/cima at min val/neg_elbo": cima * 0.8,
            "val/cima at max val/mcc": cima,
            "test/mcc at max val/mcc": mcc - 0.004,
        }
    )


def study(gammas: list[float], seeds: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Members and trials of a search over gamma and the architecture."""
    rng = np.random.default_rng(7)
    members = pd.concat([results(n, g, seeds, rng.uniform(0.8, 1.0)) for n, g in enumerate(gammas)], ignore_index=True)
    count = len(gammas)
    trials = pd.DataFrame(
        {
            "trial": np.arange(count),
            "score": members.groupby("trial")["max val/mcc"].median().to_numpy(),
            "status": np.where(rng.random(count) < 0.35, "stopped", "finished"),
            "epochs": 100,
            "model.gamma": gammas,
            "model.hidden_factor": rng.integers(5, 41, count),
            "model.n_layers": rng.integers(2, 5, count),
        }
    )
    return members, trials


def shown(renderable: RenderableType) -> str:
    """The text of a table in 80 columns, in which nothing of it may be cut."""
    output = console()
    output.print(renderable)
    text = text_of(output)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    return text


def hand_made() -> pd.DataFrame:
    """Four members of one trial; the best val/mcc is the third's, but for the fourth, which diverged."""
    return pd.DataFrame(
        {
            "trial": 0,
            "seed": [1, 2, 3, 4],
            "gamma": 100.0,
            "gamma_sq": 1e4,
            "status": ["finished", "stopped", "finished", "diverged"],
            "epochs": [10, 20, 30, 5],
            "min val/neg_elbo": [-4.0, -5.0, -6.0, -9.0],
            "max val/mcc": [0.5, 0.7, 0.9, 0.99],
            "val/mcc at min val/neg_elbo": [0.4, 0.6, 0.2, 0.99],
            "val/cima at min val/neg_elbo": [0.1, 0.2, 0.3, 0.0],
            "val/cima at max val/mcc": [0.1, 0.2, 0.3, 0.0],
            "test/mcc at max val/mcc": [0.45, 0.75, 0.85, 0.98],
        }
    )


# ---- numbers


def test_three_numbers_are_two_medians_and_one_checkpoint_and_a_diverged_member_counts_zero() -> None:
    assert chosen_numbers(hand_made()) == {
        "mcc/at_best_mcc": pytest.approx(0.6),  # of 0, .5, .7, .9
        "mcc/at_best_neg_elbo": pytest.approx(0.3),  # of 0, .2, .4, .6
        "mcc/test_of_chosen": 0.85,  # the third's: a diverged member is never chosen
    }


def test_three_numbers_without_a_test_split_or_a_survivor() -> None:
    members = hand_made().assign(**{"test/mcc at max val/mcc": np.nan})
    assert np.isnan(chosen_numbers(members)["mcc/test_of_chosen"])
    assert "–" in shown(chosen_table(members))
    lost = hand_made().assign(status="diverged").drop(columns="test/mcc at max val/mcc")
    *medians, test = chosen_numbers(lost).values()
    assert medians == [0, 0]
    assert np.isnan(test)


def test_a_diverged_member_counts_as_the_worst_of_each_metric() -> None:
    members = hand_made()
    assert counted(members, "max val/mcc").tolist() == [0.5, 0.7, 0.9, 0.0]
    assert counted(members, "min val/neg_elbo").tolist() == [-4, -5, -6, np.inf]
    assert counted(members, "val/cima at max val/mcc").tolist() == [0.1, 0.2, 0.3, np.inf]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3, 4, 5], (2, 3, 4)),
        ([1, 2, np.nan], (1.25, 1.5, 1.75)),
        ([1, 2, np.inf], (1.5, 2, np.inf)),
        ([1, np.inf, np.inf], (np.inf, np.inf, np.inf)),
        ([7], (7, 7, 7)),
    ],
)
def test_quartiles_skip_what_is_missing_and_keep_what_is_infinite(
    values: list[float], expected: tuple[float, float, float]
) -> None:
    assert tuple(quartiles(np.array(values, dtype=np.float64))) == expected


# ---- tables


def rows_of(text: str) -> list[list[str]]:
    return [cells for line in text.splitlines() if (cells := line.split()) and cells[0].isdigit()]


@pytest.mark.parametrize(("mode", "order"), [("max", ["2", "0", "3"]), ("min", ["1", "0", "3"])])
def test_best_trials_come_first_and_of_equal_ones_the_earlier(mode: str, order: list[str]) -> None:
    members, trials = study([10.0, 30.0, 100.0, 300.0, 500.0, 600.0, 700.0], 4)
    trials["score"] = [0.5, 0.1, 0.9, 0.5, np.nan, 1e12, 0.0]  # 1e12 stands for infinity
    trials.loc[6, "status"] = "failed"
    text = shown(best_trials(members, trials, KEYS, mode, top=3))
    assert [row[0] for row in rows_of(text)] == order
    assert "Best 3 of 7 trials" in text


def test_best_trials_show_the_point_and_the_medians() -> None:
    trials = pd.DataFrame({"trial": [0], "score": [0.6], "status": ["finished"], "model.n_layers": [3]})
    row = rows_of(shown(best_trials(hand_made(), trials, ["model.gamma", "model.n_layers"], "max")))[0]
    assert row == ["0", "0.600", "0.375–0.750", "100", "1e4", "3", "0.2500", "−4.500", "1/4"]


def test_best_trials_say_so_when_there_are_none() -> None:
    members, trials = study([10.0], 2)
    assert "No trial has a score" in shown(best_trials(members, trials.assign(score=np.nan), KEYS, "max"))


def test_member_table_has_a_row_per_member_and_the_aggregate_last() -> None:
    text = shown(member_table(hand_made()))
    assert [row[:3] for row in rows_of(text)] == [
        ["1", "finished", "10"],
        ["2", "stopped", "20"],
        ["3", "finished", "30"],
        ["4", "diverged", "5"],
    ]
    last = [line.split() for line in text.splitlines() if "median " in line or "quartile" in line][:3]
    assert [row[:-5] for row in last] == [["median"], ["quartile", "1"], ["quartile", "3"]]
    assert [row[-5] for row in last] == ["0.600", "0.375", "0.750"]
    assert "Gamma 100, gamma² 1e4: 4 members" in text


@pytest.mark.parametrize(("gammas", "head"), [([9.0], "value"), ([9.0, 9.0], "quartile"), ([9.0, 99.0], "gamma")])
def test_metric_table_has_a_row_per_metric(gammas: list[float], head: str) -> None:
    values = pd.DataFrame({"seed": 1, "gamma": gammas, "test/mcc": 0.75, "test/self_consistency_batch": np.nan})
    text = shown(metric_table(values, "outputs/runs/train/checkpoint.pt"))
    assert head in text
    assert "test/mcc" in text
    assert "0.75" in text
    assert "–" in text


# ---- figures


def names(paths: list[Path]) -> set[str]:
    assert all(path.stat().st_size > 1000 for path in paths)
    assert sorted(path.suffix for path in paths) == sorted([".png", ".pdf"] * (len(paths) // 2))
    return {path.stem for path in paths}


def test_figures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    shown = OverGamma.of(*study([10.0, 100.0], 20), MCC)
    first, again = (write({"mcc": draw_over_gamma(shown)}, tmp_path / name, pdf=True) for name in "ab")
    assert names(first) == {"mcc"}
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_a_figure_over_gamma_has_each_trials_quartiles_by_both_protocols() -> None:
    members, trials = study([10.0, 100.0, 10.0], 20)
    members.loc[3, "status"] = "diverged"
    shown = OverGamma.of(members, trials, MCC)
    assert shown.trials["x"].tolist() == pytest.approx([1e2, 1e4, 1e2])
    assert shown.trials["lost"].tolist() == [1, 0, 0]
    assert shown.trials["early"].tolist() == (trials["status"] == "stopped").tolist()
    for n in range(3):
        group = members[members["trial"] == n]
        expected = quartiles(counted(group, "max val/mcc"))  # of which one member counts as 0
        assert tuple(shown.trials.loc[n, ["low", "median", "high"]]) == pytest.approx(tuple(expected))
        paper = quartiles(counted(group, "val/mcc at min val/neg_elbo"))
        assert shown.trials.loc[n, "paper"] == pytest.approx(paper.median)


def test_values_near_one_are_shown_by_their_distance_from_it_and_others_as_they_are() -> None:
    members, trials = study([100.0, 1000.0], 20)
    good = members.assign(**{"val/mcc at min val/neg_elbo": 0.94})
    good["max val/mcc"] = 0.95 + members["seed"] / 500
    near = OverGamma.of(good, trials, MCC)
    assert near.flipped
    assert near.quantity.log
    assert near.trials["median"].tolist() == pytest.approx([0.05 - 10.5 / 500] * 2)
    assert near.trials["paper"].tolist() == pytest.approx([0.06] * 2)
    assert draw_over_gamma(near).axes[0].yaxis.get_inverted()
    good.loc[3, "status"] = "diverged"
    good.loc[7, "max val/mcc"] = 0.7
    far = OverGamma.of(good, trials, MCC)
    assert not far.flipped
    assert far.limits is not None
    assert 0.6 < far.limits[0] < 0.7
    assert 0.99 < far.limits[1] < 1.01


def test_values_below_the_floor_of_a_contrast_are_counted() -> None:
    members, trials = study([100.0, 1000.0], 4)
    members.loc[[1, 6], "val/cima at max val/mcc"] = [0.0, -1e-12]
    shown = OverGamma.of(members, trials, CONTRAST)
    assert shown.floored == 2
    assert "2" in shown.note
    assert (shown.members["y"] > 0).all()


WIDTH = Parameter("model.hidden_factor", "int", 5, 40)
DEPTH = Parameter("model.n_layers", "choice", values=(2, 3))


@pytest.mark.parametrize("kind", ["choice", "float"])
def test_trials_are_connected_where_they_differ_in_gamma_alone_and_only_on_a_grid(kind: str) -> None:
    gamma = Parameter("model.gamma", "choice", values=(3.0, 30.0))
    gamma = gamma if kind == "choice" else Parameter("model.gamma", "float", 3.0, 30.0)
    members, trials = study([3.0, 3.0, 30.0, 30.0], 4)
    trials = trials.assign(**{"model.n_layers": [2, 3, 2, 3]})
    found = OverGamma.of(members, trials, MCC, [gamma, DEPTH]).trials
    assert found["line"].nunique() == (2 if kind == "choice" else 4)
    assert (found["line"][0] == found["line"][2]) == (kind == "choice")
    assert found["line"][0] != found["line"][1]


def test_colour_and_shape_tell_two_parameters_of_a_trial() -> None:
    members, trials = study([float(gamma) for gamma in range(3, 63)], 4)
    trials["training.batch_size"] = np.where(trials["trial"] % 2, 64, 128)
    batch = Parameter("training.batch_size", "choice", values=(64, 128))
    shown = OverGamma.of(members, trials, MCC, [batch, WIDTH, DEPTH])
    widths = trials["model.hidden_factor"]
    assert len(shown.colours) == 3  # a third of the widths each
    assert shown.trials.groupby("colour", observed=True)["trial"].count().sum() == 60
    order = [widths[shown.trials["colour"] == colour].max() for colour in shown.colours]
    assert order == sorted(order)
    assert shown.trials.groupby("shape", observed=True)["model.n_layers"].nunique().tolist() == [1, 1, 1]
    one = OverGamma.of(members, trials.assign(**{"model.n_layers": 2}), MCC, [DEPTH])
    assert (list(one.colours), list(one.shapes)) == ([""], [""])
    some = trials.assign(**{"model.n_layers": np.where(trials["trial"] % 2, 2.0, np.nan)})  # a conditional parameter
    assert len(OverGamma.of(members, some, MCC, [DEPTH]).colours) == 2


def study_of(case: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Members and trials with little to show."""
    match case:
        case "one member":
            return study([10.0], 1)
        case "all diverged before their first validation":
            members, trials = study([float(gamma) for gamma in range(20, 40)], 2)
            lost = [column for column in members if " at " in str(column)]
            return members.drop(columns=lost).assign(status="diverged", **{"max val/mcc": np.nan}), trials
        case _:
            members, trials = study([10.0, 100.0], 3)
            members["max val/mcc"] = [np.nan, np.inf] * 3
            members["val/cima at max val/mcc"] = [np.inf, 0.0] * 3
            return members, trials


@pytest.mark.parametrize("case", ["one member", "all diverged before their first validation", "NaN and infinity"])
def test_figures_over_gamma_are_drawn_however_little_there_is_to_show(case: str, tmp_path: Path) -> None:
    shown = {quantity.title: OverGamma.of(*study_of(case), quantity) for quantity in (MCC, CONTRAST)}
    figures = {str(n): draw_over_gamma(one) for n, one in enumerate(shown.values())}
    assert names(write(figures, tmp_path, pdf=True)) == {"0", "1"}


@pytest.mark.parametrize("seeds", [1, 12])
def test_learning_curves_of_one_member_or_many(seeds: int) -> None:
    epoch = np.arange(5, 55, 5)
    curves = [
        {"seed": seed, "epoch": epoch, "val/mcc": 1 - 1 / epoch, "val/neg_elbo": 3000 * np.exp(-epoch / 4) - seed}
        for seed in range(seeds)
    ]
    history = pd.concat([pd.DataFrame(curve) for curve in curves])
    history.iloc[-1, 2:] = np.nan  # of a member that diverged
    figure = learning_curves(history)
    drawn = [line for line in figure.axes[0].lines if np.size(line.get_xdata()) == len(epoch)]
    assert len(drawn) == seeds


def curves_of(trials: int, best: float) -> dict[int, list[Row]]:
    """Histories of trials of three members: val/mcc rises to ``best``."""
    return {
        trial: [
            {"seed": seed, "epoch": epoch, "val/mcc": best - (0.5 + seed / 10) / epoch, "val/neg_elbo": -float(epoch)}
            for seed in (1, 2, 3)
            for epoch in range(1, 100, 7)
        ]
        for trial in range(trials)
    }


@pytest.mark.parametrize(("best", "log"), [(0.99, True), (0.8, False)])
def test_the_best_trials_have_the_median_of_their_members_over_epochs(best: float, log: bool) -> None:
    left, right = trial_curves(curves_of(2, best)).axes
    expected = best - 0.7 / np.arange(1, 100, 7)
    for axes, values in ((left, 1 - expected if log else expected), (right, -np.arange(1.0, 100, 7))):
        assert len(axes.lines) == 2
        np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), values)
    assert left.get_yscale() == ("log" if log else "linear")
    assert left.yaxis.get_inverted() == log  # the best is at the top either way


def test_trials_without_sources_and_of_one_seed_have_curves_of_neg_elbo_alone() -> None:
    rows = [{key: value for key, value in row.items() if key != "val/mcc"} for row in curves_of(1, 0.9)[0]]
    left, right = trial_curves({0: rows}).axes
    assert (len(left.lines), len(right.lines)) == (0, 1)


def test_the_front_has_a_row_per_trial() -> None:
    objectives = [Objective(), Objective(metric="val/cima", mode="min")]
    values = [{"model.gamma": 31.6, "model.n_layers": 2}, {"model.gamma": 3.2, "model.n_layers": 3, KEYS[1]: 7}]
    front = [
        TrialRecord(n, point, "finished", score, [], [], {"val/cima": cima})
        for n, point, score, cima in zip((4, 12), values, (0.912, 0.7), (0.0123, 0.0004), strict=True)
    ]
    lines = shown(front_table(front, objectives, KEYS)).splitlines()
    cells = [line.split() for line in lines if line.split()[:1] in (["4"], ["12"])]
    assert cells == [
        ["4", "0.912", "0.0123", "gamma=31.6", "n_layers=2"],
        ["12", "0.7", "4.000e-4", "gamma=3.2", "hidden_factor=7", "n_layers=3"],
    ]


def test_no_trial_of_the_front_is_dominated_and_every_other_is(tmp_path: Path) -> None:
    objectives = [Objective(), Objective(metric="val/cima", mode="min"), Objective(metric="val/neg_elbo", mode="min")]
    rng = np.random.default_rng(1)
    values = rng.integers(0, 4, (40, 3)).astype(float)  # with ties
    row: dict[str, str | float] = {"status": "finished"}
    stored = []
    search = {"model": {"gamma": {"type": "float", "low": 3.0, "high": 99.0}}}
    further_objectives = [dataclasses.asdict(objective) for objective in objectives[1:]]
    config = study_config({"search": search, "budget": {"trials": 40}, "further_objectives": further_objectives})
    for n, (score, cima, energy) in enumerate(values.tolist()):
        further = {"val/cima": cima, "val/neg_elbo": energy}
        stored.append(Stored(TrialRecord(n, {}, "finished", score, [], [row], further), None, 0))
    losses = values * [-1, 1, 1]
    expected = {
        n
        for n, mine in enumerate(losses)
        if not any((other <= mine).all() and (other < mine).any() for other in losses)
    }
    front = Results(tmp_path, config, tuple(stored)).front()
    assert {record.number for record in front} == expected
    found = [record.score or 0.0 for record in front]
    assert found == sorted(found, reverse=True)
