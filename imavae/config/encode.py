"""The settings of ``scripts/encode.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imavae.config.data import column_names
from imavae.config.mapping import build
from imavae.config.settings import Tracking
from imavae.config.variants import Settings
from imavae.errors import require, require_choice


@dataclass(frozen=True)
class EncodeData(Settings):
    """The rows to encode."""

    path: str  # .npy, .csv or .parquet
    columns: tuple[str, ...] | None = None  # in the model's order; null: those that it was trained on, by name


@dataclass(frozen=True)
class EncodeConfig(Settings):
    """A stored model, a file of observations and one for their latents: all that ``scripts/encode.py`` needs."""

    checkpoint: str  # a path, or an MLflow model address
    data: EncodeData
    out: str  # .parquet or .csv; replaced when all of it is written
    output_dir: str = "outputs"  # where the tracking database lies, for an MLflow address
    plugins: tuple[str, ...] = ()  # Python files that register the variants of the model, where they are your own
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        remedy = "say checkpoint=PATH, or checkpoint=models:/NAME@champion"
        require(self.checkpoint.strip() != "", "checkpoint is not empty", repr(self.checkpoint), remedy)
        require(
            self.data.path.strip() != "", "data.path is not empty", repr(self.data.path), "say data.path=FILE.parquet"
        )
        require(self.out.strip() != "", "out is not empty", repr(self.out), "say out=latents.parquet")
        require_choice(Path(self.out).suffix, (".parquet", ".csv"), "the ending of out")
        folder, same = Path(self.out).resolve().parent, Path(self.out).resolve() == Path(self.data.path).resolve()
        require(folder.is_dir(), "the folder of out is there", folder, "make it, or say another out=")
        require(
            not same, "out is another file than data.path", self.out, "the observations would be lost: say another out="
        )


def encode_config(mapping: Mapping[str, Any]) -> EncodeConfig:
    """The checked configuration of an encoding of a plain mapping. Raises as :func:`run_config` does."""
    data = mapping.get("data")
    if isinstance(data, Mapping):
        mapping = {**mapping, "data": {**data, "columns": column_names(data.get("columns"))}}
    return build(EncodeConfig, mapping)
