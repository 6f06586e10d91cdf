"""Disentanglement of known factors (n, k), continuous or discrete, by latents (n, d): DCI, SAP and MIG, all in [0, 1].

A factor that never changes is left out (NaN if none is left); a latent that is constant or not finite knows nothing.
Accuracies are balanced over classes and rescaled, so that chance is 0: (mean recall − 1/c) / (1 − 1/c). Probes are
fitted to the first 2,000 points at most of the first half, and scored on as many of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import mutual_info_score
from sklearn.neighbors import NearestCentroid

from imavae.metrics.identifiability import PROBE_POINTS, correlation, explained, halves, standard

TREES, LEAF = 10, 5  # of a probe's forest: trees, and points at least in each leaf
BINS = 20

Array = NDArray[np.float64]


class DCI(NamedTuple):
    """Each latent codes one factor at the most; each factor lies in one latent; the factors can be predicted."""

    disentanglement: float
    completeness: float
    informativeness: float


def dci(factors: Float[np.ndarray, "n k"], latents: Float[np.ndarray, "n d"], discrete: Sequence[bool]) -> DCI:
    """From the importance P_ij of latent i in a random forest that predicts factor j (Eastwood and Williams, ICLR
    2018): disentanglement is 1 − H_k(P_i· / Σ_j P_ij), averaged with the weights Σ_j P_ij; completeness is the mean of
    1 − H_d(P_·j / Σ_i P_ij), with entropies to base k and d; informativeness is the mean R², or accuracy, on points
    that the forests have not seen.
    """
    factors, latents, kinds = _prepared(factors, latents, discrete)
    forests = [_forest(f, latents, kind) for f, kind in zip(factors.T, kinds, strict=True)]
    if not forests:
        return DCI(np.nan, np.nan, np.nan)
    importance = np.stack([importances for importances, _ in forests], 1)
    weights = importance.sum(1) / max(importance.sum(), 1)
    return DCI(
        disentanglement=float(weights @ _purity(importance)),
        completeness=float(_purity(importance.T).mean()),
        informativeness=float(np.mean([score for _, score in forests])),
    )


def sap(factors: Float[np.ndarray, "n k"], latents: Float[np.ndarray, "n d"], discrete: Sequence[bool]) -> float:
    """Separated attribute predictability (Kumar et al., ICLR 2018): how well one latent alone predicts a factor, the
    best latent minus the second best, averaged over factors. The prediction is linear: R², or, of a discrete factor,
    the accuracy of the nearest class mean (linear discriminant analysis with equal class weights).
    """
    factors, latents, kinds = _prepared(factors, latents, discrete)
    scores = correlation(torch.from_numpy(factors.T), torch.from_numpy(latents.T)).square().numpy()
    for j, kind in enumerate(kinds):
        if kind:
            scores[j] = [_separation(factors[:, j], latent[:, None]) for latent in latents.T]
    return _gap(scores)


def mig(factors: Float[np.ndarray, "n k"], latents: Float[np.ndarray, "n d"], discrete: Sequence[bool]) -> float:
    """Mutual information gap (Chen et al., NeurIPS 2018): the mutual information of a factor with a latent over the
    factor's entropy, the best latent minus the second best, averaged over factors; from histograms of 20 bins of equal
    width for latents and continuous factors, whose values are therefore those of the binned variables.
    """
    factors, latents, kinds = _prepared(factors, latents, discrete)
    known = [f if kind else _bins(f) for f, kind in zip(factors.T, kinds, strict=True)]
    codes = [_bins(latent) for latent in latents.T]
    shares = [[mutual_info_score(f, code) / mutual_info_score(f, f) for code in codes] for f in known]
    return _gap(np.reshape(shares, (len(known), len(codes))))


def _prepared(
    factors: Float[np.ndarray, "n k"], latents: Float[np.ndarray, "n d"], discrete: Sequence[bool]
) -> tuple[Array, Array, list[bool]]:
    """The factors that vary, discrete ones as class numbers; the latents, standardised; which factors are discrete."""
    columns = [
        (np.unique(f, return_inverse=True)[1] if kind else f, kind)
        for f, kind in zip(factors.T, discrete, strict=True)
        if np.ptp(f) > 0
    ]
    varying = np.array([f for f, _ in columns], dtype=np.float64).reshape(len(columns), len(latents))
    standardised: Array = standard(torch.from_numpy(latents.T)).T.numpy()
    return varying.T, standardised, [bool(kind) for _, kind in columns]


def _forest(factor: Array, latents: Array, discrete: bool) -> tuple[Array, float]:
    """The importance of each latent for a factor, and how well the factor is predicted."""
    fit, score = halves(len(factor), PROBE_POINTS)
    kind = RandomForestClassifier if discrete else RandomForestRegressor
    forest = kind(TREES, min_samples_leaf=LEAF, max_features=None, random_state=0).fit(latents[fit], factor[fit])
    truth, guess = factor[score], forest.predict(latents[score])
    if discrete:
        return forest.feature_importances_, _accuracy(truth, guess)
    return forest.feature_importances_, float(explained(torch.from_numpy(truth), torch.from_numpy(guess)))


def _separation(factor: Array, latent: Array) -> float:
    fit, score = halves(len(factor), PROBE_POINTS)
    if np.ptp(latent[fit]) == 0 or np.ptp(factor[fit]) == 0:
        return 0.0
    return _accuracy(factor[score], NearestCentroid().fit(latent[fit], factor[fit]).predict(latent[score]))


def _accuracy(truth: Array, guess: Array) -> float:
    """Balanced over the classes that occur; 0 by chance and at the least."""
    classes = np.unique(truth)
    if len(classes) == 1:
        return float((truth == guess).mean())
    recall = float(np.mean([(guess[truth == c] == c).mean() for c in classes]))
    return max(0.0, (recall - 1 / len(classes)) / (1 - 1 / len(classes)))


def _purity(importance: Array) -> Array:
    """1 − entropy of each row, to the base of its length: 1 where one entry holds everything, 0 where all are equal or
    all are zero.
    """
    total = importance.sum(1, keepdims=True)
    share = importance / np.where(total > 0, total, 1)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(1)
    return np.where(total[:, 0] > 0, 1 - entropy / np.log(max(importance.shape[1], 2)), 0)


def _bins(values: Array) -> NDArray[np.intp]:
    return np.digitize(values, np.linspace(values.min(), values.max(), BINS + 1)[1:-1])


def _gap(scores: Array) -> float:
    """Of each factor's scores (factor, latent): the best minus the second best (0 where there is none); their mean."""
    ordered = np.sort(np.pad(scores, ((0, 0), (1, 0))), axis=1)
    return float((ordered[:, -1] - ordered[:, -2]).mean()) if len(scores) else float(np.nan)
