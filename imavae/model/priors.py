"""Priors p(z), written in the unconstrained coordinate y that the posterior lives in.

A bounded prior's latent is z = low + (high - low) sigmoid(y). The KL divergence is invariant under that bijection, so
the density of y, log p(y) = log p(z(y)) + log |dz/dy|, is all that the ELBO needs, and it is stable where p(z(y)) is
not: a uniform z makes y standard logistic, log p(y) = y - 2 log(1 + e^y), whatever the support.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from imavae.config import RunConfig, support
from imavae.families import GaussianPrior


@runtime_checkable
class Prior(Protocol):
    """Independent latents of one distribution; every function acts on each component alone."""

    @property
    def variance(self) -> float:
        """Of a latent z."""
        ...

    @property
    def support(self) -> tuple[float, float]:
        """The interval that a latent lives on."""
        ...

    def log_prob(self, y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The log-density log p(y), in nats, with the log-determinant of z(y) in it."""
        ...

    def curvature(self, y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """-(log p)''(y)."""
        ...

    def latent(self, y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """z(y), on the prior's support."""
        ...

    def slope(self, y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """dz/dy."""
        ...


@dataclass(frozen=True)
class Uniform:
    """z ~ U(low, high)."""

    low: float
    high: float

    @property
    def variance(self) -> float:
        return (self.high - self.low) ** 2 / 12

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    def log_prob(self, y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        # = logsigmoid(y) + logsigmoid(-y), in one call; softplus's own threshold, 20, is off by 2e-9 there
        return y - 2 * softplus(y, threshold=40)

    def curvature(self, y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return 2 * torch.sigmoid(y) * torch.sigmoid(-y)  # s(-y), not 1 - s(y): no cancellation at large y

    def latent(self, y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return self.low + (self.high - self.low) * torch.sigmoid(y)

    def slope(self, y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return (self.high - self.low) * torch.sigmoid(y) * torch.sigmoid(-y)


@dataclass(frozen=True)
class Gaussian:
    """z = y ~ N(mean, std^2)."""

    mean: float
    std: float

    @property
    def variance(self) -> float:
        return self.std**2

    @property
    def support(self) -> tuple[float, float]:
        return -math.inf, math.inf

    def log_prob(self, y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return -0.5 * ((y - self.mean) / self.std).square() - math.log(self.std) - 0.5 * math.log(2 * math.pi)

    def curvature(self, y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return torch.full_like(y, self.std**-2)

    def latent(self, y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return y

    def slope(self, y: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return torch.ones_like(y)


def build(config: RunConfig) -> Prior:
    """The prior that ``config.model.prior`` names; a bounded one takes the source's support unless told otherwise."""
    if isinstance(config.model.prior, GaussianPrior):
        return Gaussian(config.model.prior.mean, config.model.prior.std)
    return Uniform(*support(config))
