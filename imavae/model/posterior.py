"""Posterior q(y|x) = N(mu(x), L L^T) in the unconstrained coordinate; L is diagonal, or lower triangular.

z(y) pushes it onto the prior's support. Shapes are (member, feature, batch); an encoder's output holds mu, log L_kk^2
and, for a full covariance, the rows of L below its diagonal, one after the other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Posterior(NamedTuple):
    """A Gaussian over y."""

    mean: Float[Tensor, "member d batch"]
    log_square: Float[Tensor, "member d batch"]  # log L_kk^2: the log-variance, if diagonal
    below: Float[Tensor, "member r batch"] | None  # L below its diagonal, row by row; None: diagonal

    def sample(self, noise: Float[Tensor, "member d batch"]) -> Float[Tensor, "member d batch"]:
        """The sample y = mu + L noise, for standard normal noise."""
        y = torch.addcmul(self.mean, (0.5 * self.log_square).exp(), noise)
        if self.below is None:
            return y
        return y + torch.stack([(row * noise[:, : row.shape[1]]).sum(1) for row in self._rows()], 1)

    def entropy(self) -> Float[Tensor, "member d batch"]:
        """In nats; its sum over d is the posterior's: log det L L^T = sum_k log L_kk^2."""
        return 0.5 * self.log_square + 0.5 * (1 + math.log(2 * math.pi))

    def variance(self) -> Float[Tensor, "member d batch"]:
        """Of each component: the diagonal of L L^T."""
        diagonal = self.log_square.exp()
        if self.below is None:
            return diagonal
        return diagonal + torch.stack([row.square().sum(1) for row in self._rows()], 1)

    def _rows(self) -> list[Tensor]:
        """The rows of L below the diagonal: (member, k, batch) for k = 0, ..., d - 1."""
        assert self.below is not None  # noqa: S101  -- for the type checker
        return list(torch.split(self.below, list(range(self.mean.shape[1])), dim=1))


def encoding_size(dim: int, kind: str) -> int:
    """Numbers that an encoder must give for a ``diagonal`` or ``full`` covariance."""
    return 2 * dim + (dim * (dim - 1) // 2 if kind == "full" else 0)


def from_encoding(encoding: Float[Tensor, "member e batch"], dim: int) -> Posterior:
    """The posterior that an encoder's output stands for."""
    below = encoding[:, 2 * dim :] if encoding.shape[1] > 2 * dim else None
    return Posterior(encoding[:, :dim], encoding[:, dim : 2 * dim], below)
