"""A mixing of your own: the swirl x = R(twist |s|^2) s turns each source vector by an angle that grows with its length.

R(a) is the rotation by a. The swirl preserves lengths and volume, and its inverse is the swirl of -twist. Train on it
with the settings 'plugins=[docs/own_mixing.py]' data=own data.dim=2 'data.mixing={name: swirl, twist: 3}'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imavae.config.settings import Data
from imavae.config.variants import MIXINGS, MixingSettings, SourceSettings
from imavae.errors import require


@dataclass(frozen=True)
class Swirl:
    """What the settings build. Everything is float64; s and x have the shape (n, d)."""

    twist: float
    shift: Tensor  # of shape (d,); the observations are centred by it

    def forward(self, s: Tensor) -> Tensor:
        """Observations x = f(s)."""
        return torch.einsum("nik,nk->ni", _rotations(self.twist * s.square().sum(1)), s) + self.shift

    def inverse(self, x: Tensor) -> Tensor:
        """Sources s with f(s) = x."""
        x = x - self.shift
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

    def shifted(self, by: Tensor) -> Swirl:
        """The same mixing with ``by`` added to its observations."""
        return replace(self, shift=self.shift + by)


def _rotations(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)


@MIXINGS.register
@dataclass(frozen=True)
class SwirlMixing(MixingSettings):
    """The settings, under the name that data.mixing.name gives. Null draws the twist from data.seed."""

    name: str = "swirl"
    twist: float | None = None

    def check(self, dim: int, source: SourceSettings) -> None:
        """Refuse, before any work, what can't be."""
        require(dim == 2, "data.dim is 2 for the swirl", dim, "it turns a plane: say data.dim=2")

    def build(self, data: Data, generator: torch.Generator) -> Swirl:
        """The mixing itself; what it draws, it draws from ``generator``, so that ``data.seed`` decides it."""
        drawn = 4 * torch.rand((), generator=generator, dtype=torch.float64).item()
        return Swirl(drawn if self.twist is None else self.twist, torch.zeros(data.dim, dtype=torch.float64))
