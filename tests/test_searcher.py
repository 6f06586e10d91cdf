"""The searcher and Optuna's study: packs, conditions, start points, several objectives, resuming."""

from __future__ import annotations

import dataclasses
import math
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from imavae.config.settings import StudyConfig, study_config
from imavae.errors import UserError
from imavae.runs.folder import RunFolder, Stored, create
from imavae.search import space, stored
from imavae.search.searcher import Searcher
from imavae.search.space import Point
from imavae.search.stored import open_study
from imavae.search.worker import write_stops
from imavae.tracking import TrialRecord

STORAGES: dict[str, InMemoryStorage] = {}  # by output folder
GAMMA = {"type": "float", "low": 1.0, "high": 256.0, "log": True}
LAYERS = {"type": "int", "low": 2, "high": 5}
RATE = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
FACTOR = {"type": "int", "low": 5, "high": 40, "log": True, "when": {"model": {"n_layers": {"at_least": 3}}}}
SPACE: dict[str, Any] = {
    "model": {"gamma": GAMMA, "n_layers": LAYERS, "hidden_factor": FACTOR},
    "training": {"learning_rate": RATE},
}


def config(tmp_path: Path, search: dict[str, Any], trials: int = 12, **other: Any) -> StudyConfig:
    return study_config({"output_dir": str(tmp_path), "search": search, "budget": {"trials": trials}, **other})


def started(settings: StudyConfig, name: str = "tiny", resume: bool = False) -> tuple[Searcher, optuna.Study]:
    """A searcher of a new study as the driver makes it, or of what an earlier one has left."""
    parameters, points = space.check(settings)
    if not resume:
        STORAGES[settings.output_dir] = InMemoryStorage()
    storage = STORAGES[settings.output_dir]
    found = open_study(storage, name, settings.objectives)
    home = create(settings, "studies", name)
    if resume:
        return Searcher(found, storage, parameters, settings, [], home), found
    for point in points:
        found.enqueue_trial(dict(point))
    packs = space.packs_of(settings, parameters, points, 1)
    return Searcher(found, storage, parameters, settings, packs, home), found


def trained(searcher: Searcher, count: int = 1000) -> list[list[tuple[int, Point]]]:
    """The points of the next trials, one after the other; a point's score is the sine of its number."""
    packs: list[list[tuple[int, Point]]] = []
    for _ in range(count):
        suggested = searcher.suggest(f"trial-{len(packs)}")
        if suggested == Searcher.FINISHED:
            break
        packs.append([(number, values) for number, values in suggested["points"]])
        searcher.on_trial_complete(f"trial-{len(packs) - 1}", {"scores": [[math.sin(n)] for n, _ in packs[-1]]})
    return packs


def test_optuna_has_each_points_curve_up_to_its_end_and_what_is_told_about_it(tmp_path: Path) -> None:
    searcher, found = started(config(tmp_path, SPACE, 3, sampler={"pack": 3}))
    searcher.suggest("a")
    file = RunFolder(tmp_path / "studies" / "tiny").stop_file(0)
    about = [{"val/mcc/q25": 0.1 * n} for n in range(3)]
    for epoch, alive in ((10, [2, 2, 2]), (20, [2, 2, 0]), (30, [0, 0, 0])):
        if epoch == 20:
            write_stops(file, {1: 20})
        result = {"epoch": epoch, "scores": [[n + epoch / 100] for n in range(3)], "alive": alive, "about": about}
        searcher.on_trial_result("a", result)
    searcher.on_trial_complete("a", {**result, "scores": [[0.3], [1.2], [2.2]]})
    curves = [list(trial.intermediate_values) for trial in found.trials]
    assert curves == [[10, 20, 30], [10, 20], [10, 20]]
    assert [trial.value for trial in found.trials] == [0.3, 1.2, 2.2]
    for trial, told in zip(found.trials, about, strict=True):
        assert trial.user_attrs == {**told, "folder": str(tmp_path / "studies" / "tiny")}


