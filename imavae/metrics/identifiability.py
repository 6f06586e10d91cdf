"""How well latents recover the sources: MCC, the R² of probes, and the agreement of members with each other.

MCC is the mean absolute correlation of the optimal one-to-one matching between sources and latents. Sources are
(d, n), shared by all members, or (member, d, n), one world each; latents are (member, d, n). A latent (or source) that
is constant or not finite correlates with nothing: its row counts as zero, so a collapsed model scores at chance
instead of failing. Of a source that is discrete, the correlation ratio with each latent counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

AGREEMENT_POINTS = 20_000  # of a split, the first in its random order: those of all members are kept till the end
PROBE_POINTS = 2000  # that a nonlinear probe is fitted to, and as many that it is scored on: more change little
ENUMERATED = 4  # dimensions up to which every matching is tried
LANDMARKS = 200  # of its kernel


def mcc(
    sources: Float[Tensor, "*world d n"], latents: Float[Tensor, "member e n"], discrete: Sequence[bool] = ()
) -> Float64[Tensor, " member"]:
    """Pearson MCC over all n points, in [0, 1]; near 0 by chance."""
    return matched_mean(correlation(sources, latents, discrete))


def mcc_spearman(
    sources: Float[Tensor, "*world d n"], latents: Float[Tensor, "member e n"], discrete: Sequence[bool] = ()
) -> Float64[Tensor, " member"]:
    """MCC of ranks: blind to monotone distortions of each latent."""
    return matched_mean(correlation(_ranks(sources), _ranks(latents), discrete))


def mcc_batch(
    sources: Float[Tensor, "*world d n"],
    latents: Float[Tensor, "member e n"],
    size: int = 64,
    discrete: Sequence[bool] = (),
) -> Float64[Tensor, " member"]:
    """The published estimator: the average of the MCCs of batches of ``size`` points (what is left over is dropped).
    Chance is well above zero: 0.15 for d = 3. For comparison only.
    """
    return matched_mean(correlation(_batches(sources, size), _batches(latents, size), discrete)).mean(1)


def agreement(locations: Float[Tensor, "member d n"], groups: Sequence[Hashable]) -> Float64[Tensor, " member"]:
    """How identifiable the solution is, without its sources: the median, over the other members of a member's group,
    of the MCC between their latents; NaN in a group of one (after Duan et al., arXiv 1905.12614).

    One product of standardised latents per group, in float32, gives the correlations of all of its pairs. An evaluation
    gives it the first :data:`AGREEMENT_POINTS` of a split at the most.
    """
    dim = locations.shape[1]
    result = torch.full((len(groups),), torch.nan, dtype=torch.float64)
    for group in dict.fromkeys(groups):
        rows = [i for i, other in enumerate(groups) if other == group]
        if len(rows) == 1:
            continue
        z = locations.new_empty(len(rows), *locations.shape[1:], dtype=torch.float32)
        for place, row in enumerate(rows):  # one by one: float64 copies of all of them would be the larger part
            z[place] = standard(locations[row])
        z = z.flatten(0, 1)
        tables = (z @ z.T).reshape(len(rows), dim, len(rows), dim).transpose(1, 2)
        first, second = (list(side) for side in zip(*itertools.combinations(range(len(rows)), 2), strict=True))
        scores = torch.full((len(rows), len(rows)), torch.nan, dtype=torch.float64)  # with itself: none
        scores[first, second] = scores[second, first] = matched_mean(tables[first, second].double())
        result[rows] = scores.nanquantile(0.5, dim=1)
    return result


def active_units(
    locations: Float[Tensor, "member d n"], prior_variance: Float64[Tensor, "member d"]
) -> Int[Tensor, " member"]:
    """Latents in use: those whose location varies over points by more than 1 % of the prior's variance."""
    centred = locations - locations.mean(-1, keepdim=True)
    return (centred.square().mean(-1, dtype=torch.float64) > 0.01 * prior_variance).sum(1)


def r2_linear(sources: Float[Tensor, "*world d n"], latents: Float[Tensor, "member e n"]) -> Float64[Tensor, " member"]:
    """R² of the linear least-squares probe, with intercept, from all latents to each source, averaged over sources.

    Fitted on the first half of the points, scored on the second: 1 − Σ(s − ŝ)² / Σ(s − s̄)², at least 0.
    """
    return standard_r2_linear(standard(sources), standard(latents))  # a probe with intercept is blind to both


