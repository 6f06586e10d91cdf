"""Likelihoods and gaps, on the linear Gaussian model, whose ELBO is known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from imavae import metrics
from tests.helpers import normal

GAMMA = 1e4


def log_px(mixing: Tensor, x: Tensor, gamma: float = float("inf")) -> Tensor:
    """Of x = A s, s ~ N(0, I), seen through N(x, γ⁻² I), at each row of x."""
    covariance = mixing @ mixing.T + torch.eye(len(mixing)) / gamma**2
    value: Tensor = MultivariateNormal(torch.zeros_like(mixing[0]), covariance).log_prob(x)  # type: ignore[no-untyped-call]
    return value


def neg_elbo(mixing: Tensor, x: Tensor) -> Tensor:
    """With the decoder A and the best diagonal encoder, of variances 1 / P_kk: the posterior's precision is
    P = I + γ² AᵀA, so KL(q ‖ p(z|x)) = ½ (Σ log P_kk − log det P).
    """
    precision = torch.eye(len(mixing)) + GAMMA**2 * mixing.T @ mixing
    kl = 0.5 * (precision.diagonal().log().sum() - torch.linalg.slogdet(precision).logabsdet)
    value: Tensor = kl - log_px(mixing, x, GAMMA).mean()
    return value


def test_the_elbo_of_the_true_decoder_tends_to_l_ima() -> None:
    for seed in range(3):
        mixing = normal(4, 4, seed=seed)
        x = normal(500, 4, seed=10 + seed) @ mixing.mT
        density, contrast = log_px(mixing, x), metrics.cima_pointwise(mixing.expand(500, 4, 4))
        found = metrics.likelihoods(density, contrast, float(neg_elbo(mixing, x)))
        assert found.log_px == pytest.approx(float(density.mean()))
        assert found.l_ima == pytest.approx(float(density.mean()) - contrast[0])
        assert found.gap_ima == pytest.approx(0, abs=1e-4)
        assert found.gap_log_px == pytest.approx(contrast[0], rel=1e-4, abs=1e-4)
        assert found.gap_log_px > 0.1
