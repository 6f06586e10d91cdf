"""Mixings: forward, inverse, Jacobian and log-determinant are of one and the same map, point by point."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imavae.config import Data
from imavae.families import GaussianSource, MLPMixing, MoebiusMixing, UniformSource
from imavae.data import dataset, sources
from imavae.data.mixing import MLP, Mixing, Moebius, build, orthogonal, uniform
from imavae.metrics.ima import contrast
from imavae.streams import stream
from tests.helpers import PUBLISHED, exact_neg_log_px, per_point, pointwise_jacobian

ROUNDED = MoebiusMixing(matrix=((0.6, -0.80001), (0.8, 0.6)), centre=(0.0, 0.7))  # as a person might type it
MOEBIUS = [
    *(Data(dim=d, seed=seed) for d in (2, 3, 5) for seed in (1, 2)),
    Data(mixing=PUBLISHED),
    Data(dim=2, mixing=ROUNDED),
    Data(source=GaussianSource(mean=1.0, std=2.0)),
]
NONLINEAR = [
    Data(dim=2, mixing=MLPMixing(n_layers=2)),
    Data(dim=3, mixing=MLPMixing(n_layers=4)),
    Data(dim=5, mixing=MLPMixing(n_layers=2, weights="uniform"), seed=3),
    Data(dim=3, mixing=MLPMixing(n_layers=4, weights="uniform", slope=0.5)),
    Data(dim=3, mixing=MLPMixing(n_layers=2), source=GaussianSource(std=30.0)),  # softplus far from zero, too
]
LINEAR = [
    Data(dim=3, mixing=MLPMixing(n_layers=1)),
    Data(dim=2, mixing=MLPMixing(n_layers=1, weights="uniform")),
    Data(dim=3, mixing=MLPMixing(n_layers=4, slope=1.0)),
]
every_mixing = pytest.mark.parametrize("data", [*MOEBIUS, *NONLINEAR, *LINEAR], ids=lambda d: f"{d.dim}-{d.mixing}")


def world(data: Data, n: int = 40) -> tuple[Mixing, Tensor]:
    """The mixing of ``data``, shifted by something, and sources for it."""
    shift = torch.linspace(-1, 2, data.dim, dtype=torch.float64)
    return build(data).shifted(shift), sources.sample(data.source, n, data.dim, stream(9, "sources"))


@every_mixing
def test_inverse_undoes_forward_and_forward_the_inverse(data: Data) -> None:
    mixing, s = world(data)
    x = mixing.forward(s)
    torch.testing.assert_close(mixing.inverse(x), s, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mixing.forward(mixing.inverse(x)), x, rtol=1e-11, atol=1e-11)


@every_mixing
def test_jacobian_is_that_of_autograd(data: Data) -> None:
    mixing, s = world(data)
    torch.testing.assert_close(mixing.jacobian(s), pointwise_jacobian(mixing.forward, s), rtol=1e-11, atol=1e-12)


@every_mixing
def test_log_det_is_that_of_the_jacobian(data: Data) -> None:
    mixing, s = world(data)
    expected = torch.linalg.slogdet(mixing.jacobian(s)).logabsdet
    torch.testing.assert_close(mixing.log_det(s), expected, rtol=1e-11, atol=1e-11)


@every_mixing
def test_a_point_does_not_depend_on_its_batch(data: Data) -> None:
    mixing, s = world(data)
    for function in (mixing.forward, mixing.inverse, mixing.jacobian, mixing.log_det):
        alone = torch.cat([function(row[None]) for row in s])
        torch.testing.assert_close(function(s), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("data", MOEBIUS, ids=lambda d: f"{d.dim}-{d.mixing}")
def test_a_moebius_map_has_zero_contrast(data: Data) -> None:
    mixing, s = world(data)
    values, full = contrast(per_point(mixing.jacobian(s)))
    assert full.all()
    assert values.abs().max() < 1e-12


@pytest.mark.parametrize("data", NONLINEAR[:-1], ids=lambda d: f"{d.dim}-{d.mixing}")
def test_a_nonlinear_mlp_has_positive_contrast(data: Data) -> None:
    mixing, s = world(data)
    values, full = contrast(per_point(mixing.jacobian(s)))
    assert full.all()
    assert values.min() > 0
    assert values.mean() > 1e-3


@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_an_orthogonal_mlp_of_slope_one_is_a_rotation(n_layers: int) -> None:
    mixing, s = world(Data(dim=3, mixing=MLPMixing(n_layers=n_layers, slope=1.0)))
    difference = mixing.forward(s) - mixing.forward(torch.zeros_like(s))
    torch.testing.assert_close(difference.norm(dim=1), s.norm(dim=1))
    assert mixing.log_det(s).abs().max() < 1e-12


@every_mixing
def test_a_dataset_is_centred_by_its_mixing_which_reproduces_it(data: Data) -> None:
    made = dataset.make(data, torch.float64)
    splits = (made.train, made.val, made.test)
    x = torch.cat([split.observations for split in splits])
    assert x.mean(0).abs().max() < 1e-10 * (1 + x.abs().max())
    for split in splits:
        torch.testing.assert_close(made.mixing.forward(split.sources), split.observations, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_orthogonal_matrices_are_orthogonal_and_lean_nowhere(dim: int) -> None:
    generator, n = stream(0, "mixing"), 400
    draws = torch.stack([orthogonal(dim, generator) for _ in range(n)])
    eye = torch.eye(dim, dtype=torch.float64).expand(n, -1, -1)
    torch.testing.assert_close(draws @ draws.mT, eye, rtol=0, atol=1e-13)
    # Haar: every entry has mean 0 and variance 1/d; LAPACK's signs alone would give the diagonal another mean
    assert draws.mean(0).abs().max() < 5 / math.sqrt(dim * n)
    assert {round(value) for value in torch.linalg.det(draws).tolist()} == {-1, 1}


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_uniform_weights_have_columns_of_unit_norm_and_are_no_rotation(dim: int) -> None:
    draws = torch.stack([uniform(dim, stream(seed, "mixing")) for seed in range(50)])
    torch.testing.assert_close(draws.norm(dim=1), torch.ones(50, dim, dtype=torch.float64))
    assert (draws.mT @ draws - torch.eye(dim, dtype=torch.float64)).abs().amax((1, 2)).min() > 1e-3
    assert torch.linalg.cond(draws).max() < 100


@pytest.mark.parametrize("source", [UniformSource(), UniformSource(low=1.0, high=9.0), GaussianSource(mean=4.0)])
def test_a_random_pole_lies_at_its_distance_from_the_sources(source: UniformSource | GaussianSource) -> None:
    for seed in range(10):
        data = Data(dim=3, source=source, seed=seed, mixing=MoebiusMixing(distance=1.5))
        mixing = build(data)
        assert isinstance(mixing, Moebius)
        mean, half_diagonal = sources.radius(source, 3)
        assert float((mixing.centre - mean).norm()) == pytest.approx(1.5 * half_diagonal)


def test_the_seed_draws_the_mixing_and_what_is_given_stays() -> None:
    first, again, other = (build(Data(seed=seed)) for seed in (1, 1, 2))
    s = torch.zeros(1, 3, dtype=torch.float64)
    assert torch.equal(first.forward(s), again.forward(s))
    assert not torch.isclose(first.forward(s), other.forward(s)).any()
    given = build(Data(seed=5, mixing=PUBLISHED))
    assert isinstance(given, Moebius)
    expected = torch.tensor(PUBLISHED.matrix, dtype=torch.float64)
    torch.testing.assert_close(given.matrix, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(given.centre, torch.tensor(PUBLISHED.centre, dtype=torch.float64))


def test_entropy_of_the_published_moebius_data() -> None:
    # origin: DESIGN §10, −E[log p(x)] = −5.297 by quadrature; its standard deviation over data is 0.72
    data = Data(n_obs=60_000, mixing=PUBLISHED)
    made = dataset.make(data, torch.float64)
    values = torch.cat([exact_neg_log_px(data, made, split) for split in (made.train, made.val, made.test)])
    assert float(values.mean()) == pytest.approx(-5.297, abs=4 * 0.72 / math.sqrt(60_000) + 5e-4)
    assert float(values.std()) == pytest.approx(0.72, abs=0.02)


@pytest.mark.parametrize("slope", [0.05, 0.2, 1.0])
def test_the_activation_is_inverted_far_from_zero(slope: float) -> None:
    eye = torch.eye(2, dtype=torch.float64)
    mixing = MLP((eye, eye), slope, torch.zeros(2, dtype=torch.float64))
    s = torch.linspace(-1e3, 1e3, 402, dtype=torch.float64).view(-1, 2)
    torch.testing.assert_close(mixing.inverse(mixing.forward(s)), s, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mixing.jacobian(s), pointwise_jacobian(mixing.forward, s), rtol=1e-11, atol=1e-12)
