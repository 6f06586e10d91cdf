"""Priors p(z), written in the unconstrained coordinate y that the posterior lives in.

A bounded prior's latent is z = low + (high - low) sigmoid(y). The KL divergence is invariant under that bijection, so
the density of y, log p(y) = log p(z(y)) + log |dz/dy|, is all that the ELBO needs, and it is stable where p(z(y)) is
not: a uniform z makes y standard logistic, log p(y) = y - 2 log(1 + e^y), whatever the support.

A prior's parameters are given to each function, as tensors that broadcast against y (member, latent, batch): they may
be fixed, learned per member, or depend on the segment. They are kept in a form that any real number is valid in
(logarithms of scales and shapes).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor
from torch.nn.functional import softplus

from imavae.config.variants import BetaPrior, GaussianPrior, LaplacePrior, PriorSettings, UniformPrior
from imavae.errors import UserError

Theta = tuple[Tensor, ...]
Interval = tuple[float, float]
LINE = (-math.inf, math.inf)


class Prior(ABC):
    """Independent latents of one family; every function acts on each component alone.

    ``support`` is the interval that a latent lives on; ``start`` holds the parameters' values in their unconstrained
    form, and ``free`` the positions of those that can be learned (a location is not: the encoder absorbs any shift).
    """

    support: Interval = LINE
    start: tuple[float, ...] = ()
    free: tuple[int, ...] = ()

    @abstractmethod
    def log_prob(self, y: Tensor, theta: Theta) -> Tensor:
        """The log-density log p(y), in nats, with the log-determinant of z(y) in it."""

    @abstractmethod
    def curvature(self, y: Tensor, theta: Theta) -> Tensor:
        """-(log p)''(y)."""

    @abstractmethod
    def variance(self, theta: Theta) -> Tensor:
        """Variance of a latent z."""

    @abstractmethod
    def cdf(self, z: Tensor, theta: Theta) -> Tensor:
        """P(latent <= z)."""

    def score(self, y: Tensor, theta: Theta) -> Tensor:
        """(log p)'(y); a prior that has it trains faster, see training/gradient.py."""
        raise NotImplementedError

    def expected_log_prob(self, mean: Tensor, variance: Tensor, theta: Theta) -> Tensor:
        """E[log p(y)] for a Gaussian y, in closed form; only where there is one."""
        raise NotImplementedError

    def latent(self, y: Tensor) -> Tensor:
        """z(y), on the prior's support."""
        low, high = self.support
        return y if math.isinf(high) else low + (high - low) * torch.sigmoid(y)

    def slope(self, y: Tensor) -> Tensor:
        """dz/dy."""
        low, high = self.support
        # s(-y), not 1 - s(y): no cancellation at large y
        return torch.ones_like(y) if math.isinf(high) else (high - low) * torch.sigmoid(y) * torch.sigmoid(-y)

    def together(self, y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        """z(y), dz/dy and the score, for a gradient that is written out; bounded priors need one sigmoid for all."""
        return self.latent(y), self.slope(y), self.score(y, theta)

    def _scaled(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Latent and slope from s = sigmoid(y): s - s^2 cancels at large y, where no gradient comes through."""
        low, high = self.support
        return (s * (high - low)).add_(low), torch.addcmul(s, s, s, value=-1).mul_(high - low)


@dataclass(frozen=True)
class Uniform(Prior):
    """z ~ U(low, high)."""

    support: Interval

    def log_prob(self, y: Tensor, theta: Theta) -> Tensor:
        # = logsigmoid(y) + logsigmoid(-y), in one call; softplus's own threshold, 20, is off by 2e-9 there
        return y - 2 * softplus(y, threshold=40)

    def score(self, y: Tensor, theta: Theta) -> Tensor:
        return 1 - 2 * torch.sigmoid(y)

    def together(self, y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        s = torch.sigmoid(y)
        return *self._scaled(s), s.mul_(-2).add_(1)

    def curvature(self, y: Tensor, theta: Theta) -> Tensor:
        return 2 * torch.sigmoid(y) * torch.sigmoid(-y)

    def variance(self, theta: Theta) -> Tensor:
        return torch.tensor((self.support[1] - self.support[0]) ** 2 / 12, dtype=torch.float64)

    def cdf(self, z: Tensor, theta: Theta) -> Tensor:
        return ((z - self.support[0]) / (self.support[1] - self.support[0])).clamp(0, 1)


@dataclass(frozen=True)
class Beta(Prior):
    """(z - low) / (high - low) ~ Beta(alpha, beta); theta = (log alpha, log beta)."""

    support: Interval
    start: tuple[float, ...]
    free: tuple[int, ...] = (0, 1)

    def log_prob(self, y: Tensor, theta: Theta) -> Tensor:
        # alpha log s(y) + beta log s(-y), with log s(y) = -softplus(-y) and log s(-y) = -y - softplus(-y)
        alpha, beta = (t.exp() for t in theta)
        normaliser = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
        return -(alpha + beta) * softplus(-y, threshold=40) - beta * y - normaliser

    def score(self, y: Tensor, theta: Theta) -> Tensor:
        alpha, beta = (t.exp() for t in theta)
        return (alpha + beta) * torch.sigmoid(-y) - beta

    def together(self, y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        s, (alpha, beta) = torch.sigmoid(y), (t.exp() for t in theta)
        return *self._scaled(s), s.mul_(-(alpha + beta)).add_(alpha)

    def curvature(self, y: Tensor, theta: Theta) -> Tensor:
        return (theta[0].exp() + theta[1].exp()) * torch.sigmoid(y) * torch.sigmoid(-y)

    def variance(self, theta: Theta) -> Tensor:
        alpha, beta = (t.exp() for t in theta)
        total = alpha + beta
        return (self.support[1] - self.support[0]) ** 2 * alpha * beta / (total.square() * (total + 1))

    def cdf(self, z: Tensor, theta: Theta) -> Tensor:
        from scipy.special import betainc

        share = ((z - self.support[0]) / (self.support[1] - self.support[0])).clamp(0, 1)
        values = betainc(*(t.double().cpu().numpy() for t in (theta[0].exp(), theta[1].exp(), share)))
        return torch.as_tensor(values, dtype=z.dtype, device=z.device)


@dataclass(frozen=True)
class Gaussian(Prior):
    """z = y ~ N(mean, std^2); theta = (mean, log std)."""

    start: tuple[float, ...]
    free: tuple[int, ...] = (1,)

    def log_prob(self, y: Tensor, theta: Theta) -> Tensor:
        mean, log_std = theta
        return -0.5 * ((y - mean) * (-log_std).exp()).square() - log_std - 0.5 * math.log(2 * math.pi)

    def score(self, y: Tensor, theta: Theta) -> Tensor:
        return (theta[0] - y) * (-2 * theta[1]).exp()

    def expected_log_prob(self, mean: Tensor, variance: Tensor, theta: Theta) -> Tensor:
        spread = variance * (-2 * theta[1]).exp()
        return self.log_prob(mean, theta) - 0.5 * spread

    def curvature(self, y: Tensor, theta: Theta) -> Tensor:
        return torch.ones_like(y) * (-2 * theta[1]).exp()

    def variance(self, theta: Theta) -> Tensor:
        return (2 * theta[1]).exp()

    def cdf(self, z: Tensor, theta: Theta) -> Tensor:
        return 0.5 * torch.erfc(-(z - theta[0]) * (-theta[1]).exp() / math.sqrt(2))


@dataclass(frozen=True)
class Laplace(Prior):
    """z = y, p(y) = exp(-|y - mean| / scale) / (2 scale); theta = (mean, log scale)."""

    start: tuple[float, ...]
    free: tuple[int, ...] = (1,)

    def log_prob(self, y: Tensor, theta: Theta) -> Tensor:
        mean, log_scale = theta
        return -(y - mean).abs() * (-log_scale).exp() - log_scale - math.log(2)

    def score(self, y: Tensor, theta: Theta) -> Tensor:
        return (theta[0] - y).sign() * (-theta[1]).exp()

    def expected_log_prob(self, mean: Tensor, variance: Tensor, theta: Theta) -> Tensor:
        # The mean of |N(m, v)|, a folded normal: sqrt(2 v / pi) exp(-m^2 / 2v) + m erf(m / sqrt(2 v)).
        away, std = mean - theta[0], variance.sqrt()
        ratio = away / (math.sqrt(2) * std)
        distance = math.sqrt(2 / math.pi) * std * (-ratio.square()).exp() + away * torch.erf(ratio)
        return -distance * (-theta[1]).exp() - theta[1] - math.log(2)

    def curvature(self, y: Tensor, theta: Theta) -> Tensor:
        return torch.zeros_like(y)  # but at the mean, where there is none

    def variance(self, theta: Theta) -> Tensor:
        return 2 * (2 * theta[1]).exp()

    def cdf(self, z: Tensor, theta: Theta) -> Tensor:
        t = (z - theta[0]) * (-theta[1]).exp()
        return torch.where(t < 0, 0.5 * t.clamp_max(0).exp(), 1 - 0.5 * (-t.clamp_min(0)).exp())


@singledispatch
def build(settings: PriorSettings, support: Interval) -> Prior:
    """The prior that settings describe; a bounded one takes ``support``, the interval of :func:`config.support`.

    Raises:
        UserError: a person's own settings that have no ``build(support)``.
    """
    own = getattr(settings, "build", None)
    if own is None:
        raise UserError(
            f"`{type(settings).__name__} has a method build(support)` must hold, but it has none; "
            "add one that returns an imavae.model.priors.Prior"
        )
    prior: Prior = own(support)
    return prior


@build.register
def _(settings: UniformPrior, support: Interval) -> Prior:  # noqa: ARG001  -- it is the support alone
    return Uniform(support)


@build.register
def _(settings: BetaPrior, support: Interval) -> Prior:
    return Beta(support, (math.log(settings.alpha), math.log(settings.beta)))


@build.register
def _(settings: GaussianPrior, support: Interval) -> Prior:  # noqa: ARG001  -- the whole line
    return Gaussian((settings.mean, math.log(settings.std)))


@build.register
def _(settings: LaplacePrior, support: Interval) -> Prior:  # noqa: ARG001  -- the whole line
    return Laplace((settings.mean, math.log(settings.scale)))
