"""Ground-truth mixings x = f(s): the settings of each, and f with its inverse, its Jacobian and log |det J|.

Arrays are (observation, dimension) in float64. To add a mixing, add a module here: a class of settings in the registry
``MIXINGS``, whose ``build(data, generator)`` returns a :class:`Mixing`. Here, too, are random matrices to build with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float64

from imavae.config.registry import torch

M = TypeVar("M", bound="Mixing")
NEARLY_SINGULAR = 1e3  # condition number from which a source is too small to be found by any model


@runtime_checkable
class Mixing(Protocol):
    """A diffeomorphism of R^d, or of an open part of it, onto R^d or a surface in R^o, o > d."""

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n o"]:
        """Observations x = f(s)."""

    def inverse(self, x: Float64[torch.Tensor, "n o"]) -> Float64[torch.Tensor, "n d"]:
        """Sources s with f(s) = x."""

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n o d"]:
        """J[n, i, k] = d f_i / d s_k at s[n]."""

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        """The log-determinant log |det J| at each s, in nats; of a surface, ½ log det JᵀJ."""


@dataclass(frozen=True)
class Shifted(Mixing):
    """x = f(s) + shift. The shift centres the data; it is part of the mixing, so that x is exactly what models see."""

    inner: Mixing
    shift: Float64[torch.Tensor, " o"]

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n o"]:
        return self.inner.forward(s) + self.shift

    def inverse(self, x: Float64[torch.Tensor, "n o"]) -> Float64[torch.Tensor, "n d"]:
        return self.inner.inverse(x - self.shift)

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n o d"]:
        return self.inner.jacobian(s)

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        return self.inner.log_det(s)


def moved(mixing: M, device: torch.device | str) -> M:
    """Copy a mixing, which must be a dataclass, with its tensors on a device."""

    def move(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            return part.to(device)
        if isinstance(part, tuple):
            return tuple(move(item) for item in part)
        if is_dataclass(part) and not isinstance(part, type):
            return replace(part, **{field.name: move(getattr(part, field.name)) for field in fields(part)})
        return part

    result: M = move(mixing)
    return result


def solved(weight: Float64[torch.Tensor, "o d"], x: Float64[torch.Tensor, "n o"]) -> Float64[torch.Tensor, "n d"]:
    """The rows s with weight s = x; where x has more numbers, the least-squares solution."""
    square = weight.shape[0] == weight.shape[1]
    solution: torch.Tensor = torch.linalg.solve(weight, x.T) if square else torch.linalg.lstsq(weight, x.T).solution
    return solution.T


def log_volume(jacobian: Float64[torch.Tensor, "*n o d"]) -> Float64[torch.Tensor, "*n"]:
    """Log |det J|, or ½ log det JᵀJ of a J with more rows than columns."""
    if jacobian.shape[-2] == jacobian.shape[-1]:
        return torch.slogdet(jacobian).logabsdet
    diagonal: torch.Tensor = torch.linalg.qr(jacobian).R.diagonal(dim1=-2, dim2=-1)
    return diagonal.abs().log().sum(-1)


def orthogonal(rows: int, generator: torch.Generator, columns: int | None = None) -> Float64[torch.Tensor, "o d"]:
    """A random matrix of orthonormal columns, by default as many as rows, uniform over all of them (QR of a Gaussian
    matrix; Mezzadri, arXiv math-ph/0609050).
    """
    q, r = torch.linalg.qr(torch.randn(rows, columns or rows, generator=generator, dtype=torch.float64))
    return torch.mul(q, r.diagonal().sign())


def uniform(rows: int, generator: torch.Generator, columns: int | None = None) -> Float64[torch.Tensor, "o d"]:
    """A matrix of entries U(-1, 1) with columns of unit norm; the best conditioned of eight draws."""
    shape = rows, columns or rows
    return _best_of_eight(lambda: _normed(2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1))


def positive(rows: int, generator: torch.Generator, columns: int | None = None) -> Float64[torch.Tensor, "o d"]:
    """A matrix of entries U(1, 3), drawn again while it is nearly singular."""
    return _regular(lambda: 1 + 2 * torch.rand(rows, columns or rows, generator=generator, dtype=torch.float64))


def general(rows: int, generator: torch.Generator, columns: int | None = None) -> Float64[torch.Tensor, "o d"]:
    """A matrix of Gaussian entries, scaled to volume 1 (|det| = 1 if square); the best conditioned of eight draws."""
    shape = rows, columns or rows
    return _unimodular(_best_of_eight(lambda: torch.randn(*shape, generator=generator, dtype=torch.float64)))


def unit_determinant(dim: int, generator: torch.Generator) -> Float64[torch.Tensor, "d d"]:
    """A matrix of entries U(0, 1), scaled to |det| = 1; drawn again while it is nearly singular.

    The contrasts of such matrices are distributed like those of the linear maps in the paper's sweep (98 runs, d = 3:
    Kolmogorov-Smirnov p = 0.73; Gaussian entries, whose median contrast is 1.0 instead of 2.1: p < 1e-15).
    """
    return _unimodular(_regular(lambda: torch.rand(dim, dim, generator=generator, dtype=torch.float64)))


def unit_columns(dim: int, generator: torch.Generator) -> Float64[torch.Tensor, "d d"]:
    """A matrix whose columns are random directions, uniform over the sphere; drawn again while nearly singular."""
    return _regular(lambda: _normed(torch.randn(dim, dim, generator=generator, dtype=torch.float64)))


def positive_unit_columns(dim: int, generator: torch.Generator) -> Float64[torch.Tensor, "d d"]:
    """A matrix of entries U(0, 1) with columns scaled to unit norm; drawn again while nearly singular."""
    return _regular(lambda: _normed(torch.rand(dim, dim, generator=generator, dtype=torch.float64)))


def triangular(
    rows: int, generator: torch.Generator, columns: int | None = None, std: float = 1.0
) -> Float64[torch.Tensor, "o d"]:
    """A lower triangular matrix with a unit diagonal, and N(0, std^2) below it."""
    below = std * torch.randn(rows, columns or rows, generator=generator, dtype=torch.float64).tril(-1)
    return torch.add(below, torch.eye(*below.shape, dtype=torch.float64))


def _best_of_eight(draw: Callable[[], torch.Tensor]) -> torch.Tensor:
    return min((draw() for _ in range(8)), key=lambda matrix: float(torch.linalg.cond(matrix)))


def _regular(draw: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The first draw that is not nearly singular; unlike the best of several, it keeps its law where that is wide."""
    while True:
        matrix = draw()
        if torch.linalg.cond(matrix) < NEARLY_SINGULAR:
            return matrix


def _normed(matrix: torch.Tensor) -> torch.Tensor:
    return torch.div(matrix, matrix.norm(dim=0))


def _unimodular(matrix: torch.Tensor) -> torch.Tensor:
    rows, columns = matrix.shape
    volume = torch.linalg.det(matrix).abs() if rows == columns else log_volume(matrix).exp()
    return torch.div(matrix, volume ** (1 / columns))
