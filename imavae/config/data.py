"""Settings of the data, one class per kind: a known mixing of drawn sources, sprites, or a user's file or images."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from imavae.config.mapping import Settings
from imavae.config.registry import Chosen, Registry
from imavae.errors import UserError, require

Range = tuple[float, float]
Share = Annotated[float, Field(gt=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Jitter = tuple[NotNegative, NotNegative, NotNegative]
Shape = Literal["square", "triangle", "pentagon", "circle"]
Map = Literal["none", "affine", "projective"]

FROM_FILE: Any = None  # default of what run_config reads from the file
SMALLEST_SPLIT = 64  # observations


class Reader(NamedTuple):
    """Way to read the settings of a kind of data that are null from the user's files."""

    kind: str
    resolved: Callable[[Mapping[str, Any]], dict[str, Any]]  # settings of data -> the same without nulls
    understood: Callable[[Any], list[str]]  # settings without nulls -> lines that say what was read and decided


KINDS: Registry[type[Data]] = Registry("data", "imavae.config.data", key="kind")
READERS: Registry[Reader] = Registry("data", "imavae.data.image_files", key="kind")


class Factor(NamedTuple):
    """Name and type of a source."""

    name: str
    discrete: bool = False  # True if it takes few values, in no order


@dataclass(frozen=True)
class SourceSettings(Settings):
    """Base of the settings of a source: the law of each component of s. They have a method :meth:`build`."""

    name: str = ""

    @property
    def support(self) -> Range:
        """Interval that each source lives on."""
        return -math.inf, math.inf

    @property
    def extent(self) -> Range:
        """Middle and half-width of an interval that holds nearly every source."""
        low, high = self.support
        return (low + high) / 2, (high - low) / 2

    def build(self) -> Any:
        """Return the law, an :class:`imavae.data.sources.Source`."""
        raise missing_build(self, "data.source", "build()")


@dataclass(frozen=True)
class Automorphism(Settings):
    """A map a of the sources that keeps their law: in normal coordinates, a rotation of a plane.

    f ∘ a makes observations of the same law as f, of other sources (Gresele et al., arXiv 2106.05200).
    """

    angle: Annotated[float, Field(description="of the rotation, in degrees; 0: none")] = 0.0
    plane: Annotated[tuple[int, int], Field(description="numbers of the two sources that it mixes, from 1")] = (1, 2)

    def check(self, data: Data, node: str) -> None:
        """Raise UserError if the sources can't be rotated so; ``node`` is the dotted key of these settings."""
        if self.angle == 0:
            return
        first, second = self.plane
        proper = first != second and all(1 <= number <= data.dim for number in self.plane)
        rule = f"{node}.plane is two different numbers of sources, from 1 to {data.dim}"
        require(proper, rule, list(self.plane), f"set {node}.plane=[1,2]")
        rule, remedy = f"data.n_segments is 1 for {node}.angle", "the law that it keeps differs between segments"
        require(data.n_segments == 1, rule, data.n_segments, remedy)


@dataclass(frozen=True)
class MixingSettings(Settings):
    """Base of the settings of a mixing x = f(s). They have a method :meth:`build`."""

    name: str = ""
    automorphism: Automorphism = field(default_factory=Automorphism)
    usual_dim: ClassVar[int] = 3  # data.dim when the command line chooses the mixing
    embeds: ClassVar[bool] = False  # True: f has data.features outputs; else a linear map follows it, if those are more

    def check(self, data: SyntheticData) -> None:
        """Raise UserError if these settings do not fit the sources."""

    def build(self, data: SyntheticData, generator: Any) -> Any:
        """Return f, an :class:`imavae.data.mixings.Mixing`; what is not given is drawn from ``generator``."""
        raise missing_build(self, "data.mixing", "build(data, generator)")


def missing_build(settings: Settings, setting: str, method: str) -> UserError:
    """The error for a variant without its method ``build``."""
    name = type(settings).__name__
    return UserError(f"`{setting} has a method {method}` must hold, but {name} has none; add it (docs/plugins.md)")


SOURCES: Registry[type[SourceSettings]] = Registry("data.source", "imavae.data.sources")
MIXINGS: Registry[type[MixingSettings]] = Registry("data.mixing", "imavae.data.mixings", group="data")
Source = Annotated[SourceSettings, BeforeValidator(Chosen(SOURCES))]
Mixing = Annotated[MixingSettings, BeforeValidator(Chosen(MIXINGS))]


