"""A few points of a split under each member, latents matched to sources: what the figures of one run show."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from imavae.data.dataset import Split
from imavae.metrics.evaluate import forward
from imavae.metrics.identifiability import correlation
from imavae.training.ensemble import Ensemble

POINTS = 1000  # enough to see a shape, few enough to draw


class Portrait(NamedTuple):
    """Latent k is the one matched to source k. Variances, of the unconstrained y, are in the latents' own order, and so
    are the latents where nobody knows the sources: those have no rows then.
    """

    sources: Float[Tensor, "member s n"]
    latents: Float[Tensor, "member d n"]  # locations, on the prior's support
    variance: Float[Tensor, "member d m"]  # of the posterior, where Jacobians are taken: at the first of the points
    formula: Float[Tensor, "member d m"]  # sigma_k^2, see ima.inverse_variance


@torch.no_grad()
def portrait(
    ensemble: Ensemble, flat: Float[Tensor, "member parameter"], rows: Int[Tensor, " member"], split: Split
) -> Portrait:
    """The first points of a split, as the members in ``rows`` with weights ``flat`` see them; on the CPU."""
    few = dataclasses.replace(split.first(POINTS), truth=None)
    world = ensemble.world_of(rows)
    sources = few.sources[world].transpose(1, 2)
    weights = ensemble.model.layout.views(flat)
    noise = sources.new_zeros(len(rows), ensemble.model.dim, len(few))
    _, points, local = forward(ensemble, weights, few, world, noise, ["variance"])
    variance, inverse = local.variance, local.inverse_variance
    assert variance is not None  # noqa: S101  -- they were asked for
    assert inverse is not None  # noqa: S101
    if not ensemble.config.data.has_sources:
        return Portrait(sources.cpu(), points.location.cpu(), variance.cpu(), 1 / inverse.cpu())
    discrete = [factor.discrete for factor in ensemble.config.data.factors]
    tables = correlation(sources, points.location, discrete).abs().nan_to_num().cpu().numpy()
    order = torch.tensor([linear_sum_assignment(table, maximize=True)[1].tolist() for table in tables])
    latents = torch.take_along_dim(points.location.cpu(), order[:, :, None], dim=1)
    return Portrait(sources.cpu(), latents, variance.cpu(), 1 / inverse.cpu())
