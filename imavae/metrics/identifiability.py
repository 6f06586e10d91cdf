"""MCC: the mean absolute correlation of the optimal one-to-one matching between sources and latents.

Sources are (d, n), shared by all members; latents are (member, d, n). A constant latent (or source) correlates with
nothing: its row counts as zero, so a collapsed model scores at chance instead of failing.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from torch import Tensor


def mcc(sources: Float[Tensor, "d n"], latents: Float[Tensor, "member d n"]) -> Float64[Tensor, " member"]:
    """Pearson MCC over all n points, in [0, 1]; near 0 by chance."""
    return matched_mean(correlation(sources, latents))


def mcc_spearman(sources: Float[Tensor, "d n"], latents: Float[Tensor, "member d n"]) -> Float64[Tensor, " member"]:
    """MCC of ranks: blind to monotone distortions of each latent."""
    return matched_mean(correlation(_ranks(sources), _ranks(latents)))


def mcc_batch(
    sources: Float[Tensor, "d n"], latents: Float[Tensor, "member d n"], size: int = 64
) -> Float64[Tensor, " member"]:
    """The published estimator: the average of the MCCs of batches of ``size`` points (what is left over is dropped).
    Chance is well above zero: 0.15 for d = 3. For comparison only.
    """
    members, dim, n = latents.shape
    batches = n // size
    s = sources[:, : batches * size].reshape(dim, batches, size).transpose(0, 1)
    z = latents[..., : batches * size].reshape(members, dim, batches, size).transpose(1, 2)
    return matched_mean(correlation(s, z)).mean(1)


def correlation(a: Float[Tensor, "*s d n"], b: Float[Tensor, "*m e n"]) -> Float64[Tensor, "*m d e"]:
    """Pearson correlation of each row of ``a`` with each row of ``b``, in float64; 0 where one of them is constant."""
    return _standard(a) @ _standard(b).transpose(-1, -2)


def matched_mean(correlations: Float64[Tensor, "*m d e"]) -> Float64[Tensor, "*m"]:
    """Mean absolute value along the one-to-one matching that maximises it (the Hungarian method of SciPy)."""
    score = correlations.abs().cpu().numpy()
    flat = score.reshape(-1, *score.shape[-2:])
    means = np.array([table[linear_sum_assignment(table, maximize=True)].mean() for table in flat])
    return torch.from_numpy(means.reshape(score.shape[:-2]))


def _standard(a: Tensor) -> Tensor:
    """Rows of zero mean and unit norm; a row that is constant up to its own rounding is zero."""
    rounding = torch.finfo(a.dtype).eps
    a = a.double()
    scale = a.abs().amax(-1, keepdim=True)
    a = a - a.mean(-1, keepdim=True)
    norm = a.norm(dim=-1, keepdim=True)
    varies = torch.isfinite(norm) & (norm > 4 * rounding * scale * a.shape[-1] ** 0.5)
    return torch.where(varies, a / torch.where(varies, norm, 1), 0)


def _ranks(a: Tensor) -> Tensor:
    values: NDArray[np.float64] = np.asarray(rankdata(a.cpu().numpy(), axis=-1))
    return torch.from_numpy(values)