@dataclass(frozen=True)
class Data(Settings):
    """Base of the kinds of data: observations and their split into training, validation and test."""

    kind: Annotated[str, Field(description="kind of data; data=NAME chooses it")] = ""
    dim: Annotated[int, Field(ge=2, description="number of sources, and of latents unless model.dim is set")] = 3
    n_obs: Annotated[int, Field(description="observations, over all splits")] = 60_000
    seed: Annotated[int, Field(description="of data and split, for all members unless members.data.seed is set")] = 1
    train: Annotated[Share, Field(description="share of the observations to train on")] = 0.7
    val: Annotated[Share, Field(description="share that stops and selects; the rest is the test split")] = 0.2
    n_segments: Annotated[int, Field(ge=1, description="above 1, each observation has an auxiliary u, its segment")] = 1

    def __post_init__(self) -> None:
        rule, got = "data.train + data.val < 1", f"train={self.train}, val={self.val}"
        require(self.train + self.val < 1, rule, got, "the rest is the test split: set data.train=0.7 data.val=0.2")

    def check_sizes(self) -> None:
        """Raise UserError for a split that is too small for a run's metrics; the estimator computes none of them."""
        rule, got = f"each split has at least {SMALLEST_SPLIT} observations", f"train, val, test of {self.sizes}"
        remedy = "use more observations, or change data.train and data.val"
        require(min(self.sizes) >= SMALLEST_SPLIT, rule, got, remedy)

    @property
    def sizes(self) -> tuple[int, int, int]:
        train, val = round(self.n_obs * self.train), round(self.n_obs * self.val)
        return train, val, self.n_obs - train - val

    @property
    def features(self) -> int:
        """Number of numbers in an observation."""
        return self.dim

    @property
    def source_factors(self) -> tuple[Factor, ...]:
        return tuple(Factor(f"source {number}") for number in range(1, self.dim + 1))

    @property
    def has_sources(self) -> bool:
        """True if the sources of each observation are known."""
        return True

    @property
    def has_images(self) -> bool:
        """True if an observation is a square image: numbers in [0, 1] in the order (channel, row, column)."""
        return False

    @property
    def support(self) -> Range | None:
        """Interval that each source lives on; None where the sources' law is unknown."""
        return None

    @property
    def files(self) -> tuple[str, ...]:
        return ()

    @property
    def summary(self) -> str:
        """Description in a few words, for reports."""
        return f"{self.n_obs:,} observations"


@dataclass(frozen=True)
class DrawnData(Data):
    """Base of the kinds of data whose sources are drawn."""

    variances: Annotated[
        Range, Field(description="of the segments, over the source's own (at most its own if bounded): uniform in this")
    ] = (0.5, 3.0)
    source: Source = field(default_factory=lambda: SOURCES["uniform"]())

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_sizes()
        rule, (low, high) = "0 < data.variances[0] <= data.variances[1]", self.variances
        require(0 < low <= high, rule, self.variances, "give a range: set data.variances=[0.5,3]")

    @property
    def support(self) -> Range:
        return self.source.support

    @property
    def box(self) -> Range:
        """Middle and half-diagonal of a box that holds nearly every s; segments widen that of unbounded sources."""
        middle, half_width = self.source.extent
        if self.n_segments > 1 and math.isinf(self.source.support[1]):
            half_width *= math.sqrt(max(1.0, self.variances[1]))
        return middle, half_width * math.sqrt(self.dim)


@KINDS.register
@dataclass(frozen=True)
class SyntheticData(DrawnData):
    """Observations x = f(s) of drawn sources s and a mixing f, whose inverse and Jacobian are known."""

    kind: str = "synthetic"
    observed: Annotated[
        int | None, Field(ge=2, description="numbers in an observation, at least data.dim; null: data.dim")
    ] = None
    mixing: Mixing = field(default_factory=lambda: MIXINGS["moebius"]())

    def __post_init__(self) -> None:
        super().__post_init__()
        rule, got = "data.observed >= data.dim", f"{self.observed} for {self.dim} sources"
        require(self.features >= self.dim, rule, got, "fewer numbers can't tell the sources apart: raise it, or null")
        self.mixing.check(self)
        self.mixing.automorphism.check(self, "data.mixing.automorphism")

    @property
    def features(self) -> int:
        return self.observed or self.dim

    @property
    def summary(self) -> str:
        into = f" into {self.features} numbers" if self.features > self.dim else ""
        return f"{super().summary} of {self.dim} {self.source.name} sources, mixed{into} by {self.mixing.name}"


