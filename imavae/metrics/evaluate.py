"""The glossary of metrics, and their evaluation for a whole split and all members in one pass.

Points go through the networks in chunks of fixed size and members in blocks: a member's values do not depend on its
company, and the activations stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from imavae.errors import known
from imavae.data.dataset import Split
from imavae.metrics import identifiability, ima
from imavae.model.networks import Weights
from imavae.model.vae import VAE
from imavae.streams import stream

POINTS, ACTIVATIONS = 1024, 2**18  # per chunk of points; per block of members
BATCH = 64  # of the published estimators


class Metric(NamedTuple):
    """An entry of the glossary; ``direction`` is max, min, one (best at 1) or none (no better or worse)."""

    definition: str
    direction: str
    equation: str


GLOSSARY = {
    "neg_elbo": Metric("negative ELBO, with one posterior sample a point, in nats", "min", "kl − log_px_z"),
    "kl": Metric("divergence of the posterior from the prior, in nats", "none", "KL(q(z|x) ‖ p(z))"),
    "log_px_z": Metric("reconstruction term, in nats", "max", "E_q[log N(x; g(z), γ⁻² I)]"),
    "mcc": Metric("mean absolute Pearson correlation of sources and posterior samples, matched one to one; chance ≈ 0",
                  "max", "max_π (1/d) Σ_k |corr(s_k, z_π(k))|"),
    "mcc_spearman": Metric("the same with rank correlations", "max", "max_π (1/d) Σ_k |ρ(s_k, z_π(k))|"),
    "mcc_mean": Metric("the same with the posterior's location", "max", "max_π (1/d) Σ_k |corr(s_k, μ_π(k)(x))|"),
    "mcc_batch": Metric("published estimator: mcc averaged over 64-sample batches; chance is 0.15 for d = 3", "max",
                        "mean over batches of mcc"),
    "cima": Metric("local IMA contrast of the decoder at μ(x), in nats, averaged over the points of full rank", "min",
                   "Σ_k log‖J_:k‖ − ½ log det(JᵀJ)"),
    "cima_batch": Metric("published estimator: the contrast of the mean Jacobian of 64 samples", "min",
                         "mean over batches of c_IMA(mean J)"),
    "rank_deficient": Metric("share of the points that cima leaves out: a Jacobian without full rank", "min",
                             "#{rank J < d} / n"),
    "self_consistency": Metric("posterior variance over its formula, geometric mean, in the unconstrained coordinate",
                               "one", "exp mean log(var_k / σ_k²), σ_k⁻² = −(log p)″(μ_k) + γ²‖J_:k‖²"),
    "self_consistency_batch": Metric("published estimator: norms of the mean Jacobian of 64 samples", "one",
                                     "mean over batches and k of mean(var_k) · (mean −(log p)″ + γ²‖mean J_:k‖²)"),
    "mse_obs": Metric("squared error of the reconstruction from the posterior's location, per dimension", "min",
                      "mean (g(μ(x)) − x)²"),
    "mse_source": Metric("squared error of the encoded decoding of the sources, per dimension; only where prior and "
                         "source share their support", "min", "mean (μ(g(s)) − s)²"),
    "active_units": Metric("latents in use", "none", "#{k : Var μ_k(x) > 0.01 Var p(z_k)}"),
}  # fmt: skip


def check_metric(name: str, mode: str) -> None:
    """Raise UserError unless ``name`` (``val/mcc``) is a validation metric that can be pursued in ``mode``."""
    known(
        name, [f"val/{m}" for m, metric in GLOSSARY.items() if metric.direction in ("max", "min")], "objective.metric"
    )
    known(mode, [GLOSSARY[name.removeprefix("val/")].direction], f"objective.mode of {name}")


class _Points(NamedTuple):
    """What the networks give at each point, for a block of members: (member, ..., n)."""

    latent: Float[Tensor, "member d n"]
    location: Float[Tensor, "member d n"]
    jacobian: Float[Tensor, "member o d n"]
    inverse_variance: Float[Tensor, "member d n"]
    slope: Float[Tensor, "member d n"]
    curvature: Float[Tensor, "member d n"]
    variance: Float[Tensor, "member d n"]


@torch.no_grad()
def evaluate(
    model: VAE,
    flat: Float[Tensor, "member parameter"],
    gamma: Float[Tensor, " member"],
    seeds: Sequence[int],
    split: Split,
) -> dict[str, Float[Tensor, " member"]]:
    """Every metric of the glossary that the setting can have, per member, in float64 on the CPU.

    The posterior noise of a member is drawn from its seed alone, the same at each call: two validations differ by the
    weights, not by luck.
    """
    s = split.sources.T.contiguous()
    width = max(max(model.encoder.sizes), max(model.decoder.sizes))
    block = max(1, ACTIVATIONS // (width * POINTS))
    parts = []
    for rows in torch.split(torch.arange(len(flat), device=flat.device), block):
        noise = torch.stack(
            [
                torch.randn(s.shape, generator=stream(seeds[i], "evaluation", s.device), dtype=s.dtype, device=s.device)
                for i in rows.tolist()
            ]
        )
        averages, points = _forward(model, model.layout.views(flat[rows]), gamma[rows], split, noise)
        parts.append(averages | _metrics(model, points, gamma[rows], s))
    return {name: torch.cat([part[name] for part in parts]).double().cpu() for name in GLOSSARY if name in parts[0]}


def _forward(
    model: VAE, weights: Weights, gamma: Tensor, split: Split, noise: Float[Tensor, "member d n"]
) -> tuple[dict[str, Tensor], _Points]:
    """The metrics that are plain averages over points, and what the others need of each point."""
    members, n = len(gamma), len(split)
    x_all, s_all = (a.T.expand(members, -1, -1) for a in (split.observations, split.sources))
    sums: dict[str, Tensor] = {}
    chunks = []

    def add(name: str, mean: Tensor) -> None:
        sums[name] = sums.get(name, 0) + mean.double() * share

    for start in range(0, n, POINTS):
        at = slice(start, start + POINTS)
        x, share = x_all[:, :, at].contiguous(), len(range(n)[at]) / n
        posterior = model.posterior(weights, x)
        y, mean = posterior.sample(noise[:, :, at]), posterior.mean
        for name, value in model.elbo_at(weights, gamma, x, posterior, y)._asdict().items():
            add(name, value)
        location, slope, curvature = model.prior.latent(mean), model.prior.slope(mean), model.prior.curvature(mean)
        reconstruction, jacobian = model.decoder.jacobian(weights, location)
        add("mse_obs", (reconstruction - x).square().mean((1, 2)))
        if model.prior.support == split.support:  # else the decoder can't take sources for latents
            s = s_all[:, :, at].contiguous()
            cycle = model.prior.latent(model.posterior(weights, model.decoder(weights, s)).mean)
            add("mse_source", (cycle - s).square().mean((1, 2)))
        inverse = ima.inverse_variance(jacobian, slope, curvature, gamma)
        variance = posterior.log_variance.exp()
        chunks.append(_Points(model.prior.latent(y), location, jacobian, inverse, slope, curvature, variance))
    return sums, _Points(*(torch.cat(parts, -1) for parts in zip(*chunks, strict=True)))


def _metrics(model: VAE, points: _Points, gamma: Tensor, s: Float[Tensor, "d n"]) -> dict[str, Tensor]:
    """The metrics of one block of members that are no plain averages."""
    cima, rank_deficient = ima.mean_contrast(points.jacobian)
    spread = points.location.double().var(-1, correction=0)
    return {
        "mcc": identifiability.mcc(s, points.latent),
        "mcc_spearman": identifiability.mcc_spearman(s, points.latent),
        "mcc_mean": identifiability.mcc(s, points.location),
        "mcc_batch": identifiability.mcc_batch(s, points.latent, BATCH),
        "cima": cima,
        "cima_batch": ima.mean_contrast(_batch_mean(points.jacobian))[0],
        "rank_deficient": rank_deficient,
        "self_consistency": (points.variance.double() * points.inverse_variance).log().mean((1, 2)).exp(),
        "self_consistency_batch": _self_consistency_batch(points, gamma),
        "active_units": (spread > 0.01 * model.prior.variance).sum(1),
    }


def _self_consistency_batch(points: _Points, gamma: Tensor) -> Tensor:
    jacobian, slope, curvature, variance = (
        _batch_mean(a)
        for a in (
            points.jacobian * points.slope[:, None],
            torch.ones_like(points.slope),
            points.curvature,
            points.variance,
        )
    )
    return (variance * ima.inverse_variance(jacobian, slope, curvature, gamma)).mean((1, 2))


def _batch_mean(a: Float[Tensor, "*k n"]) -> Float[Tensor, "*k batch"]:
    """Means over batches of 64 points; what is left over is dropped."""
    batches = a.shape[-1] // BATCH
    return a[..., : batches * BATCH].reshape(*a.shape[:-1], batches, BATCH).mean(dim=-1)
