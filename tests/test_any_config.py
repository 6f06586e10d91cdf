"""Whatever a person writes is refused with a message, or trains: of all settings any combination, of all spaces any."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imavae.config.settings import Objective, StudyConfig, base_of, run_config, study_config, with_values
from imavae.errors import UserError
from imavae.runs.records import trial_record
from imavae.runs.session import Session
from imavae.search import space
from imavae.search.space import check

some = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
MIXINGS = [
    {"name": "moebius"},
    {"name": "moebius", "linear": "unit_determinant"},
    {"name": "moebius", "linear": "cosine", "cosine": 0.5},
    {"name": "moebius", "matrix": [[1.0, 0.0], [0.0, 1.0]], "centre": [1.0, 2.0]},
    {"name": "moebius", "automorphism": {"angle": 30.0}},
    {"name": "mlp"},
    {"name": "mlp", "weights": "triangular"},
    {"name": "mlp", "activation": "leaky_tanh", "gain": 4.0},
    {"name": "polar"},
    {"name": "linear"},
    {"name": "flow"},
    {"name": "ar_flow"},
]
SOURCES = [*({"name": name} for name in ("uniform", "gaussian", "laplace", "beta")), {"name": "beta", "alpha": 0.5}]
PRIORS = [
    *({"name": name} for name in ("uniform", "gaussian", "laplace", "beta")),
    *({"name": name, "parameters": "learned"} for name in ("gaussian", "beta")),
    *({"name": name, "parameters": "conditional"} for name in ("gaussian", "laplace")),
]
WRONG: dict[tuple[str, str], list[Any]] = {  # part and setting: values
    ("data", "dim"): [0, "two", None],
    ("data", "n_obs"): [0, 3, -1.0],
    ("data", "observed"): [1, "many"],
    ("data", "mixing"): [
        {"name": "unknown"},
        {"name": 3},
        [],
        {"name": "mlp", "automorphism": {"angle": 1, "plane": [1, 9]}},
        {"name": "mlp", "cosine": 0.5},
    ],
    ("data", "source"): [{"name": "cauchy"}, {"name": "gaussian", "scale": 0.0}],
    ("data", "variances"): [[0.0, 0.5], [1.0], "much"],
    ("data", "train"): [0.0, 1.0, float("nan")],
    ("model", "dim"): [0, 1.5],
    ("model", "gamma"): [0.0, -1.0, float("inf"), float("nan"), None, [1.0]],
    ("model", "beta"): [-1.0, "much"],
    ("model", "ima_weight"): [-1.0, float("inf")],
    ("model", "n_layers"): [0, 2.5],
    ("model", "slope"): [1.5, -1.0],
    ("model", "prior"): [{"name": "none"}, {"name": "uniform", "parameters": "learned"}, "beta"],
    ("model", "decoder"): [True, "moebius"],
    ("model", "width"): [3],
    ("training", "learning_rate"): [0.0, -1.0, float("nan")],
    ("training", "batch_size"): [0, -64],
    ("training", "dtype"): ["float16", 64],
    ("training", "max_epochs"): [0, 1.5],
    ("training", "beta_schedule"): [{"shape": "square"}, {"shape": "linear", "until": 10**6}, "linear"],
    ("training", "init"): ["nowhere.pt", 3],
    ("members", "seed"): [[], [1, 1], [-1], 1],
    ("members", "data"): [{"seed": []}, {"seed": [1, 1]}, {"sed": [1]}],
}


def maybe(**keys: Any) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with any of these keys, each with one of its values."""
    return st.fixed_dictionaries({}, optional={key: _values(values) for key, values in keys.items()})


def _values(values: Any) -> st.SearchStrategy[Any]:
    return values if isinstance(values, st.SearchStrategy) else st.sampled_from(values)


RIGHT = maybe(
    data=maybe(
        dim=[2, 3, 4],
        observed=[None, 3, 9],
        n_obs=[700, 640],
        seed=[0, 1],
        train=[0.5, 0.7],
        n_segments=[1, 3, 50],
        mixing=MIXINGS,
        source=SOURCES,
    ),
    model=maybe(
        dim=[None, 1, 2, 5],
        gamma=[0.1, 10.0, 1e4],
        precision=["fixed", "learned", "mle"],
        ima_weight=[0.0, 0.5],
        beta=[0.5, 1.0, 4.0],
        kl=["sampled", "analytic"],
        posterior=["diagonal", "full"],
        decoder=["learned", "mixing"],
        n_layers=[1, 2, 3],
        hidden_factor=[1, 3],
        activation=["leaky_relu", "tanh", "silu", "softplus"],
        slope=[0.0, 0.2, 1.0],
        prior=PRIORS,
        encoder=maybe(n_layers=[1, 3, None], hidden_factor=[1, 4]),
    ),
    training=maybe(
        max_epochs=[1, 2],
        batch_size=[1, 64, 500],
        learning_rate=[1e-3, 0.9],
        schedule=["constant", "cosine"],
        validate_every=[1, 2, 5],
        patience=[1, 5],
        dtype=["float32", "float64"],
    ),
    members=maybe(seed=[[1], [1, 2]], data=maybe(seed=[None, [1, 2]])),
)
BROKEN = st.sampled_from([(*place, value) for place, values in WRONG.items() for value in values])


