"""The Darmois construction D of observations: u_i = F(x_i | x_1, ..., x_{i−1}), the conditional CDFs of p(x), one after
the other (Darmois 1951; Hyvärinen and Pajunen, Neural Networks 12, 1999; Gresele et al., arXiv 2106.05200, section 2).

u is uniform on the unit cube with independent components, whatever made x. So the decoder D⁻¹ explains x as well as the
true mixing does, from other sources: a spurious solution. D is triangular, and log |det J_D(x)| = log p(x).

For a mixture of normal laws that share a covariance, D has a closed form: :class:`OfMixture`. Any other density needs
integrals, here sums over a grid: :class:`OfDensity`. Arrays are (observation, dimension) in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from imavae.config.registry import torch

BLOCK = 2**16  # points of the grid at once
CELLS = {2: 256, 3: 64}  # of the grid along an axis, by dimension


@dataclass(frozen=True)
class OfMixture:
    """D for the density Σ_j N(x; centres_j, L Lᵀ) / n.

    With a single centre, D(x) = Φ(L⁻¹ (x − centre)). With one for each of n samples it is that of a kernel density
    estimate. Such an estimate smooths the edges of a support, and the contrast of D⁻¹ comes out too low there.
    """

    centres: Float64[torch.Tensor, "n d"]
    factor: Float64[torch.Tensor, "d d"]  # L, lower triangular

    @classmethod
    def of_sample(cls, x: Float64[torch.Tensor, "n d"]) -> OfMixture:
        """D for the density that draws ``x``, estimated with Gaussian kernels of Scott's bandwidth h = n^(−1/(d + 4)).

        Kernels have h² times the sample's covariance. Centres are drawn in by √(1 − h²) (West, JRSS B 55, 1993), so
        that the estimate has the covariance of the sample, and is unbiased for a normal law.
        """
        n, dim = x.shape
        bandwidth, mean = n ** (-1 / (dim + 4)), x.mean(0)
        centres = mean + math.sqrt(1 - bandwidth**2) * (x - mean)
        return cls(centres, bandwidth * torch.linalg.cholesky(torch.cov(x.T, correction=0)))

    def forward(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        """The uniform variables u = D(x).

        With e = L⁻¹ (x − centre): given x_1, ..., x_{i−1}, centre j has the weight w_j ∝ Π_{k<i} φ(e_jk), and
        u_i = Σ_j w_j Φ(e_ji).
        """
        e = self._whitened(x)
        log_weight = torch.nn.functional.pad((-0.5 * e.square()).cumsum(2)[..., :-1], (1, 0))
        return torch.mul(torch.softmax(log_weight, 1), torch.special.ndtr(e)).sum(1)

    def jacobian(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d d"]:
        """J[n, i, k] = d u_i / d x_k at x[n], lower triangular."""
        by_row: torch.Tensor = torch.vmap(torch.func.jacrev(lambda row: self.forward(row[None])[0]))(x)
        return by_row

    def log_det(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, " n"]:
        """The log-determinant log |det J| = log p(x) at each x, in nats."""
        squares = self._whitened(x).square().sum(2)
        norm = self.factor.diagonal().log().sum() + 0.5 * x.shape[1] * math.log(2 * math.pi)
        return torch.logsumexp(-0.5 * squares, 1) - math.log(len(self.centres)) - norm

    def _whitened(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n m d"]:
        """Return e = L⁻¹ (x − centre) for each centre."""
        inverse = torch.linalg.inv(self.factor)
        return torch.sub((x @ inverse.T)[:, None], self.centres @ inverse.T)


@dataclass(frozen=True)
class OfDensity:
    """D for any density in two or three dimensions on a box, from sums over a grid and linear interpolation.

    Where the support of x_i given those before it ends within a cell, values are NaN.
    """

    axes: list[NDArray[np.float64]]
    tables: list[NDArray[np.float64]]  # u_i at the middles of cells of the first i axes

    @classmethod
    def on_box(
        cls, log_prob: Callable[[torch.Tensor], torch.Tensor], low: torch.Tensor, high: torch.Tensor
    ) -> OfDensity:
        """D for the density exp(log_prob(x)), up to a constant, on the box from ``low`` to ``high``, (d,)."""
        dim = len(low)
        middles = (torch.arange(CELLS[dim], dtype=torch.float64) + 0.5) / CELLS[dim]
        axes = [start + (end - start) * middles for start, end in zip(low, high, strict=True)]
        blocks = torch.split(torch.cartesian_prod(*axes), BLOCK)
        mass = torch.cat([log_prob(block).exp().nan_to_num() for block in blocks]).view([CELLS[dim]] * dim)
        tables: list[NDArray[np.float64]] = []
        for axis in reversed(range(dim)):
            sums = mass.cumsum(axis)
            total = sums[..., -1:]
            tables.insert(0, ((sums - mass / 2) / total).numpy())
            mass = total[..., 0]
        return cls([axis.numpy() for axis in axes], tables)

    def forward(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d"]:
        """The uniform variables u = D(x)."""
        from scipy.interpolate import RegularGridInterpolator

        grids = [
            RegularGridInterpolator(self.axes[: i + 1], table, bounds_error=False)
            for i, table in enumerate(self.tables)
        ]
        return torch.stack([torch.from_numpy(grid(x[:, : i + 1].numpy())) for i, grid in enumerate(grids)], 1)

    def jacobian(self, x: Float64[torch.Tensor, "n d"]) -> Float64[torch.Tensor, "n d d"]:
        """J[n, i, k] = d u_i / d x_k at x[n], lower triangular, by central differences over two cells."""
        steps = torch.diag(torch.tensor([axis[1] - axis[0] for axis in self.axes], dtype=x.dtype))
        columns = [(self.forward(x + step) - self.forward(x - step)) / (2 * step.sum()) for step in steps]
        return torch.stack(columns, 2).tril()
