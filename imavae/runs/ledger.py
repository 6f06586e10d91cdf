"""The writing side of a run or study: records, tracks and tabulates each trial when it ends.

Histories are long and are not kept in memory: a finished trial has them in a file (see folder.py). The
tables grow by the rows of each trial, in the order in which trials end, and are sorted by trial once, at the end.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from imavae.config.mapping import to_mapping
from imavae.config.settings import RunConfig, StudyConfig, base_of, with_values
from imavae.data.images import Progress as Rendering
from imavae.data.storage import csv_of, write_text, written_whole
from imavae.errors import Interrupted, require, resumable
from imavae.runs.folder import (
    LockedFolder,
    RunFolder,
    Stored,
    body_of,
    columns_of,
    create,
    history_parts,
    reopen,
)
from imavae.runs.records import CompactRow, best_member, final_metrics, partial_record, trial_record
from imavae.runs.results import Results
from imavae.runs.session import Session, cache_of, initial_weights, render, resolve_device, training_step
from imavae.tracking import Status, Tracker, TrialRecord, member_name
from imavae.tracking.mlflow import open_tracker
from imavae.training.checkpoint import SEAL, save_member
from imavae.training.loop import Progress

WINNERS = 5  # best trials whose best members are stored as models


@dataclass
class Ledger:
    """A run or study in progress: its folder, its tracker and its finished trials, without their histories."""

    config: RunConfig
    home: LockedFolder
    tracker: Tracker
    stored: dict[int, Stored] = field(default_factory=dict)  # by number, in the order in which trials ended
    interrupted: Interrupted | None = None  # set if it ended before its budget was spent
    spent: str | None = None  # what has ended a study before its last point: hours or a target
    work_seconds: float = 0.0  # that each of the concurrent trials spent in training and validation

    @classmethod
    def start(cls, config: RunConfig, home: LockedFolder, tracker: Tracker) -> Ledger:
        """Start or continue the tracked run, and take over the trials that an earlier process has finished."""
        mapping = home.state.config
        write_text(home.names.config, yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True))
        ledger = cls(config, home, tracker)
        objectives, (step, _) = ledger.results.objectives, training_step(config)
        if home.state.step not in ("", step):
            change = f"the training step is {step} now and was {home.state.step}"
            home.notices.append(f"{change}: what is left to train differs by rounding from what it would have been")
        home.state.step = step
        tracker.start(
            home.path.name,
            mapping,
            {"imavae.folder": str(home.path), "imavae.step": step},
            objectives,
            config.resume,
        )
        for table in (ledger.names.members, ledger.names.history):
            table.unlink(missing_ok=True)
        for stored in home.stored:
            ledger._take(stored)
        if home.stored:
            ledger.write_tables()
        return ledger

    @property
    def names(self) -> RunFolder:
        return self.home.names

    @property
    def folder(self) -> Path:
        return self.home.path

    @property
    def records(self) -> list[TrialRecord]:
        """The records of finished trials, in the order in which they ended."""
        return [stored.trial for stored in self.stored.values()]

    @property
    def results(self) -> Results:
        """The results so far."""
        stored, state = tuple(self.stored[number] for number in sorted(self.stored)), self.home.state
        interrupted, earlier = bool(self.interrupted or self.spent), len(self.home.stored)
        return Results(self.folder, self.config, stored, interrupted, state.points, earlier, state.champion)

    def has(self, number: int) -> bool:  # the trial has ended
        return number in self.stored

    def add(self, record: TrialRecord, checkpoint: Path | None, point: int) -> None:
        """Add a finished trial: write its record, track it, and append its rows to the tables.

        Its best states are in ``checkpoint``, as the ensemble's point ``point``.
        """
        stored = Stored(record, None, point)
        if checkpoint is not None:
            place, digest = str(checkpoint.relative_to(self.folder)), SEAL.digest(checkpoint)
            stored = Stored(record, place, point, digest)
        self._take(self.home.save(stored))  # saved first: what follows can be repeated
        self._grow(self.names.members, csv_of(record.members))
        self._grow(self.names.history, self.names.history_rows(record.number).read_text())

    def write_tables(self) -> None:
        """Rewrite ``members.csv`` and ``history.csv``: sorted by trial, with every column that any trial has."""
        records = self.results.records
        write_text(self.names.members, csv_of([row for record in records for row in record.members]))
        with written_whole(self.names.history) as file:
            for part in history_parts(self.names, self.results.stored):
                file.write(part.encode())

    def write_summary(self, metrics: Mapping[str, float]) -> None:
        write_text(self.names.summary, json.dumps(metrics, indent=1))

    def crown(self) -> None:
        """Store the best member of each of the best trials as a model; the first of them is the champion."""
        results, winners = self.results, []
        for place, record in enumerate(results.ranked()[:WINNERS], start=1):
            row, file = best_member(record.members), self.names.winner(place)
            if row is not None:
                save_member(file, *results.parts(record, row))
                self.home.sign(file)
                winners.append((place, record, row, file))
        self.home.save_state()
        for place, record, row, file in winners:
            question = self._question(record) if place == 1 else None
            address = self.tracker.log_model(file, record, member_name(row), final_metrics(row), question)
            if question:
                self.home.state.champion = address

    def finish(self, files: Sequence[Path], metrics: Mapping[str, float] | None = None) -> None:
        """End the tracked run with its tables, further files and metrics, and close the folder."""
        tables = [self.names.members, self.names.history]
        status: Status = "stopped" if self.interrupted else "finished"
        self.close(status, [*tables, *files], metrics, (self.names.summary, self.names.latents))

    def close(
        self,
        status: Status,
        files: Sequence[Path] = (),
        metrics: Mapping[str, float] | None = None,
        signed: Sequence[Path] = (),
    ) -> None:
        """End the tracked run, sign files and release the folder; ``finished`` means that nothing is left to train."""
        try:
            self.tracker.finish(status, metrics or {}, files)
            self.home.sign(*(path for path in signed if path.is_file()))
            self.home.state.finished = status == "finished" and not self.spent
            for _ in range(2):  # the state and its backup say the same
                self.home.save_state()
        finally:
            self.home.lock.release()  # also when the disk is full: this process may resume it

    def _question(self, record: TrialRecord) -> str:
        """Digest of what a trial's score answers: the objective, the data with their split, and the worlds."""
        config = base_of(self.config) if isinstance(self.config, StudyConfig) else self.config
        point = to_mapping(with_values(config, record.values))
        about = dataclasses.asdict(self.results.objective), point["data"], point["members"]["data"]
        files = [self.home.state.files[Path(file).name] for file in config.data.files]
        return hashlib.sha256(json.dumps([*about, files], sort_keys=True).encode()).hexdigest()

    def _take(self, stored: Stored) -> None:
        record, number = stored.trial, stored.trial.number
        complete = self.tracker.is_complete(number)
        history = record.history if complete else record.history or self.home.history(number)
        finals = [final_metrics(row) for row in record.members]
        self.tracker.finish_trial(dataclasses.replace(record, history=history), finals)
        kept = dataclasses.replace(record, history=[], members=[CompactRow(row) for row in record.members])
        self.stored[number] = dataclasses.replace(stored, trial=kept)

    def _grow(self, path: Path, table: str) -> None:
        """Append rows to a table; columns that its first trial lacks wait for :meth:`write_tables`."""
        if table:
            rows = body_of(table, columns_of(path)) if path.exists() and path.stat().st_size else table
            with path.open("a", encoding="utf-8") as file:
                file.write(rows)


