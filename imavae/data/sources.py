"""Independent, identically distributed sources: s = (s_1, ..., s_d), p(s) = prod_k p(s_k), all in float64.

Arrays are (observation, dimension). Parameters are scalars, or arrays (observation, dimension) where they differ: with
segments, every observation and component has a variance factor v, and its source has v times the variance at the same
mean (a bounded one stays within its support).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

import scipy.special
import torch
from jaxtyping import Float64
from torch import Tensor

from imavae.config.variants import BetaSource, GaussianSource, LaplaceSource, SourceSettings, UniformSource
from imavae.data.own import build_own

Parameter = Float64[Tensor, "..."]


@runtime_checkable
class Source(Protocol):
    """A law on the real line, the same for each component."""

    def sample(self, n: int, dim: int, generator: torch.Generator) -> Float64[Tensor, "n dim"]:
        """Draw ``n`` vectors of ``dim`` independent components."""
        ...

    def log_prob(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """The log-density log p(s), in nats, summed over components; minus infinity outside the support."""
        ...

    def cdf(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        """The distribution function at each component."""
        ...


@runtime_checkable
class Scalable(Source, Protocol):
    """A source whose variance can change; only segments ask for it."""

    def scaled(self, factor: Float64[Tensor, "n d"]) -> Source:
        """The source of ``n`` observations, with ``factor`` times the variance; at most 1 for a bounded source."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Uniform on [low, high]. Scaled, its half-width is sqrt(factor) times as large, about the same centre."""

    low: Parameter
    high: Parameter

    def sample(self, n: int, dim: int, generator: torch.Generator) -> Float64[Tensor, "n dim"]:
        """Draw ``n`` vectors of ``dim`` independent components."""
        uniform = torch.rand(n, dim, generator=generator, dtype=torch.float64)
        return self.low + (self.high - self.low) * uniform

    def log_prob(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """The log-density, -log(high - low) for each component."""
        inside = (s >= self.low) & (s <= self.high)
        return (-(self.high - self.low).log()).expand(s.shape).masked_fill(~inside, -math.inf).sum(1)

    def cdf(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        """The distribution function at each component."""
        return ((s - self.low) / (self.high - self.low)).clamp(0, 1)

    def scaled(self, factor: Float64[Tensor, "n d"]) -> Uniform:
        """The same centre, ``factor`` <= 1 times the variance."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2 * factor.sqrt()
        return Uniform(middle - half, middle + half)


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2)."""

    mean: Parameter
    std: Parameter

    def sample(self, n: int, dim: int, generator: torch.Generator) -> Float64[Tensor, "n dim"]:
        """Draw ``n`` vectors of ``dim`` independent components."""
        return self.mean + self.std * torch.randn(n, dim, generator=generator, dtype=torch.float64)

    def log_prob(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """The log-density, -((s - mean) / std)^2 / 2 - log(std) - log(2 pi) / 2 for each component."""
        standard = (s - self.mean) / self.std
        return (-0.5 * standard.square() - self.std.log() - 0.5 * math.log(2 * math.pi)).sum(1)

    def cdf(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        """The distribution function at each component."""
        probability: Tensor = torch.special.ndtr((s - self.mean) / self.std)
        return probability

    def scaled(self, factor: Float64[Tensor, "n d"]) -> Gaussian:
        """The same mean, ``factor`` times the variance."""
        return replace(self, std=self.std * factor.sqrt())


@dataclass(frozen=True)
class Laplace:
    """p(s) = exp(-|s - mean| / scale) / (2 scale), of variance 2 scale^2."""

    mean: Parameter
    scale: Parameter

    def sample(self, n: int, dim: int, generator: torch.Generator) -> Float64[Tensor, "n dim"]:
        """Draw ``n`` vectors of ``dim`` independent components, by the inverse of the distribution function."""
        centred = torch.rand(n, dim, generator=generator, dtype=torch.float64) - 0.5
        magnitude = centred.abs().clamp(max=0.5 - 2**-54)  # rand can be 0, whose quantile is infinite
        return self.mean - self.scale * centred.sign() * torch.log1p(-2 * magnitude)

    def log_prob(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """The log-density, -|s - mean| / scale - log(2 scale) for each component."""
        return (-((s - self.mean) / self.scale).abs() - (2 * self.scale).log()).sum(1)

    def cdf(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        """The distribution function at each component."""
        standard = (s - self.mean) / self.scale
        tail = 0.5 * (-standard.abs()).exp()
        return torch.where(standard < 0, tail, 1 - tail)

    def scaled(self, factor: Float64[Tensor, "n d"]) -> Laplace:
        """The same mean, ``factor`` times the variance."""
        return replace(self, scale=self.scale * factor.sqrt())


@dataclass(frozen=True)
class Beta:
    """s = low + (high - low) t with p(t) = t^(alpha - 1) (1 - t)^(beta - 1) / B(alpha, beta) on [0, 1].

    Scaled, both shapes grow by the one factor that makes the variance, m (1 - m) / (alpha + beta + 1) with the mean
    m = alpha / (alpha + beta), as many times as large: the mean and the support stay.
    """

    alpha: Parameter
    beta: Parameter
    low: float
    high: float

    def sample(self, n: int, dim: int, generator: torch.Generator) -> Float64[Tensor, "n dim"]:
        """Draw ``n`` vectors of ``dim`` independent components, by the inverse of the distribution function."""
        uniform = torch.rand(n, dim, generator=generator, dtype=torch.float64)
        quantiles = scipy.special.betaincinv(self.alpha.numpy(), self.beta.numpy(), uniform.numpy())
        return self.low + (self.high - self.low) * torch.from_numpy(quantiles)

    def log_prob(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """The log-density, that of t less log(high - low), for each component."""
        t = (s - self.low) / (self.high - self.low)
        inside = (t >= 0) & (t <= 1)
        t = torch.where(inside, t, 0.5)
        powers: Tensor = torch.xlogy(self.alpha - 1, t) + torch.special.xlog1py(self.beta - 1, -t)
        normaliser = self.alpha.lgamma() + self.beta.lgamma() - (self.alpha + self.beta).lgamma()
        return (powers - normaliser - math.log(self.high - self.low)).masked_fill(~inside, -math.inf).sum(1)

    def cdf(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        """The distribution function at each component."""
        t = ((s - self.low) / (self.high - self.low)).clamp(0, 1)
        return torch.from_numpy(scipy.special.betainc(self.alpha.numpy(), self.beta.numpy(), t.numpy()))

    def scaled(self, factor: Float64[Tensor, "n d"]) -> Beta:
        """The same mean and support, ``factor`` <= 1 times the variance."""
        total = self.alpha + self.beta
        growth = ((total + 1) / factor - 1) / total
        return replace(self, alpha=self.alpha * growth, beta=self.beta * growth)


@functools.singledispatch
def build(settings: SourceSettings) -> Source:
    """The source that some settings describe; a person's own settings bring a method ``build()`` along.

    Raises:
        UserError: own settings without that method, or a source without one of its own.
    """
    return cast(Source, build_own(settings, "data.source", Source))


@build.register
def _(settings: UniformSource) -> Source:
    return Uniform(_number(settings.low), _number(settings.high))


@build.register
def _(settings: GaussianSource) -> Source:
    return Gaussian(_number(settings.mean), _number(settings.std))


@build.register
def _(settings: LaplaceSource) -> Source:
    return Laplace(_number(settings.mean), _number(settings.scale))


@build.register
def _(settings: BetaSource) -> Source:
    return Beta(_number(settings.alpha), _number(settings.beta), settings.low, settings.high)


def _number(value: float) -> Parameter:
    return torch.tensor(value, dtype=torch.float64)
