"""What a report says of known results, and that it holds up when results are few, missing or bad."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console, RenderableType

from imavae.config import Objective
from imavae.report.display import Display, clock, compact, point_text, short_names
from imavae.report.drawing import write
from imavae.report.figures import solo_figures, study_figures
from imavae.report.over_gamma import MCC, over_gamma
from imavae.report.tables import (
    best_trials,
    counted,
    member_table,
    metric_table,
    quartiles,
    scores,
    three_numbers,
    three_numbers_table,
)
from imavae.search.progress import Snapshot

KEYS = ["model.gamma", "model.hidden_factor", "model.n_layers"]
FIGURES = {"mcc_vs_gamma", "cima_vs_gamma", "optimisation_history", "score_vs_parameters"}


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


def searched() -> tuple[pd.DataFrame, pd.DataFrame]:
    return study([float(g) for g in np.exp(np.random.default_rng(3).uniform(np.log(3), np.log(1000), 12))], 8)


def console(width: int = 80, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None, force_terminal=terminal)


def text_of(output: Console) -> str:
    assert isinstance(output.file, io.StringIO)
    return output.file.getvalue()


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
    numbers = three_numbers(hand_made())
    assert numbers.at_best_mcc == pytest.approx(0.6)  # of 0, .5, .7, .9
    assert numbers.at_best_neg_elbo == pytest.approx(0.3)  # of 0, .2, .4, .6
    assert numbers.test_of_chosen == 0.85  # the third's: a diverged member is never chosen


def test_three_numbers_without_a_test_split_or_a_survivor() -> None:
    members = hand_made().assign(**{"test/mcc at max val/mcc": np.nan})
    assert np.isnan(three_numbers(members).test_of_chosen)
    assert "–" in shown(three_numbers_table(three_numbers(members)))
    lost = hand_made().assign(status="diverged").drop(columns="test/mcc at max val/mcc")
    numbers = three_numbers(lost)
    assert (numbers.at_best_mcc, numbers.at_best_neg_elbo) == (0, 0)
    assert np.isnan(numbers.test_of_chosen)


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


def test_a_failed_trial_and_a_stand_in_for_infinity_are_no_scores() -> None:
    trials = pd.DataFrame({"score": [0.5, 0.6, 1e12, np.nan], "status": ["stopped", "failed", "finished", "finished"]})
    np.testing.assert_array_equal(scores(trials), [0.5, np.nan, np.nan, np.nan])


# ---- tables


def rows_of(text: str) -> list[list[str]]:
    return [cells for line in text.splitlines() if (cells := line.split()) and cells[0].isdigit()]


@pytest.mark.parametrize(("mode", "order"), [("max", ["2", "0", "3"]), ("min", ["1", "0", "3"])])
def test_best_trials_come_first_and_of_equal_ones_the_earlier(mode: str, order: list[str]) -> None:
    members, trials = study([10.0, 30.0, 100.0, 300.0, 500.0], 4)
    trials["score"] = [0.5, 0.1, 0.9, 0.5, np.nan]
    text = shown(best_trials(members, trials, KEYS, mode, top=3))
    assert [row[0] for row in rows_of(text)] == order
    assert "Best 3 of 5 trials" in text


def test_best_trials_show_the_point_and_the_medians() -> None:
    trials = pd.DataFrame({"trial": [0], "score": [0.6], "status": ["finished"], "model.n_layers": [3]})
    row = rows_of(shown(best_trials(hand_made(), trials, ["model.gamma", "model.n_layers"], "max")))[0]
    assert row == ["0", "100", "1e4", "3", "0.600", "0.375–0.750", "0.2500", "-4.500", "1/4"]


def test_best_trials_hold_in_80_columns_with_many_parameters_and_diverged_members() -> None:
    members, trials = study([10.0, 300.0], 8)
    members.loc[::5, "status"] = "diverged"
    more = {"training.learning_rate": "3.58e-4", "model.prior.name": "gaussian", "data.mixing.weights": "orthogonal"}
    text = shown(best_trials(members, trials.assign(**more), [*KEYS, *more], "max"))
    assert "3.58e-4" in text
    assert "prior.name" in text
    assert "Seeds lost diverged" in text


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
    members, _ = study([10.0, 100.0], 20)  # few gammas: violins, with jittered members
    first, again = (write({"mcc": over_gamma(members, MCC)}, tmp_path / name) for name in "ab")
    assert names(first) == {"mcc"}
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def results_of(case: str) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    match case:
        case "a search over gamma and the architecture":
            return *searched(), KEYS
        case "one member of one trial, nothing searched":
            members, trials = study([10.0], 1)
            return members, trials, []
        case "all diverged before their first validation, at many gammas":
            members, trials = study([float(gamma) for gamma in range(20, 40)], 2)
            lost = [column for column in members if " at " in str(column)]
            members = members.drop(columns=lost).assign(status="diverged", **{"max val/mcc": np.nan})
            return members, trials.assign(score=np.nan, status="failed"), ["model.gamma"]
        case _:
            members, trials = study([10.0, 100.0], 3)
            members["max val/mcc"] = [np.nan, np.inf] * 3
            members["val/cima at max val/mcc"] = [np.inf, 0.0] * 3
            trials["model.prior.name"] = ["uniform", None]
            return members, trials, ["model.gamma", "model.prior.name"]


@pytest.mark.parametrize(
    "case",
    [
        "a search over gamma and the architecture",
        "one member of one trial, nothing searched",
        "all diverged before their first validation, at many gammas",
        "NaN and infinite values, a conditional parameter",
    ],
)
def test_every_figure_is_written_however_little_there_is_to_show(case: str, tmp_path: Path) -> None:
    members, trials, keys = results_of(case)
    assert names(study_figures(members, trials, keys, Objective(), tmp_path)) == FIGURES


@pytest.mark.parametrize("seeds", [1, 12])
def test_learning_curves_of_one_member_or_many(seeds: int, tmp_path: Path) -> None:
    epoch = np.arange(5, 55, 5)
    curves = [
        {"seed": seed, "epoch": epoch, "val/mcc": 1 - 1 / epoch, "val/neg_elbo": 3000 * np.exp(-epoch / 4) - seed}
        for seed in range(seeds)
    ]
    history = pd.concat([pd.DataFrame(curve) for curve in curves])
    history.iloc[-1, 2:] = np.nan  # of a member that diverged
    assert names(solo_figures(history, tmp_path)) == {"learning_curves"}


# ---- the display


def snapshot(seconds: float, finished: int, best: float | None, **more: object) -> Snapshot:
    base = Snapshot(
        trials_total=32,
        finished=finished,
        running=2,
        members_stopped=31,
        best_score=best,
        best_point={"model.gamma": 98.21, "model.n_layers": 3},
        member_steps_per_s=31_234.0,
        seconds_left=130.0,
        seconds=seconds,
        metric="val/mcc",
    )
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


def test_in_a_pipe_a_line_is_printed_only_when_something_has_changed() -> None:
    output = console()
    with Display(output) as display:
        for seconds, finished, best in [
            (0.0, 0, None),
            (1.0, 0, 0.5),
            (3.0, 0, 0.5),
            (5.0, 1, 0.5),
            (7.0, 1, 0.5),
            (9.0, 1, 0.6),
        ]:
            display.update(snapshot(seconds, finished, best))
    assert text_of(output).splitlines() == [
        "0:01 best val/mcc 0.500 at gamma=98.2 n_layers=3",
        "0:05 1/32 trials, 2 running, 31 early stops, 31k member-steps/s, 2:10 left",
        "0:09 best val/mcc 0.600 at gamma=98.2 n_layers=3",
    ]


def test_in_a_pipe_there_is_no_more_than_a_line_a_second_and_the_last_news_is_said() -> None:
    output = console()
    with Display(output) as display:
        for n in range(100):
            display.update(snapshot(n / 50, n // 4, n / 200))
    lines = text_of(output).splitlines()
    assert len(lines) <= 2 + 2  # one at the start and one after a second; what was held back at the end
    assert lines[-2].startswith("0:02 24/32 trials")
    assert "0.495" in lines[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_holds_in_80_columns_and_without_colour(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    output = Console(file=io.StringIO(), width=80, force_terminal=terminal)
    point = {f"model.a_long_name_{n}": 1.0 / 3 for n in range(8)}
    with Display(output) as display:
        display.update(snapshot(40_000.0, 31, 0.123456, best_point=point, seconds_left=None, trials_total=1000))
    text = text_of(output)
    assert "\x1b[3" not in text  # no colour; bold and the cursor's moves are not colours
    plain = [line for line in console().render_str(text).plain.splitlines() if "\x1b" not in line]
    assert max(map(len, plain), default=0) <= 80
    for number in ("31", "0.123", "31,234" if terminal else "31k", "11:06:40"):
        assert number in text


def test_the_panel_tells_all_that_a_snapshot_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    output = console(terminal=True)
    with Display(output) as display:
        display.update(snapshot(65.0, 12, 0.9))
    for part in (
        "12/32",
        "1:05",
        "2:10 left",
        "2 running",
        "18 left",
        "31 members stopped early",
        "0.900",
        "gamma=98.2",
    ):
        assert part in text_of(output)


def test_the_display_is_imported_without_the_slow_libraries() -> None:
    code = (
        "import sys, imavae.report.display; print([m for m in ('matplotlib', 'pandas', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ---- words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9650.3, "9.65e3"),
        (1e4, "1e4"),
        (98.21, "98.2"),
        (3.58e-4, "3.58e-4"),
        (0.0, "0"),
        (3, "3"),
        (True, "True"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "inf"),
        ("relu", "relu"),
    ],
)
def test_compact_values(value: object, text: str) -> None:
    assert compact(value) == text


def test_names_are_as_short_as_they_can_be_told_apart() -> None:
    assert short_names(["model.gamma", "model.prior.name", "data.seed", "sampler.seed"]) == {
        "model.gamma": "gamma",
        "model.prior.name": "prior.name",
        "data.seed": "data.seed",
        "sampler.seed": "sampler.seed",
    }
    assert point_text({"model.gamma": 12.0, "model.slope": float("nan")}) == "gamma=12"


def test_clock() -> None:
    assert [clock(s) for s in (0.0, 59.6, 61.0, 3723.0)] == ["0:00", "1:00", "1:01", "1:02:03"]
