"""Observations of one or several synthetic worlds, or of a file, in three splits that rest on the device.

A world is drawn from its own seed, in float64. With segments, each observation has an auxiliary variable u, uniform
over the segments, and each (segment, component) a variance factor v ~ U(data.variances): the source's own variance is
multiplied by v; that of a bounded source by v / data.variances[1], so that it stays within its support.

A file's rows are split by the seed, too: its world n is the n-th split of it, standardised by its own training rows.

Images lie in the order of the splits, a cached file for each world.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from imavae.config.data import Data, DrawnData, FileData, SpritesData, SyntheticData
from imavae.data import mixing, sources, sprites
from imavae.data import tables as files
from imavae.data.cache import Cache, Progress
from imavae.data.images import Images
from imavae.data.mixing import Mixing
from imavae.data.sources import Scalable, Source
from imavae.errors import UserError, require
from imavae.rng import stream


@dataclass(frozen=True)
class Truth:
    """What the mixing knows exactly about each observation."""

    log_px: Float64[Tensor, "world n"]  # log p(x) = log p(s) - log |det J(s)|; with segments log p(x|u), of p(s|u)
    jacobian: Float[Tensor, "world o d n"]  # of the mixing at the source


@dataclass(frozen=True)
class Split:
    """Sources and the observations made of them, row by row, in each world."""

    sources: Float[Tensor, "world n s"]  # without columns where nobody knows them
    observations: Float[Tensor, "world n o"]  # without columns where they are images
    segments: Int[Tensor, "world n"] | None  # u, from 0 up; None where there is one segment
    support: tuple[float, float] | None  # the interval that each source lives on; None where nobody knows
    truth: Truth | None  # None for the training split, and where the mixing has none
    images: Images | None = None

    def __len__(self) -> int:
        return self.observations.shape[1]

    def block(self, world: Int[Tensor, " member"], at: slice) -> Float[Tensor, "member o batch"]:
        """Observations, one after the other, of each member's world; nobody may write into them."""
        if self.images is not None:
            return self.images.block(world, at)
        return chunk(self.observations, world, at)

    def first(self, count: int) -> Split:
        """The first rows of each world."""
        truth = self.truth
        return Split(
            sources=self.sources[:, :count],
            observations=self.observations[:, :count],
            segments=None if self.segments is None else self.segments[:, :count],
            support=self.support,
            truth=None if truth is None else Truth(truth.log_px[:, :count], truth.jacobian[..., :count]),
            images=None if self.images is None else self.images.first(count),
        )


def chunk(
    rows: Float[Tensor, "world n d"], world: Int[Tensor, " member"], at: slice
) -> Float[Tensor, "member d chunk"]:
    """Some points of each member's world; a single world is shared, not copied for each of them."""
    if len(rows) == 1:
        return rows[0, at].T.contiguous().expand(len(world), -1, -1)
    return rows[world, at].transpose(1, 2).contiguous()


class Scaling(NamedTuple):
    """What standardises the columns of a file; part of each model that has learned from them."""

    mean: Float64[Tensor, " o"]
    std: Float64[Tensor, " o"]


@dataclass(frozen=True)
class Dataset:
    """The exact mixing of each world (its shift centres the observations) and the splits made with them."""

    mixings: tuple[Mixing, ...]  # none of a file and of images
    train: Split
    val: Split
    test: Split
    scalings: tuple[Scaling, ...] = ()  # of each world of a file whose columns are standardised


class World(NamedTuple):
    """One world in float64."""

    mixing: Mixing
    source: Source  # that of p(s|u), row by row, where there are segments
    sources: Float64[Tensor, "n d"]
    observations: Float64[Tensor, "n d"]
    segments: Int[Tensor, " n"] | None


class Place(NamedTuple):
    """As what numbers rest, and where."""

    dtype: torch.dtype
    device: torch.device | str


def make(
    data: Data,
    seeds: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    cache: Cache | None = None,
) -> Dataset:
    """The world of each seed (``data.seed`` is not used), with its splits on ``device`` as ``dtype``.

    The last dataset is kept and shared: nobody may write into it. Images are in ``cache``, rendered if need be.

    Raises:
        UserError: a person's own source or mixing that gives no such numbers, segments that it can't have, or a file
            that can't be used or written.
    """
    return _make(data, seeds, Place(dtype, device), cache or Cache(), tuple(map(files.stamp, data.files)))