def standard_r2_linear(
    s: Float64[Tensor, "*world d n"], z: Float64[Tensor, "member e n"]
) -> Float64[Tensor, " member"]:
    """The same of rows that :func:`standard` gave."""
    fit, score = halves(z.shape[-1])
    mean_s, mean_z = s[..., fit].mean(-1, keepdim=True), z[..., fit].mean(-1, keepdim=True)
    known = z[..., fit] - mean_z
    # 1e-12 of the covariance is 1e-6 of a latent, float32's rounding: two latents that are equal count once
    inverse = torch.linalg.pinv(known @ known.mT, rtol=1e-12, hermitian=True)
    slope = (s[..., fit] - mean_s) @ known.mT @ inverse
    return explained(s[..., score], mean_s + slope @ (z[..., score] - mean_z)).mean(-1).cpu()


def r2_nonlinear(
    sources: Float[Tensor, "*world d n"], latents: Float[Tensor, "member e n"]
) -> Float64[Tensor, " member"]:
    """The same of a nonlinear probe: ridge regression on the standardised latents and on the kernel
    exp(−‖z − z'‖² / e) with 200 Nyström landmarks (Williams and Seeger, 2000), the ridge of each source chosen by
    leave-one-out error.

    Fitted on the first 2,000 points at most of the first half, scored on as many of the second.
    """
    fit, score = halves(latents.shape[-1], PROBE_POINTS)
    s = standard(sources).expand(len(latents), -1, -1).mT.cpu()
    z = (standard(latents) * latents.shape[-1] ** 0.5).mT.cpu().numpy()
    guesses = [_kernel_ridge(z[i, fit], s[i, fit].numpy(), z[i, score]) for i in range(len(z))]
    return explained(s[:, score].mT, torch.from_numpy(np.stack(guesses)).mT).mean(-1)


