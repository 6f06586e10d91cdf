"""A source of your own: the logistic law, p(s) = e^-t / (scale (1 + e^-t)^2) with t = (s - mean) / scale.

Train on it with the settings 'plugins=[docs/own_source.py]' data/source=own 'data.source={name: logistic, scale: 0.3}'
model/prior=gaussian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from imavae.config.variants import SOURCES, SourceSettings
from imavae.errors import require


@dataclass(frozen=True)
class Logistic:
    """What the settings build: draws, log-density and distribution function, in float64 and of shape (n, d).

    With segments (``data.n_segments`` above 1) it also needs ``scaled``, as in imavae/data/sources.py.
    """

    mean: float
    scale: float

    def sample(self, n: int, dim: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` vectors of ``dim`` independent components."""
        uniform = torch.rand(n, dim, generator=generator, dtype=torch.float64)
        return self.mean + self.scale * torch.logit(uniform, eps=1e-16)

    def log_prob(self, s: Tensor) -> Tensor:
        """The log-density, summed over components: of shape (n,)."""
        t = (s - self.mean) / self.scale
        return (logsigmoid(t) + logsigmoid(-t) - math.log(self.scale)).sum(1)

    def cdf(self, s: Tensor) -> Tensor:
        """The distribution function at each component."""
        return torch.sigmoid((s - self.mean) / self.scale)


@SOURCES.register
@dataclass(frozen=True)
class LogisticSource(SourceSettings):
    """Independent logistic sources: the settings, under the name that data.source.name gives."""

    name: str = "logistic"
    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(self.scale > 0, "data.source.scale > 0", f"scale={self.scale}", "it stretches the sources: say 1")

    @property
    def extent(self) -> tuple[float, float]:
        """The middle and the half-width of where the sources lie, all but 1 in 200; a Möbius pole lies beyond."""
        return self.mean, 6 * self.scale

    def build(self) -> Logistic:
        """The source itself."""
        return Logistic(self.mean, self.scale)
