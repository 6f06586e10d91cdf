"""The VAE of an ensemble: ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), p(x|z) = N(g(z), gamma^-2 I).

One posterior sample estimates the first term and, unless it has a closed form that is asked for, E_q[log p(z)]; the
posterior's entropy is exact. Each member's gamma is one of its weights, ``log_gamma``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imavae.config.data import SyntheticData
from imavae.config.settings import NETWORKS, RunConfig, support
from imavae.data import dataset
from imavae.data.mixings import Mixing, moved
from imavae.model.networks import Layout, Network, Weights
from imavae.model.networks.mlp import MLP
from imavae.model.priors import Prior, Theta

GAMMA = "log_gamma"


class Posterior(NamedTuple):
    """A Gaussian over y."""

    mean: Float[Tensor, "member d batch"]
    log_square: Float[Tensor, "member d batch"]  # log L_kk^2: the log-variance, if diagonal
    below: Float[Tensor, "member r batch"] | None  # L below its diagonal, row by row; None: diagonal

    def sample(self, noise: Float[Tensor, "member d batch"]) -> Float[Tensor, "member d batch"]:
        """The sample y = mu + L noise, for standard normal noise."""
        y = torch.addcmul(self.mean, (0.5 * self.log_square).exp(), noise)
        if self.below is None:
            return y
        return y + torch.stack([(row * noise[:, : row.shape[1]]).sum(1) for row in self._rows()], 1)

    def entropy(self) -> Float[Tensor, "member d batch"]:
        """In nats; its sum over d is the posterior's: log det L L^T = sum_k log L_kk^2."""
        return 0.5 * self.log_square + 0.5 * (1 + math.log(2 * math.pi))

    def variance(self) -> Float[Tensor, "member d batch"]:
        """Of each component: the diagonal of L L^T."""
        diagonal = self.log_square.exp()
        if self.below is None:
            return diagonal
        return diagonal + torch.stack([row.square().sum(1) for row in self._rows()], 1)

    def _rows(self) -> list[Tensor]:
        """The rows of L below the diagonal: (member, k, batch) for k = 0, ..., d - 1."""
        assert self.below is not None  # noqa: S101  -- for the type checker
        return list(torch.split(self.below, list(range(self.mean.shape[1])), dim=1))


