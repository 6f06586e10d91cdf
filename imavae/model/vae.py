"""The VAE of an ensemble: ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), p(x|z) = N(g(z), gamma^-2 I).

One posterior sample estimates the first term and E_q[log p(z)]; the posterior's entropy is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from imavae.config import RunConfig
from imavae.model import priors
from imavae.model.networks import MLP, Layout, Weights
from imavae.model.posterior import Posterior, from_encoding


class Elbo(NamedTuple):
    """Per member: averages over the batch, sums over dimensions, in nats."""

    neg_elbo: Float[Tensor, " member"]
    kl: Float[Tensor, " member"]
    log_px_z: Float[Tensor, " member"]


@dataclass(frozen=True)
class VAE:
    """An architecture: the networks, the prior and where the weights lie. It holds no weights itself."""

    encoder: MLP
    decoder: MLP
    prior: priors.Prior

    @property
    def layout(self) -> Layout:
        """Where each weight lies in a member's flat row."""
        return Layout(self.encoder.shapes | self.decoder.shapes)

    def posterior(self, weights: Weights, x: Float[Tensor, "member d batch"]) -> Posterior:
        """q(y|x)."""
        return from_encoding(self.encoder(weights, x))

    def elbo(
        self,
        weights: Weights,
        gamma: Float[Tensor, " member"],
        x: Float[Tensor, "member d batch"],
        noise: Float[Tensor, "member d batch"],
    ) -> Elbo:
        """The ELBO with beta = 1, from one posterior sample made of standard normal ``noise``."""
        posterior = self.posterior(weights, x)
        return self.elbo_at(weights, gamma, x, posterior, posterior.sample(noise))

    def elbo_at(
        self,
        weights: Weights,
        gamma: Float[Tensor, " member"],
        x: Float[Tensor, "member d batch"],
        posterior: Posterior,
        y: Float[Tensor, "member d batch"],
    ) -> Elbo:
        """The ELBO at a posterior sample ``y`` that is already there."""
        dim, batch = x.shape[1:]
        kl = -(posterior.entropy() + self.prior.log_prob(y)).sum((1, 2)) / batch
        error = (x - self.decoder(weights, self.prior.latent(y))).square().sum((1, 2)) / batch
        log_px_z = -0.5 * gamma.square() * error + dim * (gamma.log() - 0.5 * math.log(2 * math.pi))
        return Elbo(kl - log_px_z, kl, log_px_z)


def build(config: RunConfig) -> VAE:
    """The architecture that ``config`` names."""
    dim = config.data.dim
    hidden = (config.model.hidden_factor * dim,) * (config.model.n_layers - 1)
    return VAE(
        MLP("encoder", (dim, *hidden, 2 * dim), config.model.slope),
        MLP("decoder", (dim, *hidden, dim), config.model.slope),
        priors.build(config),
    )


def torch_dtype(config: RunConfig) -> torch.dtype:
    """The floating-point type that ``config`` trains in."""
    return torch.float64 if config.training.dtype == "float64" else torch.float32
