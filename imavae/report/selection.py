"""What each criterion would choose, and what a person without ground truth loses by it.

Three criteria choose on the validation split: ``val/mcc`` (an oracle: it needs the sources), ``val/neg_elbo``, and
``val/agreement`` of the seeds. What they choose is scored by its MCC on the test split. The selection regret of a
criterion is the oracle's MCC minus its own; a small negative one means that the oracle's lead did not last.

Three things are chosen: a point (by its members' medians; its MCC is their median), a member of a given point, and a
member of any point. Whatever is compared has the same data: points that differ in ``data.*`` are never rivals, nor are
members with mixings of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.table import Table

from imavae.cli.display import MISSING, point_text
from imavae.report.tables import (
    AT_BEST_MCC,
    AT_BEST_NEG_ELBO,
    BEST_MCC,
    BEST_NEG_ELBO,
    counted,
    diverged,
    plain_table,
    quartiles,
)

if TYPE_CHECKING:
    import pandas as pd


class Criterion(NamedTuple):
    """How a member is scored, which score is the better one, and where its MCC is read."""

    column: str
    sign: int  # 1: the highest is best
    mcc: str


ORACLE = "val/mcc"
CRITERIA = {
    ORACLE: Criterion(BEST_MCC, 1, f"test/mcc {AT_BEST_MCC}"),
    "val/neg_elbo": Criterion(BEST_NEG_ELBO, -1, f"test/mcc {AT_BEST_NEG_ELBO}"),
    "val/agreement": Criterion(f"val/agreement {AT_BEST_NEG_ELBO}", 1, f"test/mcc {AT_BEST_NEG_ELBO}"),
}
BLIND = [name for name in CRITERIA if name != ORACLE]
CHOICES = ("a point", "a member of a point", "a member of any point")
CLOSE = 0.01  # regrets that differ by less say nothing about which criterion is the better one


def choices(members: pd.DataFrame, points: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """A row per choice: what is chosen, among how many, and the test MCC and the regret by each criterion.

    Args:
        members: rows of ``members.csv`` of all trials.
        points: a row per trial, with ``trial`` and a column for each of ``keys``.
        keys: dotted keys that were searched.

    Returns:
        An empty frame without sources, or where there is nothing to choose from.
    """
    import pandas as pd

    needed = {BEST_MCC, BEST_NEG_ELBO, *(criterion.mcc for criterion in CRITERIA.values())}
    if not needed <= set(members.columns):
        return pd.DataFrame()
    world = [key for key in keys if key.startswith("data.")]
    joined = members.drop(columns=[key for key in keys if key in members]).merge(points[["trial", *keys]], on="trial")
    rows = []
    for _, rivals in _groups(joined, world):
        where = {"data": point_text({key: rivals[key].iloc[0] for key in world})}
        trials = [group for _, group in rivals.groupby("trial", sort=True)]
        rows += [where | row for row in _row(CHOICES[0], trials)]
        for group in trials:
            point = point_text({key: group[key].iloc[0] for key in keys if key not in world})
            for _, own in _groups(group, _seeds_of_worlds(group)):
                rows += [where | {"point": point} | row for row in _row(CHOICES[1], _single(own))]
        if len(trials) > 1:
            for _, own in _groups(rivals, _seeds_of_worlds(rivals)):
                rows += [where | row for row in _row(CHOICES[2], _single(own))]
    return pd.DataFrame(rows)


def selection_metrics(table: pd.DataFrame) -> dict[str, float]:
    """The median regret of each criterion in each kind of choice, by the names that a study's run is tracked with."""
    if not len(table):
        return {}
    return {
        f"regret/{criterion.removeprefix('val/')}/{choice}": _median(group, f"regret by {criterion}")
        for choice, group in table.groupby("choice", sort=False)
        for criterion in BLIND
        if f"regret by {criterion}" in group
    }


def selection_table(table: pd.DataFrame) -> Table:
    """Medians over the choices of each kind, the worst regret of each criterion, and which of the two to trust."""
    shown = plain_table(
        "Choosing without ground truth",
        "Test MCC of what each criterion chooses, median over choices; in brackets the regret against val/mcc, "
        "the oracle: median, worst. " + " ".join(verdicts(table)),
    )
    for name in ("chosen", "among", "choices", "val/mcc", *BLIND):
        shown.add_column(name, justify="left" if name == "chosen" else "right")
    for choice, group in table.groupby("choice", sort=False):
        sizes = sorted(set(group["among"]))
        among = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}–{sizes[-1]}"
        cells = [_number(_median(group, f"MCC by {ORACLE}"))]
        for criterion in BLIND:
            if f"regret by {criterion}" not in group:
                cells.append(MISSING)
                continue
            regret, worst = _median(group, f"regret by {criterion}"), float(group[f"regret by {criterion}"].max())
            cells.append(f"{_number(_median(group, f'MCC by {criterion}'))}\n({_number(regret)}, {_number(worst)})")
        shown.add_row(str(choice), among, str(len(group)), *cells)
    return shown


def verdicts(table: pd.DataFrame) -> Iterator[str]:
    """For each kind of choice, which of the two criteria lost less."""
    for choice, group in table.groupby("choice", sort=False):
        regret = {name: _median(group, f"regret by {name}") for name in BLIND if f"regret by {name}" in group}
        regret = {name: value for name, value in regret.items() if not np.isnan(value)}
        if len(regret) < 2:
            continue
        best = min(regret, key=lambda name: regret[name])
        close = max(regret.values()) - regret[best] < CLOSE
        yield f"For {choice} {'either will do' if close else f'trust {best}'}."


def _groups(frame: pd.DataFrame, keys: Sequence[str]) -> Iterator[tuple[object, pd.DataFrame]]:
    """Groups of equal values; the whole frame without keys."""
    if not keys:
        yield (), frame
    else:
        yield from frame.groupby(list(keys), sort=False)


def _seeds_of_worlds(members: pd.DataFrame) -> list[str]:
    return ["data.seed"] if "data.seed" in members else []


def _single(members: pd.DataFrame) -> list[pd.DataFrame]:
    """Each member that did not diverge, alone: a diverged one is never chosen."""
    sound = members[~diverged(members)]
    return [sound.iloc[n : n + 1] for n in range(len(sound))]


def _row(choice: str, candidates: Sequence[pd.DataFrame]) -> list[dict[str, object]]:
    """What each criterion chooses among groups of members, by medians over a group; nothing for a single candidate."""
    if len(candidates) < 2:
        return []
    row: dict[str, object] = {"choice": choice, "among": len(candidates)}
    found: dict[str, float] = {}
    for name, criterion in CRITERIA.items():
        if criterion.column not in candidates[0]:
            continue
        score = criterion.sign * np.array([_middle(group, criterion.column) for group in candidates])
        if np.isnan(score).all():
            continue
        found[name] = _middle(candidates[int(np.nanargmax(score))], criterion.mcc)
    row |= {f"MCC by {name}": value for name, value in found.items()}
    oracle = found.get(ORACLE, np.nan)
    return [row | {f"regret by {name}": oracle - value for name, value in found.items() if name != ORACLE}]


def _middle(group: pd.DataFrame, column: str) -> float:
    return quartiles(counted(group, column)).median


def _median(group: pd.DataFrame, column: str) -> float:
    return quartiles(np.array(group[column], dtype=np.float64)).median if column in group else np.nan


def _number(value: float) -> str:
    return MISSING if np.isnan(value) else f"{value:.3f}"