def broken(mapping: dict[str, Any], wrong: tuple[str, str, Any]) -> dict[str, Any]:
    """The mapping with one setting that can't be."""
    part, key, value = wrong
    return {**mapping, part: {**mapping.get(part, {}), key: value}}


def small(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping, with few observations and epochs where it says nothing of them."""
    few = {"data": {"n_obs": 640}, "training": {"max_epochs": 1, "batch_size": 250}}
    return {**mapping, **{part: {**values, **mapping.get(part, {})} for part, values in few.items()}}


def train(config: Any) -> None:
    """To its end, with all that is reported of it."""
    session = Session.start([config], torch.device("cpu"))
    for _ in session.train():
        pass
    record = trial_record(session, 0, 0, {}, [Objective()])
    assert len(record.members) == config.members.count
    assert {row["status"] for row in record.members} <= {"finished", "stopped", "diverged"}


def refused(error: UserError) -> None:
    """One message: the value, the rule and the remedy."""
    message = str(error)
    assert len(message) > 20
    assert "Traceback" not in message


@some
@given(RIGHT)
def test_any_settings_are_refused_or_train(mapping: dict[str, Any]) -> None:
    try:
        train(run_config(small(mapping)))
    except UserError as error:
        refused(error)


@some
@given(RIGHT, BROKEN)
def test_with_one_that_cannot_be_they_are_refused(mapping: dict[str, Any], wrong: tuple[str, str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        run_config(broken(small(mapping), wrong))
    refused(caught.value)


GAMMA = {"type": "float", "low": 1.0, "high": 100.0, "log": True}
CHOICE = {"type": "choice", "values": [1.0, 10.0]}
DEEP = {"model": {"n_layers": {"at_least": 3}}}
SPACE = maybe(
    model=maybe(
        gamma=[GAMMA, CHOICE, 3.0, {**GAMMA, "when": DEEP}],
        n_layers=[{"type": "int", "low": 2, "high": 4}, {"type": "choice", "values": [2, 3]}, 3],
        dim=[{"type": "int", "low": 1, "high": 4}],
        hidden_factor=[
            {"type": "int", "low": 1, "high": 8, "log": True},
            {"type": "int", "low": 1, "high": 3, "when": DEEP},
        ],
        activation=[{"type": "choice", "values": ["tanh", "silu"]}, "softplus"],
    ),
    training=maybe(learning_rate=[{"type": "float", "low": 1e-4, "high": 1e-1, "log": True}]),
    data=maybe(dim=[{"type": "choice", "values": [2, 3]}], seed=[{"type": "int", "low": 0, "high": 3}]),
)
ODD = st.sampled_from([-1.0, 0.0, 0.5, 3, "many", None, True])
ODD_LEAF = st.one_of(
    ODD,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["float", "int", "choice", "normal"])},
        optional={
            "low": ODD,
            "high": ODD,
            "log": st.booleans(),
            "values": st.sampled_from([[], [1], [[1]], "abc"]),
            "when": st.sampled_from([DEEP, {"a": 1}, {}, 3]),
        },
    ),
)
ODD_SPACE = st.dictionaries(
    st.sampled_from(["model", "training"]),
    st.dictionaries(st.sampled_from(["gamma", "n_layers", "learning_rate", "width"]), ODD_LEAF, max_size=2),
)
STUDY = st.fixed_dictionaries(
    {"search": SPACE},
    optional={
        "sampler": maybe(name=["tpe", "cmaes", "qmc", "random", "grid"], pack=[None, 2], start_from=[[{}], [3], []]),
        "scheduler": maybe(name=["asha", "median", "none", "pbt"]),
        "budget": maybe(trials=[None, 2]),
        "objective": maybe(metric=["val/mcc", "val/neg_elbo", "test/mcc"], aggregate=["median", "min"]),
    },
)


def points_of(config: StudyConfig) -> list[space.Point]:
    """The first two points of a study, as its sampler or grid would have them."""
    parameters, points = check(config)
    study = optuna.create_study()
    asked = ({p.key: p.suggest(trial) for p in parameters} for trial in iter(study.ask, None))
    return points[:2] or list(itertools.islice(asked, 2))


@some
@given(st.one_of(STUDY, st.fixed_dictionaries({"search": ODD_SPACE, "budget": st.just({"trials": 2})})))
def test_any_space_is_refused_or_its_points_train(mapping: dict[str, Any]) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        config = study_config({**small({"members": {"seed": [1]}}), **mapping})
        for point in points_of(config):
            train(with_values(base_of(config), point))
    except UserError as error:
        refused(error)


CONDITIONAL: dict[str, Any] = {"name": "gaussian", "parameters": "conditional"}
GOOD: list[dict[str, Any]] = [
    {"data": {"mixing": {"name": "flow"}, "dim": 4}},
    {"model": {"posterior": "full"}},
    {"data": {"n_segments": 3}, "model": {"name": "flow", "prior": CONDITIONAL}},
]


@pytest.mark.parametrize("good", GOOD)
def test_good_settings_are_among_those_that_train(good: dict[str, Any]) -> None:
    """The two tests above would hold of a program that refuses everything."""
    train(run_config(small(good)))
