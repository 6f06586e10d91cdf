"""The VAE of an ensemble: ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), p(x|z) = N(g(z), gamma^-2 I).

The posterior is q(y|x) = N(mu(x), L L^T) in the unconstrained coordinate y, L diagonal or lower triangular; z(y) pushes
it onto the prior's support. One posterior sample estimates E_q[log p(x|z)] and, unless its closed form is asked for,
E_q[log p(z)]; the posterior's entropy is exact. Shapes are (member, feature, batch). An encoder's output holds mu,
log L_kk^2 and, for a full covariance, the rows of L below its diagonal. Each member's gamma is a weight, ``log_gamma``.
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
from imavae.model.networks import MLP, Invertible, Layout, Network, Passed, Weights
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
        """Entropy in nats; its sum over d is the posterior's: log det L L^T = sum_k log L_kk^2."""
        return 0.5 * self.log_square + 0.5 * (1 + math.log(2 * math.pi))

    def variance(self) -> Float[Tensor, "member d batch"]:
        """Variance of each component: the diagonal of L L^T."""
        diagonal = self.log_square.exp()
        if self.below is None:
            return diagonal
        return diagonal + torch.stack([row.square().sum(1) for row in self._rows()], 1)

    def _rows(self) -> list[Tensor]:
        """The rows of L below the diagonal: (member, k, batch) for k = 0, ..., d - 1."""
        assert self.below is not None  # noqa: S101  -- for the type checker
        return list(torch.split(self.below, list(range(self.mean.shape[1])), dim=1))


