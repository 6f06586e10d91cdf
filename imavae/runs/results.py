"""Results of a run or study, read from its folder: settings, trials, tables, and any member as a model.

A trial's results are there as soon as it has ended, also while the study runs or after it was interrupted.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from imavae.config.settings import Objective, RunConfig, StudyConfig
from imavae.errors import require, require_choice
from imavae.model.export import Model
from imavae.runs.folder import RunFolder, Stored, check_recorded, history_parts, read
from imavae.runs.models import Parts, member_parts
from imavae.runs.records import best_member, criterion_of
from imavae.runs.session import Session, cache_of
from imavae.tracking import Row, TrialRecord
from imavae.training.checkpoint import load_member, stored_config


@dataclass(frozen=True)
class Results:
    """Results of a run or study. Reading them changes nothing."""

    folder: Path  # ``OUTPUT_DIR/runs/NAME`` or ``OUTPUT_DIR/studies/NAME``
    config: RunConfig = field(repr=False)  # the settings; of a study a :class:`imavae.config.settings.StudyConfig`
    stored: tuple[Stored, ...] = field(repr=False)  # the finished trials, by number, without their histories
    interrupted: bool = False  # trials are left to train
    points: int = 1  # number of trials that were planned
    earlier: int = 0  # number of trials that had ended before the last process began
    champion_address: str = ""  # of the best model, for :func:`imavae.load_model`; empty if there is none

    def loading(self, function: str) -> str:
        """A call of ``imavae.load_model`` or ``load_results`` for this folder, which works in any directory."""
        plugins = f", plugins={list(self.config.plugins)}" if self.config.plugins else ""
        return f"imavae.{function}({json.dumps(str(self.folder.resolve()))}{plugins})"

    @property
    def names(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def records(self) -> list[TrialRecord]:
        """A record per finished trial, by number, without its history."""
        return [stored.trial for stored in self.stored]

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives; that of a run is the best ``val/mcc``, or ``val/neg_elbo`` where sources are unknown."""
        if isinstance(self.config, StudyConfig):
            return self.config.objectives
        return (Objective() if self.config.data.has_sources else Objective(metric="val/neg_elbo", mode="min"),)

    @property
    def objective(self) -> Objective:  # ranks the trials
        return self.objectives[0]

    @property
    def summary(self) -> Mapping[str, float]:
        """Metrics of the whole study and its cost, name to value; empty until it is finished."""
        file = self.names.summary
        check_recorded(file)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    @property
    def seconds(self) -> float:
        """Duration of the last process; NaN if unknown."""
        return self.summary.get("seconds", math.nan)

    @property
    def work_seconds(self) -> float:
        """Part of it that each of the concurrent trials spent in training and validation; NaN if unknown."""
        return self.summary.get("seconds/training", math.nan)

    @property
    def members(self) -> pd.DataFrame:
        """A row per member (trial, seeds, gamma, status, every metric at its best states): ``members.csv``."""
        return pd.DataFrame([dict(row) for record in self.records for row in record.members])

    @property
    def winners(self) -> pd.DataFrame:
        """The rows of ``members`` of the best trial."""
        return pd.DataFrame(list(map(dict, self.ranked()[0].members)))

    @property
    def history(self) -> pd.DataFrame:
        """A row per member and validation (trial, seeds, epoch, every metric): ``history.csv``; empty without any."""
        table = "".join(history_parts(self.names, self.stored))
        return pd.read_csv(io.StringIO(table), engine="pyarrow") if table else pd.DataFrame()

    @property
    def latents(self) -> pd.DataFrame:
        """A row per latent of the best member, over the validation split: ``latents.csv``; empty until it is written.

        Its columns are those of :func:`imavae.metrics.evaluate.latent_rows`.
        """
        check_recorded(self.names.latents)
        return pd.read_csv(self.names.latents) if self.names.latents.is_file() else pd.DataFrame()

    @property
    def trials(self) -> pd.DataFrame:
        """A row per trial: trial, score, status, epochs, scores by further objectives, searched settings.

        A run is a study of one trial, 0, without searched settings.
        """
        rows: list[dict[str, object]] = []
        for record in self.records:
            epochs = max((int(row["epochs"]) for row in record.members), default=0)
            row = {"trial": record.number, "score": record.score, "status": record.status, "epochs": epochs}
            rows.append({**row, **record.further, **record.values})
        return pd.DataFrame(rows)

    def ranked(self) -> list[TrialRecord]:
        """The records with members and a score, best first; the earlier trial wins a tie."""
        sign = -1 if self.objective.mode == "max" else 1
        scored = [record for record in self.records if record.score is not None and record.members]
        return sorted(scored, key=lambda record: sign * (record.score or 0.0))

    def front(self) -> list[TrialRecord]:
        """The Pareto front of the objectives, best by the first one first."""
        ranked, further = self.ranked(), [objective.metric for objective in self.objectives[1:]]
        scores = [[record.score or 0.0, *(record.further[metric] for metric in further)] for record in ranked]
        front = pareto(np.array(scores, dtype=np.float64), [objective.mode for objective in self.objectives])
        return [record for record, on_it in zip(ranked, front.tolist(), strict=True) if on_it]

    @property
    def champion(self) -> Model:
        """The best member of the best trial, at its best state. Raises UserError if there is none yet."""
        check_recorded(self.names.champion)
        return load_member(self.names.champion)

    def model(self, trial: int | None = None, seed: int | None = None, by: str | None = None) -> Model:
        """Return a member as a plain ``nn.Module`` with ``encode`` and ``decode``.

        Args:
            trial: its number; by default that of the best score.
            seed: seed of the member, by default of the trial's best one. If a seed has several worlds, its best member
                is returned.
            by: which of its two best states: ``val/mcc`` (the default, where sources are known) or ``val/neg_elbo``.

        Raises:
            UserError: there is no such trial, member or state.
        """
        trained = {stored.trial.number: stored.trial for stored in self.stored if stored.checkpoint is not None}
        require(bool(trained), "a trial has a result", f"none in {self.folder}", "resume it: resume=True")
        there, remedy = trial in (None, *trained), f"choose one of {sorted(trained)}"
        require(there, "trial is one that has a result", f"trial={trial}", remedy)
        record = self.ranked()[0] if trial is None else trained[trial]
        rows = [row for row in record.members if seed in (None, row["seed"])]
        seeds = sorted({int(row["seed"]) for row in record.members})
        require(bool(rows), f"seed is a member's of trial {record.number}", f"seed={seed}", f"choose one of {seeds}")
        best = best_member(rows)
        require(best is not None, "the member has not diverged", f"seed={seed}", "see status in members")
        return Model(*self.parts(record, best or rows[0], by)).eval()

    def parts(self, record: TrialRecord, member: Row, by: str | None = None) -> Parts:
        """Parts of the model of a row of ``record.members``; see :func:`imavae.runs.models.member_parts`."""
        [stored] = [stored for stored in self.stored if stored.trial.number == record.number]
        path = self.folder / str(stored.checkpoint)
        cache, recorded = cache_of(self.names.output_dir), stored.checkpoint_sha256
        session = Session.load(path, torch.device("cpu"), cache, recorded)
        criterion = by or criterion_of(member)
        require_choice(criterion, session.criteria, "by")
        row = session.members_of(stored.point)[record.members.index(member)]
        about = {"trial": record.number, "score": record.score, "folder": self.folder.name}
        return member_parts(session, row, criterion, about)


