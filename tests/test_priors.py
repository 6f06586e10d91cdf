"""Priors in the unconstrained coordinate y: densities, their derivatives, and the map onto the support."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.integrate import quad

from imavae.model import priors
from imavae.model.priors import Gaussian, Prior, Uniform
from tests.helpers import GAUSSIAN, UNIFORM, config

LAWS: list[tuple[Prior, Any]] = [
    (Uniform(0.0, 1.0), scipy.stats.uniform(0.0, 1.0)),
    (Uniform(-0.5, 0.5), scipy.stats.uniform(-0.5, 1.0)),
    (Uniform(-3.0, 7.0), scipy.stats.uniform(-3.0, 10.0)),
    (Gaussian(0.0, 1.0), scipy.stats.norm(0.0, 1.0)),
    (Gaussian(2.0, 0.5), scipy.stats.norm(2.0, 0.5)),  # a variance read as a deviation shows here
]
each_law = pytest.mark.parametrize(("prior", "law"), LAWS, ids=str)
Y = torch.linspace(-30, 30, 241, dtype=torch.float64)


def density(prior: Prior, y: float) -> float:
    return math.exp(float(prior.log_prob(torch.tensor([y], dtype=torch.float64))))


@each_law
def test_density_integrates_to_one_and_has_the_priors_variance(prior: Prior, law: Any) -> None:
    def moment(power: int) -> float:
        def integrand(y: float) -> float:
            return density(prior, y) * float(prior.latent(torch.tensor([y], dtype=torch.float64))) ** power

        return float(quad(integrand, -40, 40, points=[0.0, law.mean()], limit=200)[0])

    assert moment(0) == pytest.approx(1, abs=1e-8)
    assert moment(1) == pytest.approx(law.mean(), abs=1e-7)
    assert moment(2) - moment(1) ** 2 == pytest.approx(prior.variance, abs=1e-6)
    assert prior.variance == pytest.approx(law.var())


@each_law
def test_density_is_that_of_the_latent_times_the_slope(prior: Prior, law: Any) -> None:
    expected = law.logpdf(prior.latent(Y).numpy()) + prior.slope(Y).log().numpy()
    np.testing.assert_allclose(prior.log_prob(Y).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_a_uniform_latent_makes_y_standard_logistic_whatever_its_support() -> None:
    y = torch.linspace(-600, 600, 1201, dtype=torch.float64)
    for prior in (Uniform(0.0, 1.0), Uniform(-3.0, 7.0)):
        expected = scipy.stats.logistic.logpdf(y.numpy())
        np.testing.assert_allclose(prior.log_prob(y).numpy(), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("prior", [prior for prior, _ in LAWS], ids=str)
def test_derivatives_are_those_of_autograd(prior: Prior) -> None:
    second = torch.func.vmap(torch.func.grad(torch.func.grad(prior.log_prob)))(Y)
    torch.testing.assert_close(prior.curvature(Y), -second, rtol=1e-9, atol=1e-15)
    first = torch.func.vmap(torch.func.grad(prior.latent))(Y)
    torch.testing.assert_close(prior.slope(Y), first, rtol=1e-3, atol=1e-15)  # autograd's s(1 − s) cancels at large y
    torch.testing.assert_close(prior.slope(Y[80:161]), first[80:161], rtol=1e-11, atol=0)


@each_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_from_zero_all_is_finite(prior: Prior, law: Any, dtype: torch.dtype) -> None:
    y = torch.tensor([-1e3, -100.0, -30.0, 30.0, 100.0, 1e3], dtype=dtype, requires_grad=True)
    log_prob = prior.log_prob(y)
    [gradient] = torch.autograd.grad(log_prob.sum(), y)
    exact = scipy.stats.logistic.logpdf(y.tolist()) if isinstance(prior, Uniform) else law.logpdf(y.tolist())
    np.testing.assert_allclose(log_prob.tolist(), exact, rtol=1e-6)
    for values in (log_prob, gradient, prior.curvature(y), prior.slope(y), prior.latent(y)):
        assert values.dtype == dtype
        assert values.isfinite().all()
    assert (gradient.sign() == -(y - law.mean()).sign()).all()  # it pulls back: a saturated latent is not stuck
    assert (prior.curvature(y) >= 0).all()
    low, high = prior.support
    assert ((low <= prior.latent(y)) & (prior.latent(y) <= high)).all()


@each_law
def test_latents_rise_with_y_and_stay_on_the_support(prior: Prior, law: Any) -> None:
    assert prior.support == law.support()
    z = prior.latent(Y[60:-60])
    assert (z.diff() > 0).all()


def test_a_bounded_prior_takes_the_sources_support_unless_told_otherwise() -> None:
    source = {"name": "uniform", "low": -2.0, "high": 1.0}
    assert priors.build(config({"source": source}, {})) == Uniform(-2.0, 1.0)
    wider = {"prior": {"name": "uniform", "high": 4.0}}
    assert priors.build(config({"source": source}, wider)) == Uniform(-2.0, 4.0)
    assert priors.build(config({"source": UNIFORM}, {"prior": GAUSSIAN})) == Gaussian(0.3, 0.7)
