"""What a run or study has left in its folder, read back: tables, and any of its members as a model.

All of it is there from the moment that a trial has ended, also of a study that is running or was broken off.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from imavae.config.settings import Objective, RunConfig, StudyConfig
from imavae.errors import require, require_choice
from imavae.model.export import Model
from imavae.runs.folder import Stored, read
from imavae.runs.ledger import best_member, chosen_by, members_table, ranked, read_history, trials_table
from imavae.runs.session import Session, cache_of
from imavae.training.checkpoint import load_member, stored_config


@dataclass(frozen=True)
class Results:
    """A run or study that has left something in its folder; nothing in it is changed.

    Attributes:
        folder: ``OUTPUT_DIR/runs/NAME`` or ``OUTPUT_DIR/studies/NAME``.
        config: what was asked, a :class:`imavae.config.settings.StudyConfig` for a study.
    """

    folder: Path
    config: RunConfig = dataclasses.field(repr=False)
    _stored: tuple[Stored, ...] = dataclasses.field(repr=False)

    @property
    def members(self) -> pd.DataFrame:
        """A row per member (trial, seed, gamma, how it ended, every metric at its best states): ``members.csv``."""
        return members_table([stored.trial for stored in self._stored])

    @property
    def history(self) -> pd.DataFrame:
        """A row per member and validation (trial, seed, epoch, every metric): ``history.csv``."""
        return read_history(self.folder)

    @property
    def trials(self) -> pd.DataFrame:
        """A row per trial: trial, score, status, epochs, scores by further objectives, then the searched settings by
        their dotted keys. A run is a study of one trial, 0, without searched settings.
        """
        return trials_table([stored.trial for stored in self._stored])

    @property
    def champion(self) -> Model:
        """The best member of the best trial, at its best state, as a plain ``nn.Module``.

        Raises:
            UserError: nothing has been crowned yet, or its file is damaged.
        """
        return load_member(self.folder / "champion.pt")

    def model(self, trial: int | None = None, seed: int | None = None, by: str | None = None) -> Model:
        """A member as a plain ``nn.Module`` with ``encode`` and ``decode``.

        Args:
            trial: its number; by default that of the best score.
            seed: the member's, the best of the trial by default; where members have worlds of their own, the best in
                its worlds.
            by: which of its two best states: ``val/mcc`` (the default, where there are sources) or ``val/neg_elbo``.

        Raises:
            UserError: there is no such trial, member or state.
        """
        stored = self._trial(trial)
        record = stored.trial
        rows = [row for row in record.members if seed in (None, row["seed"])]
        seeds = sorted({int(row["seed"]) for row in record.members})
        require(bool(rows), f"seed is a member's of trial {record.number}", f"seed={seed}", f"choose one of {seeds}")
        best = best_member(dataclasses.replace(record, members=rows))
        require(best is not None, "the member has not diverged", f"seed={seed}", "see status in members")
        row = record.members.index(best or rows[0])
        cache = cache_of(self.folder.parent.parent)
        session = Session.load(self.folder / str(stored.checkpoint), torch.device("cpu"), cache)
        criterion = by or chosen_by(record.members[row])
        require_choice(criterion, session.criteria, "by")
        about = {"trial": record.number, "score": record.score, "folder": self.folder.name}
        return session.best(session.members_of(stored.point)[row], criterion, about)

    def _trial(self, number: int | None) -> Stored:
        """The trial of that number, with members; by default the best."""
        trained = {stored.trial.number: stored for stored in self._stored if stored.checkpoint is not None}
        objective = self.config.objective if isinstance(self.config, StudyConfig) else Objective()
        order = [record.number for record in ranked([stored.trial for stored in trained.values()], objective)]
        require(bool(order), "a trial has a result", f"none in {self.folder}", "resume it: resume=True")
        there, remedy = number in (None, *trained), f"choose one of {sorted(trained)}"
        require(there, "trial is one that has a result", f"trial={number}", remedy)
        return trained[order[0] if number is None else number]


def load_results(folder: str | Path) -> Results:
    """The run or study in a folder, as ``train`` and ``tune`` return it.

    Args:
        folder: ``outputs/runs/NAME`` or ``outputs/studies/NAME``.

    Raises:
        UserError: there is none, a file of it is damaged or of another version, or it has a variant of your own that is
            not registered (``imavae.config.variants.load_plugins`` does that).
    """
    path = Path(folder).resolve()
    require(path.is_dir(), "folder is that of a run or study", folder, "look under outputs/runs and outputs/studies")
    state, stored = read(path)
    kind = StudyConfig if "search" in state.config else RunConfig
    config = stored_config(state.config, kind)
    config = dataclasses.replace(config, plugins=tuple(state.config["plugins"]), resume=False)  # to be asked anew
    return Results(path, config, tuple(stored))
