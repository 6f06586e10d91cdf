"""The linear reference: what FastICA, PCA and least squares recover of a world's sources, fitted once per world."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import FastICA
from sklearn.linear_model import LinearRegression
from torch import Tensor

from imavae.config.settings import RunConfig
from imavae.data import dataset
from imavae.data.dataset import Dataset, Split
from imavae.metrics import linear, mcc
from imavae.metrics.linear import Reference, maps, score
from tests.helpers import UNIFORM, config, normal, sprites, trained

LINEAR: dict[str, Any] = {"name": "linear"}
MOEBIUS: dict[str, Any] = {"name": "moebius"}
WORLDS = {"seed": [1, 2], "data": {"seed": [4, 9]}}


def world_of(mixing: dict[str, Any], seeds: tuple[int, ...] = (1,), **data: Any) -> Dataset:
    at = config({"dim": 3, "n_obs": 6000, "mixing": mixing, "source": UNIFORM, **data}, {})
    return dataset.make(at.data, seeds, torch.float64)


def scored(affine: Tensor, split: Split, discrete: tuple[bool, ...] = (False,) * 3) -> Reference:
    z = affine[:, :-1] @ split.observations[0].T + affine[:, -1:]
    return Reference(*map(torch.tensor, score(z, split.sources[0].T, discrete)))


def remade(split: Split, **other: Any) -> Split:
    return dataclasses.replace(split, **other)


def test_a_linear_world_is_solved_by_linear_ica_and_by_least_squares_but_not_by_pca(tmp_path: Path) -> None:
    world = world_of(LINEAR)
    found = scored(maps(world.train, tmp_path)[0], world.test)
    assert found.mcc_linear_ica > 0.995
    assert found.r2_linear_world == pytest.approx(1, abs=1e-9)
    assert found.mcc_pca < 0.95


def test_the_reference_is_that_of_scikit_learn(tmp_path: Path) -> None:
    world = world_of(MOEBIUS)
    found = scored(maps(world.train, tmp_path)[0], world.test)
    (x, s), (there, truth) = (
        (split.observations[0].numpy(), split.sources[0].numpy()) for split in (world.train, world.test)
    )
    ica = FastICA(3, whiten="unit-variance", random_state=7, tol=1e-8, max_iter=1000).fit(x)
    assert found.mcc_linear_ica == pytest.approx(mcc(truth, ica.transform(there)), abs=2e-3)
    regression = LinearRegression().fit(x, s)
    assert found.r2_linear_world == pytest.approx(regression.score(there, truth), abs=1e-9)


def test_linear_maps_of_the_observations_change_linear_ica_and_least_squares_by_nothing(tmp_path: Path) -> None:
    world, turned = world_of(MOEBIUS), normal(3, 3, seed=5) * torch.tensor([0.1, 1, 10])
    train, test = (
        remade(split, observations=split.observations @ turned + 40.0) for split in (world.train, world.test)
    )
    before = scored(maps(world.train, tmp_path)[0], world.test)
    after = scored(maps(train, tmp_path)[0], test)
    assert after.mcc_linear_ica == pytest.approx(float(before.mcc_linear_ica), abs=2e-3)
    assert after.r2_linear_world == pytest.approx(float(before.r2_linear_world), abs=1e-6)


def test_linear_ica_and_pca_are_chosen_without_the_sources(tmp_path: Path) -> None:
    world = world_of(MOEBIUS)
    blind = remade(world.train, sources=normal(*world.train.sources.shape))
    seen, unseen = maps(world.train, tmp_path)[0], maps(blind, tmp_path)[0]
    assert torch.equal(seen[:6], unseen[:6])
    assert not torch.equal(seen[6:], unseen[6:])


def test_of_several_starts_the_one_with_the_largest_negentropy_is_kept(tmp_path: Path) -> None:
    # Of four sources, of which two are nearly Gaussian, single starts end in different places.
    world = world_of({"name": "flow"}, dim=4, source={"name": "uniform", "low": -0.5, "high": 0.5})
    x = world.train.observations[0].T
    affine = maps(world.train, tmp_path)[0]
    kept = contrast(affine[:4, :-1] @ x + affine[:4, -1:])
    starts = [FastICA(4, whiten="unit-variance", random_state=start).fit_transform(x.T.numpy()).T for start in range(5)]
    others = [contrast(torch.from_numpy(start)) for start in starts]
    assert max(others) - min(others) > 0.02 * kept
    assert kept == pytest.approx(max(others), rel=0.01)


def contrast(y: Tensor) -> float:
    """Sum of the squared distances of E[log cosh y] from that of a standard normal, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    normal_mean = float(weights @ np.log(np.cosh(nodes)) / weights.sum())
    standard = (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True)
    return float((standard.cosh().log().mean(1) - normal_mean).square().sum())