def _kernel_ridge(z: NDArray[np.float64], s: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.kernel_approximation import Nystroem  # a second to import, which only probes need
    from sklearn.linear_model import RidgeCV

    kernel = Nystroem(gamma=1 / z.shape[1], n_components=min(LANDMARKS, len(z)), random_state=0)
    features = np.hstack([z, kernel.fit_transform(z)])
    ridge = RidgeCV(np.logspace(-6, 2, 9), alpha_per_target=True).fit(features, s)
    guess: NDArray[np.float64] = ridge.predict(np.hstack([at, kernel.transform(at)])).reshape(len(at), -1)
    return guess


def halves(n: int, most: int | None = None) -> tuple[slice, slice]:
    """The points that a probe is fitted to and those that it is scored on: the starts, of ``most`` points at the most,
    of the first and of the second half.
    """
    half = n // 2
    size = half if most is None else min(half, most)
    return slice(size), slice(half, half + size)


def explained(truth: Float64[Tensor, "*s n"], guess: Float64[Tensor, "*m n"]) -> Float64[Tensor, "*m"]:
    """R² of each row, in [0, 1]: worse than the mean counts as the mean, and a constant has nothing to explain."""
    total = (truth - truth.mean(-1, keepdim=True)).square().sum(-1)
    rest = (truth - guess).square().sum(-1)
    return torch.where(total > 0, 1 - rest / torch.where(total > 0, total, 1), 0).clamp(0, 1)


def correlation(
    a: Float[Tensor, "*s d n"], b: Float[Tensor, "*m e n"], discrete: Sequence[bool] = ()
) -> Float64[Tensor, "*m d e"]:
    """Pearson correlation of each row of ``a`` with each row of ``b``, in float64; 0 where one of them is constant. Of
    rows of ``a`` that are discrete, the correlation ratio.
    """
    return standard_correlation(standard(a), standard(b), a, discrete)


def standard_correlation(
    known: Float64[Tensor, "*s d n"], z: Float64[Tensor, "*m e n"], a: Float[Tensor, "*s d n"], discrete: Sequence[bool]
) -> Float64[Tensor, "*m d e"]:
    """The same of rows that :func:`standard` gave of ``a`` and of the latents.

    The values of a discrete row are names, whose order means nothing. The correlation ratio, of z with mean 0 and norm
    1, η² = Σ_c n_c (mean of z in class c)², is the square of the greatest correlation that any numbers for the classes
    give (Fisher); between two classes it is the correlation.
    """
    table = known @ z.mT
    for k in (k for k, kind in enumerate(discrete) if kind):
        square = torch.zeros_like(table[..., k, :])
        for value in np.unique(a[..., k, :].cpu().numpy()).tolist():
            inside = (a[..., k, :] == value).double()
            square += (z @ inside[..., None])[..., 0].square() / inside.sum(-1, keepdim=True).clamp_min(1)
        table[..., k, :] = square.sqrt()
    return table


def matched_mean(correlations: Float64[Tensor, "*m d e"]) -> Float64[Tensor, "*m"]:
    """Mean absolute value along the one-to-one matching that maximises it (the Hungarian method of SciPy)."""
    score = correlations.abs().cpu().numpy()
    flat = score.reshape(-1, *score.shape[-2:])
    if score.shape[-2] == score.shape[-1] <= ENUMERATED:  # thousands of small tables at once
        every = np.array(list(itertools.permutations(range(score.shape[-1]))))
        total = sum(flat[:, row, columns] for row, columns in enumerate(every.T))
        best = np.max(total, -1) / score.shape[-1]
        return torch.from_numpy(best.reshape(score.shape[:-2]))
    means = np.array([table[linear_sum_assignment(table, maximize=True)].mean() for table in flat])
    return torch.from_numpy(means.reshape(score.shape[:-2]))


def standard(a: Tensor) -> Tensor:
    """Rows of zero mean and unit norm; a row that is constant up to its own rounding is zero."""
    rounding = torch.finfo(a.dtype).eps
    scale = a.abs().amax(-1, keepdim=True).double()
    centred = a.double()
    centred = centred - centred.mean(-1, keepdim=True)
    norm = centred.norm(dim=-1, keepdim=True)
    varies = torch.isfinite(norm) & (norm > 4 * rounding * scale * a.shape[-1] ** 0.5)
    centred = centred / torch.where(varies, norm, 1)
    return centred if bool(varies.all()) else torch.where(varies, centred, 0)


def _batches(a: Float[Tensor, "*m d n"], size: int) -> Float[Tensor, "*m batch d size"]:
    count = a.shape[-1] // size
    return a[..., : count * size].reshape(*a.shape[:-1], count, size).transpose(-3, -2).contiguous()


def _ranks(a: Tensor) -> Tensor:
    """From 0, equal values sharing the mean of theirs; NaN in a row that has one; SciPy's are slower."""
    values = a.cpu()
    n = values.shape[-1]
    order, ordered = _sorted(values)
    places = torch.arange(n, dtype=torch.float64).repeat(*values.shape[:-1], 1)
    equal = torch.zeros(values.shape, dtype=torch.bool)  # to the next one
    torch.eq(ordered[..., 1:], ordered[..., :-1], out=equal[..., :-1])
    tied = np.flatnonzero(equal.numpy())
    if len(tied):
        opens = np.diff(tied, prepend=-2) != 1  # the first of a run of equal values
        closes = np.append(opens[1:], True)
        mean = 0.5 * (tied[opens] % n + tied[closes] % n + 1)
        run = np.cumsum(opens) - 1
        flat = places.numpy().reshape(-1)
        flat[tied] = flat[tied + 1] = mean[run]
    ranks = places.scatter(-1, order, places)
    ranks[values.isnan().any(-1)] = torch.nan
    return ranks


def _sorted(values: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row's values stand in ascending order, and numbers that are in that order and are equal where the
    values are.

    NumPy sorts whole numbers in half the time that it takes to sort indices, so in float32 a value and its index become
    one: the bits of a float are in the order of the floats, but for negative ones, whose magnitude is turned round.
    """
    if values.dtype != torch.float32:
        order = torch.from_numpy(np.argsort(values.numpy(), axis=-1))
        return order, values.gather(-1, order)
    bits = (values + 0.0).view(torch.int32)  # -0 becomes 0
    turned = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)
    keys = turned.bitwise_left_shift_(32).bitwise_or_(torch.arange(values.shape[-1]))
    keys.numpy().sort(axis=-1)
    return keys & 0xFFFFFFFF, keys >> 32
