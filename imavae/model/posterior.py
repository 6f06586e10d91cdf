"""Posterior q(y|x) = N(mu(x), diag sigma^2(x)) in the unconstrained coordinate.

z(y) pushes it onto the prior's support. Shapes are (member, feature, batch); an encoder's output holds mu and log
sigma^2, one after the other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Posterior(NamedTuple):
    """A diagonal Gaussian over y."""

    mean: Float[Tensor, "member d batch"]
    log_variance: Float[Tensor, "member d batch"]

    def sample(self, noise: Float[Tensor, "member d batch"]) -> Float[Tensor, "member d batch"]:
        """The sample y = mu + sigma noise, for standard normal noise."""
        return torch.addcmul(self.mean, (0.5 * self.log_variance).exp(), noise)

    def entropy(self) -> Float[Tensor, "member d batch"]:
        """Of each component, in nats."""
        return 0.5 * self.log_variance + 0.5 * (1 + math.log(2 * math.pi))


def from_encoding(encoding: Float[Tensor, "member e batch"]) -> Posterior:
    """The posterior that an encoder's output stands for."""
    dim = encoding.shape[1] // 2
    return Posterior(encoding[:, :dim], encoding[:, dim:])
