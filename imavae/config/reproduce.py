"""The configuration of ``scripts/reproduce.py``: a study's, and which figure it is for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imavae.config.mapping import build
from imavae.config.settings import StudyConfig, study_config


@dataclass(frozen=True)
class ReproduceConfig(StudyConfig):
    """What all studies of a figure share; each of them brings its own search space along."""

    figure: str | None = None  # of the paper; null: list them
    plot_only: bool = False  # true reads finished studies and never runs one


def reproduce_config(mapping: Mapping[str, Any]) -> ReproduceConfig:
    """The checked configuration of a plain mapping. Raises UserError as :func:`run_config` does."""
    return build(ReproduceConfig, mapping)


def study_of(mapping: Mapping[str, Any]) -> StudyConfig:
    """The checked configuration of one of the figure's studies."""
    own = {field.name for field in dataclasses.fields(ReproduceConfig)}
    own -= {field.name for field in dataclasses.fields(StudyConfig)}
    return study_config({key: value for key, value in mapping.items() if key not in own})
