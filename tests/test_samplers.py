"""What a sampler is worth: trials until it has found the best of a response that was measured beforehand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optuna
import pytest

from imavae.config import Sampler, study_config
from imavae.search import space
from imavae.search.samplers import sampler_for
from tests.response import AXES, Response

REPEATS = 20
MOST = 400  # trials
SEARCH: dict[str, Any] = {
    "model": {
        "gamma": {"type": "float", "low": min(AXES["model.gamma"]), "high": max(AXES["model.gamma"]), "log": True},
        "hidden_factor": {"type": "int", "low": 5, "high": 20, "log": True},
        "n_layers": {"type": "int", "low": 2, "high": 3},
    },
    "training": {"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}},
}


def scores(settings: Sampler, search: dict[str, Any], response: Callable[[space.Point], float]) -> Iterator[float]:
    """The scores of the points that a sampler proposes, one after the other, for ever."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parameters = space.parse(study_config({"search": search, "budget": {"trials": 1}}))
    study = optuna.create_study(direction="maximize")
    for number in itertools.count():
        study.sampler = sampler_for(settings, parameters, number)
        trial = study.ask()
        score = response({parameter.key: parameter.suggest(trial) for parameter in parameters})
        study.tell(trial, score)
        yield score


def trials_needed(settings: Sampler, response: Response) -> int:
    """The number of the first trial, from 1, whose score is 99 % of the best there is."""
    for number, score in enumerate(scores(settings, SEARCH, response), start=1):
        if score >= 0.99 * response.best or number == MOST:
            return number
    raise AssertionError("there is always another trial")


def test_tpe_finds_the_best_in_half_the_trials_that_random_search_needs() -> None:
    response = Response()
    needed = {
        name: sorted(trials_needed(Sampler(name=name, seed=seed), response) for seed in range(REPEATS))
        for name in ("tpe", "random")
    }
    median = {name: (counts[REPEATS // 2 - 1] + counts[REPEATS // 2]) / 2 for name, counts in needed.items()}
    assert median["tpe"] <= 0.5 * median["random"], needed


@pytest.mark.parametrize("seed", range(3))
def test_cmaes_closes_in_on_the_best_point(seed: int) -> None:
    search = {"model": {"gamma": SEARCH["model"]["gamma"]}, "training": SEARCH["training"]}

    def minus_distance(point: space.Point) -> float:
        gamma, rate = (math.log10(float(point[key])) for key in ("model.gamma", "training.learning_rate"))
        return -math.hypot(gamma - 3, rate + 2)

    late = {
        name: np.median(list(itertools.islice(scores(Sampler(name=name, seed=seed), search, minus_distance), 48, 60)))
        for name in ("cmaes", "random")
    }
    assert late["cmaes"] > 0.5 * late["random"]  # both below 0
