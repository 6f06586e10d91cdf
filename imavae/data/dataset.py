"""Observations of one or several worlds in three splits on the device.

A world is one draw of mixing, sources and split from one seed, in float64. With segments, each observation has an
auxiliary variable u, uniform over the segments, and each (segment, component) a variance factor v ~ U(data.variances):
the source's variance is multiplied by v, that of a bounded source by v / data.variances[1], which keeps it within its
support. Sprites may draw a beta law for each (segment, factor) instead. A file's world is its rows, split by the seed
and standardised by the training rows. Drawn images are kept in one cached file per world, in the order of the splits;
those of a user's file in one for all worlds, in its order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Float64, Int, UInt8
from numpy import ndarray
from torch import Tensor

from imavae.config.data import (
    SMALLEST_SPLIT,
    Automorphism,
    Data,
    DrawnData,
    FileData,
    ImagesData,
    SourceSettings,
    SpritesData,
    SyntheticData,
)
from imavae.data import image_files, sprites, tables
from imavae.data.images import Cache, Images, Pixels, Progress, cached
from imavae.data.mixings import Mixing, Shifted, orthogonal
from imavae.data.mixings.automorphism import Rotation
from imavae.data.mixings.flow import Flow
from imavae.data.mixings.mlp import LinearOnTop
from imavae.data.sources import Beta, Normalised, Scalable, Source
from imavae.errors import require
from imavae.rng import stream


@dataclass(frozen=True)
class Truth:
    """Likelihood and Jacobian under the true mixing."""

    # log p(x) = log p(s) - log |det J(s)|; with segments log p(x|u), of p(s|u); without columns if x lies on a surface
    log_px: Float64[Tensor, "world l"]
    jacobian: Float[Tensor, "world o d n"]  # of the mixing at the source


@dataclass(frozen=True)
class Split:
    """Observations and their sources, row by row, in each world."""

    sources: Float[Tensor, "world n s"]  # without columns if unknown
    observations: Float[Tensor, "world n o"]  # without columns if they are images
    segments: Int[Tensor, "world n"] | None  # u, from 0 up; None if there is one segment
    support: tuple[float, float] | None  # interval that each source lives on; None if unknown
    truth: Truth | None  # None in the training split, and where the mixing is unknown
    images: Images | None = None
    derived: dict[str, Any] = field(default_factory=dict, init=False)  # metrics keep what depends on the split alone

    def __len__(self) -> int:
        return self.observations.shape[1]

    def block(self, world: Int[Tensor, " member"], at: slice) -> Float[Tensor, "member o batch"]:
        """A slice of the observations of each member's world, to be read only."""
        if self.images is not None:
            return self.images.block(world, at)
        return chunk(self.observations, world, at)

    def first(self, count: int) -> Split:
        """The first rows of each world."""
        segments = None if self.segments is None else self.segments[:, :count]
        truth = self.truth and Truth(self.truth.log_px[:, :count], self.truth.jacobian[..., :count])
        images = self.images and self.images.rows(slice(count))
        s, x = self.sources[:, :count], self.observations[:, :count].contiguous()  # as the compiled step needs them
        return Split(s, x, segments, self.support, truth, images)


def chunk(rows: Float[Tensor, "world n d"], world: Int[Tensor, " member"], at: slice) -> Float[Tensor, "member d m"]:
    """A slice of each member's world; a single world is shared, not copied for each of them."""
    if len(rows) == 1:
        return rows[0, at].T.contiguous().expand(len(world), -1, -1)
    return rows[world, at].transpose(1, 2).contiguous()


class Scaling(NamedTuple):
    """Mean and standard deviation that standardise a file's columns; part of each model trained on them."""

    mean: Float64[Tensor, " o"]
    std: Float64[Tensor, " o"]


@dataclass(frozen=True)
class Dataset:
    """Three splits, and how each world's observations were made."""

    mixings: tuple[Mixing, ...]  # of each world, centred; none for a file or images
    train: Split
    val: Split
    test: Split
    scalings: tuple[Scaling, ...] = ()  # of each world of a file whose columns are standardised
    sources_scaling: Scaling | None = None  # of a file, whose sources are standardised


class World(NamedTuple):
    """One synthetic world in float64."""

    mixing: Mixing
    source: Source  # with segments p(s|u), row by row
    sources: Float64[Tensor, "n d"]
    observations: Float64[Tensor, "n o"]
    segments: Int[Tensor, " n"] | None


class _Rows(NamedTuple):
    """The rows of one world of any kind, before they are split."""

    sources: Float[Tensor, "n s"]
    observations: Float[Tensor, "n o"]
    segments: Int[Tensor, " n"] | None
    world: World | None = None  # of synthetic data
    images: UInt8[ndarray, "n feature"] | None = None  # if drawn, in the order of the splits
    scaling: Scaling | None = None
    sources_scaling: Scaling | None = None


