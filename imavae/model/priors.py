"""Priors p(z), written in the unconstrained coordinate y that the posterior lives in.

A bounded prior's latent is z = low + (high - low) sigmoid(y). The KL divergence is invariant under that bijection, so
the density of y, log p(y) = log p(z(y)) + log |dz/dy|, is all that the ELBO needs, and it is stable where p(z(y)) is
not: a uniform z makes y standard logistic, log p(y) = y - 2 log(1 + e^y), whatever the support.

A prior's parameters are given to each function, as tensors that broadcast against y (member, latent, batch): they may
be fixed, learned per member, or depend on the segment. They are kept in a form that any real number is valid in
(logarithms of scales and shapes).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from imavae.config.registry import torch
from imavae.config.settings import PRIORS, PriorSettings

Theta = tuple["torch.Tensor", ...]
Interval = tuple[float, float]


class Prior(ABC):
    """Independent latents of one family; every function acts on each component separately.

    ``support`` is the interval that a latent lives on; ``start`` holds the parameters' values in their unconstrained
    form, and ``free`` the positions of those that can be learned (a location is not: the encoder absorbs any shift).
    """

    support: Interval = (-math.inf, math.inf)
    start: tuple[float, ...] = ()
    free: tuple[int, ...] = ()

    @abstractmethod
    def log_prob(self, y: torch.Tensor, theta: Theta) -> torch.Tensor:
        """The log-density log p(y), in nats, with the log-determinant of z(y) in it."""

    @abstractmethod
    def curvature(self, y: torch.Tensor, theta: Theta) -> torch.Tensor:
        """-(log p)''(y)."""

    @abstractmethod
    def variance(self, theta: Theta) -> torch.Tensor:
        """Variance of a latent z."""

    @abstractmethod
    def cdf(self, z: torch.Tensor, theta: Theta) -> torch.Tensor:
        """P(latent <= z)."""

    def expected_log_prob(self, mean: torch.Tensor, variance: torch.Tensor, theta: Theta) -> torch.Tensor:
        """E[log p(y)] for a Gaussian y, in closed form; only where there is one."""
        raise NotImplementedError

    def latent(self, y: torch.Tensor) -> torch.Tensor:
        """z(y), on the prior's support."""
        low, high = self.support
        return y if math.isinf(high) else low + (high - low) * torch.sigmoid(y)

    def unconstrained(self, z: torch.Tensor) -> torch.Tensor:
        """y(z); at an end of the support, where it is infinite, a large number."""
        low, high = self.support
        return z if math.isinf(high) else torch.logit((z - low) / (high - low), torch.finfo(z.dtype).eps)

    def slope(self, y: torch.Tensor) -> torch.Tensor:
        """dz/dy."""
        low, high = self.support
        # s(-y), not 1 - s(y): no cancellation at large y
        return torch.ones_like(y) if math.isinf(high) else (high - low) * torch.sigmoid(y) * torch.sigmoid(-y)


Parameters = Literal["fixed", "learned", "conditional"]
ScaleParameters = Annotated[
    Parameters, Field(description="fixed; learned: the scale of each latent; conditional: mean and scale depend on u")
]
Low = Annotated[float | None, Field(description="lower end of the support; null: the source's")]
High = Annotated[float | None, Field(description="upper end of the support; null: the source's")]


@PRIORS.register
@checked_dataclass(frozen=True)
class UniformPrior(PriorSettings):
    """Latents uniform on [low, high]."""

    name: str = "uniform"
    low: Low = None
    high: High = None
    bounded: ClassVar[bool] = True

    def build(self, support: Interval) -> Uniform:
        return Uniform(support)


@PRIORS.register
@checked_dataclass(frozen=True)
class BetaPrior(PriorSettings):
    """Beta latents, stretched onto [low, high]."""

    name: str = "beta"
    alpha: Annotated[float, Field(gt=0, description="first shape parameter; at 1 and 1 the prior is uniform")] = 2.0
    beta: Annotated[float, Field(gt=0, description="second shape parameter")] = 2.0
    low: Low = None
    high: High = None
    parameters: Annotated[
        Parameters, Field(description="fixed; learned: both shapes of each latent; conditional: they depend on u")
    ] = "fixed"
    bounded: ClassVar[bool] = True

    def build(self, support: Interval) -> Beta:
        return Beta(support, (math.log(self.alpha), math.log(self.beta)))


@PRIORS.register
@checked_dataclass(frozen=True)
class GaussianPrior(PriorSettings):
    """Independent Gaussian latents."""

    name: str = "gaussian"
    mean: Annotated[float, Field(description="of every latent")] = 0.0
    std: Annotated[float, Field(gt=0, description="a standard deviation, not a variance")] = 1.0
    parameters: ScaleParameters = "fixed"
    analytic: ClassVar[bool] = True

    def build(self, support: Interval) -> Gaussian:
        return Gaussian((self.mean, math.log(self.std)))


@PRIORS.register
@checked_dataclass(frozen=True)
class LaplacePrior(PriorSettings):
    """Independent Laplace latents."""

    name: str = "laplace"
    mean: Annotated[float, Field(description="of every latent")] = 0.0
    scale: Annotated[float, Field(gt=0, description="the standard deviation is sqrt(2) times it")] = 1.0
    parameters: ScaleParameters = "fixed"
    analytic: ClassVar[bool] = True

    def build(self, support: Interval) -> Laplace:
        return Laplace((self.mean, math.log(self.scale)))


