"""Columns and rows of ``members.csv`` and ``history.csv``, and the record of a trial, built from a session.

A member keeps two best states: by ``val/mcc`` (where sources are known) and by ``val/neg_elbo``. The best value of a
criterion is in ``max val/mcc`` or ``min val/neg_elbo``; any other metric at that state is in a column like
``test/mcc at max val/mcc``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import torch

from imavae.config.settings import Objective
from imavae.metrics.glossary import METRICS, Stage
from imavae.model.vae import GAMMA
from imavae.runs.session import Session
from imavae.tracking.base import Row, TrialRecord, Value

BEST_MCC, BEST_NEG_ELBO = "max val/mcc", "min val/neg_elbo"
_BEST = {"val/mcc": BEST_MCC, "val/neg_elbo": BEST_NEG_ELBO}
_AT = " at "


def best_column(criterion: str) -> str:
    """The column of a criterion's best value: ``max val/mcc`` or ``min val/neg_elbo``."""
    return _BEST[criterion]


def at_best(metric: str, criterion: str) -> str:
    """The column of a metric at a member's best state by ``criterion``: ``test/mcc at max val/mcc``."""
    return f"{metric}{_AT}{best_column(criterion)}"


def metric_of(column: str) -> str:
    """The metric that a column holds: ``test/mcc`` of ``test/mcc at max val/mcc``; other columns are returned as is."""
    return column.partition(_AT)[0]


def at_state(columns: Iterable[str], criterion: str) -> dict[str, str]:
    """The columns read at the best state by ``criterion``, as metric -> column."""
    return {metric_of(column): column for column in columns if column == at_best(metric_of(column), criterion)}


def criterion_of(columns: Iterable[str]) -> str:
    """The criterion that selects a member and its state: ``val/mcc``, or ``val/neg_elbo`` where sources are unknown."""
    return "val/mcc" if BEST_MCC in columns else "val/neg_elbo"


def trial_record(session: Session, point: int, trial: int, values: Row, objectives: Sequence[Objective]) -> TrialRecord:
    """The record of one point whose training has ended."""
    stopped = point in session.stopped or len(session.alive(point)) > 0
    record = partial_record(session, point, trial, values, objectives)
    members = member_rows(session, point, trial)
    return dataclasses.replace(record, status="stopped" if stopped else "finished", members=members)


def partial_record(
    session: Session, point: int, trial: int, values: Row, objectives: Sequence[Objective]
) -> TrialRecord:
    """The record of one point while it trains, without members."""
    score, *others = session.scores(objectives)[point]
    further = {o.metric: value for o, value in zip(objectives[1:], others, strict=True)}
    return TrialRecord(trial, values, "stopped", score, history_rows(session, point, trial), [], further)


def failed_record(trial: int, values: Row, reason: str) -> TrialRecord:
    """The record of a trial without a result."""
    return TrialRecord(trial, values, "failed", None, [], [], failure=reason)


def history_rows(session: Session, point: int, trial: int) -> list[dict[str, Value]]:
    """A row per member of one point and validation."""
    mine = set(session.members_of(point))
    return [
        {"trial": trial, **session.axes(row), "epoch": validation.epoch}
        | {name: float(value[i]) for name, value in validation.values.items()}
        for validation in session.state.history
        for i, row in enumerate(validation.rows.tolist())
        if row in mine
    ]


def member_rows(session: Session, point: int, trial: int) -> list[dict[str, Value]]:
    """A row per member of one point, as in ``members.csv``.

    Validation values are taken from the history. Evaluated here are the test split, the probes, and the agreement
    between the members' best states: the history has the agreement between states of one epoch.
    """
    state = session.state
    rows = torch.tensor(session.members_of(point), device=session.ensemble.device)
    stage: Stage = "probes" if session.points[point].training.probes else "final"
    once = [metric.name for metric in METRICS if metric.across_members or metric.stage != "validation"]
    evaluated = {}
    for criterion in session.criteria:
        weights = state.best[criterion].weights[rows]
        val = session.evaluate("val", weights, rows, stage)
        evaluated[criterion] = {k: v for k, v in val.items() if k.removeprefix("val/") in once} | session.evaluate(
            "test", weights, rows, stage
        )
    criteria = sorted(session.criteria, reverse=True)
    table = []
    for i, row in enumerate(rows.tolist()):
        status, gamma = state.status[row], _gamma(session, row)
        entry: dict[str, Value] = {"trial": trial, **session.axes(row), "gamma": gamma, "gamma_sq": gamma**2}
        entry["status"] = "stopped" if status == "running" else status
        entry["epochs"] = int(state.epochs[row])
        for criterion in criteria:
            best = state.best[criterion]
            entry[best_column(criterion)] = float(best.value[row]) if best.epoch[row] >= 0 else math.nan
        for criterion in criteria:
            values = _at_epoch(session, row, int(state.best[criterion].epoch[row]))
            trained = bool(values)  # a member that diverged before its first validation has no best state
            values |= {k: float(v[i]) if trained else math.nan for k, v in evaluated[criterion].items()}
            entry |= {at_best(metric, criterion): value for metric, value in values.items()}
        table.append(entry)
    return table


def _gamma(session: Session, row: int) -> float:
    """A member's gamma: the given one, or the learned one at the end of training."""
    if session.points[0].model.precision == "fixed":
        return session.ensemble.members[row].gamma
    return float(session.ensemble.model.layout.views(session.state.frozen[row : row + 1])[GAMMA].exp())


def _at_epoch(session: Session, row: int, epoch: int) -> dict[str, float]:
    for validation in session.state.history:
        if validation.epoch == epoch:
            i = validation.rows.tolist().index(row)
            return {name: float(value[i]) for name, value in validation.values.items()}
    return {}
