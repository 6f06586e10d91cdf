"""A few images as members see them: reconstructions, and what each latent of one of them changes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from imavae.data.dataset import Split
from imavae.metrics.identifiability import correlation
from imavae.training.ensemble import Ensemble, evaluated

SHOWN = 10  # images of a split
STEPS = 9  # of a traversal
ENDS = 0.01, 0.99  # the quantiles of a latent, over points, that its traversal goes from and to
POINTS = 640  # that these quantiles, and the factors that latents match, are taken of


class Gallery(NamedTuple):
    """Images are flat rows of 3 x side x side numbers in [0, 1], in the order (channel, row, column)."""

    worlds: list[int]  # of each member: those of one world have the same observations
    observations: Float[Tensor, "member image o"]
    reconstructions: Float[Tensor, "member image o"]  # from the posterior's location
    values: Float[Tensor, "d step"]  # of each latent of one member; the others stay at their medians
    traversals: Float[Tensor, "d step o"]
    factors: list[str | None]  # that its latents match; None for a latent that matches nothing


@torch.no_grad()
def gallery(
    ensemble: Ensemble, flat: Float[Tensor, "member parameter"], rows: Int[Tensor, " member"], split: Split, best: int
) -> Gallery:
    """The first images of a split under the members in ``rows`` with weights ``flat``; the ``best``-th's traversals."""
    model, world = ensemble.model, ensemble.world_of(rows)
    weights = ensemble.model.layout.views(flat)
    x = split.block(world, slice(SHOWN))
    reconstructions = model.decoder(weights, model.prior.latent(model.posterior(weights, x).mean))
    one = model.layout.views(flat[best : best + 1])
    points = split.first(POINTS)
    size = evaluated(ensemble.config.data.observed)
    blocks = [points.block(world[best : best + 1], slice(at, at + size)) for at in range(0, len(points), size)]
    location = torch.cat([model.prior.latent(model.posterior(one, block).mean) for block in blocks], 2)[0]
    low, high = location.quantile(torch.tensor(ENDS, dtype=location.dtype, device=location.device), 1)
    values = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, STEPS, device=low.device, dtype=low.dtype)
    codes = location.median(1).values[:, None, None].repeat(1, model.dim, STEPS)  # (latent, row, step)
    for k in range(model.dim):
        codes[k, k] = values[k]
    traversals = model.decoder(one, codes.flatten(1)[None])[0].T.reshape(model.dim, STEPS, -1)
    return Gallery(
        world.tolist(),
        x.transpose(1, 2).cpu(),
        reconstructions.transpose(1, 2).clamp(0, 1).cpu(),
        values.cpu(),
        traversals.clamp(0, 1).cpu(),
        _matched(ensemble, points.sources[world[best]].T, location),
    )


def _matched(ensemble: Ensemble, s: Float[Tensor, "d n"], location: Float[Tensor, "d n"]) -> list[str | None]:
    """The factor that each latent matches best, one to one."""
    factors = ensemble.config.data.factors
    table = correlation(s[None], location[None], [factor.discrete for factor in factors])[0].abs().cpu().numpy()
    names: list[str | None] = [None] * location.shape[0]
    for source, latent in zip(*linear_sum_assignment(table, maximize=True), strict=True):
        if table[source, latent] > 0:
            names[latent] = factors[source].name
    return names