@pytest.mark.parametrize("name", ["tpe", "qmc", "random"])
def test_a_pack_shares_its_architecture_and_spends_the_budget_to_the_point(tmp_path: Path, name: str) -> None:
    searcher, found = started(config(tmp_path, SPACE, 11, sampler={"name": name, "startup": 3, "pack": 4}))
    packs = trained(searcher)
    assert [[number for number, _ in pack] for pack in packs] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    for pack in packs:
        assert len({(v["model.n_layers"], v.get("model.hidden_factor")) for _, v in pack}) == 1
        assert (
            len({v["model.gamma"] for _, v in pack}) == len({v["training.learning_rate"] for _, v in pack}) == len(pack)
        )
    points = {number: values for pack in packs for number, values in pack}
    assert {trial.number: trial.params for trial in found.trials} == points
    assert [trial.value for trial in found.trials] == [math.sin(n) for n in range(11)]


@pytest.mark.parametrize("name", ["tpe", "qmc", "random"])
def test_a_point_has_a_conditional_setting_exactly_where_its_condition_holds(tmp_path: Path, name: str) -> None:
    searcher, _ = started(config(tmp_path, SPACE, 24, sampler={"name": name, "startup": 3}))
    points = [values for [(_, values)] in trained(searcher)]
    deep = [values["model.n_layers"] >= 3 for values in points]  # type: ignore[operator]
    assert ["model.hidden_factor" in values for values in points] == deep
    assert set(deep) == {True, False}


@pytest.mark.parametrize("name", ["tpe", "cmaes", "qmc", "random"])
@pytest.mark.parametrize("pack", [1, 3])
def test_a_study_that_was_broken_off_goes_on_as_if_it_had_not_been(tmp_path: Path, name: str, pack: int) -> None:
    search = {"model": {"gamma": GAMMA, "n_layers": LAYERS}}
    settings = config(tmp_path, search, 9, sampler={"name": name, "startup": 3, "pack": pack})
    whole = trained(started(settings, "whole")[0])
    before = trained(started(settings, "broken")[0], 6 // pack)
    after = trained(started(settings, "broken", resume=True)[0])
    assert before + after == whole


def test_what_an_earlier_driver_was_training_is_trained_again_as_it_was(tmp_path: Path) -> None:
    settings = config(tmp_path, SPACE, 6, sampler={"pack": 3})
    first, found = started(settings)
    points = first.suggest("a")
    storage, home = STORAGES[str(tmp_path)], create(settings, "studies", "tiny")
    second = Searcher(found, storage, space.check(settings)[0], settings, [[0, 1, 2]], home)
    assert second.suggest("b") == points
    second.on_trial_complete("b", {"scores": [[0.1], [0.2], [0.3]]})
    assert [number for pack in trained(second) for number, _ in pack] == [3, 4, 5]


def test_points_end_complete_pruned_or_failed_each_with_its_own_score(tmp_path: Path) -> None:
    searcher, found = started(config(tmp_path, SPACE, 4, sampler={"pack": 3}))
    searcher.suggest("a")
    write_stops(RunFolder(tmp_path / "studies" / "tiny").stop_file(0), {1: 20})
    searcher.on_trial_complete("a", {"scores": [[0.1], [0.2], [0.3]]})
    searcher.suggest("b")
    searcher.on_trial_complete("b", None, error=True)
    ended = [(trial.state.name, trial.value, trial.last_step) for trial in found.trials]
    assert ended == [("COMPLETE", 0.1, None), ("PRUNED", 0.2, 20), ("COMPLETE", 0.3, None), ("FAIL", None, None)]


def test_optuna_knows_the_front_of_several_objectives(tmp_path: Path) -> None:
    further = [{"metric": "val/cima", "mode": "min"}]
    searcher, found = started(config(tmp_path, SPACE, 3, further_objectives=further, sampler={"pack": 3}))
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"scores": [[0.9, 0.3], [0.8, 0.4], [0.7, 0.1]]})
    assert [trial.number for trial in found.best_trials] == [0, 2]
    assert found.metric_names == ["val/mcc", "val/cima"]


