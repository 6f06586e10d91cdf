"""Sprites: images of one shape on black, rendered from its position, size, hue and, if asked for, angle and shape.

An image is 3 x side x side bytes in the order (channel, row, column); x runs from left to right, y from top to bottom.
A pixel's brightness is the share of it that the shape covers, for a straight edge: clip(1/2 - d, 0, 1) at distance d
outside the edge, multiplied over the edges. So an image depends continuously on every factor but the shape. All shapes
of one size have the same area, 4 size^2 (in units of the side), and x and y in [0, 1] keep the largest one inside.

The factors may go through a random affine or projective map first, t -> (A t) / (1 + c t) on the unit cube, rescaled
onto the cube (c = 0 for an affine one): then the columns of the generator's Jacobian are no longer orthogonal. A map of
the same form, drawn from the world's seed, may warp the finished image, as in the original: they stay nearly so.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, UInt8
from numpy import ndarray
from torch import Tensor

from imavae.config.data import SpritesData
from imavae.data.images import Cache, cached
from imavae.data.mixings import uniform
from imavae.rng import stream

VERSION = 1  # of the pixels: raise it whenever they change, so that no older cached file is used
RENDERED_AT_ONCE = 500  # images
STEP = 1e-5  # of central differences, as a share of the support
STEEPEST = 0.5  # largest distance of a projective map's denominator from 1
WARPED = 0.35, 0.5  # share of its area that the warp leaves of an image; a rotation, which keeps angles, leaves more


class Shape(NamedTuple):
    """A shape whose area is that of the square of half-width 1, upright; y points down."""

    edges: int  # straight ones; 0 is a circle
    radius: float  # distance of each edge from the centre
    first: float  # direction of the first edge from the centre, in turns
    upright: float  # reach along an axis when upright
    turned: float  # reach along an axis at any angle


_APOTHEM = 2 / math.sqrt(5 * math.tan(math.pi / 5))  # of the pentagon
SHAPES = {
    "square": Shape(4, 1.0, 0.0, 1.0, math.sqrt(2)),
    "triangle": Shape(3, 2 * 27**-0.25, 0.25, 4 * 27**-0.25, 4 * 27**-0.25),
    "pentagon": Shape(5, _APOTHEM, 0.25, _APOTHEM / math.cos(math.pi / 5), _APOTHEM / math.cos(math.pi / 5)),
    "circle": Shape(0, 2 / math.sqrt(math.pi), 0.0, 2 / math.sqrt(math.pi), 2 / math.sqrt(math.pi)),
}


class Scenes(NamedTuple):
    """Everything that determines the pixels of n images: in float32, or in float64 for their derivatives."""

    centre: Float[ndarray, "n 2"]  # column and row, in pixels from the upper left corner
    half: Float[ndarray, " n"]  # size, in pixels
    angle: Float[ndarray, " n"]  # clockwise, in radians
    shape: Int[ndarray, " n"]  # which of the settings' shapes
    colour: Float[ndarray, "n 3"]  # red, green, blue in [0, 1]

    def rows(self, at: slice) -> Scenes:
        """Some of the images."""
        return Scenes(*(array[at] for array in self))


class Projection(NamedTuple):
    """A map of the unit cube into itself, onto each of its faces: t -> ((A t) / (1 + c t) - low) / (high - low)."""

    matrix: Float64[Tensor, "d d"]
    slope: Float64[Tensor, " d"]  # c; 0 for an affine map
    low: Float64[Tensor, " d"]
    high: Float64[Tensor, " d"]

    def __call__(self, t: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        ratio = t @ self.matrix.T / (1 + t @ self.slope)[:, None]
        return ((ratio - self.low) / (self.high - self.low)).clamp(0, 1)

    def homogeneous(self) -> Float64[Tensor, "d1 d1"]:
        """The matrix of the map in homogeneous coordinates (t, 1)."""
        upper = torch.cat([self.matrix - torch.outer(self.low, self.slope), -self.low[:, None]], 1)
        return torch.cat([upper / (self.high - self.low)[:, None], torch.cat([self.slope, torch.ones(1)])[None]])


def draw_map(
    projective: bool, dim: int, generator: torch.Generator, matrix: Float64[Tensor, "d d"] | None = None
) -> Projection:
    """A random affine or projective map of (n, dim) factors; ``matrix`` is A, by default well conditioned."""
    matrix, slope = uniform(dim, generator) if matrix is None else matrix, torch.zeros(dim, dtype=torch.float64)
    if projective:
        slope = STEEPEST / dim * (2 * torch.rand(dim, generator=generator, dtype=torch.float64) - 1)
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=dim)), dtype=torch.float64)
    ends = corners @ matrix.T / (1 + corners @ slope)[:, None]
    return Projection(matrix, slope, ends.amin(0), ends.amax(0))  # a ratio of linear functions is extreme at corners


def draw_warp(settings: SpritesData) -> Projection:
    """The map of the unit square, (x, y), that warps all finished images of the world."""
    generator = stream(settings.seed, "warp")
    while True:
        matrix = 2 * torch.rand(2, 2, generator=generator, dtype=torch.float64) - 1
        warp = draw_map(settings.warp == "projective", 2, generator, matrix)
        x, y = warp(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)).T
        area = (x * (y.roll(-1) - y.roll(1))).sum().abs() / 2
        if WARPED[0] <= area <= WARPED[1]:
            return warp


def resampling(warp: Projection, side: int) -> Any:
    """The sparse matrix W, (side², side²), of bilinear resampling: W @ a is a channel ``a`` of an image, warped.

    A pixel's value is interpolated at the point that ``warp`` takes to its centre; beyond the border all is black.
    """
    from scipy.sparse import csr_array

    row, column = np.divmod(np.arange(side**2), side)
    to = np.stack([column + 0.5, row + 0.5, np.full(side**2, side)]) / side
    start = np.linalg.inv(warp.homogeneous().numpy()) @ to
    x, y = start[:2] / start[2] * side - 0.5
    weights, pixels, sources = [], [], []
    for right, down in itertools.product((0, 1), repeat=2):
        i, j = np.floor(x) + right, np.floor(y) + down
        inside = np.flatnonzero((i >= 0) & (i < side) & (j >= 0) & (j < side))
        weights.append(((1 - abs(x - i)) * (1 - abs(y - j)))[inside])
        pixels.append(inside)
        sources.append((j * side + i)[inside].astype(np.int64))
    at = np.concatenate(pixels), np.concatenate(sources)
    return csr_array((np.concatenate(weights), at), shape=(side**2, side**2))


def settled(settings: SpritesData, s: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    """The sources, that of the shape rounded to one value per shape: the middles of equal parts of its support."""
    if "shape" not in settings.factors:
        return s
    low, high = settings.source.support
    width = (high - low) / len(settings.shapes)
    at = settings.factors.index("shape")
    s = s.clone()
    s[:, at] = low + width * (((s[:, at] - low) / width).floor().clamp(0, len(settings.shapes) - 1) + 0.5)
    return s


def scenes(
    settings: SpritesData, s: Float64[Tensor, "n d"], generator: torch.Generator, dtype: type[np.floating] = np.float32
) -> Scenes:
    """The scenes of some sources; the map of the factors and the jitter are drawn from ``generator``."""
    low, high = settings.source.support
    t = ((s - low) / (high - low)).clamp(0, 1)
    smooth = [i for i, name in enumerate(settings.factors) if name != "shape"]
    if settings.transform != "none":
        t = t.clone()
        t[:, smooth] = draw_map(settings.transform == "projective", len(smooth), generator)(t[:, smooth])
    noise = torch.randn(len(s), 3, generator=generator, dtype=torch.float64).numpy() * settings.jitter
    unit = dict(zip(settings.factors, t.numpy().T, strict=True))
    middle = np.full(len(s), 0.5)

    def factor(name: str, low: float, high: float) -> ndarray:
        values: ndarray = low + (high - low) * unit.get(name, middle)
        return values

    levels = len(settings.shapes)
    shape = np.minimum((levels * unit.get("shape", 0 * middle)).astype(np.int64), levels - 1)
    edge = _margin(settings)
    rooms = [[edge * (1 - share) + (settings.side - edge) * share for share in r] for r in (settings.x, settings.y)]
    centre = np.stack([factor("x", *rooms[0]), factor("y", *rooms[1])], 1)
    periods = np.array([1 / max(SHAPES[name].edges, 1) for name in settings.shapes])
    turns = factor("angle", *settings.angle) * periods[shape] if "angle" in unit else 0 * middle
    more = settings.hsv_offset
    hue = factor("hue", *settings.hue) + noise[:, 0] + more[0]
    colour = rgb(hue, 1 - np.abs(noise[:, 1]) + more[1], 1 - np.abs(noise[:, 2]) + more[2])
    return Scenes(
        centre=centre.astype(dtype),
        half=(settings.side * factor("size", *settings.size)).astype(dtype),
        angle=(2 * math.pi * turns).astype(dtype),
        shape=shape,
        colour=colour.astype(dtype),
    )


def _margin(settings: SpritesData) -> float:
    """Smallest distance of a centre from the border, in pixels, with half a pixel for the edge."""
    turned = "angle" in settings.factors
    reach = max(SHAPES[name].turned if turned else SHAPES[name].upright for name in settings.shapes)
    return reach * settings.size[1] * settings.side + 0.5


def rgb(hue: ndarray, saturation: ndarray, value: ndarray) -> Float64[ndarray, "n 3"]:
    """Red, green and blue in [0, 1]. The hue is in turns; saturation and value are cut to [0, 1]."""
    saturation, value = np.clip(saturation, 0, 1), np.clip(value, 0, 1)
    sector = (np.array([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    shade = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    colour: ndarray = value[:, None] * (1 - saturation[:, None] * shade)
    return colour


def render(
    scenes: Scenes, settings: SpritesData
) -> UInt8[ndarray, "n 3 side side"] | Float64[ndarray, "n 3 side side"]:
    """The images: bytes, or numbers from 0 to 255 if the scenes are in float64. Only a patch around each sprite is
    computed, and then warped.
    """
    side, dtype = settings.side, scenes.half.dtype
    exact = dtype == np.float64
    images = np.zeros((len(scenes.half), 3, side, side), np.float64 if exact else np.uint8)
    width = min(side, math.ceil(2 * _margin(settings)) + 1)
    pixels = np.arange(width)
    for level, name in enumerate(settings.shapes):
        rows = np.flatnonzero(scenes.shape == level)
        centre = scenes.centre[rows]
        corner = np.clip(np.floor(centre - width / 2).astype(np.int64), 0, side - width)
        place = corner[:, :, None] + pixels  # (image, axis, pixel)
        offset = (place - centre[:, :, None] + 0.5).astype(dtype)
        cover = _cover(SHAPES[name], offset, scenes.half[rows], scenes.angle[rows])
        patch = cover[:, None] * (255 * scenes.colour[rows])[:, :, None, None]
        patch = patch if exact else np.rint(patch).astype(np.uint8)
        row, column = place[:, 1, None, :, None], place[:, 0, None, None, :]
        images[rows[:, None, None, None], np.arange(3)[:, None, None], row, column] = patch
    if settings.warp != "none":
        warped = (resampling(draw_warp(settings), side).astype(dtype) @ images.reshape(-1, side**2).T).T
        images = (warped if exact else np.rint(warped).astype(np.uint8)).reshape(images.shape)
    return images


def _cover(
    shape: Shape, offset: Float[ndarray, "n 2 w"], half: Float[ndarray, " n"], angle: Float[ndarray, " n"]
) -> Float[ndarray, "n w w"]:
    """The share of each pixel that the shape covers; ``offset`` is the pixels' columns and rows from its centre."""
    x, y = offset[:, 0, None, :], offset[:, 1, :, None]
    inside = (shape.radius * half + 0.5)[:, None, None]
    if shape.edges == 0:
        disc: ndarray = np.clip(inside - np.hypot(x, y), 0, 1)
        return disc
    cover = np.ones((len(half), x.shape[2], y.shape[1]), half.dtype)
    for edge in range(shape.edges):
        direction = angle + 2 * math.pi * (shape.first + edge / shape.edges)
        across, down = np.cos(direction)[:, None, None] * x, np.sin(direction)[:, None, None] * y
        cover *= np.clip(inside - across - down, 0, 1)
    return cover


