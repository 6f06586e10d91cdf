"""A dataset: three splits of one or several worlds, each of which its seed alone decides."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from imavae.config.data import SourceSettings, SyntheticData
from imavae.config.settings import RunConfig, run_config
from imavae.data import dataset, sources
from imavae.data.dataset import Dataset, Split, build_source
from imavae.data.mixings.flow import FlowMixing
from imavae.data.mixings.mlp import LinearMixing, MLPMixing
from imavae.data.mixings.moebius import MoebiusMixing
from imavae.data.sources import BetaSource, GaussianSource, LaplaceSource, UniformSource
from imavae.errors import UserError
from imavae.rng import stream
from imavae.runs.session import Session
from tests.helpers import pointwise_jacobian, untouched_generators

WORLDS = [
    SyntheticData(n_obs=1000),
    SyntheticData(n_obs=777, train=0.5, val=0.25, dim=2, mixing=MLPMixing()),
    SyntheticData(n_obs=640, train=0.6, val=0.3, dim=5, source=GaussianSource()),
    SyntheticData(n_obs=700, mixing=MoebiusMixing(linear="unit_determinant"), source=BetaSource(), n_segments=4),
    SyntheticData(n_obs=700, dim=4, mixing=FlowMixing(), source=LaplaceSource(), n_segments=2),
    SyntheticData(n_obs=700, mixing=LinearMixing(weights="general"), n_segments=3, variances=(0.1, 2.0)),
]
SOURCES: list[SourceSettings] = [UniformSource(high=2.0), GaussianSource(mean=1.0), LaplaceSource(), BetaSource()]
each_world = pytest.mark.parametrize("data", WORLDS, ids=lambda data: f"{data.n_obs}-{data.dim}-{data.mixing.name}")


def made(data: SyntheticData, *seeds: int, dtype: torch.dtype = torch.float64) -> Dataset:
    return dataset.make(data, seeds or (data.seed,), dtype)


def splits(made: Dataset) -> tuple[Split, Split, Split]:
    return made.train, made.val, made.test


def stacked(made: Dataset, name: str) -> Tensor:
    """Rows of all splits, (world, n, ...)."""
    return torch.cat([getattr(split, name) for split in splits(made)], 1)


@each_world
def test_splits_have_their_sizes_and_together_hold_every_source_once(data: SyntheticData) -> None:
    world = made(data)
    sizes = len(world.train), len(world.val), len(world.test)
    assert sizes == data.sizes
    assert sum(sizes) == data.n_obs
    drawn = dataset.world(data)
    assert len(set(drawn.sources[:, 0].tolist())) == data.n_obs
    together = stacked(world, "sources")[0]
    assert torch.equal(together.sort(0).values, drawn.sources.sort(0).values)
    assert not torch.equal(together, drawn.sources)  # the split is random, not the first so many


@each_world
def test_every_precision_holds_the_same_numbers(data: SyntheticData) -> None:
    single, double = made(data, dtype=torch.float32), made(data)
    for name in ("sources", "observations"):
        assert stacked(single, name).dtype == torch.float32
        assert stacked(double, name).dtype == torch.float64
        assert torch.equal(stacked(single, name), stacked(double, name).float())
    for one, other in ((single.val.truth, double.val.truth), (single.test.truth, double.test.truth)):
        assert one is not None
        assert other is not None
        assert torch.equal(one.log_px, other.log_px)
        assert torch.equal(one.jacobian, other.jacobian.float())


@each_world
def test_a_split_knows_its_sources_support_and_lies_on_it(data: SyntheticData) -> None:
    for split in splits(made(data)):
        assert split.support == data.source.support
        assert split.support[0] <= split.sources.min()
        assert split.sources.max() <= split.support[1]


@each_world
def test_the_seed_decides_all_of_a_world(data: SyntheticData) -> None:
    one = made(data, 3)
    dataset._make.cache_clear()
    again, other = made(data, 3), made(data, 4)
    for name in ("sources", "observations"):
        assert torch.equal(stacked(one, name), stacked(again, name))
        assert not torch.isclose(stacked(one, name), stacked(other, name), rtol=1e-9, atol=1e-9).all(2).any()
    s = one.val.sources[0]
    assert not torch.isclose(one.mixings[0].forward(s), other.mixings[0].forward(s)).all(1).any()


@each_world
def test_a_world_does_not_depend_on_its_company_nor_on_data_seed(data: SyntheticData) -> None:
    together, alone = made(data, 5, 2, 9), made(dataclasses.replace(data, seed=77), 2)
    assert len(together.mixings) == 3
    for several, one in zip(splits(together), splits(alone), strict=True):
        assert torch.equal(several.sources[1], one.sources[0])
        assert torch.equal(several.observations[1], one.observations[0])
        assert (several.segments is None) == (one.segments is None) == (data.n_segments == 1)
        if several.segments is not None and one.segments is not None:
            assert torch.equal(several.segments[1], one.segments[0])
        if several.truth is not None and one.truth is not None:
            assert torch.equal(several.truth.log_px[1], one.truth.log_px[0])
            assert torch.equal(several.truth.jacobian[1], one.truth.jacobian[0])


@each_world
def test_the_truth_is_that_of_each_worlds_mixing_and_source(data: SyntheticData) -> None:
    worlds = made(data, 1, 2)
    assert worlds.train.truth is None
    for split in (worlds.val, worlds.test):
        assert split.truth is not None
        for i, mixing in enumerate(worlds.mixings):
            s, x = split.sources[i], split.observations[i]
            torch.testing.assert_close(mixing.forward(s), x, rtol=1e-13, atol=1e-13)
            jacobian = split.truth.jacobian[i].permute(2, 0, 1)
            torch.testing.assert_close(jacobian, pointwise_jacobian(mixing.forward, s), rtol=1e-11, atol=1e-12)
            if data.n_segments == 1:
                exact = build_source(data.source).log_prob(s) - torch.linalg.slogdet(jacobian).logabsdet
                torch.testing.assert_close(split.truth.log_px[i], exact, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_each_segment_has_sources_of_its_own_variance_and_of_one_mean(source: SourceSettings) -> None:
    data = SyntheticData(dim=2, n_obs=40_000, source=source, mixing=LinearMixing(), n_segments=5, variances=(0.5, 3.0))
    world = made(data)
    u, s = stacked(world, "segments")[0], stacked(world, "sources")[0]
    counts = u.bincount(minlength=5)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3
    whole = build_source(source).sample(40_000, 2, stream(0, "sources"))
    largest = 1.0 if math.isfinite(source.support[1]) else 3.0
    ratios = torch.stack([s[u == k].var(0) / whole.var(0) for k in range(5)])
    assert ratios.min() > 0.9 * 0.5 * largest / 3
    assert ratios.max() < 1.1 * largest
    assert ratios.std() > 0.05 * largest  # they differ
    for k in range(5):
        error = (s[u == k].var(0) / counts[k] + whole.var(0) / 40_000).sqrt()
        assert ((s[u == k].mean(0) - whole.mean(0)).abs() < 5 * error).all()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_log_px_of_segments_is_that_of_the_laws_that_the_segments_have(source: SourceSettings) -> None:
    # with x = W s and |det W| = 1, log p(x|u) = log p(s|u), which scipy knows for a law of the segment's variance
    data = SyntheticData(
        dim=2, n_obs=90_000, val=0.29, source=source, mixing=LinearMixing(), n_segments=2, variances=(0.4, 1.6)
    )
    split = made(data).val
    assert split.truth is not None
    assert split.segments is not None
    for k in range(2):
        mine = split.segments[0] == k
        s = split.sources[0, mine].numpy()
        values = sum(_law(source, column).logpdf(column) for column in s.T)
        assert np.mean(values) == pytest.approx(float(split.truth.log_px[0, mine].mean()), abs=0.02)


def _law(source: SourceSettings, drawn: Any) -> Any:
    variance = drawn.var()
    match source:
        case UniformSource():
            return scipy.stats.uniform(drawn.min(), drawn.max() - drawn.min())
        case GaussianSource():
            return scipy.stats.norm(source.mean, math.sqrt(variance))
        case LaplaceSource():
            return scipy.stats.laplace(source.mean, math.sqrt(variance / 2))
    assert isinstance(source, BetaSource)
    shape = (1 / (4 * variance) - 1) / 2  # Beta(a, a) on an interval of length 1 has the variance 1 / (4 (2a + 1))
    return scipy.stats.beta(shape, shape, source.low, source.high - source.low)


def test_segments_leave_the_mixing_as_it_was_and_more_observations_the_variances() -> None:
    data = SyntheticData(n_obs=1000, mixing=MLPMixing(), source=GaussianSource(), n_segments=3)
    s = torch.zeros(1, 3, dtype=torch.float64)
    plain, segmented = dataset.world(dataclasses.replace(data, n_segments=1)), dataset.world(data)
    difference = [world.mixing.jacobian(s) for world in (plain, segmented)]
    assert torch.equal(*difference)
    few, many = dataset.world(data), dataset.world(dataclasses.replace(data, n_obs=2000))
    assert few.segments is not None
    assert many.segments is not None
    for k in range(3):  # the scale of a segment's first source does not depend on how many there are
        assert isinstance(few.source, sources.Gaussian)
        assert isinstance(many.source, sources.Gaussian)
        assert few.source.std[few.segments == k][0, 0] == many.source.std[many.segments == k][0, 0]


def test_the_same_data_are_drawn_once_and_others_anew() -> None:
    data = SyntheticData(n_obs=1000)
    first = made(data, 1)
    assert made(SyntheticData(n_obs=1000), 1) is first
    assert made(data, 2) is not first
    assert made(data, 1) is not first  # only the last one is kept


def test_the_members_seeds_decide_nothing_of_it() -> None:
    def observations(seeds: list[int]) -> Tensor:
        dataset._make.cache_clear()
        config = run_config({"data": {"n_obs": 1000}, "members": {"seed": seeds}})
        return stacked(Session.start([config], torch.device("cpu")).data, "observations")

    assert torch.equal(observations([1, 2]), observations([3]))


@each_world
def test_global_generators_stay_as_they_are(data: SyntheticData) -> None:
    dataset._make.cache_clear()
    with untouched_generators():
        made(data, 1, 2, dtype=torch.float32)


def test_a_session_leaves_global_generators_as_they_are() -> None:
    config = run_config({"data": {"n_obs": 700}, "training": {"max_epochs": 1}, "members": {"seed": [0]}})
    with untouched_generators():
        assert all(progress.validated for progress in Session.start([config], torch.device("cpu")).train())


@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.9, 0.2), (0.0, 0.5), (0.98, 0.01)])
def test_splits_without_enough_observations_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"split|train"):
        RunConfig(data=SyntheticData(n_obs=1000, train=shares[0], val=shares[1]))


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"variances": (0.0, 1.0)}, "0 < data.variances"),
        ({"variances": (2.0, 1.0)}, "0 < data.variances"),
    ],
)
def test_segments_without_variances_are_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(UserError, match=rule.replace("[", r"\[")):
        dataclasses.replace(SyntheticData(), **values)  # type: ignore[arg-type]