@KINDS.register
@dataclass(frozen=True)
class SpritesData(DrawnData):
    """Images of one shape on black, drawn from its place, size, hue, ...: see :mod:`imavae.data.sprites`.

    Each source gives one factor, mapped linearly from its support onto the factor's range. A factor that is left out
    stays at the middle of its range, the angle at 0. The source of the factor ``shape`` takes as many values as there
    are shapes: the middles of equal parts of its support.
    """

    kind: str = "sprites"
    dim: Annotated[int, Field(ge=2, description="number of sources: one for each factor")] = 4
    source: Source = field(default_factory=lambda: SOURCES["beta"]())
    factors: Annotated[
        tuple[Literal["x", "y", "size", "hue", "angle", "shape"], ...], Field(description="in the order of the sources")
    ] = ("x", "y", "size", "hue")
    side: Annotated[int, Field(ge=16, description="of the image, in pixels")] = 64
    shapes: Annotated[tuple[Shape, ...], Field(description="several only with the factor shape")] = ("square",)
    betas: Annotated[
        Range | None,
        Field(description="each factor, in each segment, draws its own alpha and beta from this; null: data.source's"),
    ] = None
    x: Annotated[Range, Field(description="shares of the room that the largest shape has, from the left")] = (0.0, 1.0)
    y: Annotated[Range, Field(description="shares of that room, from the top")] = (0.0, 1.0)
    size: Annotated[Range, Field(description="half-width of the square of equal area, over the side")] = (0.1, 0.2)
    hue: Annotated[Range, Field(description="in turns of the colour wheel, at most one")] = (0.0, 0.8)
    angle: Annotated[Range, Field(description="in turns that bring the shape onto itself, at most one")] = (0.0, 0.8)
    transform: Annotated[Map, Field(description="random map of all factors but the shape, before drawing")] = "none"
    warp: Annotated[Map, Field(description="random map of the finished image, one for all images of a world")] = "none"
    jitter: Annotated[Jitter, Field(description="std of noise on an image's hue, saturation, value")] = (0.0, 0.0, 0.0)
    hsv_offset: Annotated[
        tuple[float, float, float], Field(description="added to the hue, saturation, value of all images")
    ] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        factors, shapes, (smallest, largest), count = self.factors, self.shapes, self.size, len(self.factors)
        require(len(set(factors)) == count, "data.factors has no factor twice", factors, "drop the copy")
        rule, got = "data.dim is the number of data.factors", f"{self.dim} for {count}"
        require(self.dim == count, rule, got, f"set data.dim={count}")
        rule, got = "data.source lives on an interval for data=sprites", f"{self.source.name} sources"
        require(all(map(math.isfinite, self.source.support)), rule, got, "use data/source=beta")
        proper = len(set(shapes)) == len(shapes) >= 1 and (len(shapes) > 1) == ("shape" in factors)
        rule, got = "data.shapes are as many as the factors need", f"{shapes} for {factors}"
        require(proper, rule, got, "list two or more with the factor shape, else one")
        rule, remedy = "data.shapes has no circle for the factor angle", "a circle has no angle: drop one of them"
        require("angle" not in factors or "circle" not in shapes, rule, shapes, remedy)
        rule, remedy = "1/side <= data.size[0] < size[1] <= 0.25", "leave room to move: set data.size=[0.1,0.2]"
        require(1 / self.side <= smallest < largest <= 0.25, rule, self.size, remedy)
        for key in ("x", "y"):
            low, high = getattr(self, key)
            rule, remedy = f"0 <= data.{key}[0] < data.{key}[1] <= 1", f"set data.{key}=[0,1] for all of the room"
            require(0 <= low < high <= 1, rule, (low, high), remedy)
        for key in ("hue", "angle"):
            low, high = getattr(self, key)
            remedy = f"more than a turn repeats itself: set data.{key}=[0,0.8]"
            require(low < high <= low + 1, f"data.{key} rises by at most 1", (low, high), remedy)
        hue, *others = self.hsv_offset
        rule = "data.hsv_offset is a hue in [-1, 1], then a saturation and a value in (-1, 0]"
        remedy = "both are at their largest, 1, without it: set data.hsv_offset=[0.1,-0.2,-0.3]"
        require(abs(hue) <= 1 and all(-1 < other <= 0 for other in others), rule, self.hsv_offset, remedy)
        if self.betas is not None:
            rule, (low, high) = "0 < data.betas[0] <= data.betas[1]", self.betas
            require(0 < low <= high, rule, self.betas, "set data.betas=[2,15]")
            rule, remedy = "data.source is beta for data.betas", "use data/source=beta, or data.betas=null"
            require(self.source.name == "beta", rule, self.source.name, remedy)
        mixed = self.transform == "none" or len(set(factors) - {"shape"}) >= 2
        require(mixed, "data.transform has two factors to mix, besides shape", factors, "set data.transform=none")

    @property
    def features(self) -> int:
        return 3 * self.side**2  # red, green and blue

    @property
    def has_images(self) -> bool:
        return True

    @property
    def source_factors(self) -> tuple[Factor, ...]:
        return tuple(Factor(name, discrete=name == "shape") for name in self.factors)

    @property
    def summary(self) -> str:
        return f"{self.n_obs:,} images of {self.dim} factors ({', '.join(self.factors)}), {self.source.name} sources"


