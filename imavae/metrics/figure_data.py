"""Data behind the figures of one run: latents against sources, posterior variances, and decoded images."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imavae.data.dataset import Split
from imavae.metrics.evaluate import forward
from imavae.metrics.identifiability import best_matching, correlation
from imavae.training.ensemble import Ensemble, evaluated

SCATTERED = 1000  # points of a split in the figures of latents and variances
IMAGES = 10  # images of a split in the figure of reconstructions
STEPS = 9  # of a traversal
ENDS = 0.01, 0.99  # quantiles of a latent, over points, between which its traversal runs
QUANTILE_POINTS = 640  # points from which these quantiles and the matched factors are estimated


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
    """Latents and posterior variances of the members in ``rows``, with weights ``flat``, at the split's first points;
    on the CPU.
    """
    few = dataclasses.replace(split.first(SCATTERED), truth=None)
    world = ensemble.world_of(rows)
    sources = few.sources[world].transpose(1, 2)
    noise = sources.new_zeros(len(rows), ensemble.model.dim, len(few))
    _, points, local = forward(ensemble, ensemble.model.layout.views(flat), few, world, noise, keep_variance=True)
    variance, inverse = local.variance, local.inverse_variance
    assert variance is not None  # noqa: S101  -- asked for by name
    assert inverse is not None  # noqa: S101
    latents = points.location.cpu()
    if ensemble.config.data.has_sources:
        discrete = [factor.discrete for factor in ensemble.config.data.source_factors]
        tables = correlation(sources, points.location, discrete).abs().nan_to_num().cpu().numpy()
        order = torch.tensor([best_matching(table)[1].tolist() for table in tables])
        latents = torch.take_along_dim(latents, order[:, :, None], dim=1)
    return PosteriorShapes(sources.cpu(), latents, variance.cpu(), 1 / inverse.cpu())


class ImagePanels(NamedTuple):
    """Each image is a flat row of 3 x side x side numbers in [0, 1], in the order (channel, row, column)."""

    worlds: list[int]  # of each member: members of one world have the same observations
    observations: Float[Tensor, "member image o"]
    reconstructions: Float[Tensor, "member image o"]  # decoded from the posterior's location
    values: Float[Tensor, "d step"]  # of each latent of one member, while the others stay at their medians
    traversals: Float[Tensor, "d step o"]
    factors: list[str | None]  # matched with each latent of that member; None without correlation


@torch.no_grad()
def image_panels(
    ensemble: Ensemble, flat: Float[Tensor, "member parameter"], rows: Int[Tensor, " member"], split: Split, best: int
) -> ImagePanels:
    """Reconstructions of the split's first images by the members in ``rows`` with weights ``flat``, and latent
    traversals of the ``best``-th of them.
    """
    model, world = ensemble.model, ensemble.world_of(rows)
    weights, one = model.layout.views(flat), model.layout.views(flat[best : best + 1])
    x = split.block(world, slice(IMAGES))
    reconstructions = model.decoder(weights, model.prior.latent(model.posterior(weights, x).mean))
    points, size = split.first(QUANTILE_POINTS), evaluated(ensemble.config.data.observed)
    blocks = [points.block(world[best : best + 1], slice(at, at + size)) for at in range(0, len(points), size)]
    location = torch.cat([model.prior.latent(model.posterior(one, block).mean) for block in blocks], 2)[0]
    low, high = location.quantile(torch.tensor(ENDS, dtype=location.dtype, device=location.device), 1)
    values = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, STEPS, device=low.device, dtype=low.dtype)
    codes = location.median(1).values[:, None, None].repeat(1, model.dim, STEPS)  # (latent, row, step)
    for k in range(model.dim):
        codes[k, k] = values[k]
    traversals = model.decoder(one, codes.flatten(1)[None])[0].T.reshape(model.dim, STEPS, -1)
    return ImagePanels(
        world.tolist(),
        x.transpose(1, 2).cpu(),
        reconstructions.transpose(1, 2).clamp(0, 1).cpu(),
        values.cpu(),
        traversals.clamp(0, 1).cpu(),
        _matched_factors(ensemble, points.sources[world[best]].T, location),
    )


def _matched_factors(ensemble: Ensemble, s: Float[Tensor, "d n"], location: Float[Tensor, "d n"]) -> list[str | None]:
    """Name of the factor matched with each latent, one to one."""
    factors = ensemble.config.data.source_factors
    table = correlation(s[None], location[None], [factor.discrete for factor in factors])[0].abs().cpu().numpy()
    names: list[str | None] = [None] * location.shape[0]
    for source, latent in zip(*best_matching(table), strict=True):
        if table[source, latent] > 0:
            names[latent] = factors[source].name
    return names
