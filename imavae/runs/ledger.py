"""What has come of a run or study: its folder, its tracker, its trials' records and tables.

Curves are long and are not kept in memory: of a trial that has ended they lie in its files (see records.py). The tables
grow by the rows of each trial, in the order in which trials end, and are put in order by trial once, at the end.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from imavae.config.mapping import to_mapping
from imavae.config.settings import Objective, RunConfig
from imavae.data.storage import write_text, written_whole
from imavae.errors import Interrupted, UserError
from imavae.runs.folder import Folder, Stored
from imavae.tracking.base import Row, Tracker, TrialRecord, Value
from imavae.tracking.mlflow import open_tracker
from imavae.training.ensemble import CRITERIA

COLUMNS = {"val/neg_elbo": "min val/neg_elbo", "val/mcc": "max val/mcc"}  # what the two best states are called


@dataclass
class Ledger:
    """A run or study: its folder, its tracker and its trials' records so far, without their histories."""

    home: Folder
    tracker: Tracker
    objective: Objective
    records: list[TrialRecord] = field(default_factory=list)
    checkpoints: dict[int, tuple[Path, int]] = field(
        default_factory=dict
    )  # trial -> its ensemble's file, its point there
    champion: str = ""  # the address that load_model takes
    interrupted: Interrupted | None = None  # what ended it before its budget was spent
    work_seconds: float = 0.0  # spent in training and validation, by each of the trials that run at once
    columns: dict[str, list[str]] = field(default_factory=dict)  # of the tables that have begun

    @classmethod
    def start(cls, config: RunConfig, home: Folder, tracker: Tracker, objective: Objective) -> Ledger:
        """Start the tracked run, or go on with it; what an earlier process has finished is taken over."""
        mapping = to_mapping(config)
        write_text(home.path / "config.yaml", yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True))
        tracker.start(home.path.name, mapping, {"imavae.folder": str(home.path)}, resume=config.resume)
        ledger = cls(home, tracker, objective)
        for name in ("members.csv", "history.csv"):
            (home.path / name).unlink(missing_ok=True)
        for stored in home.stored:
            ledger._take(stored)
        return ledger

    @property
    def folder(self) -> Path:
        """Where all of it lies."""
        return self.home.path

    @property
    def members(self) -> pd.DataFrame:
        """The rows of ``members.csv``, by trial."""
        return members_table(self.records)

    @property
    def history(self) -> pd.DataFrame:
        """The rows of ``history.csv``, by trial, as :meth:`write_tables` has last written them."""
        return read_history(self.folder)

    @property
    def trials(self) -> pd.DataFrame:
        """A row per trial: trial, score, status, epochs, further objectives by metric, then the searched values."""
        return trials_table(self.records)

    def sorted(self) -> list[TrialRecord]:
        """The records by trial number: they arrive in the order in which trials end."""
        return by_number(self.records)

    def ranked(self) -> list[TrialRecord]:
        """The records that have members and a score, best first; the earlier trial wins a tie."""
        return ranked(self.records, self.objective)

    def front(self, objectives: Sequence[Objective]) -> list[TrialRecord]:
        """The records that no other dominates: is as good by every objective, and better by one. Best by the first one
        first.
        """
        ranked = self.ranked()
        found = [[record.score or 0.0, *(record.further[o.metric] for o in objectives[1:])] for record in ranked]
        front = pareto(np.array(found, dtype=np.float64), [objective.mode for objective in objectives])
        return [record for record, on_it in zip(ranked, front.tolist(), strict=True) if on_it]

    def has(self, number: int) -> bool:
        """Whether a trial has ended already."""
        return any(record.number == number for record in self.records)

    def add(self, record: TrialRecord, checkpoint: Path | None, point: int) -> None:
        """Take in a trial that has ended: it is recorded, tracked, and its rows are added to the folder's tables.

        Its best states lie in ``checkpoint``, where it is the ensemble's ``point``-th point.
        """
        stored = Stored(record, None if checkpoint is None else str(checkpoint.relative_to(self.folder)), point)
        self.home.save(stored)  # first: what follows can be done again
        self._take(stored)

    def write_tables(self) -> None:
        """Write ``members.csv`` and ``history.csv`` anew: by trial, with every column that any of them has."""
        write_text(self.folder / "members.csv", _csv(self.members))
        shards = [self.home.history_file(record.number) for record in self.sorted()]
        shards = [shard for shard in shards if shard.stat().st_size]  # a member may diverge before any validation
        columns = list(dict.fromkeys(name for shard in shards for name in _columns(shard)))
        with written_whole(self.folder / "history.csv") as file:
            if columns:
                file.write((",".join(columns) + "\n").encode())
            for shard in shards:
                file.write(_body(shard.read_text(), columns).encode())

    def close(self, finished: bool) -> None:
        """Give the folder back; ``finished`` says that nothing is left to do."""
        if finished:
            self.home.state.finished = True
            self.home.save_state()
        self.home.lock.release()

    def _take(self, stored: Stored) -> None:
        record, number = stored.trial, stored.trial.number
        if not self.tracker.is_complete(number):
            history = record.history or self.home.history(number)
            self.tracker.finish_trial(dataclasses.replace(record, history=history))
        self.records.append(dataclasses.replace(record, history=[]))
        if stored.checkpoint is not None:
            self.checkpoints[number] = self.folder / stored.checkpoint, stored.point
        self._grow("members.csv", _csv(pd.DataFrame(record.members)))
        self._grow("history.csv", self.home.history_file(number).read_text())

    def _grow(self, name: str, table: str) -> None:
        """Add rows to a table; columns that its first trial has not got wait for :meth:`write_tables`."""
        if not table:
            return
        with (self.folder / name).open("a", encoding="utf-8") as file:
            if name not in self.columns:
                self.columns[name] = table.partition("\n")[0].split(",")
                file.write(",".join(self.columns[name]) + "\n")
            file.write(_body(table, self.columns[name]))


