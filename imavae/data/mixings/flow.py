"""Affine coupling flow x = f_L(... f_1(s)): in turn, one half of the dimensions scales and shifts the other half
(Dinh et al., arXiv 1605.08803). A layer takes (a, b) to (a, b * exp(r(a)) + t(a)), with one random tanh network:

    h = tanh(W a + c),  r(a) = tanh(R h),  t(a) = T h.

r lies within (-1, 1), so a layer scales no source by more than e. Arrays are (observation, dimension) in float64.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float64
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from imavae.config.data import MIXINGS, MixingSettings, SyntheticData
from imavae.config.registry import torch
from imavae.data.mixings import Mixing
from imavae.errors import require


@MIXINGS.register
@checked_dataclass(frozen=True)
class FlowMixing(MixingSettings):
    """Affine coupling layers with random weights: one half of the dimensions scales and shifts the other, in turn."""

    name: str = "flow"
    n_layers: Annotated[int, Field(ge=2, description="coupling layers")] = 4
    usual_dim: ClassVar[int] = 4
    width: Annotated[int, Field(ge=1, description="hidden units of the random network for scale and shift")] = 8

    def check(self, data: SyntheticData) -> None:
        rule, remedy = "data.dim is even and above 2 for the flow", "its layers need two halves: set data.dim=4"
        require(data.dim > 2 and data.dim % 2 == 0, rule, data.dim, remedy)

    def build(self, data: SyntheticData, generator: torch.Generator) -> Flow:
        """Draw Gaussian weights: pre-activations of the size that bends tanh, for sources of order one."""
        half, width = data.dim // 2, self.width

        def draw(*shape: int, std: float) -> torch.Tensor:
            return std * torch.randn(*shape, generator=generator, dtype=torch.float64)

        layers = []
        for number in range(self.n_layers):
            hidden, offset = draw(width, half, std=2 / math.sqrt(half)), draw(width, std=1.0)
            rate, move = draw(half, width, std=1 / math.sqrt(width)), draw(half, width, std=1 / math.sqrt(width))
            layers.append(Coupling(hidden, offset, rate, move, swapped=number % 2 == 1))
        return Flow(tuple(layers))


@dataclass(frozen=True)
class Coupling(Mixing):
    """One layer: the network that reads a and gives r(a) and t(a)."""

    hidden: Float64[torch.Tensor, "width h"]  # W
    offset: Float64[torch.Tensor, " width"]  # c
    rate: Float64[torch.Tensor, "h width"]  # R
    move: Float64[torch.Tensor, "h width"]  # T
    swapped: bool  # True: a is the second half of the dimensions

    def halves(self, dim: int) -> tuple[slice, slice]:
        """Positions of a and b among ``dim`` dimensions."""
        first, second = slice(0, dim // 2), slice(dim // 2, dim)
        return (second, first) if self.swapped else (first, second)

    def read(
        self, a: Float64[torch.Tensor, "n h"]
    ) -> tuple[Float64[torch.Tensor, "n h"], Float64[torch.Tensor, "n h"]]:
        h = torch.tanh(a @ self.hidden.T + self.offset)
        return torch.tanh(h @ self.rate.T), h @ self.move.T

    def derivatives(
        self, a: Float64[torch.Tensor, "n h"]
    ) -> tuple[Float64[torch.Tensor, "n h h"], Float64[torch.Tensor, "n h h"]]:
        """The Jacobians of r and t at a."""
        h = torch.tanh(a @ self.hidden.T + self.offset)
        dh = (1 - h.square())[:, :, None] * self.hidden
        return (1 - torch.tanh(h @ self.rate.T).square())[:, :, None] * (self.rate @ dh), self.move @ dh

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        given, changed = self.halves(s.shape[1])
        rate, move = self.read(s[:, given])
        return self.joined(s[:, given], s[:, changed] * rate.exp() + move)

    def inverse(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        given, changed = self.halves(x.shape[1])
        rate, move = self.read(x[:, given])
        return self.joined(x[:, given], (x[:, changed] - move) * (-rate).exp())

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d d"]:
        given, changed = self.halves(s.shape[1])
        scale = self.read(s[:, given])[0].exp()
        rates, moves = self.derivatives(s[:, given])
        jacobian = torch.eye(s.shape[1], dtype=s.dtype, device=s.device).repeat(len(s), 1, 1)
        jacobian[:, changed, changed] = scale.diag_embed()
        jacobian[:, changed, given] = (scale * s[:, changed])[:, :, None] * rates + moves
        return jacobian

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        return self.read(s[:, self.halves(s.shape[1])[0]])[0].sum(1)

    def joined(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Both halves along the second axis, each at its position."""
        return torch.cat((b, a) if self.swapped else (a, b), 1)


@dataclass(frozen=True)
class Flow(Mixing):
    """x = f_L(... f_1(s)) of layers f_l."""

    layers: tuple[Mixing, ...]  # maps of R^d, but for the last one

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n o"]:
        for layer in self.layers:
            s = layer.forward(s)
        return s

    def inverse(self, x: Float64[torch.Tensor, "n o"]) -> Float64[torch.Tensor, "n d"]:
        for layer in reversed(self.layers):
            x = layer.inverse(x)
        return x

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n o d"]:
        jacobian = self.layers[0].jacobian(s)
        for before, layer in itertools.pairwise(self.layers):
            s = before.forward(s)
            jacobian = layer.jacobian(s) @ jacobian
        return jacobian

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        total = s.new_zeros(len(s))
        for layer in self.layers:
            total = total + layer.log_det(s)
            s = layer.forward(s)
        return total
