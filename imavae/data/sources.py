"""Independent, identically distributed sources: s = (s_1, ..., s_d) with p(s) = prod_k p(s_k), in float64.

Arrays are (observation, dimension). A parameter is a scalar, or an array (observation, dimension) where it differs:
with segments, every observation and component has a variance factor v. Its source has v times the variance at the same
mean, and a bounded one stays within its support.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Protocol, runtime_checkable

from jaxtyping import Float64
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from imavae.config.data import SOURCES, SourceSettings
from imavae.config.registry import torch
from imavae.errors import require

SMALLEST = 1e-300  # of the probabilities of a tail


@runtime_checkable
class Source(Protocol):
    """A law on the real line, the same for each component."""

    def sample(self, n: int, dim: int, generator: torch.Generator) -> Float64[torch.Tensor, "n dim"]:
        """Draw ``n`` vectors of ``dim`` independent components."""

    def log_prob(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        """The log-density log p(s), in nats, summed over components; minus infinity outside the support."""


@runtime_checkable
class Scalable(Source, Protocol):
    """A source whose variance can change; only data with segments need one."""

    def scaled(self, factor: Float64[torch.Tensor, "n d"]) -> Source:
        """The source of ``n`` observations, with ``factor`` times the variance; at most 1 for a bounded source."""


@runtime_checkable
class Normalised(Source, Protocol):
    """A source with its law's map onto the standard normal one; only an automorphism needs one.

    The map goes by normal variables, not by probabilities: these can't tell apart two points far out in a tail.
    """

    def to_normal(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        """Normal variable n = Φ⁻¹(F(s)), with the CDFs F of a component and Φ of the standard normal law."""

    def from_normal(self, n: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        """Sources s = F⁻¹(Φ(n)), the inverse of :meth:`to_normal`."""


@checked_dataclass(frozen=True)
class IntervalSource(SourceSettings):
    """Base of the sources that live on [low, high]."""

    low: Annotated[float, Field(description="lower end of the support")] = -0.5
    high: Annotated[float, Field(description="upper end of the support")] = 0.5

    def __post_init__(self) -> None:
        rule, got = "data.source.low < data.source.high", f"low={self.low}, high={self.high}"
        require(self.low < self.high, rule, got, "give the lower end first")

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high


@SOURCES.register
@checked_dataclass(frozen=True)
class UniformSource(IntervalSource):
    """Independent sources, each uniform on [low, high]."""

    name: str = "uniform"

    def build(self) -> Uniform:
        return Uniform(_scalar(self.low), _scalar(self.high))


@SOURCES.register
@checked_dataclass(frozen=True)
class GaussianSource(SourceSettings):
    """Independent Gaussian sources; they need a prior on the whole line, such as model/prior=gaussian."""

    name: str = "gaussian"
    mean: Annotated[float, Field(description="of every source")] = 0.0
    std: Annotated[float, Field(gt=0, description="a standard deviation, not a variance")] = 1.0

    @property
    def extent(self) -> tuple[float, float]:
        return self.mean, 3 * self.std  # three standard deviations about the mean

    def build(self) -> Gaussian:
        return Gaussian(_scalar(self.mean), _scalar(self.std))


@SOURCES.register
@checked_dataclass(frozen=True)
class LaplaceSource(SourceSettings):
    """Independent Laplace sources, p(s) = exp(-|s - mean| / scale) / (2 scale); they need a prior on the whole line."""

    name: str = "laplace"
    mean: Annotated[float, Field(description="of every source")] = 0.0
    scale: Annotated[float, Field(gt=0, description="the standard deviation is sqrt(2) times it")] = 1.0

    @property
    def extent(self) -> tuple[float, float]:
        return self.mean, 6 * self.scale  # all but 1 in 400 sources

    def build(self) -> Laplace:
        return Laplace(_scalar(self.mean), _scalar(self.scale))


@SOURCES.register
@checked_dataclass(frozen=True)
class BetaSource(IntervalSource):
    """Independent beta sources, stretched onto [low, high]."""

    name: str = "beta"
    alpha: Annotated[float, Field(gt=0, description="first shape parameter; at 1 and 1 the sources are uniform")] = 2.0
    beta: Annotated[float, Field(gt=0, description="second shape parameter")] = 2.0

    def build(self) -> Beta:
        return Beta(_scalar(self.alpha), _scalar(self.beta), self.low, self.high)


@dataclass(frozen=True)
class Uniform:
    """U(low, high). Scaled, its half-width is sqrt(factor) times as large, about the same centre."""

    low: Float64[torch.Tensor, ...]
    high: Float64[torch.Tensor, ...]

    def sample(self, n: int, dim: int, generator: torch.Generator) -> Float64[torch.Tensor, "n dim"]:
        uniform = torch.rand(n, dim, generator=generator, dtype=torch.float64)
        return self.low + (self.high - self.low) * uniform

    def log_prob(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        inside = (s >= self.low) & (s <= self.high)
        return (-(self.high - self.low).log()).expand(s.shape).masked_fill(~inside, -math.inf).sum(1)

    def to_normal(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        width = self.high - self.low
        return _quantile((s - self.low) / width, (self.high - s) / width)

    def from_normal(self, n: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        return torch.lerp(self.low, self.high, torch.special.ndtr(n))

    def scaled(self, factor: Float64[torch.Tensor, "n d"]) -> Uniform:
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2 * factor.sqrt()
        return Uniform(middle - half, middle + half)


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2)."""

    mean: Float64[torch.Tensor, ...]
    std: Float64[torch.Tensor, ...]

    def sample(self, n: int, dim: int, generator: torch.Generator) -> Float64[torch.Tensor, "n dim"]:
        return self.mean + self.std * torch.randn(n, dim, generator=generator, dtype=torch.float64)

    def log_prob(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        standard = (s - self.mean) / self.std
        return (-0.5 * standard.square() - self.std.log() - 0.5 * math.log(2 * math.pi)).sum(1)

    def to_normal(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        return (s - self.mean) / self.std

    def from_normal(self, n: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        return self.mean + self.std * n

    def scaled(self, factor: Float64[torch.Tensor, "n d"]) -> Gaussian:
        return replace(self, std=self.std * factor.sqrt())


@dataclass(frozen=True)
class Laplace:
    """p(s) = exp(-|s - mean| / scale) / (2 scale), of variance 2 scale^2."""

    mean: Float64[torch.Tensor, ...]
    scale: Float64[torch.Tensor, ...]

    def sample(self, n: int, dim: int, generator: torch.Generator) -> Float64[torch.Tensor, "n dim"]:
        centred = torch.rand(n, dim, generator=generator, dtype=torch.float64) - 0.5
        magnitude = centred.abs().clamp(max=0.5 - 2**-54)  # rand can be 0, whose quantile is infinite
        return self.mean - self.scale * centred.sign() * torch.log1p(-2 * magnitude)

    def log_prob(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        return (-((s - self.mean) / self.scale).abs() - (2 * self.scale).log()).sum(1)

    def to_normal(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        t = (s - self.mean) / self.scale
        return _quantile((t.clamp(max=0)).exp() / 2, (-t.clamp(min=0)).exp() / 2)

    def from_normal(self, n: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        distance: torch.Tensor = -math.log(2) - torch.special.log_ndtr(-n.abs())
        return self.mean + self.scale * n.sign() * distance

    def scaled(self, factor: Float64[torch.Tensor, "n d"]) -> Laplace:
        return replace(self, scale=self.scale * factor.sqrt())


@dataclass(frozen=True)
class Beta:
    """s = low + (high - low) t with p(t) = t^(alpha - 1) (1 - t)^(beta - 1) / B(alpha, beta) on [0, 1].

    Its variance is m (1 - m) / (alpha + beta + 1) with the mean m = alpha / (alpha + beta). Scaled, both shapes grow by
    one factor, so that the mean and the support stay.
    """

    alpha: Float64[torch.Tensor, ...]
    beta: Float64[torch.Tensor, ...]
    low: float
    high: float

    def sample(self, n: int, dim: int, generator: torch.Generator) -> Float64[torch.Tensor, "n dim"]:
        from scipy.special import betaincinv

        uniform = torch.rand(n, dim, generator=generator, dtype=torch.float64)
        quantiles = betaincinv(self.alpha.numpy(), self.beta.numpy(), uniform.numpy())
        return self.low + (self.high - self.low) * torch.from_numpy(quantiles)

    def log_prob(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        t = (s - self.low) / (self.high - self.low)
        inside = (t >= 0) & (t <= 1)
        t = torch.where(inside, t, 0.5)
        powers: torch.Tensor = torch.xlogy(self.alpha - 1, t) + torch.special.xlog1py(self.beta - 1, -t)
        normaliser = self.alpha.lgamma() + self.beta.lgamma() - (self.alpha + self.beta).lgamma()
        return (powers - normaliser - math.log(self.high - self.low)).masked_fill(~inside, -math.inf).sum(1)

    def to_normal(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        from scipy.special import betainc

        low, high = ((end / (self.high - self.low)).cpu().numpy().clip(0, 1) for end in (s - self.low, self.high - s))
        alpha, beta = self.alpha.cpu().numpy(), self.beta.cpu().numpy()
        lower, upper = betainc(alpha, beta, low), betainc(beta, alpha, high)
        return _quantile(torch.from_numpy(lower), torch.from_numpy(upper)).to(s.device)

    def from_normal(self, n: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        from scipy.special import betaincinv

        alpha, beta = self.alpha.cpu().numpy(), self.beta.cpu().numpy()
        tail = torch.special.ndtr(-n.abs()).cpu().numpy()
        lower, upper = torch.from_numpy(betaincinv(alpha, beta, tail)), torch.from_numpy(betaincinv(beta, alpha, tail))
        width = self.high - self.low
        return torch.where(n < 0, self.low + width * lower.to(n.device), self.high - width * upper.to(n.device))

    def scaled(self, factor: Float64[torch.Tensor, "n d"]) -> Beta:
        total = self.alpha + self.beta
        growth = ((total + 1) / factor - 1) / total
        return replace(self, alpha=self.alpha * growth, beta=self.beta * growth)


def _quantile(lower: Float64[torch.Tensor, "n d"], upper: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
    """Φ⁻¹(lower) for ``upper`` = 1 − ``lower``: from the smaller of the two, which alone is exact far out in a tail.

    It is finite at the ends of a support.
    """
    tail = torch.minimum(lower, upper).clamp(min=SMALLEST)
    normal: torch.Tensor = torch.special.ndtri(tail)
    return torch.where(lower < upper, normal, -normal)


def _scalar(value: float) -> Float64[torch.Tensor, ""]:
    return torch.tensor(value, dtype=torch.float64)
