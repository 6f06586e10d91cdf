"""A prior of your own: the logistic law, p(z) = e^-t / (scale (1 + e^-t)^2) with t = (z - mean) / scale.

Train with it with the settings 'plugins=[docs/own_prior.py]' data/source=gaussian model/prior=own
'model.prior={name: logistic, scale: 0.5, parameters: learned}'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from imavae.config.variants import PRIORS, PriorSettings
from imavae.errors import require
from imavae.model.priors import Interval, Prior, Theta


@dataclass(frozen=True)
class Logistic(Prior):
    """What the settings build; theta = (mean, log scale), tensors that broadcast against y (member, latent, batch).

    It lives on the whole line, where z = y. A bounded prior has a ``support`` and gives the density of y, where
    z = low + (high - low) sigmoid(y), as :class:`imavae.model.priors.Beta` does.
    """

    start: tuple[float, ...]
    free: tuple[int, ...] = (1,)  # the positions in theta of what ``parameters: learned`` learns

    def log_prob(self, y: Tensor, theta: Theta) -> Tensor:
        """The log-density of each component."""
        t = (y - theta[0]) * (-theta[1]).exp()
        return logsigmoid(t) + logsigmoid(-t) - theta[1]

    def curvature(self, y: Tensor, theta: Theta) -> Tensor:
        """Minus its second derivative."""
        t = (y - theta[0]) * (-theta[1]).exp()
        return 2 * torch.sigmoid(t) * torch.sigmoid(-t) * (-2 * theta[1]).exp()

    def variance(self, theta: Theta) -> Tensor:
        """Of a latent."""
        return math.pi**2 / 3 * (2 * theta[1]).exp()

    def cdf(self, z: Tensor, theta: Theta) -> Tensor:
        """The distribution function."""
        return torch.sigmoid((z - theta[0]) * (-theta[1]).exp())


@PRIORS.register
@dataclass(frozen=True)
class LogisticPrior(PriorSettings):
    """Independent logistic latents: the settings, under the name that model.prior.name gives."""

    name: str = "logistic"
    mean: float = 0.0
    scale: float = 1.0
    parameters: Literal["fixed", "learned", "conditional"] = "fixed"

    def __post_init__(self) -> None:
        require(self.scale > 0, "model.prior.scale > 0", f"scale={self.scale}", "it stretches the latents: say 1")

    def build(self, support: Interval) -> Logistic:
        """The prior itself; ``support``, the interval of its latents, is the whole line unless it is ``bounded``."""
        return Logistic((self.mean, math.log(self.scale)))
