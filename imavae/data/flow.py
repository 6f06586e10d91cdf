"""Affine coupling layers: one half of the dimensions scales and shifts the other half, in turn (Dinh et al.,
arXiv 1605.08803). A layer takes (a, b) to (a, b * exp(r(a)) + t(a)), with one random tanh network for both:

    h = tanh(W a + c),  r(a) = tanh(R h),  t(a) = T h.

r lies within (-1, 1), so no source is scaled by more than e in a layer. Arrays are (observation, dimension), float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True)
class Coupling:
    """The network of one layer, and whether it reads the second half and changes the first."""

    hidden: Float64[Tensor, "width h"]  # W
    offset: Float64[Tensor, " width"]  # c
    rate: Float64[Tensor, "h width"]  # R
    move: Float64[Tensor, "h width"]  # T
    swapped: bool

    def halves(self, dim: int) -> tuple[slice, slice]:
        """Where a and b stand among ``dim`` dimensions."""
        first, second = slice(0, dim // 2), slice(dim // 2, dim)
        return (second, first) if self.swapped else (first, second)

    def read(self, a: Float64[Tensor, "n h"]) -> tuple[Float64[Tensor, "n h"], Float64[Tensor, "n h"]]:
        """r(a) and t(a)."""
        h = torch.tanh(a @ self.hidden.T + self.offset)
        return torch.tanh(h @ self.rate.T), h @ self.move.T

    def derivatives(self, a: Float64[Tensor, "n h"]) -> tuple[Float64[Tensor, "n h h"], Float64[Tensor, "n h h"]]:
        """The Jacobians of r and t at a."""
        h = torch.tanh(a @ self.hidden.T + self.offset)
        dh = (1 - h.square())[:, :, None] * self.hidden
        return (1 - torch.tanh(h @ self.rate.T).square())[:, :, None] * (self.rate @ dh), self.move @ dh


@dataclass(frozen=True)
class Flow:
    """x = (f_L o ... o f_1)(s) + shift, of coupling layers f_l. Its Jacobian is a product of triangular ones."""

    layers: tuple[Coupling, ...]
    shift: Float64[Tensor, " d"]

    def forward(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        """Observations x = f(s)."""
        for layer in self.layers:
            s = _step(layer, s)
        return s + self.shift

    def inverse(self, x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        """Sources s with f(s) = x."""
        s = x - self.shift
        for layer in reversed(self.layers):
            given, changed = layer.halves(s.shape[1])
            rate, move = layer.read(s[:, given])
            s = _joined(layer, s[:, given], (s[:, changed] - move) * (-rate).exp())
        return s

    def jacobian(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d d"]:
        """J[n, i, k] = d f_i / d s_k at s[n]."""
        jacobian = torch.eye(s.shape[1], dtype=s.dtype, device=s.device).expand(len(s), -1, -1)
        for layer in self.layers:
            given, changed = layer.halves(s.shape[1])
            scale = layer.read(s[:, given])[0].exp()
            rates, moves = layer.derivatives(s[:, given])
            through_a = (scale * s[:, changed])[:, :, None] * rates + moves
            lower = through_a @ jacobian[:, given] + scale[:, :, None] * jacobian[:, changed]
            jacobian = _joined(layer, jacobian[:, given], lower)
            s = _step(layer, s)
        return jacobian

    def log_det(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """The log-determinant log |det J|: the sum of all r."""
        total = s.new_zeros(len(s))
        for layer in self.layers:
            given, _ = layer.halves(s.shape[1])
            total = total + layer.read(s[:, given])[0].sum(1)
            s = _step(layer, s)
        return total

    def shifted(self, by: Float64[Tensor, " d"]) -> Flow:
        """The same mixing with ``by`` added to its observations."""
        return replace(self, shift=self.shift + by)


def _step(layer: Coupling, s: Tensor) -> Tensor:
    given, changed = layer.halves(s.shape[1])
    rate, move = layer.read(s[:, given])
    return _joined(layer, s[:, given], s[:, changed] * rate.exp() + move)


def _joined(layer: Coupling, given: Tensor, changed: Tensor) -> Tensor:
    """Both halves, along the second axis, where they belong."""
    return torch.cat((changed, given) if layer.swapped else (given, changed), 1)


def random_coupling(dim: int, width: int, swapped: bool, generator: torch.Generator) -> Coupling:
    """A layer with Gaussian weights: pre-activations of the size that bends tanh, for sources of order one."""
    half = dim // 2

    def draw(*shape: int, std: float) -> Tensor:
        return std * torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, offset = draw(width, half, std=2 / math.sqrt(half)), draw(width, std=1.0)
    rate, move = draw(half, width, std=1 / math.sqrt(width)), draw(half, width, std=1 / math.sqrt(width))
    return Coupling(hidden, offset, rate, move, swapped)
