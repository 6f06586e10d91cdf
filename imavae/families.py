"""The variants that a configuration chooses by name: sources, mixings, priors and networks, each a registry entry.

A variant is a frozen dataclass of settings, registered under its ``name``; what it builds stands in ``data/`` or
``model/``. A person's own variant is registered the same way, in a file of theirs (:func:`load_plugins`), and brings a
method ``build`` along. Nothing here imports torch: a mistake in a value is reported at once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict

from imavae.errors import UserError, known, require


class Settings:
    """Base of every node of the tree: an unknown key or an infinite number is refused, never ignored."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


V = TypeVar("V", bound=type[Any])
F = TypeVar("F", bound=Callable[..., Any])


class Registry:
    """The variants of one thing, by name."""

    def __init__(self, what: str, group: str) -> None:
        self.what = what  # the setting that chooses among them, as in data.mixing
        self.group = group  # the group of conf/ that sets it
        self.variants: dict[str, type[Any]] = {}

    def register(self, variant: V) -> V:
        """Add a frozen settings dataclass under its ``name``; a decorator. Raises UserError for one that is none."""
        parameters = vars(variant).get("__dataclass_params__")  # a dataclass's own, not those of its base
        rule = f"what is registered for {self.what} is a frozen dataclass of settings"
        frozen = parameters is not None and parameters.frozen and issubclass(variant, Settings)
        require(frozen, rule, variant.__name__, "see docs/ for an example")
        new = bool(variant.name) and variant.name not in self.variants
        require(new, f"each variant of {self.what} has a name of its own", repr(variant.name), "choose another")
        self.variants[variant.name] = variant
        return variant

    def variant(self, value: Mapping[str, Any]) -> type[Any]:
        """The settings class that a mapping's ``name`` chooses. Raises UserError for an unknown name."""
        known(str(value.get("name")), self.variants, f"{self.what}.name")
        return self.variants[str(value["name"])]


SOURCES, MIXINGS = Registry("data.source", "data/source"), Registry("data.mixing", "data")
PRIORS = Registry("model.prior", "model/prior")


@dataclass(frozen=True)
class SourceSettings(Settings):
    """Base of the sources' settings. An own one has ``build() -> imavae.data.sources.Source``."""

    name: str = ""
    known: ClassVar[bool] = True  # whether their law is

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
        _interval("data.source", self.low, self.high)

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
        require(self.std > 0, "data.source.std > 0", f"std={self.std}", "it is a standard deviation")

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
        require(self.scale > 0, "data.source.scale > 0", f"scale={self.scale}", "it is the mean distance from the mean")

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
        _interval("data.source", self.low, self.high)
        shapes = f"alpha={self.alpha}, beta={self.beta}"
        require(min(self.alpha, self.beta) > 0, "data.source.alpha and beta > 0", shapes, "(1, 1) is the uniform")

    @property
    def support(self) -> tuple[float, float]:
        """The interval that each source lives on."""
        return self.low, self.high


@SOURCES.register
@dataclass(frozen=True)
class UnknownSource(SourceSettings):
    """The sources of a file of observations: nobody knows their law, and no data can tell their scale."""

    name: str = "unknown"
    known: ClassVar[bool] = False

    @property
    def support(self) -> tuple[float, float]:
        """A convention, for a bounded prior that is told nothing else."""
        return -0.5, 0.5


@dataclass(frozen=True)
class MixingSettings(Settings):
    """Base of the mixings' settings.

    An own one has ``build(data, generator) -> imavae.data.mixing.Mixing``, which draws what it leaves open.
    """

    name: str = ""
    known: ClassVar[bool] = True  # whether its Jacobian and the observations' likelihood are

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
        require(self.distance > 1, rule, self.distance, "the pole must lie outside the sources' support")
        require(-1 < self.cosine < 1, "-1 < data.mixing.cosine < 1", self.cosine, "parallel columns lose a source")
        unused = self.linear == "cosine" or self.cosine == 0
        require(unused, "data.mixing.cosine is 0 but for linear=cosine", self.cosine, "say data.mixing.linear=cosine")

    def check(self, dim: int, source: SourceSettings) -> None:
        """Raise UserError where these settings don't go with the sources."""
        if self.linear == "cosine":
            rule = "data.dim is 2 for data.mixing.linear=cosine"
            require(dim == 2, rule, dim, "in more dimensions say unit_determinant or unit_columns")
        middle, half_width = source.extent
        remedy = f"{source.name} sources need a property extent (middle, half-width); the pole lies beyond"
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
            require(beyond > 0.05 * (high - low), rule, centre, "the map has its pole there")


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
        require(self.n_layers >= 1, "data.mixing.n_layers >= 1", self.n_layers, "it counts the linear maps")
        require(0 < self.slope <= 1, "0 < data.mixing.slope <= 1", self.slope, "other slopes have no inverse")
        require(self.off_diagonal > 0, "data.mixing.off_diagonal > 0", self.off_diagonal, "0 would mix nothing")


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
    n_layers: int = 4  # coupling layers
    width: int = 8  # hidden units of the random network that gives scale and shift

    def __post_init__(self) -> None:
        require(self.n_layers >= 2, "data.mixing.n_layers >= 2", self.n_layers, "one layer leaves half of s as it is")
        require(self.width >= 1, "data.mixing.width >= 1", self.width, "it counts hidden units")

    def check(self, dim: int, source: SourceSettings) -> None:
        """Raise UserError where these settings don't go with the sources."""
        rule = "data.dim is even and above 2 for the flow"
        require(dim > 2 and dim % 2 == 0, rule, dim, "its layers need two halves of two dimensions or more")


