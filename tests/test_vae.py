"""The ELBO: what torch.distributions says, the evidence where the posterior is exact, and never above it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Distribution,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

from imavae.config import RunConfig, run_config
from imavae.data import dataset
from imavae.model import vae
from imavae.model.export import Model
from imavae.model.posterior import from_encoding
from imavae.training.ensemble import ensemble, initial_state, train_epoch
from tests.helpers import GAUSSIAN, UNIFORM, exact_neg_log_px, normal, plain_model, point, random_members

POINTS = [
    point(3, UNIFORM),
    point(2, {"name": "uniform", "low": 1.0, "high": 4.0}, n_layers=3, gamma=20.0),
    point(5, GAUSSIAN),
    point(2, {"name": "gaussian", "std": 2.0}, n_layers=1, gamma=0.5),
]
each_point = pytest.mark.parametrize("at", POINTS, ids=lambda p: f"{p.data.dim}-{p.model.prior}")


def stacked_elbo(at: RunConfig, flat: Tensor, x: Tensor, noise: Tensor) -> vae.Elbo:
    """Of observations (member, d, batch)."""
    model = vae.build(at)
    gamma = torch.full((len(flat),), at.model.gamma, dtype=torch.float64)
    return model.elbo(model.layout.views(flat), gamma, x, noise)


def neg_elbo_per_point(at: RunConfig, row: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """One member's neg_elbo of each row of ``x``: every point is a batch of its own."""
    return stacked_elbo(at, row.expand(len(x), -1), x[..., None], noise[..., None]).neg_elbo


def obvious_elbo(model: Model, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """KL and reconstruction term of each point, in the latent's own coordinate, by torch.distributions. Its KL has
    log q at the sample; the entropy's expectation is put in its place.
    """
    mean, std = model.posterior(x)
    prior: Any = model.config.model.prior
    q: Distribution = Normal(mean, std)
    if prior.name == "gaussian":
        p: Distribution = Normal(torch.full_like(mean, prior.mean), prior.std)
        z = mean + std * noise
    else:
        low, high = model.prior.support
        to_support = [SigmoidTransform(), AffineTransform(low, high - low)]
        q = TransformedDistribution(q, to_support)
        p = Uniform(torch.full_like(mean, low), high)
        z = to_support[1](to_support[0](mean + std * noise))
    log_q = q.log_prob(z) + 0.5 * (noise.square() - 1)  # E[noise²] = 1
    likelihood: Distribution = Normal(model.decode(z), 1 / model.gamma)
    return (log_q - p.log_prob(z)).sum(1), likelihood.log_prob(x).sum(1)


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


@pytest.mark.parametrize("at", POINTS[2:], ids=lambda p: f"{p.data.dim}-{p.model.prior}")
def test_kl_tends_to_its_closed_form(at: RunConfig) -> None:
    dim, n, prior = at.data.dim, 20_000, at.model.prior
    assert prior.name == "gaussian"
    flat, x = random_members(at, [4]), normal(1, dim, 1).expand(-1, -1, n)
    mean, std = plain_model(at, flat[0]).posterior(x[0, :, :1].T)
    exact = torch.distributions.kl_divergence(Normal(mean, std), Normal(prior.mean, prior.std)).sum()
    noise = normal(n, dim, seed=3)
    kl = stacked_elbo(at, flat.expand(n, -1), x[0].T[..., None], noise[..., None]).kl
    assert abs(float(kl.mean() - exact)) < 4 * float(kl.std()) / math.sqrt(n)


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
    world, members = dataset.make(at.data, torch.float64), ensemble([at], "cpu")
    state = initial_state(members)
    exact, x = exact_neg_log_px(at.data, world, world.val), world.val.observations
    gaps = []
    for epochs in (0, 4, 20):
        for _ in range(epochs):
            train_epoch(members, state, world.train.observations)
        for row in state.weights.detach():
            difference = neg_elbo_per_point(at, row, x, normal(*x.shape, seed=6)) - exact
            assert float(difference.mean()) > -4 * float(difference.std()) / math.sqrt(len(x))
            gaps.append(float(difference.mean()))
    assert max(gaps[-2:]) < min(gaps[:2])  # training closes the gap
    if name == "rotation":
        assert min(gaps[-2:]) < 0.3  # and here it can be closed nearly: the bound is not met by being loose


@each_point
def test_samples_have_the_posteriors_mean_deviation_and_entropy(at: RunConfig) -> None:
    dim, n = at.data.dim, 20_000
    posterior = from_encoding(normal(1, 2 * dim, 1))
    y = posterior.sample(normal(1, dim, n, seed=7))
    error = (0.5 * posterior.log_variance).exp() / math.sqrt(n)
    assert ((y.mean(2, keepdim=True) - posterior.mean).abs() < 5 * error).all()
    assert ((y.std(2, keepdim=True) * n**-0.5 / error - 1).abs() < 5 / math.sqrt(2 * n)).all()
    expected: Distribution = Normal(posterior.mean, (0.5 * posterior.log_variance).exp())
    torch.testing.assert_close(posterior.entropy(), expected.entropy())


@pytest.mark.parametrize("location", [-1e3, 1e3])
def test_a_saturated_latent_has_a_finite_loss_and_a_gradient_back(location: float) -> None:
    at = point(3, UNIFORM, gamma=1e3)
    model = vae.build(at)
    flat = random_members(at, [0]).float()
    bias = model.layout.views(flat)["encoder.1.bias"]
    bias[:, :3] = location
    weights = {name: view.requires_grad_() for name, view in model.layout.views(flat).items()}
    x, noise = normal(1, 3, 64).float(), normal(1, 3, 64, seed=1).float()
    loss = model.elbo(weights, torch.tensor([1e3]), x, noise).neg_elbo.sum()
    [gradient] = torch.autograd.grad(loss, weights["encoder.1.bias"])
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[:, :3].sign() == math.copysign(1, location)).all()
