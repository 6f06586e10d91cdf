"""Search spaces: what a file may contain, and how points are packed into ensembles."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from imavae.config.settings import StudyConfig, base_of, study_config, with_values
from imavae.errors import UserError
from imavae.search import space
from imavae.training.ensemble import ensemble

GAMMA = {"type": "float", "low": 3.0, "high": 1000.0, "log": True}


def config(search: dict[str, Any], **other: Any) -> StudyConfig:
    return study_config({"search": search, "budget": {"trials": 2}, **other})


def test_a_file_becomes_parameters_with_optunas_distributions() -> None:
    parsed = space.parse(
        config(
            {
                "model": {
                    "gamma": GAMMA,
                    "n_layers": {"type": "int", "low": 2, "high": 4},
                },
                "training": {
                    "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2},
                    "dtype": {"type": "choice", "values": ["float32", "float64"]},
                },
            }
        )
    )
    assert {p.key: p.distribution() for p in parsed} == {
        "model.gamma": optuna.distributions.FloatDistribution(3.0, 1000.0, log=True),
        "model.n_layers": optuna.distributions.IntDistribution(2, 4),
        "training.dtype": optuna.distributions.CategoricalDistribution(["float32", "float64"]),
        "training.learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2),
    }


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"model": {"gama": GAMMA}}, "model.gamma"),
        ({"members": {"seed": {"type": "choice", "values": [1]}}}, "search.members"),
        ({"model": {"gamma": [3.0, 30.0]}}, "search.model.gamma"),
        ({"model": {"gamma": 3.0}}, "search"),
        ({"model": {"gamma": {"type": "flaot", "low": 1.0, "high": 2.0}}}, "search.model.gamma.type"),
        ({"model": {"gamma": {**GAMMA, "step": 2}}}, "search.model.gamma"),
        ({"model": {"gamma": {"type": "float", "low": 9.0, "high": 3.0}}}, "search.model.gamma.low"),
        ({"model": {"gamma": {"type": "float", "low": 0.0, "high": 3.0, "log": True}}}, "search.model.gamma.low"),
        ({"model": {"gamma": {"type": "float", "low": 3.0}}}, "search.model.gamma.high"),
        ({"model": {"n_layers": {"type": "int", "low": 2.5, "high": 3}}}, "search.model.n_layers.low"),
        ({"model": {"gamma": {"type": "choice", "values": []}}}, "search.model.gamma.values"),
        ({"model": {"gamma": {"type": "choice"}}}, "search.model.gamma.values"),
        ({"model": {"gamma": {"type": "choice", "values": [3.0, -1.0]}}}, "-1.0"),
        ({"model": {"n_layers": {"type": "int", "low": 0, "high": 4}}}, "search.model.n_layers"),
        ({"model": {"gamma": {**GAMMA, "log": "yes"}}}, "search.model.gamma.log"),
    ],
)
def test_a_wrong_space_is_refused_with_value_rule_and_remedy(search: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        space.parse(config(search))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"objective": {"metric": "val/mccc"}}, "val/mcc"),
        ({"objective": {"metric": "val/neg_elbo", "mode": "max"}}, "val/neg_elbo"),
        ({"objective": {"metric": "val/self_consistency"}}, "objective.metric"),
        ({"budget": {"trials": None}}, "budget.trials"),
        ({"sampler": {"name": "grid"}}, "search.model.gamma.type"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_starts(other: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        space.check(config({"model": {"gamma": GAMMA}}, **other))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "mode", "reason"),
    [("val/amari", "min", "latents and sources differ"), ("val/cima", "min", "more latents than observed")],
)
def test_an_objective_that_some_points_lack_is_refused(metric: str, mode: str, reason: str) -> None:
    search = {"model": {"dim": {"type": "int", "low": 3, "high": 5}}}
    with pytest.raises(UserError, match=rf"search\.model\.dim.*reaches 5.*{reason}"):
        space.check(config(search, objective={"metric": metric, "mode": mode}))
    space.check(config(search, objective={"metric": "val/mcc"}))


def grid_config(layers: list[int]) -> StudyConfig:
    choices = {
        "n_layers": {"type": "choice", "values": layers},
        "gamma": {"type": "choice", "values": [1.0, 2.0, 3.0, 4.0, 5.0]},
    }
    return config({"model": choices}, sampler={"name": "grid"}, budget={"trials": None})


def test_a_grid_is_every_combination_in_the_files_order() -> None:
    _, points = space.check(grid_config([2, 3]))
    assert points[0] == {"model.n_layers": 2, "model.gamma": 1.0}
    assert points[-1] == {"model.n_layers": 3, "model.gamma": 5.0}
    assert len(points) == 10


@pytest.mark.parametrize(
    ("layers", "slots", "expected"),
    [
        ([2], 1, [[0, 1, 2, 3, 4]]),
        ([2], 2, [[0, 2, 4], [1, 3]]),  # dealt out: neighbours in gamma cost about the same
        ([2, 3], 2, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),  # an ensemble has one architecture
        ([2, 3], 3, [[0, 2, 4], [1, 3], [5, 7, 9], [6, 8]]),
        ([2], 9, [[0], [1], [2], [3], [4]]),
    ],
)
def test_packs_share_an_architecture_and_fill_the_slots(
    layers: list[int], slots: int, expected: list[list[int]]
) -> None:
    settings = grid_config(layers)
    _, points = space.check(settings)
    assert space.packs(base_of(settings), points, slots) == expected


def test_points_without_an_ima_weight_train_apart_from_those_with_one() -> None:
    weights = {
        "ima_weight": {"type": "choice", "values": [0.0, 0.1, 1.0]},
        "gamma": {"type": "choice", "values": [1.0]},
    }
    settings = config({"model": weights}, sampler={"name": "grid"}, budget={"trials": None})
    _, points = space.check(settings)
    packs = space.packs(base_of(settings), points, 1)
    assert packs == [[0], [1, 2]]
    for pack in packs:
        ensemble([with_values(base_of(settings), points[number]) for number in pack], "cpu")
    with pytest.raises(ValueError, match="two ensembles"):
        ensemble([with_values(base_of(settings), point) for point in points], "cpu")
