"""Recovery of the sources: MCC, R² of probes, agreement of members, active units.

MCC is the mean, over sources, of the absolute correlation under the optimal one-to-one matching of sources and latents.
Latents in excess are not matched, and a source without a latent counts 0. Sources are (d, n), shared by all members, or
(member, d, n), one world each; latents are (member, e, n). A latent or source that is
constant or not finite has correlation 0, so a collapsed model scores at chance instead of failing. A discrete source
is compared by the correlation ratio.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64
from numpy.typing import NDArray

from imavae.config.registry import torch

AGREEMENT_POINTS = 20_000  # at most: the locations of all members are kept until the end of an evaluation
PROBE_POINTS = 2000  # at most, to fit a nonlinear probe, and as many to score it: more change little
ENUMERATED = 4  # largest dimension in which all matchings are tried
LANDMARKS = 200  # of the kernel of the nonlinear probe
BATCH = 64  # points per batch of the published estimators, unless training batches are larger


def mcc(
    s: Float[torch.Tensor, "*s d n"], z: Float[torch.Tensor, "*m e n"], discrete: Sequence[bool] = ()
) -> Float64[torch.Tensor, "*m"]:
    """Pearson MCC over all n points, in [0, 1]; chance is near 0. MCC of :func:`ranks` is invariant to monotone maps of
    each latent; MCC of :func:`batches`, averaged, is the published estimator.
    """
    return matched_mean(correlation(s, z, discrete))


def agreement(locations: Float[torch.Tensor, "m d n"], groups: Sequence[Hashable]) -> Float64[torch.Tensor, " m"]:
    """Median MCC between a member's latents and those of the other members of its group; NaN in a group of one.

    One product of standardised latents per group, in float32, gives the correlations of all of its pairs.
    """
    result = torch.full((len(groups),), torch.nan, dtype=torch.float64)
    for group in set(groups):
        rows = [i for i, other in enumerate(groups) if other == group]
        if len(rows) == 1:
            continue
        z = locations.new_empty(len(rows), *locations.shape[1:], dtype=torch.float32)
        for i, row in enumerate(rows):  # one by one: float64 copies of all of them would need most of the memory
            z[i] = standardised(locations[row])
        z = z.flatten(0, 1)
        tables = (z @ z.T).reshape(len(rows), -1, len(rows), locations.shape[1]).transpose(1, 2)
        first, second = torch.combinations(torch.arange(len(rows))).T
        scores = torch.full((len(rows), len(rows)), torch.nan, dtype=torch.float64)
        scores[first, second] = scores[second, first] = matched_mean(tables[first, second].double())
        result[rows] = scores.nanquantile(0.5, dim=1)
    return result


def active(
    locations: Float[torch.Tensor, "m d n"], prior_variance: Float64[torch.Tensor, "m d"]
) -> Bool[torch.Tensor, "m d"]:
    """Latents whose location varies over points by more than 1 % of the prior's variance."""
    centred = locations - locations.mean(-1, keepdim=True)
    return torch.gt(centred.square().mean(-1, dtype=torch.float64), 0.01 * prior_variance)


def latent_correlation(z: Float64[torch.Tensor, "m d n"]) -> Float64[torch.Tensor, " m"]:
    """Mean absolute correlation of two different latents, of rows that :func:`standardised` returned; 0 of one."""
    table, dim = (z @ z.mT).abs(), z.shape[1]
    return (table.sum((1, 2)) - table.diagonal(dim1=1, dim2=2).sum(1)) / max(1, dim * (dim - 1))


def r2_linear(s: Float64[torch.Tensor, "*w d n"], z: Float64[torch.Tensor, "m e n"]) -> Float64[torch.Tensor, " m"]:
    """R² of the least-squares map, with intercept, from all latents to each source, averaged over sources; at least 0.
    For rows that :func:`standardised` returned. Fitted on the first half of the points, scored on the second.
    """
    fit, score = halves(z.shape[-1])
    slope, offset = least_squares(s[..., fit], z[..., fit])
    return explained_variance(s[..., score], offset + slope @ z[..., score]).mean(-1).cpu()