def encoding_size(dim: int, kind: str) -> int:
    """Numbers that an encoder must give for a ``diagonal`` or ``full`` covariance."""
    return 2 * dim + (dim * (dim - 1) // 2 if kind == "full" else 0)


def from_encoding(encoding: Float[Tensor, "member e batch"], dim: int) -> Posterior:
    """The posterior that an encoder's output stands for."""
    below = encoding[:, 2 * dim :] if encoding.shape[1] > 2 * dim else None
    return Posterior(encoding[:, :dim], encoding[:, dim : 2 * dim], below)


class Elbo(NamedTuple):
    """Per member: averages over the batch, sums over dimensions, in nats."""

    neg_elbo: Float[Tensor, " member"]
    kl: Float[Tensor, " member"]
    log_px_z: Float[Tensor, " member"]


@dataclass(frozen=True)
class TrueDecoder(Network):
    """The mixing itself, which takes latents for sources: only the encoder is left to train."""

    mixing: Mixing

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """It has no weights."""
        return {}

    def __call__(self, weights: Weights, x: Float[Tensor, "member i batch"]) -> Float[Tensor, "member o batch"]:
        """Observations of latents."""
        members, dim, batch = x.shape
        rows = self.mixing.forward(x.transpose(1, 2).reshape(-1, dim).double())
        return rows.to(x.dtype).view(members, batch, -1).transpose(1, 2)

    def jacobian(
        self, weights: Weights, x: Float[Tensor, "member i batch"]
    ) -> tuple[Float[Tensor, "member o batch"], Float[Tensor, "member o i batch"]]:
        """Observations, and the mixing's own Jacobian."""
        members, dim, batch = x.shape
        rows = self.mixing.jacobian(x.transpose(1, 2).reshape(-1, dim).double())
        return self(weights, x), rows.to(x.dtype).view(members, batch, -1, dim).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class VAE:
    """An architecture: the networks, the prior and where the weights lie. It holds no weights itself."""

    dim: int  # of latents; observations may have more
    encoder: Network
    decoder: Network
    prior: Prior
    prior_network: MLP | None = None  # of a conditional prior: from the segment, one-hot, to the parameters' offsets
    learned_prior: bool = False
    analytic: bool = False  # whether the KL divergence is taken in closed form
    full: bool = False  # whether the posterior has a full covariance

    @functools.cached_property
    def layout(self) -> Layout:
        """Where each weight lies in a member's flat row."""
        shapes = self.encoder.shapes | self.decoder.shapes
        if self.prior_network is not None:
            shapes |= self.prior_network.shapes
        if self.learned_prior:
            shapes["prior.offset"] = (len(self.prior.free), self.dim)
        return Layout({**shapes, GAMMA: ()})

    @functools.cached_property
    def _start(self) -> Theta:
        return tuple(torch.tensor(value, dtype=torch.float64) for value in self.prior.start)  # 0-dim: any device, dtype

    def theta(self, weights: Weights, u: Int[Tensor, "member batch"] | None) -> Theta:
        """The prior's parameters: (), (member, d, 1) or (member, d, batch), by the segments ``u``."""
        if self.learned_prior:
            offset = weights["prior.offset"]
            free = {index: offset[:, i, :, None] for i, index in enumerate(self.prior.free)}
            return tuple(start + free[i] if i in free else start for i, start in enumerate(self._start))
        if self.prior_network is None:
            return self._start
        if u is None:
            raise ValueError("a conditional prior needs segments")
        members, segments = len(u), self.prior_network.sizes[0]
        one_hot = torch.eye(segments, dtype=weights[GAMMA].dtype, device=u.device).expand(members, -1, -1)
        table = self.prior_network(weights, one_hot)  # (member, parameter, segment): every segment, once
        offsets = torch.split(table.gather(2, u[:, None].expand(-1, table.shape[1], -1)), self.dim, dim=1)
        return tuple(start + offset for start, offset in zip(self._start, offsets, strict=True))

    def posterior(self, weights: Weights, x: Float[Tensor, "member o batch"]) -> Posterior:
        """q(y|x)."""
        return from_encoding(self.encoder(weights, x), self.dim)

    def elbo(
        self,
        weights: Weights,
        x: Float[Tensor, "member o batch"],
        noise: Float[Tensor, "member d batch"],
        u: Int[Tensor, "member batch"] | None = None,
    ) -> Elbo:
        """The ELBO with beta = 1, from one posterior sample made of standard normal ``noise``."""
        q = self.posterior(weights, x)
        return self.elbo_at(weights, x, q, q.sample(noise), self.theta(weights, u))

    def elbo_at(
        self,
        weights: Weights,
        x: Float[Tensor, "member o batch"],
        q: Posterior,
        y: Float[Tensor, "member d batch"],
        theta: Theta,
    ) -> Elbo:
        """The ELBO at a posterior sample ``y`` that is already there; ``theta`` is as :meth:`theta` gives it, 0-dim or
        (member, d, batch).
        """
        observed, batch = x.shape[1:]
        if self.analytic:
            log_prior = self.prior.expected_log_prob(q.mean, q.variance(), theta)
        else:
            log_prior = self.prior.log_prob(y, theta)
        kl = -(q.entropy() + log_prior).sum((1, 2)) / batch
        error = (x - self.decoder(weights, self.prior.latent(y))).square().sum((1, 2)) / batch
        log_gamma = weights[GAMMA]
        log_px_z = -0.5 * (2 * log_gamma).exp() * error + observed * (log_gamma - 0.5 * math.log(2 * math.pi))
        return Elbo(kl - log_px_z, kl, log_px_z)


def build(config: RunConfig, device: torch.device | str = "cpu") -> VAE:
    """The architecture that ``config`` names; a true decoder's mixing rests on ``device``."""
    model, dim, observed = config.model, config.data.dim, config.data.observed
    inner = (model.n_layers, model.hidden_factor * dim)
    outer = (model.encoder.n_layers or model.n_layers, (model.encoder.hidden_factor or model.hidden_factor) * dim)
    prior: Prior = model.prior.build(support(config))
    network = NETWORKS[model.name]()
    parameters, segments = getattr(model.prior, "parameters", "fixed"), config.data.n_segments
    conditional = (segments, inner[1], len(prior.start) * dim)
    if model.decoder == "mixing" and isinstance(config.data, SyntheticData):
        decoder: Network = TrueDecoder(moved(dataset.world(config.data).mixing, device))
    else:
        decoder = network.build("decoder", dim, observed, inner, model)
    return VAE(
        dim=dim,
        encoder=network.build("encoder", observed, encoding_size(dim, model.posterior), outer, model),
        decoder=decoder,
        prior=prior,
        prior_network=MLP("prior", conditional, "tanh") if parameters == "conditional" else None,
        learned_prior=parameters == "learned",
        analytic=model.kl == "analytic",
        full=model.posterior == "full",
    )


def torch_dtype(config: RunConfig) -> torch.dtype:
    """The floating-point type that ``config`` trains in."""
    return torch.float64 if config.training.dtype == "float64" else torch.float32
