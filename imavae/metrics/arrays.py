"""The metrics as pure functions on arrays, as ``imavae.metrics`` offers them; a row is an observation.

Sources ``s`` are (n, d), latents ``z`` (n, e) with e ≥ d, Jacobians (n, o, d): entry [i, j, k] is ∂x_j/∂z_k at point i.
Each is a NumPy array, a pandas frame, nested lists or a torch tensor, which is taken as a constant from whatever
device. Nothing is computed here: these are the functions by which ensembles are evaluated, of an ensemble of one.
Results are Python numbers, or NumPy arrays where there is one a point or a member.

The source of a metric (its paper) is named where it is computed: identifiability.py, disentanglement.py, ima.py,
likelihood.py; the glossary has each metric's equation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from imavae.errors import require
from imavae.metrics import disentanglement, identifiability, ima
from imavae.metrics import likelihood as exact
from imavae.metrics.checked import (
    Values,
    check_as_many,
    check_batch,
    each_of,
    jacobian_of,
    kinds_of,
    members_of,
    points_of,
    posterior_of,
    read,
    rows_of,
    shape_of,
)
from imavae.metrics.disentanglement import DCI as DCI


def mcc(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """Mean absolute Pearson correlation of sources and latents, matched one to one so that it is greatest.

    Args:
        s: sources (n, d), finite.
        z: latents (n, e), e ≥ d. One that is constant or not finite correlates with nothing.
        discrete: for each source, whether its values are names (d,); the correlation ratio counts then. None is.

    Returns:
        A number in [0, 1]; near 0 by chance.

    Raises:
        UserError: arrays of other shapes, or sources that are not finite.
    """
    return float(identifiability.mcc(*members_of(s, z), kinds_of(s, discrete)))


def mcc_spearman(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """:func:`mcc` of ranks: blind to monotone distortions of each latent.

    Arguments (s: (n, d), z: (n, e), discrete: (d,)), result and errors are those of :func:`mcc`.

    Raises:
        UserError: as :func:`mcc` does.
    """
    return float(identifiability.mcc_spearman(*members_of(s, z), kinds_of(s, discrete)))


def mcc_batch(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """The published estimator, for comparison only: the average of :func:`mcc` over batches of 64 rows; what is left
    over is dropped. Chance is well above 0: 0.15 for three sources.

    Arguments (s: (n, d), z: (n, e), discrete: (d,)) and result are those of :func:`mcc`.

    Raises:
        UserError: as :func:`mcc` does, or fewer than 64 rows.
    """
    known, found = members_of(s, z)
    check_batch(found)
    return float(identifiability.mcc_batch(known, found, ima.BATCH, kinds_of(s, discrete)))


def r2_linear(s: Values, z: Values) -> float:
    """R² of the best linear map from all latents to each source, fitted on the first half of the rows and scored on the
    second, at least 0; the mean over sources.

    Args:
        s: sources (n, d), finite.
        z: latents (n, e), e ≥ d.

    Returns:
        A number in [0, 1].

    Raises:
        UserError: arrays of other shapes, or sources that are not finite.
    """
    return float(identifiability.r2_linear(*members_of(s, z)))


def r2_nonlinear(s: Values, z: Values) -> float:
    """:func:`r2_linear` with a nonlinear map, kernel ridge regression: fitted on 2,000 rows at most, scored on as many.

    Arguments (s: (n, d), z: (n, e)) and result are those of :func:`r2_linear`.

    Raises:
        UserError: as :func:`r2_linear` does.
    """
    return float(identifiability.r2_nonlinear(*members_of(s, z)))


def agreement(z: Sequence[Values] | Values) -> NDArray[np.float64]:
    """How far models agree on their latents, which needs no sources: of each model, the median over the others of the
    :func:`mcc` between their latents.

    Args:
        z: the latents (n, d) of each of several models, of the same observations; or one array (model, n, d).

    Returns:
        (model,), each in [0, 1].

    Raises:
        UserError: fewer than two models, or latents of other shapes.
    """
    models = [points_of("z", one) for one in z]  # type: ignore[union-attr]  # an array is a sequence of its rows
    require(
        len(models) >= 2,
        "z has the latents of two models at least",
        len(models),
        "give two: one has no other",
    )
    shapes = [tuple(one.shape) for one in models]
    require(len(set(shapes)) == 1, "the latents of all models have one shape", shapes, "give latents of the same rows")
    stacked = torch.stack([one.to(models[0].dtype).T for one in models])
    return identifiability.agreement(stacked, [0] * len(models)).numpy()


def active_units(z: Values, prior_variance: Values = 1.0) -> int:
    """How many latents are in use: those that vary over observations by more than 1 % of the prior's variance.

    Args:
        z: latents (n, d), as the posterior's location.
        prior_variance: of a latent under the prior, a number or (d,).

    Raises:
        UserError: arrays of other shapes.
    """
    found = points_of("z", z)
    return int(identifiability.active_units(found.T[None], each_of("prior_variance", prior_variance, found)[:, :, 0]))


def dci(s: Values, z: Values, discrete: Sequence[bool] = ()) -> DCI:
    """Disentanglement, completeness and informativeness, by random forests that predict each source from all latents.

    Arguments (s: (n, d), z: (n, e), discrete: (d,)) are those of :func:`mcc`. A source that never changes is left out.

    Returns:
        ``disentanglement`` (each latent codes one source at the most), ``completeness`` (each source lies in one
        latent) and ``informativeness`` (sources can be predicted), each in [0, 1]; NaN where no source changes.

    Raises:
        UserError: as :func:`mcc` does.
    """
    return disentanglement.dci(*rows_of(s, z), kinds_of(s, discrete))


def sap(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """Separated attribute predictability: how far the latent that predicts a source best is ahead of the second best,
    linearly; the mean over sources.

    Arguments (s: (n, d), z: (n, e), discrete: (d,)) and result are those of :func:`mcc`; NaN where no source changes.

    Raises:
        UserError: as :func:`mcc` does.
    """
    return disentanglement.sap(*rows_of(s, z), kinds_of(s, discrete))


def mig(s: Values, z: Values, discrete: Sequence[bool] = ()) -> float:
    """Mutual information gap: that of a source with its best latent minus that with the second best, over the source's
    entropy, from histograms; the mean over sources.

    Arguments (s: (n, d), z: (n, e), discrete: (d,)) and result are those of :func:`mcc`; NaN where no source changes.

    Raises:
        UserError: as :func:`mcc` does.
    """
    return disentanglement.mig(*rows_of(s, z), kinds_of(s, discrete))


def cima(jacobian: Values) -> float:
    """The local IMA contrast Σ_k log‖J_:k‖ − ½ log det(JᵀJ), averaged over the points of full rank: 0 iff the columns
    are orthogonal there.

    Args:
        jacobian: (n, o, d), o ≥ d; that of a decoder at latents or of a mixing at sources.

    Returns:
        Nats, at least 0; NaN where no point has full rank.

    Raises:
        UserError: an array of another shape.
    """
    at = ima.contrast(jacobian_of("jacobian", jacobian))
    return float(ima.mean_where(at.values, at.full))


def cima_pointwise(jacobian: Values) -> NDArray[np.float64]:
    """The local IMA contrast at each point, in nats.

    Args:
        jacobian: (n, o, d), o ≥ d.

    Returns:
        (n,); NaN where the Jacobian lacks full rank.

    Raises:
        UserError: an array of another shape.
    """
    return ima.truth_contrast(jacobian_of("jacobian", jacobian))[0].numpy()


def cima_batch(jacobian: Values) -> float:
    """The published estimator, for comparison only: the contrast of the mean Jacobian of each 64 points, averaged; what
    is left over is dropped. It lies below :func:`cima`.

    The argument (jacobian: (n, o, d)) and the result are those of :func:`cima`.

    Raises:
        UserError: as :func:`cima` does, or fewer than 64 points.
    """
    points = jacobian_of("jacobian", jacobian)
    check_batch(points)
    at = ima.contrast(ima.batch_mean(points))
    return float(ima.mean_where(at.values, at.full))


def rank_deficient(jacobian: Values) -> float:
    """The share of points that :func:`cima` leaves out: their Jacobian lacks full rank; ``jacobian`` is (n, o, d).

    Raises:
        UserError: as :func:`cima` does.
    """
    return 1 - float(ima.contrast(jacobian_of("jacobian", jacobian)).full.double().mean())


def conformal_contrast(jacobian: Values) -> float:
    """(d/2) log(tr(JᵀJ)/d) − ½ log det(JᵀJ), averaged over the points of full rank: 0 iff J is conformal; at least
    :func:`cima`.

    The argument (jacobian: (n, o, d)) and the result are those of :func:`cima`.

    Raises:
        UserError: as :func:`cima` does.
    """
    return float(ima.conformal_contrast(ima.contrast(jacobian_of("jacobian", jacobian))))


class ColumnNorms(NamedTuple):
    """Of the norms ‖J_:k‖ of a Jacobian's columns at each point."""

    mean: float  # over points and columns
    variance_over_columns: float  # of each column's mean over points
    maximum: float  # over points and columns
    variance_over_points: float  # averaged over columns


