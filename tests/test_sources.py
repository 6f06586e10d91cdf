"""Sources are what they are said to be: their moments, their support, their density, their repeatability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import scipy.stats
import torch

from imavae.config.data import SourceSettings, SyntheticData
from imavae.data.dataset import build_source
from imavae.data.sources import BetaSource, GaussianSource, LaplaceSource, Normalised, Scalable, UniformSource
from imavae.errors import UserError
from imavae.rng import Purpose, stream
from tests.helpers import normal

LAWS: list[tuple[SourceSettings, Any]] = [
    (UniformSource(), scipy.stats.uniform(-0.5, 1.0)),
    (UniformSource(low=2.0, high=5.0), scipy.stats.uniform(2.0, 3.0)),
    (GaussianSource(), scipy.stats.norm(0.0, 1.0)),
    (GaussianSource(mean=-3.0, std=0.25), scipy.stats.norm(-3.0, 0.25)),  # a variance read as a deviation shows here
    (LaplaceSource(), scipy.stats.laplace(0.0, 1.0)),
    (LaplaceSource(mean=2.0, scale=0.3), scipy.stats.laplace(2.0, 0.3)),
    (BetaSource(), scipy.stats.beta(2.0, 2.0, -0.5, 1.0)),
    (BetaSource(alpha=0.8, beta=3.0, low=-2.0, high=1.0), scipy.stats.beta(0.8, 3.0, -2.0, 3.0)),
    (BetaSource(alpha=1.0, beta=1.0), scipy.stats.beta(1.0, 1.0, -0.5, 1.0)),
]
each_law = pytest.mark.parametrize(("source", "law"), LAWS, ids=[str(source) for source, _ in LAWS])


@each_law
@pytest.mark.parametrize("dim", [2, 5])
def test_samples_have_the_moments_and_the_distribution_of_the_law(source: SourceSettings, law: Any, dim: int) -> None:
    n = 20_000
    s = build_source(source).sample(n, dim, stream(3, "sources")).numpy()
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
def test_samples_lie_on_the_support_and_nearly_all_in_the_extent(source: SourceSettings, law: Any) -> None:
    low, high = source.support
    assert (low, high) == law.support()
    s = build_source(source).sample(20_000, 3, stream(0, "sources"))
    assert low <= s.min()
    assert s.max() <= high
    middle, half_width = source.extent
    assert float(((s - middle).abs() > half_width).double().mean()) < 0.004
    assert float(((s - middle).abs() > half_width / 2).double().mean()) > 0.01  # and it is no larger than it must be


@each_law
def test_log_prob_is_that_of_scipy(source: SourceSettings, law: Any) -> None:
    s, built = 3 * normal(500, 3), build_source(source)
    s[:200] = built.sample(200, 3, stream(1, "sources"))
    log_prob = built.log_prob(s)
    assert log_prob.dtype == torch.float64
    np.testing.assert_allclose(log_prob.numpy(), law.logpdf(s.numpy()).sum(1), rtol=1e-12, atol=1e-12)
    if math.isfinite(source.support[0]):
        assert torch.isneginf(log_prob[200:]).any()


@each_law
def test_normal_coordinates_are_those_of_equal_quantiles(source: SourceSettings, law: Any) -> None:
    built = build_source(source)
    assert isinstance(built, Normalised)
    n = torch.linspace(-6, 6, 100, dtype=torch.float64)[:, None]
    s = built.from_normal(n)
    lower, upper = law.ppf(scipy.stats.norm.cdf(n[:50])), law.isf(scipy.stats.norm.sf(n[50:]))
    np.testing.assert_allclose(s, np.concatenate([lower, upper]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(built.to_normal(s[20:80]), n[20:80], rtol=1e-9, atol=1e-9)  # to 3.6 deviations
    ends = [end for end in source.support if math.isfinite(end)]
    assert built.to_normal(torch.tensor([ends], dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("source", [source for source, _ in LAWS], ids=str)
def test_a_seed_repeats_and_another_differs(source: SourceSettings) -> None:
    built = build_source(source)
    first, again, other = (built.sample(100, 3, stream(seed, "sources")) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()


@pytest.mark.parametrize("source", [source for source, _ in LAWS], ids=str)
def test_scaled_by_one_a_source_is_what_it_was(source: SourceSettings) -> None:
    built, ones = build_source(source), torch.ones(100, 3, dtype=torch.float64)
    assert isinstance(built, Scalable)
    same = built.scaled(ones)
    s = built.sample(100, 3, stream(1, "sources"))
    torch.testing.assert_close(same.sample(100, 3, stream(1, "sources")), s, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(same.log_prob(s), built.log_prob(s), rtol=1e-12, atol=1e-12)


@each_law
def test_a_factor_multiplies_the_variance_and_leaves_the_mean_and_the_support(source: SourceSettings, law: Any) -> None:
    n, built = 50_000, build_source(source)
    assert isinstance(built, Scalable)
    factors = [0.1, 0.5, 1.0] if math.isfinite(source.support[0]) else [0.1, 1.0, 3.0]
    scaled = built.scaled(torch.tensor(factors, dtype=torch.float64).expand(n, 3))
    s = scaled.sample(n, 3, stream(5, "sources"))
    assert source.support[0] <= s.min()
    assert s.max() <= source.support[1]
    mean, variance = law.stats("mv")
    kurtosis = max(float(law.stats("k")), 6.0)  # no scaled law here has a larger one
    for column, factor in zip(s.T, factors, strict=True):
        error = math.sqrt(factor * variance / n)
        assert float(column.mean()) == pytest.approx(float(mean), abs=5 * error)
        assert float(column.var()) == pytest.approx(factor * variance, rel=5 * math.sqrt((kurtosis + 2) / n))
    # the density is that which the draws come from
    for column, factor in zip(s.T, factors, strict=True):
        grid = torch.linspace(float(column.min()) - 1e-9, float(column.max()), n, dtype=torch.float64)[:, None]
        density = built.scaled(torch.full((n, 1), factor, dtype=torch.float64)).log_prob(grid).exp()
        below = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(density, grid[:, 0])]).numpy()
        assert below[-1] == pytest.approx(1, abs=1e-3)
        assert scipy.stats.kstest(np.interp(column, grid[:, 0], below), "uniform").pvalue > 1e-3


def test_no_two_purposes_share_a_stream() -> None:
    purposes = get_args(Purpose)
    draws = {tuple(torch.rand(4, generator=stream(seed, p)).tolist()) for p in purposes for seed in range(20)}
    assert len(draws) == 20 * len(purposes)


@each_law
def test_reach_is_the_half_diagonal_of_the_box_that_holds_the_sources(source: SourceSettings, law: Any) -> None:
    middle, half_diagonal = SyntheticData(dim=4, source=source).box
    bounded = math.isfinite(law.support()[1])
    assert middle == pytest.approx(sum(law.support()) / 2 if bounded else law.mean())
    deviations = 3 if isinstance(source, GaussianSource) else 6 / math.sqrt(2)
    corner = law.support()[1] if bounded else law.mean() + deviations * law.std()
    assert half_diagonal == pytest.approx(math.sqrt(4 * (corner - middle) ** 2))
    segmented = SyntheticData(dim=4, source=source, n_segments=3, variances=(0.5, 4.0)).box
    assert segmented == pytest.approx((middle, half_diagonal * (1 if bounded else 2)))


@pytest.mark.parametrize(
    ("kind", "values", "rule"),
    [
        (UniformSource, {"low": 1.0, "high": 1.0}, "low < data.source.high"),
        (GaussianSource, {"std": 0.0}, "std > 0"),
        (LaplaceSource, {"scale": 0.0}, "scale > 0"),
        (LaplaceSource, {"scale": -1.0}, "scale > 0"),
        (BetaSource, {"low": 0.5, "high": -0.5}, "low < data.source.high"),
        (BetaSource, {"alpha": 0.0}, "alpha > 0"),
        (BetaSource, {"beta": -2.0}, "beta > 0"),
    ],
)
def test_parameters_that_make_no_law_are_refused(kind: type[SourceSettings], values: Any, rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        kind(**values)


@dataclass(frozen=True)
class Nameless(SourceSettings):
    """An own source that lacks what it needs."""

    name: str = "nameless"


class Half(Nameless):
    """One that builds something else."""

    def build(self) -> object:
        """What can draw, but has no density."""
        return SimpleNamespace(sample=torch.rand)


def test_an_own_source_is_told_what_it_lacks() -> None:
    with pytest.raises(UserError, match=r"data.source has a method build.*Nameless"):
        build_source(Nameless())
    with pytest.raises(UserError, match="without log_prob"):
        build_source(Half())
