"""The metrics of a whole split, for all members in one pass; the glossary says what each of them is.

Points go through the networks in chunks of fixed size and members in blocks: a member's values do not depend on its
company, the activations stay in the processor's cache, and no Jacobian outlives its chunk.

Images are dear: of a validation split the first alone are taken (2,688 images of 3 x 64 x 64), and Jacobians at the
first 320 of any split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from imavae.data.dataset import Split, chunk
from imavae.metrics import identifiability, ima
from imavae.metrics.glossary import GLOSSARY, Stage, absent
from imavae.metrics.likelihood import likelihood
from imavae.model.networks import Weights
from imavae.model.priors import Theta
from imavae.model.vae import GAMMA, VAE
from imavae.rng import stream
from imavae.training.ensemble import EVALUATED, Ensemble, evaluated

ACTIVATIONS = 2**19  # per block of members and chunk of points
VALIDATED = 2**25  # numbers in the images that a validation takes
DIFFERENTIATED = 2**22  # and in those at which Jacobians are taken


class Points(NamedTuple):
    """What is kept of each point, for a block of members: (member, ..., n)."""

    latent: Float[Tensor, "member d n"]
    location: Float[Tensor, "member d n"]
    cdf: Float[Tensor, "member d n"] | None  # only where it is asked for


class Local(NamedTuple):
    """What is kept of each point at which Jacobians are taken, or of each batch of 64 of them."""

    contrast: Float64[Tensor, "member n"]
    full: Bool[Tensor, "member n"]  # whether the decoder's Jacobian has full rank
    norms: Float64[Tensor, "member d n"]  # of its columns
    log_ratio: Float64[Tensor, "member n"]  # of the posterior's variance to the formula's, averaged over latents
    batch_jacobian: Float[Tensor, "member o d batch"]  # means over batches
    batch_ratio: Float64[Tensor, "member d batch"]  # of mean variances and the formula with that mean
    amari: Float64[Tensor, "member n"] | None  # this and what follows: only where it is asked for
    variance: Float[Tensor, "member d n"] | None  # of the posterior
    inverse_variance: Float[Tensor, "member d n"] | None  # by its formula


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
    block, most = max(1, ACTIVATIONS // (max(sizes) * EVALUATED)), identifiability.AGREEMENT_POINTS
    worlds, parts, locations = ensemble.world_of(rows), [], []
    discrete = [factor.discrete for factor in ensemble.config.data.source_factors]
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
        averages, points, local = forward(ensemble, weights, split, world, torch.stack(noise), names)
        # One world's sources are ranked and standardised once, not for each member.
        sources = split.sources[0].T if len(ensemble.worlds) == 1 else split.sources[world].transpose(1, 2)
        values = averages | {"gamma": weights[GAMMA].exp()} | _metrics(averages, points, local)
        if ensemble.config.data.has_sources:
            values |= _identifiability(points, sources, discrete)
        if split.truth is not None and contrast is not None:
            exact = likelihood(split.truth.log_px[world], contrast[world], averages["neg_elbo"])
            values |= {"cima_truth": contrast[world].mean(1), **exact._asdict()}
        if local.amari is not None:
            values["amari"] = ima.mean_where(local.amari, ~local.amari.isnan())
        if "conformal_contrast" in names:
            values["conformal_contrast"] = ima.conformal_contrast(ima.Contrast(local.contrast, local.full, local.norms))
        if stage == "probes" and ensemble.config.data.has_sources:
            values |= _probes(sources.expand_as(points.location), points.location, discrete)
        parts.append({name: values[name] for name in names if name in values})
        locations.append(points.location[..., :most].contiguous())  # a view would keep all points of all members
    result = {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}
    if "agreement" in names:
        members = [ensemble.members[row] for row in rows.tolist()]
        groups = [(member.point, member.world) for member in members]
        result["agreement"] = identifiability.agreement(torch.cat(locations), groups).cpu()
    return {name: result[name] for name in names}


def shortened(split: Split, observed: int) -> Split:
    """A validation split as it is evaluated: of images, the first that a validation can afford."""
    return split.first(_affordable(split, VALIDATED, observed))


def _affordable(split: Split, numbers: int, observed: int) -> int:
    """How many points of a split that are taken: of images, as many as hold so many numbers, in whole chunks."""
    size = evaluated(observed)
    return len(split) if split.images is None else min(len(split), max(1, numbers // (observed * size)) * size)


def forward(
    ensemble: Ensemble,
    weights: Weights,
    split: Split,
    world: Tensor,
    noise: Float[Tensor, "member d n"],
    names: list[str],
) -> tuple[dict[str, Tensor], Points, Local]:
    """The metrics that are plain averages over points, and what the others need of each point.

    All that is made of a Jacobian is made of a chunk of points, while it is in the processor's cache. ``world`` is that
    of each member, (member,), and so are the averages. ``names`` holds the metrics that are wanted; "variance" among
    them keeps the posterior's variances, for a portrait.
    """
    model, n, size = ensemble.model, len(split), evaluated(ensemble.config.data.observed)
    few = _affordable(split, DIFFERENTIATED, ensemble.config.data.observed)
    gamma = weights[GAMMA].exp()
    sums: dict[str, Tensor] = {}
    chunks, near = [], []
    truth = None if split.truth is None or "amari" not in names else split.truth.jacobian

    def add(name: str, mean: Tensor) -> None:
        sums[name] = sums.get(name, 0) + mean.double() * share

    for start in range(0, n, size):
        at = slice(start, start + size)
        x, share = split.block(world, at), len(range(n)[at]) / n
        theta: Theta = model.theta(weights, None if split.segments is None else split.segments[world, at])
        q = model.posterior(weights, x)
        y, mean, variance = q.sample(noise[:, :, at]), q.mean, q.variance()
        for name, value in model.elbo_at(weights, x, q, y, theta)._asdict().items():
            add(name, value)
        z, location = model.prior.latent(y), model.prior.latent(mean)
        if start < few:
            reconstruction, jacobian = model.decoder.jacobian(weights, location)
            formula = Formula(jacobian, model.prior.slope(mean), model.prior.curvature(mean, theta), gamma)
            true = None if truth is None else truth[..., at][world if len(truth) > 1 else 0]
            near.append(_local(formula, variance, true, "variance" in names))
        else:
            reconstruction = model.decoder(weights, location)
        add("mse_obs", (reconstruction - x).square().mean((1, 2)))
        if "mse_source" in names:  # else the decoder can't take sources for latents
            add("mse_source", _cycle_error(model, weights, chunk(split.sources, world, at)))
        add("prior_variance", model.prior.variance(theta).double().expand_as(y).mean(2))  # of each latent
        chunks.append(Points(z, location, cdf=model.prior.cdf(z, theta) if "mcc_cdf" in names else None))
    return sums, Points(*_joined(chunks)), Local(*_joined(near))


class Formula(NamedTuple):
    """What the posterior's variance is by the formula of :func:`ima.inverse_variance`, at the points of one chunk."""

    jacobian: Float[Tensor, "member o d n"]
    slope: Float[Tensor, "member d n"]
    curvature: Float[Tensor, "member d n"]
    gamma: Float[Tensor, " member"]


