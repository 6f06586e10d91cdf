"""Exact likelihoods of a known mixing, and how far an ELBO lies below them.

log p(x) = log p(s) − log |det J_f(s)| with x = f(s), and the IMA-regularised log-likelihood
L_IMA(x) = log p(x) − c_IMA(f, s), which the ELBO of the true decoder tends to as gamma grows (Reizinger et al., NeurIPS
2022). All are means over the same points, in nats.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Float64
from torch import Tensor


class Likelihood(NamedTuple):
    """Per member; a gap is positive where the ELBO lies below."""

    log_px: Float64[Tensor, " member"]  # E[log p(x)]
    l_ima: Float64[Tensor, " member"]  # E[log p(x) − c_IMA(f, s)], never above log_px
    gap_log_px: Float64[Tensor, " member"]  # E[log p(x)] − ELBO, ≥ 0 but for the sampling of x and of the posterior
    gap_ima: Float64[Tensor, " member"]  # E[L_IMA] − ELBO, of either sign; → 0 for the true decoder


def likelihood(
    log_px: Float64[Tensor, "world n"],
    truth_contrast: Float64[Tensor, "world n"],
    neg_elbo: Float[Tensor, " member"],
) -> Likelihood:
    """The likelihoods of each member's world (one for all, or one per member), and the gaps of its ELBO to them.

    E[log p(x)] − ELBO = KL(p ‖ p_model) + E[KL(q(z|x) ‖ p_model(z|x))], hence its sign.
    """
    exact = log_px.mean(1).expand_as(neg_elbo)
    regularised = (log_px - truth_contrast).mean(1).expand_as(neg_elbo)
    return Likelihood(exact, regularised, exact + neg_elbo.double(), regularised + neg_elbo.double())
