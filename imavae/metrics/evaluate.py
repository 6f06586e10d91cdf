"""Evaluation of members on a split, in blocks: the metrics, and the data of the figures. A member's values do not
depend on its company.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from imavae.data.dataset import Split
from imavae.metrics.forward import Evaluation
from imavae.metrics.glossary import CURVE_POINTS, METRICS, AllMembers, absent
from imavae.metrics.identifiability import AGREEMENT_POINTS, active, best_matching, correlation
from imavae.metrics.linear import Maps
from imavae.metrics.regression import Fits
from imavae.model.export import traversed
from imavae.rng import stream
from imavae.training.ensemble import EVALUATED_POINTS, Ensemble, evaluated

ACTIVATIONS = 2**19  # at most, per block of members and chunk of points
SCATTERED = 1000  # points of a split in the figures of latents and variances
IMAGES = 10  # images of a split in the figure of reconstructions
QUANTILE_POINTS = 640  # points from which these quantiles and the matched factors are estimated


@torch.no_grad()
def evaluate(
    ensemble: Ensemble,
    flat: Float[Tensor, "member parameter"],
    rows: Int[Tensor, " member"],
    split: Split,
    maps: Callable[[], Maps],
    probes: bool = False,
    objectives: Collection[str] | None = None,
    only: Collection[str] | None = None,
    fits: Callable[[], Fits] | None = None,
    rendered: Callable[[], Float64[Tensor, " world"]] | None = None,
) -> dict[str, Float64[Tensor, " member"]]:
    """Compute every metric that the setting has over the whole split, for the members in ``rows`` with weights
    ``flat``; with ``probes`` also the slow ones. ``maps`` gives the linear maps of all worlds, and ``fits`` the
    estimates of their mixings, if they are needed; ``rendered`` the contrasts of the renderer of sprites.

    With ``objectives``, metrics like ``mcc``, it is a validation during training: objectives and the metrics whose
    curve is over ``all`` points are computed as above, those whose curve is over the ``first`` points are estimated
    there, and all others are left out. ``only`` names the metrics that are computed, by default all of these.

    A member's posterior noise is drawn from its seed alone, the same at each call: two validations differ in the
    weights only. Returns float64 tensors on the CPU.
    """
    missing = absent(ensemble.config, split.truth is not None, probes)
    whole, first = [m for m in METRICS if m.name not in missing and (only is None or m.name in only)], []
    if objectives is not None:
        first = [metric for metric in whole if metric.curve == "first" and metric.name not in objectives]
        whole = [metric for metric in whole if metric.curve == "all" or metric.name in objectives]
    sizes = [n for shape in ensemble.model.layout.shapes.values() for n in shape[:1]]
    block = max(1, ACTIVATIONS // (max(sizes) * EVALUATED_POINTS))
    members, worlds = [ensemble.members[row] for row in rows.tolist()], ensemble.world_of(rows)
    compared = any(metric.name == "amari" for metric in whole)
    parts: dict[str, list[Tensor]] = {metric.name: [] for metric in (*whole, *first)}
    for start in range(0, len(flat), block):
        some = slice(start, start + block)
        noise = _noise(flat, [member.seed for member in members[some]], ensemble.model.dim, len(split))
        points = Evaluation.over(ensemble, flat[some], split, worlds[some], noise, compared, maps, fits, rendered)
        for metrics, at in ((whole, points), (first, points.first(CURVE_POINTS))):
            for metric in metrics:
                if metric.across_members:  # of its input a copy is kept: a view would keep all points
                    parts[metric.name].append(at.locations[..., :AGREEMENT_POINTS].clone())
                else:
                    parts[metric.name].append(metric.compute(at))
    values = {name: torch.cat(parts[name]) for name in METRICS.names() if name in parts}
    groups = [(member.point, member.world) for member in members]
    for name in (name for name in values if METRICS[name].across_members):
        values[name] = METRICS[name].compute(AllMembers(values[name], groups))
    return {name: value.double().cpu() for name, value in values.items()}


def _noise(flat: Tensor, seeds: Sequence[int], dim: int, n: int) -> Float[Tensor, "member d n"]:
    """Standard normal noise of the posteriors, on the device of ``flat``: the same for a seed at each call."""
    noise = flat.new_empty(len(seeds), dim, n)
    for row, seed in zip(noise, seeds, strict=True):
        row.normal_(generator=stream(seed, "evaluation", flat.device))
    return noise


@torch.no_grad()
def latent_rows(
    ensemble: Ensemble, flat: Float[Tensor, "1 parameter"], row: int, split: Split
) -> list[dict[str, int | float | str]]:
    """Describe each latent of the member ``row`` with weights ``flat``, over a split.

    Returns a mapping per latent: its number, from 1; where the sources are known, the matched ``source``, if there is
    one for it, and the ``correlation`` of its location with it; the geometric means of the posterior's ``variance`` and
    of its ``formula``, both in the unconstrained coordinate; the mean ``column_norm``; its term ``kl`` of the KL
    divergence, from one posterior sample per point (nats); and 1 if it is ``active``, else 0. A flow has no variances
    and no ``kl``.
    """
    world = ensemble.world_of(torch.tensor([row], device=ensemble.device))
    noise = _noise(flat, [ensemble.members[row].seed], ensemble.model.dim, len(split))
    at = Evaluation.over(ensemble, flat, split, world, noise)
    y = at.posterior.sample(noise)
    columns = {
        "column_norm": at.local.contrast.norms.mean(2),
        "active": active(at.locations, at.prior_variance_of_latents).int(),
    }
    if not ensemble.config.model.is_flow:
        columns |= {
            "variance": at.variances.posterior.log().mean(2).exp(),
            "formula": (-at.variances.inverse_formula.log().mean(2)).exp(),
            "kl": -(at.posterior.entropy() + ensemble.model.prior.log_prob(y, at.theta())).mean(2),
        }
    rows: list[dict[str, int | float | str]] = [{"latent": k + 1} for k in range(ensemble.model.dim)]
    if ensemble.config.data.has_sources:
        factors, table = ensemble.config.data.source_factors, at.correlation(at.standardised_locations)[0].cpu()
        for entry in rows:
            entry |= {"source": "", "correlation": math.nan}
        for s, z in zip(*best_matching(table.nan_to_num().abs().numpy()), strict=True):
            rows[z] |= {"source": factors[s].name, "correlation": float(table[s, z])}
    for name, values in columns.items():
        for entry, value in zip(rows, values[0].tolist(), strict=True):
            entry[name] = value
    return rows


class PosteriorShapes(NamedTuple):
    """Latents in the order of the sources that they are matched with, then the others. Variances refer to the
    unconstrained y and keep the latents' own order; so do the latents where the sources are unknown (``sources`` and
    ``correlation`` have no rows then).
    """

    sources: Float[Tensor, "member s n"]
    latents: Float[Tensor, "member d n"]  # posterior locations on the prior's support
    correlation: Float[Tensor, "member s d"]  # of these sources with these latents; 0 with a constant one
    numbers: Int[Tensor, "member d"]  # of the latents, from 0
    matched: Int[Tensor, "member s"]  # place among these latents of the one of each source; -1: it has none
    variance: Float[Tensor, "member d m"] | None  # of the posterior, at the first m points: those with Jacobians
    formula: Float[Tensor, "member d m"] | None  # σ_k² by :func:`ima.inverse_variance`; both None for a flow


@torch.no_grad()
def posterior_shapes(
    ensemble: Ensemble, flat: Float[Tensor, "member parameter"], rows: Int[Tensor, " member"], split: Split
) -> PosteriorShapes:
    """Latents and posterior variances of the members in ``rows`` with weights ``flat``, at the first points."""
    few, world = split.first(SCATTERED), ensemble.world_of(rows)
    sources = few.sources[world].mT
    noise = sources.new_zeros(len(rows), ensemble.model.dim, len(few))
    points = Evaluation.over(ensemble, flat, few, world, noise)
    latents = points.locations.cpu()
    table = points.correlation(points.standardised_locations).nan_to_num().cpu()
    numbers, matched = torch.arange(latents.shape[1]).repeat(len(rows), 1), torch.full(table.shape[:2], -1)
    for m, one in enumerate(table.abs().numpy()):
        s, z = map(torch.from_numpy, best_matching(one))
        matched[m, s] = torch.arange(len(s))
        numbers[m] = torch.cat([z, numbers[m][~torch.isin(numbers[m], z)]])
    latents = torch.take_along_dim(latents, numbers[:, :, None], dim=1)
    table = torch.take_along_dim(table, numbers[:, None], dim=2)
    variance = formula = None
    if not ensemble.config.model.is_flow:
        variance, formula = points.variances.posterior.cpu(), 1 / points.variances.inverse_formula.cpu()
    return PosteriorShapes(sources.cpu(), latents, table, numbers, matched, variance, formula)


class ImagePanels(NamedTuple):
    """Each image is a flat row of 3 x side x side numbers in [0, 1], in the order (channel, row, column)."""

    worlds: list[int]  # of each member: members of one world have the same observations
    observations: Float[Tensor, "member image o"]
    reconstructions: Float[Tensor, "member image o"]  # decoded from the posterior's location
    values: Float[Tensor, "d step"]  # of each latent of one member, while the others stay at their medians
    traversals: Float[Tensor, "d step o"]
    factors: list[str | None]  # matched with the latents of that member; None: with none, or without correlation


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
    points, size = split.first(QUANTILE_POINTS), evaluated(data.features)
    blocks = [points.block(world[best : best + 1], slice(at, at + size)) for at in range(0, len(points), size)]
    location = torch.cat([model.prior.latent(model.posterior(one, block).mean) for block in blocks], 2)[0]
    values, codes = traversed(location.T)
    traversals = model.decoder(one, codes.flatten(0, 1).T[None])[0].T.reshape(*codes.shape[:2], -1)
    discrete = [factor.discrete for factor in data.source_factors]
    table = correlation(points.sources[world[best]].T[None], location[None], discrete)[0].abs().cpu().numpy()
    matched = {z: s for s, z in zip(*best_matching(table), strict=True) if table[s, z] > 0}
    return ImagePanels(
        world.tolist(),
        x.mT.cpu(),
        reconstructions.mT.clamp(0, 1).cpu(),
        values.cpu(),
        traversals.clamp(0, 1).cpu(),
        [data.source_factors[matched[k]].name if k in matched else None for k in range(model.dim)],
    )