def make(
    data: Data,
    seeds: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    cache: Cache | None = None,
) -> Dataset:
    """The world of each seed (``data.seed`` is not used), with its splits on ``device`` as ``dtype``.

    The last dataset is kept and shared, so it must not be written into. Images are in ``cache``, rendered if need be.
    Raises UserError for a file that can't be used, and for a user's source or mixing that returns wrong numbers.
    """
    stamps = tuple(tables.stamp(path) for path in data.files)
    return _make(data, seeds, dtype, device, cache or Cache(), stamps)


@functools.lru_cache(maxsize=1)  # a study's trials share their data
def _make(
    data: Data,
    seeds: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str,
    cache: Cache,
    stamps: tuple[tables.Stamp, ...],  # noqa: ARG001  -- they differ once a file has changed
) -> Dataset:
    file = None
    if isinstance(data, FileData):
        file = _read(data)
    elif isinstance(data, ImagesData):
        file = _read_images(data, cache)
    orders = [_order(data, seed) for seed in seeds]
    sizes = [min(map(len, parts)) for parts in zip(*orders, strict=True)]  # they differ only with groups
    known = (False, True, True)  # the training split needs no truth
    splits = [_empty(data, len(seeds), n, truth, dtype, device) for n, truth in zip(sizes, known, strict=True)]
    mixings, scalings, images = [], [], []
    for number, (seed, parts) in enumerate(zip(seeds, orders, strict=True)):
        order = [part[:size] for part, size in zip(parts, sizes, strict=True)]
        progress = functools.partial(_report, cache.progress, number, len(seeds))
        drawn = file or _draw(replace(data, seed=seed), torch.cat(order), Cache(cache.folder, progress))
        if isinstance(data, FileData) and data.standardise:
            drawn = _standardised(drawn, data, order[0])
        for split, rows in zip(splits, order, strict=True):
            _fill(split, number, drawn, rows)
        mixings += [] if drawn.world is None else [drawn.world.mixing]
        scalings += [] if drawn.scaling is None else [drawn.scaling]
        at = torch.arange(data.n_obs) if file is None else torch.cat(order)
        images += [] if drawn.images is None else [Pixels(drawn.images, at.numpy())]
    if images:
        whole, last = Images(tuple(images), dtype, device, getattr(data, "white", 255)), data.n_obs - sizes[2]
        ends = slice(sizes[0]), slice(sizes[0], last), slice(last, None)
        splits = [replace(split, images=whole.rows(part)) for split, part in zip(splits, ends, strict=True)]
    train, val, test = splits
    return Dataset(tuple(mixings), train, val, test, tuple(scalings), file and file.sources_scaling)


def _order(data: Data, seed: int) -> tuple[Int[Tensor, " m"], ...]:
    """The rows of each split of one world. Groups are shuffled, and stay whole: a split ends where a group does."""
    generator = stream(seed, "split")
    if not isinstance(data, FileData) or data.group_column is None:
        count = data.available if isinstance(data, ImagesData) else data.n_obs
        return torch.split(torch.randperm(count, generator=generator)[: data.n_obs], list(data.sizes))
    groups = torch.from_numpy(tables.labels(data.path, data.group_column, data.n_obs, "data.group_column"))
    place = torch.randperm(int(groups.max()) + 1, generator=generator)[groups]
    ends = place.bincount().cumsum(0)
    wanted = torch.tensor(data.sizes).cumsum(0)[:2, None]
    first, last = ends[(ends - wanted).abs().argmin(1)].tolist()
    sizes = [first, last - first, data.n_obs - last]
    rule, got = f"each split has at least {SMALLEST_SPLIT} rows of whole groups", f"{sizes} of {len(ends)} groups"
    require(min(sizes) >= SMALLEST_SPLIT, rule, got, "use smaller groups, or change data.train and data.val")
    return torch.split(torch.argsort(place, stable=True), sizes)


def _draw(data: Data, order: Int[Tensor, " n"], cache: Cache) -> _Rows:
    """The rows of the world of ``data.seed``; its images are in the ``order`` of the splits."""
    if isinstance(data, SyntheticData):
        drawn = world(data)
        return _Rows(drawn.sources, drawn.observations, drawn.segments, world=drawn)
    if isinstance(data, SpritesData):
        _, s, segments = _draw_sources(data)
        s = sprites.settled(data, s)
        scenes = sprites.scenes(data, s[order], stream(data.seed, "mixing"))
        return _Rows(s, torch.empty(len(s), 0), segments, images=sprites.images(scenes, data, cache))
    raise TypeError(f"no data of the kind {type(data).__name__}")