@MIXINGS.register
@dataclass(frozen=True)
class UnknownMixing(MixingSettings):
    """Whatever made the observations in a person's own file (``data.path``)."""

    name: str = "unknown"
    known: ClassVar[bool] = False

    def check(self, dim: int, source: SourceSettings) -> None:
        """Raise UserError where these settings don't go with the sources."""
        require(not source.known, "data.source is unknown where the mixing is", source.name, "say data=file alone")


Parameters = Literal["fixed", "learned", "conditional"]


@dataclass(frozen=True)
class PriorSettings(Settings):
    """Base of the priors' settings. An own one has ``build(support) -> imavae.model.priors.Prior``."""

    name: str = ""
    bounded: ClassVar[bool] = False  # whether its latents live on an interval
    analytic: ClassVar[bool] = False  # whether its divergence from a Gaussian posterior has a closed form


@PRIORS.register
@dataclass(frozen=True)
class UniformPrior(PriorSettings):
    """Latents uniform on [low, high]; null takes the source's support."""

    name: str = "uniform"
    low: float | None = None
    high: float | None = None
    bounded: ClassVar[bool] = True


@PRIORS.register
@dataclass(frozen=True)
class BetaPrior(PriorSettings):
    """Beta latents stretched onto [low, high]; null takes the source's support."""

    name: str = "beta"
    alpha: float = 2.0
    beta: float = 2.0
    low: float | None = None
    high: float | None = None
    parameters: Parameters = "fixed"  # learned, or conditional on u: alpha and beta of each latent, from these
    bounded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        shapes = f"alpha={self.alpha}, beta={self.beta}"
        require(min(self.alpha, self.beta) > 0, "model.prior.alpha and beta > 0", shapes, "(1, 1) is the uniform")


@PRIORS.register
@dataclass(frozen=True)
class GaussianPrior(PriorSettings):
    """Independent Gaussian latents."""

    name: str = "gaussian"
    mean: float = 0.0
    std: float = 1.0  # a standard deviation, not a variance
    parameters: Parameters = "fixed"  # learned: the scale of each latent; conditional: mean and scale, from u
    analytic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.std > 0, "model.prior.std > 0", f"std={self.std}", "it is a standard deviation")


@PRIORS.register
@dataclass(frozen=True)
class LaplacePrior(PriorSettings):
    """Independent Laplace latents."""

    name: str = "laplace"
    mean: float = 0.0
    scale: float = 1.0  # the standard deviation is sqrt(2) times it
    parameters: Parameters = "fixed"  # learned: the scale of each latent; conditional: mean and scale, from u
    analytic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.scale > 0, "model.prior.scale > 0", f"scale={self.scale}", "it is the mean distance from the mean")


NETWORKS: dict[str, Callable[..., Any]] = {}  # name -> builder; the package's come with imavae.model.networks
NETWORK_NAMES = {"mlp"}  # those that can be chosen: the package's, and what a person's file has registered


def register_network(name: str) -> Callable[[F], F]:
    """Add a network's builder, ``build(prefix, inputs, outputs, shape, model) -> Network``; a decorator.

    Raises:
        UserError: the name is taken.
    """

    def register(builder: F) -> F:
        taken = NETWORKS if builder.__module__ == "imavae.model.networks" else NETWORK_NAMES
        new = bool(name) and name not in taken
        require(new, "each network has a name of its own", repr(name), "choose another")
        NETWORKS[name] = builder
        NETWORK_NAMES.add(name)
        return builder

    return register


def load_plugins(paths: Iterable[str]) -> None:
    """Import a person's own files, each once, so that they register their variants.

    Raises:
        UserError: a file that is missing or can't be imported.
    """
    for path in paths:
        file = Path(path).resolve()
        name = f"imavae_plugin_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None or not file.is_file():
            raise UserError(f"`plugins are Python files` must hold, but got {path}; give the path of a .py file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            what = f"{path} raises {type(error).__name__}: {error}"
            raise UserError(f"`plugins can be imported` must hold, but {what}; correct the file") from error


def _interval(key: str, low: float, high: float) -> None:
    require(low < high, f"{key}.low < {key}.high", f"low={low}, high={high}", "it is a finite interval")
