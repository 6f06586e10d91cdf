"""Linear mixing x = W s, and a linear map after another mixing, x = L f(s)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxtyping import Float64
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from imavae.config.data import MIXINGS, MixingSettings, SyntheticData
from imavae.config.registry import torch
from imavae.data.mixings import Mixing, Shifted, general, orthogonal


@MIXINGS.register
@checked_dataclass(frozen=True)
class LinearMixing(MixingSettings):
    """x = W s with a random W."""

    name: str = "linear"
    weights: Annotated[
        Literal["orthogonal", "general"],
        Field(description="W: orthogonal, or general (Gaussian entries, unit determinant)"),
    ] = "orthogonal"

    def build(self, data: SyntheticData, generator: torch.Generator) -> Linear:
        weight = orthogonal if self.weights == "orthogonal" else general
        return Linear(weight(data.dim, generator))


@dataclass(frozen=True)
class Linear(Mixing):
    """x = W s."""

    matrix: Float64[torch.Tensor, "d d"]

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        return s @ self.matrix.T

    def inverse(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        s: torch.Tensor = torch.linalg.solve(self.matrix, x.T).T
        return s

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d d"]:
        return self.matrix.expand(len(s), -1, -1)

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        value: torch.Tensor = torch.linalg.slogdet(self.matrix).logabsdet
        return value.expand(len(s))


@dataclass(frozen=True)
class LinearOnTop(Mixing):
    """x = L f(s)."""

    inner: Mixing
    linear: Linear

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        return self.linear.forward(self.inner.forward(s))

    def inverse(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        return self.inner.inverse(self.linear.inverse(x))

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d d"]:
        return self.linear.matrix @ self.inner.jacobian(s)

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        return self.linear.log_det(s) + self.inner.log_det(s)


def linear_part(mixing: Mixing) -> Float64[torch.Tensor, "d d"] | None:
    """The matrix of the linear map that a mixing is or ends with; None where it has none."""
    match mixing:
        case Shifted(inner=inner):
            return linear_part(inner)
        case LinearOnTop(linear=linear):
            return linear.matrix
        case Linear():
            return mixing.matrix
    return None
