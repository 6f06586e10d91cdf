"""Likelihoods and gaps, on the linear Gaussian model, whose ELBO is known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from imavae.metrics.ima import truth_contrast
from imavae.metrics.likelihood import likelihood
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
    mixings = normal(3, 4, 4)
    x = normal(500, 4, seed=1) @ mixings.mT
    densities = torch.stack([log_px(a, rows) for a, rows in zip(mixings, x, strict=True)])
    contrasts = truth_contrast(mixings[..., None]).expand(-1, 500)
    found = likelihood(densities, contrasts, torch.stack([neg_elbo(a, r) for a, r in zip(mixings, x, strict=True)]))
    torch.testing.assert_close(found.log_px, densities.mean(1))
    torch.testing.assert_close(found.l_ima, densities.mean(1) - contrasts[:, 0])
    torch.testing.assert_close(found.gap_ima, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.gap_log_px, contrasts[:, 0], rtol=1e-4, atol=1e-4)
    assert (found.gap_log_px > 0.1).all()


def test_one_world_serves_every_member_in_float64() -> None:
    density, contrast = normal(1, 50) + 14, normal(1, 50, seed=1).abs()
    loss = torch.tensor([-13.0, -10.0, torch.nan])
    found = likelihood(density, contrast, loss)
    mean, cima = float(density.mean()), float(contrast.mean())
    for values, expected in zip(found[:2], (mean, mean - cima), strict=True):
        assert values.tolist() == pytest.approx([expected] * 3, rel=1e-14)
    assert found.gap_log_px.tolist() == pytest.approx([mean - 13, mean - 10, torch.nan], rel=1e-12, nan_ok=True)
    assert found.gap_ima.tolist() == pytest.approx([mean - cima - 13, mean - cima - 10, torch.nan], nan_ok=True)
    assert {values.dtype for values in found} == {torch.float64}
