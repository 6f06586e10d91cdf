"""Independent, identically distributed sources: s = (s_1, ..., s_d), p(s) = prod_k p(s_k)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from imavae.config import Source
from imavae.families import GaussianSource, UniformSource


def sample(source: Source, n: int, dim: int, generator: torch.Generator) -> Float64[Tensor, "n d"]:
    """Draw ``n`` source vectors of ``dim`` independent components, in float64."""
    if isinstance(source, GaussianSource):
        return source.mean + source.std * torch.randn(n, dim, generator=generator, dtype=torch.float64)
    uniform = torch.rand(n, dim, generator=generator, dtype=torch.float64)
    return source.low + (source.high - source.low) * uniform


def log_prob(source: Source, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """The log-density log p(s), in nats; minus infinity outside a bounded source's support."""
    if isinstance(source, GaussianSource):
        standard = (s - source.mean) / source.std
        return (-0.5 * standard.square() - math.log(source.std) - 0.5 * math.log(2 * math.pi)).sum(1)
    inside = ((s >= source.low) & (s <= source.high)).all(1)
    density = -s.shape[1] * math.log(source.high - source.low)
    return s.new_full((len(s),), density).masked_fill(~inside, -math.inf)


def support(source: Source) -> tuple[float, float]:
    """The interval that each source lives on."""
    return (source.low, source.high) if isinstance(source, UniformSource) else (-math.inf, math.inf)


def radius(source: Source, dim: int) -> tuple[float, float]:
    """The sources' mean, and the half-diagonal of the box that holds them (three standard deviations, if Gaussian)."""
    if isinstance(source, GaussianSource):
        return source.mean, 3 * source.std * math.sqrt(dim)
    return (source.low + source.high) / 2, (source.high - source.low) / 2 * math.sqrt(dim)