def _read(data: FileData) -> _Rows:
    """A file's observations, sources and segments."""
    x = torch.from_numpy(tables.read(data.path, data.columns, data.n_obs))
    s, u = torch.empty(data.n_obs, 0), None
    if data.sources_path is not None:
        key = "data.sources_path"
        names = tables.sources_of(tables.open_table(data.sources_path, key), data.dim)
        s = torch.from_numpy(tables.read(data.sources_path, names, data.n_obs, key))
    found = tables.fingerprint(x.numpy(), s.numpy() if data.has_sources else None)
    rule, got = "the rows of data.path, and their sources, are those of data.fingerprint", f"others in {data.path}"
    remedy = "the file or the order of its rows has changed: put the old one back, or train with data.fingerprint=null"
    require(data.fingerprint in (None, found), rule, f"{got} ({found}, not {data.fingerprint})", remedy)
    if data.segment_column is not None:
        u = torch.from_numpy(tables.labels(data.path, data.segment_column, data.n_obs, bins=data.segment_bins))
        labels, rule = int(u.max()) + 1, "data.n_segments is the number of labels"
        remedy = "leave it at null, which counts them"
        require(labels == data.n_segments, rule, f"{data.n_segments} for {labels}", remedy)
    return _with_sources(_Rows(s, x, u))


def _read_images(data: ImagesData, cache: Cache) -> _Rows:
    """The images of a file, mapped or copied into the cache, and their factors."""
    found = image_files.check_unchanged(data)
    pixels = found.mapped
    if pixels is None:
        path = cache.folder / f"images-{tables.digest_of(data.path)[:32]}.npy"
        pixels = cached(path, (found.n, found.features), found.blocks, cache.progress)
    factors = image_files.factors_of(found, data.sources_path, data.names)
    s = torch.from_numpy(factors.of(data.factors))
    return _with_sources(_Rows(s, torch.empty(found.n, 0), None, images=pixels))


def _with_sources(rows: _Rows) -> _Rows:
    """The rows with sources, if there are any, of mean 0 and standard deviation 1."""
    s = rows.sources
    if not s.shape[1]:
        return rows
    # Sources may be numbers of days or of base pairs: what float32 would round away is subtracted before.
    scaling = Scaling(s.mean(0), s.std(0, correction=0))
    return rows._replace(sources=(s - scaling.mean) / scaling.std, sources_scaling=scaling)


def _standardised(rows: _Rows, data: FileData, train: Int[Tensor, " m"]) -> _Rows:
    """The rows with columns scaled by mean and standard deviation of the training rows."""
    x = rows.observations[train]
    mean, std = x.mean(0), x.std(0, correction=0)
    constant = [name for name, zero in zip(data.columns, (std <= 0).tolist(), strict=True) if zero]
    got = f"column {', '.join(constant)} of {data.path}"
    require(not constant, "columns to standardise vary in the training split", got, "leave it out of data.columns")
    return rows._replace(observations=(rows.observations - mean) / std, scaling=Scaling(mean, std))


def _report(progress: Progress | None, number: int, worlds: int, done: int, of: int) -> None:
    """Report the rows done in one world as part of those of all worlds."""
    if progress is not None:
        progress(number * of + done, worlds * of)


def rendered_jacobian(data: SpritesData, rows: slice) -> Iterator[Float64[Tensor, "o d m"]]:
    """The Jacobian of the images of ``data.seed``, at some rows of the splits one after the other: see
    :func:`imavae.data.sprites.jacobian`.
    """
    s = _draw_sources(data)[1]
    return sprites.jacobian(data, s[torch.cat(_order(data, data.seed))], rows)


def world(data: SyntheticData) -> World:
    """The world of ``data.seed``. Raises as :func:`make` does."""
    source, s, segments = _draw_sources(data)
    f = draw_mixing(data)
    f = Shifted(f, -f.forward(s).mean(0))
    x = f.forward(s)
    _check(x, "mixing", data.mixing.name, (len(s), data.features))
    return World(f, source, s, x, segments)


def draw_mixing(data: SyntheticData) -> Mixing:
    """The mixing of ``data.seed``, before it is centred.

    A mixing f of R^d becomes A f, with a random A of orthonormal columns, if observations have more numbers than there
    are sources: AᵀA = I, so A f has the contrast of f, and the observations lie in a linear subspace.
    """
    generator = stream(data.seed, "mixing")
    f: Mixing = _with_methods(data.mixing.build(data, generator), Mixing, "data.mixing")
    if data.features > data.dim and not data.mixing.embeds:
        f = LinearOnTop(f, orthogonal(data.features, generator, data.dim))
    return turned(f, data.mixing.automorphism, data.source)


