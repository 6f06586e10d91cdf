"""Sprites: images of one shape on black, rendered from its position, size, hue and, if asked for, angle and shape.

An image is 3 x side x side bytes in the order (channel, row, column); x runs from left to right, y from top to bottom.
A pixel's brightness is the share of it that the shape covers, for a straight edge: clip(1/2 - d, 0, 1) at distance d
outside the edge, multiplied over the edges. So an image depends continuously on every factor but the shape. All shapes
of one size have the same area, 4 size^2 (in units of the side), and x and y in [0, 1] keep the largest one inside.

The factors may go through a random affine or projective map first, t -> (A t) / (1 + c t) on the unit cube, rescaled
onto the cube (c = 0 for an affine one): then the columns of the generator's Jacobian are no longer orthogonal.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int, UInt8
from numpy import ndarray
from torch import Tensor

from imavae.config.data import SpritesData
from imavae.data.images import Cache, cached
from imavae.data.mixings import uniform

VERSION = 1  # of the pixels: raise it whenever they change, so that no older cached file is used
RENDERED_AT_ONCE = 500  # images
STEEPEST = 0.5  # largest distance of a projective map's denominator from 1


class Shape(NamedTuple):
    """A shape whose area is that of the square of half-width 1, upright; y points down."""

    edges: int  # straight ones; 0 is a circle
    radius: float  # distance of each edge from the centre
    first: float  # direction of the first edge from the centre, in turns
    upright: float  # reach along an axis when upright
    turned: float  # reach along an axis at any angle


SHAPES = {
    "square": Shape(4, 1.0, 0.0, 1.0, math.sqrt(2)),
    "triangle": Shape(3, 2 * 27**-0.25, 0.25, 4 * 27**-0.25, 4 * 27**-0.25),
    "circle": Shape(0, 2 / math.sqrt(math.pi), 0.0, 2 / math.sqrt(math.pi), 2 / math.sqrt(math.pi)),
}


class Scenes(NamedTuple):
    """Everything that determines the pixels of n images."""

    centre: Float32[ndarray, "n 2"]  # column and row, in pixels from the upper left corner
    half: Float32[ndarray, " n"]  # size, in pixels
    angle: Float32[ndarray, " n"]  # clockwise, in radians
    shape: Int[ndarray, " n"]  # which of the settings' shapes
    colour: Float32[ndarray, "n 3"]  # red, green, blue in [0, 1]


def draw_map(projective: bool, dim: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A random affine or projective map of (n, dim) factors, from the unit cube into itself, onto each of its faces."""
    matrix, slope = uniform(dim, generator), torch.zeros(dim, dtype=torch.float64)
    if projective:
        slope = STEEPEST / dim * (2 * torch.rand(dim, generator=generator, dtype=torch.float64) - 1)

    def ratio(t: Tensor) -> Tensor:
        return t @ matrix.T / (1 + t @ slope)[:, None]

    ends = ratio(torch.tensor(list(itertools.product((0.0, 1.0), repeat=dim)), dtype=torch.float64))
    low, high = ends.amin(0), ends.amax(0)  # a ratio of linear functions is least and greatest at corners
    return lambda t: ((ratio(t) - low) / (high - low)).clamp(0, 1)


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


def scenes(settings: SpritesData, s: Float64[Tensor, "n d"], generator: torch.Generator) -> Scenes:
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
    centre = np.stack([factor("x", edge, settings.side - edge), factor("y", edge, settings.side - edge)], 1)
    periods = np.array([1 / max(SHAPES[name].edges, 1) for name in settings.shapes])
    turns = factor("angle", *settings.angle) * periods[shape] if "angle" in unit else 0 * middle
    colour = rgb(factor("hue", *settings.hue) + noise[:, 0], 1 - np.abs(noise[:, 1]), 1 - np.abs(noise[:, 2]))
    return Scenes(
        centre=centre.astype(np.float32),
        half=(settings.side * factor("size", *settings.size)).astype(np.float32),
        angle=(2 * math.pi * turns).astype(np.float32),
        shape=shape,
        colour=colour.astype(np.float32),
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


def render(scenes: Scenes, settings: SpritesData) -> UInt8[ndarray, "n 3 side side"]:
    """The images. Only a patch around each sprite is computed."""
    side = settings.side
    images = np.zeros((len(scenes.half), 3, side, side), np.uint8)
    width = min(side, math.ceil(2 * _margin(settings)) + 1)
    pixels = np.arange(width)
    for level, name in enumerate(settings.shapes):
        rows = np.flatnonzero(scenes.shape == level)
        centre = scenes.centre[rows]
        corner = np.clip(np.floor(centre - width / 2).astype(np.int64), 0, side - width)
        place = corner[:, :, None] + pixels  # (image, axis, pixel)
        offset = (place - centre[:, :, None] + 0.5).astype(np.float32)
        cover = _cover(SHAPES[name], offset, scenes.half[rows], scenes.angle[rows])
        patch = np.rint(cover[:, None] * (255 * scenes.colour[rows])[:, :, None, None]).astype(np.uint8)
        row, column = place[:, 1, None, :, None], place[:, 0, None, None, :]
        images[rows[:, None, None, None], np.arange(3)[:, None, None], row, column] = patch
    return images


def _cover(
    shape: Shape, offset: Float32[ndarray, "n 2 w"], half: Float32[ndarray, " n"], angle: Float32[ndarray, " n"]
) -> Float32[ndarray, "n w w"]:
    """The share of each pixel that the shape covers; ``offset`` is the pixels' columns and rows from its centre."""
    x, y = offset[:, 0, None, :], offset[:, 1, :, None]
    inside = (shape.radius * half + np.float32(0.5))[:, None, None]
    if shape.edges == 0:
        disc: ndarray = np.clip(inside - np.hypot(x, y), 0, 1)
        return disc
    cover = np.ones((len(half), x.shape[2], y.shape[1]), np.float32)
    for edge in range(shape.edges):
        direction = angle + np.float32(2 * math.pi * (shape.first + edge / shape.edges))
        across, down = np.cos(direction)[:, None, None] * x, np.sin(direction)[:, None, None] * y
        cover *= np.clip(inside - across - down, 0, 1)
    return cover


def images(scenes: Scenes, settings: SpritesData, cache: Cache) -> UInt8[ndarray, "n feature"]:
    """The images as rows of bytes in a cached file, rendered if it is missing: see :mod:`imavae.data.images`."""
    digest = hashlib.sha256(repr((VERSION, settings.side, settings.shapes, _margin(settings))).encode())
    for array in scenes:
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(array.tobytes())

    def make() -> Iterator[ndarray]:
        for start in range(0, len(scenes.half), RENDERED_AT_ONCE):
            yield render(Scenes(*(array[start : start + RENDERED_AT_ONCE] for array in scenes)), settings)

    shape = (len(scenes.half), 3 * settings.side**2)
    return cached(cache.folder / f"sprites-{digest.hexdigest()[:32]}.npy", shape, make, cache.progress)
