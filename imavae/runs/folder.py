"""The folder of a run or study: the names of its files, its lock, and its state on disk.

The state is ``study.json`` (the settings) plus one record per finished trial. ``study.json`` is rewritten rarely and
its previous version is kept. A finished trial has two files, written once: its record and its rows of ``history.csv``.
So the cost of a trial does not grow with their number, and a trial with a whole record is never trained again. All of
these files are sealed (see :mod:`imavae.data.storage`): damage is noticed, and what no backup restores is trained again
from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from imavae.config.mapping import build, flatten, to_mapping
from imavae.config.settings import RunConfig, StudyConfig
from imavae.data.storage import Lock, OtherFormatError, Seal, previous_of, write_text
from imavae.errors import UserError, require
from imavae.tracking import Row, TrialRecord
from imavae.training import checkpoint

T = TypeVar("T")
Numbered = list[Any]  # [number, values]: a point with its number in the study

OTHER_VERSION = "imavae 0.1 wrote format 1: resume it with that version, or start a new one without resume=true"
STATES = Seal(b"imavae study", 2, "study state", "name another study", "restore the folder from a copy", OTHER_VERSION)
RECORDS = Seal(b"imavae record", 1, "record", "train the trial again", "train the trial again", OTHER_VERSION)
PACKS = Seal(b"imavae ensemble", 1, "ensemble's record", "make it again", "make it again", OTHER_VERSION)
# Settings that may change when a study is resumed, since no trial's numbers depend on them. Of the files that are named
# in ``plugins``, the contents are compared instead.
FREE: tuple[str, ...] = ("name", "output_dir", "resume", "dry_run", "question", "plugins", "tracking", "cluster")
FREE += ("pdf", "budget.trials", "training.threads", "training.device")


class RunFolder:
    """Paths of the files in the folder of a run or study, ``OUTPUT_DIR/runs/NAME`` or ``OUTPUT_DIR/studies/NAME``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.output_dir = path.parent.parent
        self.state = path / "study.json"  # settings and progress, sealed
        self.config = path / "config.yaml"  # the settings, for the user
        self.members = path / "members.csv"  # a row per member
        self.history = path / "history.csv"  # a row per member and validation
        self.summary = path / "summary.json"  # metrics of the whole study and its cost
        self.selection = path / "selection.csv"  # choice of each selection criterion
        self.latents = path / "latents.csv"  # a row per latent of the best member
        self.report = path / "report.html"
        self.figures = path / "figures"
        self.ray = path / "ray"  # Ray's logs
        self.champion = path / "champion.pt"  # the model of the best member
        self.run_checkpoint = path / "checkpoint.pt"  # the ensemble of a run
        self.checkpoint_dir = path / "checkpoints"  # ensembles and winners of a study
        self.record_dir = path / "records"  # finished trials, and the points of each ensemble
        self.stop_dir = path / "stopped"  # the points that the scheduler has stopped

    # An ensemble's files have the number of its first point, a trial's files that of the trial.

    def ensemble(self, first: int) -> Path:
        return self.checkpoint_dir / f"ensemble-{first:03d}.pt"

    def ensemble_lock(self, first: int) -> Path:
        return self.ensemble(first).with_suffix(".lock")

    def ensemble_points(self, first: int) -> Path:
        return self.record_dir / f"ensemble-{first:03d}.json"

    def stop_file(self, first: int) -> Path:
        return self.stop_dir / f"{first:03d}.json"

    def stop_files(self) -> list[Path]:
        return sorted(self.stop_dir.glob("*.json"))

    def record(self, number: int) -> Path:
        return self.record_dir / f"trial-{number:03d}.json"

    def history_rows(self, number: int) -> Path:  # of ``history.csv``, with their header
        return self.record(number).with_suffix(".csv")

    def winner(self, place: int) -> Path:  # the best member of the trial in this place
        return self.champion if place == 1 else self.checkpoint_dir / f"winner-{place}.pt"


@dataclass
class State:
    """Content of ``study.json``."""

    config: dict[str, Any]  # the settings, as plain containers
    files: dict[str, str]  # plugins and the user's data: file name -> SHA-256 of its content
    created: float  # seconds since the epoch
    finished: bool = False  # the budget is spent and the report is written
    points: int = 1  # to be trained in all
    champion: str = ""  # the address of the best model, for load_model
    version: str = field(default_factory=lambda: importlib.metadata.version("imavae"))  # of imavae, which wrote it


