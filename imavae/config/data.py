"""The settings of the data: of a synthetic world, or of a person's own file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator

from imavae.config.registry import chosen_from
from imavae.config.variants import (
    MIXINGS,
    SOURCES,
    Factor,
    MixingSettings,
    MoebiusMixing,
    Settings,
    SourceSettings,
    UniformSource,
    UnknownMixing,
)
from imavae.errors import require

Source = Annotated[SourceSettings, BeforeValidator(chosen_from(SOURCES))]
Mixing = Annotated[MixingSettings, BeforeValidator(chosen_from(MIXINGS))]


@dataclass(frozen=True)
class Data(Settings):
    """Observations, of a synthetic world (sources and the mixing of them) or in a file, and their split.

    :func:`run_config` reads from the file what is left open (null) of columns, n_obs, dim and n_segments.
    """

    dim: int = 3  # number of sources and of latents; of observed dimensions, too, but for a file and for images
    n_obs: int = 60_000  # observations, over all splits
    seed: int = 1  # of the mixing, the sources and the split; all members share them, unless members.data.seed is set
    train: float = 0.7  # share of the observations to train on
    val: float = 0.2  # share that stops and selects; the rest is the test split
    n_segments: int = 1  # above 1, each observation has an auxiliary u, its segment, with source parameters of its own
    variances: tuple[float, float] = (
        0.5,
        3.0,
    )  # of the segments' sources, over the source's own: uniform between these
    path: str | None = None  # a file of a person's own observations (.npy, .csv, .parquet), for an unknown mixing
    columns: tuple[str, ...] | None = None  # of the file, by name (0, 1, ... of an .npy); null: all
    sources_path: str | None = None  # a file of their sources, as many rows and a column for each
    segment_column: str | None = None  # of the file: any labels, the observations' segments
    standardise: bool = True  # a file's columns, by mean and standard deviation of the training split
    source: Source = field(default_factory=UniformSource)
    mixing: Mixing = field(default_factory=MoebiusMixing)

    def __post_init__(self) -> None:
        self._check_file()
        require(self.dim >= 2, "data.dim >= 2", self.dim, "one source alone is not mixed with anything: say data.dim=3")
        require(
            self.train > 0 and self.val > 0 and self.train + self.val < 1,
            "data.train + data.val < 1, both above 0",
            f"train={self.train}, val={self.val}",
            "what they leave is the test split: say data.train=0.7 data.val=0.2",
        )
        require(
            min(self.sizes) >= 64,
            "each split has at least 64 observations",
            f"train, val, test of {self.sizes}",
            f"{'raise data.n_obs' if self.path is None else 'take a longer file'} or change data.train and data.val",
        )
        require(
            self.n_segments >= 1,
            "data.n_segments >= 1",
            self.n_segments,
            "1 means no auxiliary variable: say data.n_segments=1",
        )
        low, high = self.variances
        require(
            0 < low <= high,
            "0 < data.variances[0] <= data.variances[1]",
            self.variances,
            "they are a range: say data.variances=[0.5,3]",
        )
        self.mixing.check(self.dim, self.source)

    def _check_file(self) -> None:
        unknown = isinstance(self.mixing, UnknownMixing)
        require(
            (self.path is not None) == unknown,
            "data.path is set exactly when the mixing is unknown",
            f"path={self.path}, mixing={self.mixing.name}",
            "say data=file data.path=FILE.parquet (or .csv, .npy)",
        )
        for key in ("columns", "sources_path", "segment_column"):
            value = getattr(self, key)
            require(value is None or unknown, f"data.{key} is set only with data.path", value, "say data=file")
        require(
            self.source.known or unknown,
            "data.source is known where the mixing is",
            "unknown",
            "choose one, as in data/source=uniform",
        )
        require(
            self.path is None or (self.segment_column is not None) == (self.n_segments > 1),
            "data.n_segments > 1 exactly where data.segment_column names the labels",
            f"n_segments={self.n_segments}, segment_column={self.segment_column}",
            "leave data.n_segments at null, which counts them",
        )
        if self.columns is not None:
            observed, rule = len(self.columns), "data.dim <= the number of data.columns"
            require(
                self.dim <= observed,
                rule,
                f"{self.dim} latents of {observed}",
                "say data.dim=null for as many as columns",
            )

    @property
    def observed(self) -> int:
        """Number of observed dimensions, at least that of latents."""
        return self.mixing.observed(self.dim) if self.columns is None else len(self.columns)

    @property
    def factors(self) -> tuple[Factor, ...]:
        """What each source stands for."""
        return self.mixing.factors_of(self.dim)

    @property
    def has_sources(self) -> bool:
        """Whether the sources of each observation are there to be compared with."""
        return self.path is None or self.sources_path is not None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Observations in the training, validation and test split."""
        train, val = round(self.n_obs * self.train), round(self.n_obs * self.val)
        return train, val, self.n_obs - train - val


def with_file(mapping: dict[str, Any]) -> dict[str, Any]:
    """The mapping with what it leaves open of a file's data read from that file, which is checked on the way.

    Raises:
        UserError: there is no such file, or it can't be used.
    """
    data = mapping.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("path"), str):
        mixing = data.get("mixing") if isinstance(data, Mapping) else None
        unknown = isinstance(mixing, Mapping) and mixing.get("name") == UnknownMixing.name
        require(not unknown, "data.path is the path of a file", data and data.get("path"), "say data.path=FILE.parquet")
        return mapping
    from imavae.data.tables import resolved  # pyarrow: only where there is a file to read

    return {**mapping, "data": resolved({**data, "columns": column_names(data.get("columns"))})}


def column_names(columns: Any) -> Any:
    """A list of columns with whole numbers, which name those of an .npy, as text."""
    if not isinstance(columns, (list, tuple)):
        return columns
    return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in columns]
