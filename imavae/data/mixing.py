"""Ground-truth mixings x = f(s): each knows its inverse, its Jacobian and log |det J|, all in float64 and in agreement.

Arrays are (observation, dimension). A mixing ends with a shift, which centres the data: it is part of f, so that f(s)
is exactly the observation that the models see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import softplus

from imavae.config import Data
from imavae.families import MLPMixing, MoebiusMixing
from imavae.data.sources import radius
from imavae.streams import stream


@runtime_checkable
class Mixing(Protocol):
    """A diffeomorphism of R^d, or of an open part of it."""

    def forward(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        """Observations x = f(s)."""
        ...

    def inverse(self, x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        """Sources s with f(s) = x."""
        ...

    def jacobian(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d d"]:
        """J[n, i, k] = d f_i / d s_k at s[n]."""
        ...

    def log_det(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """The log-determinant log |det J| at each s, in nats."""
        ...

    def shifted(self, by: Float64[Tensor, " d"]) -> Mixing:
        """The same mixing with ``by`` added to its observations."""
        ...


@dataclass(frozen=True)
class Moebius:
    """x = A (s - a) / |s - a|^2 + shift, with A orthogonal. Its Jacobian is A (I - 2 u u^T) / |s - a|^2, with
    u = (s - a) / |s - a|: orthogonal columns of equal norm, hence zero IMA contrast (Gresele et al., NeurIPS 2021).
    """

    matrix: Float64[Tensor, "d d"]
    centre: Float64[Tensor, " d"]
    shift: Float64[Tensor, " d"]

    def forward(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        r = s - self.centre
        return r @ self.matrix.T / r.square().sum(1, keepdim=True) + self.shift

    def inverse(self, x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        r = (x - self.shift) @ self.matrix  # the inversion r -> r / |r|^2 undoes itself
        return self.centre + r / r.square().sum(1, keepdim=True)

    def jacobian(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d d"]:
        r = s - self.centre
        norm = r.square().sum(1)[:, None, None]
        eye = torch.eye(s.shape[1], dtype=s.dtype)
        return self.matrix @ (eye - 2 * r[:, :, None] * r[:, None, :] / norm) / norm

    def log_det(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        return -s.shape[1] * (s - self.centre).square().sum(1).log()

    def shifted(self, by: Float64[Tensor, " d"]) -> Moebius:
        return replace(self, shift=self.shift + by)


@dataclass(frozen=True)
class MLP:
    """x = W_L a(... a(W_1 s)) + shift with square W_l and a(h) = slope h + (1 - slope) log(1 + e^h)."""

    weights: tuple[Float64[Tensor, "d d"], ...]
    slope: float
    shift: Float64[Tensor, " d"]

    def forward(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        for weight in self.weights[:-1]:
            s = self._activate(s @ weight.T)
        return s @ self.weights[-1].T + self.shift

    def inverse(self, x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        x = torch.linalg.solve(self.weights[-1], (x - self.shift).T).T
        for weight in reversed(self.weights[:-1]):
            x = torch.linalg.solve(weight, self._deactivate(x).T).T
        return x

    def jacobian(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d d"]:
        jacobian = torch.eye(s.shape[1], dtype=s.dtype).expand(len(s), -1, -1)
        for weight in self.weights[:-1]:
            h = s @ weight.T
            jacobian = self._derivative(h)[:, :, None] * (weight @ jacobian)
            s = self._activate(h)
        return self.weights[-1] @ jacobian

    def log_det(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        total = torch.zeros(len(s), dtype=s.dtype)
        for weight in self.weights[:-1]:
            h = s @ weight.T
            total = total + self._derivative(h).log().sum(1)
            s = self._activate(h)
        for weight in self.weights:
            total = total + torch.linalg.slogdet(weight).logabsdet
        return total

    def shifted(self, by: Float64[Tensor, " d"]) -> MLP:
        return replace(self, shift=self.shift + by)

    def _activate(self, h: Tensor) -> Tensor:
        return self.slope * h + (1 - self.slope) * softplus(h, threshold=40)  # 20, the default, is off by 2e-9 there

    def _derivative(self, h: Tensor) -> Tensor:
        return self.slope + (1 - self.slope) * torch.sigmoid(h)

    def _deactivate(self, y: Tensor) -> Tensor:
        # Newton's method: a is increasing and convex, so from any start it converges, without a bracket.
        h = y
        for _ in range(100):
            step = (self._activate(h) - y) / self._derivative(h)
            h = h - step
            if step.abs().max() < 1e-14 * (1 + h.abs().max()):
                break
        return h


def build(data: Data) -> Mixing:
    """The mixing that ``data`` names, with whatever it leaves open drawn from ``data.seed``."""
    generator = stream(data.seed, "mixing")
    shift = torch.zeros(data.dim, dtype=torch.float64)
    if isinstance(data.mixing, MLPMixing):
        draw = orthogonal if data.mixing.weights == "orthogonal" else uniform
        weights = tuple(draw(data.dim, generator) for _ in range(data.mixing.n_layers))
        return MLP(weights, data.mixing.slope, shift)
    return _moebius(data, data.mixing, generator, shift)


def _moebius(data: Data, mixing: MoebiusMixing, generator: torch.Generator, shift: Tensor) -> Moebius:
    matrix = orthogonal(data.dim, generator)
    direction = torch.randn(data.dim, generator=generator, dtype=torch.float64)
    mean, half_diagonal = radius(data.source, data.dim)
    centre = mean + mixing.distance * half_diagonal * direction / direction.norm()
    if mixing.matrix is not None:
        u, _, vh = torch.linalg.svd(torch.tensor(mixing.matrix, dtype=torch.float64))
        matrix = u @ vh  # the nearest orthogonal matrix: what was typed is rounded
    if mixing.centre is not None:
        centre = torch.tensor(mixing.centre, dtype=torch.float64)
    return Moebius(matrix, centre, shift)


def orthogonal(dim: int, generator: torch.Generator) -> Float64[Tensor, "d d"]:
    """A random orthogonal matrix, uniform over the group (QR of a Gaussian matrix; Mezzadri, arXiv math-ph/0609050)."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return torch.mul(q, r.diagonal().sign())


def uniform(dim: int, generator: torch.Generator) -> Float64[Tensor, "d d"]:
    """A matrix of entries U(-1, 1) with columns of unit norm: of eight draws the best conditioned, since a mixing that
    is nearly singular loses a source for every model.
    """
    best, best_condition = torch.eye(dim, dtype=torch.float64), math.inf
    for _ in range(8):
        draw = 2 * torch.rand(dim, dim, generator=generator, dtype=torch.float64) - 1
        draw = draw / draw.norm(dim=0)
        condition = float(torch.linalg.cond(draw))
        if condition < best_condition:
            best, best_condition = draw, condition
    return best
