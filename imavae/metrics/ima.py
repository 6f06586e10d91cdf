"""Independent mechanism analysis: c_IMA(g, z) = sum_k log |J_:k| - log |det J|, zero iff J's columns are orthogonal
(Gresele et al., NeurIPS 2021), and the self-consistency of the posterior's variance (Reizinger et al., NeurIPS 2022).

Jacobians are (member, out, in, n): the point comes last, so that the small matrices' algebra vectorises over points.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor


def contrast(
    jacobian: Float[Tensor, "member o d n"],
) -> tuple[Float64[Tensor, "member n"], Bool[Tensor, "member n"]]:
    """c_IMA at each point, in nats, and where the Jacobian has full column rank; 0 is put where it has not.

    By QR (modified Gram-Schmidt, all points at once): with |det R| = prod_k R_kk, each term log(|J_:k| / R_kk) is the
    log-ratio of a column to its part orthogonal to the columns before it, never negative.
    """
    rounding = 16 * torch.finfo(jacobian.dtype).eps
    columns = list(jacobian.double().unbind(2))
    total = torch.zeros_like(columns[0][:, 0])
    full = torch.ones_like(total, dtype=torch.bool)
    norms = [column.norm(dim=1) for column in columns]
    for k, norm in enumerate(norms):
        rest = columns[k].norm(dim=1)
        good = (rest > rounding * norm) & torch.isfinite(rest)
        full &= good
        total += torch.where(good, (norm / torch.where(good, rest, 1)).clamp_min(1).log(), 0)
        direction = columns[k] / torch.where(good, rest, 1)[:, None]
        for j in range(k + 1, len(columns)):
            columns[j] = columns[j] - (direction * columns[j]).sum(1, keepdim=True) * direction
    return torch.where(full, total, 0), full


def mean_contrast(
    jacobian: Float[Tensor, "member o d n"],
) -> tuple[Float64[Tensor, " member"], Float64[Tensor, " member"]]:
    """c_IMA averaged over the points of full rank (NaN where there is none), and the share of the others."""
    values, full = contrast(jacobian)
    counted = full.sum(1)
    mean = torch.where(counted > 0, values.sum(1) / counted.clamp_min(1), torch.nan)
    return mean, 1 - counted.double() / full.shape[1]


def inverse_variance(
    jacobian: Float[Tensor, "member o d n"],
    slope: Float[Tensor, "member d n"],
    curvature: Float[Tensor, "member d n"],
    gamma: Float[Tensor, " member"],
) -> Float64[Tensor, "member d n"]:
    """1 / sigma_k^2 = -(log p)''(mu_k) + gamma^2 |J_:k|^2, all in the unconstrained coordinate: ``jacobian`` is taken
    with respect to the latent, ``slope`` = dz/dy brings it there, ``curvature`` = -(log p)''(y).
    """
    norm = jacobian.double().square().sum(1) * slope.double().square()
    return curvature.double() + gamma.double()[:, None, None].square() * norm
