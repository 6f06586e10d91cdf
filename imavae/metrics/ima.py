"""Independent mechanism analysis: c_IMA(g, z) = sum_k log |J_:k| - log det(J^T J) / 2, zero iff J's columns are
orthogonal (Gresele et al., NeurIPS 2021); what else the Jacobians tell, alone and beside the true mixing's; and the
self-consistency of the posterior's variance (Reizinger et al., NeurIPS 2022).

Jacobians are (member, out, in, n): the point comes last, so that the small matrices' algebra vectorises over points.
What is said of a Jacobian is said point by point, a chunk of them at a time: those of a whole split need not fit in
memory. Means over points come after that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

BATCH = 64  # points of a batch, in the published estimators


class _QR(NamedTuple):
    """Of each point's Jacobian J = QR: the columns of Q and the entries of R, and where J has full column rank."""

    q: list[Float64[Tensor, "member o n"]]
    r: dict[tuple[int, int], Float64[Tensor, "member n"]]  # of row k and column j ≥ k
    norms: list[Float64[Tensor, "member n"]]  # of J's columns
    full: Bool[Tensor, "member n"]


def _qr(jacobian: Float[Tensor, "member o d n"]) -> _QR:
    """Modified Gram-Schmidt, all points at once; R_kk is 1 where column k depends on those before it."""
    rounding = 16 * torch.finfo(jacobian.dtype).eps
    columns = list(jacobian.double().unbind(2))
    norms = [_norm(column) for column in columns]
    full = torch.ones_like(norms[0], dtype=torch.bool)
    q, r = [], {}
    for k, norm in enumerate(norms):
        rest = _norm(columns[k]) if k else norm
        good = (rest > rounding * norm) & (rest < torch.inf)  # neither holds for NaN
        full &= good
        r[k, k] = torch.where(good, rest, 1)
        q.append(columns[k] / r[k, k][:, None])
        for j in range(k + 1, len(columns)):
            r[k, j] = (q[k] * columns[j]).sum(1)
            columns[j] = torch.addcmul(columns[j], r[k, j][:, None], q[k], value=-1)
    return _QR(q, r, norms, full)


def _norm(column: Float64[Tensor, "member o n"]) -> Float64[Tensor, "member n"]:
    return column.square().sum(1).sqrt_()  # far faster than torch's norm over an inner dimension


class Contrast(NamedTuple):
    """At each point."""

    values: Float64[Tensor, "member n"]  # c_IMA, in nats; 0 where the Jacobian has not full column rank
    full: Bool[Tensor, "member n"]  # whether it has
    norms: Float64[Tensor, "member d n"]  # ‖J_:k‖


def contrast(jacobian: Float[Tensor, "member o d n"]) -> Contrast:
    """c_IMA at each point.

    By QR: with |det R| = prod_k R_kk, each term log(|J_:k| / R_kk) is the log-ratio of a column to its part orthogonal
    to the columns before it, never negative.
    """
    _, r, norms, full = _qr(jacobian)
    ratio = torch.ones_like(norms[0])
    for k, norm in enumerate(norms):
        ratio *= (norm / r[k, k]).clamp_min_(1)
    return Contrast(torch.where(full, ratio.log_(), 0), full, torch.stack(norms, 1))


def mean_where(values: Float64[Tensor, "member n"], counted: Bool[Tensor, "member n"]) -> Float64[Tensor, " member"]:
    """The mean over the points that are counted; NaN where none is."""
    mean = torch.where(counted, values, 0).sum(1) / counted.sum(1).clamp_min(1)
    return torch.where(counted.any(1), mean, torch.nan)


def truth_contrast(jacobian: Float[Tensor, "*world o d n"]) -> Float64[Tensor, "world n"]:
    """c_IMA of the true mixing at each source; NaN where its Jacobian lacks full rank. A single world has length 1."""
    values, full, _ = contrast(jacobian.reshape(-1, *jacobian.shape[-3:]))
    return torch.where(full, values, torch.nan)


def conformal_contrast(at: Contrast) -> Float64[Tensor, " member"]:
    """d/2 log(tr(JᵀJ) / d) − ½ log det JᵀJ, averaged over the points of full rank (NaN where there is none): zero iff J
    is conformal, JᵀJ = c I.

    By the inequality of arithmetic and geometric means over JᵀJ's eigenvalues it is never negative; over its diagonal,
    it is never below c_IMA: it is c_IMA + d (log of the root mean square of the columns' norms − mean of their logs).
    """
    norms = torch.where(at.full[:, None], at.norms, 1)
    spread = norms.shape[1] * (0.5 * norms.square().mean(1).log() - norms.log().mean(1))
    return mean_where(at.values + spread.clamp_min(0), at.full)


