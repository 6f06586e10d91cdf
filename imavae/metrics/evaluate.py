"""The metrics of a whole split, for all members in one pass; the glossary says what each of them is.

Points go through the networks in chunks of fixed size and members in blocks: a member's values do not depend on its
company, the activations stay in the processor's cache, and no Jacobian outlives its chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imavae.data.dataset import Split
from imavae.metrics import disentanglement, identifiability, ima
from imavae.metrics.glossary import GLOSSARY, Stage, absent
from imavae.metrics.likelihood import likelihood
from imavae.model.networks import Weights
from imavae.model.priors import Theta
from imavae.model.vae import GAMMA
from imavae.streams import stream
from imavae.training.ensemble import EVALUATED, Ensemble, evaluated

ACTIVATIONS = 2**18  # per block of members and chunk of points
BATCH = 64  # of the published estimators


class Points(NamedTuple):
    """What the networks give at each point, for a block of members: (member, ..., n)."""

    latent: Float[Tensor, "member d n"]
    location: Float[Tensor, "member d n"]
    contrast: Float[Tensor, "member n"]
    full: Bool[Tensor, "member n"]  # whether the Jacobian has full rank
    norms: Float[Tensor, "member d n"]  # of the Jacobian's columns
    inverse_variance: Float[Tensor, "member d n"]
    variance: Float[Tensor, "member d n"]
    prior_variance: Float[Tensor, "member d n"]
    cdf: Float[Tensor, "member d n"]
    amari: Float[Tensor, "member n"]  # with its mask, where it is asked for; else empty
    amari_full: Bool[Tensor, "member n"]
    batch_contrast: Float[Tensor, "member batch"]  # of the mean Jacobians of batches
    batch_full: Bool[Tensor, "member batch"]
    batch_ratio: Float[Tensor, "member d batch"]  # of mean variances and the formula with that mean


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
        extra = tuple(name for name in ("mcc_cdf", "amari") if name in names)
        averages, points = forward(ensemble, weights, split, world, torch.stack(noise), extra)
        # One world's sources are ranked and standardised once, not for each member.
        sources = split.sources[0].T if len(ensemble.worlds) == 1 else split.sources[world].transpose(1, 2)
        values = averages | _metrics(points, weights)
        if ensemble.config.data.has_sources:
            values |= _identifiability(points, sources)
        if split.truth is not None and contrast is not None:
            exact = likelihood(split.truth.log_px[world], contrast[world], averages["neg_elbo"])
            values |= {"cima_truth": contrast[world].mean(1), **exact._asdict()}
            if "amari" in names:
                values["amari"] = ima.mean_where(points.amari, points.amari_full)
        if stage != "validation":
            values["conformal_contrast"] = ima.conformal_contrast(points.contrast, points.full, points.norms)
        if stage == "probes" and ensemble.config.data.has_sources:
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
    ensemble: Ensemble,
    weights: Weights,
    split: Split,
    world: Tensor,
    noise: Float[Tensor, "member d n"],
    extra: tuple[str, ...] = (),
) -> tuple[dict[str, Tensor], Points]:
    """The metrics that are plain averages over points, and what the others need of each point.

    ``extra`` names what costs more: mcc_cdf, amari.
    """
    model, n = ensemble.model, len(split)
    gamma = weights[GAMMA].exp()
    sums: dict[str, Tensor] = {}
    chunks = []

    def add(name: str, mean: Tensor) -> None:
        sums[name] = sums.get(name, 0) + mean.double() * share

    size = evaluated(ensemble.config.data.observed)
    for start in range(0, n, size):
        at = slice(start, start + size)
        x, share = split.block(world, at), len(range(n)[at]) / n
        theta: Theta = model.theta(weights, None if split.segments is None else split.segments[world, at])
        q = model.posterior(weights, x)
        y, mean = q.sample(noise[:, :, at]), q.mean
        for name, value in model.elbo_at(weights, x, q, y, theta)._asdict().items():
            add(name, value)
        location = model.prior.latent(mean)
        reconstruction, jacobian = model.decoder.jacobian(weights, location)
        add("mse_obs", (reconstruction - x).square().mean((1, 2)))
        if model.prior.support == split.support:  # else the decoder can't take sources for latents
            s = split.sources[world, at].transpose(1, 2).contiguous()
            cycle = model.prior.latent(model.posterior(weights, model.decoder(weights, s)).mean)
            add("mse_source", (cycle - s).square().mean((1, 2)))
        z, variance = model.prior.latent(y), q.variance()
        local = Local(jacobian, model.prior.slope(mean), model.prior.curvature(mean, theta), variance)
        amari = torch.empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.bool)
        if "amari" in extra and split.truth is not None:
            amari = ima.amari(jacobian, split.truth.jacobian[world, ..., at])
        chunks.append(
            Points(
                z,
                location,
                *ima.contrast(jacobian),
                jacobian.double().norm(dim=1),
                ima.inverse_variance(jacobian, local.slope, local.curvature, gamma),
                variance,
                model.prior.variance(theta).to(y.dtype).expand_as(y),
                model.prior.cdf(z, theta) if "mcc_cdf" in extra else z,
                *amari,
                *ima.contrast(_batch_mean(jacobian)),
                _batch_ratio(local, gamma),
            )
        )
    return sums, Points(*(torch.cat(parts, -1) for parts in zip(*chunks, strict=True)))


class Local(NamedTuple):
    """What the formula of the posterior's variance takes, at the points of one chunk."""

    jacobian: Float[Tensor, "member o d n"]
    slope: Float[Tensor, "member d n"]
    curvature: Float[Tensor, "member d n"]
    variance: Float[Tensor, "member d n"]


