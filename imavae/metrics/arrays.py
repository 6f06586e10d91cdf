"""Metrics as pure functions of arrays, offered as ``imavae.metrics.mcc`` and so on; a row is an observation.

Sources ``s`` are (n, d), latents ``z`` (n, e), Jacobians (n, o, d): entry [i, j, k] is ∂x_j/∂z_k at point i.
Each may be a NumPy array, a pandas frame, nested lists or a torch tensor on any device. Results are Python numbers, or
NumPy arrays of one value per point or model.

Every function raises :class:`imavae.errors.UserError` for arrays of wrong shapes or values. It brings its arguments
into the layout of an ensemble of one, (member, d, n), and calls the function by which ensembles are evaluated.
docs/metrics.md has the equation of each metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from imavae.errors import require
from imavae.metrics import disentanglement, identifiability, ima

Values = ArrayLike | Tensor | Sequence[Any] | float  # the last two for run-time checks: ArrayLike has complex alone


def mcc(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """Mean over the sources of their absolute Pearson correlation with latents under the best one-to-one matching.

    Args:
        s: Sources (n, d), finite.
        z: Latents (n, e). A constant latent, or one that is not finite, has correlation 0. If there are more latents
            than sources, the others are left out; if fewer, a source without a latent counts 0.
        discrete: True for each source (d,) whose values are labels; it is compared by the correlation ratio.

    Returns:
        A number in [0, 1]; chance is near 0.
    """
    return float(identifiability.mcc(*_pair(s, z, discrete)))


def mcc_spearman(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """:func:`mcc` of ranks, invariant to monotone maps of each latent; same arguments, range and chance level."""
    sources, latents, kinds = _pair(s, z, discrete)
    return float(identifiability.mcc(identifiability.ranks(sources), identifiability.ranks(latents), kinds))


def mcc_batch(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """:func:`mcc` averaged over whole batches of 64 rows: the published estimator (Reizinger et al., NeurIPS 2022), for
    comparison only. Same arguments and range; chance is well above 0: 0.15 for three sources.
    """
    sources, latents, kinds = _pair(s, z, discrete)
    _require_batch(latents)
    return float(identifiability.mcc(identifiability.batches(sources), identifiability.batches(latents), kinds).mean())


def r2_linear(s: Values, z: Values) -> float:
    """R² of the best linear map from all latents to each source, averaged over sources; fitted on the first half of the
    rows and scored on the second. In [0, 1]; arguments as for :func:`mcc`.
    """
    return float(identifiability.r2_linear(*(identifiability.standardised(rows) for rows in _pair(s, z)[:2])))


def r2_nonlinear(s: Values, z: Values) -> float:
    """:func:`r2_linear` with a nonlinear map (kernel ridge regression), from at most 2,000 rows of each half."""
    return float(identifiability.r2_nonlinear(*_pair(s, z)[:2]))


def agreement(z: Sequence[Values] | Values) -> NDArray[np.float64]:
    """Agreement of models on their latents, without sources: for each model, the median :func:`mcc` between its latents
    and those of the others, (model,) in [0, 1] (after Duan et al., ICLR 2020). ``z`` has the latents (n, d) of each
    model for the same observations.
    """
    models = [_points("z", one) for one in z]  # type: ignore[union-attr]  # an array is a sequence of its rows
    require(len(models) >= 2, "z has the latents of at least two models", len(models), "give two or more")
    shapes = [tuple(one.shape) for one in models]
    require(len(set(shapes)) == 1, "the latents of all models have one shape", shapes, "give latents of the same rows")
    stacked = torch.stack([one.to(models[0].dtype).T for one in models])
    return identifiability.agreement(stacked, [0] * len(models)).numpy()


def active_units(z: Values, prior_variance: Values = 1.0) -> int:
    """Number of latents ``z`` (n, d), the posterior's locations, whose variance over observations exceeds 1 % of their
    ``prior_variance``, a number or (d,) (Burda et al., ICLR 2016).
    """
    points = _points("z", z)
    variance = _expanded("prior_variance", prior_variance, points)[..., 0]
    return int(identifiability.active(points.T[None], variance).sum())


def latent_correlation(z: Values) -> float:
    """Mean absolute correlation between two of the latents ``z`` (n, d), d ≥ 2; it needs no sources."""
    return float(identifiability.latent_correlation(identifiability.standardised(_points("z", z).T[None])))


def dci(s: Values, z: Values, discrete: Sequence[bool] = ()) -> disentanglement.DCI:
    """Disentanglement, completeness and informativeness (Eastwood and Williams, ICLR 2018), from random forests that
    predict each source from all latents; each in [0, 1] with chance near 0, NaN if no source varies. Arguments as for
    :func:`mcc`.
    """
    return disentanglement.dci(*_rows(s, z, discrete))


def sap(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """Separated attribute predictability (Kumar et al., ICLR 2018): score of the latent that linearly predicts a source
    best minus that of the second best, averaged over sources. Arguments and range as for :func:`dci`.
    """
    return disentanglement.sap(*_rows(s, z, discrete))


def mig(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """Mutual information gap (Chen et al., NeurIPS 2018): mutual information of a source with its best latent minus
    that with the second best, over the source's entropy, averaged over sources. Arguments and range as for :func:`dci`.
    """
    return disentanglement.mig(*_rows(s, z, discrete))


def cima(jacobian: Values) -> float:
    """Local IMA contrast Σ_k log‖J_:k‖ − ½ log det(JᵀJ), averaged over the points of full rank (Gresele et al., NeurIPS
    2021): 0 iff the columns are orthogonal. ``jacobian`` is (n, o, d), o ≥ d, of a decoder at latents or of a mixing at
    sources. In nats, at least 0; NaN if no point has full rank.
    """
    at = ima.contrast(_jacobian("jacobian", jacobian))
    return float(ima.mean_where(at.values, at.full))


def cima_pointwise(jacobian: Values) -> NDArray[np.float64]:
    """:func:`cima` at each point, (n,); NaN where the Jacobian lacks full rank."""
    return ima.pointwise_contrast(_jacobian("jacobian", jacobian))[0].numpy()


def cima_batch(jacobian: Values) -> float:
    """:func:`cima` of the mean Jacobian of 64 points, averaged over whole batches: the published estimator (Reizinger
    et al., NeurIPS 2022), at posterior samples, for comparison only. It lies below :func:`cima`.
    """
    points = _jacobian("jacobian", jacobian)
    _require_batch(points)
    at = ima.contrast(ima.batch_mean(points))
    return float(ima.mean_where(at.values, at.full))


def rank_deficient(jacobian: Values) -> float:
    """Share of the points that :func:`cima` leaves out because their Jacobian lacks full rank."""
    return 1 - float(ima.contrast(_jacobian("jacobian", jacobian)).full.double().mean())


def conformal_contrast(jacobian: Values) -> float:
    """(d/2) log(tr(JᵀJ)/d) − ½ log det(JᵀJ), averaged over the points of full rank: 0 iff J is conformal; at least
    :func:`cima`. In nats; NaN if no point has full rank.
    """
    return float(ima.conformal_contrast(ima.contrast(_jacobian("jacobian", jacobian))))


def column_norms(jacobian: Values) -> ima.ColumnNorms:
    """Statistics of the norms of the columns of a Jacobian (n, o, d)."""
    norms = ima.contrast(_jacobian("jacobian", jacobian)).norms
    return ima.ColumnNorms(*map(float, ima.column_norms(norms)))


def amari(jacobian: Values, truth: Values) -> float:
    """Amari distance of a decoder to the true mixing (Amari et al., NeurIPS 1995), averaged over the points where both
    Jacobians have full rank: 0 iff the columns of the first are those of the second, scaled and permuted. ``jacobian``
    (n, o, d) is the decoder's at the latents, ``truth`` (n, o, d) the mixing's at the sources. In [0, 1]; NaN if no
    point has full rank.
    """
    decoder, mixing = _jacobian("jacobian", jacobian), _jacobian("truth", truth)
    _require_same_shape(jacobian=decoder, truth=mixing)
    at = ima.amari(decoder, mixing)
    return float(ima.mean_where(at, ~at.isnan()))


def self_consistency(variance: Values, jacobian: Values, gamma: float, curvature: Values = 1.0) -> float:
    """Geometric mean, over points and latents, of the posterior's variance over σ_k² = (−(log p)″(μ_k) + γ²‖J_:k‖²)⁻¹
    (Reizinger et al., NeurIPS 2022): 1 for a self-consistent VAE.

    All arguments refer to the coordinate of the Gaussian posterior: with a bounded prior, the unconstrained one.

    Args:
        variance: Variance of the posterior (n, d), above 0.
        jacobian: Jacobian of the decoder at the posterior's location (n, o, d).
        gamma: γ > 0; γ² is the decoder's precision.
        curvature: −(log p)″ of the prior at the posterior's location: a number, (d,) or (n, d). That of the standard
            Gaussian is 1.
    """
    at, bent, spread, precision = _posterior(variance, jacobian, gamma, curvature)
    inverse = ima.inverse_variance(ima.contrast(at).norms.square(), torch.ones_like(spread), bent, precision)
    return float((spread * inverse).log().mean().exp())


def self_consistency_batch(variance: Values, jacobian: Values, gamma: float, curvature: Values = 1.0) -> float:
    """Mean variance of 64 points, times the inverse variance given by their mean Jacobian and mean curvature, averaged
    over whole batches: the published estimator (Reizinger et al., NeurIPS 2022), for comparison only. Arguments as for
    :func:`self_consistency`.
    """
    *rows, precision = _posterior(variance, jacobian, gamma, curvature)
    _require_batch(rows[0])
    at, bent, spread = map(ima.batch_mean, rows)
    return float(ima.batch_ratio(at, bent, spread, precision).mean())


class Likelihoods(NamedTuple):
    """Means over observations, in nats; a gap is positive if the ELBO lies below."""

    log_px: float  # E[log p(x)]
    l_ima: float  # E[log p(x) − c_IMA(f, s)]
    gap_log_px: float  # E[log p(x)] − ELBO
    gap_ima: float  # E[L_IMA] − ELBO


def likelihoods(log_px: Values, contrast: Values, neg_elbo: float) -> Likelihoods:
    """Exact log-likelihood, the IMA-regularised one (Gresele et al., NeurIPS 2021), and the gaps of an ELBO to both.

    Args:
        log_px: log p(x) of each observation under the true mixing (n,), in nats.
        contrast: c_IMA of the true mixing at each source (n,): :func:`cima_pointwise` of its Jacobian.
        neg_elbo: Mean negative ELBO of the same observations.
    """
    exact, local = (_read(name, value, "n").double() for name, value in (("log_px", log_px), ("contrast", contrast)))
    _require_same_shape(log_px=exact, contrast=local)
    mean, regularised = float(exact.mean()), float((exact - local).mean())
    return Likelihoods(mean, regularised, mean + neg_elbo, regularised + neg_elbo)


def mse(a: Values, b: Values) -> float:
    """Mean squared difference of two arrays of rows (n, k), such as observations and their reconstructions."""
    first, second = _read("a", a, "n k"), _read("b", b, "n k")
    _require_same_shape(a=first, b=second)
    return float((first - second).double().square().mean())


def _read(name: str, value: Values, axes: str) -> Tensor:
    """A floating-point tensor on the CPU, with one dimension per word of ``axes``: (n, d) for "n d"."""
    if not isinstance(value, Tensor):
        array = np.array(value)
        require(array.dtype.kind in "fiub", f"{name} is an array of numbers", array.dtype, "give numbers")
        value = torch.from_numpy(array)
    require(not value.is_complex(), f"{name} is an array of real numbers", value.dtype, "give real numbers")
    fits = value.ndim == len(axes.split()) and len(value) > 0
    rule = f"{name} has the shape ({axes.replace(' ', ', ')}{',' * (axes == 'n')})"
    require(fits, rule, f"shape {tuple(value.shape)}", "reshape it: a row is an observation")
    dtype = value.dtype if value.dtype in (torch.float32, torch.float64) else torch.float64
    return value.detach().cpu().to(dtype).contiguous()


def _points(name: str, value: Values) -> Tensor:
    """Sources or latents (n, d); fewer rows than columns are refused, because they may be transposed."""
    points = _read(name, value, "n d")
    n, d = points.shape
    rule = f"{name} has the shape (n, d), with more rows than columns"
    require(n > d > 0, rule, f"shape {(n, d)}", "reshape it: a row is an observation")
    return points


def _pair(s: Values, z: Values, discrete: Sequence[bool] = ()) -> tuple[Tensor, Tensor, list[bool]]:
    """Sources (d, n), latents (1, e, n) of an ensemble of one, and for each source, whether it is discrete."""
    sources, latents = _points("s", s), _points("z", z)
    (n, d), rows = sources.shape, len(latents)
    require(n == rows, "s and z have as many rows", f"{n} and {rows}", "take the same observations")
    finite = bool(sources.isfinite().all())
    require(finite, "s has finite numbers", "NaN or infinite ones", "leave those rows out of both")
    kinds, rule = [bool(kind) for kind in discrete] or [False] * d, "discrete has a truth value for each source"
    require(len(kinds) == d, rule, f"{len(kinds)} for {d} sources", "leave it out if none is discrete")
    return sources.T, latents.T[None], kinds


def _rows(s: Values, z: Values, discrete: Sequence[bool]) -> tuple[NDArray[Any], NDArray[Any], list[bool]]:
    sources, latents, kinds = _pair(s, z, discrete)
    return sources.T.double().numpy(), latents[0].T.double().numpy(), kinds


def _jacobian(name: str, value: Values) -> Tensor:
    """Jacobians (1, o, d, n) of an ensemble of one."""
    points = _read(name, value, "n o d")
    rule, remedy = f"{name} has the shape (n, o, d) with o >= d", "reshape it: entry [i, j, k] is dx_j/dz_k at point i"
    require(points.shape[1] >= points.shape[2] > 0, rule, f"shape {tuple(points.shape)}", remedy)
    return points.permute(1, 2, 0)[None].contiguous()


def _posterior(
    variance: Values, jacobian: Values, gamma: float, curvature: Values
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Jacobians (1, o, d, n), curvatures (1, d, n), variances (1, d, n) and gamma (1,) of an ensemble of one."""
    at, spread = _jacobian("jacobian", jacobian), _read("variance", variance, "n d")
    expected, got = (at.shape[3], at.shape[2]), tuple(spread.shape)
    require(got == expected, f"variance has the shape (n, d) = {expected} of jacobian", got, "take the same points")
    require(bool((spread > 0).all()), "variance > 0", "a smaller value", "give variances, not their logarithms")
    require(0 < gamma < math.inf, "gamma > 0", gamma, "give a number above 0: gamma² is the decoder's precision")
    return at, _expanded("curvature", curvature, spread), spread.T[None], torch.tensor([gamma], dtype=torch.float64)


def _expanded(name: str, value: Values, points: Tensor) -> Tensor:
    """A number, (d,) or (n, d), expanded to all points (1, d, n) in float64."""
    numbers = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    shape, (n, d) = tuple(numbers.shape), points.shape
    fits = shape in ((), (d,), (n, d))
    require(fits, f"{name} is a number, or has the shape {(d,)} or {(n, d)}", shape, "give one value per column")
    return numbers.double().expand(n, d).T[None]


def _require_same_shape(**arrays: Tensor) -> None:
    shapes = [tuple(array.shape) for array in arrays.values()]
    rule = f"{' and '.join(arrays)} have one shape"
    require(shapes[0] == shapes[1], rule, " and ".join(map(str, shapes)), "give rows of the same observations")


def _require_batch(points: Tensor) -> None:
    n, rule = points.shape[-1], f"there are at least {identifiability.BATCH} rows"
    require(n >= identifiability.BATCH, rule, n, "give more: the published estimator averages batches of that size")
