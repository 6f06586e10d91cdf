"""Finished studies on disk: found by what they ran, read whole."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from imavae.config.mapping import to_mapping
from imavae.config.settings import StudyConfig, study_config
from imavae.errors import UserError
from imavae.runs.folder import RunFolder

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
    same = (_read(folder, stored) for folder, stored in _alike(wanted))
    return next((study for study in same if study is not None), None)


def broken_off(wanted: StudyConfig) -> str | None:
    """The name of the newest study that was to run just this and can be resumed; None where there is none."""
    return next((folder.name for folder, _ in _alike(wanted) if RunFolder(folder).state.is_file()), None)


def unlike(wanted: StudyConfig) -> str:
    """Why :func:`find` finds none: which settings the newest study of this search has otherwise."""
    for folder, stored in _folders(wanted):
        if stored.study != wanted.study:
            continue
        ours, theirs = _essence(wanted), _essence(stored)
        other = [f"{key}={theirs.get(key)}" for key in ours | theirs if ours.get(key) != theirs.get(key)]
        return f"{folder} has {', '.join(other)}" if other else f"{folder} is not finished"
    return f"none in {Path(wanted.output_dir).resolve() / 'studies'}"


def _alike(wanted: StudyConfig) -> Iterator[tuple[Path, StudyConfig]]:
    """The studies that were asked just this, the newest first."""
    return ((folder, stored) for folder, stored in _folders(wanted) if _essence(stored) == _essence(wanted))


def _folders(wanted: StudyConfig) -> Iterator[tuple[Path, StudyConfig]]:
    """All studies in ``wanted.output_dir`` that this version can read, the newest first."""
    files = (Path(wanted.output_dir).resolve() / "studies").glob("[!.]*/config.yaml")
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            yield path.parent, study_config(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, UserError, TypeError):
            continue


def _essence(config: StudyConfig) -> dict[str, str]:
    """What a study is asked, setting by setting: without its name, its places, and how the work is spread."""
    from imavae.runs.folder import FREE

    free = {*FREE} - {"budget.trials"}  # fewer trials are another grid
    return {
        key: text for key, text in _leaves(to_mapping(config)) if not any(f"{key}.".startswith(f"{k}.") for k in free)
    }


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
        return float(json.loads(RunFolder(folder).summary.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError):
        return math.nan


def _leaves(node: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(node, dict):
        return [leaf for key, inner in node.items() for leaf in _leaves(inner, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), str(node))]
