"""Finished studies on disk: found by what they ran, read whole."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from imavae.config import StudyConfig, Tracking, study_config
from imavae.errors import UserError
from imavae.mapping import to_mapping
from imavae.report.commands import SUMMARY

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Study:
    """A finished study of a grid."""

    config: StudyConfig
    folder: Path
    members: pd.DataFrame  # the rows of members.csv, with a column for each searched setting
    history: pd.DataFrame  # the rows of history.csv
    seconds: float  # that it took; NaN where that was not kept

    @property
    def name(self) -> str:
        """What its search is called, without the folder."""
        return self.config.study.rpartition("/")[2]

    @property
    def keys(self) -> list[str]:
        """The searched settings, dotted."""
        from imavae.search.space import parse

        return [parameter.key for parameter in parse(self.config)]

    @property
    def over(self) -> str:
        """What its members differ in, and with it what an interval over them is an interval over."""
        worlds = self.config.members.data.seed
        if worlds is None or len(worlds) == 1:
            return f"{self.config.members.count} initialisations that share one mixing"
        seeds = len(self.config.members.seed)
        return f"{len(worlds)} mixings, {seeds} initialisation{'s' * (seeds > 1)} of each"


def find(wanted: StudyConfig) -> Study | None:
    """The newest finished study in ``wanted.output_dir`` that ran just this; None where there is none."""
    folders = sorted((Path(wanted.output_dir).resolve() / "studies").glob("*/config.yaml"), key=_age, reverse=True)
    for path in folders:
        stored = _stored(path)
        if stored is not None and _essence(stored) == _essence(wanted):
            study = _read(path.parent, stored)
            if study is not None:
                return study
    return None


def unlike(wanted: StudyConfig) -> str:
    """Why :func:`find` finds none: which settings the newest study of this search has otherwise."""
    folders = sorted((Path(wanted.output_dir).resolve() / "studies").glob("*/config.yaml"), key=_age, reverse=True)
    for path in folders:
        stored = _stored(path)
        if stored is None or stored.study != wanted.study:
            continue
        ours, theirs = (dict(_leaves(to_mapping(_essence(config)))) for config in (wanted, stored))
        other = [f"{key}={theirs.get(key)}" for key in ours | theirs if ours.get(key) != theirs.get(key)]
        return f"{path.parent} has {', '.join(other)}" if other else f"{path.parent} is not finished"
    return f"there is none in {Path(wanted.output_dir).resolve() / 'studies'}"


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _stored(path: Path) -> StudyConfig | None:
    """The configuration of a study's folder; None for one that this version can't read."""
    try:
        return study_config(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UserError, TypeError):
        return None


def _essence(config: StudyConfig) -> StudyConfig:
    """A configuration without what changes no result: name, places, and how the work is spread."""
    nothing = StudyConfig()
    spread = {"name": None, "output_dir": "", "plugins": (), "tracking": Tracking(), "cluster": nothing.cluster}
    device = dataclasses.replace(config.training, device="auto", threads=1)
    return dataclasses.replace(config, training=device, **spread)  # type: ignore[arg-type]


def _read(folder: Path, config: StudyConfig) -> Study | None:
    """The study in a folder; None unless every point of its grid has all its members."""
    import pandas as pd

    from imavae.search.space import grid, parse

    if config.sampler.name != "grid" or not (folder / "members.csv").is_file():
        return None
    points = pd.DataFrame(grid(parse(config))[: config.budget.trials])
    try:
        members = pd.read_csv(folder / "members.csv")
        history = pd.read_csv(folder / "history.csv")
    except (OSError, pd.errors.EmptyDataError):
        return None
    counts = members["trial"].value_counts()
    if len(counts) != len(points) or (counts != config.members.count).any():
        return None
    new = [key for key in points if key not in members]
    members = members.join(points[new], on="trial").copy()  # in one piece: columns are added to it
    return Study(config, folder, members, history, _seconds(folder))


def _seconds(folder: Path) -> float:
    try:
        return float(json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError):
        return math.nan


def _leaves(node: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(node, dict):
        return [leaf for key, inner in node.items() for leaf in _leaves(inner, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), str(node))]