def encoding_size(dim: int, kind: str) -> int:
    """Number of outputs of an encoder for a ``diagonal`` or ``full`` covariance."""
    return 2 * dim + (dim * (dim - 1) // 2 if kind == "full" else 0)


def from_encoding(encoding: Float[Tensor, "member e batch"], dim: int) -> Posterior:
    """The posterior from an encoder's output."""
    below = encoding[:, 2 * dim :] if encoding.shape[1] > 2 * dim else None
    return Posterior(encoding[:, :dim], encoding[:, dim : 2 * dim], below)


class Elbo(NamedTuple):
    """Per member: averages over the batch, sums over dimensions, in nats."""

    neg_elbo: Float[Tensor, " member"]
    kl: Float[Tensor, " member"]
    log_px_z: Float[Tensor, " member"]


@dataclass(frozen=True)
class TrueDecoder(Network):
    """The true mixing as the decoder, with latents for sources: only the encoder is trained."""

    mixing: Mixing

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {}

    def __call__(self, weights: Weights, x: Float[Tensor, "member i n"]) -> Float[Tensor, "member o n"]:
        members, dim, batch = x.shape
        rows = self.mixing.forward(x.transpose(1, 2).reshape(-1, dim).double())
        return rows.to(x.dtype).view(members, batch, -1).transpose(1, 2)

    def jacobian(
        self, weights: Weights, x: Float[Tensor, "member i n"]
    ) -> tuple[Float[Tensor, "member o n"], Float[Tensor, "member o i n"]]:
        members, dim, batch = x.shape
        rows = self.mixing.jacobian(x.transpose(1, 2).reshape(-1, dim).double())
        return self(weights, x), rows.to(x.dtype).view(members, batch, -1, dim).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class VAE:
    """An architecture: the networks, the prior and the layout of the weights. It holds no weights."""

    dim: int  # of latents; observations may have more
    encoder: Network
    decoder: Network
    prior: Prior
    prior_network: MLP | None = None  # of a conditional prior: from the segment, one-hot, to the parameters' offsets
    learned_prior: bool = False
    analytic: bool = False  # True: the KL divergence in closed form

    @functools.cached_property
    def layout(self) -> Layout:
        """Positions of the weights in a member's flat row."""
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
        one_hot = torch.eye(segments, dtype=weights["prior.0.weight"].dtype, device=u.device).expand(members, -1, -1)
        table = self.prior_network(weights, one_hot)  # (member, parameter, segment): every segment, once
        offsets = torch.split(table.gather(2, u[:, None].expand(-1, table.shape[1], -1)), self.dim, dim=1)
        return tuple(start + offset for start, offset in zip(self._start, offsets, strict=True))

    def posterior(self, weights: Weights, x: Float[Tensor, "member o n"]) -> Posterior:
        """q(y|x)."""
        return from_encoding(self.encoder(weights, x), self.dim)

    def elbo(
        self,
        weights: Weights,
        x: Float[Tensor, "member o n"],
        noise: Float[Tensor, "member d batch"],
        u: Int[Tensor, "member batch"] | None = None,
    ) -> Elbo:
        """The ELBO with beta = 1, from one posterior sample made of standard normal ``noise``."""
        q = self.posterior(weights, x)
        return self.elbo_at(weights, x, q, q.sample(noise), self.theta(weights, u))

    def objective(
        self,
        weights: Weights,
        x: Float[Tensor, "member o n"],
        noise: Float[Tensor, "member d batch"],
        u: Int[Tensor, "member batch"] | None,
        contrast: bool,
    ) -> tuple[Elbo, Float[Tensor, " member"] | float]:
        """The terms of the training loss: the ELBO's, and the decoder's mean contrast at posterior samples if asked."""
        q = self.posterior(weights, x)
        y = q.sample(noise)
        elbo = self.elbo_at(weights, x, q, y, self.theta(weights, u))
        if not contrast:
            return elbo, 0.0
        _, jacobian = self.decoder.jacobian(weights, self.prior.latent(y))
        return elbo, local_contrast(jacobian).mean(1)

    def elbo_at(
        self,
        weights: Weights,
        x: Float[Tensor, "member o n"],
        q: Posterior,
        y: Float[Tensor, "member d batch"],
        theta: Theta,
    ) -> Elbo:
        """The ELBO at a given posterior sample ``y``; ``theta`` is 0-dim or (member, d, batch)."""
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


def local_contrast(jacobian: Float[Tensor, "member o d batch"]) -> Float[Tensor, "member batch"]:
    """Contrast c_IMA = sum_k log(|J_k| / |r_k|), where r_k is the part of column k orthogonal to the columns before it.

    For the loss, in its dtype: where r_k is only rounding, its gradient is zero. ``metrics.ima`` has the exact one.
    """
    tiny, smallest = torch.finfo(jacobian.dtype).tiny, torch.finfo(jacobian.dtype).eps ** 2
    units: list[Tensor] = []  # orthonormal, by modified Gram-Schmidt
    total = torch.zeros_like(jacobian[:, 0, 0])
    for column in jacobian.unbind(2):
        rest = column / column.square().sum(1, keepdim=True).clamp_min(tiny).sqrt()
        for unit in units:
            rest = rest - unit * (unit * rest).sum(1, keepdim=True)
        square = rest.square().sum(1, keepdim=True).clamp_min(smallest)
        total = total - 0.5 * square[:, 0].log()
        units.append(rest / square.sqrt())
    return total


@dataclass(frozen=True)
class Inverse(Network):
    """A flow's decoder: from latents on the prior's support to observations."""

    flow: Invertible
    prior: Prior

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.flow.shapes

    def __call__(self, weights: Weights, x: Float[Tensor, "member i n"]) -> Float[Tensor, "member o n"]:
        return self.flow.inverse(weights, self.prior.unconstrained(x))

    def jacobian(
        self, weights: Weights, x: Float[Tensor, "member i n"]
    ) -> tuple[Float[Tensor, "member o n"], Float[Tensor, "member o i n"]]:
        y = self.prior.unconstrained(x)
        outputs = self.flow.inverse(weights, y)
        jacobian = self.flow.passed(weights, outputs, columns=True).inverse_jacobian
        assert jacobian is not None  # noqa: S101  -- asked for
        return outputs, jacobian / self.prior.slope(y)[:, None]


@dataclass(frozen=True)
class Flow(VAE):
    """Maximum likelihood: log p(x) = Σ_k log p(y_k) + log |det J_h|, y = h(x), with a network h that has an inverse.

    It takes the place of a VAE whose posterior has no width: ``neg_elbo`` is -log p(x), and a contrast in the loss is
    that of h's inverse. A bounded prior's latents are z(y), whose coordinates are those of y, each bent: neither the
    likelihood nor the contrast depends on that.
    """

    encoder: Invertible

    @functools.cached_property
    def layout(self) -> Layout:
        """Without a gamma."""
        shapes = super().layout.shapes
        return Layout({name: shape for name, shape in shapes.items() if name != GAMMA})

    def posterior(self, weights: Weights, x: Float[Tensor, "member o n"]) -> Posterior:
        """All of its mass is at h(x)."""
        y = self.encoder(weights, x)
        return Posterior(y, torch.full_like(y, -torch.inf), None)

    def objective(
        self,
        weights: Weights,
        x: Float[Tensor, "member o n"],
        noise: Float[Tensor, "member d batch"],
        u: Int[Tensor, "member batch"] | None,
        contrast: bool,
    ) -> tuple[Elbo, Float[Tensor, " member"] | float]:
        """The likelihood's terms and the contrast, from one pass."""
        passed = self.encoder.passed(weights, x, contrast)
        elbo = self._likelihood(passed, self.theta(weights, u))
        return elbo, 0.0 if passed.contrast is None else passed.contrast.mean(1)

    def elbo_at(
        self,
        weights: Weights,
        x: Float[Tensor, "member o n"],
        q: Posterior,
        y: Float[Tensor, "member d batch"],
        theta: Theta,
    ) -> Elbo:
        """The log-likelihood of ``x``, whatever ``q`` and ``y``."""
        return self._likelihood(self.encoder.passed(weights, x), theta)

    def _likelihood(self, passed: Passed, theta: Theta) -> Elbo:
        cross_entropy = -self.prior.log_prob(passed.y, theta).sum((1, 2)) / passed.y.shape[2]
        log_det = passed.log_det.mean(1)
        return Elbo(cross_entropy - log_det, cross_entropy, log_det)


def build(config: RunConfig, device: torch.device | str = "cpu") -> VAE:
    """The architecture of ``config``; a true decoder's mixing is on ``device``."""
    model, dim, observed = config.model, config.latents, config.data.features
    inner = (model.n_layers, model.hidden_factor * dim)
    outer = (model.encoder.n_layers or model.n_layers, (model.encoder.hidden_factor or model.hidden_factor) * dim)
    prior: Prior = model.prior.build(support(config))
    network = NETWORKS[model.name]()
    parameters, segments = getattr(model.prior, "parameters", "fixed"), config.data.n_segments
    conditional = (segments, inner[1], len(prior.start) * dim)
    encoder = network.build("encoder", observed, encoding_size(dim, model.posterior), outer, model)
    if model.decoder == "mixing" and isinstance(config.data, SyntheticData):
        f = dataset.turned(dataset.world(config.data).mixing, model.automorphism, config.data.source)
        decoder: Network = TrueDecoder(moved(f, device))
    elif network.invertible:
        decoder = Inverse(encoder, prior)
    else:
        decoder = network.build("decoder", dim, observed, inner, model)
    return (Flow if network.invertible else VAE)(
        dim=dim,
        encoder=encoder,
        decoder=decoder,
        prior=prior,
        prior_network=MLP("prior", conditional, "tanh") if parameters == "conditional" else None,
        learned_prior=parameters == "learned",
        analytic=model.kl == "analytic",
    )


def torch_dtype(config: RunConfig) -> torch.dtype:
    """Dtype of weights and data."""
    return torch.float64 if config.training.dtype == "float64" else torch.float32
