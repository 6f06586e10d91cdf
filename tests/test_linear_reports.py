"""What tables, figures and the answer say of linear ICA: it stands beside every MCC, per world."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from imavae.config.settings import Objective, run_config, study_config
from imavae.paper.quantities import NOT_JUDGED, Study, linear_rows
from imavae.report.html import answer
from imavae.report.over_gamma import CONTRAST, MCC, OverGamma, draw_over_gamma
from imavae.report.run_figures import learning_curves
from imavae.report.summary import CHOICES, LINEAR_ICA, choices, compared_with_linear, counted, linear_mcc
from imavae.report.tables import best_trials, chosen_table, front_table, member_table, metric_table, selection_table
from imavae.runs.folder import Stored
from imavae.runs.results import Results
from imavae.tracking import TrialRecord

LEVELS = {4: 0.61, 9: 0.97, 11: 0.63}  # of linear ICA, by data.seed


def members(trial: int = 0, lost: bool = True) -> pd.DataFrame:
    """Two members in each of three worlds; one diverged before its first validation."""
    worlds = [seed for seed in LEVELS for _ in range(2)]
    reference = np.array([LEVELS[seed] for seed in worlds])
    rows = pd.DataFrame(
        {
            "trial": trial,
            "seed": [1, 2] * 3,
            "data.seed": worlds,
            "gamma": 10.0,
            "gamma_sq": 100.0,
            "status": "finished",
            "epochs": 30,
            "max val/mcc": np.linspace(0.7, 0.8, 6),
            "min val/neg_elbo": 1.0,
            "val/mcc at min val/neg_elbo": 0.7,
            "test/mcc at max val/mcc": 0.72,
            "test/mcc at min val/neg_elbo": 0.71,
            **{f"{split}/mcc_linear_ica at {state}": reference + 0.001 * (split == "test")
               for split in ("val", "test") for state in ("max val/mcc", "min val/neg_elbo")},
        }
    )  # fmt: skip
    if lost:
        rows["status"] = rows["status"].where(rows.index != 1, "diverged")
        rows.loc[1, [column for column in rows.columns.astype(str) if "/mcc" in column]] = np.nan
    return rows


def test_each_world_has_one_value_whichever_members_diverged() -> None:
    assert linear_mcc(members()).tolist() == list(LEVELS.values())
    assert linear_mcc(members(), "test") == pytest.approx([0.611, 0.971, 0.631])
    known = counted(members(), LINEAR_ICA)
    assert known[0] == LEVELS[4]
    assert np.isnan(known[1])
    assert counted(members(), "max val/mcc")[1] == 0
    before = members().drop(columns=[column for column in members().columns.astype(str) if "linear" in column])
    assert not len(linear_mcc(before))  # results of an earlier version, or without sources


def test_a_result_is_compared_by_its_gain_and_by_how_linear_its_world_is() -> None:
    none, level = np.array([]), np.array([0.6])
    beats, equals = (compared_with_linear(mcc, level, none) for mcc in (0.9, 0.6))
    nearly = compared_with_linear(0.99, np.array([0.96]), none)
    assert "0.600" in beats
    assert "0.300" in beats
    assert "0.300" not in equals
    assert len({text.replace("0.600", "").replace("0.960", "") for text in (beats, equals, nearly)}) == 3
    assert "0.200" in compared_with_linear(0.9, level, np.array([0.7]))  # over the better of the two
    several = compared_with_linear(0.9, np.array([*LEVELS.values()]), none)
    assert all(f"{number:.3f}" in several for number in (0.61, 0.63, 0.97))
    assert compared_with_linear(0.9, none, none) == ""


def test_tables_have_it_beside_the_mcc() -> None:
    frame = pd.concat([members(0), members(1, False)], ignore_index=True)
    trials = pd.DataFrame({"trial": [0, 1], "score": [0.7, 0.75], "status": "finished", "epochs": 30})
    best = best_trials(frame, trials, [], "max")
    assert [row[best.columns.index("linear ICA")] for row in best.rows] == ["0.630", "0.630"]
    each = member_table(members())
    column = [row[each.columns.index("linear ICA")] for row in each.rows]
    assert column[:4] == ["0.610", "–", "0.970", "0.970"]
    assert "0.631" in [row[-1] for row in chosen_table(members()).rows]
    values = pd.DataFrame({"gamma": 10.0, "test/mcc": [0.7], "test/mcc_linear_ica": [0.98]})
    records = [
        TrialRecord(n, {}, "finished", 0.7, [], cast(Any, members(lost=False).to_dict("records")), {"val/cima": 0.1})
        for n in range(2)
    ]
    front = front_table(records, [Objective(), Objective(metric="val/cima", mode="min")], [])
    assert [row[front.columns.index("linear ICA")] for row in front.rows] == ["0.630", "0.630"]
    chosen = choices(frame, trials, [])
    per_world = chosen[chosen["choice"] == CHOICES[1]]["MCC of linear ICA"]
    assert sorted(per_world.dropna().unique()) == pytest.approx([0.611, 0.631, 0.971])
    assert "0.631" in selection_table(chosen).caption
    assert "0.980" in metric_table(values, "model.pt").caption


def test_the_answer_compares_with_it(tmp_path: Path) -> None:
    record = TrialRecord(0, {}, "finished", 0.75, [], cast(Any, members(lost=False).to_dict("records")))
    stored = (Stored(record, None, 0),)
    said = answer(Results(tmp_path, run_config({"members": {"seed": [1, 2], "data": {"seed": [*LEVELS]}}}), stored))
    assert any("0.630" in sentence for sentence in said)


def test_learning_curves_have_a_line_per_world() -> None:
    epoch = np.arange(5, 55, 5)
    history = pd.DataFrame({"seed": 1, "epoch": epoch, "val/mcc": 1 - 1 / epoch, "val/neg_elbo": 1 / epoch})
    with_lines, without = learning_curves(history, [0.6, 0.9]), learning_curves(history)
    levels = [line.get_ydata() for line in with_lines.axes[0].lines[len(without.axes[0].lines) :]]
    assert np.array(levels, dtype=np.float64).tolist() == [[0.6, 0.6], [0.9, 0.9]]


@pytest.mark.parametrize("searched", [True, False])
def test_a_figure_of_the_paper_has_a_row_per_setting_of_its_data(searched: bool) -> None:
    search = {"model": {"gamma": {"type": "choice", "values": [10.0, 31.0]}}}
    other = {"data": {"dim": {"type": "choice", "values": [2, 3]}}} if searched else {}
    settings = {"search": search | other, "sampler": {"name": "grid"}, "study": "own"}
    frame = pd.concat([members(0), members(1, False)], ignore_index=True)
    frame = frame.assign(**{"model.gamma": frame["trial"] * 21.0 + 10, "data.dim": frame["trial"] + 2})
    study = Study(study_config(settings), Path(), frame, pd.DataFrame(), 1.0)
    rows = linear_rows(study)
    assert [(row.ours.n, row.ours.median) for row in rows] == [(3, 0.63)] * (2 if searched else 1)
    assert {row.verdict for row in rows} == {NOT_JUDGED}
    before = Study(study.config, Path(), frame[["trial", "seed"]], pd.DataFrame(), 1.0)
    assert linear_rows(before) == []


@pytest.mark.parametrize("mcc", [0.75, 0.95])  # the second is drawn as its distance from 1
def test_the_figure_over_gamma_has_its_level_within_its_axis(mcc: float) -> None:
    reached = np.linspace(mcc, mcc + 0.03, 6)
    frame = members(lost=False).assign(**{"max val/mcc": reached, "val/mcc at min val/neg_elbo": reached})
    trials = pd.DataFrame({"trial": [0], "score": [mcc], "status": "finished", "epochs": 30})
    shown = OverGamma.of(frame, trials, MCC)
    assert shown.linear_ica == pytest.approx(0.37 if mcc > 0.9 else 0.63)
    axes = draw_over_gamma(shown).axes[0]
    assert [shown.linear_ica] * 2 in [list(np.array(line.get_ydata(), dtype=np.float64)) for line in axes.lines]
    assert min(axes.get_ylim()) < shown.linear_ica < max(axes.get_ylim())
    assert np.isnan(OverGamma.of(frame, trials, CONTRAST).linear_ica)
