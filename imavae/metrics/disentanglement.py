"""Disentanglement of sources (n, k), continuous or discrete, by latents (n, d): DCI, SAP and MIG, all in [0, 1].

A source that never changes is left out (NaN if none is left); a latent that is constant or not finite predicts
nothing. Accuracies are balanced over classes and rescaled so that chance is 0: (mean recall − 1/c) / (1 − 1/c). Probes
are fitted on the first 2,000 points at most of the first half, and scored on as many of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import mutual_info_score
from sklearn.neighbors import NearestCentroid

from imavae.metrics.identifiability import PROBE_POINTS, correlation, explained_variance, halves, standardised

TREES, LEAF = 10, 5  # of a random forest: number of trees, and points at least per leaf
BINS = 20

Array = NDArray[np.float64]


class DCI(NamedTuple):
    """Each latent codes at most one source; one latent codes each source; the latents predict the sources."""

    disentanglement: Any  # numbers, or tensors (member,)
    completeness: Any
    informativeness: Any


def dci(sources: Float[np.ndarray, "n k"], latents: Float[np.ndarray, "n d"], discrete: Sequence[bool]) -> DCI:
    """DCI, from the importance P_ij of latent i in a random forest that predicts source j.

    Disentanglement is 1 − H_k(P_i· / Σ_j P_ij), averaged with the weights Σ_j P_ij; completeness is the mean of
    1 − H_d(P_·j / Σ_i P_ij), with entropies to base k and d; informativeness is the mean R², or accuracy, on others.
    """
    sources, latents, kinds = _prepared(sources, latents, discrete)
    fit, score = halves(len(latents), PROBE_POINTS)
    importances, accuracies = [], []
    for s, kind in zip(sources.T, kinds, strict=True):
        model = RandomForestClassifier if kind else RandomForestRegressor
        forest = model(TREES, min_samples_leaf=LEAF, max_features=None, random_state=0).fit(latents[fit], s[fit])
        guess = forest.predict(latents[score])
        importances.append(forest.feature_importances_)
        r2 = explained_variance(torch.from_numpy(s[score]), torch.from_numpy(guess).double())
        accuracies.append(_balanced_accuracy(s[score], guess) if kind else float(r2))
    if not importances:
        return DCI(np.nan, np.nan, np.nan)
    importance = np.stack(importances, 1)
    weights = importance.sum(1) / max(importance.sum(), 1)
    disentanglement = float(weights @ _purity(importance))
    return DCI(disentanglement, float(_purity(importance.T).mean()), float(np.mean(accuracies)))


def sap(sources: Float[np.ndarray, "n k"], latents: Float[np.ndarray, "n d"], discrete: Sequence[bool]) -> float:
    """SAP. A score is R² of a linear map, or, for a discrete source, the accuracy of the nearest class mean (linear
    discriminant analysis with equal class weights).
    """
    sources, latents, kinds = _prepared(sources, latents, discrete)
    fit, score = halves(len(latents), PROBE_POINTS)
    scores = correlation(torch.from_numpy(sources.T), torch.from_numpy(latents.T)).square().numpy()
    for j in np.flatnonzero(kinds):
        s = sources[:, j]
        for i, latent in enumerate(latents.T[:, :, None]):
            scores[j, i] = 0
            if np.ptp(latent[fit]) > 0 and np.ptp(s[fit]) > 0:
                guess = NearestCentroid().fit(latent[fit], s[fit]).predict(latent[score])
                scores[j, i] = _balanced_accuracy(s[score], guess)
    return _mean_gap(scores)


def mig(sources: Float[np.ndarray, "n k"], latents: Float[np.ndarray, "n d"], discrete: Sequence[bool]) -> float:
    """MIG. Latents and continuous sources are binned into histograms of 20 bins of equal width; mutual information and
    entropy are those of the binned variables.
    """
    sources, latents, kinds = _prepared(sources, latents, discrete)
    codes = [_bins(latent) for latent in latents.T]
    classes = [s if kind else _bins(s) for s, kind in zip(sources.T, kinds, strict=True)]
    shares = [[mutual_info_score(s, code) / mutual_info_score(s, s) for code in codes] for s in classes]
    return _mean_gap(np.reshape(shares, (len(classes), len(codes))))


def _prepared(
    sources: Float[np.ndarray, "n k"], latents: Float[np.ndarray, "n d"], discrete: Sequence[bool]
) -> tuple[Array, Array, list[bool]]:
    """Sources that vary, discrete ones as class numbers; standardised latents; which of the sources are discrete."""
    varies = np.ptp(sources, axis=0) > 0
    kinds = [kind for kind, kept in zip(discrete, varies, strict=True) if kept]
    kept = sources[:, varies].astype(np.float64)
    for j in np.flatnonzero(kinds):
        kept[:, j] = np.unique(kept[:, j], return_inverse=True)[1]
    return kept, standardised(torch.from_numpy(latents.T)).T.numpy(), kinds


def _balanced_accuracy(truth: Array, guess: Array) -> float:
    """Mean recall over the classes that occur, rescaled to 0 by chance, and at least 0."""
    classes = np.unique(truth)
    if len(classes) == 1:
        return float((truth == guess).mean())
    recall = float(np.mean([(guess[truth == c] == c).mean() for c in classes]))
    return max(0.0, (recall - 1 / len(classes)) / (1 - 1 / len(classes)))


def _purity(importance: Array) -> Array:
    """1 − entropy of each row, to the base of its length: 1 for a single nonzero entry, 0 if all are equal."""
    total = importance.sum(1, keepdims=True)
    share = importance / np.where(total > 0, total, 1)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(1)
    return np.where(total[:, 0] > 0, 1 - entropy / np.log(max(importance.shape[1], 2)), 0)


def _bins(values: Array) -> NDArray[np.intp]:
    return np.digitize(values, np.linspace(values.min(), values.max(), BINS + 1)[1:-1])


def _mean_gap(scores: Array) -> float:
    """Best score of each source minus the second best (0 without one), averaged; scores are (source, latent)."""
    ordered = np.sort(np.pad(scores, ((0, 0), (1, 0))), axis=1)
    return float((ordered[:, -1] - ordered[:, -2]).mean()) if len(scores) else float(np.nan)