@dataclass(frozen=True)
class UserData(Data):
    """Base of the kinds of data that a user's files hold. :func:`with_file` reads from them what is null."""

    path: str = ""
    sources_path: Annotated[str | None, Field(description="file of their sources, if known: data.dim columns")] = None
    fingerprint: Annotated[
        str | None, Field(description="digest of the rows, which must not change from then on; null: computes it")
    ] = None

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,) if self.sources_path is None else (self.path, self.sources_path)


@KINDS.register
@dataclass(frozen=True)
class FileData(UserData):
    """Observations in a user's file. :func:`with_file` reads dim, n_obs, n_segments and columns where they are null."""

    kind: str = "file"
    dim: Annotated[
        int, Field(ge=1, description="number of sources, and of latents unless model.dim is set; null: of columns")
    ] = FROM_FILE
    n_obs: Annotated[int, Field(description="number of the file's first rows to use; null: all")] = FROM_FILE
    n_segments: Annotated[int, Field(ge=1, description="labels in data.segment_column; null: counts them")] = FROM_FILE
    path: Annotated[str, Field(description="your observations: .npy, .csv, .tsv or .parquet")] = ""
    columns: Annotated[
        tuple[str, ...], Field(description="names (0, 1, ... of an .npy); null: all, but those that number the rows")
    ] = FROM_FILE
    segment_column: Annotated[str | None, Field(description="labels of any type: the observations' segments")] = None
    segment_bins: Annotated[
        int | None, Field(ge=2, description="bins of equally many rows that numbers or dates in segment_column make")
    ] = None
    group_column: Annotated[
        str | None, Field(description="labels of any type: rows that share one are never in different splits")
    ] = None
    standardise: Annotated[bool, Field(description="scale columns by mean and std of the training split")] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        binned = self.segment_bins is None or self.segment_column is not None
        remedy = "name the labels, or leave it at null"
        require(binned, "data.segment_bins is null without data.segment_column", self.segment_bins, remedy)
        rule = "data.n_segments > 1 exactly where data.segment_column names the labels"
        got, remedy = f"n_segments={self.n_segments}", "leave data.n_segments at null, which counts them"
        require((self.segment_column is not None) == (self.n_segments > 1), rule, got, remedy)
        rule, got = "data.dim <= the number of data.columns", f"{self.dim} of {self.features}"
        remedy = "set data.dim=null, and the number of latents by model.dim"
        remedy = remedy if self.sources_path is None else "leave sources out of data.sources_path"
        require(self.dim <= self.features, rule, got, remedy)

    @property
    def features(self) -> int:
        return len(self.columns)

    @property
    def has_sources(self) -> bool:
        return self.sources_path is not None

    @property
    def summary(self) -> str:
        return f"{super().summary} of {', '.join(self.columns)} in {self.path}"