def least_squares(
    s: Float64[torch.Tensor, "*w d n"], z: Float64[torch.Tensor, "*m e n"]
) -> tuple[Float64[torch.Tensor, "*m d e"], Float64[torch.Tensor, "*m d 1"]]:
    """Slope and offset of the best affine map from ``z`` to ``s``; rows of ``z`` have similar scales."""
    mean_s, mean_z = s.mean(-1, keepdim=True), z.mean(-1, keepdim=True)
    centred = z - mean_z
    # 1e-12 of the covariance is 1e-6 of a latent, float32's rounding: two equal latents count once
    inverse = torch.linalg.pinv(centred @ centred.mT, rtol=1e-12, hermitian=True)
    slope = (s - mean_s) @ centred.mT @ inverse
    return slope, mean_s - slope @ mean_z


def r2_nonlinear(
    sources: Float[torch.Tensor, "*w d n"], latents: Float[torch.Tensor, "m e n"]
) -> Float64[torch.Tensor, " m"]:
    """R² of ridge regression on the standardised latents and on the kernel exp(−‖z − z'‖² / e) with 200 Nyström
    landmarks (Williams and Seeger, 2000), from 2,000 points of each half; leave-one-out error chooses the ridges.
    """
    from sklearn.kernel_approximation import Nystroem  # takes a second to import
    from sklearn.linear_model import RidgeCV

    fit, score = halves(latents.shape[-1], PROBE_POINTS)
    s = standardised(sources).expand(len(latents), -1, -1).mT.cpu()
    z = (standardised(latents) * latents.shape[-1] ** 0.5).mT.cpu().numpy()
    guesses = []
    for i in range(len(z)):
        kernel = Nystroem(gamma=1 / z.shape[2], n_components=min(LANDMARKS, fit.stop), random_state=0)
        features = np.hstack([z[i, fit], kernel.fit_transform(z[i, fit])])
        ridge = RidgeCV(np.logspace(-6, 2, 9), alpha_per_target=True).fit(features, s[i, fit].numpy())
        guess = ridge.predict(np.hstack([z[i, score], kernel.transform(z[i, score])]))
        guesses.append(guess.reshape(s[i, score].shape))
    return explained_variance(s[:, score].mT, torch.from_numpy(np.stack(guesses)).mT).mean(-1)


def halves(n: int, most: int | None = None) -> tuple[slice, slice]:
    """Points on which a probe is fitted and scored: the first ``most`` of the first and of the second half of n."""
    half = n // 2
    size = half if most is None else min(half, most)
    return slice(size), slice(half, half + size)


def explained_variance(
    truth: Float64[torch.Tensor, "*s n"], guess: Float64[torch.Tensor, "*m n"]
) -> Float64[torch.Tensor, "*m"]:
    """R² of each row, clamped to [0, 1]; 0 if the truth is constant."""
    total = (truth - truth.mean(-1, keepdim=True)).square().sum(-1)
    rest = (truth - guess).square().sum(-1)
    return torch.where(total > 0, 1 - rest / torch.where(total > 0, total, 1), 0).clamp(0, 1)


def correlation(
    a: Float[torch.Tensor, "*s d n"], b: Float[torch.Tensor, "*m e n"], discrete: Sequence[bool] = ()
) -> Float64[torch.Tensor, "*m d e"]:
    """Pearson correlation of each row of ``a`` with each row of ``b``, in float64; 0 where one of them is constant. For
    discrete rows of ``a``: the correlation ratio.
    """
    return standardised_correlation(standardised(a), standardised(b), a, discrete)


def standardised_correlation(
    s: Float64[torch.Tensor, "*s d n"],
    z: Float64[torch.Tensor, "*m e n"],
    a: Float[torch.Tensor, "*s d n"],
    discrete: Sequence[bool],
) -> Float64[torch.Tensor, "*m d e"]:
    """:func:`correlation` of rows that :func:`standardised` returned; ``a`` has the values of the discrete rows.

    The values of a discrete row are labels, so their order means nothing. The correlation ratio with a z of mean 0 and
    norm 1, η² = Σ_c n_c (mean of z in class c)², is the square of the greatest correlation that any numbers for the
    classes give (Fisher); with two classes it is the correlation.
    """
    table = s @ z.mT
    for k in (k for k, kind in enumerate(discrete) if kind):
        square = torch.zeros_like(table[..., k, :])
        for value in np.unique(a[..., k, :].cpu().numpy()).tolist():
            inside = (a[..., k, :] == value).double()
            square += (z @ inside[..., None])[..., 0].square() / inside.sum(-1, keepdim=True).clamp_min(1)
        table[..., k, :] = square.sqrt()
    return table


