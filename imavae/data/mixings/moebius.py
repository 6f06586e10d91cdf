"""Möbius mixing x = L A (s - a) / |s - a|^2 with A orthogonal, by default without the linear map L.

Without L its Jacobian is A (I - 2 u u^T) / |s - a|^2 with u = (s - a) / |s - a|. Its columns are orthogonal and of
equal norm, hence the IMA contrast is zero (Gresele et al., NeurIPS 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from jaxtyping import Float64
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from imavae.config.data import MIXINGS, MixingSettings, SyntheticData
from imavae.config.registry import torch
from imavae.data.mixings import Mixing, orthogonal, positive_unit_columns, unit_columns, unit_determinant
from imavae.data.mixings.mlp import LinearOnTop
from imavae.errors import require

MARGIN = 0.05  # distance of the pole from the sources' box, in its widths
RANDOM = {f.__name__: f for f in (unit_determinant, unit_columns, positive_unit_columns)}  # laws of L


@MIXINGS.register
@checked_dataclass(frozen=True)
class MoebiusMixing(MixingSettings):
    """x = L A (s - a) / |s - a|^2, conformal without L: its IMA contrast is zero then."""

    name: str = "moebius"
    matrix: Annotated[
        tuple[tuple[float, ...], ...] | None,
        Field(description="A, orthogonal, dim x dim, a list of rows; null: drawn from data.seed"),
    ] = None
    centre: Annotated[
        tuple[float, ...] | None,
        Field(description="a, the pole, outside the sources' support; null: drawn from data.seed"),
    ] = None
    distance: Annotated[
        Annotated[float, Field(gt=1)] | None,
        Field(
            description="of a random pole from the sources' mean, in half-diagonals of their support; null: a pole of "
            "Gaussian components outside it"
        ),
    ] = 2.5
    linear: Annotated[
        Literal["none", "cosine", "row_cosine", "unit_determinant", "unit_columns", "positive_unit_columns"],
        Field(
            description="L: none, of unit columns or rows with a given cosine (two dimensions), or random, of unit "
            "determinant, unit columns, or unit columns of U(0, 1) entries"
        ),
    ] = "none"
    cosine: Annotated[float, Field(gt=-1, lt=1, description="between the columns, or rows, of L")] = 0.0

    def check(self, data: SyntheticData) -> None:
        dim, source = data.dim, data.source
        if self.linear in ("cosine", "row_cosine"):
            rule = f"data.dim is 2 for data.mixing.linear={self.linear}"
            require(dim == 2, rule, dim, "use unit_determinant or unit_columns in more dimensions")
        else:
            rule = "data.mixing.cosine is 0 unless linear=cosine or row_cosine"
            require(self.cosine == 0, rule, self.cosine, "set data.mixing.linear=cosine")
        middle, half_width = source.extent
        remedy = f"the pole lies beyond it: give {type(source).__name__} a property extent (middle, half-width)"
        require(math.isfinite(half_width), "data.source has a finite extent", (middle, half_width), remedy)
        if self.matrix is not None:
            rows = self.matrix
            gram = [[sum(a * b for a, b in zip(r, s, strict=False)) for s in rows] for r in rows]
            unit = all(abs(g - (i == j)) < 1e-4 for i, row in enumerate(gram) for j, g in enumerate(row))
            square = len(rows) == dim and all(len(row) == dim for row in rows)
            rule = f"data.mixing.matrix is orthogonal, {dim} x {dim}"
            require(square and unit, rule, rows, "only then is the map conformal; leave it null to draw one")
        if self.centre is not None:
            rule = f"data.mixing.centre has {dim} numbers"
            require(len(self.centre) == dim, rule, self.centre, "one for each source; leave it null to draw it")
            low, high = middle - half_width, middle + half_width
            rule = f"data.mixing.centre lies outside the sources' box [{low:g}, {high:g}], by 5 % of its width"
            remedy = "the map has its pole there: move it away, or leave it null to draw it"
            require(_outside(self.centre, data), rule, self.centre, remedy)

    def build(self, data: SyntheticData, generator: torch.Generator) -> Mixing:
        """Draw A, a and L, unless they are given."""
        matrix, centre = orthogonal(data.dim, generator), self._draw_pole(data, generator)
        if self.matrix is not None:
            u, _, vh = torch.linalg.svd(torch.tensor(self.matrix, dtype=torch.float64))
            matrix = u @ vh  # the nearest orthogonal matrix: the given numbers are rounded
        if self.centre is not None:
            centre = torch.tensor(self.centre, dtype=torch.float64)
        inner = Moebius(matrix, centre)
        if self.linear == "none":
            return inner
        if self.linear in RANDOM:
            return LinearOnTop(inner, RANDOM[self.linear](data.dim, generator))
        rows = [[1.0, 0.0], [self.cosine, math.sqrt(1 - self.cosine**2)]]
        linear = torch.tensor(rows, dtype=torch.float64)
        return LinearOnTop(inner, linear.T if self.linear == "cosine" else linear)

    def _draw_pole(self, data: SyntheticData, generator: torch.Generator) -> Float64[torch.Tensor, " d"]:
        """A pole by the law of ``distance``, drawn again while it is too near to the sources.

        Without a distance, its components are independent, of the law N(middle, width^2) outside the support.
        """
        middle, half_diagonal = data.box
        while True:
            normal = torch.randn(data.dim, generator=generator, dtype=torch.float64)
            if self.distance is None:
                while bool((inside := normal.abs() <= 0.5).any()):
                    normal[inside] = torch.randn(int(inside.sum()), generator=generator, dtype=torch.float64)
                centre = middle + 2 * half_diagonal / math.sqrt(data.dim) * normal
            else:
                centre = middle + self.distance * half_diagonal * normal / normal.norm()
            if _outside(centre.tolist(), data):
                return centre


def _outside(centre: Sequence[float], data: SyntheticData) -> bool:
    """Whether a pole is farther from the sources' box than the margin."""
    middle, half_width = data.source.extent
    beyond = math.hypot(*(max(abs(a - middle) - half_width, 0) for a in centre))
    return beyond > MARGIN * 2 * half_width


@dataclass(frozen=True)
class Moebius(Mixing):
    """x = A (s - a) / |s - a|^2."""

    matrix: Float64[torch.Tensor, "d d"]
    centre: Float64[torch.Tensor, " d"]

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        r = s - self.centre
        return r @ self.matrix.T / r.square().sum(1, keepdim=True)

    def inverse(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        r = x @ self.matrix  # the inversion r -> r / |r|^2 undoes itself
        return self.centre + r / r.square().sum(1, keepdim=True)

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d d"]:
        r = s - self.centre
        norm = r.square().sum(1)[:, None, None]
        eye = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
        return self.matrix @ (eye - 2 * r[:, :, None] * r[:, None, :] / norm) / norm

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        return -s.shape[1] * (s - self.centre).square().sum(1).log()