def jacobian(settings: SpritesData, s: Float64[Tensor, "n d"], rows: slice) -> Iterator[Float64[Tensor, "o d m"]]:
    """The Jacobian of some images by their sources, a few images at a time, by central differences in float64.

    ``s`` are those of all images of the world, in their order; jitter stays as it is drawn.
    """
    step = STEP * (settings.source.support[1] - settings.source.support[0])
    ends = [
        scenes(settings, s + by, stream(settings.seed, "mixing"), np.float64).rows(rows)
        for along in step * torch.eye(s.shape[1], dtype=torch.float64)
        for by in (along, -along)
    ]
    for start in range(0, len(ends[0].half), RENDERED_AT_ONCE // 10):
        part = slice(start, start + RENDERED_AT_ONCE // 10)
        seen = [render(end.rows(part), settings) for end in ends]
        rises = [(up - down).reshape(len(up), -1) for up, down in zip(seen[::2], seen[1::2], strict=True)]
        yield torch.from_numpy(np.stack(rises, -1) / (2 * step)).permute(1, 2, 0)


def images(scenes: Scenes, settings: SpritesData, cache: Cache) -> UInt8[ndarray, "n feature"]:
    """The images as rows of bytes in a cached file, rendered if it is missing: see :mod:`imavae.data.images`."""
    warp = (settings.warp, settings.seed) if settings.warp != "none" else ()  # all else is in the scenes
    digest = hashlib.sha256(repr((VERSION, settings.side, settings.shapes, _margin(settings), *warp)).encode())
    for array in scenes:
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(array.tobytes())

    def make() -> Iterator[ndarray]:
        for start in range(0, len(scenes.half), RENDERED_AT_ONCE):
            yield render(scenes.rows(slice(start, start + RENDERED_AT_ONCE)), settings)

    shape = (len(scenes.half), 3 * settings.side**2)
    return cached(cache.folder / f"sprites-{digest.hexdigest()[:32]}.npy", shape, make, cache.progress)
