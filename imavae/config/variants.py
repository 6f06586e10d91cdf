"""The variants that a configuration chooses by name: sources, mixings, priors and networks, each a registry entry.

A variant is a frozen dataclass of settings, registered under its ``name``; what it builds stands in ``data/`` or
``model/``. A person's own variant is registered the same way, in a file of theirs (:func:`load_plugins`), and brings a
method ``build`` along; all that such a file needs is here. Nothing here imports torch: a mistake in a value is reported
at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from imavae.config.data_variants import MIXINGS as MIXINGS
from imavae.config.data_variants import SOURCES as SOURCES
from imavae.config.data_variants import BetaSource as BetaSource
from imavae.config.data_variants import Factor as Factor
from imavae.config.data_variants import FlowMixing as FlowMixing
from imavae.config.data_variants import GaussianSource as GaussianSource
from imavae.config.data_variants import LaplaceSource as LaplaceSource
from imavae.config.data_variants import LinearMixing as LinearMixing
from imavae.config.data_variants import MixingSettings as MixingSettings
from imavae.config.data_variants import MLPMixing as MLPMixing
from imavae.config.data_variants import MoebiusMixing as MoebiusMixing
from imavae.config.data_variants import SourceSettings as SourceSettings
from imavae.config.data_variants import UniformSource as UniformSource
from imavae.config.registry import Registry as Registry
from imavae.config.registry import Settings as Settings
from imavae.config.registry import load_plugins as load_plugins
from imavae.config.registry import mistake_of_a_plugin as mistake_of_a_plugin
from imavae.errors import require

F = TypeVar("F", bound=Callable[..., Any])

PRIORS: Registry[type[PriorSettings]] = Registry("model.prior", "imavae.config.variants")
Parameters = Literal["fixed", "learned", "conditional"]


@dataclass(frozen=True)
class PriorSettings(Settings):
    """Base of the priors' settings. An own one has ``build(support) -> imavae.model.priors.Prior``."""

    name: str = ""
    bounded: ClassVar[bool] = False  # whether its latents live on an interval
    analytic: ClassVar[bool] = False  # whether its divergence from a Gaussian posterior has a closed form


@PRIORS.register
@dataclass(frozen=True)
class UniformPrior(PriorSettings):
    """Latents uniform on [low, high]; null takes the source's support."""

    name: str = "uniform"
    low: float | None = None
    high: float | None = None
    bounded: ClassVar[bool] = True


@PRIORS.register
@dataclass(frozen=True)
class BetaPrior(PriorSettings):
    """Beta latents stretched onto [low, high]; null takes the source's support."""

    name: str = "beta"
    alpha: float = 2.0
    beta: float = 2.0
    low: float | None = None
    high: float | None = None
    parameters: Parameters = "fixed"  # learned, or conditional on u: alpha and beta of each latent, from these
    bounded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        shapes = f"alpha={self.alpha}, beta={self.beta}"
        require(
            min(self.alpha, self.beta) > 0,
            "model.prior.alpha and beta > 0",
            shapes,
            "(1, 1) is the uniform: give numbers above 0",
        )


@PRIORS.register
@dataclass(frozen=True)
class GaussianPrior(PriorSettings):
    """Independent Gaussian latents."""

    name: str = "gaussian"
    mean: float = 0.0
    std: float = 1.0  # a standard deviation, not a variance
    parameters: Parameters = "fixed"  # learned: the scale of each latent; conditional: mean and scale, from u
    analytic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self.std > 0, "model.prior.std > 0", f"std={self.std}", "it is a standard deviation: say model.prior.std=1"
        )


@PRIORS.register
@dataclass(frozen=True)
class LaplacePrior(PriorSettings):
    """Independent Laplace latents."""

    name: str = "laplace"
    mean: float = 0.0
    scale: float = 1.0  # the standard deviation is sqrt(2) times it
    parameters: Parameters = "fixed"  # learned: the scale of each latent; conditional: mean and scale, from u
    analytic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self.scale > 0,
            "model.prior.scale > 0",
            f"scale={self.scale}",
            "it is the mean distance from the mean: say model.prior.scale=1",
        )


SHRUNK = 16  # the side of images over that of what four convolutions of stride 2 make of them


def image_side(observed: int) -> int:
    """The side of square colour images of so many numbers, which the convolutional networks can take.

    Raises:
        UserError: there are no such images.
    """
    side = math.isqrt(observed // 3)
    whole = observed == 3 * side**2 and side > 0 and side % SHRUNK == 0
    rule = f"observations are 3 x side x side, with a side that {SHRUNK} divides, for model.name=conv"
    require(
        whole, rule, f"{observed} numbers", "say data=sprites, or model=mlp for observations that are no such images"
    )
    return side


NETWORKS: dict[str, Callable[..., Any]] = {}  # name -> builder; the package's come with imavae.model
NETWORK_NAMES = {"mlp", "conv"}  # those that can be chosen: the package's, and what a person's file has registered


def register_network(name: str) -> Callable[[F], F]:
    """Add a network's builder, ``build(prefix, inputs, outputs, shape, model) -> Network``; a decorator.

    Raises:
        UserError: the name is taken.
    """

    def register(builder: F) -> F:
        taken = NETWORKS if builder.__module__.startswith("imavae.model.") else NETWORK_NAMES
        new = bool(name) and name not in taken
        require(new, "each network has a name of its own", repr(name), "choose another")
        NETWORKS[name] = builder
        NETWORK_NAMES.add(name)
        return builder

    return register
