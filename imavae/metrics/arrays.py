"""Metrics as pure functions of arrays, offered as ``imavae.metrics.mcc`` and so on; a row is an observation.

Sources ``s`` are (n, d), latents ``z`` (n, e) with e ≥ d, Jacobians (n, o, d): entry [i, j, k] is ∂x_j/∂z_k at point i.
Each may be a NumPy array, a pandas frame, nested lists or a torch tensor on any device. Results are Python numbers, or
NumPy arrays where there is one value per point or model.

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
from imavae.metrics.disentanglement import DCI as DCI

Values = ArrayLike | Tensor | Sequence[Any] | float  # the last two for run-time checks: ArrayLike has complex alone


def mcc(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """Mean absolute Pearson correlation of sources and latents under the best one-to-one matching.

    Args:
        s: sources (n, d), finite.
        z: latents (n, e), e ≥ d. A constant latent, or one that is not finite, has correlation 0.
        discrete: for each source, whether its values are labels (d,); it is then compared by the correlation ratio.

    Returns:
        A number in [0, 1]; chance is near 0.
    """
    return float(identifiability.mcc(*_pair(s, z), _kinds(s, discrete)))


def mcc_spearman(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """:func:`mcc` of ranks, invariant to monotone maps of each latent; same arguments, range and chance level."""
    return float(identifiability.mcc_spearman(*_pair(s, z), _kinds(s, discrete)))


def mcc_batch(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """:func:`mcc` averaged over whole batches of 64 rows: the published estimator (Reizinger et al., NeurIPS 2022), for
    comparison only. Same arguments and range; chance is well above 0: 0.15 for three sources.
    """
    sources, latents = _pair(s, z)
    _require_batch(latents)
    return float(identifiability.mcc_batch(sources, latents, _kinds(s, discrete)))


def r2_linear(s: Values, z: Values) -> float:
    """R² of the best linear map from all latents to each source, averaged over sources; fitted on the first half of the
    rows and scored on the second. In [0, 1]; ``s`` (n, d) and ``z`` (n, e) as for :func:`mcc`.
    """
    return float(identifiability.r2_linear(*_pair(s, z)))


def r2_nonlinear(s: Values, z: Values) -> float:
    """:func:`r2_linear` with a nonlinear map (kernel ridge regression), fitted on at most 2,000 rows and scored on as
    many; same arguments, range and chance level.
    """
    return float(identifiability.r2_nonlinear(*_pair(s, z)))


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
    return int(
        identifiability.active_units(points.T[None], _expanded("prior_variance", prior_variance, points)[..., 0])
    )


def dci(s: Values, z: Values, discrete: Sequence[bool] = ()) -> DCI:
    """Disentanglement, completeness and informativeness (Eastwood and Williams, ICLR 2018), from random forests that
    predict each source from all latents; each in [0, 1] with chance near 0. Arguments as for :func:`mcc`. A source that
    never changes is left out; NaN if none changes.
    """
    sources, latents = _pair(s, z)
    return disentanglement.dci(sources.T.double().numpy(), latents[0].T.double().numpy(), _kinds(s, discrete))


def sap(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """Separated attribute predictability (Kumar et al., ICLR 2018): score of the latent that linearly predicts a source
    best minus that of the second best, averaged over sources. Arguments, range and chance level as for :func:`mcc`;
    NaN if no source changes.
    """
    sources, latents = _pair(s, z)
    return disentanglement.sap(sources.T.double().numpy(), latents[0].T.double().numpy(), _kinds(s, discrete))


def mig(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """Mutual information gap (Chen et al., NeurIPS 2018): mutual information of a source with its best latent minus
    that with the second best, over the source's entropy, from histograms; averaged over sources. Arguments, range and
    chance level as for :func:`mcc`; NaN if no source changes.
    """
    sources, latents = _pair(s, z)
    return disentanglement.mig(sources.T.double().numpy(), latents[0].T.double().numpy(), _kinds(s, discrete))


def cima(jacobian: Values) -> float:
    """Local IMA contrast Σ_k log‖J_:k‖ − ½ log det(JᵀJ), averaged over the points of full rank (Gresele et al., NeurIPS
    2021): 0 iff the columns are orthogonal. ``jacobian`` is (n, o, d), o ≥ d, of a decoder at latents or of a mixing at
    sources. In nats, at least 0; NaN if no point has full rank.
    """
    at = ima.contrast(_jacobian("jacobian", jacobian))
    return float(ima.mean_where(at.values, at.full))


def cima_pointwise(jacobian: Values) -> NDArray[np.float64]:
    """:func:`cima` at each point, (n,); NaN where the ``jacobian`` (n, o, d) lacks full rank."""
    return ima.pointwise_contrast(_jacobian("jacobian", jacobian))[0].numpy()


def cima_batch(jacobian: Values) -> float:
    """:func:`cima` of the mean ``jacobian`` (n, o, d) of 64 points, averaged over whole batches: the published
    estimator (Reizinger et al., NeurIPS 2022), for comparison only. It lies below :func:`cima`.
    """
    points = _jacobian("jacobian", jacobian)
    _require_batch(points)
    at = ima.contrast(ima.batch_mean(points))
    return float(ima.mean_where(at.values, at.full))


def rank_deficient(jacobian: Values) -> float:
    """Share of the points that :func:`cima` leaves out because their ``jacobian`` (n, o, d) lacks full rank."""
    return 1 - float(ima.contrast(_jacobian("jacobian", jacobian)).full.double().mean())


def conformal_contrast(jacobian: Values) -> float:
    """(d/2) log(tr(JᵀJ)/d) − ½ log det(JᵀJ) of a ``jacobian`` (n, o, d), averaged over the points of full rank: 0 iff J
    is conformal; at least :func:`cima`. In nats; NaN if no point has full rank.
    """
    return float(ima.conformal_contrast(ima.contrast(_jacobian("jacobian", jacobian))))


class ColumnNorms(NamedTuple):
    """Statistics of the norms ‖J_:k‖ of a Jacobian's columns."""

    mean: float  # over points and columns
    variance_over_columns: float  # of each column's mean over points
    maximum: float  # over points and columns
    variance_over_points: float  # averaged over columns


