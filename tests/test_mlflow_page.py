"""Laws of how a study looks on MLflow's page; tests/test_browser.py looks at it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from imavae.config.settings import Tracking
from imavae.tracking import page as mlflow_page
from imavae.tracking.mlflow import MLflowTracker, open_tracker
from imavae.tracking.page import NOTE, VIEW, note, opens, view

SEARCH = {"model": {"gamma": {"type": "float"}, "prior": {"name": "uniform"}}, "training": {"beta": {"type": "float"}}}
OBJECTIVE = {"metric": "val/neg_elbo", "mode": "min", "aggregate": "mean"}
MEMBERS = {"seed": [1, 2, 3], "data": {"seed": [7, 8]}}
STUDY = {"search": SEARCH, "objective": OBJECTIVE, "members": MEMBERS}
LIST = "/#/experiments?workflowType=machine_learning"


def test_the_columns_are_scores_and_what_is_searched() -> None:
    columns = json.loads(view(STUDY))["selectedColumns"]
    assert [c for c in columns if c.startswith("params")] == ["params.`model.gamma`", "params.`training.beta`"]
    assert {"metrics.`score`", "metrics.`max val/mcc`"} < set(columns)


def test_the_note_says_what_was_asked_and_of_how_many_members() -> None:
    text = note(STUDY, "grid")
    asked = "Searched: model.gamma, training.beta. The score of a trial is the mean, over its 6 members, of each one's "
    assert text.startswith(asked + "smallest val/neg_elbo.")
    assert "[grid](#/models/grid)" in text
    assert note({"members": {"seed": [1, 2]}}, "train").startswith("One point, trained with 2 members.")


def test_a_study_is_tracked_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = open_tracker(Tracking(), tmp_path, "paper/grid")
    assert isinstance(tracker, MLflowTracker)
    tracker.start("grid", STUDY, {})
    client = tracker._client
    experiment = client.get_experiment_by_name("paper/grid")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.data.tags[NOTE] == note(STUDY, "paper-grid")
    assert experiment.tags[VIEW] == view(STUDY)


@pytest.mark.parametrize(
    ("tags", "runs", "path"),
    [
        ([{"key": VIEW}], ["3"], "/#/experiments/3/runs?workflowType=machine_learning&viewStateShareKey=trials"),
        ([], ["3"], "/#/experiments/3/runs?workflowType=machine_learning"),  # of an older version
        ([], [], LIST),
    ],
)
def test_the_page_opens_on_the_newest_study(
    tags: list[Any], runs: list[str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_: str, key: str, question: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        if key == "experiments":
            return [{"experiment_id": "0"}, {"experiment_id": "3", "tags": tags}]
        assert question is not None
        assert question["experiment_ids"] == ["0", "3"]
        return [{"info": {"experiment_id": number}} for number in runs]

    monkeypatch.setattr(mlflow_page, "_ask", answer)
    assert opens("http://127.0.0.1:5000") == path


def test_a_server_that_says_nothing_is_opened_on_its_list() -> None:
    assert opens("http://127.0.0.1:9") == LIST