def matched_mean(correlations: Float64[torch.Tensor, "*m d e"]) -> Float64[torch.Tensor, "*m"]:
    """Sum of absolute values under the one-to-one matching that maximises it (Hungarian method), over the rows' number:
    with fewer columns than rows, the rows that are left count 0.
    """
    score = correlations.abs().cpu().numpy()
    flat = score.reshape(-1, *score.shape[-2:])
    if score.shape[-2] == score.shape[-1] <= ENUMERATED:  # thousands of small tables at once
        every = np.array(list(itertools.permutations(range(score.shape[-1]))))
        total = sum(flat[:, row, columns] for row, columns in enumerate(every.T))
        means = np.max(total, -1) / score.shape[-1]
    else:
        means = np.array([table[best_matching(table)].sum() / len(table) for table in flat])
    return torch.from_numpy(means.reshape(score.shape[:-2]))


def best_matching(table: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of a score table (d, e) under the one-to-one matching with the greatest sum."""
    from scipy.optimize import linear_sum_assignment  # not at import: checks of settings need no SciPy

    return linear_sum_assignment(table, maximize=True)


def standardised(a: torch.Tensor) -> torch.Tensor:
    """Rows (..., n) of zero mean and unit norm, in float64; a row that is constant up to rounding becomes zero."""
    low, high = a.aminmax(dim=-1, keepdim=True)
    rounding = torch.finfo(a.dtype).eps * torch.maximum(-low, high).double()
    rows = a.to(torch.float64, copy=True)  # in place from here on: fresh memory costs more than the arithmetic
    rows -= rows.mean(-1, keepdim=True)
    norm = rows.norm(dim=-1, keepdim=True)
    varies = torch.isfinite(norm) & (norm > 4 * rounding * a.shape[-1] ** 0.5)
    rows /= torch.where(varies, norm, 1)
    return rows if bool(varies.all()) else torch.where(varies, rows, 0)


def batches(a: Float[torch.Tensor, "*m d n"], size: int = BATCH) -> Float[torch.Tensor, "*m batch d size"]:
    """Whole batches of ``size`` points, of which the published estimators take the mean."""
    count = a.shape[-1] // size
    return a[..., : count * size].reshape(*a.shape[:-1], count, size).transpose(-3, -2).contiguous()


def ranks(a: torch.Tensor) -> torch.Tensor:
    """Ranks from 0; ties share their mean rank; a row with NaN is NaN. Faster than SciPy's."""
    values = a.cpu()
    n = values.shape[-1]
    order, ordered = _sorted(values)
    places = torch.arange(n, dtype=torch.float64).repeat(*values.shape[:-1], 1)
    equal = torch.zeros(values.shape, dtype=torch.bool)  # to the next value
    torch.eq(ordered[..., 1:], ordered[..., :-1], out=equal[..., :-1])
    tied = np.flatnonzero(equal.numpy())
    if len(tied):
        opens = np.diff(tied, prepend=-2) != 1  # the first of a run of equal values
        mean = 0.5 * (tied[opens] % n + tied[np.append(opens[1:], True)] % n + 1)
        flat = places.numpy().reshape(-1)
        flat[tied] = flat[tied + 1] = mean[np.cumsum(opens) - 1]
    return places.scatter(-1, order, places).masked_fill_(values.isnan().any(-1, keepdim=True), torch.nan)


def _sorted(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices that sort each row, and keys in that order that are equal where the values are.

    NumPy sorts integers in half the time of an argsort, so a float32 value and its index are packed into one integer:
    the bits of floats are ordered as the floats are, except that negative ones need their magnitude bits flipped.
    """
    if values.dtype != torch.float32:
        order = torch.from_numpy(np.argsort(values.numpy(), axis=-1))
        return order, values.gather(-1, order)
    bits = (values + 0.0).view(torch.int32)  # -0 becomes 0
    flipped = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)
    keys = flipped.bitwise_left_shift_(32).bitwise_or_(torch.arange(values.shape[-1]))
    keys.numpy().sort(axis=-1)
    return keys & 0xFFFFFFFF, keys >> 32
