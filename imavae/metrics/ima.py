"""Independent mechanism analysis: the contrast c_IMA(g, z) = Σ_k log‖J_:k‖ − ½ log det(JᵀJ), zero iff the columns of J
are orthogonal (Gresele et al., NeurIPS 2021), other functions of Jacobians, and the self-consistency of the posterior's
variance (Reizinger et al., NeurIPS 2022).

Jacobians are (member, out, in, n): with the point last, the algebra of small matrices vectorises over points.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Float64

from imavae.config.registry import torch
from imavae.metrics.identifiability import BATCH


class QR(NamedTuple):
    """J = QR at each point: columns of Q, entries of R, and where J has full column rank."""

    q: list[Float64[torch.Tensor, "m o n"]]
    r: dict[tuple[int, int], Float64[torch.Tensor, "m n"]]  # by row k and column j ≥ k
    norms: list[Float64[torch.Tensor, "m n"]]  # of J's columns
    full: Bool[torch.Tensor, "m n"]


def qr(jacobian: Float[torch.Tensor, "m o d n"]) -> QR:
    """Modified Gram-Schmidt, all points at once; R_kk is 1 where column k depends on the columns before it."""
    rounding = 16 * torch.finfo(jacobian.dtype).eps
    columns = list(jacobian.double().unbind(2))
    norms = [column.square().sum(1).sqrt_() for column in columns]  # far faster than torch's norm of an inner dimension
    full = torch.ones_like(norms[0], dtype=torch.bool)
    q, r = [], {}
    for k, norm in enumerate(norms):
        rest = columns[k].square().sum(1).sqrt_() if k else norm
        good = (rest > rounding * norm) & (rest < torch.inf)  # both are false for NaN
        full &= good
        r[k, k] = torch.where(good, rest, 1)
        q.append(columns[k] / r[k, k][:, None])
        for j in range(k + 1, len(columns)):
            r[k, j] = (q[k] * columns[j]).sum(1)
            columns[j] = torch.addcmul(columns[j], r[k, j][:, None], q[k], value=-1)
    return QR(q, r, norms, full)


class Contrast(NamedTuple):
    """The local IMA contrast at each point."""

    values: Float64[torch.Tensor, "m n"]  # c_IMA in nats; 0 where the Jacobian lacks full column rank
    full: Bool[torch.Tensor, "m n"]  # True where it has full column rank
    norms: Float64[torch.Tensor, "m d n"]  # ‖J_:k‖


def contrast(jacobian: Float[torch.Tensor, "m o d n"]) -> Contrast:
    """c_IMA at each point, by QR: Σ_k log(‖J_:k‖ / R_kk), where R_kk is the norm of the part of column k orthogonal to
    the columns before it. No term is negative.
    """
    return contrast_of(qr(jacobian))


def contrast_of(decomposed: QR) -> Contrast:
    """:func:`contrast` of a Jacobian that is decomposed already."""
    _, r, norms, full = decomposed
    ratio = torch.ones_like(norms[0])
    for k, norm in enumerate(norms):
        ratio *= (norm / r[k, k]).clamp_min_(1)
    return Contrast(torch.where(full, ratio.log_(), 0), full, torch.stack(norms, 1))


def mean_where(values: Float64[torch.Tensor, "m n"], counted: Bool[torch.Tensor, "m n"]) -> Float64[torch.Tensor, " m"]:
    """Mean over the counted points; NaN without any."""
    mean = torch.where(counted, values, 0).sum(1) / counted.sum(1).clamp_min(1)
    return torch.where(counted.any(1), mean, torch.nan)


def pointwise_contrast(jacobian: Float[torch.Tensor, "*w o d n"]) -> Float64[torch.Tensor, "world n"]:
    """c_IMA at each point; NaN where the Jacobian lacks full rank. A single world has length 1."""
    values, full, _ = contrast(jacobian.reshape(-1, *jacobian.shape[-3:]))
    return torch.where(full, values, torch.nan)


def conformal_contrast(at: Contrast) -> Float64[torch.Tensor, " m"]:
    """(d/2) log(tr(JᵀJ) / d) − ½ log det JᵀJ, averaged over the points of full rank (NaN without any): zero iff J is
    conformal, JᵀJ = c I.

    It is c_IMA + d (log of the root mean square of the columns' norms − mean of their logs), so never below c_IMA.
    """
    norms = torch.where(at.full[:, None], at.norms, 1)
    spread = norms.shape[1] * (0.5 * norms.square().mean(1).log() - norms.log().mean(1))
    return mean_where(at.values + spread.clamp_min(0), at.full)


class ColumnNorms(NamedTuple):
    """Statistics of the norms ‖J_:k‖ of a Jacobian's columns: tensors (member,), or numbers of one model."""

    mean: Any  # over points and columns
    variance_over_columns: Any  # of each column's mean over points
    maximum: Any  # over points and columns
    variance_over_points: Any  # averaged over columns


def column_norms(norms: Float64[torch.Tensor, "m d n"]) -> ColumnNorms:
    """Statistics of each member; NaN if a norm is not finite."""
    means = norms.mean(2)
    spread = (norms - means[..., None]).square_().mean((1, 2))  # torch's var takes three times as long
    return ColumnNorms(means.mean(1), means.var(1, correction=0), norms.amax((1, 2)), spread)


def amari(
    jacobian: Float[torch.Tensor, "m o d n"], truth: Float[torch.Tensor, "*w o d n"]
) -> Float64[torch.Tensor, "m n"]:
    """Amari distance of decoder and true mixing at each point (Amari, Cichocki and Yang, NeurIPS 1995), in [0, 1]; NaN
    where one of the two lacks full rank. ``jacobian`` is J_g at the posterior's location, ``truth`` J_f at the source.

    With R = J_g(μ(x))⁻¹ J_f(s), x = f(s), the Jacobian of s ↦ z where g(μ(x)) = x, it is

        (Σ_i (Σ_j |R_ij| / max_j |R_ij| − 1) + Σ_j (Σ_i |R_ij| / max_i |R_ij| − 1)) / (2 d (d − 1)),

    zero iff R is a scaled permutation.
    """
    truth = truth.reshape(-1, *truth.shape[-3:])
    return amari_of(qr(jacobian), truth, qr(truth).full)


def amari_of(
    decoder: QR, truth: Float[torch.Tensor, "w o d n"], regular: Bool[torch.Tensor, "r n"]
) -> Float64[torch.Tensor, "m n"]:
    """:func:`amari` of a decoder's Jacobian that is decomposed already; ``regular``: where ``truth`` has full rank."""
    mixing, dim = truth.double(), len(decoder.q)
    rows: dict[int, torch.Tensor] = {}  # of R, the least-squares solution, by back substitution
    for k in reversed(range(dim)):
        row = (decoder.q[k][:, :, None] * mixing).sum(1)
        for j in range(k + 1, dim):
            row = row - decoder.r[k, j][:, None] * rows[j]
        rows[k] = row / decoder.r[k, k][:, None]
    size = torch.stack([rows[k] for k in range(dim)], 1).abs()
    full = decoder.full & regular & (size.amax(1) > 0).all(1) & (size.amax(2) > 0).all(1)
    size = torch.where(full[:, None, None], size, 1)
    spread = (size.sum(2) / size.amax(2) - 1).sum(1) + (size.sum(1) / size.amax(1) - 1).sum(1)
    return torch.where(full, spread / max(2 * dim * (dim - 1), 1), torch.nan)


def inverse_variance(
    square: Float[torch.Tensor, "m d n"],
    slope: Float[torch.Tensor, "m d n"],
    curvature: Float[torch.Tensor, "m d n"],
    gamma: Float[torch.Tensor, " m"],
) -> Float64[torch.Tensor, "m d n"]:
    """1 / σ_k² = −(log p)''(μ_k) + γ²‖J_:k‖², in the unconstrained coordinate y.

    ``square`` = ‖J_:k‖² refers to the latent z; ``slope`` = dz/dy converts it; ``curvature`` = −(log p)''(y).
    """
    norm = square.double() * slope.double().square()
    return curvature.double() + gamma.double()[:, None, None].square() * norm


def batch_ratio(
    jacobian: Float[torch.Tensor, "m o d batch"],
    curvature: Float[torch.Tensor, "m d batch"],
    variance: Float[torch.Tensor, "m d batch"],
    gamma: Float[torch.Tensor, " m"],
) -> Float64[torch.Tensor, "m d batch"]:
    """Variance times the inverse variance by Jacobian and curvature, of the means over a batch; unconstrained."""
    square = jacobian.double().square().sum(1)
    return variance * inverse_variance(square, torch.ones_like(square), curvature, gamma)


def batch_mean(a: Float[torch.Tensor, "*k n"], size: int = BATCH) -> Float[torch.Tensor, "*k batch"]:
    """Means over whole batches of ``size`` points."""
    batches = a.shape[-1] // size
    return a[..., : batches * size].reshape(*a.shape[:-1], batches, size).mean(dim=-1)
