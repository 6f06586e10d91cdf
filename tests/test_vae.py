"""The ELBO: what torch.distributions says, the evidence where the posterior is exact, and never above it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Beta,
    Distribution,
    Laplace,
    MultivariateNormal,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

from imavae.config.settings import RunConfig, run_config
from imavae.data import dataset
from imavae.model import vae
from imavae.model.export import Model
from imavae.training.ensemble import ensemble, initial_state
from imavae.training.step import train_epoch
from tests.helpers import (
    BETA,
    GAUSSIAN,
    LAPLACE,
    UNIFORM,
    exact_neg_log_px,
    normal,
    plain_model,
    point,
    random_members,
)

POINTS = [
    point(3, UNIFORM),
    point(2, {"name": "uniform", "low": 1.0, "high": 4.0}, n_layers=3, gamma=20.0),
    point(3, BETA),
    point(2, {"name": "beta", "alpha": 0.7, "beta": 3.0}, posterior="full"),
    point(5, GAUSSIAN),
    point(2, {"name": "gaussian", "std": 2.0}, n_layers=1, gamma=0.5),
    point(3, GAUSSIAN, posterior="full", activation="tanh"),
    point(3, LAPLACE, encoder={"n_layers": 3}),
    point(2, {"name": "laplace", "scale": 2.0}, posterior="full"),
]
ANALYTIC = [at for at in POINTS if at.model.prior.analytic]


def label(at: RunConfig) -> str:
    return f"{at.data.dim}-{at.model.prior}-{at.model.posterior}"


each_point = pytest.mark.parametrize("at", POINTS, ids=label)


def stacked_elbo(at: RunConfig, flat: Tensor, x: Tensor, noise: Tensor) -> vae.Elbo:
    """Of observations (member, d, batch)."""
    model = vae.build(at)
    return model.elbo(model.layout.views(flat), x, noise)


def neg_elbo_per_point(at: RunConfig, row: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """One member's neg_elbo of each row of ``x``: every point is a batch of its own."""
    return stacked_elbo(at, row.expand(len(x), -1), x[..., None], noise[..., None]).neg_elbo