def test_quasi_random_points_fall_evenly_from_the_first_one_on(tmp_path: Path) -> None:
    searcher, _ = started(config(tmp_path, {"model": {"gamma": GAMMA}}, 8, sampler={"name": "qmc"}))
    octaves = [math.floor(math.log2(values["model.gamma"])) for [(_, values)] in trained(searcher)]  # type: ignore[arg-type]
    assert sorted(octaves) == list(range(8))


KNOWN = [
    {"model": {"n_layers": 2, "gamma": 100}},
    {"model": {"gamma": 30.0}},
    {"model": {"n_layers": 2}},
    {"model": {"n_layers": 3, "hidden_factor": 9}},
]


def test_known_points_come_first_and_what_they_leave_open_is_proposed(tmp_path: Path) -> None:
    searcher, _ = started(config(tmp_path, SPACE, 8, sampler={"pack": 3, "start_from": KNOWN}))
    packs = trained(searcher)
    numbers = [[number for number, _ in pack] for pack in packs]
    assert numbers == [[0, 2], [1], [3], [4, 5, 6], [7]]  # 0 and 2 share their architecture; 1's is not known before
    points = {number: values for pack in packs for number, values in pack}
    assert points[0]["model.gamma"] == 100.0
    assert points[1]["model.gamma"] == 30.0
    assert points[3]["model.hidden_factor"] == 9
    assert all("training.learning_rate" in values for values in points.values())


