"""The folder of a run or study: the names of its files, its lock, and its state on disk.

The state is ``study.json`` (the settings) plus one record per finished trial. ``study.json`` is rewritten rarely and
its previous version is kept. A finished trial has two files, written once: its record and its rows of ``history.csv``.
So the cost of a trial does not grow with their number, and a trial with a whole record is never trained again. All of
these files are sealed (see :mod:`imavae.data.storage`): damage is noticed, and what no backup restores is trained again
from its checkpoint. A record has the SHA-256 of its checkpoint and of its rows, and the state those of the models and
summaries, so that no file stands for another one. Other files in these folders are named and left alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import io
import itertools
import json
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from imavae.config.mapping import build, flatten, nest, to_mapping
from imavae.config.settings import RunConfig, is_folder_name, overridden
from imavae.data.storage import Lock, OtherFormatError, Seal, csv_of, leftovers, previous_of, temporary, write_text
from imavae.data.tables import digest_of
from imavae.errors import UserError, require
from imavae.tracking import TrialRecord
from imavae.training import checkpoint

T = TypeVar("T")
Numbered = list[Any]  # [number, values]: a point with its number in the study

OTHER_VERSION = "imavae 0.1 wrote format 1: resume it with that version, or start a new one without resume=true"
STATES = Seal(b"imavae study", 2, "study state", "name another study", "restore the folder from a copy", OTHER_VERSION)
AGAIN = "resume the study, which trains the trial again"
RECORDS = Seal(b"imavae record", 1, "record", AGAIN, AGAIN, OTHER_VERSION)
PACKS = Seal(b"imavae ensemble", 1, "ensemble's record", "make it again", "make it again", OTHER_VERSION)
# Settings that may change when a study is resumed, since no trial's numbers depend on them. Of the files that are named
# in ``plugins``, the contents are compared instead.
FREE: tuple[str, ...] = ("name", "output_dir", "resume", "dry_run", "question", "plugins", "tracking", "cluster")
FREE += ("pdf", "budget", "training.threads", "training.device")
FREE += ("data.fingerprint",)  # the state has digests of the files
WRITTEN_NAMES = re.compile(  # in the folders that only imavae writes in
    r"(trial-#\.(json|csv)|ensemble-#\.(json|pt|previous\.pt|lock|pt\.damaged)|#\.json(\.damaged)?|winner-\d\.pt)".replace(
        "#", r"(\d{3}|[1-9]\d{3,})"
    )
)


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

    @property
    def inner(self) -> tuple[Path, ...]:  # folders that only imavae writes in
        return self.record_dir, self.checkpoint_dir, self.stop_dir

    # An ensemble's files have the number of its first point, a trial's files that of the trial.

    def ensemble(self, first: int) -> Path:
        return self.checkpoint_dir / f"ensemble-{first:03d}.pt"

    def ensemble_lock(self, first: int) -> Path:
        return self.ensemble(first).with_suffix(".lock")

    def ensemble_points(self, first: int) -> Path:
        return self.record_dir / f"ensemble-{first:03d}.json"

    def stop_file(self, first: int) -> Path:
        return self.stop_dir / f"{first:03d}.json"

    def written(self, folder: Path, pattern: str) -> list[Path]:
        """The files in ``folder`` that match, without those whose names imavae does not give."""
        return sorted(path for path in folder.glob(pattern) if WRITTEN_NAMES.fullmatch(path.name))

    def strangers(self) -> list[str]:
        """Files that imavae has not written, such as the copies of a program that synchronises folders."""
        files = [file for folder in self.inner for file in folder.glob("[!.]*")]
        return sorted(str(file.relative_to(self.path)) for file in files if not WRITTEN_NAMES.fullmatch(file.name))

    def stop_files(self) -> list[Path]:
        return self.written(self.stop_dir, "*.json")

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
    step: str = ""  # that trains it: compiled or autograd
    number: int = 0  # of the study in its output folder: newer ones have larger numbers
    saved: int = 0  # times that the state was saved
    digests: dict[str, str] = field(default_factory=dict)  # models and summaries: file name -> SHA-256 of the file
    version: str = field(default_factory=lambda: importlib.metadata.version("imavae"))  # of imavae, which wrote it


@dataclass(frozen=True)
class Stored:
    """A finished trial as its record has it; the history is in a separate file."""

    trial: TrialRecord
    checkpoint: str | None  # the ensemble's file, relative to the folder; None if the trial failed
    point: int  # index of the trial's point in the ensemble
    checkpoint_sha256: str | None = None  # of its content; None if a release before 0.3 has recorded the trial
    history_sha256: str = ""  # of the trial's rows of ``history.csv``


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
        self.state.saved += 1
        STATES.write(self.names.state, json.dumps(dataclasses.asdict(self.state), indent=1).encode(), keep=True)

    def ask(self, points: list[Numbered]) -> None:
        """Remember which points train together, before they do: a checkpoint belongs to an ensemble."""
        self.asked.append(points)
        file = self.names.ensemble_points(min(number for number, _ in points))
        PACKS.write(file, json.dumps(points).encode())

    def sign(self, *paths: Path) -> None:
        """Remember the contents of models and summaries, when the state is saved next; see :func:`check_recorded`."""
        for path in paths:
            self.state.digests[str(path.relative_to(self.path))] = _sha256(path.read_bytes())

    def save(self, stored: Stored) -> Stored:
        """Write a trial's record and its rows of ``history.csv``; from then on it is never trained again."""
        trial = dict(vars(stored.trial))
        rows = csv_of(trial.pop("history"))
        write_text(self.names.history_rows(stored.trial.number), rows)
        stored = dataclasses.replace(stored, history_sha256=_sha256(rows.encode()))
        RECORDS.write(self.names.record(stored.trial.number), json.dumps({**vars(stored), "trial": trial}).encode())
        return stored

    def history(self, number: int) -> list[dict[str, Any]]:
        """A finished trial's rows of ``history.csv``."""
        path = self.names.history_rows(number)
        frame = pd.read_csv(path, engine="pyarrow") if path.stat().st_size else pd.DataFrame()
        return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def history_parts(names: RunFolder, stored: Sequence[Stored]) -> Iterator[str]:
    """Yield ``history.csv`` in parts: its header, and the rows of each trial; nothing without any rows.

    Raises UserError for rows that are missing or that are not those of the trial's record.
    """
    paths = [names.history_rows(trial.trial.number) for trial in stored]
    known = [columns_of(path) for path in paths if path.is_file() and path.stat().st_size]
    columns = list(dict.fromkeys(name for names in known for name in names))
    if columns:
        yield ",".join(columns) + "\n"
    for trial in stored:
        if table := _rows(names, trial):  # a member may diverge before any validation
            yield body_of(table, columns)