@dataclass(frozen=True)
class Uniform(Prior):
    """z ~ U(low, high)."""

    support: Interval

    def log_prob(self, y: torch.Tensor, theta: Theta) -> torch.Tensor:
        # = logsigmoid(y) + logsigmoid(-y), in one call; softplus's own threshold, 20, is off by 2e-9 there
        return y - 2 * torch.nn.functional.softplus(y, threshold=40)

    def curvature(self, y: torch.Tensor, theta: Theta) -> torch.Tensor:
        return 2 * torch.sigmoid(y) * torch.sigmoid(-y)

    def variance(self, theta: Theta) -> torch.Tensor:
        return torch.tensor((self.support[1] - self.support[0]) ** 2 / 12, dtype=torch.float64)

    def cdf(self, z: torch.Tensor, theta: Theta) -> torch.Tensor:
        return ((z - self.support[0]) / (self.support[1] - self.support[0])).clamp(0, 1)


@dataclass(frozen=True)
class Beta(Prior):
    """(z - low) / (high - low) ~ Beta(alpha, beta); theta = (log alpha, log beta)."""

    support: Interval
    start: tuple[float, ...]
    free: tuple[int, ...] = (0, 1)

    def log_prob(self, y: torch.Tensor, theta: Theta) -> torch.Tensor:
        # alpha log s(y) + beta log s(-y), with log s(y) = -softplus(-y) and log s(-y) = -y - softplus(-y)
        alpha, beta = (t.exp() for t in theta)
        normaliser = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
        return -(alpha + beta) * torch.nn.functional.softplus(-y, threshold=40) - beta * y - normaliser

    def curvature(self, y: torch.Tensor, theta: Theta) -> torch.Tensor:
        return (theta[0].exp() + theta[1].exp()) * torch.sigmoid(y) * torch.sigmoid(-y)

    def variance(self, theta: Theta) -> torch.Tensor:
        alpha, beta = (t.exp() for t in theta)
        total = alpha + beta
        return (self.support[1] - self.support[0]) ** 2 * alpha * beta / (total.square() * (total + 1))

    def cdf(self, z: torch.Tensor, theta: Theta) -> torch.Tensor:
        from scipy.special import betainc

        share = ((z - self.support[0]) / (self.support[1] - self.support[0])).clamp(0, 1)
        values = betainc(*(t.double().cpu().numpy() for t in (theta[0].exp(), theta[1].exp(), share)))
        return torch.as_tensor(values, dtype=z.dtype, device=z.device)


@dataclass(frozen=True)
class Gaussian(Prior):
    """z = y ~ N(mean, std^2); theta = (mean, log std)."""

    start: tuple[float, ...]
    free: tuple[int, ...] = (1,)

    def log_prob(self, y: torch.Tensor, theta: Theta) -> torch.Tensor:
        mean, log_std = theta
        return -0.5 * ((y - mean) * (-log_std).exp()).square() - log_std - 0.5 * math.log(2 * math.pi)

    def expected_log_prob(self, mean: torch.Tensor, variance: torch.Tensor, theta: Theta) -> torch.Tensor:
        spread = variance * (-2 * theta[1]).exp()
        return self.log_prob(mean, theta) - 0.5 * spread

    def curvature(self, y: torch.Tensor, theta: Theta) -> torch.Tensor:
        return torch.ones_like(y) * (-2 * theta[1]).exp()

    def variance(self, theta: Theta) -> torch.Tensor:
        return (2 * theta[1]).exp()

    def cdf(self, z: torch.Tensor, theta: Theta) -> torch.Tensor:
        return 0.5 * torch.erfc(-(z - theta[0]) * (-theta[1]).exp() / math.sqrt(2))


@dataclass(frozen=True)
class Laplace(Prior):
    """z = y, p(y) = exp(-|y - mean| / scale) / (2 scale); theta = (mean, log scale)."""

    start: tuple[float, ...]
    free: tuple[int, ...] = (1,)

    def log_prob(self, y: torch.Tensor, theta: Theta) -> torch.Tensor:
        mean, log_scale = theta
        return -(y - mean).abs() * (-log_scale).exp() - log_scale - math.log(2)

    def expected_log_prob(self, mean: torch.Tensor, variance: torch.Tensor, theta: Theta) -> torch.Tensor:
        # The mean of |N(m, v)|, a folded normal: sqrt(2 v / pi) exp(-m^2 / 2v) + m erf(m / sqrt(2 v)).
        away, std = mean - theta[0], variance.sqrt()
        ratio = away / (math.sqrt(2) * std)
        distance = math.sqrt(2 / math.pi) * std * (-ratio.square()).exp() + away * torch.erf(ratio)
        return -distance * (-theta[1]).exp() - theta[1] - math.log(2)

    def curvature(self, y: torch.Tensor, theta: Theta) -> torch.Tensor:
        return torch.zeros_like(y)  # except at the mean, where it is not defined

    def variance(self, theta: Theta) -> torch.Tensor:
        return 2 * (2 * theta[1]).exp()

    def cdf(self, z: torch.Tensor, theta: Theta) -> torch.Tensor:
        t = (z - theta[0]) * (-theta[1]).exp()
        return torch.where(t < 0, 0.5 * t.clamp_max(0).exp(), 1 - 0.5 * (-t.clamp_min(0)).exp())
