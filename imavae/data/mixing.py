"""Ground-truth mixings x = f(s): each knows its inverse, its Jacobian and log |det J|, all in float64 and in agreement.

Arrays are (observation, dimension). A mixing ends with a shift, which centres the data: it is part of f, so that f(s)
is exactly the observation that the models see.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import softplus

from imavae.config.data import DrawnData, SyntheticData
from imavae.config.variants import FlowMixing, LinearMixing, MixingSettings, MLPMixing, MoebiusMixing
from imavae.data import matrices
from imavae.data.flow import Flow, random_coupling
from imavae.data.own import build_own
from imavae.rng import stream

M = TypeVar("M", bound="Mixing")


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
class Moebius(Mixing):
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
        eye = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
        return self.matrix @ (eye - 2 * r[:, :, None] * r[:, None, :] / norm) / norm

    def log_det(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        return -s.shape[1] * (s - self.centre).square().sum(1).log()

    def shifted(self, by: Float64[Tensor, " d"]) -> Moebius:
        return replace(self, shift=self.shift + by)


@dataclass(frozen=True)
class MLP(Mixing):
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
        jacobian = torch.eye(s.shape[1], dtype=s.dtype, device=s.device).expand(len(s), -1, -1)
        for weight in self.weights[:-1]:
            h = s @ weight.T
            jacobian = self._derivative(h)[:, :, None] * (weight @ jacobian)
            s = self._activate(h)
        return self.weights[-1] @ jacobian

    def log_det(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        total = s.new_zeros(len(s))
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


@dataclass(frozen=True)
class Linear(Mixing):
    """x = W s + shift."""

    matrix: Float64[Tensor, "d d"]
    shift: Float64[Tensor, " d"]

    def forward(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        return s @ self.matrix.T + self.shift

    def inverse(self, x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        s: Tensor = torch.linalg.solve(self.matrix, (x - self.shift).T).T
        return s

    def jacobian(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d d"]:
        return self.matrix.expand(len(s), -1, -1)

    def log_det(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        value: Tensor = torch.linalg.slogdet(self.matrix).logabsdet
        return value.expand(len(s))

    def shifted(self, by: Float64[Tensor, " d"]) -> Linear:
        return replace(self, shift=self.shift + by)


@dataclass(frozen=True)
class LinearOnTop(Mixing):
    """x = L f(s) + shift: a linear map after another mixing."""

    inner: Mixing
    linear: Linear

    def forward(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        return self.linear.forward(self.inner.forward(s))

    def inverse(self, x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        return self.inner.inverse(self.linear.inverse(x))

    def jacobian(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d d"]:
        return self.linear.matrix @ self.inner.jacobian(s)

    def log_det(self, s: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        return self.linear.log_det(s) + self.inner.log_det(s)

    def shifted(self, by: Float64[Tensor, " d"]) -> LinearOnTop:
        return replace(self, linear=self.linear.shifted(by))


def moved(mixing: M, device: torch.device | str) -> M:
    """The same mixing with its arrays on a device; a person's own one is a dataclass, too."""

    def move(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.to(device)
        if isinstance(part, tuple):
            return tuple(move(item) for item in part)
        if is_dataclass(part) and not isinstance(part, type):
            return replace(part, **{field.name: move(getattr(part, field.name)) for field in fields(part)})
        return part

    moved_mixing: M = move(mixing)
    return moved_mixing


def linear_part(mixing: Mixing) -> Float64[Tensor, "d d"] | None:
    """The matrix of the linear map that a mixing ends with, or is; None where it has none."""
    match mixing:
        case LinearOnTop(linear=linear):
            return linear.matrix
        case Linear():
            return mixing.matrix
    return None


def build(data: SyntheticData) -> Mixing:
    """The mixing that ``data`` names, with whatever it leaves open drawn from ``data.seed``.

    Raises:
        UserError: a person's own settings that build no mixing.
    """
    return draw(data.mixing, data, stream(data.seed, "mixing"))


@functools.singledispatch
def draw(settings: MixingSettings, data: SyntheticData, generator: torch.Generator) -> Mixing:
    """The mixing that some settings describe; own settings bring a method ``build(data, generator)`` along."""
    return cast(Mixing, build_own(settings, "data.mixing", Mixing, data, generator))


@draw.register
def _(settings: MoebiusMixing, data: SyntheticData, generator: torch.Generator) -> Mixing:
    matrix = matrices.orthogonal(data.dim, generator)
    direction = torch.randn(data.dim, generator=generator, dtype=torch.float64)
    middle, half_diagonal = reach(data)
    centre = middle + settings.distance * half_diagonal * direction / direction.norm()
    if settings.matrix is not None:
        u, _, vh = torch.linalg.svd(torch.tensor(settings.matrix, dtype=torch.float64))
        matrix = u @ vh  # the nearest orthogonal matrix: what was typed is rounded
    if settings.centre is not None:
        centre = torch.tensor(settings.centre, dtype=torch.float64)
    inner = Moebius(matrix, centre, _origin(data))
    match settings.linear:
        case "none":
            return inner
        case "cosine":
            linear = matrices.columns_at(settings.cosine)
        case "unit_determinant":
            linear = matrices.unit_determinant(data.dim, generator)
        case "unit_columns":
            linear = matrices.unit_columns(data.dim, generator)
    return LinearOnTop(inner, Linear(linear, _origin(data)))


@draw.register
def _(settings: MLPMixing, data: SyntheticData, generator: torch.Generator) -> Mixing:
    match settings.weights:
        case "orthogonal":
            weight = functools.partial(matrices.orthogonal, data.dim, generator)
        case "uniform":
            weight = functools.partial(matrices.uniform, data.dim, generator)
        case "triangular":
            weight = functools.partial(matrices.triangular, data.dim, settings.off_diagonal, generator)
    return MLP(tuple(weight() for _ in range(settings.n_layers)), settings.slope, _origin(data))


@draw.register
def _(settings: LinearMixing, data: SyntheticData, generator: torch.Generator) -> Mixing:
    weight = matrices.orthogonal if settings.weights == "orthogonal" else matrices.general
    return Linear(weight(data.dim, generator), _origin(data))


@draw.register
def _(settings: FlowMixing, data: SyntheticData, generator: torch.Generator) -> Mixing:
    swaps = [layer % 2 == 1 for layer in range(settings.n_layers)]
    layers = tuple(random_coupling(data.dim, settings.width, swapped, generator) for swapped in swaps)
    return Flow(layers, _origin(data))


def reach(data: DrawnData) -> tuple[float, float]:
    """The middle of the box that holds the sources for all practical purposes, and its half-diagonal.

    Segments of larger variance widen the box of unbounded sources.
    """
    middle, half_width = data.source.extent
    if data.n_segments > 1 and math.isinf(data.source.support[1]):
        half_width *= math.sqrt(max(1.0, data.variances[1]))
    return middle, half_width * math.sqrt(data.dim)


def _origin(data: SyntheticData) -> Float64[Tensor, " d"]:
    return torch.zeros(data.dim, dtype=torch.float64)
