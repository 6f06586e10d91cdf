"""What is chosen without ground truth, on hand-made members."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from imavae.report.summary import CHOICES, choices, preferred, selection_metrics
from imavae.report.tables import selection_table
from tests.helpers import console, text_of

TRIALS = pd.DataFrame({"trial": [0, 1], "model.gamma": [10.0, 100.0]})


def hand_made() -> pd.DataFrame:
    """Two gammas of three members: −ELBO chooses gamma 100, which is right, and agreement 10, which is not."""
    return pd.DataFrame(
        {
            "trial": [0, 0, 0, 1, 1, 1],
            "seed": [1, 2, 3, 1, 2, 3],
            "status": ["finished", "finished", "finished", "finished", "finished", "diverged"],
            "max val/mcc": [0.3, 0.4, 0.5, 0.9, 0.8, 0.99],
            "min val/neg_elbo": [1.0, 2.0, 3.0, -5.0, -4.0, -9.0],
            "val/agreement at min val/neg_elbo": [0.9, 0.8, 0.7, 0.5, 0.6, 0.9],
            "test/mcc at max val/mcc": [0.28, 0.38, 0.48, 0.88, 0.78, 0.98],
            "test/mcc at min val/neg_elbo": [0.2, 0.3, 0.4, 0.85, 0.75, 0.97],
        }
    )


def test_each_criterion_chooses_by_its_own_score_and_is_scored_on_the_test_split() -> None:
    table = choices(hand_made(), TRIALS, ["model.gamma"]).set_index("choice")
    point = table.loc["a point"]
    assert point["among"] == 2
    assert (point["MCC by val/mcc"], point["MCC by val/neg_elbo"]) == (0.78, 0.75)  # a diverged member counts 0
    assert point["MCC by val/agreement"] == 0.3
    assert point["regret by val/neg_elbo"] == pytest.approx(0.03)
    assert point["regret by val/agreement"] == pytest.approx(0.48)
    any_point = table.loc["a member of any point"]
    assert any_point["among"] == 5  # a diverged member is never chosen
    assert (any_point["MCC by val/mcc"], any_point["MCC by val/neg_elbo"]) == (0.88, 0.85)
    assert any_point["MCC by val/agreement"] == 0.2
    own = table.loc["a member of a point"]
    assert own["MCC by val/mcc"].tolist() == [0.48, 0.88]
    assert own["MCC by val/neg_elbo"].tolist() == [0.2, 0.85]
    assert own["MCC by val/agreement"].tolist() == [0.2, 0.75]
    assert own["point"].tolist() == ["gamma=10", "gamma=100"]


def test_a_criterion_that_orders_like_the_oracle_has_no_regret() -> None:
    members = hand_made()
    members["min val/neg_elbo"] = members["val/agreement at min val/neg_elbo"] = np.nan
    members = members.assign(**{"min val/neg_elbo": -members["max val/mcc"]})
    members["test/mcc at min val/neg_elbo"] = members["test/mcc at max val/mcc"]
    table = choices(members, TRIALS, ["model.gamma"])
    assert (table["regret by val/neg_elbo"] == 0).all()


def test_points_with_other_data_are_no_rivals() -> None:
    points = TRIALS.rename(columns={"model.gamma": "data.dim"})
    table = choices(hand_made(), points, ["data.dim"])
    assert set(table["choice"]) == {"a member of a point"}
    assert table["data"].tolist() == ["dim=10", "dim=100"]


def test_members_with_mixings_of_their_own_are_no_rivals() -> None:
    worlds = hand_made().assign(**{"data.seed": [1, 2, 3, 1, 2, 3]})
    table = choices(worlds, TRIALS, ["model.gamma"])
    assert table.groupby("choice")["among"].unique().map(list).to_dict() == {
        "a point": [2],
        "a member of any point": [2],  # one of each gamma, in each of the worlds 1 and 2; that of world 3 diverged
    }


def test_without_sources_or_rivals_there_is_nothing_to_say() -> None:
    lone = hand_made().iloc[:1]
    assert not len(choices(lone, TRIALS, ["model.gamma"]))
    blind = hand_made().drop(columns=["max val/mcc", "test/mcc at max val/mcc"])
    assert not len(choices(blind, TRIALS, ["model.gamma"]))
    assert selection_metrics(choices(blind, TRIALS, ["model.gamma"])) == {}


def test_a_single_seed_has_no_agreement_to_choose_by() -> None:
    members = hand_made().drop(columns="val/agreement at min val/neg_elbo")
    table = choices(members, TRIALS, ["model.gamma"])
    assert "MCC by val/agreement" not in table
    assert "regret/neg_elbo/a point" in selection_metrics(table)


def test_the_table_has_every_kind_of_choice_in_80_columns() -> None:
    output = console()
    output.print(selection_table(choices(hand_made(), TRIALS, ["model.gamma"])))
    text = text_of(output)
    assert max(map(len, text.splitlines())) <= 80
    assert all(choice in text for choice in CHOICES)


def regrets(neg_elbo: list[float], agreement: list[float]) -> pd.DataFrame:
    """Choices of one kind."""
    return pd.DataFrame({"regret by val/neg_elbo": neg_elbo, "regret by val/agreement": agreement})


def test_a_criterion_is_advised_from_enough_choices_and_if_its_worst_one_is_better_too() -> None:
    small, large = [0.01] * 9 + [0.05], [0.03] * 9 + [0.08]
    assert preferred(regrets(small, large)) == "val/neg_elbo"
    assert preferred(regrets(large, small)) == "val/agreement"
    assert preferred(regrets(small[1:], large[1:])) is None  # nine choices
    assert preferred(regrets([*small[1:], 0.29], large)) is None  # better in the median, worse at worst
    assert preferred(regrets(small, small)) is None
    assert preferred(regrets(small, [value + 0.005 for value in small])) is None
    assert preferred(regrets(small, [np.nan] * 10)) is None  # a single seed has no agreement
