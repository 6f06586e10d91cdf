"""Sources are what they are said to be: their moments, their support, their density, their repeatability."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import scipy.stats
import torch

from imavae.config import Source
from imavae.families import GaussianSource, UniformSource
from imavae.data import sources
from imavae.streams import Purpose, stream
from tests.helpers import normal

LAWS: list[tuple[Source, Any]] = [
    (UniformSource(), scipy.stats.uniform(-0.5, 1.0)),
    (UniformSource(low=2.0, high=5.0), scipy.stats.uniform(2.0, 3.0)),
    (GaussianSource(), scipy.stats.norm(0.0, 1.0)),
    (GaussianSource(mean=-3.0, std=0.25), scipy.stats.norm(-3.0, 0.25)),  # a variance read as a deviation shows here
]
each_law = pytest.mark.parametrize(("source", "law"), LAWS, ids=str)


@each_law
@pytest.mark.parametrize("dim", [2, 5])
def test_samples_have_the_moments_and_the_distribution_of_the_law(source: Source, law: Any, dim: int) -> None:
    n = 20_000
    s = sources.sample(source, n, dim, stream(3, "sources")).numpy()
    assert s.shape == (n, dim)
    assert s.dtype == np.float64
    mean, variance, kurtosis = law.stats("mvk")
    error = math.sqrt(variance / n)
    np.testing.assert_allclose(s.mean(0), mean, atol=5 * error)
    np.testing.assert_allclose(s.var(0), variance, atol=5 * variance * math.sqrt((kurtosis + 2) / n))
    assert min(scipy.stats.kstest(column, law.cdf).pvalue for column in s.T) > 1e-3
    off_diagonal = np.corrcoef(s.T)[~np.eye(dim, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / math.sqrt(n)  # the components are independent


@each_law
def test_samples_lie_on_the_support_and_fill_it(source: Source, law: Any) -> None:
    low, high = sources.support(source)
    assert (low, high) == law.support()
    s = sources.sample(source, 20_000, 3, stream(0, "sources"))
    assert low <= s.min()
    assert s.max() <= high
    if math.isfinite(low):
        assert s.min() < low + 1e-3 * (high - low)
        assert s.max() > high - 1e-3 * (high - low)


@each_law
def test_log_prob_is_that_of_scipy(source: Source, law: Any) -> None:
    s = 3 * normal(500, 3)
    s[:200] = sources.sample(source, 200, 3, stream(1, "sources"))
    log_prob = sources.log_prob(source, s)
    assert log_prob.dtype == torch.float64
    np.testing.assert_allclose(log_prob.numpy(), law.logpdf(s.numpy()).sum(1), rtol=1e-13)
    if math.isfinite(sources.support(source)[0]):
        assert torch.isneginf(log_prob[200:]).any()


@pytest.mark.parametrize("source", [source for source, _ in LAWS], ids=str)
def test_a_seed_repeats_and_another_differs(source: Source) -> None:
    first, again, other = (sources.sample(source, 100, 3, stream(seed, "sources")) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()


def test_no_two_purposes_share_a_stream() -> None:
    purposes = get_args(Purpose)
    draws = {tuple(torch.rand(4, generator=stream(seed, p)).tolist()) for p in purposes for seed in range(20)}
    assert len(draws) == 20 * len(purposes)


@each_law
def test_radius_is_the_half_diagonal_of_the_box_that_holds_the_sources(source: Source, law: Any) -> None:
    mean, half_diagonal = sources.radius(source, 4)
    assert mean == pytest.approx(law.mean())
    corner = law.support()[1] if math.isfinite(law.support()[1]) else law.mean() + 3 * law.std()
    assert half_diagonal == pytest.approx(math.sqrt(4 * (corner - mean) ** 2))
