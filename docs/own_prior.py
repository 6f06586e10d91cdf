"""Example of a prior: the logistic law, p(z) = e^-t / (scale (1 + e^-t)^2) with t = (z - mean) / scale.

Train with it with the settings 'plugins=[docs/own_prior.py]' data/source=gaussian model/prior=own
'model.prior={name: logistic, scale: 0.5, parameters: learned}'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from imavae.config.settings import PRIORS, PriorSettings
from imavae.model.priors import Interval, Prior, Theta


@PRIORS.register
@checked_dataclass(frozen=True)
class LogisticPrior(PriorSettings):
    """The settings; ``model.prior.name`` chooses them by their name."""

    name: str = "logistic"
    mean: Annotated[float, Field(description="of every latent")] = 0.0
    scale: Annotated[float, Field(gt=0, description="the standard deviation is pi / sqrt(3) times it")] = 1.0
    parameters: Literal["fixed", "learned", "conditional"] = "fixed"

    def build(self, support: Interval) -> Logistic:
        """Return the prior; ``support``, the interval of its latents, is the whole line unless it is ``bounded``."""
        return Logistic((self.mean, math.log(self.scale)))


@dataclass(frozen=True)
class Logistic(Prior):
    """The prior; theta = (mean, log scale), tensors that broadcast against y (member, latent, batch).

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
        """Variance of a latent."""
        return math.pi**2 / 3 * (2 * theta[1]).exp()

    def cdf(self, z: Tensor, theta: Theta) -> Tensor:
        """The distribution function."""
        return torch.sigmoid((z - theta[0]) * (-theta[1]).exp())