def columns_of(path: Path) -> list[str]:
    """The columns of a table in a file."""
    with path.open(encoding="utf-8") as file:
        return file.readline().rstrip("\n").split(",")


def body_of(table: str, columns: list[str]) -> str:
    """The rows of a table without its header, in the order of ``columns``."""
    header, _, rows = table.partition("\n")
    if header.split(",") == columns:
        return rows
    frame = pd.read_csv(io.StringIO(table), engine="pyarrow")
    return str(frame.reindex(columns=columns).to_csv(index=False, header=False))


def _rows(names: RunFolder, stored: Stored) -> str:
    path = names.history_rows(stored.trial.number)
    content = path.read_bytes() if path.is_file() else b""
    require(_sha256(content) == stored.history_sha256, "record is whole", f"{path}, which does not match it", AGAIN)
    return content.decode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def create(config: RunConfig, kind: str, name: str) -> LockedFolder:
    """Make a new folder OUTPUT_DIR/KIND/NAME, with -2, -3, ... added where the name is taken.

    The folder is prepared under a hidden name, so that other processes never see a part of it.
    """
    base = Path(config.output_dir).resolve() / kind
    base.mkdir(parents=True, exist_ok=True)
    hidden = RunFolder(temporary(base))
    for part in (hidden.record_dir, hidden.checkpoint_dir):
        part.mkdir(parents=True)
    folder = LockedFolder(hidden, Lock(hidden.path), State(to_mapping(config), _digests(config), time.time()))
    folder.state.number = 1 + max((state.number for _, state in states(base)), default=0)
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
    path = _resumed(to_mapping(config), kind, name)
    lock, names = Lock(path), RunFolder(path)
    state, from_backup = _read_state(names)
    _check_same(path.name, state, config)
    notices = []
    for leftover in (file for place in (path, *names.inner) for file in leftovers(place)):
        leftover.unlink()  # of a write that was cut off
    if strangers := names.strangers():
        notices.append(_strange(names, strangers))
    if from_backup:
        names.state.unlink(missing_ok=True)  # so that the damaged file does not become the backup
        notices.append(f"{names.state} was damaged or missing: its backup was used (no action is needed)")
    settings = {**to_mapping(config), "name": state.config["name"]}  # a resume names a folder, not a new study
    # The models stay what they are until they are written anew; summaries are written at each end.
    state.digests = {name: digest for name, digest in state.digests.items() if name.endswith(".pt")}
    state = dataclasses.replace(state, config=settings, finished=False, version=importlib.metadata.version("imavae"))
    trials = _whole(names.written(names.record_dir, "trial-*.json"), lambda file: _read_record(file, path), notices)
    stored = [trial for trial in trials if trial.checkpoint is not None]  # a failed trial is tried again
    asked = list(_whole(names.written(names.record_dir, "ensemble-*.json"), _read_points, notices))
    folder = LockedFolder(names, lock, state, stored, asked, notices)
    folder.save_state()
    return folder