def _metrics(points: Points, weights: Weights) -> dict[str, Tensor]:
    """The metrics of one block of members that need no sources and are no plain averages."""
    norms = ima.column_norms(points.norms)
    spread = points.location.double().var(-1, correction=0)
    return {
        "gamma": weights[GAMMA].exp(),
        "cima": ima.mean_where(points.contrast, points.full),
        "cima_batch": ima.mean_where(points.batch_contrast, points.batch_full),
        "rank_deficient": 1 - points.full.double().mean(1),
        "column_norm": norms.mean,
        "column_norm_max": norms.maximum,
        "column_norm_var_columns": norms.variance_over_columns,
        "column_norm_var_points": norms.variance_over_samples,
        "self_consistency": (points.variance.double() * points.inverse_variance).log().mean((1, 2)).exp(),
        "self_consistency_batch": points.batch_ratio.mean((1, 2)),
        "active_units": (spread > 0.01 * points.prior_variance.double().mean(-1)).sum(1),
    }


def _identifiability(points: Points, s: Float[Tensor, "*world d n"]) -> dict[str, Tensor]:
    """How well one block of members recovers the sources."""
    return {
        "mcc": identifiability.mcc(s, points.latent),
        "mcc_spearman": identifiability.mcc_spearman(s, points.latent),
        "mcc_mean": identifiability.mcc(s, points.location),
        "mcc_cdf": identifiability.mcc(s, points.cdf),
        "mcc_batch": identifiability.mcc_batch(s, points.latent, BATCH),
        "r2_linear": identifiability.r2_linear(s, points.location),
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


def _batch_ratio(local: Local, gamma: Tensor) -> Tensor:
    jacobian, slope, curvature, variance = (
        _batch_mean(a)
        for a in (local.jacobian * local.slope[:, None], torch.ones_like(local.slope), local.curvature, local.variance)
    )
    return variance * ima.inverse_variance(jacobian, slope, curvature, gamma)


def _batch_mean(a: Float[Tensor, "*k n"]) -> Float[Tensor, "*k batch"]:
    """Means over batches of 64 points; what is left over is dropped. A chunk is so many whole batches."""
    batches = a.shape[-1] // BATCH
    return a[..., : batches * BATCH].reshape(*a.shape[:-1], batches, BATCH).mean(dim=-1)
