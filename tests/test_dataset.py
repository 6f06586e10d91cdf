"""A dataset: three splits of one world, which data.seed alone decides."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from imavae.config import Data, RunConfig, run_config
from imavae.errors import UserError
from imavae.families import GaussianSource, MLPMixing
from imavae.data import dataset, sources
from imavae.run import Session
from imavae.streams import stream
from tests.helpers import untouched_generators

WORLDS = [
    Data(n_obs=1000),
    Data(n_obs=777, train=0.5, val=0.25, dim=2, mixing=MLPMixing()),
    Data(n_obs=640, train=0.6, val=0.3, dim=5, source=GaussianSource()),
]
each_world = pytest.mark.parametrize("data", WORLDS, ids=lambda data: f"{data.n_obs}-{data.dim}")


def stacked(made: dataset.Dataset, name: str) -> Tensor:
    return torch.cat([getattr(split, name) for split in (made.train, made.val, made.test)])


@each_world
def test_splits_have_their_sizes_and_together_hold_every_source_once(data: Data) -> None:
    made = dataset.make(data, torch.float64)
    sizes = len(made.train), len(made.val), len(made.test)
    assert sizes == data.sizes
    assert sum(sizes) == data.n_obs
    drawn = sources.sample(data.source, data.n_obs, data.dim, stream(data.seed, "sources"))
    assert len(set(drawn[:, 0].tolist())) == data.n_obs
    together = stacked(made, "sources")
    assert torch.equal(together.sort(0).values, drawn.sort(0).values)
    assert not torch.equal(together, drawn)  # the split is random, not the first so many


@each_world
def test_every_precision_holds_the_same_numbers(data: Data) -> None:
    single, double = dataset.make(data, torch.float32), dataset.make(data, torch.float64)
    for name in ("sources", "observations"):
        assert stacked(single, name).dtype == torch.float32
        assert stacked(double, name).dtype == torch.float64
        assert torch.equal(stacked(single, name), stacked(double, name).float())


@each_world
def test_a_split_knows_its_sources_support(data: Data) -> None:
    made = dataset.make(data, torch.float32)
    assert made.train.support == made.val.support == made.test.support == sources.support(data.source)


@each_world
def test_data_seed_decides_all_of_the_world(data: Data) -> None:
    first, again = dataset.make(data, torch.float64), dataset.make(data, torch.float64)
    other = dataset.make(dataclasses.replace(data, seed=data.seed + 1), torch.float64)
    for name in ("sources", "observations"):
        assert torch.equal(stacked(first, name), stacked(again, name))
        assert not torch.isclose(stacked(first, name), stacked(other, name), rtol=1e-9, atol=1e-9).all(1).any()
    s = first.val.sources
    assert not torch.isclose(first.mixing.forward(s), other.mixing.forward(s)).any()


def test_the_members_seeds_decide_nothing_of_it() -> None:
    def observations(seeds: list[int]) -> Tensor:
        config = run_config({"data": {"n_obs": 1000}, "members": {"seed": seeds}})
        return stacked(Session.start([config], torch.device("cpu")).data, "observations")

    assert torch.equal(observations([1, 2]), observations([3]))


@each_world
def test_global_generators_stay_as_they_are(data: Data) -> None:
    with untouched_generators():
        dataset.make(data, torch.float32)


def test_a_session_leaves_global_generators_as_they_are() -> None:
    config = run_config({"data": {"n_obs": 700}, "training": {"max_epochs": 1}, "members": {"seed": [0]}})
    with untouched_generators():
        assert all(progress.validated for progress in Session.start([config], torch.device("cpu")).train())


@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.9, 0.2), (0.0, 0.5), (0.98, 0.01)])
def test_splits_without_enough_observations_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"split|train"):
        RunConfig(data=Data(n_obs=1000, train=shares[0], val=shares[1]))