def turned(f: Mixing, by: Automorphism, law: SourceSettings) -> Mixing:
    """Return f ∘ a for the automorphism a of the sources' ``law``, or f itself if its angle is 0.

    Raises UserError for a source without the map onto the standard normal law.
    """
    if by.angle == 0:
        return f
    source = _with_methods(build_source(law), Normalised, "data.source, to be turned by an automorphism,")
    first, second = by.plane
    return Flow((Rotation(source, math.radians(by.angle), (first - 1, second - 1)), f))


def build_source(settings: SourceSettings) -> Source:
    """The law of the sources without segments."""
    source: Source = _with_methods(settings.build(), Source, "data.source")
    return source


def _with_methods(built: Any, protocol: Any, setting: str) -> Any:
    """Return ``built``. Raises UserError unless it has all methods of a protocol."""
    methods = [name for name in vars(protocol) if not name.startswith("_")]
    missing = [name for name in methods if not callable(getattr(built, name, None))]
    rule = f"{setting} builds a {protocol.__name__} with {', '.join(methods)}"
    require(not missing, rule, f"{type(built).__name__} without {', '.join(missing)}", "add what is missing")
    return built


def _draw_sources(data: DrawnData) -> tuple[Source, Float64[Tensor, "n d"], Int[Tensor, " n"] | None]:
    """The law of the sources, the sources, and the segments."""
    source, u = build_source(data.source), None
    if data.n_segments > 1:
        u = torch.randint(data.n_segments, (data.n_obs,), generator=stream(data.seed, "segments"))
    if isinstance(data, SpritesData) and data.betas is not None:
        low, high = data.betas
        table = torch.rand(2, data.n_segments, data.dim, generator=stream(data.seed, "variances"), dtype=torch.float64)
        alpha, beta = (low + (high - low) * table)[:, slice(None) if u is None else u]
        source = Beta(alpha, beta, *data.source.support)
    elif u is not None:
        rule, remedy = "data.n_segments is 1 for a source without a method scaled", f"add it to {type(source).__name__}"
        require(isinstance(source, Scalable), rule, data.n_segments, f"{remedy}, as in imavae.data.sources.Scalable")
        low, high = data.variances
        table = torch.rand(data.n_segments, data.dim, generator=stream(data.seed, "variances"), dtype=torch.float64)
        factors = (low + (high - low) * table)[u]
        bounded = math.isfinite(data.source.support[1])
        source = cast(Scalable, source).scaled(factors / high if bounded else factors)
    s = source.sample(data.n_obs, data.dim, stream(data.seed, "sources"))
    _check(s, "source", data.source.name, (data.n_obs, data.dim))
    return source, s, u


def _check(values: Tensor, key: str, name: str, shape: tuple[int, ...]) -> None:
    """Raise UserError unless these are finite float64 numbers of a shape: a user's own code may return others."""
    proper = values.shape == shape and values.dtype == torch.float64 and bool(values.isfinite().all())
    got = f"{values.dtype} {tuple(values.shape)} of data.{key}.name={name}"
    rule = f"data.{key} gives finite float64 numbers of shape {tuple(shape)}"
    require(proper, rule, got, "correct its settings or code")


def _empty(data: Data, worlds: int, n: int, with_truth: bool, dtype: torch.dtype, device: torch.device | str) -> Split:
    """A split to be filled world by world, so that no second copy of many worlds is ever held."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    truth = None
    if with_truth and isinstance(data, SyntheticData):
        log_px = empty(worlds, n if data.features == data.dim else 0, dtype=torch.float64)
        truth = Truth(log_px, empty(worlds, data.features, data.dim, n))
    return Split(
        sources=empty(worlds, n, data.dim if data.has_sources else 0),
        observations=empty(worlds, n, 0 if data.has_images else data.features),
        segments=empty(worlds, n, dtype=torch.int64) if data.n_segments > 1 else None,
        support=data.support,
        truth=truth,
    )


def _fill(split: Split, number: int, drawn: _Rows, rows: Int[Tensor, " m"]) -> None:
    """Copy some rows of one world into a split."""
    s = drawn.sources[rows]
    split.sources[number] = s
    split.observations[number] = drawn.observations[rows]
    if split.segments is not None and drawn.segments is not None:
        split.segments[number] = drawn.segments[rows]
    if split.truth is not None and drawn.world is not None:
        if split.truth.log_px.shape[1]:
            log_ps = drawn.world.source.log_prob(drawn.sources)[rows]
            split.truth.log_px[number] = log_ps - drawn.world.mixing.log_det(s)
        split.truth.jacobian[number] = drawn.world.mixing.jacobian(s).permute(1, 2, 0)