def read(names: RunFolder) -> tuple[State, list[Stored]]:
    """Return the state and the finished trials of a folder, by number. Raises UserError for a bad file."""
    if strangers := names.strangers():
        warnings.warn(_strange(names, strangers), stacklevel=3)
    state, stored = _read_state(names)[0], [_read_record(f) for f in names.written(names.record_dir, "trial-*.json")]
    missing = set(range(state.points)) - {trial.trial.number for trial in stored}
    whole = not (state.finished and missing)
    require(whole, "a finished study has a record of each trial", f"none of trials {sorted(missing)}", AGAIN)
    return state, stored


def _strange(names: RunFolder, strangers: Sequence[str]) -> str:
    return f"files in {names.path} that imavae has not written were left alone: {', '.join(strangers)}"


def check_recorded(path: Path) -> None:
    """Raise UserError if ``path`` is a model, a summary or an ensemble of a run or study that has recorded another one.

    A file that belongs to none, or that has not been recorded yet, may have any content.
    """
    for names in (RunFolder(path.absolute().parent), RunFolder(path.absolute().parent.parent)):
        if STATES.newest(names.state) is None:
            continue
        place = path.absolute().relative_to(names.path).as_posix()
        recorded = _read_state(names)[0].digests.get(place)
        record = names.record_dir / path.name.replace("ensemble", "trial").replace(".pt", ".json")
        if place.startswith("checkpoints/ensemble-") and record.is_file():
            checkpoint.SEAL.read(path, _read_record(record).checkpoint_sha256)
        same = recorded is None or (path.is_file() and recorded == _sha256(path.read_bytes()))
        got = f"{path}, which has changed or is missing"
        require(same, "a study's files are those that it has written", got, "resume the study, which writes it again")


