"""Automorphisms a = F⁻¹ ∘ Φ ∘ R ∘ Φ⁻¹ ∘ F of the sources: F is the CDF of a component of s, Φ that of the standard
normal law, and R a rotation of a plane of the latents (Gresele et al., arXiv 2106.05200, section 2).

a keeps the law of s, so that f ∘ a and f give observations of the same law p(x), from different sources. Rotated normal
coordinates have the same norm, so that the densities of the normal law cancel:

    log |det J_a(s)| = log p(s) − log p(a(s)).

Near an end of a bounded support the derivatives of a have no bound. Arrays are (observation, dimension) in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from jaxtyping import Float64

from imavae.config.registry import torch
from imavae.data.mixings import Mixing
from imavae.data.sources import Normalised

STEEPEST = 99.0  # of the logarithm of a derivative, which is infinite at an end of a support


@dataclass(frozen=True)
class Rotation(Mixing):
    """a of sources that are independent and identically distributed; a rotation by ``angle`` in radians."""

    source: Normalised
    angle: float
    plane: tuple[int, int]  # positions of the two latents

    def forward(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        pair = s[:, self.plane]
        with torch.no_grad():
            n = self.source.to_normal(pair)
            slope = self._log_slope(pair, n).exp()
        m = _with_slope(n, slope, pair) @ self._matrix(s).T
        with torch.no_grad():
            turned = self.source.from_normal(m)
            slope = (-self._log_slope(turned, m)).exp()
        columns = list(s.unbind(1))
        for place, column in zip(self.plane, _with_slope(turned, slope, m).unbind(1), strict=True):
            columns[place] = column
        return torch.stack(columns, 1)

    def inverse(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        return replace(self, angle=-self.angle).forward(x)

    def jacobian(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d d"]:
        pair, turned = s[:, self.plane], self.forward(s)[:, self.plane]
        n = self.source.to_normal(pair)
        matrix = self._matrix(s)
        before, after = self._log_slope(pair, n), self._log_slope(turned, n @ matrix.T)
        jacobian = torch.eye(s.shape[1], dtype=s.dtype, device=s.device).repeat(len(s), 1, 1)
        block = matrix * (before[:, None, :] - after[:, :, None]).exp()
        for i, row in enumerate(self.plane):
            for k, column in enumerate(self.plane):
                jacobian[:, row, column] = block[:, i, k]
        return jacobian

    def log_det(self, s: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        return self.source.log_prob(s) - self.source.log_prob(self.forward(s))

    def _matrix(self, like: torch.Tensor) -> Float64[torch.Tensor, "2 2"]:
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return torch.tensor([[cos, -sin], [sin, cos]], dtype=like.dtype, device=like.device)

    def _log_slope(self, s: Float64[torch.Tensor, "n 2"], n: Float64[torch.Tensor, "n 2"]) -> torch.Tensor:
        """Logarithm of the derivative dn/ds = p(s) / φ(n) of n = Φ⁻¹(F(s))."""
        log_density = self.source.log_prob(s.reshape(-1, 1)).view(s.shape)
        return (log_density + 0.5 * n.square() + 0.5 * math.log(2 * math.pi)).clamp(-STEEPEST, STEEPEST)


def _with_slope(value: torch.Tensor, slope: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """``value``, with the derivative ``slope`` by ``at`` for autograd: CDFs of SciPy have none."""
    return value + slope * (at - at.detach())