def load_results(folder: str | Path) -> Results:
    """Load the results of a run or study from its folder.

    Raises:
        UserError: there is no run or study; a file is damaged or of another version; or a variant of your own is not
            registered (:func:`imavae.config.registry.load_plugins` does that).
    """
    path = Path(folder).resolve()
    require(path.is_dir(), "folder is that of a run or study", folder, "look under outputs/runs and outputs/studies")
    names = RunFolder(path)
    state, stored = read(names)
    config = stored_config(state.config, StudyConfig if "search" in state.config else RunConfig)
    config = dataclasses.replace(config, plugins=tuple(state.config["plugins"]), resume=False)
    return Results(path, config, tuple(stored), not state.finished, state.points, champion_address=state.champion)


def pareto(values: NDArray[np.float64], modes: Sequence[str]) -> NDArray[np.bool_]:
    """Which rows of ``values`` (trial, objective) no other row dominates: (trial,).

    A row is dominated by one that is nowhere worse and somewhere better; equal rows do not dominate each other.
    """
    better = values * np.array([1.0 if mode == "max" else -1.0 for mode in modes])
    rivals = better[:, None]  # [i, j]: does i dominate j?
    dominated: NDArray[np.bool_] = ((rivals >= better).all(-1) & (rivals > better).any(-1)).any(axis=0)
    return ~dominated
