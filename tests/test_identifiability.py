"""MCC, probes and agreement: what they ignore, what they count as nothing, and that the fast equal obvious loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from imavae.metrics import identifiability
from imavae.metrics.identifiability import (
    agreement,
    batches,
    correlation,
    halves,
    matched_mean,
    mcc,
    r2_nonlinear,
    ranks,
    standardised,
)
from tests.helpers import normal, untouched_generators


def mcc_spearman(s: Tensor, z: Tensor, discrete: Sequence[bool] = ()) -> Tensor:
    return mcc(ranks(s), ranks(z), discrete)


def mcc_batch(s: Tensor, z: Tensor, discrete: Sequence[bool] = ()) -> Tensor:
    return mcc(batches(s), batches(z), discrete).mean(1)


def r2_linear(s: Tensor, z: Tensor) -> Tensor:
    return identifiability.r2_linear(standardised(s), standardised(z))


Score = Callable[[Tensor, Tensor], Tensor]
SCORES: list[Score] = [mcc, mcc_spearman, mcc_batch]
PROBES: list[Score] = [r2_linear, r2_nonlinear]
every_score = pytest.mark.parametrize("score", SCORES, ids=lambda score: score.__name__)
every_probe = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
every_estimate = pytest.mark.parametrize("estimate", SCORES + PROBES, ids=lambda estimate: estimate.__name__)
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
    parts = [slice(start, start + 64) for start in range(0, n - 63, 64)]
    expected = [np.mean([brute_force(s[:, at], member[:, at]) for at in parts]) for member in z]
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_values_share_a_rank_whatever_their_sign_and_size(dtype: torch.dtype) -> None:
    s = normal(1, 500).to(dtype)
    z = (normal(6, 500, seed=1) * 3).round().to(dtype)  # with many ties, and both zeros
    z[1] *= 1e30
    z[2, ::7] = torch.tensor(float("inf"), dtype=dtype)
    z[3, ::5] = -torch.tensor(float("inf"), dtype=dtype)
    z[4] *= 1e-40  # denormal in float32
    assert (torch.signbit(z[0]) & (z[0] == 0)).any()
    expected = [abs(scipy.stats.spearmanr(s[0].numpy(), row.numpy()).statistic) for row in z]
    assert mcc_spearman(s, z[:, None]).tolist() == pytest.approx(expected, rel=1e-12)
    for nan in (torch.nan, -torch.nan):
        z[5, 17] = nan
        assert mcc_spearman(s, z[5][None, None]).item() == 0


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


@every_estimate
def test_sources_of_each_members_own_are_a_loop_over_members(estimate: Score) -> None:
    _, z = related(3, n=640)
    s = z + normal(4, 3, 640, seed=5)
    together = estimate(s, z)
    alone = [estimate(one, member[None]) for one, member in zip(s, z, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)
    torch.testing.assert_close(estimate(s[:1].expand(4, -1, -1), z), estimate(s[0], z), rtol=1e-12, atol=0)


def swirled(s: Tensor) -> Tensor:
    """The first two sources turned by an angle that grows with the distance from the origin."""
    angle = 1.5 * s.square().sum(0)
    turned = [s[0] * angle.cos() - s[1] * angle.sin(), s[0] * angle.sin() + s[1] * angle.cos()]
    return torch.stack([*turned, s[2]])


def box(n: int, dim: int = 3) -> Tensor:
    return 2 * torch.rand(dim, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1


@every_probe
@every_dim
def test_a_probe_sees_through_every_invertible_affine_map(probe: Score, dim: int) -> None:
    s = box(2000, dim)
    z = normal(4, dim, dim, seed=1) @ s + normal(4, dim, 1, seed=2)
    assert probe(s, z).tolist() == pytest.approx([1.0] * 4, abs=1e-12 if probe is r2_linear else 1e-6)
    assert float(mcc(s, z).mean()) < 0.95


def test_only_the_nonlinear_probe_sees_through_a_nonlinear_map() -> None:
    s = box(6000)
    z = swirled(s)[None]
    assert float(r2_linear(s, z)) < 0.8
    assert float(r2_nonlinear(s, z)) > 0.999
    assert float(r2_nonlinear(s, z.exp())) > 0.99


@pytest.mark.parametrize("dim", [3, 10])
def test_the_nonlinear_probe_knows_all_that_the_linear_one_does(dim: int) -> None:
    s = normal(dim, 4000).sign() * normal(dim, 4000).square()  # heavy tails, where a kernel's landmarks are few
    z = normal(3, dim, dim, seed=1) @ s + 0.1 * normal(3, dim, 4000, seed=2)
    assert (r2_nonlinear(s, z) > r2_linear(s, z) - 0.02).all()


@every_probe
def test_probes_of_noisy_latents_find_the_explained_share_of_the_variance(probe: Score) -> None:
    s, noise = normal(3, 12_000), normal(4, 3, 12_000, seed=1)
    variance = torch.tensor([0.01, 0.3, 1.0, 4.0], dtype=torch.float64)
    values = probe(s, s + variance.sqrt()[:, None, None] * noise)
    torch.testing.assert_close(values, 1 / (1 + variance), rtol=0, atol=0.04)


@every_probe
def test_what_says_nothing_counts_as_zero_and_a_share_of_the_sources_as_that_share(probe: Score) -> None:
    s = box(4000)
    z = torch.stack([normal(3, 4000, seed=9), torch.full_like(s, 0.3), torch.full_like(s, torch.nan), *[s] * 3])
    z[3, 1], z[4, 1], z[5, 1] = 0.0, torch.nan, z[5, 0]  # constant, not finite, a duplicate
    assert probe(s, z).tolist() == pytest.approx([0, 0, 0, 2 / 3, 2 / 3, 2 / 3], abs=5e-3)
    assert float(probe(torch.ones_like(s), s[None])) == 0  # constant sources leave nothing to explain
    assert float(probe(s, z[:1].float() * 1e30)) == pytest.approx(0, abs=5e-3)


@pytest.mark.parametrize(("sources", "latents"), [(2, 5), (5, 2), (3, 1), (1, 3)])
def test_mcc_is_the_mean_over_sources_whatever_the_number_of_latents(sources: int, latents: int) -> None:
    s = box(2000, sources)
    z = (normal(latents, sources) @ s)[None]
    kept = min(sources, latents)
    assert float(mcc(s, s[None, :latents])) == pytest.approx(kept / sources)
    table = correlation(s, z)[0].abs().numpy()
    size = max(sources, latents)
    square = np.zeros((size, size))  # sources and latents that correlate with nothing
    square[:sources, :latents] = table
    assert float(mcc(s, z)) == pytest.approx(float(matched_mean(torch.from_numpy(square))) * size / sources)


@every_probe
@pytest.mark.parametrize(("sources", "latents"), [(2, 5), (5, 2)])
def test_latents_may_be_more_or_fewer_than_sources(probe: Score, sources: int, latents: int) -> None:
    common = box(2000, 5)
    share = min(1.0, latents / sources)
    assert float(probe(common[:sources], common[None, :latents])) == pytest.approx(share, abs=0.01)
    assert 0 <= float(probe(common[:sources, :8], common[None, :latents, :8])) <= 1  # with hardly any points


def test_the_linear_probe_is_least_squares_on_the_first_half_scored_on_the_second() -> None:
    s, z = related(3, n=301)
    fit, score = slice(150), slice(150, 300)
    expected = []
    for member in z.numpy():
        design = np.column_stack([member.T, np.ones(301)])
        guess = design @ np.linalg.lstsq(design[fit], s.numpy().T[fit], rcond=None)[0]
        truth, guess = s.numpy().T[score], guess[score]
        expected.append(np.mean(1 - ((truth - guess) ** 2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0)))
    assert min(expected) > 0
    assert r2_linear(s, z).tolist() == pytest.approx(expected, rel=1e-10)
    assert halves(301) == (fit, score)
    assert halves(301, 100) == (slice(100), slice(150, 250))


def test_the_nonlinear_probe_draws_from_no_global_generator_and_repeats_itself() -> None:
    s, z = related(3)
    with untouched_generators():
        first = r2_nonlinear(s, z)
    assert torch.equal(first, r2_nonlinear(s, z))
    assert torch.equal(first[2:3], r2_nonlinear(s, z[2:3]))  # whoever its company is


def test_agreement_is_the_median_mcc_with_the_others_of_the_group() -> None:
    _, z = related(3, members=9)
    groups = ["a", "b", "a", ("c", 1), "b", "a", "a", "b", "b"]
    expected = []
    for i, group in enumerate(groups):
        others = [j for j, other in enumerate(groups) if other == group and j != i]
        expected.append(float(np.median([brute_force(z[i], z[j]) for j in others])) if others else np.nan)
    assert agreement(z, groups).tolist() == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert [np.isnan(value) for value in expected] == [group == ("c", 1) for group in groups]


def test_members_agree_up_to_permutation_sign_scale_and_shift_and_strangers_do_not() -> None:
    s = box(5000)
    same = torch.stack([s, -2 * s.flip(0) + 1, s.roll(1, 0) * 1e-3])
    torch.testing.assert_close(agreement(same, [0] * 3), torch.ones(3, dtype=torch.float64))
    assert float(agreement(normal(4, 3, 5000), [0] * 4).max()) < 0.04
    assert agreement(torch.cat([same, normal(1, 3, 5000)]), [0] * 4)[:3].tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("value", [0.7, torch.nan, torch.inf])
def test_a_latent_that_is_constant_or_not_finite_agrees_with_nothing(value: float) -> None:
    z = box(500)[None].repeat(3, 1, 1).float()
    z[:, 1] = value
    assert agreement(z, [0] * 3).tolist() == pytest.approx([2 / 3] * 3)
    assert agreement(torch.full_like(z, value), [0] * 3).tolist() == [0.0] * 3


def classes(count: int, n: int = 500) -> Tensor:
    return torch.randint(count, (n,), generator=torch.Generator().manual_seed(5)).double()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_discrete_sources_ratio_is_the_best_correlation_over_all_numbers_for_its_classes(count: int) -> None:
    s, z = normal(3, 500), normal(2, 3, 500, seed=3)
    s[1] = classes(count)
    z[:, 2] += 0.6 * torch.sin(3 * s[1])  # of no order
    table = correlation(s, z, [False, True, False])
    plain = correlation(s, z)
    assert torch.equal(table[:, [0, 2]], plain[:, [0, 2]])
    one_hot = torch.eye(count, dtype=torch.float64)[s[1].long()]
    for member in range(2):
        for latent in range(3):
            fitted = one_hot @ torch.linalg.lstsq(one_hot, z[member, latent][:, None]).solution  # the best numbers
            expected = abs(float(correlation(fitted.T, z[member, latent : latent + 1])))
            assert float(table[member, 1, latent]) == pytest.approx(expected, rel=1e-9)
    assert (table[:, 1] >= plain[:, 1].abs() - 1e-12).all()
    if count == 2:
        torch.testing.assert_close(table[:, 1], plain[:, 1].abs())


@every_score
def test_the_order_of_a_discrete_sources_names_means_nothing(score: Any) -> None:
    s, z = related(3)
    s[0] = classes(3)
    z[:, 1] = (s[0] == 1) + 0.3 * z[:, 1]
    again = s.clone()
    again[0] = torch.tensor([7.0, -1.0, 0.0], dtype=torch.float64)[s[0].long()]
    kinds = [True, False, False]
    torch.testing.assert_close(score(s, z, discrete=kinds), score(again, z, discrete=kinds))
    assert (score(s, z, discrete=kinds) > score(s, z) + 0.1).all()  # a middle class is no correlation


def test_each_world_has_discrete_sources_of_its_own() -> None:
    s, z = normal(2, 3, 400), normal(2, 3, 400, seed=1)
    for world in range(2):
        s[world, 0] = classes(3, 400).roll(world)
    z[:, 0] = (s[:, 0] == 2) + 0.5 * z[:, 0]
    together = mcc(s, z, [True, False, False])
    alone = [float(mcc(s[world], z[world][None], [True, False, False])) for world in range(2)]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)


def test_a_constant_latent_knows_nothing_of_a_discrete_source() -> None:
    table = correlation(classes(3)[None], torch.full((1, 1, 500), 0.1, dtype=torch.float64), [True])
    assert table.tolist() == [[[0.0]]]