def column_norms(jacobian: Values) -> ColumnNorms:
    """How strongly, how evenly and how steadily observations depend on each latent; ``jacobian`` is (n, o, d).

    Raises:
        UserError: as :func:`cima` does.
    """
    norms = ima.contrast(jacobian_of("jacobian", jacobian)).norms
    return ColumnNorms(*(float(value) for value in ima.column_norms(norms)))


def amari(jacobian: Values, truth: Values) -> float:
    """Amari distance of a decoder to the true mixing: 0 iff the first's Jacobian is the second's with columns scaled
    and permuted; averaged over the points where both have full rank.

    Args:
        jacobian: of the decoder at the latents of n observations (n, o, d).
        truth: of the mixing at the sources of the same observations (n, o, d).

    Returns:
        A number in [0, 1]; NaN where no point has full rank.

    Raises:
        UserError: arrays of other shapes.
    """
    decoder, mixing = jacobian_of("jacobian", jacobian), jacobian_of("truth", truth)
    same, shapes = decoder.shape == mixing.shape, f"{shape_of(jacobian)} and {shape_of(truth)}"
    require(same, "jacobian and truth have one shape", shapes, "take both at the same observations")
    at = ima.amari(decoder, mixing)
    return float(ima.mean_where(at, ~at.isnan()))


