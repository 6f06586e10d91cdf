"""Finished studies on disk, found by their settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from imavae.config.settings import StudyConfig, study_config
from imavae.errors import UserError
from imavae.runs.folder import RunFolder, essence
from imavae.runs.results import load_results
from imavae.search.space import grid, parse


@dataclass(frozen=True)
class Study:
    """A finished study of a grid."""

    config: StudyConfig
    folder: Path
    members: pd.DataFrame  # the rows of members.csv, with a column for each searched setting
    history: pd.DataFrame  # the rows of history.csv
    seconds: float  # its running time; NaN if unknown

    @property
    def name(self) -> str:
        """Name of its search space, without the folder."""
        return self.config.study.rpartition("/")[2]

    @property
    def keys(self) -> list[str]:
        """Dotted keys of the searched settings."""
        return [parameter.key for parameter in parse(self.config)]

    @property
    def population(self) -> str:
        """The differences between the members of a point, which intervals refer to."""
        worlds = self.config.members.data.seed
        if worlds is None or len(worlds) == 1:
            return f"{self.config.members.count} initialisations that share one mixing"
        seeds = len(self.config.members.seed)
        return f"{len(worlds)} mixings, {seeds} initialisation{'s' * (seeds > 1)} of each"


def find(wanted: StudyConfig) -> Study | None:
    """Return the newest finished study in ``wanted.output_dir`` with the same settings, or None."""
    studies = (_read(folder, stored) for folder, stored in _alike(wanted))
    return next((study for study in studies if study is not None), None)


def find_unfinished(wanted: StudyConfig) -> str | None:
    """Return the name of the newest study with the same settings that can be resumed, or None."""
    return next((folder.name for folder, _ in _alike(wanted) if RunFolder(folder).state.is_file()), None)


def difference(wanted: StudyConfig) -> str:
    """Return the reason why :func:`find` finds nothing: the settings that the newest study of this search has."""
    for folder, stored in _folders(wanted):
        if stored.study == wanted.study:
            ours, theirs = _essence(wanted), _essence(stored)
            other = [f"{key}={theirs.get(key)}" for key in ours | theirs if ours.get(key) != theirs.get(key)]
            return f"{folder} has {', '.join(other)}" if other else f"{folder} is not finished"
    return f"none in {Path(wanted.output_dir).resolve() / 'studies'}"


def _alike(wanted: StudyConfig) -> Iterator[tuple[Path, StudyConfig]]:
    """Yield the studies with the same settings, newest first."""
    return ((folder, stored) for folder, stored in _folders(wanted) if _essence(stored) == _essence(wanted))


def _folders(wanted: StudyConfig) -> Iterator[tuple[Path, StudyConfig]]:
    """Yield all studies in ``wanted.output_dir`` that this version can read, newest first."""
    files = (Path(wanted.output_dir).resolve() / "studies").glob("[!.]*/config.yaml")
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            yield path.parent, study_config(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, UserError, TypeError):
            continue


def _essence(config: StudyConfig) -> dict[str, Any]:
    """Return the settings that decide a study's results, by dotted key; fewer trials are another grid."""
    return essence(config) | {"budget.trials": config.budget.trials}


def _read(folder: Path, config: StudyConfig) -> Study | None:
    """Return the study in a folder, or None unless every point of its grid has all its members."""
    if config.sampler.name != "grid":
        return None
    points = pd.DataFrame(grid(parse(config))[: config.budget.trials])
    try:
        results = load_results(folder)
        members, history = results.members, results.history
    except (OSError, UserError):
        return None
    counts = members["trial"].value_counts() if len(members) else pd.Series()
    if len(counts) != len(points) or (counts != config.members.count).any():
        return None
    new = [key for key in points if key not in members]
    members = members.join(points[new], on="trial").copy()  # defragmented: columns are added to it
    return Study(config, folder, members, history, results.seconds)
