"""What is left of a study, new or broken off: the points that Optuna must know, and the ensembles still to be trained.

The study's own records say what has ended (records.py). Optuna is told a score before its trial is recorded, so it may
know more, never less, unless its database was taken away: then it is told again. A point that was asked for and has not
ended goes on as it was, with its number, its values and the ensemble in which it trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from optuna.trial import FrozenTrial, TrialState, create_trial

from imavae.config.settings import Objective, StudyConfig
from imavae.errors import UserError
from imavae.runs.ledger import Ledger
from imavae.runs.session import Session
from imavae.search.samplers import open_study
from imavae.search.space import Parameter, Point
from imavae.search.stopping import Report, Stopping, read_note
from imavae.tracking.base import TrialRecord
from imavae.training.checkpoint import SEAL

if TYPE_CHECKING:
    from optuna.study import Study


def proposals(config: StudyConfig, parameters: Sequence[Parameter], points: Sequence[Point], ledger: Ledger) -> Study:
    """Optuna's study, which has the points that are known beforehand, and all that was asked for earlier."""
    home = ledger.home
    name, output_dir = home.path.name, Path(config.output_dir)
    study = open_study(output_dir, name, config.objectives, resume=config.resume)
    known = {number: dict(values) for pack in home.asked for number, values in pack}
    known |= {record.number: dict(record.values) for record in ledger.records}
    if not _knows(study, known):
        home.notices.append(
            f"Optuna had not all of {name}: it was told again what the study's records say (nothing is left to do)"
        )
        study = open_study(output_dir, name, config.objectives)
        records = {record.number: record for record in ledger.records}
        for number in range(max(known) + 1):
            if number in records:
                study.add_trial(_told(records[number], parameters, config))
            else:
                study.enqueue_trial(known.get(number, {}))
    told = len(study.get_trials(deepcopy=False))
    for values in points[told:]:
        study.enqueue_trial(dict(values))
    return study


def _knows(study: Study, known: dict[int, Point]) -> bool:
    trials = study.get_trials(deepcopy=False)
    return all(
        number < len(trials) and all(trials[number].params.get(key, value) == value for key, value in values.items())
        for number, values in known.items()
    )


def _told(record: TrialRecord, parameters: Sequence[Parameter], config: StudyConfig) -> FrozenTrial:
    """A recorded trial as Optuna has it."""
    scores = [record.score or 0.0, *(record.further[o.metric] for o in config.further_objectives)]
    stopped = record.status == "stopped"
    epoch = max(int(row["epochs"]) for row in record.members)
    return create_trial(
        state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
        values=scores,
        params=dict(record.values),
        distributions={p.key: p.distribution() for p in parameters if p.key in record.values},
        intermediate_values={epoch: scores[0]} if stopped else None,
    )


def unpacked(study: Study, ledger: Ledger, n_points: int) -> list[int]:
    """Numbers of points that Optuna has, that have not ended, and that are in no ensemble yet."""
    packed = {number for pack in ledger.home.asked for number, _ in pack} | {r.number for r in ledger.records}
    return [n for n in range(min(len(study.get_trials(deepcopy=False)), n_points)) if n not in packed]


def runs_of(numbers: Sequence[int]) -> list[list[int]]:
    """Numbers that follow one another, together: those that a driver was asking for when it was broken off."""
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b != a + 1]
    return [list(numbers[a:b]) for a, b in pairwise([0, *breaks, len(numbers)]) if b > a]


def waiting(ledger: Ledger, n_points: int) -> list[list[int]]:
    """Numbers of the points of each ensemble of which not all points have ended, within the budget."""
    packs = [[number for number, _ in pack] for pack in ledger.home.asked]
    return sorted(pack for pack in packs if not all(ledger.has(n) or n >= n_points for n in pack))


def check_files(ledger: Ledger, packs: Sequence[Sequence[int]]) -> None:
    """Put damaged checkpoints and notes of the unfinished ensembles aside, and say so.

    Of a checkpoint the previous one is taken then, or without any the ensemble is trained from its start.
    """
    names, notices = ledger.names, ledger.home.notices
    suspects = [(place, SEAL.read) for place in (names.ensemble(min(pack)) for pack in packs) if place.exists()]
    notes = [(note, read_note) for note in names.notes()]
    for path, read in [*suspects, *notes]:
        try:
            read(path)
        except UserError as error:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            notices.append(f"{error} (done: it was put aside as {aside.name})")


def remind(stopping: Stopping, config: StudyConfig, ledger: Ledger) -> None:
    """Show the scheduler again what points that were begun have reported, and judge what it may not have judged yet."""
    if config.scheduler.name == "none":
        return
    for pack in sorted([number for number, _ in pack] for pack in ledger.home.asked):
        place = SEAL.newest(ledger.names.ensemble(min(pack)))
        if place is None:
            continue
        reports = _reports(Session.load(place, torch.device("cpu")), config.objectives)
        for number, mine in zip(pack, reports, strict=True):
            stopped = stopping.stopped.get(number)
            known = [
                (epoch, scores, alive or int(epoch == stopped)) for epoch, scores, alive in mine
            ]  # it was until then
            last = [] if ledger.has(number) or stopped is not None else known[-1:]
            stopping.remember(number, known[: len(known) - len(last)])
            if [True for epoch, scores, alive in last if stopping.judge(number, epoch, scores, alive)]:
                stopping.note(pack)


def _reports(session: Session, objectives: Sequence[Objective]) -> Iterator[list[Report]]:
    """What a session has reported of each of its points, after each validation."""
    state, epochs = session.state, session.state.epochs.tolist()
    active = set(state.active.tolist())
    by_time = []
    for k, validation in enumerate(state.history):
        status = [s if epochs[row] <= validation.epoch else "running" for row, s in enumerate(state.status)]
        then = replace(session, state=replace(state, history=state.history[: k + 1], status=status))
        by_time.append((validation.epoch, then.scores(objectives)))
    for point in range(len(session.points)):
        rows = session.members_of(point)
        yield [
            (epoch, scores[point], sum(row in active or epochs[row] > epoch for row in rows))
            for epoch, scores in by_time
            if any(epochs[row] >= epoch for row in rows)
        ]