def _local(
    formula: Formula, variance: Float[Tensor, "member d n"], truth: Float[Tensor, "*world o d n"] | None, keep: bool
) -> Local:
    """What is made of the Jacobians of one chunk; ``keep`` says whether the variances are wanted."""
    jacobian, slope, curvature, gamma = formula
    contrast = ima.contrast(jacobian)
    inverse = ima.inverse_variance(contrast.norms.square(), slope, curvature, gamma)
    return Local(
        contrast=contrast.values,
        full=contrast.full,
        norms=contrast.norms,
        log_ratio=(variance * inverse).log_().mean(1),
        batch_jacobian=ima.batch_mean(jacobian),
        batch_ratio=ima.batch_ratio(jacobian * slope[:, None], curvature, variance, gamma),
        amari=None if truth is None else ima.amari(jacobian, truth),
        variance=variance if keep else None,
        inverse_variance=inverse if keep else None,
    )


def _joined(chunks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Each field of all chunks, one after the other."""
    return (None if parts[0] is None else torch.cat(parts, -1) for parts in zip(*chunks, strict=True))


def _cycle_error(model: VAE, weights: Weights, s: Float[Tensor, "member d chunk"]) -> Float[Tensor, " member"]:
    """Of sources that are decoded and encoded."""
    cycle = model.prior.latent(model.posterior(weights, model.decoder(weights, s)).mean)
    return (cycle - s).square().mean((1, 2))


def _metrics(averages: dict[str, Tensor], points: Points, local: Local) -> dict[str, Tensor]:
    """The metrics of one block of members that need no sources and are no plain averages."""
    norms = ima.column_norms(local.norms)
    batch = ima.contrast(local.batch_jacobian)
    return {
        "cima": ima.mean_where(local.contrast, local.full),
        "cima_batch": ima.mean_where(batch.values, batch.full),
        "rank_deficient": 1 - local.full.double().mean(1),
        "column_norm": norms.mean,
        "column_norm_max": norms.maximum,
        "column_norm_var_columns": norms.variance_over_columns,
        "column_norm_var_points": norms.variance_over_samples,
        "self_consistency": local.log_ratio.mean(1).exp(),
        "self_consistency_batch": local.batch_ratio.mean((1, 2)),
        "prior_variance": averages["prior_variance"].mean(1),
        "active_units": identifiability.active_units(points.location, averages["prior_variance"]),
    }


def _identifiability(points: Points, s: Float[Tensor, "*world d n"], discrete: list[bool]) -> dict[str, Tensor]:
    """How well one block of members recovers the sources."""
    known, sample, location = (identifiability.standard(rows) for rows in (s, points.latent, points.location))
    values = {
        "mcc": identifiability.matched_mean(identifiability.standard_correlation(known, sample, s, discrete)),
        "mcc_spearman": identifiability.mcc_spearman(s, points.latent, discrete),
        "mcc_mean": identifiability.matched_mean(identifiability.standard_correlation(known, location, s, discrete)),
        "mcc_batch": identifiability.mcc_batch(s, points.latent, ima.BATCH, discrete),
        "r2_linear": identifiability.standard_r2_linear(known, location),
    }
    if points.cdf is not None:
        values["mcc_cdf"] = identifiability.mcc(s, points.cdf, discrete)
    return values


def _probes(
    s: Float[Tensor, "member d n"], location: Float[Tensor, "member d n"], discrete: list[bool]
) -> dict[str, Tensor]:
    """The slow metrics, a member at a time."""
    from imavae.metrics import disentanglement  # scikit-learn takes a second to import

    values: dict[str, list[float]] = {}
    for factors, codes in zip(s.cpu().numpy(), location.cpu().numpy(), strict=True):
        dci = disentanglement.dci(factors.T, codes.T, discrete)
        one = {f"dci_{name}": value for name, value in dci._asdict().items()}
        one["sap"] = disentanglement.sap(factors.T, codes.T, discrete)
        one["mig"] = disentanglement.mig(factors.T, codes.T, discrete)
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    slow = {name: torch.from_numpy(np.array(column)) for name, column in values.items()}
    return slow | {"r2_nonlinear": identifiability.r2_nonlinear(s, location)}
