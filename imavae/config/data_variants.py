"""The variants of sources and mixings: the settings of each of them, and the rules about these.

What they build stands in ``data/``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from imavae.config.registry import Registry, Settings
from imavae.errors import require

SOURCES: Registry[type[SourceSettings]] = Registry("data.source", "imavae.config.data_variants")
MIXINGS: Registry[type[MixingSettings]] = Registry("data.mixing", "imavae.config.data_variants", group="data")


@dataclass(frozen=True)
class SourceSettings(Settings):
    """Base of the sources' settings. An own one has ``build() -> imavae.data.sources.Source``."""

    name: str = ""

    @property
    def support(self) -> tuple[float, float]:
        """The interval that each source lives on."""
        return -math.inf, math.inf

    @property
    def extent(self) -> tuple[float, float]:
        """The middle and the half-width of the interval that holds each source for all practical purposes."""
        low, high = self.support
        return (low + high) / 2, (high - low) / 2


@SOURCES.register
@dataclass(frozen=True)
class UniformSource(SourceSettings):
    """Independent sources, each uniform on [low, high]."""

    name: str = "uniform"
    low: float = -0.5
    high: float = 0.5

    def __post_init__(self) -> None:
        _interval(self.low, self.high)

    @property
    def support(self) -> tuple[float, float]:
        """The interval that each source lives on."""
        return self.low, self.high


@SOURCES.register
@dataclass(frozen=True)
class GaussianSource(SourceSettings):
    """Independent Gaussian sources."""

    name: str = "gaussian"
    mean: float = 0.0
    std: float = 1.0  # a standard deviation, not a variance

    def __post_init__(self) -> None:
        require(
            self.std > 0, "data.source.std > 0", f"std={self.std}", "it is a standard deviation: say data.source.std=1"
        )

    @property
    def extent(self) -> tuple[float, float]:
        """Three standard deviations about the mean."""
        return self.mean, 3 * self.std


@SOURCES.register
@dataclass(frozen=True)
class LaplaceSource(SourceSettings):
    """Independent Laplace sources, p(s) = exp(-|s - mean| / scale) / (2 scale)."""

    name: str = "laplace"
    mean: float = 0.0
    scale: float = 1.0  # the standard deviation is sqrt(2) times it

    def __post_init__(self) -> None:
        require(
            self.scale > 0,
            "data.source.scale > 0",
            f"scale={self.scale}",
            "it is the mean distance from the mean: say data.source.scale=1",
        )

    @property
    def extent(self) -> tuple[float, float]:
        """Six scales about the mean: all but 1 in 400 sources."""
        return self.mean, 6 * self.scale


@SOURCES.register
@dataclass(frozen=True)
class BetaSource(SourceSettings):
    """Independent beta sources, stretched onto [low, high]."""

    name: str = "beta"
    alpha: float = 2.0
    beta: float = 2.0
    low: float = -0.5
    high: float = 0.5

    def __post_init__(self) -> None:
        _interval(self.low, self.high)
        shapes = f"alpha={self.alpha}, beta={self.beta}"
        require(
            min(self.alpha, self.beta) > 0,
            "data.source.alpha and beta > 0",
            shapes,
            "(1, 1) is the uniform: give numbers above 0",
        )

    @property
    def support(self) -> tuple[float, float]:
        """The interval that each source lives on."""
        return self.low, self.high


class Factor(NamedTuple):
    """What a source stands for."""

    name: str
    discrete: bool = False  # whether it takes few values, in no order


@dataclass(frozen=True)
class MixingSettings(Settings):
    """Base of the mixings' settings.

    An own one has ``build(data, generator) -> imavae.data.mixing.Mixing``, which draws what it leaves open.
    """

    name: str = ""
    usual_dim: ClassVar[int] = 3  # default of data.dim for data=NAME

    def check(self, dim: int, source: SourceSettings) -> None:
        """Raise UserError where these settings don't go with the sources."""


