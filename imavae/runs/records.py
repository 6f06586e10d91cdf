"""Columns and rows of ``members.csv`` and ``history.csv``, and the record of a trial, built from a session.

A member keeps two best states: by ``val/mcc`` (where sources are known) and by ``val/neg_elbo``. The best value of a
criterion is in ``max val/mcc`` or ``min val/neg_elbo``; any other metric at that state is in a column like
``test/mcc at max val/mcc``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence

from imavae.config.settings import Objective
from imavae.metrics.glossary import METRICS
from imavae.model.vae import GAMMA
from imavae.runs.session import Session
from imavae.tracking import Row, TrialRecord, Value

BEST_MCC, BEST_NEG_ELBO = "max val/mcc", "min val/neg_elbo"
BEST = {"val/mcc": BEST_MCC, "val/neg_elbo": BEST_NEG_ELBO}  # criterion -> column of its best value


@functools.cache  # the names of a study's columns are the same strings in all of its records
def at_best(metric: str, criterion: str) -> str:
    """The column of a metric at a member's best state by ``criterion``: ``test/mcc at max val/mcc``."""
    return f"{metric} at {BEST[criterion]}"


def metric_of(column: str) -> str:
    """The metric that a column holds: ``test/mcc`` of ``test/mcc at max val/mcc``; other columns are returned as is."""
    return column.partition(" at ")[0]


def criterion_of(columns: Iterable[str]) -> str:
    """The criterion that selects a member and its state: ``val/mcc``, or ``val/neg_elbo`` where sources are unknown."""
    return "val/mcc" if BEST_MCC in columns else "val/neg_elbo"


@functools.cache
def _positions(columns: tuple[str, ...]) -> dict[str, int]:
    """The positions of columns: one dict for all rows that have these."""
    return {column: i for i, column in enumerate(columns)}


class CompactRow(Mapping[str, Value]):
    """A row in a quarter of a dict's memory: a study keeps those of all its members."""

    __slots__ = ("_numbers", "_others", "_positions")

    def __init__(self, row: Row) -> None:
        self._positions = _positions(tuple(row))
        self._others = {column: value for column, value in row.items() if not isinstance(value, float)}
        self._numbers = array("d", [math.nan if column in self._others else float(row[column]) for column in row])

    def __getitem__(self, column: str) -> Value:
        return self._others[column] if column in self._others else self._numbers[self._positions[column]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)


def final_metrics(row: Row) -> dict[str, float]:
    """Every metric of a member at its best state, by its name."""
    best = at_best("", criterion_of(row))
    return {column.removesuffix(best): float(value) for column, value in row.items() if column.endswith(best)}


def best_member(members: Sequence[Row]) -> Row | None:
    """The member with the highest val/mcc or, where sources are unknown, the lowest val/neg_elbo.

    Diverged members are left out; None if no other is left.
    """

    def value(row: Row) -> float:
        criterion = criterion_of(row)
        return float(row[BEST[criterion]]) * (1 if criterion == "val/mcc" else -1)

    sound = [row for row in members if row["status"] != "diverged" and math.isfinite(value(row))]
    return max(sound, key=value, default=None)


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

    Both splits are evaluated at the members' best states. What validations compute over the whole split is taken from
    the history, so that a best state's criterion is the value that chose it.
    """
    ensemble, state = session.ensemble, session.state
    rows = session.members_of(point)
    evaluated = session.finals.get(point) or session.final(point)
    whole = {f"val/{metric.name}" for metric in METRICS if metric.curve == "all"}
    fixed, log_gammas = (
        session.points[0].model.precision == "fixed",
        ensemble.model.layout.views(state.frozen).get(GAMMA),
    )
    validations = {validation.epoch: validation for validation in state.history}
    criteria = sorted(session.criteria, reverse=True)
    table = []
    for i, row in enumerate(rows):
        gamma = ensemble.members[row].gamma if fixed or log_gammas is None else float(log_gammas[row].exp())
        status = "stopped" if state.status[row] == "running" else state.status[row]
        entry: dict[str, Value] = {"trial": trial, **session.axes(row), "gamma": gamma, "gamma_sq": gamma**2}
        entry |= {"status": status, "epochs": int(state.epochs[row])}
        for criterion in criteria:
            best = state.best[criterion]
            entry[BEST[criterion]] = float(best.value[row]) if best.epoch[row] >= 0 else math.nan
        for criterion in criteria:
            # A member that diverged before its first validation has no best state.
            validation = validations.get(int(state.best[criterion].epoch[row]))
            values = {name: float(v[i]) if validation else math.nan for name, v in evaluated[criterion].items()}
            if validation is not None:
                at = validation.rows.tolist().index(row)
                values |= {name: float(v[at]) for name, v in validation.values.items() if name in whole}
            entry |= {at_best(metric, criterion): value for metric, value in values.items()}
        table.append(entry)
    return table