def essence(config: RunConfig) -> dict[str, Any]:
    """The settings that decide a study's numbers, as dotted key -> value: all but those in ``FREE``."""
    free = tuple(f"{key}." for key in FREE)
    return {key: value for key, value in flatten(to_mapping(config)).items() if not f"{key}.".startswith(free)}


def _read_state(names: RunFolder) -> tuple[State, bool]:
    """Return the state that was saved last, and whether only its backup is good."""

    def content(path: Path) -> State | UserError:
        try:
            return State(**json.loads(STATES.read(path)))
        except OtherFormatError:
            raise
        except UserError as error:
            return error

    newest, backup = content(names.state), content(previous_of(names.state))
    if isinstance(newest, State):
        later = isinstance(backup, State) and backup.saved > newest.saved  # the two files were swapped
        return (backup if isinstance(backup, State) and later else newest), False
    if isinstance(backup, State):
        return backup, True
    raise UserError(f"the backup {previous_of(names.state).name} is no better, and {newest}")


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
    """Read a trial. Of a trained one in ``folder``, the checkpoint and the history must be its own, too."""
    content = json.loads(RECORDS.read(file))
    stored = Stored(**content | {"trial": TrialRecord(history=[], **content["trial"])})
    names = RunFolder(file.parent.parent)
    require(file == names.record(stored.trial.number), "record has its own name", file, AGAIN)
    if folder is not None and stored.checkpoint is not None:
        checkpoint.SEAL.read(folder / stored.checkpoint, stored.checkpoint_sha256)
        _rows(names, stored)
    return stored


def _read_points(file: Path) -> list[Numbered]:
    """Read the points of an ensemble."""
    points: list[Numbered] = json.loads(PACKS.read(file))
    own = file == RunFolder(file.parent.parent).ensemble_points(min(number for number, _ in points))
    require(own, "ensemble's record has its own name", file, PACKS.damaged)
    return points


def states(base: Path, meant: str = "") -> Iterator[tuple[Path, State]]:
    """Yield the runs or studies in a folder with their states.

    Those that can't be read are left out. UserError: it is one whose name begins with ``meant``.
    """
    for path in sorted(base.glob("[!.]*")):
        names = RunFolder(path)
        if is_folder_name(path.name) and (names.state.exists() or previous_of(names.state).exists()):
            try:
                yield path, _read_state(names)[0]
            except UserError:
                if meant and path.name.startswith(meant):
                    raise


def remembered(settings: Mapping[str, Any], said: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    """The stored settings of the folder that nested ``settings`` resume, and what was ``said`` (dotted) on top.

    Raises UserError as :func:`reopen` does for a folder that is not there or can't be read.
    """
    # 0: no more than the study had
    path = _resumed({**settings, "budget": {"trials": said.get("budget.trials", 0)}}, kind, name)
    stored = overridden(_read_state(RunFolder(path))[0].config, nest(said))
    return {**stored, "name": path.name, "output_dir": settings["output_dir"], "resume": True}


def _resumed(settings: Mapping[str, Any], kind: str, name: str) -> Path:
    """Return the folder that is named, or the newest unfinished one of this search, else its newest."""
    base, found = Path(settings["output_dir"]).expanduser().resolve() / kind, list[tuple[bool, int, float, Path]]()
    if settings["name"]:
        path = Path(base, settings["name"])
        require(path.is_dir(), f"there is a {path}", "none", "drop resume=true to start it")
        return path
    for path, state in states(base, name):
        if state.config.get("study") == settings.get("study"):
            unfinished = not state.finished
            if "search" in settings and state.finished:  # a raised budget leaves trials to train
                before, now = state.config["budget"]["trials"], settings["budget"]["trials"]
                unfinished = before is not None and (now is None or now > before)
            found.append((unfinished, state.number, state.created, path))
    require(bool(found), f"there is a {name} to resume", f"none in {base}", "drop resume=true to start one")
    return max(found)[-1]


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
    return {Path(name).name: digest_of(name) for name in (*config.plugins, *config.data.files)}