@dataclass(frozen=True)
class Stored:
    """A finished trial as its record has it; the history is in a separate file."""

    trial: TrialRecord
    checkpoint: str | None  # the ensemble's file, relative to the folder; None if the trial failed
    point: int  # index of the trial's point in the ensemble


@dataclass
class LockedFolder:
    """The folder of a run or study that this process alone works in, with its state."""

    names: RunFolder
    lock: Lock
    state: State
    stored: list[Stored] = field(default_factory=list)  # trials that an earlier process has finished
    asked: list[list[Numbered]] = field(default_factory=list)  # the points of each ensemble
    notices: list[str] = field(default_factory=list)  # damage that was found, and what was done about it

    @property
    def path(self) -> Path:
        return self.names.path

    def save_state(self) -> None:
        STATES.write(self.names.state, json.dumps(dataclasses.asdict(self.state), indent=1).encode(), keep=True)

    def ask(self, points: list[Numbered]) -> None:
        """Remember which points train together, before they do: a checkpoint belongs to an ensemble."""
        self.asked.append(points)
        file = self.names.ensemble_points(min(number for number, _ in points))
        PACKS.write(file, json.dumps(points).encode())

    def save(self, stored: Stored) -> None:
        """Write a trial's record and its rows of ``history.csv``; from then on it is never trained again."""
        trial = dict(vars(stored.trial))
        rows = csv_of(trial.pop("history"))
        write_text(self.names.history_rows(stored.trial.number), rows)
        content = {**vars(stored), "trial": trial, "history_sha256": hashlib.sha256(rows.encode()).hexdigest()}
        RECORDS.write(self.names.record(stored.trial.number), json.dumps(content).encode())

    def history(self, number: int) -> list[dict[str, Any]]:
        """A finished trial's rows of ``history.csv``."""
        path = self.names.history_rows(number)
        frame = pd.read_csv(path, engine="pyarrow") if path.stat().st_size else pd.DataFrame()
        return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def csv_of(rows: Sequence[Row]) -> str:
    """Return rows as CSV with a header; empty without rows."""
    return str(pd.DataFrame(rows).to_csv(index=False)) if rows else ""


def create(config: RunConfig, kind: str, name: str) -> LockedFolder:
    """Make a new folder OUTPUT_DIR/KIND/NAME, with -2, -3, ... added where the name is taken.

    The folder is prepared under a hidden name, so that other processes never see a part of it.
    """
    base = Path(config.output_dir).resolve() / kind
    base.mkdir(parents=True, exist_ok=True)
    hidden = RunFolder(base / f".{name}.{os.getpid()}")
    shutil.rmtree(hidden.path, ignore_errors=True)
    for part in (hidden.record_dir, hidden.checkpoint_dir):
        part.mkdir(parents=True)
    folder = LockedFolder(hidden, Lock(hidden.path), State(to_mapping(config), _digests(config), time.time()))
    folder.save_state()
    folder.save_state()  # so that the first state has a backup
    for number in itertools.count(1):
        path = base / (name if number == 1 else f"{name}-{number}")
        if path.exists():
            continue
        try:
            hidden.path.rename(path)
        except OSError:
            if not path.exists():  # else another process was faster
                raise
        else:
            folder.names = RunFolder(path)
            break
    return folder


def reopen(config: RunConfig, kind: str, name: str) -> LockedFolder:
    """Open the folder to resume, ``config.name`` or the newest unfinished one, else the newest, with ``config``.

    Raises UserError if there is none, its settings differ, another process works in it, or its state can't be read.
    """
    base = Path(config.output_dir).resolve() / kind
    path = base / config.name if config.name else _newest(base, config, name)
    require(path.is_dir(), f"there is a {path}", "none", "drop resume=true to start it")
    lock, names = Lock(path), RunFolder(path)
    state, from_backup = _read_state(names)
    _check_same(path.name, state, config)
    notices = []
    folders = (path, names.stop_dir, names.record_dir, names.checkpoint_dir)
    for leftover in (file for folder in folders for file in folder.glob(".*.[0-9]*")):
        leftover.unlink()  # of a write that was cut off
    if from_backup:
        names.state.unlink(missing_ok=True)  # so that the damaged file does not become the backup
        notices.append(f"{names.state} was damaged or missing: its backup was used (no action is needed)")
    settings = {**to_mapping(config), "name": state.config["name"]}  # a resume names a folder, not a new study
    state = State(settings, state.files, state.created, points=state.points, champion=state.champion)
    trials = _whole(names.record_dir.glob("trial-*.json"), lambda file: _read_record(file, path), notices)
    stored = [trial for trial in trials if trial.checkpoint is not None]  # a failed trial is tried again
    asked = list(_whole(names.record_dir.glob("ensemble-*.json"), lambda file: json.loads(PACKS.read(file)), notices))
    folder = LockedFolder(names, lock, state, stored, asked, notices)
    folder.save_state()
    return folder