def column_norms(jacobian: Values) -> ColumnNorms:
    """Statistics of the norms of the columns of a ``jacobian`` (n, o, d)."""
    norms = ima.contrast(_jacobian("jacobian", jacobian)).norms
    return ColumnNorms(*(float(value) for value in ima.column_norms(norms)))


def amari(jacobian: Values, truth: Values) -> float:
    """Amari distance of a decoder to the true mixing (Amari et al., NeurIPS 1995), averaged over the points where both
    Jacobians have full rank: 0 iff the columns of the first are those of the second, scaled and permuted. ``jacobian``
    (n, o, d) is the decoder's at the latents, ``truth`` (n, o, d) the mixing's at the sources. In [0, 1]; NaN if no
    point has full rank.
    """
    decoder, mixing = _jacobian("jacobian", jacobian), _jacobian("truth", truth)
    _require_same_shape("jacobian", jacobian, "truth", truth)
    at = ima.amari(decoder, mixing)
    return float(ima.mean_where(at, ~at.isnan()))


def self_consistency(variance: Values, jacobian: Values, gamma: float, curvature: Values = 1.0) -> float:
    """Geometric mean, over points and latents, of the posterior's variance over σ_k² = (−(log p)″(μ_k) + γ²‖J_:k‖²)⁻¹
    (Reizinger et al., NeurIPS 2022): 1 for a self-consistent VAE.

    All arguments refer to the coordinate of the Gaussian posterior: with a bounded prior, the unconstrained one.

    Args:
        variance: of the posterior (n, d), above 0.
        jacobian: of the decoder at the posterior's location (n, o, d).
        gamma: γ > 0; γ² is the decoder's precision.
        curvature: −(log p)″ of the prior at the posterior's location: a number, (d,) or (n, d). That of the standard
            Gaussian is 1.
    """
    at, precision, spread, bent = _posterior(variance, jacobian, gamma, curvature)
    square = ima.contrast(at).norms.square()
    inverse = ima.inverse_variance(square, torch.ones_like(spread), bent, precision)
    return float((spread * inverse).log().mean().exp())


