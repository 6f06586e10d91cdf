"""The posterior is the Gaussian that its encoding stands for, with a diagonal or a full covariance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from imavae.model.vae import Posterior, encoding_size, from_encoding
from tests.helpers import normal

DIMS = [1, 2, 3, 5]
each_dim = pytest.mark.parametrize("dim", DIMS)
each_kind = pytest.mark.parametrize("kind", ["diagonal", "full"])


def encoded(dim: int, kind: str, batch: int = 4) -> Posterior:
    """Of two members."""
    return from_encoding(normal(2, encoding_size(dim, kind), batch, seed=2), dim)


def factor(q: Posterior, member: int, n: int) -> Tensor:
    """L of one member and point, entry by entry."""
    dim = q.mean.shape[1]
    lower = torch.diag((0.5 * q.log_square[member, :, n]).exp())
    if q.below is not None:
        entries = iter(q.below[member, :, n].tolist())
        for i in range(dim):
            for j in range(i):
                lower[i, j] = next(entries)
        assert not list(entries)
    return lower


@each_dim
@each_kind
def test_a_sample_is_the_mean_plus_the_factor_times_the_noise(dim: int, kind: str) -> None:
    q, noise = encoded(dim, kind), normal(2, dim, 4, seed=7)
    y = q.sample(noise)
    for member in range(2):
        for n in range(4):
            expected = q.mean[member, :, n] + factor(q, member, n) @ noise[member, :, n]
            torch.testing.assert_close(y[member, :, n], expected, rtol=1e-13, atol=1e-13)


@each_dim
@each_kind
def test_entropy_and_variance_are_those_of_the_multivariate_normal(dim: int, kind: str) -> None:
    q = encoded(dim, kind)
    for member in range(2):
        for n in range(4):
            exact = MultivariateNormal(q.mean[member, :, n], scale_tril=factor(q, member, n))
            entropy = exact.entropy()  # type: ignore[no-untyped-call]
            torch.testing.assert_close(q.entropy()[member, :, n].sum(), entropy, rtol=1e-12, atol=1e-12)
            diagonal = exact.covariance_matrix.diagonal()
            torch.testing.assert_close(q.variance()[member, :, n], diagonal, rtol=1e-12, atol=1e-12)


@each_dim
@each_kind
def test_samples_have_the_posteriors_mean_and_covariance(dim: int, kind: str) -> None:
    n, q = 40_000, encoded(dim, kind, batch=1)
    y = q.sample(normal(2, dim, n, seed=7))
    for member in range(2):
        lower = factor(q, member, 0)
        covariance = lower @ lower.T
        spread = covariance.diagonal()
        mean = y[member].mean(1)
        assert ((mean - q.mean[member, :, 0]).abs() < 5 * (spread / n).sqrt()).all()
        # the variance of a sample covariance of Gaussians: (C_ij² + C_ii C_jj) / n
        error = ((covariance.square() + spread[:, None] * spread[None]) / n).sqrt()
        assert ((torch.cov(y[member]).reshape(dim, dim) - covariance).abs() < 5 * error).all()


@each_dim
def test_a_full_posterior_with_nothing_below_its_diagonal_is_the_diagonal_one(dim: int) -> None:
    diagonal, noise = encoded(dim, "diagonal"), normal(2, dim, 4, seed=7)
    full = diagonal._replace(below=torch.zeros(2, dim * (dim - 1) // 2, 4, dtype=torch.float64))
    assert torch.equal(full.sample(noise), diagonal.sample(noise))
    assert torch.equal(full.entropy(), diagonal.entropy())
    assert torch.equal(full.variance(), diagonal.variance())


@pytest.mark.parametrize(("dim", "diagonal", "full"), [(2, 4, 5), (3, 6, 9), (5, 10, 20)])
def test_an_encoder_gives_a_location_a_diagonal_and_what_is_below_it(dim: int, diagonal: int, full: int) -> None:
    assert (encoding_size(dim, "diagonal"), encoding_size(dim, "full")) == (diagonal, full)
    assert encoded(dim, "diagonal").below is None
    below = encoded(dim, "full").below
    assert below is not None
    assert below.shape == (2, math.comb(dim, 2), 4)
