"""Evaluation of members on a split: one forward pass over the points, from which every metric is computed.

Points go through the networks in chunks of fixed size and members in blocks: a member's values do not depend on its
company, the activations stay in the processor's cache, and no Jacobian outlives its chunk.

Images are expensive: a validation takes the first of them only (2,688 images of 3 x 64 x 64), and Jacobians are taken
at the first 320 of any split.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imavae.data.dataset import Split, chunk
from imavae.metrics import identifiability, ima
from imavae.metrics.glossary import METRICS, AllMembers, Evaluation, MixingTruth, Stage, absent
from imavae.model.networks import Weights
from imavae.model.priors import Theta
from imavae.model.vae import GAMMA, VAE
from imavae.rng import stream
from imavae.training.ensemble import EVALUATED_POINTS, Ensemble, evaluated

ACTIVATIONS = 2**19  # at most, per block of members and chunk of points
VALIDATED = 2**25  # numbers at most in the images of a validation
DIFFERENTIATED = 2**22  # and in those at which Jacobians are taken


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
    missing = absent(ensemble.config, split.truth is not None, stage)
    wanted = [metric for metric in METRICS if metric.name not in missing]
    names = [metric.name for metric in wanted]
    sizes = [n for shape in ensemble.model.layout.shapes.values() for n in shape[:1]]
    block = max(1, ACTIVATIONS // (max(sizes) * EVALUATED_POINTS))
    members, worlds = [ensemble.members[row] for row in rows.tolist()], ensemble.world_of(rows)
    discrete = [factor.discrete for factor in ensemble.config.data.source_factors]
    contrast = None if split.truth is None else ima.pointwise_contrast(split.truth.jacobian)
    parts: list[dict[str, Tensor]] = []
    locations: list[Tensor] = []
    for at in torch.split(torch.arange(len(flat), device=flat.device), block):
        world = worlds[at]
        shape = (ensemble.model.dim, len(split))
        seeds = [members[i].seed for i in at.tolist()]
        noise = [
            torch.randn(shape, generator=stream(seed, "evaluation", flat.device), dtype=flat.dtype, device=flat.device)
            for seed in seeds
        ]
        weights = ensemble.model.layout.views(flat[at])
        averages, points, local = forward(ensemble, weights, split, world, torch.stack(noise), names)
        truth = None
        if split.truth is not None and contrast is not None:
            truth = MixingTruth(split.truth.log_px[world], contrast[world])
        # the sources of a single world are ranked and standardised once, not for each member
        sources = split.sources[0].T if len(ensemble.worlds) == 1 else split.sources[world].transpose(1, 2)
        evaluation = Evaluation(
            averages, weights[GAMMA].exp(), points.sample, points.location, points.cdf, local, truth, sources, discrete
        )
        parts.append({metric.name: metric.compute(evaluation) for metric in wanted if not metric.across_members})
        # a view would keep all points of all members
        locations.append(points.location[..., : identifiability.AGREEMENT_POINTS].contiguous())
    result = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if any(metric.across_members for metric in wanted):
        every = AllMembers(torch.cat(locations), [(member.point, member.world) for member in members])
        result |= {metric.name: metric.compute(every) for metric in wanted if metric.across_members}
    return {name: result[name].double().cpu() for name in names}


def shortened(split: Split, observed: int) -> Split:
    """The part of a validation split that is evaluated: of images, the first ones."""
    return split.first(_affordable(split, VALIDATED, observed))


def _affordable(split: Split, numbers: int, observed: int) -> int:
    """Number of points to take: all, or as many images as hold ``numbers`` numbers, in whole chunks."""
    size = evaluated(observed)
    return len(split) if split.images is None else min(len(split), max(1, numbers // (observed * size)) * size)


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
        ensemble: the ensemble of the members.
        weights: their weights.
        split: the observations.
        world: index of each member's world.
        noise: standard normal, of the posterior samples.
        names: metrics that are asked for; mcc_cdf, mse_source and amari need more work.
        keep_variance: whether to keep the posterior's variance and its formula at each point.
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
        add("mse_obs", (reconstruction - x).square().mean((1, 2)))
        if "mse_source" in names:  # otherwise the decoder can't take sources for latents
            add("mse_source", _cycle_error(model, weights, chunk(split.sources, world, at)))
        add("prior_variance", model.prior.variance(theta).double().expand_as(y).mean(2))  # of each latent
        chunks.append(Points(z, location, cdf=model.prior.cdf(z, theta) if "mcc_cdf" in names else None))
    return sums, Points(*_joined(chunks)), ima.LocalTerms(*_joined(near))


def _joined(chunks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Concatenate each field of all chunks."""
    return (None if parts[0] is None else torch.cat(parts, -1) for parts in zip(*chunks, strict=True))


def _cycle_error(model: VAE, weights: Weights, s: Float[Tensor, "member d chunk"]) -> Float[Tensor, " member"]:
    """Mean squared error of sources that are decoded and encoded again."""
    cycle = model.prior.latent(model.posterior(weights, model.decoder(weights, s)).mean)
    return (cycle - s).square().mean((1, 2))