def test_an_earlier_studys_best_points_come_first(tmp_path: Path) -> None:
    """As far as the new space allows their settings; a setting that was not searched then has the value it had."""
    other = {"model": {"n_layers": 2}, "training": {"learning_rate": 0.005}}
    home = create(config(tmp_path, {"model": {"gamma": GAMMA}}, 9, **other), "studies", "tiny")
    gammas = [float(2**number) for number in range(9)]
    for number, gamma in enumerate(gammas):
        record = TrialRecord(number, {"model.gamma": gamma}, "finished", math.sin(number), [], [{"seed": 1}])
        home.save(Stored(record, "checkpoints/ensemble-000.pt", 0))
    folder = home.path
    best = sorted(range(9), key=lambda n: -math.sin(n))[:5]
    search = {**SPACE, "model": {**SPACE["model"], "n_layers": {"type": "int", "low": 3, "high": 4}}}
    settings = config(tmp_path, search, 20, sampler={"start_from": str(folder)})
    _, points = space.check(settings)
    assert [point["model.gamma"] for point in points] == [gammas[n] for n in best]
    assert {point["training.learning_rate"] for point in points} == {0.005}
    assert not any("model.n_layers" in point for point in points)  # 2 is not allowed any more


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"sampler": {"start_from": [{"model": {"beta": 2.0}}]}}, "sampler.start_from"),
        ({"sampler": {"start_from": [{"model": {"gamma": 1e4}}]}}, "search.model.gamma"),
        ({"sampler": {"start_from": [{"model": {"n_layers": 2.5}}]}}, "search.model.n_layers"),
        ({"sampler": {"start_from": KNOWN}, "budget": {"trials": 3}}, "budget.trials"),
        ({"sampler": {"start_from": "outputs/studies/none"}}, "sampler.start_from"),
        ({"sampler": {"name": "cmaes"}}, "sampler.name=cmaes"),
        ({"sampler": {"pack": 2}, "search": {"model": {"n_layers": LAYERS}}}, "sampler.pack"),
        (
            {"sampler": {"pack": 2}, "search": {"model": {
                "gamma": GAMMA, "n_layers": {**LAYERS, "when": {"model": {"gamma": {"at_least": 9.0}}}}}}},
            "model.n_layers when model.gamma",
        ),
        (
            {"sampler": {"name": "cmaes"}, "search": {"model": {"gamma": GAMMA}},
             "further_objectives": [{"metric": "val/cima", "mode": "min"}]},
            "sampler.name",
        ),
        (
            {"scheduler": {"name": "asha"}, "further_objectives": [{"metric": "val/cima", "mode": "min"}]},
            "scheduler.name",
        ),
        ({"further_objectives": [{"metric": "val/mcc"}]}, "val/mcc"),
        ({"further_objectives": [{"metric": "val/cima"}]}, "val/cima"),
    ],
)  # fmt: skip
def test_a_wrong_search_is_refused_before_anything_starts(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        space.check(study_config({"output_dir": str(tmp_path), "search": SPACE, "budget": {"trials": 9}, **other}))
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_grid_does_not_start_from_points(tmp_path: Path) -> None:
    search = {"model": {"n_layers": {"type": "choice", "values": [2, 3]}}}
    with pytest.raises(UserError, match=r"sampler\.start_from"):
        space.check(config(tmp_path, search, sampler={"name": "grid", "start_from": [{"model": {"n_layers": 2}}]}))


def locked(database: Path) -> sqlite3.Connection:
    """A connection of another program that keeps everyone from writing."""
    other = sqlite3.connect(database, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    return other


def in_database(folder: Path) -> list[FrozenTrial]:
    """The trials of the study's copy."""
    trials: list[FrozenTrial] = optuna.load_study(study_name="tiny", storage=stored.open_storage(folder)).trials
    return trials


def told(trials: Sequence[FrozenTrial]) -> list[tuple[object, ...]]:
    return [(t.number, t.state, t.values, t.params, t.intermediate_values, t.user_attrs) for t in trials]


@pytest.mark.parametrize("period", [1, 3])
def test_the_copy_has_what_optuna_knows_however_often_it_is_updated(tmp_path: Path, period: int) -> None:
    settings = config(tmp_path, {"model": {"gamma": GAMMA}}, 6, sampler={"start_from": [{"model": {"gamma": 8.0}}]})
    searcher, study = started(settings)
    copy = stored.Copy(settings, tmp_path / "studies" / "tiny", 1.0)
    for step in range(6):
        searcher.suggest(f"{step}")
        for epoch in (1, 2):
            result = {"epoch": epoch, "scores": [[step + epoch / 10]], "alive": [2 - epoch], "about": [{"q": 0.5}]}
            if step % period == 0:
                copy.update(study)
            searcher.on_trial_result(f"{step}", result)
        searcher.on_trial_complete(f"{step}", None if step == 4 else result, error=step == 4)
    copy.update(study)
    assert copy.problem == ""
    assert told(in_database(tmp_path)) == told(study.trials)


def test_a_copy_can_be_gone_on_from_whatever_ended_between_two_updates(tmp_path: Path) -> None:
    known = [{"model": {"gamma": float(2**n)}} for n in range(5)]
    settings = config(tmp_path, {"model": {"gamma": GAMMA}}, 8, sampler={"start_from": known})
    searcher, study = started(settings)
    copy = stored.Copy(settings, tmp_path / "studies" / "tiny", 1.0)
    copy.update(study)  # all of them wait
    trained(searcher, 7)
    copy.update(study)
    resumed = dataclasses.replace(settings, resume=True)
    again = optuna.create_study()
    again.add_trials(stored.Copy(resumed, tmp_path / "studies" / "tiny", 1.0).trials())
    assert told(again.trials) == told(study.trials)
    assert stored.Copy(resumed, tmp_path / "studies" / "tiny", 2.0).trials() == []  # of a folder that is gone


def test_a_copy_behind_the_folder_is_brought_level(tmp_path: Path) -> None:
    settings = config(tmp_path, {"model": {"gamma": GAMMA, "n_layers": LAYERS}}, 8)
    parameters = space.check(settings)[0]
    laws = {parameter.key: parameter.distribution() for parameter in parameters}
    values = [{"model.gamma": 2.0**n, "model.n_layers": 3} for n in range(5)]

    def trial(number: int, state: TrialState, *keys: str) -> FrozenTrial:
        params = {key: values[number][key] for key in keys}
        value = 0.5 if state == TrialState.COMPLETE else None
        made = create_trial(state=state, value=value, params=params, distributions={key: laws[key] for key in keys})
        made.number = number
        return made

    earlier = [
        trial(0, TrialState.RUNNING, *laws),  # recorded since
        trial(1, TrialState.RUNNING, "model.gamma"),  # copied while it was proposed
        trial(2, TrialState.FAIL, *laws),  # to be trained again
        trial(3, TrialState.RUNNING, *laws),  # a start point that left a setting open
        trial(4, TrialState.COMPLETE, *laws),  # told, but not recorded
    ]
    record = TrialRecord(0, values[0], "finished", 0.9, [], [{"epochs": 3}])
    asked: list[list[Any]] = [[[number, dict(values[number])] for number in range(1, 5)]]
    del asked[0][2][1]["model.n_layers"]
    home = Mock(asked=asked, notices=[])
    ledger = Mock(home=home, records=[record], folder=tmp_path / "tiny")
    found = stored.remembered(settings, InMemoryStorage(), parameters, [], ledger, earlier).trials
    assert [one.state.name for one in found] == ["COMPLETE", "WAITING", "WAITING", "RUNNING", "COMPLETE"]
    assert found[0].value == 0.9
    assert [found[n].system_attrs["fixed_params"] for n in (1, 2)] == values[1:3]
    assert found[3].params == values[3]
    assert home.notices == []


@pytest.mark.parametrize("fault", ["objectives", "lock"])
def test_a_database_that_can_not_be_used_is_one_message(tmp_path: Path, fault: str) -> None:
    settings = config(tmp_path, {"model": {"gamma": GAMMA}}, 2)
    further = config(
        tmp_path, {"model": {"gamma": GAMMA}}, 2, further_objectives=[{"metric": "val/cima", "mode": "min"}]
    )
    _, study = started(settings)
    stored.Copy(settings, tmp_path / "studies" / "tiny", 1.0).update(study)
    if fault == "lock":
        (tmp_path / ".optuna.db.lock").unlink(missing_ok=True)
        (tmp_path / ".optuna.db.lock").mkdir()
    _, other = started(further)
    copy = stored.Copy(further, tmp_path / "studies" / "tiny", 2.0)
    copy.update(other)
    assert ("optuna.db lacks" in copy.problem) == (fault == "lock")  # the study of other objectives is replaced


def test_the_copy_of_a_study_whose_folder_is_gone_is_replaced(tmp_path: Path) -> None:
    for trials in (4, 2):
        settings = config(tmp_path, {"model": {"gamma": GAMMA}}, trials, sampler={"seed": trials})
        searcher, study = started(settings)
        trained(searcher)
        stored.Copy(settings, tmp_path / "studies" / "tiny", 1.0).update(study)
        assert told(in_database(tmp_path)) == told(study.trials)


def test_a_locked_database_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "WRITE_TIMEOUT", 0.05)
    settings = config(tmp_path, {"model": {"gamma": GAMMA}}, trials=3)
    searcher, study = started(settings)
    copy = stored.Copy(settings, tmp_path / "studies" / "tiny", 1.0)
    copy.update(study)
    trained(searcher)
    other = locked(tmp_path / "optuna.db")
    threading.Timer(0.5, other.rollback).start()
    copy.update(study)
    assert told(in_database(tmp_path)) == told(study.trials)


def test_a_database_that_stays_locked_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "WRITE_TIMEOUT", 0.05)
    monkeypatch.setattr(stored, "LONGEST_LOCK", 0.2)
    settings = config(tmp_path, {"model": {"gamma": GAMMA}})
    searcher, study = started(settings)
    copy = stored.Copy(settings, tmp_path / "studies" / "tiny", 1.0)
    copy.update(study)
    trained(searcher)
    other = locked(tmp_path / "optuna.db")
    copy.update(study)
    assert "optuna.db can be written within 0.2 s" in copy.problem
    other.rollback()


def test_a_database_of_an_earlier_version_that_is_locked_when_it_is_opened_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "WRITE_TIMEOUT", 0.05)
    optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/optuna.db")  # without a write-ahead log
    other = sqlite3.connect(tmp_path / "optuna.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.5, other.rollback).start()
    stored.open_storage(tmp_path)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(stored, "LONGEST_LOCK", 0.2)
    with pytest.raises(UserError, match=r"optuna\.db can be written within 0\.2 s"):
        stored.open_storage(tmp_path)
    other.rollback()
