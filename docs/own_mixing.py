"""Example of a mixing: the swirl x = R(twist |s|^2) s turns each source vector by an angle that grows with its length.

R(a) is the rotation by a. The swirl preserves lengths and volume, and its inverse is the swirl of -twist. Train on it
with the settings 'plugins=[docs/own_mixing.py]' data=own data.dim=2 'data.mixing={name: swirl, twist: 3}'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from imavae.config.data import MIXINGS, MixingSettings, SyntheticData
from imavae.errors import require


@MIXINGS.register
@checked_dataclass(frozen=True)
class SwirlMixing(MixingSettings):
    """The settings; ``data.mixing.name`` chooses them by their name."""

    name: str = "swirl"
    twist: Annotated[float | None, Field(description="angle at |s| = 1; null: drawn from data.seed")] = None

    def check(self, data: SyntheticData) -> None:
        """Raise UserError, before anything is computed, if the settings do not fit the sources."""
        require(data.dim == 2, "data.dim is 2 for the swirl", data.dim, "it turns a plane: set data.dim=2")

    def build(self, data: SyntheticData, generator: torch.Generator) -> Swirl:
        """Return the mixing. It draws only from ``generator``, so that ``data.seed`` decides every number."""
        drawn = 4 * torch.rand((), generator=generator, dtype=torch.float64).item()
        return Swirl(drawn if self.twist is None else self.twist)


@dataclass(frozen=True)
class Swirl:
    """The mixing. Everything is float64; s and x have the shape (n, d)."""

    twist: float

    def forward(self, s: Tensor) -> Tensor:
        """Observations x = f(s)."""
        return torch.einsum("nik,nk->ni", _rotations(self.twist * s.square().sum(1)), s)

    def inverse(self, x: Tensor) -> Tensor:
        """Sources s with f(s) = x."""
        return torch.einsum("nik,nk->ni", _rotations(-self.twist * x.square().sum(1)), x)

    def jacobian(self, s: Tensor) -> Tensor:
        """The Jacobian d f_i / d s_k, of shape (n, d, d): R (I + 2 twist Q s s^T), where Q = R(90°)."""
        turned = torch.stack([-s[:, 1], s[:, 0]], 1)
        eye = torch.eye(2, dtype=s.dtype, device=s.device)
        change = eye + 2 * self.twist * turned[:, :, None] * s[:, None, :]
        return _rotations(self.twist * s.square().sum(1)) @ change

    def log_det(self, s: Tensor) -> Tensor:
        """The logarithm of |det J|, of shape (n,)."""
        return s.new_zeros(len(s))


def _rotations(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
