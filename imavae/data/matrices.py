"""Random square matrices, in float64: what mixings are made of."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

Matrix = Float64[Tensor, "d d"]
NEARLY_SINGULAR = 1e3  # a condition number: a source that is shrunk by so much is lost to every model


def orthogonal(dim: int, generator: torch.Generator) -> Matrix:
    """A random orthogonal matrix, uniform over the group (QR of a Gaussian matrix; Mezzadri, arXiv math-ph/0609050)."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return torch.mul(q, r.diagonal().sign())


def uniform(dim: int, generator: torch.Generator) -> Matrix:
    """A matrix of entries U(-1, 1) with columns of unit norm; the best conditioned of eight draws."""

    def draw() -> Matrix:
        entries = 2 * torch.rand(dim, dim, generator=generator, dtype=torch.float64) - 1
        return torch.div(entries, entries.norm(dim=0))

    return _best_of_eight(draw)


def general(dim: int, generator: torch.Generator) -> Matrix:
    """A matrix of Gaussian entries, scaled to |det| = 1; the best conditioned of eight draws."""
    return _unimodular(_best_of_eight(lambda: torch.randn(dim, dim, generator=generator, dtype=torch.float64)))


def unit_determinant(dim: int, generator: torch.Generator) -> Matrix:
    """A matrix of entries U(0, 1), scaled to |det| = 1; drawn again while it is nearly singular.

    The contrasts of such matrices are distributed like those of the linear maps in the paper's sweep (98 runs, d = 3:
    Kolmogorov-Smirnov p = 0.73; Gaussian entries, whose median contrast is 1.0 instead of 2.1: p < 1e-15).
    """
    return _unimodular(_regular(lambda: torch.rand(dim, dim, generator=generator, dtype=torch.float64)))


def unit_columns(dim: int, generator: torch.Generator) -> Matrix:
    """A matrix whose columns are random directions, uniform over the sphere; drawn again while nearly singular."""

    def draw() -> Matrix:
        entries = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        return torch.div(entries, entries.norm(dim=0))

    return _regular(draw)


def columns_at(cosine: float) -> Float64[Tensor, "2 2"]:
    """Two columns of unit norm, with the given cosine between them."""
    return torch.tensor([[1.0, cosine], [0.0, math.sqrt(1 - cosine**2)]], dtype=torch.float64)


def triangular(dim: int, std: float, generator: torch.Generator) -> Matrix:
    """A lower triangular matrix with a unit diagonal, and N(0, std^2) below it."""
    below = std * torch.randn(dim, dim, generator=generator, dtype=torch.float64).tril(-1)
    return below + torch.eye(dim, dtype=torch.float64)


def _best_of_eight(draw: Callable[[], Matrix]) -> Matrix:
    """The best conditioned of eight draws, since a mixing that is nearly singular loses a source for every model."""
    draws = [draw() for _ in range(8)]
    return min(draws, key=lambda matrix: float(torch.linalg.cond(matrix)))


def _regular(draw: Callable[[], Matrix]) -> Matrix:
    """The first draw that is not nearly singular; unlike the best of several, it keeps its law where that is wide."""
    while True:
        matrix = draw()
        if torch.linalg.cond(matrix) < NEARLY_SINGULAR:
            return matrix


def _unimodular(matrix: Matrix) -> Matrix:
    return torch.div(matrix, torch.linalg.det(matrix).abs() ** (1 / len(matrix)))
