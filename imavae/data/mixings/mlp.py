"""The linear mixing x = W s, the invertible MLP, and a linear map after another mixing, x = L f(s).

The MLP has square weights W_l, but W_1 is taller if an observation has more numbers than there are sources: then
observations lie on a bent surface. Its activation is the smooth leaky ReLU, a(h) = slope h + (1 - slope) log(1 + e^h),
or the leaky tanh, a(h) = slope h + (1 - slope) tanh h. Both increase, so the MLP is invertible.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Float64
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from imavae.config.data import MIXINGS, MixingSettings, SyntheticData
from imavae.config.registry import torch
from imavae.data.mixings import (
    Mixing,
    Shifted,
    general,
    log_volume,
    orthogonal,
    positive,
    solved,
    triangular,
    uniform,
)

NEWTON_STEPS = 100
Activation = Literal["leaky_relu", "leaky_tanh"]


@MIXINGS.register
@checked_dataclass(frozen=True)
class LinearMixing(MixingSettings):
    """x = W s with a random W."""

    name: str = "linear"
    embeds: ClassVar[bool] = True
    weights: Annotated[
        Literal["orthogonal", "general"],
        Field(description="W: orthogonal columns, or general (Gaussian entries, unit determinant)"),
    ] = "orthogonal"

    def build(self, data: SyntheticData, generator: torch.Generator) -> MLP:
        weight = orthogonal if self.weights == "orthogonal" else general
        return MLP((weight(data.features, generator, data.dim),), slope=1.0)


@MIXINGS.register
@checked_dataclass(frozen=True)
class MLPMixing(MixingSettings):
    """x = W_L a(... a(gain W_1 s)) where a is a smooth leaky ReLU or a leaky tanh."""

    name: str = "mlp"
    embeds: ClassVar[bool] = True
    n_layers: Annotated[int, Field(ge=1, description="linear maps, with an activation between two of them")] = 2
    weights: Annotated[
        Literal["orthogonal", "uniform", "positive", "triangular"],
        Field(description="maps: orthogonal, U(-1, 1) entries, U(1, 3) entries, or lower triangular"),
    ] = "orthogonal"
    activation: Annotated[Activation, Field(description="smooth leaky ReLU, or slope h + (1 - slope) tanh h")] = (
        "leaky_relu"
    )
    slope: Annotated[float, Field(gt=0, le=1, description="of the activation at minus infinity; 1: linear")] = 0.2
    gain: Annotated[float, Field(gt=0, description="of the input of each activation: a larger one bends more")] = 1.0
    off_diagonal: Annotated[
        float, Field(gt=0, description="standard deviation below the unit diagonal of a triangular weight")
    ] = 1.0

    def build(self, data: SyntheticData, generator: torch.Generator) -> MLP:
        below = functools.partial(triangular, std=self.off_diagonal)
        laws: dict[str, Any] = {"orthogonal": orthogonal, "uniform": uniform, "positive": positive, "triangular": below}
        sizes = [data.dim, *(data.features,) * self.n_layers]
        *inner, last = (laws[self.weights](o, generator, d) for d, o in itertools.pairwise(sizes))
        return MLP((*(self.gain * weight for weight in inner), last), self.slope, self.activation)


@dataclass(frozen=True)
class MLP(Mixing):
    """x = W_L a(... a(W_1 s)); linear with a single weight."""

    weights: tuple[Float64[torch.Tensor, "o _"], ...]  # all but the first are square
    slope: float
    activation: Activation = "leaky_relu"

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n o"]:
        for weight in self.weights[:-1]:
            s = self._activate(s @ weight.T)
        return s @ self.weights[-1].T

    def inverse(self, x: Float64[torch.Tensor, "n o"]) -> Float64[torch.Tensor, "n d"]:
        x = solved(self.weights[-1], x)
        for weight in reversed(self.weights[:-1]):
            x = solved(weight, self._deactivate(x))
        return x

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n o d"]:
        jacobian = torch.eye(s.shape[1], dtype=s.dtype, device=s.device).expand(len(s), -1, -1)
        for weight in self.weights[:-1]:
            h = s @ weight.T
            jacobian = self._derivative(h)[:, :, None] * (weight @ jacobian)
            s = self._activate(h)
        return self.weights[-1] @ jacobian

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        if len(self.weights[0]) > s.shape[1]:
            return log_volume(self.jacobian(s))
        total = s.new_zeros(len(s))
        for weight in self.weights[:-1]:
            h = s @ weight.T
            total = total + self._derivative(h).log().sum(1)
            s = self._activate(h)
        for weight in self.weights:
            total = total + torch.linalg.slogdet(weight).logabsdet
        return total

    def _activate(self, h: torch.Tensor) -> torch.Tensor:
        if self.activation == "leaky_tanh":
            return self.slope * h + (1 - self.slope) * torch.tanh(h)
        softplus = torch.nn.functional.softplus(h, threshold=40)  # the default threshold, 20, is off by 2e-9 there
        return self.slope * h + (1 - self.slope) * softplus

    def _derivative(self, h: torch.Tensor) -> torch.Tensor:
        bent = 1 - torch.tanh(h).square() if self.activation == "leaky_tanh" else torch.sigmoid(h)
        return self.slope + (1 - self.slope) * bent

    def _deactivate(self, y: torch.Tensor) -> torch.Tensor:
        """The inverse of the activation, by Newton's method.

        It converges: the leaky ReLU increases and is convex. The leaky tanh increases and is odd, |a(h)| <= |h|, and it
        is concave where h > 0, so that the steps go from h = y away from zero, up to the solution.
        """
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
    linear: Float64[torch.Tensor, "o d"]  # L

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n o"]:
        return self.inner.forward(s) @ self.linear.T

    def inverse(self, x: Float64[torch.Tensor, "n o"]) -> Float64[torch.Tensor, "n d"]:
        return self.inner.inverse(solved(self.linear, x))

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n o d"]:
        return self.linear @ self.inner.jacobian(s)

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        return self.inner.log_det(s) + log_volume(self.linear)


def linear_part(mixing: Mixing) -> Float64[torch.Tensor, "o d"] | None:
    """The matrix of the linear map that a mixing is, or that follows it; None where there is none."""
    match mixing:
        case Shifted(inner=inner):
            return linear_part(inner)
        case LinearOnTop(linear=matrix) | MLP(weights=(matrix,)):
            return matrix
    return None
