"""The settings of a search besides its space: the score, how points are proposed and stopped, the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from imavae.config.variants import Settings
from imavae.errors import require, require_choice

AGGREGATES = ("median", "mean", "min", "max")
WORST_SCORE = 1e12  # stands for an infinite score, which samplers refuse


@dataclass(frozen=True)
class Objective(Settings):
    """A trial's score: the aggregate, over members, of each member's best value so far of one validation metric."""

    metric: str = "val/mcc"
    mode: Literal["max", "min"] = "max"
    aggregate: str = "median"

    def __post_init__(self) -> None:
        require_choice(self.aggregate, AGGREGATES, "objective.aggregate")


SAMPLERS = ("tpe", "cmaes", "qmc", "random", "grid")
NUMBERS_ONLY = ("cmaes",)  # samplers that can't propose a choice, nor a setting that is not always there
POPULATION = ("pbt", "pb2", "pbt_replay")


@dataclass(frozen=True)
class Sampler(Settings):
    """How points are proposed."""

    name: str = "tpe"  # tpe, cmaes, qmc and random are Optuna's; grid: every combination of the listed choices
    seed: int = 0  # of the proposals
    startup: int = 10  # random points before TPE begins to model the objective
    pack: int | None = None  # points that may train in one ensemble; null: 1, in a grid all that share an architecture
    start_from: str | tuple[dict[str, Any], ...] | None = None  # points to train first: a list of them, nested like
    # search; or a study's folder, whose best points are taken

    def __post_init__(self) -> None:
        require_choice(self.name, SAMPLERS, "sampler.name")
        require(
            self.startup >= 1, "sampler.startup >= 1", self.startup, "TPE needs points to model: say sampler.startup=10"
        )
        require(self.seed >= 0, "sampler.seed >= 0", self.seed, "give a whole number from 0 up")
        pack = self.pack
        require(
            pack is None or pack >= 1, "sampler.pack >= 1", pack, "it counts the points of an ensemble: give 1 or more"
        )


@dataclass(frozen=True)
class Scheduler(Settings):
    """Which points are stopped before their members stop; ``training.patience`` stops single members, whatever this."""

    name: str = "none"  # asha, median, or none
    grace: int = 10  # epochs that every point gets
    reduction: int = 3  # ASHA keeps one of so many points at each rung
    samples: int = 3  # points that the median rule must know before it stops one

    def __post_init__(self) -> None:
        require(
            self.name not in POPULATION,
            "scheduler.name is one of asha, median, none",
            f"{self.name!r}: population-based training changes gamma within a member's life, so that no result would "
            "belong to any one gamma, nor a seed to its curve",
            "search gamma, and stop bad points early by asha or median",
        )
        require_choice(self.name, ("asha", "median", "none"), "scheduler.name")
        require(self.grace >= 1, "scheduler.grace >= 1", self.grace, "it is a number of epochs: give 1 or more")
        require(
            self.reduction >= 2,
            "scheduler.reduction >= 2",
            self.reduction,
            "one of so many points is kept: give 2 or more",
        )
        require(self.samples >= 1, "scheduler.samples >= 1", self.samples, "it counts points: give 1 or more")


@dataclass(frozen=True)
class Budget(Settings):
    """How much a study may spend; a trial's epochs are training.max_epochs."""

    trials: int | None = None  # null: all points of a grid

    def __post_init__(self) -> None:
        trials = self.trials
        require(
            trials is None or trials >= 1, "budget.trials >= 1", trials, "it counts the points to train: give 1 or more"
        )
