"""The memory of a run or study, in its folder: what it was asked (study.json) and each trial that has ended (records/).

``study.json`` is rewritten rarely, and the previous one is kept. Each trial that has ended has two files of its own,
written once: its record, and its rows of history.csv. So the cost of a trial does not grow with their number, and a
trial whose record is whole is never trained again. All of them are sealed (see files.py): what is damaged is
noticed, and what can't be recovered from a backup is trained again from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from imavae.config.mapping import build, to_mapping
from imavae.config.settings import RunConfig, StudyConfig
from imavae.data.storage import Lock, OtherFormatError, Seal, previous_of, write_text
from imavae.errors import UserError
from imavae.tracking.base import TrialRecord
from imavae.training import checkpoint

STATE = "study.json"
PARTS = ("records", "checkpoints")  # folders in the folder

Numbered = list[Any]  # [number, values]: a point with its place in the study

OTHER = "resume it with the version of imavae that wrote it, or start a new one without resume=true"
STATES = Seal(b"imavae study", 1, "study state", "name another study", "restore the folder from a copy", OTHER)
RECORDS = Seal(b"imavae record", 1, "record", "train the trial again", "train the trial again", OTHER)
PACKS = Seal(b"imavae ensemble", 1, "ensemble's record", "make it again", "make it again", OTHER)
FREE = (  # settings that a resumed study may have otherwise than before: where and how long it runs, not what it asks
    "name",
    "output_dir",
    "resume",
    "dry_run",
    "question",
    "plugins",  # their contents are compared, not where they lie
    "tracking",
    "cluster",
    "budget.trials",
    "training.threads",
    "training.device",
)


@dataclass
class State:
    """What ``study.json`` holds."""

    config: dict[str, Any]  # the settings, as plain containers
    files: dict[str, str]  # of plugins and of data of a person's own: file name -> SHA-256 of its content
    created: float  # seconds since the epoch
    finished: bool = False  # its budget is spent and all is reported


@dataclass(frozen=True)
class Stored:
    """A trial that has ended, as its record has it: without the history, which lies beside it."""

    trial: TrialRecord
    checkpoint: str | None  # the ensemble's file, relative to the folder; None for a trial that has failed
    point: int  # which of the ensemble's points it is


@dataclass
class Folder:
    """The folder of a run or study, which only this process works in."""

    path: Path
    lock: Lock
    state: State
    stored: list[Stored] = field(default_factory=list)  # what an earlier process has finished
    asked: list[list[Numbered]] = field(default_factory=list)  # the points of each ensemble
    notices: list[str] = field(default_factory=list)  # what was found damaged, and what became of it

    def save_state(self) -> None:
        """Write ``study.json``."""
        _save_state(self.path, self.state)

    def ask(self, points: list[Numbered]) -> None:
        """Remember which points train together, before they do: a checkpoint is that of an ensemble."""
        self.asked.append(points)
        PACKS.write(_pack_file(self.path, min(number for number, _ in points)), json.dumps(points).encode())

    def save(self, stored: Stored) -> None:
        """Write a trial's record and its rows of history.csv; from then on it is never trained again."""
        rows = str(pd.DataFrame(stored.trial.history).to_csv(index=False)) if stored.trial.history else ""
        write_text(self.history_file(stored.trial.number), rows)
        trial = {f.name: getattr(stored.trial, f.name) for f in dataclasses.fields(TrialRecord) if f.name != "history"}
        content = {
            "trial": trial,
            "checkpoint": stored.checkpoint,
            "point": stored.point,
            "history_sha256": hashlib.sha256(rows.encode()).hexdigest(),
        }
        RECORDS.write(_record_file(self.path, stored.trial.number), json.dumps(content).encode())

    def history_file(self, number: int) -> Path:
        """A trial's rows of history.csv, with their header."""
        return _record_file(self.path, number).with_suffix(".csv")

    def history(self, number: int) -> list[dict[str, Any]]:
        """A trial's rows of history.csv."""
        path = self.history_file(number)
        if not path.stat().st_size:
            return []
        frame = pd.read_csv(path, float_precision="round_trip")
        return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def create(config: RunConfig, kind: str, name: str) -> Folder:
    """A new folder OUTPUT_DIR/KIND/NAME, with -2, -3, ... added where the name is taken; nobody sees a part of it.

    Raises:
        UserError: all of these names are taken.
    """
    base = Path(config.output_dir).resolve() / kind
    base.mkdir(parents=True, exist_ok=True)
    hidden = base / f".{name}.{os.getpid()}"  # until its state is there
    shutil.rmtree(hidden, ignore_errors=True)
    for part in PARTS:
        (hidden / part).mkdir(parents=True)
    lock = Lock(hidden)
    state = State(to_mapping(config), _digests(config), time.time())
    for _ in range(2):  # the first one has its backup from the start
        _save_state(hidden, state)
    for number in range(1, 10_000):
        folder = base / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            try:
                hidden.rename(folder)
            except OSError:  # another process was faster
                continue
            return Folder(folder, lock, state)
    shutil.rmtree(hidden)
    raise UserError(f"`name is free` must hold, but {base / name} to -9999 are taken; choose another name=")


