"""Samplers that propose a study's points. A plugin registers its own like these::

from imavae.config.settings import SAMPLERS, SamplerKind

def gaussian_process(settings, distributions, seed):
return optuna.samplers.GPSampler(seed=seed)

SAMPLERS.register(SamplerKind("gp", gaussian_process, numbers_only=True))
"""

from __future__ import annotations

from collections.abc import Mapping

from imavae.config.registry import optuna
from imavae.config.settings import SAMPLERS, Sampler, SamplerKind

Distributions = Mapping[str, "optuna.distributions.BaseDistribution"]


def tpe(settings: Sampler, _: Distributions, seed: int) -> optuna.samplers.BaseSampler:
    """TPE with a joint model of each set of parameters that points have.

    Points in training count as bad ones, so that proposals spread out.
    """
    startup = settings.startup
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True
    )


def cmaes(_: Sampler, __: Distributions, seed: int) -> optuna.samplers.BaseSampler:
    """CMA-ES."""
    return optuna.samplers.CmaEsSampler(seed=seed, consider_pruned_trials=True, warn_independent_sampling=False)


def quasi_random(settings: Sampler, distributions: Distributions, _: int) -> optuna.samplers.BaseSampler:
    """Scrambled Sobol points of the whole space.

    The sequence has one seed for all points. Optuna's sampler by itself draws the first point at random and infers the
    space from it, so a parameter that only a later point has would never be spread.
    """
    sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=settings.seed)
    sampler.infer_relative_search_space = lambda *_: dict(distributions)  # type: ignore[method-assign]
    return sampler


def uniform(_: Sampler, __: Distributions, seed: int) -> optuna.samplers.BaseSampler:
    """Independent random points."""
    return optuna.samplers.RandomSampler(seed)


SAMPLERS.register(SamplerKind("tpe", tpe))
SAMPLERS.register(SamplerKind("cmaes", cmaes, numbers_only=True, several_objectives=False))
SAMPLERS.register(SamplerKind("qmc", quasi_random))
SAMPLERS.register(SamplerKind("random", uniform))
SAMPLERS.register(SamplerKind("grid", uniform))  # every combination of the choices: nothing is left to propose
