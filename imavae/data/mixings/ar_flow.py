"""Affine autoregressive flow of the paper's experiment (Khemakhem et al., arXiv 2011.02268): each layer changes the
same half b of the dimensions, given the other half a. A layer takes (a, b) to (a', b') with

    a' = (a - e) * exp(-e),  b' = (b - t(a')) * exp(-r(a')),

where e is Gaussian, and r and t are random networks of one hidden layer of leaky ReLUs. Arrays are (observation,
dimension) in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float64
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from imavae.config.data import MIXINGS, SyntheticData
from imavae.config.registry import torch
from imavae.data.mixings import Mixing
from imavae.data.mixings.flow import Flow, FlowMixing

SLOPE = 0.2  # of the leaky ReLU below zero


@MIXINGS.register
@checked_dataclass(frozen=True)
class AutoregressiveMixing(FlowMixing):
    """The paper's affine autoregressive flow: every layer changes the same half of the dimensions."""

    name: str = "ar_flow"
    n_layers: Annotated[int, Field(ge=1, description="autoregressive layers")] = 2
    width: Annotated[int, Field(ge=1, description="hidden units of the random networks for scale and shift")] = 10

    def build(self, data: SyntheticData, generator: torch.Generator) -> Flow:
        """Draw weights and biases from U(-1, 1) / sqrt(inputs), as torch initialises a linear layer; e from N(0, 1)."""
        half = data.dim // 2

        def linear(inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
            drawn = torch.rand(outputs, inputs + 1, generator=generator, dtype=torch.float64)
            weight = (2 * drawn - 1) / inputs**0.5
            return weight[:, :-1], weight[:, -1]

        def network() -> Network:
            return Network(*linear(half, self.width), *linear(self.width, half))

        def layer() -> Autoregressive:
            base = torch.randn(half, generator=generator, dtype=torch.float64)
            return Autoregressive(base, network(), network())

        return Flow(tuple(layer() for _ in range(self.n_layers)))


@dataclass(frozen=True)
class Network:
    """V leaky_relu(W a + c) + d."""

    hidden: Float64[torch.Tensor, "width h"]  # W
    offset: Float64[torch.Tensor, " width"]  # c
    outer: Float64[torch.Tensor, "h width"]  # V
    shift: Float64[torch.Tensor, " h"]  # d

    def __call__(self, a: Float64[torch.Tensor, "n h"]) -> Float64[torch.Tensor, "n h"]:
        inner = torch.nn.functional.leaky_relu(a @ self.hidden.T + self.offset, SLOPE)
        return inner @ self.outer.T + self.shift

    def jacobian(self, a: Float64[torch.Tensor, "n h"]) -> Float64[torch.Tensor, "n h h"]:
        above = (a @ self.hidden.T + self.offset > 0).to(a.dtype)
        slopes = SLOPE + (1 - SLOPE) * above
        return self.outer @ (slopes[:, :, None] * self.hidden)


@dataclass(frozen=True)
class Autoregressive(Mixing):
    """One layer."""

    base: Float64[torch.Tensor, " h"]  # e
    rate: Network  # r
    move: Network  # t

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        a, b = s.chunk(2, 1)
        a = (a - self.base) * (-self.base).exp()
        return torch.cat((a, (b - self.move(a)) * (-self.rate(a)).exp()), 1)

    def inverse(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        a, b = x.chunk(2, 1)
        return torch.cat((a * self.base.exp() + self.base, b * self.rate(a).exp() + self.move(a)), 1)

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d d"]:
        a, b = self.forward(s).chunk(2, 1)
        scale, half = (-self.rate(a)).exp(), a.shape[1]
        jacobian = s.new_zeros(len(s), 2 * half, 2 * half)
        jacobian[:, :half, :half] = (-self.base).exp().diag()
        by_a = scale[:, :, None] * self.move.jacobian(a) + b[:, :, None] * self.rate.jacobian(a)
        jacobian[:, half:, :half] = -by_a * (-self.base).exp()
        jacobian[:, half:, half:] = scale.diag_embed()
        return jacobian

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        a = self.forward(s)[:, : len(self.base)]
        return -self.base.sum() - self.rate(a).sum(1)
