"""Evaluation of members on a split: one forward pass over the points, from which every metric and the data of the
figures are computed.

Points go through the networks in chunks of fixed size and members in blocks: a member's values do not depend on its
company, the activations stay in the processor's cache, and no Jacobian outlives its chunk.

Images are expensive: a validation takes the first of them only (2,688 images of 3 x 64 x 64), and Jacobians are taken
at the first 320 of any split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imavae.data.dataset import Split, chunk
from imavae.metrics import ima
from imavae.metrics.glossary import METRICS, AllMembers, Evaluation, MixingTruth, Stage, absent
from imavae.metrics.identifiability import AGREEMENT_POINTS, best_matching, correlation
from imavae.model.networks import Weights
from imavae.model.vae import GAMMA
from imavae.rng import stream
from imavae.training.ensemble import EVALUATED_POINTS, Ensemble, evaluated

ACTIVATIONS = 2**19  # at most, per block of members and chunk of points
VALIDATED = 2**25  # numbers at most in the images of a validation
DIFFERENTIATED = 2**22  # and in those at which Jacobians are taken
SCATTERED = 1000  # points of a split in the figures of latents and variances
IMAGES = 10  # images of a split in the figure of reconstructions
STEPS = 9  # of a traversal
ENDS = 0.01, 0.99  # quantiles of a latent, over points, between which its traversal runs
QUANTILE_POINTS = 640  # points from which these quantiles and the matched factors are estimated


class Points(NamedTuple):
    """Latents of a block of members at each point."""

    sample: Float[Tensor, "member d n"]
    location: Float[Tensor, "member d n"]
    cdf: Float[Tensor, "member d n"] | None  # of the prior at the sample, if asked for


@torch.no_grad()
def evaluate(
    ensemble: Ensemble,
    flat: Float[Tensor, "member parameter"],
    rows: Int[Tensor, " member"],
    split: Split,
    stage: Stage,
) -> dict[str, Float[Tensor, " member"]]:
    """Compute every metric that the setting has up to ``stage``, for the members in ``rows`` with weights ``flat``.

    A member's posterior noise is drawn from its seed alone, the same at each call: two validations differ in the
    weights only. Returns float64 tensors on the CPU.
    """
    missing, device = absent(ensemble.config, split.truth is not None, stage), flat.device
    wanted = [metric for metric in METRICS if metric.name not in missing]
    names = [metric.name for metric in wanted]
    sizes = [n for shape in ensemble.model.layout.shapes.values() for n in shape[:1]]
    block = max(1, ACTIVATIONS // (max(sizes) * EVALUATED_POINTS))
    members, worlds = [ensemble.members[row] for row in rows.tolist()], ensemble.world_of(rows)
    discrete = [factor.discrete for factor in ensemble.config.data.source_factors]
    unknown = torch.empty(len(ensemble.worlds), 0, dtype=torch.float64, device=device)
    truth = MixingTruth(unknown, unknown)
    if split.truth is not None:
        truth = MixingTruth(split.truth.log_px, ima.pointwise_contrast(split.truth.jacobian))
    parts: list[dict[str, Tensor]] = []
    locations: list[Tensor] = []
    for at in torch.split(torch.arange(len(flat), device=device), block):
        world, shape = worlds[at], (ensemble.model.dim, len(split))
        streams = [stream(members[i].seed, "evaluation", device) for i in at.tolist()]
        noise = [torch.randn(shape, generator=one, dtype=flat.dtype, device=device) for one in streams]
        weights = ensemble.model.layout.views(flat[at])
        averages, points, local = forward(ensemble, weights, split, world, torch.stack(noise), names)
        averages["gamma"] = weights[GAMMA].exp()
        # the sources of a single world are ranked and standardised once, not for each member
        sources = split.sources[0].T if len(ensemble.worlds) == 1 else split.sources[world].mT
        mixing = MixingTruth(truth.log_px[world], truth.contrast[world])
        evaluation = Evaluation(averages, *points, local, mixing, sources, discrete)
        parts.append({metric.name: metric.compute(evaluation) for metric in wanted if not metric.across_members})
        locations.append(points.location[..., :AGREEMENT_POINTS].contiguous())  # a view would keep all points
    result = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    every = AllMembers(torch.cat(locations), [(member.point, member.world) for member in members])
    result |= {metric.name: metric.compute(every) for metric in wanted if metric.across_members}
    return {name: result[name].double().cpu() for name in names}


def shortened(split: Split, observed: int, numbers: int | None = None) -> Split:
    """The part of a split that is evaluated in a validation: of images, the first whole chunks of ``numbers`` numbers
    at most (by default :data:`VALIDATED`).
    """
    size, most = evaluated(observed), VALIDATED if numbers is None else numbers
    return split if split.images is None else split.first(max(1, most // (observed * size)) * size)


def forward(
    ensemble: Ensemble,
    weights: Weights,
    split: Split,
    world: Int[Tensor, " member"],
    noise: Float[Tensor, "member d n"],
    names: Collection[str] = (),
    keep_variance: bool = False,
) -> tuple[dict[str, Tensor], Points, ima.LocalTerms]:
    """Run a block of members over a split: averages over points (member,), latents, and terms of the Jacobians.

    Everything that needs a Jacobian is computed per chunk of points, while the Jacobian is in the processor's cache.

    Args:
        ensemble: Ensemble of the members.
        weights: Weights of the members.
        split: Observations.
        world: Index of each member's world.
        noise: Standard normal noise of the posterior samples.
        names: Metrics that are asked for; mcc_cdf, mse_source and amari need more work.
        keep_variance: True to keep the posterior's variance and its formula at each point.
    """
    model, observed, n = ensemble.model, ensemble.config.data.observed, len(split)
    size, gamma = evaluated(observed), weights[GAMMA].exp()
    few = len(shortened(split, observed, DIFFERENTIATED))
    sums: dict[str, Tensor] = {}
    chunks, near = [], []
    truth = None if split.truth is None or "amari" not in names else split.truth.jacobian
    for start in range(0, n, size):
        at = slice(start, start + size)
        x, share = split.block(world, at), len(range(n)[at]) / n
        theta = model.theta(weights, None if split.segments is None else split.segments[world, at])
        q = model.posterior(weights, x)
        y, mean, variance = q.sample(noise[:, :, at]), q.mean, q.variance()
        means = model.elbo_at(weights, x, q, y, theta)._asdict()
        z, location = model.prior.latent(y), model.prior.latent(mean)
        if start < few:
            reconstruction, jacobian = model.decoder.jacobian(weights, location)
            slope, curvature = model.prior.slope(mean), model.prior.curvature(mean, theta)
            contrast, full, norms = ima.contrast(jacobian)
            inverse = ima.inverse_variance(norms.square(), slope, curvature, gamma)
            terms = ima.LocalTerms(
                contrast=contrast,
                full=full,
                norms=norms,
                log_ratio=(variance * inverse).log_().mean(1),
                batch_jacobian=ima.batch_mean(jacobian),
                batch_ratio=ima.batch_ratio(jacobian * slope[:, None], curvature, variance, gamma),
                amari=None if truth is None else ima.amari(jacobian, truth[..., at][world if len(truth) > 1 else 0]),
                variance=variance if keep_variance else None,
                inverse_variance=inverse if keep_variance else None,
            )
            near.append(terms)
        else:
            reconstruction = model.decoder(weights, location)
        means["mse_obs"] = (reconstruction - x).square().mean((1, 2))
        if "mse_source" in names:  # otherwise the decoder can't take sources for latents
            s = chunk(split.sources, world, at)
            cycle = model.prior.latent(model.posterior(weights, model.decoder(weights, s)).mean)
            means["mse_source"] = (cycle - s).square().mean((1, 2))
        means["prior_variance"] = model.prior.variance(theta).double().expand_as(y).mean(2)  # of each latent
        for name, value in means.items():
            sums[name] = sums.get(name, 0) + value.double() * share
        chunks.append(Points(z, location, cdf=model.prior.cdf(z, theta) if "mcc_cdf" in names else None))
    joined: list[list[Any]] = [
        [None if parts[0] is None else torch.cat(parts, -1) for parts in zip(*kept, strict=True)]
        for kept in (chunks, near)
    ]
    return sums, Points(*joined[0]), ima.LocalTerms(*joined[1])


class PosteriorShapes(NamedTuple):
    """Latent k is matched with source k. Variances refer to the unconstrained y and keep the latents' own order; so do
    the latents where the sources are unknown (``sources`` has no rows then).
    """

    sources: Float[Tensor, "member s n"]
    latents: Float[Tensor, "member d n"]  # posterior locations on the prior's support
    variance: Float[Tensor, "member d m"]  # of the posterior, at the first m points: those with Jacobians
    formula: Float[Tensor, "member d m"]  # σ_k² by :func:`ima.inverse_variance`


@torch.no_grad()
def posterior_shapes(
    ensemble: Ensemble, flat: Float[Tensor, "member parameter"], rows: Int[Tensor, " member"], split: Split
) -> PosteriorShapes:
    """Latents and posterior variances of the members in ``rows`` with weights ``flat``, at the first points."""
    few, world = dataclasses.replace(split.first(SCATTERED), truth=None), ensemble.world_of(rows)
    sources = few.sources[world].mT
    noise = sources.new_zeros(len(rows), ensemble.model.dim, len(few))
    _, points, local = forward(ensemble, ensemble.model.layout.views(flat), few, world, noise, keep_variance=True)
    assert local.variance is not None  # noqa: S101  -- asked for by name
    assert local.inverse_variance is not None  # noqa: S101
    latents = points.location.cpu()
    if ensemble.config.data.has_sources:
        discrete = [factor.discrete for factor in ensemble.config.data.source_factors]
        tables = correlation(sources, points.location, discrete).abs().nan_to_num().cpu().numpy()
        order = torch.tensor([best_matching(table)[1].tolist() for table in tables])
        latents = torch.take_along_dim(latents, order[:, :, None], dim=1)
    return PosteriorShapes(sources.cpu(), latents, local.variance.cpu(), 1 / local.inverse_variance.cpu())


class ImagePanels(NamedTuple):
    """Each image is a flat row of 3 x side x side numbers in [0, 1], in the order (channel, row, column)."""

    worlds: list[int]  # of each member: members of one world have the same observations
    observations: Float[Tensor, "member image o"]
    reconstructions: Float[Tensor, "member image o"]  # decoded from the posterior's location
    values: Float[Tensor, "d step"]  # of each latent of one member, while the others stay at their medians
    traversals: Float[Tensor, "d step o"]
    factors: list[str | None]  # matched one to one with the latents of that member; None without correlation


@torch.no_grad()
def image_panels(
    ensemble: Ensemble, flat: Float[Tensor, "member parameter"], rows: Int[Tensor, " member"], split: Split, best: int
) -> ImagePanels:
    """Reconstructions of the split's first images by the members in ``rows`` with weights ``flat``, and latent
    traversals of the ``best``-th of them.
    """
    model, world, data = ensemble.model, ensemble.world_of(rows), ensemble.config.data
    weights, one = model.layout.views(flat), model.layout.views(flat[best : best + 1])
    x = split.block(world, slice(IMAGES))
    reconstructions = model.decoder(weights, model.prior.latent(model.posterior(weights, x).mean))
    points, size = split.first(QUANTILE_POINTS), evaluated(data.observed)
    blocks = [points.block(world[best : best + 1], slice(at, at + size)) for at in range(0, len(points), size)]
    location = torch.cat([model.prior.latent(model.posterior(one, block).mean) for block in blocks], 2)[0]
    low, high = location.quantile(torch.tensor(ENDS, dtype=location.dtype, device=location.device), 1)
    values = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, STEPS, device=low.device, dtype=low.dtype)
    codes = location.median(1).values[:, None, None].repeat(1, model.dim, STEPS)  # (latent, row, step)
    for k in range(model.dim):
        codes[k, k] = values[k]
    traversals = model.decoder(one, codes.flatten(1)[None])[0].T.reshape(model.dim, STEPS, -1)
    discrete = [factor.discrete for factor in data.source_factors]
    table = correlation(points.sources[world[best]].T[None], location[None], discrete)[0].abs().cpu().numpy()
    matched = {
        latent: source for source, latent in zip(*best_matching(table), strict=True) if table[source, latent] > 0
    }
    return ImagePanels(
        world.tolist(),
        x.mT.cpu(),
        reconstructions.mT.clamp(0, 1).cpu(),
        values.cpu(),
        traversals.clamp(0, 1).cpu(),
        [data.source_factors[matched[k]].name if k in matched else None for k in range(model.dim)],
    )
