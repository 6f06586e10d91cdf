"""What a sampler is worth: how near it comes to the best point of a response that is known."""

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

SEARCH: dict[str, Any] = {
    "model": {"gamma": {"type": "float", "low": 0.3, "high": 3e4, "log": True}},
    "training": {"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}},
}


def scores(settings: Sampler, response: Callable[[space.Point], float]) -> Iterator[float]:
    """The scores of the points that a sampler proposes, one after the other, for ever."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parameters = space.parse(study_config({"search": SEARCH, "budget": {"trials": 1}}))
    study = optuna.create_study(direction="maximize")
    for number in itertools.count():
        study.sampler = sampler_for(settings, parameters, number)
        trial = study.ask()
        score = response({parameter.key: parameter.suggest(trial) for parameter in parameters})
        study.tell(trial, score)
        yield score


@pytest.mark.parametrize("seed", range(3))
def test_cmaes_closes_in_on_the_best_point(seed: int) -> None:
    def minus_distance(point: space.Point) -> float:
        gamma, rate = (math.log10(float(point[key])) for key in ("model.gamma", "training.learning_rate"))
        return -math.hypot(gamma - 3, rate + 2)

    late = {
        name: np.median(list(itertools.islice(scores(Sampler(name=name, seed=seed), minus_distance), 48, 60)))
        for name in ("cmaes", "random")
    }
    assert late["cmaes"] > 0.5 * late["random"]  # both below 0