@functools.lru_cache(maxsize=1)  # a study's trials share their data
def _make(
    data: Data,
    seeds: tuple[int, ...],
    place: Place,
    cache: Cache,
    stamps: tuple[files.Stamp, ...],  # noqa: ARG001  -- they tell a file that has changed since
) -> Dataset:
    dtype, device = place
    if isinstance(data, FileData):
        return _from_file(data, seeds, dtype, device)
    if isinstance(data, SpritesData):
        return _images(data, seeds, place, cache)
    if not isinstance(data, SyntheticData):
        raise TypeError(f"no data of the kind {type(data).__name__}")
    empty = functools.partial(_empty, data, len(seeds), dtype=dtype, device=device)
    sizes = data.sizes
    splits = empty(sizes[0], known=False), empty(sizes[1], known=True), empty(sizes[2], known=True)
    mixings = []
    for number, seed in enumerate(seeds):
        drawn = world(dataclasses.replace(data, seed=seed))
        mixings.append(drawn.mixing)
        order = torch.randperm(data.n_obs, generator=stream(seed, "split"))
        for split, rows in zip(splits, torch.split(order, list(sizes)), strict=True):
            _fill(split, number, drawn, rows)
    return Dataset(tuple(mixings), *splits)


def _from_file(data: FileData, seeds: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Dataset:
    """The splits of a person's own observations."""
    x = torch.from_numpy(files.read(data.path, data.columns, data.n_obs))
    s, u = torch.empty(data.n_obs, 0), None
    if data.sources_path is not None:
        s = torch.from_numpy(files.read(data.sources_path, None, data.n_obs, "data.sources_path"))
    if data.segment_column is not None:
        u = torch.from_numpy(files.labels(data.path, data.segment_column, data.n_obs))
        found, rule = int(u.max()) + 1, "data.n_segments is the number of labels"
        require(found == data.n_segments, rule, f"{data.n_segments} for {found}", "leave it at null, which counts them")
    train, val, test = (_empty(data, len(seeds), n, False, dtype, device) for n in data.sizes)
    scalings = []
    for number, seed in enumerate(seeds):
        order = torch.split(torch.randperm(data.n_obs, generator=stream(seed, "split")), list(data.sizes))
        scaling = _scaling(x[order[0]], data) if data.standardise else None
        scalings += [] if scaling is None else [scaling]
        for split, rows in zip((train, val, test), order, strict=True):
            observed = x[rows] if scaling is None else (x[rows] - scaling.mean) / scaling.std
            split.observations[number], split.sources[number] = observed, s[rows]
            if split.segments is not None and u is not None:
                split.segments[number] = u[rows]
    return Dataset((), train, val, test, tuple(scalings))


def _images(data: SpritesData, seeds: tuple[int, ...], place: Place, cache: Cache) -> Dataset:
    """The splits of images, in memory maps."""
    splits, maps = [_empty(data, len(seeds), n, False, *place) for n in data.sizes], []
    for number, seed in enumerate(seeds):
        drawn = _drawn(dataclasses.replace(data, seed=seed))
        order = torch.randperm(data.n_obs, generator=stream(seed, "split"))
        s = sprites.settled(data, drawn.sources)
        scenes = sprites.scenes(data, s[order], stream(seed, "mixing"))
        maps.append(sprites.images(scenes, data, cache.folder, _part(cache.progress, number, len(seeds))))
        for split, rows in zip(splits, torch.split(order, list(data.sizes)), strict=True):
            split.sources[number] = s[rows]
            if split.segments is not None and drawn.segments is not None:
                split.segments[number] = drawn.segments[rows]
    first, last = data.sizes[0], data.n_obs - data.sizes[2]
    places = slice(first), slice(first, last), slice(last, None)
    train, val, test = (
        dataclasses.replace(split, images=Images(tuple(images[at] for images in maps), *place))
        for split, at in zip(splits, places, strict=True)
    )
    return Dataset((), train, val, test)


def _part(progress: Progress | None, number: int, worlds: int) -> Progress | None:
    """The progress of all worlds, told that of one of them."""
    if progress is None:
        return None
    told = progress
    return lambda done, of: told(number * of + done, worlds * of)


def _scaling(x: Float64[Tensor, "n o"], data: FileData) -> Scaling:
    mean, std = x.mean(0), x.std(0, correction=0)
    constant = [name for name, zero in zip(data.columns, (std <= 0).tolist(), strict=True) if zero]
    got = f"column {', '.join(constant)} of {data.path}"
    require(not constant, "columns to standardise vary in the training split", got, "leave it out of data.columns")
    return Scaling(mean, std)


class Drawn(NamedTuple):
    """The sources of one world in float64."""

    source: Source
    sources: Float64[Tensor, "n d"]
    segments: Int[Tensor, " n"] | None


def _drawn(data: DrawnData) -> Drawn:
    source, segments = sources.build(data.source), None
    if data.n_segments > 1:
        segments, factors = _segments(data)
        source = _scaled(source, factors, data)
    s = source.sample(data.n_obs, data.dim, stream(data.seed, "sources"))
    _check(s, "source", data)
    return Drawn(source, s, segments)


def world(data: SyntheticData) -> World:
    """The world of ``data.seed``. Raises as :func:`make` does."""
    source, s, segments = _drawn(data)
    f = mixing.build(data)
    f = f.shifted(-f.forward(s).mean(0))
    x = f.forward(s)
    _check(x, "mixing", data)
    return World(f, source, s, x, segments)


def _segments(data: DrawnData) -> tuple[Int[Tensor, " n"], Float64[Tensor, "n d"]]:
    """u, and the variance factors of each observation."""
    low, high = data.variances
    table = torch.rand(data.n_segments, data.dim, generator=stream(data.seed, "variances"), dtype=torch.float64)
    u = torch.randint(data.n_segments, (data.n_obs,), generator=stream(data.seed, "segments"))
    return u, (low + (high - low) * table)[u]


def _scaled(source: Source, factors: Float64[Tensor, "n d"], data: DrawnData) -> Source:
    if not isinstance(source, Scalable):
        raise UserError(
            f"`data.n_segments is 1 for a source without a method scaled` must hold, but got {data.n_segments}; "
            f"add `scaled` to {type(source).__name__}, as {Scalable.__module__}.{Scalable.__name__} describes it"
        )
    bounded = math.isfinite(data.source.support[1])
    return source.scaled(factors / data.variances[1] if bounded else factors)


def _check(values: Tensor, key: str, data: DrawnData) -> None:
    """Raise UserError unless these are ``data.n_obs`` finite float64 vectors: a person's own code may give others."""
    shape = (data.n_obs, data.dim)
    proper = values.shape == shape and values.dtype == torch.float64 and bool(values.isfinite().all())
    got = f"{values.dtype} {tuple(values.shape)} of data.{key}.name={getattr(data, key).name}"
    require(proper, f"data.{key} gives finite float64 numbers of shape {shape}", got, "correct its settings or code")


def _empty(data: Data, worlds: int, n: int, known: bool, dtype: torch.dtype, device: torch.device | str) -> Split:
    """A split to be filled world by world, so that no second copy of many worlds is ever held."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    jacobian = (worlds, data.observed, data.dim, n)
    return Split(
        sources=empty(worlds, n, data.dim if data.has_sources else 0, dtype=dtype),
        observations=empty(worlds, n, 0 if isinstance(data, SpritesData) else data.observed, dtype=dtype),
        segments=empty(worlds, n, dtype=torch.int64) if data.n_segments > 1 else None,
        support=data.support,
        truth=Truth(empty(worlds, n, dtype=torch.float64), empty(*jacobian, dtype=dtype)) if known else None,
    )


def _fill(split: Split, number: int, drawn: World, rows: Int[Tensor, " m"]) -> None:
    """Copy the rows of one world into its place."""
    s = drawn.sources[rows]
    split.sources[number] = s
    split.observations[number] = drawn.observations[rows]
    if split.segments is not None and drawn.segments is not None:
        split.segments[number] = drawn.segments[rows]
    if split.truth is not None:
        log_ps = drawn.source.log_prob(drawn.sources)[rows]
        split.truth.log_px[number] = log_ps - drawn.mixing.log_det(s)
        split.truth.jacobian[number] = drawn.mixing.jacobian(s).permute(1, 2, 0)
