"""The metrics of a whole split, for all members in one pass; the glossary says what each of them is.

Points go through the networks in chunks of fixed size and members in blocks: a member's values do not depend on its
company, and the activations stay in the processor's cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from imavae.data.dataset import Split
from imavae.metrics import disentanglement, identifiability, ima
from imavae.metrics.glossary import GLOSSARY, Stage, absent
from imavae.metrics.likelihood import likelihood
from imavae.model.networks import Weights
from imavae.model.priors import Theta
from imavae.model.vae import GAMMA
from imavae.streams import stream
from imavae.training.ensemble import EVALUATED, Ensemble

ACTIVATIONS = 2**18  # per block of members and chunk of points
BATCH = 64  # of the published estimators


class Points(NamedTuple):
    """What the networks give at each point, for a block of members: (member, ..., n)."""

    latent: Float[Tensor, "member d n"]
    location: Float[Tensor, "member d n"]
    jacobian: Float[Tensor, "member o d n"]
    inverse_variance: Float[Tensor, "member d n"]
    slope: Float[Tensor, "member d n"]
    curvature: Float[Tensor, "member d n"]
    variance: Float[Tensor, "member d n"]
    prior_variance: Float[Tensor, "member d n"]
    cdf: Float[Tensor, "member d n"]


@torch.no_grad()
def evaluate(
    ensemble: Ensemble,
    flat: Float[Tensor, "member parameter"],
    rows: Int[Tensor, " member"],
    split: Split,
    stage: Stage,
) -> dict[str, Float[Tensor, " member"]]:
    """Every metric of the glossary that the setting can have, of the members in ``rows`` with weights ``flat``.

    The posterior noise of a member is drawn from its seed alone, the same at each call: two validations differ by the
    weights, not by luck. ``stage`` says how many of the slow metrics are wanted. Returns float64 tensors on the CPU.
    """
    missing = absent(ensemble.config, split.truth is not None, stage)
    names = [name for name in GLOSSARY if name not in missing]
    sizes = [n for shape in ensemble.model.layout.shapes.values() for n in shape[:1]]
    block = max(1, ACTIVATIONS // (max(sizes) * EVALUATED))
    worlds, parts, locations = ensemble.world_of(rows), [], []
    contrast = None if split.truth is None else ima.truth_contrast(split.truth.jacobian)
    for at in torch.split(torch.arange(len(flat), device=flat.device), block):
        world = worlds[at]
        shape = (ensemble.model.dim, len(split))
        seeds = [ensemble.members[row].seed for row in rows[at].tolist()]
        noise = [
            torch.randn(shape, generator=stream(seed, "evaluation", flat.device), dtype=flat.dtype, device=flat.device)
            for seed in seeds
        ]
        weights = ensemble.model.layout.views(flat[at])
        averages, points = forward(ensemble, weights, split, world, torch.stack(noise), "mcc_cdf" in names)
        # One world's sources are ranked and standardised once, not for each member.
        sources = split.sources[0].T if len(ensemble.worlds) == 1 else split.sources[world].transpose(1, 2)
        values = averages | _metrics(points, weights, sources)
        if split.truth is not None and contrast is not None:
            exact = likelihood(split.truth.log_px[world], contrast[world], averages["neg_elbo"])
            values |= {"cima_truth": contrast[world].mean(1), **exact._asdict()}
            if stage != "validation":
                values["amari"] = ima.amari(points.jacobian, split.truth.jacobian[world])
        if stage != "validation":
            values["conformal_contrast"] = ima.conformal_contrast(points.jacobian)
        if stage == "probes":
            values |= _probes(sources.expand_as(points.location), points.location)
        parts.append({name: values[name] for name in names if name in values})
        locations.append(points.location)
    result = {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}
    if "agreement" in names:
        members = [ensemble.members[row] for row in rows.tolist()]
        groups = [(member.point, member.world) for member in members]
        result["agreement"] = identifiability.agreement(torch.cat(locations), groups).cpu()
    return {name: result[name] for name in names}


def forward(
    ensemble: Ensemble, weights: Weights, split: Split, world: Tensor, noise: Float[Tensor, "member d n"], cdf: bool
) -> tuple[dict[str, Tensor], Points]:
    """The metrics that are plain averages over points, and what the others need of each point."""
    model, n = ensemble.model, len(split)
    gamma = weights[GAMMA].exp()
    sums: dict[str, Tensor] = {}
    chunks = []

    def add(name: str, mean: Tensor) -> None:
        sums[name] = sums.get(name, 0) + mean.double() * share

    for start in range(0, n, EVALUATED):
        at = slice(start, start + EVALUATED)
        x, share = split.observations[world, at].transpose(1, 2).contiguous(), len(range(n)[at]) / n
        theta: Theta = model.theta(weights, None if split.segments is None else split.segments[world, at])
        q = model.posterior(weights, x)
        y, mean = q.sample(noise[:, :, at]), q.mean
        for name, value in model.elbo_at(weights, x, q, y, theta)._asdict().items():
            add(name, value)
        location, slope, curvature = (
            model.prior.latent(mean),
            model.prior.slope(mean),
            model.prior.curvature(mean, theta),
        )
        reconstruction, jacobian = model.decoder.jacobian(weights, location)
        add("mse_obs", (reconstruction - x).square().mean((1, 2)))
        if model.prior.support == split.support:  # else the decoder can't take sources for latents
            s = split.sources[world, at].transpose(1, 2).contiguous()
            cycle = model.prior.latent(model.posterior(weights, model.decoder(weights, s)).mean)
            add("mse_source", (cycle - s).square().mean((1, 2)))
        inverse = ima.inverse_variance(jacobian, slope, curvature, gamma)
        z = model.prior.latent(y)
        spread = model.prior.variance(theta).to(y.dtype).expand_as(y)
        uniform = model.prior.cdf(z, theta) if cdf else z
        chunks.append(Points(z, location, jacobian, inverse, slope, curvature, q.variance(), spread, uniform))
    return sums, Points(*(torch.cat(parts, -1) for parts in zip(*chunks, strict=True)))


def _metrics(points: Points, weights: Weights, s: Float[Tensor, "*world d n"]) -> dict[str, Tensor]:
    """The metrics of one block of members that are no plain averages."""
    gamma = weights[GAMMA].exp()
    cima, deficient = ima.mean_contrast(points.jacobian)
    norms = ima.column_norms(points.jacobian)
    spread = points.location.double().var(-1, correction=0)
    return {
        "gamma": gamma,
        "mcc": identifiability.mcc(s, points.latent),
        "mcc_spearman": identifiability.mcc_spearman(s, points.latent),
        "mcc_mean": identifiability.mcc(s, points.location),
        "mcc_cdf": identifiability.mcc(s, points.cdf),
        "mcc_batch": identifiability.mcc_batch(s, points.latent, BATCH),
        "r2_linear": identifiability.r2_linear(s, points.location),
        "cima": cima,
        "cima_batch": ima.mean_contrast(_batch_mean(points.jacobian))[0],
        "rank_deficient": deficient,
        "column_norm": norms.mean,
        "column_norm_max": norms.maximum,
        "column_norm_var_columns": norms.variance_over_columns,
        "column_norm_var_points": norms.variance_over_samples,
        "self_consistency": (points.variance.double() * points.inverse_variance).log().mean((1, 2)).exp(),
        "self_consistency_batch": _self_consistency_batch(points, gamma),
        "active_units": (spread > 0.01 * points.prior_variance.double().mean(-1)).sum(1),
    }


def _probes(s: Float[Tensor, "member d n"], location: Float[Tensor, "member d n"]) -> dict[str, Tensor]:
    """The slow metrics, a member at a time."""
    values: dict[str, list[float]] = {}
    for factors, codes in zip(s.cpu().numpy(), location.cpu().numpy(), strict=True):
        continuous = [False] * len(factors)
        dci = disentanglement.dci(factors.T, codes.T, continuous)
        one = {f"dci_{name}": value for name, value in dci._asdict().items()}
        one["sap"] = disentanglement.sap(factors.T, codes.T, continuous)
        one["mig"] = disentanglement.mig(factors.T, codes.T, continuous)
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    slow = {name: torch.from_numpy(np.array(column)) for name, column in values.items()}
    return slow | {"r2_nonlinear": identifiability.r2_nonlinear(s, location)}


def _self_consistency_batch(points: Points, gamma: Tensor) -> Tensor:
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