def run_point(
    config: RunConfig, notify: Callable[[Session, Progress], None], rendering: Rendering | None = None
) -> tuple[Ledger, Session]:
    """Train one point's members in this process, without Ray; ``notify`` is called after each epoch.

    The folder gets a checkpoint after each validation, from which an interrupted run is resumed, the tables and the
    champion; the tracker a run with one trial.
    """
    device = resolve_device(config.training.device)
    initial_weights(config)  # a mistake is told before anything is written
    torch.set_num_threads(config.training.threads)
    home = reopen(config, "runs", "train") if config.resume else None
    tracker = tracker_of(config, "train")
    render(config, rendering)  # before the folder is made: there may be no room for it
    home = home or create(config, "runs", config.name or "train")
    with resumable(home.path.name):
        path, cache = home.names.run_checkpoint, cache_of(config.output_dir)
        session = Session.resume(path, [config], device, cache) or Session.start([config], device, cache)
        ledger = Ledger.start(config, home, tracker)
        objectives = ledger.results.objectives
        try:
            for progress in session.train(objectives):
                if progress.validated:
                    session.save(path, keep=True)
                    ledger.tracker.progress(partial_record(session, 0, 0, {}, objectives))
                notify(session, progress)
        except BaseException:
            ledger.close("stopped")
            raise
        if not ledger.has(0):
            session.save(path, keep=True)
            ledger.add(trial_record(session, 0, 0, {}, objectives), path, 0)
        ledger.write_tables()
        ledger.crown()
        return ledger, session


def tracker_of(config: RunConfig, experiment: str, later: bool = False) -> Tracker:
    """Open the configured tracker, ``later`` when it is needed. Raises UserError within seconds if unreachable."""
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        require(False, "output_dir can be written", f"{folder} ({error.strerror})", "choose another")
    return open_tracker(config.tracking, folder, experiment, later)
