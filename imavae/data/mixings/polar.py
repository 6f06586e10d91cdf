"""Polar and spherical mixing x = A rho(s_1) u(phi(s_2), theta(s_3)) with A orthogonal, in two or three dimensions.

The first source gives the radius, the others the angles: with t = (s - m) / w in [-1, 1] for the middle m and the
half-width w of the sources' support,

    rho = 1 + stretch t_1,  phi = pi turn t_2,  theta = (pi / 2) turn t_3,
    u = (cos theta cos phi, cos theta sin phi, sin theta),  in two dimensions (cos phi, sin phi).

The columns of the Jacobian are orthogonal, with norms rho', rho cos(theta) phi' and rho theta'. So the IMA contrast is
zero although the map is not conformal (orthogonal coordinates; Gresele et al., NeurIPS 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float64
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from imavae.config.data import MIXINGS, MixingSettings, SyntheticData
from imavae.config.registry import torch
from imavae.data.mixings import Mixing, orthogonal
from imavae.errors import require


@MIXINGS.register
@checked_dataclass(frozen=True)
class PolarMixing(MixingSettings):
    """Polar (data.dim=2) or spherical (3) coordinates: a radius and angles. The contrast is zero, the norms differ."""

    name: str = "polar"
    stretch: Annotated[float, Field(gt=0, lt=1, description="the radius lies within 1 - stretch and 1 + stretch")] = 0.7
    turn: Annotated[float, Field(gt=0, lt=1, description="the angles' share of the whole circle or sphere")] = 0.7

    def check(self, data: SyntheticData) -> None:
        rule, remedy = "data.dim is 2 or 3 for data=polar", "set data.dim=3, or choose data=moebius"
        require(data.dim in (2, 3), rule, data.dim, remedy)
        rule, got = "data.source lives on an interval for data=polar", f"{data.source.name} sources"
        require(all(map(math.isfinite, data.source.support)), rule, got, "angles repeat: set data/source=uniform")

    def build(self, data: SyntheticData, generator: torch.Generator) -> Polar:
        """Draw A."""
        angles = math.pi * self.turn, math.pi / 2 * self.turn
        rates = torch.tensor([self.stretch, *angles][: data.dim], dtype=torch.float64)
        middle, half_width = data.source.extent
        return Polar(orthogonal(data.dim, generator), middle, rates / half_width)


@dataclass(frozen=True)
class Polar(Mixing):
    """x = A rho u, with (rho - 1, phi, theta) = rates (s - middle)."""

    matrix: Float64[torch.Tensor, "d d"]  # A
    middle: float
    rates: Float64[torch.Tensor, " d"]

    def frame(
        self, s: Float64[torch.Tensor, "n d"]
    ) -> tuple[Float64[torch.Tensor, "n d d"], Float64[torch.Tensor, "n d"]]:
        """The unit vectors of radius and angles as columns, before A, and the norms of the Jacobian's columns."""
        dim = s.shape[1]
        radius, phi, theta = torch.nn.functional.pad((s - self.middle) * self.rates, (0, 3 - dim)).unbind(1)
        radius = 1 + radius
        (cos, sin), (level, rise) = ((angle.cos(), angle.sin()) for angle in (phi, theta))
        zero = torch.zeros_like(radius)
        columns = (level * cos, level * sin, rise), (-sin, cos, zero), (-rise * cos, -rise * sin, level)
        vectors = torch.stack([torch.stack(column[:dim], 1) for column in columns[:dim]], 2)
        return vectors, self.rates * torch.stack((torch.ones_like(radius), radius * level, radius)[:dim], 1)

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        radius = 1 + (s[:, :1] - self.middle) * self.rates[0]
        return (radius * self.frame(s)[0][:, :, 0]) @ self.matrix.T

    def inverse(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        y = x @ self.matrix
        angles = torch.atan2(y[:, 1], y[:, 0]), torch.atan2(y[:, -1], y[:, :2].norm(dim=1))
        polar = torch.stack((y.norm(dim=1) - 1, *angles)[: x.shape[1]], 1)
        return self.middle + polar / self.rates

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d d"]:
        vectors, norms = self.frame(s)
        return self.matrix @ (vectors * norms[:, None])

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        return self.frame(s)[1].log().sum(1)
