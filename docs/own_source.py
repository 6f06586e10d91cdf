"""Example of a source: the logistic law, p(s) = e^-t / (scale (1 + e^-t)^2) with t = (s - mean) / scale.

Train on it with the settings 'plugins=[docs/own_source.py]' data/source=own 'data.source={name: logistic, scale: 0.3}'
model/prior=gaussian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from imavae.config.data import SOURCES, SourceSettings


@SOURCES.register
@checked_dataclass(frozen=True)
class LogisticSource(SourceSettings):
    """The settings; ``data.source.name`` chooses them by their name."""

    name: str = "logistic"
    mean: Annotated[float, Field(description="of every source")] = 0.0
    scale: Annotated[float, Field(gt=0, description="the standard deviation is pi / sqrt(3) times it")] = 1.0

    @property
    def extent(self) -> tuple[float, float]:
        """Middle and half-width of an interval that holds all but 1 in 200 sources; the pole of a Möbius map lies
        beyond it.
        """
        return self.mean, 6 * self.scale

    def build(self) -> Logistic:
        """Return the law."""
        return Logistic(self.mean, self.scale)


@dataclass(frozen=True)
class Logistic:
    """The law: its draws, of shape (n, d), and its log-density, in float64.

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