def factors(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means (n, d) and Cholesky factors (n, d, d) of the posteriors, from the encoder's output entry by entry."""
    out = model.architecture.encoder(model.weights, x.T[None])[0].T
    dim = x.shape[1]
    lower = torch.diag_embed((0.5 * out[:, dim : 2 * dim]).exp())
    if model.config.model.posterior == "full":
        at = 2 * dim
        for i in range(dim):
            for j in range(i):
                lower[:, i, j] = out[:, at]
                at += 1
        assert at == out.shape[1]
    return out[:, :dim], lower


def prior_of(model: Model) -> Distribution:
    """The prior of one latent, by torch.distributions."""
    settings: Any = model.config.model.prior
    if settings.name == "gaussian":
        return Normal(torch.tensor(settings.mean, dtype=torch.float64), settings.std)
    if settings.name == "laplace":
        return Laplace(torch.tensor(settings.mean, dtype=torch.float64), settings.scale)
    low, high = model.architecture.prior.support
    if settings.name == "uniform":
        return Uniform(torch.tensor(low, dtype=torch.float64), high)
    alpha, beta = (torch.tensor(value, dtype=torch.float64) for value in (settings.alpha, settings.beta))
    return TransformedDistribution(Beta(alpha, beta), [AffineTransform(low, high - low)])


def obvious_elbo(model: Model, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """KL and reconstruction term of each point, in the latent's own coordinate, by torch.distributions. Its KL has
    log q at the sample; the entropy's expectation is put in its place.
    """
    mean, lower = factors(model, x)
    y = mean + (lower @ noise[..., None])[..., 0]
    z, log_slope = y, torch.zeros_like(y)
    if model.config.model.prior.bounded:
        low, high = model.architecture.prior.support
        sigmoid, stretch = SigmoidTransform(), AffineTransform(low, high - low)
        z = stretch(sigmoid(y))
        log_slope = sigmoid.log_abs_det_jacobian(y, sigmoid(y)) + math.log(high - low)  # type: ignore[no-untyped-call]
    log_q = MultivariateNormal(mean, scale_tril=lower).log_prob(y) - log_slope.sum(1)  # type: ignore[no-untyped-call]
    log_q = log_q + 0.5 * (noise.square() - 1).sum(1)  # E[noise²] = 1
    likelihood: Distribution = Normal(model.decode(z), 1 / model.gamma)
    return log_q - prior_of(model).log_prob(z).sum(1), likelihood.log_prob(x).sum(1)


@each_point
@pytest.mark.parametrize("members", [1, 3])
def test_elbo_is_the_obvious_one(at: RunConfig, members: int) -> None:
    dim = at.data.dim
    flat, x, noise = (
        random_members(at, list(range(members))),
        normal(members, dim, 33),
        normal(members, dim, 33, seed=1),
    )
    elbo = stacked_elbo(at, flat, x, noise)
    for m in range(members):
        kl, log_px_z = obvious_elbo(plain_model(at, flat[m]), x[m].T, noise[m].T)
        torch.testing.assert_close(elbo.kl[m], kl.mean(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(elbo.log_px_z[m], log_px_z.mean(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(elbo.neg_elbo[m], (kl - log_px_z).mean(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("at", ANALYTIC, ids=label)
def test_the_analytic_kl_is_what_the_sampled_one_tends_to(at: RunConfig) -> None:
    dim, n = at.data.dim, 20_000
    model, flat, x = vae.build(at), random_members(at, [4]), normal(1, dim, 1)
    closed = dataclasses.replace(model, analytic=True).elbo(model.layout.views(flat), x, normal(1, dim, 1)).kl
    repeated = x[0].T[..., None].expand(n, -1, -1)
    sampled = stacked_elbo(at, flat.expand(n, -1), repeated, normal(n, dim, seed=3)[..., None]).kl
    assert abs(float(sampled.mean() - closed)) < 4 * float(sampled.std()) / math.sqrt(n)
    if at.model.prior.name == "gaussian":
        mean, lower = factors(plain_model(at, flat[0]), x[0].T)
        prior: Any = at.model.prior
        eye = torch.eye(dim, dtype=torch.float64)
        target = MultivariateNormal(torch.full((dim,), prior.mean, dtype=torch.float64), prior.std**2 * eye)
        exact = torch.distributions.kl_divergence(MultivariateNormal(mean, scale_tril=lower), target)
        torch.testing.assert_close(closed, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("at", ANALYTIC, ids=label)
def test_the_analytic_kl_has_no_noise_and_leaves_the_reconstruction_alone(at: RunConfig) -> None:
    closed = dataclasses.replace(at, model=dataclasses.replace(at.model, kl="analytic"))
    flat, x = random_members(at, [0, 1]), normal(2, at.data.dim, 9)
    first, second = (stacked_elbo(closed, flat, x, normal(2, at.data.dim, 9, seed=seed)) for seed in (1, 2))
    sampled = stacked_elbo(at, flat, x, normal(2, at.data.dim, 9, seed=1))
    assert torch.equal(first.kl, second.kl)
    assert torch.equal(first.log_px_z, sampled.log_px_z)
    assert not torch.equal(first.kl, sampled.kl)


@pytest.mark.parametrize("gamma", [0.5, 3.0, 100.0])
@pytest.mark.parametrize("dim", [2, 3])
def test_with_the_exact_posterior_every_sample_gives_the_evidence(dim: int, gamma: float) -> None:
    # x = J z + b + noise, J with orthogonal columns: the posterior is Gaussian, with a diagonal covariance
    at = point(dim, GAUSSIAN, gamma=gamma, n_layers=1)
    layout, scales = vae.build(at).layout, torch.linspace(0.5, 2.0, dim, dtype=torch.float64)
    jacobian, b = torch.linalg.qr(normal(dim, dim))[0] * scales, normal(dim, seed=3)
    prior_mean, prior_std = GAUSSIAN["mean"], GAUSSIAN["std"]
    precision = prior_std**-2 + gamma**2 * scales.square()
    gain = gamma**2 * jacobian.T / precision[:, None]
    flat = torch.zeros(1, layout.size, dtype=torch.float64)
    weights = layout.views(flat)
    weights[vae.GAMMA][:] = math.log(gamma)
    weights["encoder.0.weight"][0, :dim] = gain
    weights["encoder.0.bias"][0] = torch.cat([prior_mean / prior_std**2 / precision - gain @ b, -precision.log()])
    weights["decoder.0.weight"][0], weights["decoder.0.bias"][0] = jacobian, b

    x, noise = 2 * normal(50, dim, seed=4), normal(50, dim, seed=5)
    covariance = torch.eye(dim, dtype=torch.float64) / gamma**2 + prior_std**2 * jacobian @ jacobian.T
    evidence = scipy.stats.multivariate_normal((jacobian.sum(1) * prior_mean + b).numpy(), covariance.numpy())
    at_the_sample = neg_elbo_per_point(at, flat[0], x, noise) - 0.5 * (noise.square() - 1).sum(1)
    torch.testing.assert_close(at_the_sample, torch.from_numpy(-evidence.logpdf(x.numpy())), rtol=1e-9, atol=1e-9)


FAST = {"training": {"dtype": "float64", "learning_rate": 1e-2}, "members": {"seed": [1, 2]}}
WORLDS = {
    "moebius": run_config({"data": {"n_obs": 3000}, "model": {"gamma": 10.0}, **FAST}),
    "mlp": run_config({"data": {"n_obs": 3000, "mixing": {"name": "mlp"}}, "model": {"gamma": 10.0}, **FAST}),
    "rotation": run_config(
        {
            "data": {"n_obs": 3000, "source": {"name": "gaussian"}, "mixing": {"name": "mlp", "slope": 1.0}},
            "model": {"gamma": 3.0, "n_layers": 1, "prior": {"name": "gaussian"}},
            **FAST,
        }
    ),
}


@pytest.mark.parametrize("name", WORLDS)
def test_on_held_out_data_neg_elbo_lies_above_the_exact_neg_log_px(name: str) -> None:
    at = WORLDS[name]
    world, members = dataset.make(at.data, (at.data.seed,), torch.float64), ensemble([at], "cpu")
    state = initial_state(members)
    exact, x = exact_neg_log_px(at.data, world, world.val), world.val.observations[0]
    gaps = []
    for epochs in (0, 4, 20):
        for _ in range(epochs):
            train_epoch(members, state, world.train)
        for row in state.weights.detach():
            difference = neg_elbo_per_point(at, row, x, normal(*x.shape, seed=6)) - exact
            assert float(difference.mean()) > -4 * float(difference.std()) / math.sqrt(len(x))
            gaps.append(float(difference.mean()))
    assert max(gaps[-2:]) < min(gaps[:2])  # training closes the gap
    if name == "rotation":
        assert min(gaps[-2:]) < 0.3  # and here it can be closed nearly: the bound is not met by being loose


@pytest.mark.parametrize("location", [-1e3, 1e3])
@pytest.mark.parametrize("prior", [UNIFORM, BETA], ids=lambda p: str(p["name"]))
@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_a_saturated_latent_has_a_finite_loss_and_a_gradient_back(
    location: float, prior: dict[str, Any], posterior: str
) -> None:
    at = point(3, prior, posterior=posterior, gamma=1e3)
    model = vae.build(at)
    flat = random_members(at, [0]).float()
    bias = model.layout.views(flat)["encoder.1.bias"]
    bias[:, :3] = location
    weights = {name: view.requires_grad_() for name, view in model.layout.views(flat).items()}
    x, noise = normal(1, 3, 64).float(), normal(1, 3, 64, seed=1).float()
    loss = model.elbo(weights, x, noise).neg_elbo.sum()
    [gradient] = torch.autograd.grad(loss, weights["encoder.1.bias"])
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[:, :3].sign() == math.copysign(1, location)).all()