@MIXINGS.register
@dataclass(frozen=True)
class MoebiusMixing(MixingSettings):
    """x = L A (s - a) / |s - a|^2. Unless given, A and a are drawn from ``data.seed``.

    Without the linear map L it is conformal: its IMA contrast is zero. ``unit_determinant`` draws L as the paper's
    sweep did (:func:`imavae.data.matrices.unit_determinant`), ``unit_columns`` the directions of its columns.
    """

    name: str = "moebius"
    matrix: tuple[tuple[float, ...], ...] | None = None  # A, orthogonal, dim x dim
    centre: tuple[float, ...] | None = None  # a, the pole, outside the sources' support
    distance: float = 2.5  # of a random pole from the sources' mean, in half-diagonals of their support
    linear: Literal["none", "cosine", "unit_determinant", "unit_columns"] = "none"  # L; random, but for cosine
    cosine: float = 0.0  # between the two columns of L, for linear=cosine

    def __post_init__(self) -> None:
        rule = "data.mixing.distance > 1"
        require(
            self.distance > 1,
            rule,
            self.distance,
            "the pole must lie outside the sources' support: say data.mixing.distance=2.5",
        )
        require(
            -1 < self.cosine < 1,
            "-1 < data.mixing.cosine < 1",
            self.cosine,
            "parallel columns lose a source: say data.mixing.cosine=0.5",
        )
        unused = self.linear == "cosine" or self.cosine == 0
        require(unused, "data.mixing.cosine is 0 but for linear=cosine", self.cosine, "say data.mixing.linear=cosine")

    def check(self, dim: int, source: SourceSettings) -> None:
        """Raise UserError where these settings don't go with the sources."""
        if self.linear == "cosine":
            rule = "data.dim is 2 for data.mixing.linear=cosine"
            require(dim == 2, rule, dim, "say unit_determinant or unit_columns in more dimensions")
        middle, half_width = source.extent
        remedy = f"the pole lies beyond it: give {type(source).__name__} a property extent (middle, half-width)"
        require(math.isfinite(half_width), "data.source has a finite extent", (middle, half_width), remedy)
        matrix, centre = self.matrix, self.centre
        if matrix is not None:
            gram = [[sum(a * b for a, b in zip(r, s, strict=False)) for s in matrix] for r in matrix]
            orthogonal = all(abs(g - (i == j)) < 1e-4 for i, row in enumerate(gram) for j, g in enumerate(row))
            square = len(matrix) == dim and all(len(row) == dim for row in matrix)
            rule = f"data.mixing.matrix is orthogonal, {dim} x {dim}"
            require(square and orthogonal, rule, matrix, "only then is the map conformal; leave it null to draw one")
        if centre is not None:
            rule = f"data.mixing.centre has {dim} numbers"
            require(len(centre) == dim, rule, centre, "it has one for each source; leave it null to draw it")
            low, high = middle - half_width, middle + half_width
            beyond = math.hypot(*(max(low - a, a - high, 0) for a in centre))
            rule = f"data.mixing.centre lies outside the sources' box [{low:g}, {high:g}], by 5 % of its width"
            require(
                beyond > 0.05 * (high - low),
                rule,
                centre,
                "the map has its pole there: move it away, or leave it null to draw it",
            )


@MIXINGS.register
@dataclass(frozen=True)
class MLPMixing(MixingSettings):
    """x = W_L a(... a(W_1 s)), with a(h) = slope h + (1 - slope) log(1 + e^h), the smooth leaky ReLU."""

    name: str = "mlp"
    n_layers: int = 2  # linear maps; an activation stands between two of them
    weights: Literal["orthogonal", "uniform", "triangular"] = "orthogonal"
    slope: float = 0.2  # of the smooth leaky ReLU at minus infinity; 1 makes the mixing linear
    off_diagonal: float = 1.0  # standard deviation of what stands below the unit diagonal of a triangular weight

    def __post_init__(self) -> None:
        require(
            self.n_layers >= 1,
            "data.mixing.n_layers >= 1",
            self.n_layers,
            "it counts the linear maps: say data.mixing.n_layers=2",
        )
        require(
            0 < self.slope <= 1,
            "0 < data.mixing.slope <= 1",
            self.slope,
            "other slopes have no inverse: say data.mixing.slope=0.2",
        )
        require(
            self.off_diagonal > 0,
            "data.mixing.off_diagonal > 0",
            self.off_diagonal,
            "0 would mix nothing: say data.mixing.off_diagonal=1",
        )


@MIXINGS.register
@dataclass(frozen=True)
class LinearMixing(MixingSettings):
    """x = W s: an orthogonal W, or a general one (Gaussian entries, unit determinant)."""

    name: str = "linear"
    weights: Literal["orthogonal", "general"] = "orthogonal"


@MIXINGS.register
@dataclass(frozen=True)
class FlowMixing(MixingSettings):
    """Affine coupling layers with random weights: one half of the dimensions scales and shifts the other, in turn."""

    name: str = "flow"
    usual_dim: ClassVar[int] = 4
    n_layers: int = 4  # coupling layers
    width: int = 8  # hidden units of the random network that gives scale and shift

    def __post_init__(self) -> None:
        require(
            self.n_layers >= 2,
            "data.mixing.n_layers >= 2",
            self.n_layers,
            "one layer leaves half of s as it is: say data.mixing.n_layers=4",
        )
        require(
            self.width >= 1, "data.mixing.width >= 1", self.width, "it counts hidden units: say data.mixing.width=8"
        )

    def check(self, dim: int, source: SourceSettings) -> None:
        """Raise UserError where these settings don't go with the sources."""
        rule = "data.dim is even and above 2 for the flow"
        require(
            dim > 2 and dim % 2 == 0, rule, dim, "its layers need two halves of two dimensions or more: say data.dim=4"
        )


def _interval(low: float, high: float) -> None:
    require(low < high, "data.source.low < data.source.high", f"low={low}, high={high}", "give the lower end first")