def self_consistency_batch(variance: Values, jacobian: Values, gamma: float, curvature: Values = 1.0) -> float:
    """Mean variance of 64 points, times the inverse variance given by their mean Jacobian and mean curvature, averaged
    over whole batches: the published estimator (Reizinger et al., NeurIPS 2022), for comparison only. Arguments as for
    :func:`self_consistency`.
    """
    at, precision, spread, bent = _posterior(variance, jacobian, gamma, curvature)
    _require_batch(at)
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
        neg_elbo: mean negative ELBO of the same observations.
    """
    exact, local = (_read(name, value, "n").double() for name, value in (("log_px", log_px), ("contrast", contrast)))
    _require_same_shape("log_px", log_px, "contrast", contrast)
    mean, regularised = float(exact.mean()), float((exact - local).mean())
    return Likelihoods(mean, regularised, mean + neg_elbo, regularised + neg_elbo)


def mse(a: Values, b: Values) -> float:
    """Mean squared difference of two arrays of rows (n, k), such as observations and their reconstructions."""
    first, second = _read("a", a, "n k"), _read("b", b, "n k")
    _require_same_shape("a", a, "b", b)
    return float((first - second).double().square().mean())


def _read(name: str, value: Values, axes: str) -> Tensor:
    """A floating-point tensor on the CPU, with one dimension per word of ``axes``: (n, d) for "n d"."""
    if not isinstance(value, Tensor):
        array = np.array(value)
        require(array.dtype.kind in "fiub", f"{name} is an array of numbers", array.dtype, "give numbers")
        value = torch.from_numpy(array)
    require(not value.is_complex(), f"{name} is an array of real numbers", value.dtype, "give real numbers")
    rule = f"{name} has the shape ({axes.replace(' ', ', ')}{',' * (axes == 'n')})"
    fits = value.ndim == len(axes.split()) and len(value) > 0
    require(fits, rule, f"shape {_shape(value)}", "reshape it: a row is an observation")
    dtype = value.dtype if value.dtype in (torch.float32, torch.float64) else torch.float64
    return value.detach().cpu().to(dtype).contiguous()


def _points(name: str, value: Values) -> Tensor:
    """Sources or latents (n, d); fewer rows than columns are refused, because they may be transposed."""
    points = _read(name, value, "n d")
    rule = f"{name} has the shape (n, d), with more rows than columns"
    require(len(points) > points.shape[1] > 0, rule, f"shape {_shape(value)}", "reshape it: a row is an observation")
    return points


def _pair(s: Values, z: Values) -> tuple[Tensor, Tensor]:
    """Sources (d, n), and latents (1, e, n) of an ensemble of one."""
    sources, latents = _points("s", s), _points("z", z)
    shapes = f"{_shape(s)} and {_shape(z)}"
    require(len(sources) == len(latents), "s and z have as many rows", shapes, "take the same observations")
    require(sources.shape[1] <= latents.shape[1], "z has at least as many columns as s", shapes, "drop sources")
    finite = bool(sources.isfinite().all())
    require(finite, "s has finite numbers", "NaN or infinite ones", "leave those rows out of both")
    return sources.T, latents.T[None]


def _kinds(s: Values, discrete: Sequence[bool]) -> list[bool]:
    """For each source, whether it is discrete."""
    columns, kinds = _shape(s)[1], [bool(kind) for kind in discrete]
    rule = "discrete has a truth value for each source"
    require(len(kinds) in (0, columns), rule, f"{len(kinds)} for {columns} sources", "leave it out if none is discrete")
    return kinds or [False] * columns


def _jacobian(name: str, value: Values) -> Tensor:
    """Jacobians (1, o, d, n) of an ensemble of one."""
    points = _read(name, value, "n o d")
    rule, remedy = f"{name} has the shape (n, o, d) with o >= d", "reshape it: entry [i, j, k] is dx_j/dz_k at point i"
    require(points.shape[1] >= points.shape[2] > 0, rule, f"shape {_shape(value)}", remedy)
    return points.permute(1, 2, 0)[None].contiguous()


def _posterior(
    variance: Values, jacobian: Values, gamma: float, curvature: Values
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Jacobians (1, o, d, n), gamma (1,), variances (1, d, n) and curvatures (1, d, n) of an ensemble of one."""
    at, spread = _jacobian("jacobian", jacobian), _read("variance", variance, "n d")
    expected, got = (at.shape[3], at.shape[2]), tuple(spread.shape)
    require(got == expected, f"variance has the shape (n, d) = {expected} of jacobian", got, "take the same points")
    require(bool((spread > 0).all()), "variance > 0", "a smaller value", "give variances, not their logarithms")
    require(0 < gamma < math.inf, "gamma > 0", gamma, "give a number above 0: gamma² is the decoder's precision")
    return at, torch.tensor([gamma], dtype=torch.float64), spread.T[None], _expanded("curvature", curvature, spread)


def _expanded(name: str, value: Values, points: Tensor) -> Tensor:
    """A number, (d,) or (n, d), expanded to all points (1, d, n) in float64."""
    numbers = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    shape, (n, d) = tuple(numbers.shape), points.shape
    fits = shape in ((), (d,), (n, d))
    require(fits, f"{name} is a number, or has the shape {(d,)} or {(n, d)}", shape, "give one value per column")
    return numbers.double().expand(n, d).T[None]


def _require_same_shape(name: str, one: Values, other_name: str, other: Values) -> None:
    shapes = f"{_shape(one)} and {_shape(other)}"
    same = _shape(one) == _shape(other)
    require(same, f"{name} and {other_name} have one shape", shapes, "give rows of the same observations")


def _require_batch(points: Tensor) -> None:
    n, rule = points.shape[-1], f"there are at least {identifiability.BATCH} rows"
    require(n >= identifiability.BATCH, rule, n, "give more: the published estimator averages batches of that size")


def _shape(value: Values) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else np.shape(value)