SIDES = 16, 128  # of a user's images, in pixels


def image_shape(features: int) -> tuple[int, int]:
    """Channels, 1 or 3, and side of a square image of so many numbers; side 0 if there is none."""
    channels = 1 if math.isqrt(features) ** 2 == features else 3
    side = math.isqrt(features // channels)
    return channels, side if channels * side**2 == features else 0


@KINDS.register
@dataclass(frozen=True)
class ImagesData(UserData):
    """Square images in a user's file or folder. :func:`with_file` reads from it what is null."""

    kind: str = "images"
    dim: Annotated[
        int, Field(ge=1, description="number of data.factors; without factors, that of latents, which you choose")
    ] = FROM_FILE
    n_obs: Annotated[int, Field(description="images to use, drawn at random from the file; null: all")] = FROM_FILE
    path: Annotated[str, Field(description="your images: .npz, .h5, .npy, or a folder of PNG or JPEG")] = ""
    sources_path: Annotated[
        str | None, Field(description="table of their factors, a row per image, if they are not in data.path")
    ] = None
    names: Annotated[
        tuple[str, ...] | None, Field(description="of all factors of the file, in its order; null: those it tells")
    ] = None
    factors: Annotated[tuple[str, ...], Field(description="names of those that are sources; null: all that vary")] = (
        FROM_FILE
    )
    discrete: Annotated[
        tuple[str, ...], Field(description="factors of few values in no order; null: those of 5 values at most")
    ] = FROM_FILE
    available: Annotated[int, Field(description="images in the file; null: counts them")] = FROM_FILE
    channels: Annotated[Literal[1, 3], Field(description="grey or colour; null: as the file")] = FROM_FILE
    side: Annotated[int, Field(ge=SIDES[0], le=SIDES[1], description="of an image, in pixels; null: as the file")] = (
        FROM_FILE
    )
    white: Annotated[
        Literal[1, 255], Field(description="value that becomes 1; null: 1 if no value is greater, else 255")
    ] = FROM_FILE

    def __post_init__(self) -> None:
        super().__post_init__()
        rule, remedy = "data.n_segments is 1 for data=images", "images have no segments yet: leave it out"
        require(self.n_segments == 1, rule, self.n_segments, remedy)
        rule, got = "data.dim is the number of data.factors", f"{self.dim} for {len(self.factors)}"
        fits = self.dim == len(self.factors) or not self.factors
        require(fits, rule, got, "leave data.dim at null, or choose among the factors")
        others = [name for name in self.discrete if name not in self.factors]
        require(not others, "data.discrete are some of data.factors", others, f"choose from {', '.join(self.factors)}")

    @property
    def features(self) -> int:
        return self.channels * self.side**2

    @property
    def has_images(self) -> bool:
        return True

    @property
    def has_sources(self) -> bool:
        return bool(self.factors)

    @property
    def source_factors(self) -> tuple[Factor, ...]:
        factors = tuple(Factor(name, discrete=name in self.discrete) for name in self.factors)
        return factors or super().source_factors

    @property
    def summary(self) -> str:
        return f"{self.n_obs:,} images in {self.path}" + f", factors {', '.join(self.factors)}" * self.has_sources


AnyData = Annotated[Data, BeforeValidator(Chosen(KINDS, default="synthetic"))]


def with_file(mapping: dict[str, Any]) -> dict[str, Any]:
    """Return the mapping with the settings of a user's data that are null read from its files."""
    data = mapping.get("data")
    if not isinstance(data, Mapping) or data.get("kind") not in (FileData.kind, ImagesData.kind):
        return mapping
    kind, path = data["kind"], data.get("path")
    example = "FILE.parquet" if kind == FileData.kind else "FILE.h5"
    require(isinstance(path, str) and path != "", "data.path is the path of a file", path, f"set data.path={example}")
    homes = {k: os.path.expanduser(data[k]) for k in ("path", "sources_path") if isinstance(data.get(k), str)}
    named = {"columns": column_names(data.get("columns"))} if kind == FileData.kind else {}
    return {**mapping, "data": READERS[kind].resolved({**data, **homes, **named})}


def column_names(columns: Any) -> Any:
    """Return a list of columns with whole numbers, which name those of an .npy, as text."""
    if not isinstance(columns, (list, tuple)):
        return columns
    return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in columns]
