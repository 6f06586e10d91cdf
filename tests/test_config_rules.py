"""Every rule about a value, broken once: the message says which value, which rule and what to do."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest

from imavae.config.mapping import build, to_mapping
from imavae.config.settings import EvaluateConfig, RunConfig, run_config, study_config
from imavae.errors import UserError
from imavae.search.space import check

evaluated = functools.partial(build, EvaluateConfig)
GAUSSIAN = {"data": {"source": {"name": "gaussian"}, "mixing": {"name": "mlp"}}}
CONDITIONAL = {"prior": {"name": "gaussian", "parameters": "conditional"}}
SEARCH = {"model": {"gamma": {"type": "float", "low": 3.0, "high": 300.0, "log": True}}}
UNBOUNDED = {**GAUSSIAN, "model": {"prior": {"name": "uniform", "low": -1.0, "high": 1.0}}}

# Of run_config: what is wrong, and what the message must hold.
BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "precision": ({"model": {"precision": "mel"}}, ["`model.precision`", "'fixed', 'learned' or 'mle'", "'mel'"]),
    "kl": ({"model": {"kl": "exact"}}, ["`model.kl`", "'sampled' or 'analytic'", "'exact'"]),
    "posterior": ({"model": {"posterior": "low-rank"}}, ["`model.posterior`", "'diagonal' or 'full'", "'low-rank'"]),
    "decoder": ({"model": {"decoder": True}}, ["`model.decoder`", "'learned' or 'mixing'", "True"]),
    "activation": ({"model": {"activation": "relu"}}, ["`model.activation`", "'leaky_relu', 'tanh'", "'relu'"]),
    "network": ({"model": {"name": "mpl"}}, ["`model.name`", "must be one of", "'mpl'", "mean mlp?"]),
    "code": ({"model": {"_target_": "os.system"}}, ["`model._target_` is not a setting"]),
    "code of a variant": (
        {"data": {"mixing": {"_target_": "os.system", "name": "mlp"}}},
        ["_target_", "not a setting"],
    ),
    "beta 0": ({"model": {"beta": 0.0}}, ["model.beta > 0", "got 0.0"]),
    "beta -1": ({"model": {"beta": -1.0}}, ["model.beta > 0", "got -1.0"]),
    "slope": ({"model": {"slope": 1.5}}, ["model.slope <= 1", "1.5"]),
    "encoder layers": ({"model": {"encoder": {"n_layers": 0}}}, ["model.encoder.n_layers >= 1", "got 0"]),
    "encoder width": ({"model": {"encoder": {"hidden_factor": -2}}}, ["model.encoder.hidden_factor >= 1", "got -2"]),
    "encoder key": ({"model": {"encoder": {"layers": 2}}}, ["`model.encoder.layers`", "not a setting", "n_layers"]),
    "analytic": ({"model": {"kl": "analytic"}}, ["analytic only where", "a uniform prior", "model/prior=gaussian"]),
    "analytic beta": ({"model": {"kl": "analytic", "prior": {"name": "beta"}}}, ["closed form", "a beta prior"]),
    "conditional": ({**GAUSSIAN, "model": CONDITIONAL}, ["data.n_segments > 1 for a conditional prior", "got 1"]),
    "parameters": (
        {**GAUSSIAN, "model": {"prior": {"name": "gaussian", "parameters": "free"}}},
        ["`model.prior.parameters`", "'fixed', 'learned' or 'conditional'", "'free'"],
    ),
    "prior std": ({**GAUSSIAN, "model": {"prior": {"name": "gaussian", "std": 0.0}}}, ["model.prior.std > 0"]),
    "prior scale": ({**GAUSSIAN, "model": {"prior": {"name": "laplace", "scale": -1.0}}}, ["model.prior.scale > 0"]),
    "prior alpha": ({"model": {"prior": {"name": "beta", "alpha": 0.0}}}, ["model.prior.alpha > 0"]),
    "prior support": ({"model": {"prior": {"name": "beta", "low": 0.0}}}, ["covers the source's", "[0, 0.5]", "widen"]),
    "bounded prior": (UNBOUNDED, ["covers the source's", "a uniform prior on [-1, 1]"]),
    "segments": ({"data": {"n_segments": 0}}, ["data.n_segments", "got 0"]),
    "variances reversed": ({"data": {"variances": [3.0, 0.5]}}, ["[0] <= data.variances[1]", "(3.0, 0.5)"]),
    "variance 0": ({"data": {"variances": [0.0, 0.5]}}, ["0 < data.variances[0]", "(0.0, 0.5)"]),
    "one variance": ({"data": {"variances": [0.5]}}, ["`data.variances.1` must be given"]),
    "worlds twice": ({"members": {"data": {"seed": [4, 9, 4]}}}, ["members.data.seed has no seed twice", "[4, 9, 4]"]),
    "no world": ({"members": {"data": {"seed": []}}}, ["members.data.seed has at least 1 value"]),
    "negative world": ({"members": {"data": {"seed": [-1]}}}, ["members.data.seed >= 0", "-1"]),
    "mixing of worlds": (
        {"model": {"decoder": "mixing"}, "members": {"data": {"seed": [1, 2]}}},
        ["model.decoder=mixing needs one world", "(1, 2)", "data.seed"],
    ),
    "mixing's support": (
        {"model": {"decoder": "mixing", "prior": {"name": "uniform", "low": -1.0}}},
        ["model.decoder=mixing needs a prior on the source's support", "[-1.0, 0.5]"],
    ),
    "mixing's line": (
        {"model": {"decoder": "mixing", "prior": {"name": "gaussian"}}},
        ["model.decoder=mixing needs a prior on the source's support", "inf"],
    ),
    "negative IMA weight": ({"model": {"ima_weight": -0.5}}, ["model.ima_weight >= 0", "got -0.5"]),
    "IMA weight of the mixing": (
        {"model": {"decoder": "mixing", "ima_weight": 1.0}},
        ["model.ima_weight is 0 for model.decoder=mixing", "got 1.0"],
    ),
    "automorphism of a network": (
        {"model": {"automorphism": {"angle": 30}}},
        ["model.automorphism.angle is 0 unless model.decoder=mixing", "got 30"],
    ),
    "plane of a decoder": (
        {"model": {"decoder": "mixing", "automorphism": {"angle": 30, "plane": [1, 4]}}},
        ["model.automorphism.plane is two different numbers of sources, from 1 to 3", "[1, 4]"],
    ),
    "schedule": ({"training": {"schedule": "linear"}}, ["`training.schedule`", "'constant' or 'cosine'", "'linear'"]),
    "probes": ({"training": {"probes": "perhaps"}}, ["`training.probes`", "boolean", "'perhaps'"]),
    "missing file": ({"data": {"kind": "file", "path": "x.npy"}}, ["data.path is a file", "x.npy"]),
    "source of a file": ({"data": {"kind": "file", "source": {"name": "beta"}}}, ["data.path is the path of a file"]),
    "file of another kind": ({"data": {"path": "x.npy"}}, ["data.path", "x.npy"]),
    "kind": ({"data": {"kind": "table"}}, ["data.kind", "'table'"]),
    "odd flow": ({"data": {"mixing": {"name": "flow"}}}, ["even and above 2", "got 3"]),
    "plugins": ({"plugins": "own.py"}, ["plugins is a list of paths", "'own.py'", "plugins=[FILE.py]"]),
    "missing plugin": ({"plugins": ["nowhere.py"]}, ["plugins are Python files", "nowhere.py"]),
    "plugins of another type": ({"plugins": {"a": 1}}, ["plugins is a list of paths", "plugins=[FILE.py]"]),
    "plugin of another type": ({"plugins": [3]}, ["plugins is a list of paths", "[3]"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_rule_of_a_run_is_told_once(name: str) -> None:
    wrong, parts = BAD[name]
    with pytest.raises(UserError) as error:
        run_config(merged({"data": {"n_obs": 1000}}, wrong))
    message = str(error.value)
    assert [part for part in parts if part not in message] == []
    assert message.count("\n") == 0


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(base)
    for key, value in over.items():
        inner = isinstance(value, dict) and isinstance(result.get(key), dict) and "name" not in value
        result[key] = merged(result[key], value) if inner else value
    return result


GOOD: list[dict[str, Any]] = [
    {"model": {"precision": "learned", "posterior": "full", "beta": 4.0, "activation": "tanh"}},
    {"model": {"precision": "mle", "encoder": {"n_layers": 3, "hidden_factor": 2}, "decoder": "mixing"}},
    {"model": {"decoder": "mixing", "automorphism": {"angle": -30, "plane": [3, 1]}}},
    {**GAUSSIAN, "model": {"prior": {"name": "laplace"}, "kl": "analytic", "decoder": "mixing"}},
    {"data": {"n_segments": 5, "variances": [1, 1]}, "model": {"prior": {"name": "beta", "parameters": "conditional"}}},
    {"members": {"seed": [1], "data": {"seed": [0, 1, 2]}}, "training": {"probes": True, "schedule": "cosine"}},
    {"model": {"prior": {"name": "gaussian"}}},  # the whole line covers a bounded source
]


@pytest.mark.parametrize("good", GOOD, ids=str)
def test_what_is_allowed_survives_a_round_through_plain_data(good: dict[str, Any]) -> None:
    built = run_config(good)
    assert run_config(to_mapping(built)) == built
    assert built != RunConfig()


def a_study(**over: Any) -> dict[str, Any]:
    return {"search": SEARCH, "budget": {"trials": 2}, "data": {"n_obs": 1000}, **over}


OBJECTIVES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "agreement": (
        a_study(members={"seed": [1]}, objective={"metric": "val/agreement"}),
        ["val/agreement", "seed"],
    ),
    "probes": (
        a_study(objective={"metric": "val/mig"}, training={"probes": True}),
        ["val/mig", "slow"],
    ),
    "cdf": (a_study(objective={"metric": "val/mcc_cdf"}), ["val/mcc_cdf", "uniform"]),
    "not there": (a_study(objective={"metric": "val/mmc"}), ["objective.metric", "'val/mmc'", "val/mcc"]),
    "mode": (a_study(objective={"metric": "val/mcc", "mode": "min"}), ["objective.mode of val/mcc", "'min'", "max"]),
    "no direction": (a_study(objective={"metric": "val/kl"}), ["objective.metric", "'val/kl'"]),
    "encoder layers": (
        a_study(search={"model": {"encoder": {"n_layers": {"type": "int", "low": 0, "high": 3}}}}),
        ["search.model.encoder.n_layers", "reaches 0", "model.encoder.n_layers >= 1"],
    ),
    "kl": (
        a_study(search={"model": {"kl": {"type": "choice", "values": ["sampled", "analytic"]}}}),
        ["search.model.kl", "'analytic'", "closed form"],
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_broken_rule_of_a_study_is_told_before_it_starts(name: str) -> None:
    wrong, parts = OBJECTIVES[name]
    with pytest.raises(UserError) as error:
        check(study_config(wrong))
    assert [part for part in parts if part not in str(error.value)] == []


def test_objectives_that_are_there_are_taken() -> None:
    check(study_config(a_study(objective={"metric": "val/agreement"})))
    beta = {"prior": {"name": "beta"}}
    check(study_config(a_study(objective={"metric": "val/mcc_cdf"}, model=beta)))
    check(study_config(a_study(objective={"metric": "val/gap_log_px", "mode": "min"})))


@pytest.mark.parametrize(
    ("build", "mapping", "parts"),
    [
        (evaluated, {"checkpoint": "x", "plugins": "own.py"}, ["plugins", "'own.py'"]),
        (evaluated, {"checkpoint": "x", "split": "all"}, ["split", "'train', 'val' or 'test'"]),
        (evaluated, {"checkpoint": " "}, ["checkpoint is not empty"]),
    ],
)
def test_a_broken_rule_of_an_evaluation(build: Callable[..., Any], mapping: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        build(mapping)
    assert [part for part in parts if part not in str(error.value)] == []
