"""The linear mixing x = W s, the invertible MLP, and a linear map after another mixing, x = L f(s).

The MLP has square weights and the smooth leaky ReLU, a(h) = slope h + (1 - slope) log(1 + e^h).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from jaxtyping import Float64
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from imavae.config.data import MIXINGS, MixingSettings, SyntheticData
from imavae.config.registry import torch
from imavae.data.mixings import Mixing, Shifted, general, orthogonal, triangular, uniform

NEWTON_STEPS = 100


@MIXINGS.register
@checked_dataclass(frozen=True)
class LinearMixing(MixingSettings):
    """x = W s with a random W."""

    name: str = "linear"
    weights: Annotated[
        Literal["orthogonal", "general"],
        Field(description="W: orthogonal, or general (Gaussian entries, unit determinant)"),
    ] = "orthogonal"

    def build(self, data: SyntheticData, generator: torch.Generator) -> MLP:
        weight = orthogonal if self.weights == "orthogonal" else general
        return MLP((weight(data.dim, generator),), slope=1.0)


@MIXINGS.register
@checked_dataclass(frozen=True)
class MLPMixing(MixingSettings):
    """x = W_L a(... a(W_1 s)), a(h) = slope h + (1 - slope) log(1 + e^h), the smooth leaky ReLU."""

    name: str = "mlp"
    n_layers: Annotated[int, Field(ge=1, description="linear maps, with an activation between two of them")] = 2
    weights: Annotated[
        Literal["orthogonal", "uniform", "triangular"],
        Field(description="the maps: orthogonal, uniform entries, or lower triangular with a unit diagonal"),
    ] = "orthogonal"
    slope: Annotated[
        float, Field(gt=0, le=1, description="of the smooth leaky ReLU at minus infinity; 1: a linear mixing")
    ] = 0.2
    off_diagonal: Annotated[
        float, Field(gt=0, description="standard deviation below the unit diagonal of a triangular weight")
    ] = 1.0

    def build(self, data: SyntheticData, generator: torch.Generator) -> MLP:
        below = functools.partial(triangular, std=self.off_diagonal)
        laws: dict[str, Any] = {"orthogonal": orthogonal, "uniform": uniform, "triangular": below}
        return MLP(tuple(laws[self.weights](data.dim, generator) for _ in range(self.n_layers)), self.slope)


@dataclass(frozen=True)
class MLP(Mixing):
    """x = W_L a(... a(W_1 s)); linear with a single weight."""

    weights: tuple[Float64[torch.Tensor, "d d"], ...]
    slope: float

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        for weight in self.weights[:-1]:
            s = self._activate(s @ weight.T)
        return s @ self.weights[-1].T

    def inverse(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        x = torch.linalg.solve(self.weights[-1], x.T).T
        for weight in reversed(self.weights[:-1]):
            x = torch.linalg.solve(weight, self._deactivate(x).T).T
        return x

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d d"]:
        jacobian = torch.eye(s.shape[1], dtype=s.dtype, device=s.device).expand(len(s), -1, -1)
        for weight in self.weights[:-1]:
            h = s @ weight.T
            jacobian = self._derivative(h)[:, :, None] * (weight @ jacobian)
            s = self._activate(h)
        return self.weights[-1] @ jacobian

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        total = s.new_zeros(len(s))
        for weight in self.weights[:-1]:
            h = s @ weight.T
            total = total + self._derivative(h).log().sum(1)
            s = self._activate(h)
        for weight in self.weights:
            total = total + torch.linalg.slogdet(weight).logabsdet
        return total

    def _activate(self, h: torch.Tensor) -> torch.Tensor:
        softplus = torch.nn.functional.softplus(h, threshold=40)  # the default threshold, 20, is off by 2e-9 there
        return self.slope * h + (1 - self.slope) * softplus

    def _derivative(self, h: torch.Tensor) -> torch.Tensor:
        return self.slope + (1 - self.slope) * torch.sigmoid(h)

    def _deactivate(self, y: torch.Tensor) -> torch.Tensor:
        """The inverse of the activation, by Newton's method: it is increasing and convex, so any start converges."""
        h = y
        for _ in range(NEWTON_STEPS):
            step = (self._activate(h) - y) / self._derivative(h)
            h = h - step
            if step.abs().max() < 1e-14 * (1 + h.abs().max()):
                break
        return h


@dataclass(frozen=True)
class LinearOnTop(Mixing):
    """x = L f(s)."""

    inner: Mixing
    linear: Float64[torch.Tensor, "d d"]  # L

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        return self.inner.forward(s) @ self.linear.T

    def inverse(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        return self.inner.inverse(torch.linalg.solve(self.linear, x.T).T)

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d d"]:
        return self.linear @ self.inner.jacobian(s)

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        constant: torch.Tensor = torch.linalg.slogdet(self.linear).logabsdet
        return self.inner.log_det(s) + constant


def linear_part(mixing: Mixing) -> Float64[torch.Tensor, "d d"] | None:
    """The matrix of the linear map that a mixing is, or that follows it; None where there is none."""
    match mixing:
        case Shifted(inner=inner):
            return linear_part(inner)
        case LinearOnTop(linear=matrix) | MLP(weights=(matrix,)):
            return matrix
    return None