def reopen(config: RunConfig, kind: str, name: str) -> Folder:
    """The folder that ``resume=true`` means: that of ``name=``, or else the newest that is not finished, or else the
    newest. Its settings become those of ``config``, as far as they may differ.

    Raises:
        UserError: there is none; its state is damaged beyond its backup, or of another version; it is in use; or it
            was asked something else.
    """
    base = Path(config.output_dir).resolve() / kind
    path = base / config.name if config.name else _newest(base, config, name)
    if not path.is_dir():
        raise UserError(f"`there is a {path}` must hold, but there is none; drop resume=true to start it")
    lock = Lock(path)
    state, from_backup = _read_state(path)
    used = f"{path / STATE} was damaged or missing: its backup was used (nothing is left to do)"
    notices = [used] if from_backup else []
    _check_same(path.name, state, config)
    for leftover in (file for part in (".", "stopped", *PARTS) for file in (path / part).glob(".*.[0-9]*")):
        leftover.unlink()  # of a write that was cut off
    if from_backup:
        (path / STATE).unlink(missing_ok=True)  # so that it does not become the backup
    state = dataclasses.replace(state, config=to_mapping(config), finished=False)
    folder = Folder(path, lock, state, list(_load_records(path, notices)), list(_load_packs(path, notices)), notices)
    folder.save_state()
    return folder


def read(path: Path) -> tuple[State, list[Stored]]:
    """What a run or study was asked and its trials that have ended, by number; nothing is changed, nor reserved.

    Raises:
        UserError: there is none at ``path``, or a file of it is damaged or of another version.
    """
    state, _ = _read_state(path)
    return state, [_read_record(file)[0] for file in sorted((path / "records").glob("trial-*.json"))]


def _save_state(path: Path, state: State) -> None:
    STATES.write(path / STATE, json.dumps(dataclasses.asdict(state), indent=1).encode(), keep=True)


def _read_state(path: Path) -> tuple[State, bool]:
    """The state, and whether it is from the backup."""
    file = path / STATE
    good = STATES.newest(file)
    if good is None:
        try:
            STATES.read(file)
        except UserError as error:
            raise UserError(f"the backup {previous_of(file).name} is no better, and {error}") from None
    return State(**json.loads(STATES.read(good or file))), good != file


def _record_file(path: Path, number: int) -> Path:
    return path / "records" / f"trial-{number:03d}.json"


def _pack_file(path: Path, first: int) -> Path:
    return path / "records" / f"ensemble-{first:03d}.json"


def _load_packs(path: Path, notices: list[str]) -> Iterator[list[Numbered]]:
    for file in sorted((path / "records").glob("ensemble-*.json")):
        try:
            yield json.loads(PACKS.read(file))
        except OtherFormatError:
            raise
        except UserError as error:
            notices.append(f"{error} (done now)")
            file.unlink()


def _load_records(path: Path, notices: list[str]) -> Iterator[Stored]:
    """The trials that are recorded whole and have a result; the others are trained again."""
    for file in sorted((path / "records").glob("trial-*.json")):
        try:
            stored = _load_record(path, file)
        except OtherFormatError:
            raise
        except UserError as error:
            notices.append(f"{error} (done now)")
            file.unlink()
            continue
        if stored is not None:
            yield stored


def _load_record(path: Path, file: Path) -> Stored | None:
    """A recorded trial; None for one that has failed, which is tried again."""
    stored, expected = _read_record(file)
    if stored.checkpoint is None:
        return None
    checkpoint.SEAL.read(path / stored.checkpoint)
    rows = file.with_suffix(".csv")
    digest = hashlib.sha256(rows.read_bytes() if rows.exists() else b"").hexdigest()
    if digest != expected:
        raise UserError(f"`record is whole` must hold, but {rows} does not match it; {RECORDS.damaged}")
    return stored


def _read_record(file: Path) -> tuple[Stored, str]:
    """A trial, and the digest of its rows of history.csv."""
    content = json.loads(RECORDS.read(file))
    stored = Stored(TrialRecord(history=[], **content["trial"]), content["checkpoint"], content["point"])
    return stored, content["history_sha256"]


def _newest(base: Path, config: RunConfig, name: str) -> Path:
    """The newest folder of this search that is not finished, or else the newest."""
    found: list[tuple[bool, float, Path]] = []
    for path in sorted(base.glob("[!.]*")):
        if not (path / STATE).exists() and not previous_of(path / STATE).exists():
            continue  # nothing of ours
        try:
            state, _ = _read_state(path)
        except UserError:
            if path.name.startswith(name):  # it may well be the one that is meant
                raise
            continue
        if state.config.get("study") == getattr(config, "study", None):
            found.append((_unfinished(state, config), state.created, path))
    if not found:
        raise UserError(f"`there is a {name} to resume` must hold, but {base} has none; drop resume=true to start one")
    return max(found)[2]


def _unfinished(state: State, config: RunConfig) -> bool:
    """Whether there is something left to do, under a budget that has been raised, too."""
    if not state.finished or not isinstance(config, StudyConfig):
        return not state.finished
    before, now = state.config["budget"]["trials"], config.budget.trials
    return before is not None and (now is None or now > before)


def _check_same(name: str, state: State, config: RunConfig) -> None:
    """Refuse to go on with something else than what was begun, and list the differences."""
    # Built anew, so that a setting that has been added since has its default.
    before = to_mapping(build(type(config), {**state.config, "plugins": config.plugins}))
    then, now = dict(_flat(before)), dict(_flat(to_mapping(config)))
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    differing = [f"{key}={then.get(key)}, not {now.get(key)}" for key in changed]
    digests = _digests(config)
    files = {**state.files, **digests}
    differing += [f"another {file}" for file in files if state.files.get(file) != digests.get(file)]
    if differing:
        raise UserError(
            f"`a resumed study is asked what it was asked before` must hold, but {name} had {'; '.join(differing)}; "
            "give it the same again, or start a new one without resume=true"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of all settings that must stay the same."""
    for key, value in config.items():
        dotted = f"{prefix}{key}"
        if dotted in FREE:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{dotted}.")
        else:
            yield dotted, value


def _digests(config: RunConfig) -> dict[str, str]:
    paths = [Path(path) for path in (*config.plugins, config.data.path, config.data.sources_path) if path]
    digests = {}
    for path in paths:
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
