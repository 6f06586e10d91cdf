"""MCC: what it ignores, what it counts as nothing, and that the fast estimators equal obvious loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from imavae.metrics.identifiability import correlation, matched_mean, mcc, mcc_batch, mcc_spearman
from tests.helpers import normal

Score = Callable[[Tensor, Tensor], Tensor]
SCORES: list[Score] = [mcc, mcc_spearman, mcc_batch]
every_score = pytest.mark.parametrize("score", SCORES, ids=lambda score: score.__name__)
every_dim = pytest.mark.parametrize("dim", [2, 3, 5])


def related(dim: int, n: int = 500, members: int = 4) -> tuple[Tensor, Tensor]:
    """Sources, and latents that know something of them."""
    s = normal(dim, n)
    return s, normal(members, dim, dim, seed=1) @ s + 0.7 * normal(members, dim, n, seed=2)


def brute_force(sources: Tensor, latents: Tensor, spearman: bool = False) -> float:
    """The best mean absolute correlation over all permutations, of one member."""
    correlate: Any = getattr(scipy.stats, "spearmanr" if spearman else "pearsonr")
    table = [[abs(float(correlate(s, z)[0])) for z in latents.numpy()] for s in sources.numpy()]
    dim = len(table)
    return max(sum(table[k][p[k]] for k in range(dim)) / dim for p in itertools.permutations(range(dim)))


@every_dim
def test_mcc_is_that_of_the_best_permutation(dim: int) -> None:
    s, z = related(dim)
    expected = [brute_force(s, member) for member in z]
    assert mcc(s, z).tolist() == pytest.approx(expected, rel=1e-12)
    assert len({round(value, 3) for value in expected}) > 1


@every_dim
def test_mcc_spearman_is_that_of_the_best_permutation_of_rank_correlations(dim: int) -> None:
    s, z = related(dim, n=200)
    assert mcc_spearman(s, z).tolist() == pytest.approx([brute_force(s, m, spearman=True) for m in z], rel=1e-12)


@pytest.mark.parametrize("n", [64, 200, 640])
def test_mcc_batch_is_the_mean_over_whole_batches(n: int) -> None:
    s, z = related(3, n)
    batches = [slice(start, start + 64) for start in range(0, n - 63, 64)]
    expected = [np.mean([brute_force(s[:, at], member[:, at]) for at in batches]) for member in z]
    assert mcc_batch(s, z).tolist() == pytest.approx(expected, rel=1e-12)


@every_score
@every_dim
def test_permutation_sign_scale_and_shift_of_latents_change_nothing(score: Score, dim: int) -> None:
    s, z = related(dim)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        order = torch.randperm(dim, generator=generator)
        scale = torch.randn(dim, 1, generator=generator, dtype=torch.float64) * 1e3
        shift = torch.randn(dim, 1, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(score(s, (z * scale + shift)[:, order]), score(s, z), rtol=1e-9, atol=0)
        torch.testing.assert_close(score(s[order], z), score(s, z), rtol=1e-9, atol=0)


@every_score
@every_dim
def test_recovered_sources_score_one_and_mixed_ones_less(score: Score, dim: int) -> None:
    s = normal(dim, 500)
    latents = torch.stack([s, -3 * s.flip(0) + 1, s + s.roll(1, 0)])
    scores = score(s, latents)
    torch.testing.assert_close(scores[:2], torch.ones(2, dtype=torch.float64))
    assert scores[2] < 0.99


@pytest.mark.parametrize(
    ("score", "low", "high"), [(mcc, 0.0, 0.03), (mcc_spearman, 0.0, 0.03), (mcc_batch, 0.14, 0.16)]
)
def test_chance_is_near_zero_on_the_whole_split_but_not_in_batches(score: Score, low: float, high: float) -> None:
    # origin of 0.15: DESIGN §9 (the published estimator, three dimensions, 64 samples)
    scores = score(normal(3, 12_000), normal(10, 3, 12_000, seed=1))
    assert low < float(scores.mean()) < high


def test_spearman_ignores_monotone_maps_and_pearson_does_not() -> None:
    s, z = related(3)
    bent = torch.stack([z[:, 0].exp(), -(z[:, 1] ** 3), z[:, 2].sigmoid()], 1)
    torch.testing.assert_close(mcc_spearman(s, bent), mcc_spearman(s, z), rtol=1e-12, atol=0)
    torch.testing.assert_close(mcc_spearman(s.exp(), z), mcc_spearman(s, z), rtol=1e-12, atol=0)
    assert (mcc(s, bent) - mcc(s, z)).abs().max() > 1e-3


@every_score
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e3, 1e-30, 1e30, torch.nan, torch.inf])
def test_a_constant_latent_counts_as_zero(score: Score, dtype: torch.dtype, value: float) -> None:
    s = normal(3, 640).to(dtype)
    z = s.clone()[None].repeat(2, 1, 1)
    z[0, 1] = value
    torch.testing.assert_close(score(s, z), torch.tensor([2 / 3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(score(z[0], s[None]), torch.tensor([2 / 3], dtype=torch.float64))  # or source
    assert score(s, torch.full_like(z, value)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_latent_that_is_constant_but_for_rounding_counts_as_zero(dtype: torch.dtype) -> None:
    s = normal(3, 5000).to(dtype)
    rounding = torch.finfo(dtype).eps
    z = s.clone()[None]
    z[0, 1] = 0.7 + 0.7 * rounding * s[1].sign()  # the last digit, in step with the source
    assert float(mcc(s, z)) == pytest.approx(2 / 3, abs=1e-6)
    z[0, 1] = 0.7 + 100 * rounding * s[1]  # small, but there
    assert float(mcc(s, z)) == pytest.approx(1, abs=1e-3)


@every_score
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_not_finite_spoils_its_latent_alone(score: Score, bad: float) -> None:
    s = normal(3, 640)
    z = s.clone()[None]
    z[0, 2, 5] = bad
    value = float(score(s, z))
    if score is mcc:
        assert value == pytest.approx(2 / 3)
    assert 0.6 < value <= 1  # ranks know infinity; of the batches, one is spoilt


@every_score
def test_a_member_scores_alone_as_among_others_in_any_precision(score: Score) -> None:
    s, z = related(3)
    together = score(s, z)
    assert together.dtype == torch.float64
    assert torch.equal(torch.cat([score(s, member[None]) for member in z]), together)
    torch.testing.assert_close(score(s.float(), z.float() + 100), together, rtol=1e-3, atol=0)


def test_correlation_is_numpys_and_matching_is_one_to_one() -> None:
    s, z = related(3)
    expected = np.corrcoef(s.numpy(), z[0].numpy())[:3, 3:]
    np.testing.assert_allclose(correlation(s, z)[0].numpy(), expected, rtol=1e-12)
    # a greedy choice takes 0.9 and is left with 0; matching takes 0.8 + 0.8
    table = torch.tensor([[[0.9, 0.8], [-0.8, 0.0]]], dtype=torch.float64)
    assert float(matched_mean(table)) == pytest.approx(0.8)