def test_a_world_is_fitted_once_and_other_rows_are_another_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, fit, fits = world_of(MOEBIUS, (1, 2)), linear._fit, list[Tensor]()

    def counting(x: Tensor, s: Tensor, least_squares: bool) -> Any:
        fits.append(x)
        return fit(x, s, least_squares)

    monkeypatch.setattr(linear, "_fit", counting)
    first = maps(world.train, tmp_path)
    assert torch.equal(maps(world.train, tmp_path), first)
    assert len(fits) == len(list(tmp_path.iterdir())) == 2
    alone = maps(world_of(MOEBIUS, (2,)).train, tmp_path)
    assert torch.equal(alone[0], first[1])
    assert len(fits) == 2
    for damaged in tmp_path.iterdir():
        damaged.write_bytes(damaged.read_bytes()[:90])
    assert torch.equal(maps(world.train, tmp_path), first)
    other = remade(world.train, observations=world.train.observations + 1e-6)
    maps(other, tmp_path)
    assert len(fits) == 6


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    train = world_of(MOEBIUS).train
    (tmp_path / "cache").write_text("a file in the folder's place")
    assert torch.equal(maps(train, tmp_path / "cache"), maps(train, tmp_path / "folder"))


def test_observations_that_lack_a_dimension_have_a_finite_reference(tmp_path: Path) -> None:
    world = world_of(LINEAR)
    flat = [
        remade(split, observations=split.observations * torch.tensor([1.0, 1, 0]))
        for split in (world.train, world.test)
    ]
    found = scored(maps(flat[0], tmp_path)[0], flat[1])
    assert all(0 <= value < 1 for value in found)


def test_a_discrete_source_is_compared_as_in_mcc(tmp_path: Path) -> None:
    world = world_of(MOEBIUS)
    affine, labels = maps(world.train, tmp_path)[0], (6 * (world.test.sources + 0.5)).floor() % 4
    test, kinds = remade(world.test, sources=labels), (True, False, True)
    ica = (affine[:3, :-1] @ test.observations[0].T + affine[:3, -1:]).T
    assert scored(affine, test, kinds).mcc_linear_ica == pytest.approx(mcc(labels[0], ica, kinds), abs=1e-12)


def test_members_share_the_reference_of_their_world_and_gain_what_their_mcc_exceeds_it_by(tmp_path: Path) -> None:
    data = {"dim": 2, "n_obs": 2000, "mixing": MOEBIUS, "source": UNIFORM}
    session = trained([config(data, {}, members=WORLDS, training=once(), output_dir=str(tmp_path))])
    for split in ("val", "test"):
        values = session.evaluate(split, session.state.frozen, torch.arange(4))
        reference, gain = (values[f"{split}/{name}"] for name in ("mcc_linear_ica", "nonlinear_gain"))
        assert reference[0] == reference[1] != reference[2] == reference[3]
        torch.testing.assert_close(gain, values[f"{split}/mcc"] - reference)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def once() -> dict[str, Any]:
    return {"max_epochs": 1, "validate_every": 1}


def test_images_have_the_reference_of_their_principal_components(tmp_path: Path) -> None:
    at: RunConfig = sprites(tmp_path)
    session = trained([at])
    values = session.evaluate("val", session.state.frozen, torch.arange(2))
    assert "val/r2_linear_world" not in values
    for name in ("mcc_linear_ica", "mcc_pca"):
        reference = values[f"val/{name}"]
        assert 0 < reference[0] == reference[1] < 1
