"""Priors in the unconstrained coordinate y: densities, their derivatives, and the map onto the support."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.integrate import quad
from torch import Tensor

from imavae.config.settings import PRIORS, support
from imavae.model.priors import Prior, Theta
from tests.helpers import GAUSSIAN, UNIFORM, config, normal

LAWS: list[tuple[dict[str, Any], Any]] = [
    ({"name": "uniform", "low": 0.0, "high": 1.0}, scipy.stats.uniform(0.0, 1.0)),
    ({"name": "uniform", "low": -3.0, "high": 7.0}, scipy.stats.uniform(-3.0, 10.0)),
    ({"name": "beta", "alpha": 1.0, "beta": 1.0}, scipy.stats.beta(1.0, 1.0, -0.5, 1.0)),
    ({"name": "beta", "alpha": 2.5, "beta": 1.5, "low": -1.0, "high": 2.0}, scipy.stats.beta(2.5, 1.5, -1.0, 3.0)),
    ({"name": "beta", "alpha": 0.6, "beta": 0.8}, scipy.stats.beta(0.6, 0.8, -0.5, 1.0)),  # poles at both ends
    ({"name": "gaussian"}, scipy.stats.norm(0.0, 1.0)),
    ({"name": "gaussian", "mean": 2.0, "std": 0.5}, scipy.stats.norm(2.0, 0.5)),  # a variance as a deviation shows
    ({"name": "laplace"}, scipy.stats.laplace(0.0, 1.0)),
    ({"name": "laplace", "mean": -1.5, "scale": 0.4}, scipy.stats.laplace(-1.5, 0.4)),
]
each_law = pytest.mark.parametrize(("settings", "law"), LAWS, ids=[str(settings) for settings, _ in LAWS])
Y = torch.linspace(-30, 30, 241, dtype=torch.float64)


def built(settings: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[Prior, Theta]:
    """The prior of a float64 point, and its parameters."""
    ends = {key: settings[key] for key in ("low", "high") if key in settings}
    source: dict[str, Any] = UNIFORM | ends if PRIORS[settings["name"]].bounded else GAUSSIAN
    at = config({"source": source}, {"prior": settings})
    prior = at.model.prior.build(support(at))
    return prior, tuple(torch.tensor(value, dtype=dtype) for value in prior.start)


def test_every_family_is_among_the_laws() -> None:
    assert {settings["name"] for settings, _ in LAWS} == set(PRIORS.names())


@each_law
def test_density_integrates_to_one_and_has_the_priors_variance(settings: dict[str, Any], law: Any) -> None:
    prior, theta = built(settings)

    def moment(power: int) -> float:
        def integrand(y: float) -> float:
            at = torch.tensor([y], dtype=torch.float64)
            return float(prior.log_prob(at, theta).exp() * prior.latent(at) ** power)

        return float(quad(integrand, -70, 70, points=[-3.0, 0.0, 3.0, law.mean()], limit=400)[0])

    assert moment(0) == pytest.approx(1, abs=1e-8)
    assert moment(1) == pytest.approx(law.mean(), abs=1e-7)
    assert moment(2) - moment(1) ** 2 == pytest.approx(law.var(), abs=1e-6)
    assert float(prior.variance(theta)) == pytest.approx(law.var())


@each_law
def test_density_is_that_of_the_latent_times_the_slope(settings: dict[str, Any], law: Any) -> None:
    prior, theta = built(settings)
    z = prior.latent(Y)
    inside = (
        (z > prior.support[0]) & (z < prior.support[1]) & (Y.abs() < 25)
    )  # beyond, z has lost its distance to an end
    expected = law.logpdf(z.numpy()) + prior.slope(Y).log().numpy()
    exact = prior.log_prob(Y, theta).numpy()
    np.testing.assert_allclose(exact[inside], expected[inside], rtol=1e-5, atol=1e-12)
    middle = Y.abs() < 8
    np.testing.assert_allclose(exact[middle], expected[middle], rtol=1e-11, atol=1e-11)


@each_law
def test_the_distribution_function_is_scipys(settings: dict[str, Any], law: Any) -> None:
    prior, theta = built(settings)
    z = torch.from_numpy(law.ppf(np.linspace(0.001, 0.999, 101)))
    np.testing.assert_allclose(prior.cdf(z, theta).numpy(), law.cdf(z.numpy()), rtol=1e-10)
    beyond = torch.tensor([-1e3, 1e3], dtype=torch.float64)
    assert prior.cdf(beyond, theta).tolist() == pytest.approx([0.0, 1.0], abs=1e-300)
    assert prior.cdf(z.float(), theta).dtype == torch.float32


def test_a_uniform_latent_makes_y_standard_logistic_whatever_its_support() -> None:
    y = torch.linspace(-600, 600, 1201, dtype=torch.float64)
    for settings in ({"name": "uniform", "low": 0.0, "high": 1.0}, {"name": "uniform", "low": -3.0, "high": 7.0}):
        prior, theta = built(settings)
        expected = scipy.stats.logistic.logpdf(y.numpy())
        np.testing.assert_allclose(prior.log_prob(y, theta).numpy(), expected, rtol=1e-14, atol=1e-14)


def test_the_beta_prior_at_one_and_one_is_the_uniform() -> None:
    (beta, theta), (uniform, nothing) = built({"name": "beta", "alpha": 1.0, "beta": 1.0}), built(UNIFORM)
    torch.testing.assert_close(beta.log_prob(Y, theta), uniform.log_prob(Y, nothing), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(beta.curvature(Y, theta), uniform.curvature(Y, nothing), rtol=1e-14, atol=0)


@each_law
def test_derivatives_are_those_of_autograd(settings: dict[str, Any], law: Any) -> None:  # noqa: ARG001
    prior, theta = built(settings)
    at = Y + 0.01  # a Laplace density has no second derivative at its mean
    second = torch.func.vmap(torch.func.grad(torch.func.grad(lambda y: prior.log_prob(y, theta))))(at)
    torch.testing.assert_close(prior.curvature(at, theta), -second, rtol=1e-9, atol=1e-15)
    first = torch.func.vmap(torch.func.grad(prior.latent))(at)
    torch.testing.assert_close(prior.slope(at), first, rtol=1e-3, atol=1e-15)  # autograd's s(1 - s) cancels at large y
    torch.testing.assert_close(prior.slope(at[80:161]), first[80:161], rtol=1e-11, atol=0)


@each_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_from_zero_all_is_finite(settings: dict[str, Any], law: Any, dtype: torch.dtype) -> None:
    prior, theta = built(settings, dtype)
    y = torch.tensor([-1e3, -100.0, -30.0, 30.0, 100.0, 1e3], dtype=dtype, requires_grad=True)
    log_prob = prior.log_prob(y, theta)
    [gradient] = torch.autograd.grad(log_prob.sum(), y)
    np.testing.assert_allclose(log_prob.tolist(), tails(settings, law, y.detach()), rtol=2e-6)
    for values in (log_prob, gradient, prior.curvature(y, theta), prior.slope(y), prior.latent(y)):
        assert values.dtype == dtype
        assert values.isfinite().all()
    assert (gradient.sign() == -y.detach().sign()).all()  # it pulls back: a saturated latent is not stuck
    assert (prior.curvature(y, theta) >= 0).all()
    low, high = prior.support
    assert ((low <= prior.latent(y)) & (prior.latent(y) <= high)).all()


def tails(settings: dict[str, Any], law: Any, y: Tensor) -> Any:
    """Log p(y) far out: for a bounded z, a y + const on the left and -b y + const on the right."""
    if settings["name"] == "gaussian":
        return law.logpdf(y.double().numpy())
    if settings["name"] == "laplace":  # SciPy's underflows
        scale = settings.get("scale", 1.0)
        return (-(y.double() - law.mean()).abs() / scale - math.log(2 * scale)).numpy()
    a, b = settings.get("alpha", 1.0), settings.get("beta", 1.0)
    return (torch.where(y < 0, a * y, -b * y) - (math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))).numpy()


@each_law
def test_latents_rise_with_y_and_stay_on_the_support(settings: dict[str, Any], law: Any) -> None:
    prior, _ = built(settings)
    assert prior.support == pytest.approx(law.support())
    assert (prior.latent(Y[60:-60]).diff() > 0).all()


ANALYTIC = [(settings, law) for settings, law in LAWS if PRIORS[settings["name"]].analytic]
POSTERIORS = [(0.0, 1.0), (2.0, 0.3), (-4.0, 0.05), (0.1, 6.0)]  # mean and standard deviation


@pytest.mark.parametrize(("settings", "law"), ANALYTIC, ids=[str(settings) for settings, _ in ANALYTIC])
@pytest.mark.parametrize(("mean", "std"), POSTERIORS)
def test_the_expected_log_density_is_that_of_quadrature_and_of_many_draws(
    settings: dict[str, Any], law: Any, mean: float, std: float
) -> None:
    prior, theta = built(settings)
    m, v = torch.tensor([mean], dtype=torch.float64), torch.tensor([std**2], dtype=torch.float64)
    closed = float(prior.expected_log_prob(m, v, theta))
    reach, posterior = 12 * std, scipy.stats.norm(mean, std)
    kinks = sorted({mean, min(max(law.mean(), mean - reach), mean + reach)})
    exact = quad(lambda y: posterior.pdf(y) * law.logpdf(y), mean - reach, mean + reach, points=kinks, limit=400)[0]
    assert closed == pytest.approx(exact, rel=1e-8, abs=1e-8)
    draws = prior.log_prob(mean + std * normal(100_000, seed=3), theta)
    assert abs(closed - float(draws.mean())) < 4 * float(draws.std()) / math.sqrt(len(draws))


@pytest.mark.parametrize("settings", [UNIFORM, {"name": "beta"}], ids=lambda s: str(s["name"]))
def test_the_others_have_no_closed_form_and_say_so(settings: dict[str, Any]) -> None:
    prior, theta = built(settings)
    with pytest.raises(NotImplementedError):
        prior.expected_log_prob(Y, Y.square() + 1, theta)


def test_a_bounded_prior_takes_the_sources_support_unless_told_otherwise() -> None:
    source = {"name": "uniform", "low": -2.0, "high": 1.0}
    for name in ("uniform", "beta"):
        for told, expected in (({}, (-2.0, 1.0)), ({"high": 4.0}, (-2.0, 4.0)), ({"low": -3.0}, (-3.0, 1.0))):
            at = config({"source": source}, {"prior": {"name": name, **told}})
            assert at.model.prior.build(support(at)).support == expected
    assert support(config({"source": UNIFORM}, {"prior": GAUSSIAN})) == (-math.inf, math.inf)
