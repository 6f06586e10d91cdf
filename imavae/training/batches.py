"""Batches of an epoch and their noise, drawn once for all members with the same seed.

A seed's order of the observations and its noise depend neither on gamma nor on the data's seed nor on other searched
settings, so the members of a grid of gammas, or of many mixings, share what the first of them draws.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from imavae.data.dataset import Split
from imavae.training.ensemble import Ensemble, State

NOISE_STEPS = 32  # steps whose noise is drawn at once; a seed's numbers depend on it, so no machine changes it
GATHERED_NUMBERS = 2**18  # numbers of observations gathered at once, at least a step's: they should stay in cache

_Buffers = dict[tuple[object, ...], Tensor]  # by name and shape


class _Groups(NamedTuple):
    """Groups of members with the same draws; the first of a group draws for all."""

    firsts: list[int]  # positions of the members that draw
    of: Int[Tensor, " active"] | None  # for each member, the group it belongs to; None if each has its own

    @classmethod
    def among(cls, keys: Sequence[Hashable], device: torch.device) -> _Groups:
        """Group members with equal keys."""
        order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        of = None if len(order) == len(keys) else torch.tensor([order[key] for key in keys], device=device)
        return cls([keys.index(key) for key in order], of)

    def spread(self, drawn: Tensor, buffers: _Buffers, name: str) -> Tensor:
        """Repeat the groups' values for every member."""
        if self.of is None:
            return drawn
        out = _room(buffers, name, drawn, (len(self.of), *drawn.shape[1:]))
        return torch.index_select(drawn, 0, self.of, out=out)


def batches(ensemble: Ensemble, state: State, data: Split) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Batches (member, o, batch), noise (member, d, batch) and segments (member, batch) of one epoch, for every active
    member by its seed. Yielded tensors are overwritten later.

    The last batch holds the remaining observations. Afterwards every member's generators have advanced.
    """
    n, dim = len(data), ensemble.config.data.features
    size, device = ensemble.config.training.batch_size, ensemble.device
    members = [ensemble.members[row] for row in state.active.tolist()]
    seeds = _Groups.among([member.seed for member in members], device)
    pairs = _Groups.among([(member.seed, member.world) for member in members], device)
    worlds = ensemble.world_of(state.active[pairs.firsts])
    order = torch.empty(len(seeds.firsts), n, dtype=torch.int32, device=device)
    for row, first in zip(order, seeds.firsts, strict=True):
        torch.randperm(n, generator=state.batches[first], out=row)
    if seeds.of is not None:
        order = order[seeds.of[pairs.firsts]]
    order += n * worlds[:, None]  # the worlds lie one after the other
    observations = data.observations.flatten(0, 1)
    segments = None if data.segments is None else data.segments.flatten()
    buffers: _Buffers = {}
    full = n // size
    plan = [(first * size, min(NOISE_STEPS, full - first), size) for first in range(0, full, NOISE_STEPS)]
    for start, steps, batch in [*plan, (full * size, 1, n % size)] if n % size else plan:
        noise = _room(buffers, "drawn", observations, (len(seeds.firsts), steps, ensemble.model.dim, batch))
        for row, first in zip(noise, seeds.firsts, strict=True):
            row.normal_(generator=state.noise[first])
        at_once = max(1, min(steps, GATHERED_NUMBERS // (len(members) * batch * dim)))
        for done in range(0, steps, at_once):
            count = min(at_once, steps - done)
            begin = start + done * batch
            rows = order[:, begin : begin + count * batch]
            if data.images is None:
                flat = _room(buffers, "flat", observations, (len(rows) * count * batch, dim))
                torch.index_select(observations, 0, rows.flatten(), out=flat)
                x = _room(buffers, "x", observations, (len(rows), count, dim, batch))
                x.copy_(flat.view(len(rows), count, batch, dim).transpose(2, 3))
                parts: Iterable[Tensor] = pairs.spread(x, buffers, "spread x").unbind(1)
            else:
                each = (data.images.batch(worlds, part % n) for part in torch.split(rows, batch, 1))
                # a transposed view stays one: convolutions take an image's numbers one after the other
                parts = (pairs.spread(part.mT, buffers, "spread images").mT for part in each)
            u = None if segments is None else segments[rows].view(len(rows), count, batch)
            u = u if u is None else pairs.spread(u, buffers, "spread u")
            at_step = seeds.spread(noise[:, done : done + count], buffers, "spread noise")
            for step, part in enumerate(parts):
                yield part, at_step[:, step], None if u is None else u[:, step]
    # Advance the generators of the members that did not draw: the first of their group may stop before them.
    for position, place in enumerate([] if seeds.of is None else seeds.of.tolist()):
        if (first := seeds.firsts[place]) != position:
            for generators in (state.batches, state.noise):
                generators[position].set_state(generators[first].get_state())


def _room(buffers: _Buffers, name: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this name and shape, allocated once: fresh memory pages cost more than filling them."""
    if (name, *shape) not in buffers:
        buffers[name, *shape] = like.new_empty(shape)
    return buffers[name, *shape]
