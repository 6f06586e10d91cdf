"""How points are proposed, and where they are remembered: Optuna's samplers, and its study in ``optuna.db``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna

from imavae.config import Objective, Sampler

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study

DATABASE = "optuna.db"  # below output_dir, beside MLflow's
DIRECTIONS = {"max": "maximize", "min": "minimize"}
TIMEOUT = 60  # seconds that a write waits for another process's, such as that of a second study


def open_study(output_dir: Path, name: str, objectives: Sequence[Objective], resume: bool = False) -> Study:
    """Optuna's study called like the study's folder; ``resume`` takes up the one that an earlier driver has left.

    The folder is what a study is: one of the same name whose folder was taken away is forgotten.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    address = f"sqlite:///{output_dir.resolve() / DATABASE}"
    storage = optuna.storages.RDBStorage(address, engine_kwargs={"connect_args": {"timeout": TIMEOUT}})
    if not resume and name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    directions = [DIRECTIONS[objective.mode] for objective in objectives]
    return optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=resume)


def sampler_for(settings: Sampler, number: int) -> BaseSampler:
    """The sampler that proposes the point of this number.

    Its random numbers follow from ``sampler.seed`` and the number alone, so that a study which was broken off goes on
    as if it had not been.
    """
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    if settings.name == "tpe":
        # A joint model of all parameters; points still in training count as bad, so that proposals spread out.
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=settings.startup, multivariate=True, constant_liar=True
        )
    return optuna.samplers.RandomSampler(seed)