def read(names: RunFolder) -> tuple[State, list[Stored]]:
    """Return the state and the finished trials of a folder, by number. Raises UserError for a bad file."""
    return _read_state(names)[0], [_read_record(file) for file in sorted(names.record_dir.glob("trial-*.json"))]


def essence(config: RunConfig) -> dict[str, Any]:
    """The settings that decide a study's numbers, as dotted key -> value: all but those in ``FREE``."""
    free = tuple(f"{key}." for key in FREE)
    return {key: value for key, value in flatten(to_mapping(config)).items() if not f"{key}.".startswith(free)}


def _read_state(names: RunFolder) -> tuple[State, bool]:
    """Return the state, and whether it is from the backup."""
    good = STATES.newest(names.state)
    try:
        return State(**json.loads(STATES.read(good or names.state))), good != names.state
    except UserError as error:
        raise UserError(f"the backup {previous_of(names.state).name} is no better, and {error}") from None


def _whole(files: Iterable[Path], read: Callable[[Path], T], notices: list[str]) -> Iterator[T]:
    """Yield the contents of the whole files; damaged ones are removed, with a notice."""
    for file in sorted(files):
        try:
            yield read(file)
        except OtherFormatError:
            raise
        except UserError as error:
            notices.append(f"{error} (done now)")
            file.unlink()


def _read_record(file: Path, folder: Path | None = None) -> Stored:
    """Read a trial. Of a trained one in ``folder``, the checkpoint and the history must be whole, too."""
    content = json.loads(RECORDS.read(file))
    expected = content.pop("history_sha256")
    stored = Stored(**content | {"trial": TrialRecord(history=[], **content["trial"])})
    if folder is not None and stored.checkpoint is not None:
        checkpoint.SEAL.read(folder / stored.checkpoint)
        rows = file.with_suffix(".csv")
        digest = hashlib.sha256(rows.read_bytes() if rows.exists() else b"").hexdigest()
        require(digest == expected, "record is whole", f"{rows}, which does not match it", RECORDS.damaged)
    return stored


def _newest(base: Path, config: RunConfig, name: str) -> Path:
    """Return the newest unfinished folder of this search, else its newest."""
    found: list[tuple[bool, float, Path]] = []
    for path in sorted(base.glob("[!.]*")):
        names = RunFolder(path)
        if not names.state.exists() and not previous_of(names.state).exists():
            continue  # not a folder of ours
        try:
            state, _ = _read_state(names)
        except UserError:
            if path.name.startswith(name):  # it may well be the one that is meant
                raise
            continue
        if state.config.get("study") == getattr(config, "study", None):
            unfinished = not state.finished
            if isinstance(config, StudyConfig) and state.finished:  # a raised budget leaves trials to train
                before, now = state.config["budget"]["trials"], config.budget.trials
                unfinished = before is not None and (now is None or now > before)
            found.append((unfinished, state.created, path))
    require(bool(found), f"there is a {name} to resume", f"none in {base}", "drop resume=true to start one")
    return max(found)[2]


def _check_same(name: str, state: State, config: RunConfig) -> None:
    """Refuse to resume with other settings, and list the differences."""
    # Built anew, so that a setting that has been added since has its default.
    then, now = essence(build(type(config), {**state.config, "plugins": config.plugins})), essence(config)
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    differing = [f"{key}={then.get(key)}, not {now.get(key)}" for key in changed]
    digests = _digests(config)
    differing += [f"another {f}" for f in {**state.files, **digests} if state.files.get(f) != digests.get(f)]
    if differing:
        raise UserError(
            f"`a resumed study keeps its settings` must hold, but {name} had {'; '.join(differing)}; "
            "use the same settings again, or start a new study without resume=true"
        )


def _digests(config: RunConfig) -> dict[str, str]:
    digests = {}
    for name in (*config.plugins, *config.data.files):
        with open(name, "rb") as file:
            digests[Path(name).name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