class ColumnNorms(NamedTuple):
    """Per member, of the norms ‖J_:k(z_i)‖ of the Jacobian's columns k at points i."""

    mean: Float64[Tensor, " member"]  # over points and columns
    variance_over_columns: Float64[Tensor, " member"]  # of each column's mean over points
    maximum: Float64[Tensor, " member"]  # over points and columns
    variance_over_samples: Float64[Tensor, " member"]  # over points, averaged over columns


def column_norms(norms: Float64[Tensor, "member d n"]) -> ColumnNorms:
    """How strongly, how evenly and how steadily the decoder depends on each latent; NaN if a norm is not finite."""
    means = norms.mean(2)
    spread = (norms - means[..., None]).square_().mean((1, 2))  # torch's var takes three times as long
    return ColumnNorms(means.mean(1), means.var(1, correction=0), norms.amax((1, 2)), spread)


def amari(jacobian: Float[Tensor, "member o d n"], truth: Float[Tensor, "*world o d n"]) -> Float64[Tensor, "member n"]:
    """Amari distance of decoder and true mixing (Amari, Cichocki and Yang, NeurIPS 1995), in [0, 1]: with
    R = J_g(μ(x))⁻¹ J_f(s), x = f(s), the Jacobian of s ↦ z where g(μ(x)) = x,

        (Σ_i (Σ_j |R_ij| / max_j |R_ij| − 1) + Σ_j (Σ_i |R_ij| / max_i |R_ij| − 1)) / (2 d (d − 1)),

    zero iff R is a scaled permutation, at each point; NaN where one of the two lacks full rank.
    ``jacobian`` is J_g at the posterior's location, ``truth`` J_f at the sources of the same observations.
    """
    truth = truth.reshape(-1, *truth.shape[-3:])
    decoder = _qr(jacobian)
    size = torch.stack(_solve(decoder, truth.double()), 1).abs()
    dim = size.shape[1]
    full = decoder.full & _qr(truth).full & (size.amax(1) > 0).all(1) & (size.amax(2) > 0).all(1)
    size = torch.where(full[:, None, None], size, 1)
    rows = (size.sum(2) / size.amax(2) - 1).sum(1)
    columns = (size.sum(1) / size.amax(1) - 1).sum(1)
    return torch.where(full, (rows + columns) / max(2 * dim * (dim - 1), 1), torch.nan)


def _solve(qr: _QR, right: Float64[Tensor, "world o e n"]) -> list[Float64[Tensor, "member e n"]]:
    """The rows of the least-squares solution X of QR X = ``right``, by substitution from the last."""
    dim = len(qr.q)
    rows: dict[int, Tensor] = {}
    for k in reversed(range(dim)):
        row = (qr.q[k][:, :, None] * right).sum(1)
        for j in range(k + 1, dim):
            row = row - qr.r[k, j][:, None] * rows[j]
        rows[k] = row / qr.r[k, k][:, None]
    return [rows[k] for k in range(dim)]


def inverse_variance(
    square: Float[Tensor, "member d n"],
    slope: Float[Tensor, "member d n"],
    curvature: Float[Tensor, "member d n"],
    gamma: Float[Tensor, " member"],
) -> Float64[Tensor, "member d n"]:
    """1 / sigma_k^2 = -(log p)''(mu_k) + gamma^2 |J_:k|^2, all in the unconstrained coordinate.

    ``square`` = |J_:k|^2 is taken with respect to the latent, ``slope`` = dz/dy brings it there, ``curvature`` =
    -(log p)''(y).
    """
    norm = square.double() * slope.double().square()
    return curvature.double() + gamma.double()[:, None, None].square() * norm


def batch_ratio(
    jacobian: Float[Tensor, "member o d n"],
    curvature: Float[Tensor, "member d n"],
    variance: Float[Tensor, "member d n"],
    gamma: Float[Tensor, " member"],
) -> Float64[Tensor, "member d batch"]:
    """Mean variances times what the means of the other two, in the unconstrained coordinate, give for their inverse."""
    square, bent = batch_mean(jacobian).double().square().sum(1), batch_mean(curvature)
    return batch_mean(variance) * inverse_variance(square, torch.ones_like(bent), bent, gamma)


def batch_mean(a: Float[Tensor, "*k n"]) -> Float[Tensor, "*k batch"]:
    """Means over batches of 64 points; what is left over is dropped. A chunk is so many whole batches."""
    batches = a.shape[-1] // BATCH
    return a[..., : batches * BATCH].reshape(*a.shape[:-1], batches, BATCH).mean(dim=-1)