def self_consistency(variance: Values, jacobian: Values, gamma: float, curvature: Values = 1.0) -> float:
    """The posterior's variance over its formula σ_k² = (−(log p)″(μ_k) + γ²‖J_:k‖²)⁻¹, as a geometric mean over points
    and latents: 1 where a VAE is self-consistent.

    All are in one coordinate, that of the Gaussian posterior: with a bounded prior the unconstrained one.

    Args:
        variance: of the posterior (n, d), above 0.
        jacobian: of the decoder at the posterior's location (n, o, d).
        gamma: γ > 0; γ² is the decoder's precision.
        curvature: −(log p)″ of the prior at the posterior's location, a number, (d,) or (n, d); 1 is the standard
            Gaussian's.

    Raises:
        UserError: arrays of other shapes, or a variance or gamma that is not above 0.
    """
    at, precision, spread, bent = posterior_of(variance, jacobian, gamma, curvature)
    square = ima.contrast(at).norms.square()
    inverse = ima.inverse_variance(square, torch.ones_like(spread), bent, precision)
    return float((spread * inverse).log().mean().exp())


def self_consistency_batch(variance: Values, jacobian: Values, gamma: float, curvature: Values = 1.0) -> float:
    """The published estimator, for comparison only: the mean variance of each 64 points times what their mean Jacobian
    and mean curvature give for its inverse, averaged; what is left over is dropped.

    Arguments (variance: (n, d), jacobian: (n, o, d), gamma, curvature: (n, d)) are those of :func:`self_consistency`.

    Raises:
        UserError: as :func:`self_consistency` does, or fewer than 64 points.
    """
    at, precision, spread, bent = posterior_of(variance, jacobian, gamma, curvature)
    check_batch(at)
    return float(ima.batch_ratio(at, bent, spread, precision).mean())


class Likelihoods(NamedTuple):
    """Means over observations, in nats; a gap is positive where the ELBO lies below."""

    log_px: float  # E[log p(x)]
    l_ima: float  # E[log p(x) − c_IMA(f, s)]
    gap_log_px: float  # E[log p(x)] − ELBO
    gap_ima: float  # E[L_IMA] − ELBO


def likelihoods(log_px: Values, contrast: Values, neg_elbo: float) -> Likelihoods:
    """The exact log-likelihood of observations, the IMA-regularised one, and how far an ELBO lies below them.

    Args:
        log_px: log p(x) of each observation under the true mixing (n,), in nats.
        contrast: c_IMA of the true mixing at the source of each (n,): ``cima_pointwise`` of its Jacobian.
        neg_elbo: the negative ELBO of the same observations, their mean.

    Raises:
        UserError: arrays of other shapes.
    """
    known, at = (read(name, value, "n").double() for name, value in (("log_px", log_px), ("contrast", contrast)))
    check_as_many("log_px", known, "contrast", at)
    found = exact.likelihood(known[None], at[None], torch.tensor([neg_elbo], dtype=torch.float64))
    return Likelihoods(*(float(value) for value in found))


def mse(a: Values, b: Values) -> float:
    """The mean squared difference of two arrays of rows (n, k): of observations and their reconstructions, or of
    sources and the latents of their decodings.

    Raises:
        UserError: arrays of other or of different shapes.
    """
    first, second = read("a", a, "n k"), read("b", b, "n k")
    require(
        first.shape == second.shape,
        "a and b have one shape",
        f"{shape_of(a)} and {shape_of(b)}",
        "give rows of the same points",
    )
    return float((first - second).double().square().mean())
