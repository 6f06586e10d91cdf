"""A person's arrays, checked and laid out as the vectorised metrics take them: as an ensemble of one.

A row of theirs is an observation, a point, (n, d); here the point comes last, and the member first, (member, d, n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from imavae.errors import require
from imavae.metrics import ima

Values = ArrayLike | Tensor | Sequence[Any] | float  # the last two for run-time checks: ArrayLike has complex alone


def read(name: str, value: Values, axes: str) -> Tensor:
    """Floating-point numbers on the CPU, with these axes: (n, d) for "n d". Raises UserError for others."""
    if not isinstance(value, Tensor):
        array = np.array(value)
        require(array.dtype.kind in "fiub", f"{name} is an array of numbers", array.dtype, "give numbers")
        value = torch.from_numpy(array)
    require(not value.is_complex(), f"{name} is an array of real numbers", value.dtype, "give real ones")
    names = ", ".join(axes.split())
    rule, remedy = f"{name} has the shape ({names}{',' * (axes == 'n')})", "reshape it: a row is an observation"
    require(value.ndim == len(axes.split()) and len(value) > 0, rule, f"shape {shape_of(value)}", remedy)
    single = value.dtype in (torch.float32, torch.float64)
    return value.detach().cpu().to(value.dtype if single else torch.float64).contiguous()


def points_of(name: str, value: Values) -> Tensor:
    """Rows of sources or latents (n, d). Raises UserError for others, and for fewer rows than columns: they may well be
    transposed.
    """
    points = read(name, value, "n d")
    rule = f"{name} has the shape (n, d), with more rows than columns"
    require(len(points) > points.shape[1] > 0, rule, f"shape {shape_of(value)}", "reshape it: a row is an observation")
    return points


def members_of(s: Values, z: Values) -> tuple[Tensor, Tensor]:
    """Sources (d, n), and latents (1, e, n) of an ensemble of one. Raises UserError for what can't be such."""
    known, found = points_of("s", s), points_of("z", z)
    check_as_many("s", known, "z", found)
    shapes = f"{shape_of(s)} and {shape_of(z)}"
    require(known.shape[1] <= found.shape[1], "z has at least as many columns as s", shapes, "drop sources")
    finite = bool(known.isfinite().all())
    require(finite, "s has finite numbers", "NaN or infinite ones", "leave those rows out of both")
    return known.T, found.T[None]


def rows_of(s: Values, z: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sources (n, d) and latents (n, e), for what takes rows. Raises UserError as :func:`members_of` does."""
    known, found = members_of(s, z)
    return known.T.double().numpy(), found[0].T.double().numpy()


def check_as_many(name: str, one: Tensor, other_name: str, other: Tensor) -> None:
    """Raise UserError unless both have as many rows."""
    shapes = f"shapes {tuple(one.shape)} and {tuple(other.shape)}"
    require(len(one) == len(other), f"{name} and {other_name} have as many rows", shapes, "take the same observations")


def kinds_of(s: Values, discrete: Sequence[bool]) -> list[bool]:
    """Whether each source is discrete; none is by default. Raises UserError where it is said of others."""
    columns, kinds = shape_of(s)[1], [bool(kind) for kind in discrete]
    rule, remedy = "discrete has a truth value for each source", "leave it out where none is"
    require(len(kinds) in (0, columns), rule, f"{len(kinds)} for {columns} sources", remedy)
    return kinds or [False] * columns


def jacobian_of(name: str, value: Values) -> Tensor:
    """Jacobians (1, o, d, n) of an ensemble of one. Raises UserError for what can't be such."""
    points = read(name, value, "n o d")
    rule, remedy = f"{name} has the shape (n, o, d) with o >= d", "reshape it: entry [i, j, k] is dx_j/dz_k at point i"
    require(points.shape[1] >= points.shape[2] > 0, rule, f"shape {shape_of(value)}", remedy)
    return points.permute(1, 2, 0)[None].contiguous()


def posterior_of(
    variance: Values, jacobian: Values, gamma: float, curvature: Values
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Jacobians (1, o, d, n), gamma (1,), variances and curvatures (1, d, n). Raises UserError for others."""
    at, spread = jacobian_of("jacobian", jacobian), read("variance", variance, "n d")
    expected, got = (at.shape[3], at.shape[2]), tuple(spread.shape)
    require(got == expected, f"variance has the shape (n, d) = {expected} of jacobian", got, "take the same points")
    positive = bool((spread > 0).all())
    require(positive, "variance > 0", "a value that is not", "give variances, not their logarithms")
    require(0 < gamma < math.inf, "gamma > 0", gamma, "give a number above 0: gamma² is the decoder's precision")
    bent = each_of("curvature", curvature, spread)
    return at, torch.tensor([gamma], dtype=torch.float64), spread.T[None], bent


def each_of(name: str, value: Values, points: Tensor) -> Tensor:
    """A number, one a column (d,) or one a point and column (n, d), for all of them: (1, d, n) in float64.
    Raises UserError for another shape.
    """
    numbers = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    shape, (n, d) = tuple(numbers.shape), points.shape
    fits = shape in ((), (d,), (n, d))
    require(fits, f"{name} is a number, or has the shape {(d,)} or {(n, d)}", shape, "give one for each of z's columns")
    return numbers.double().expand(n, d).T[None]


def check_batch(points: Tensor) -> None:
    """Raise UserError unless there are points (..., n) for one batch of the published estimators."""
    n, rule = points.shape[-1], f"there are {ima.BATCH} rows at least"
    require(n >= ima.BATCH, rule, n, "give more: the published estimator is of batches of so many")


def shape_of(value: Values) -> tuple[int, ...]:
    """The shape of what a person gave, for a message."""
    return tuple(value.shape) if isinstance(value, Tensor) else np.shape(value)