def by_number(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Records in the order of their trials' numbers."""
    return sorted(records, key=lambda record: record.number)


def ranked(records: Sequence[TrialRecord], objective: Objective) -> list[TrialRecord]:
    """The records that have members and a score, best first; the earlier trial wins a tie."""
    sign = -1 if objective.mode == "max" else 1
    scored = [record for record in by_number(records) if record.score is not None and record.members]
    return sorted(scored, key=lambda record: sign * (record.score or 0.0))


def members_table(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """The rows of ``members.csv``, by trial."""
    return pd.DataFrame([row for record in by_number(records) for row in record.members])


def trials_table(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """A row per trial: trial, score, status, epochs, further objectives by metric, then the searched values."""
    rows: list[dict[str, object]] = []
    for record in by_number(records):
        epochs = max((int(row["epochs"]) for row in record.members), default=0)
        row = {"trial": record.number, "score": record.score, "status": record.status, "epochs": epochs}
        rows.append({**row, **record.further, **record.values})
    return pd.DataFrame(rows)


def read_history(folder: Path) -> pd.DataFrame:
    """The rows of a folder's ``history.csv``; without any, where nothing was validated."""
    path = folder / "history.csv"
    return pd.read_csv(path, float_precision="round_trip") if path.stat().st_size else pd.DataFrame()


def pareto(values: NDArray[np.float64], modes: Sequence[str]) -> NDArray[np.bool_]:
    """Which rows of ``values`` (trial, objective) no other row beats: (trial,).

    A row is beaten by one that is nowhere worse and somewhere better; equal rows do not beat each other.
    """
    better = values * np.array([1.0 if mode == "max" else -1.0 for mode in modes])
    rivals = better[:, None]  # [i, j]: does i beat j?
    beaten: NDArray[np.bool_] = ((rivals >= better).all(-1) & (rivals > better).any(-1)).any(axis=0)
    return ~beaten


def failed_record(trial: int, values: Row, reason: str) -> TrialRecord:
    """A trial that ended without a result."""
    return TrialRecord(trial, values, "failed", None, [], [], failure=reason)


def best_member(record: TrialRecord) -> dict[str, Value] | None:
    """The member with the highest val/mcc of a trial or, without sources, with the lowest val/neg_elbo; diverged ones
    are left out. None where none is left.
    """

    def value(row: dict[str, Value]) -> float:
        criterion = chosen_by(row)
        return float(row[COLUMNS[criterion]]) * (1 if CRITERIA[criterion] == "max" else -1)

    sound = [row for row in record.members if row["status"] != "diverged"]
    return max((row for row in sound if math.isfinite(value(row))), key=value, default=None)


def best_place(record: TrialRecord) -> int:
    """Where the best member stands among a trial's; the first where none is left."""
    row = best_member(record)
    return 0 if row is None else record.members.index(row)


def chosen_by(row: Row) -> str:
    """The criterion by which a member and its state are chosen: val/mcc is not there without sources."""
    return next(criterion for criterion in CRITERIA if COLUMNS[criterion] in row)


def tracker_of(config: RunConfig, experiment: str) -> Tracker:
    """The tracker that answers at the configured address. Raises UserError, within seconds, where none does."""
    try:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"`output_dir can be written` must hold, but got {config.output_dir} ({error.strerror}); choose another"
        ) from None
    return open_tracker(config.tracking, Path(config.output_dir), experiment)


def _csv(frame: pd.DataFrame) -> str:
    return str(frame.to_csv(index=False)) if len(frame) else ""


def _columns(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return file.readline().rstrip("\n").split(",")


def _body(table: str, columns: list[str]) -> str:
    """The rows of a table without its header, in the order of ``columns``."""
    header, _, rows = table.partition("\n")
    if header.split(",") == columns:
        return rows
    frame = pd.read_csv(io.StringIO(table), float_precision="round_trip")
    return str(frame.reindex(columns=columns).to_csv(index=False, header=False))
