"""How points are proposed, and where they are remembered: Optuna's samplers, and its study in ``optuna.db``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
from filelock import FileLock
from sqlalchemy.exc import DatabaseError

from imavae.config.settings import Objective, Sampler
from imavae.errors import UserError
from imavae.search.space import Parameter
from imavae.tracking.ui import OPTUNA_DATABASE

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

DIRECTIONS = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
TIMEOUT = 60  # seconds that a write waits for another process's, such as that of a second study


class KnownBox(optuna.samplers.QMCSampler):
    """Quasi-random points of a space that is known beforehand.

    Optuna's own would draw the first point at random and take the space from it; a parameter that a later point has,
    and that one had not, would never be spread.
    """

    def __init__(self, seed: int, box: dict[str, BaseDistribution]) -> None:
        super().__init__(qmc_type="sobol", scramble=True, seed=seed)
        self._box = box

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space; a point leaves out what it has no use for."""
        return self._box


def open_storage(output_dir: Path) -> optuna.storages.RDBStorage:
    """The database of all studies below an output folder. Raises UserError for a file that is damaged."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = output_dir.resolve() / OPTUNA_DATABASE
    try:
        with FileLock(path.with_name(f".{OPTUNA_DATABASE}.lock")):  # a new database's tables are made once
            return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": TIMEOUT}})
    except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"`{path} is a database of Optuna's` must hold, but it can't be read ({reason}); move it away: a study "
            "that is resumed tells a new one what its own records say"
        ) from None


def open_study(output_dir: Path, name: str, objectives: Sequence[Objective], resume: bool = False) -> Study:
    """Optuna's study called like the study's folder; ``resume`` takes up the one that an earlier driver has left.

    The folder is what a study is: one of the same name whose folder was taken away is forgotten.
    """
    storage = open_storage(output_dir)
    if not resume and name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    directions = [DIRECTIONS[objective.mode] for objective in objectives]
    study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=resume)
    with _experimental():
        study.set_metric_names([objective.metric for objective in objectives])  # as optuna-dashboard shows them
    return study


def sampler_for(settings: Sampler, parameters: Sequence[Parameter], number: int) -> BaseSampler:
    """The sampler that proposes the point of this number.

    Its random numbers follow from ``sampler.seed`` and the number alone, so that a study which was broken off goes on
    as if it had not been. (A quasi-random sequence has one seed for all, and its place in Optuna's storage.)
    """
    with _experimental():
        return _sampler(settings, parameters, int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0]))


def _sampler(settings: Sampler, parameters: Sequence[Parameter], seed: int) -> BaseSampler:
    if settings.name == "tpe":
        # A joint model of all parameters, of each set of them that points have; points still in training count as bad,
        # so that proposals spread out.
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=settings.startup, multivariate=True, group=True, constant_liar=True
        )
    if settings.name == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, consider_pruned_trials=True, warn_independent_sampling=False)
    if settings.name == "qmc":
        return KnownBox(settings.seed, {parameter.key: parameter.distribution() for parameter in parameters})
    return optuna.samplers.RandomSampler(seed)


@contextmanager
def _experimental() -> Iterator[None]:
    """Without Optuna's warnings that something may change in a later version: the versions are pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
