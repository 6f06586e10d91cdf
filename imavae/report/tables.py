"""Tables for the end of a run or a study. Each holds in 80 columns and says nothing by colour alone.

Everywhere a diverged member counts as the worst value of its metric (:func:`counted`), so that a point that trains
three seeds of eight well does not look better than it is; its members that diverged are counted beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.markup import escape
from rich.table import Table

from imavae.cli.display import MISSING, compact, short_names
from imavae.config.settings import WORST_SCORE, Objective

if TYPE_CHECKING:
    import pandas as pd

    from imavae.tracking.base import TrialRecord

Floats = NDArray[np.float64]

BEST_MCC = "max val/mcc"
BEST_NEG_ELBO = "min val/neg_elbo"
AT_BEST_MCC = f"at {BEST_MCC}"  # how a column ends that was read at the state with the best val/mcc (an oracle)
AT_BEST_NEG_ELBO = f"at {BEST_NEG_ELBO}"  # the paper's protocol
AGREEMENT = f"val/agreement {AT_BEST_NEG_ELBO}"  # stands for MCC where there are no sources
NO_SOURCES = "There are no sources, hence no MCC: states and members are chosen by val/neg_elbo."
PARAMETERS = "parameters"
OWN_COLUMNS = 2  # searched parameters besides gamma that get a column each; more share one, or 80 columns would not do


class ThreeNumbers(NamedTuple):
    """The three MCC values that every report gives of one trial; NaN where there is none."""

    at_best_mcc: float  # median over members; an oracle choice, since MCC needs the sources
    at_best_neg_elbo: float  # median over members; the paper's protocol, no oracle
    test_of_chosen: float  # of one checkpoint, on the test split


class NoSourceNumbers(NamedTuple):
    """What stands for them in a trial without sources; NaN where there is none."""

    neg_elbo: float  # median over members, each at its smallest on the validation split
    agreement: float  # median over members at these states, on the validation split
    test_of_chosen: float  # −ELBO of one checkpoint, on the test split


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile."""

    low: float
    median: float
    high: float


def has_sources(members: pd.DataFrame) -> bool:
    """Whether members were compared with sources: if not, there is no state of the best val/mcc."""
    return BEST_MCC in members or BEST_NEG_ELBO not in members


def diverged(members: pd.DataFrame) -> NDArray[np.bool_]:
    """Which members went NaN and were frozen: (member,)."""
    return np.asarray(members["status"] == "diverged", dtype=bool)


def counted(members: pd.DataFrame, column: str) -> Floats:
    """A column's values as they enter an aggregate, one per member: (member,).

    A diverged member has the worst value that there is: 0 in a column of MCC or agreement, +inf in one of −ELBO or
    c_IMA. NaN stays where any other member lacks a value (of a test split that was not evaluated).
    """
    values = _numbers(members, column)
    metric = column.split(" at ")[0]
    values[diverged(members)] = 0.0 if "/mcc" in metric or "/agreement" in metric else np.inf
    return values


def quartiles(values: Floats) -> Quartiles:
    """Quartiles (linear between neighbours) of the values, (n,), that are not NaN; all NaN if there are none."""
    values = values[~np.isnan(values)]
    if not values.size:
        return Quartiles(np.nan, np.nan, np.nan)
    at = [0.25, 0.5, 0.75]
    with np.errstate(invalid="ignore"):
        between = np.quantile(values, at)
    # Between an infinite value and its neighbour linear interpolation is NaN; the upper neighbour is what it means.
    low, median, high = np.where(np.isnan(between), np.quantile(values, at, method="higher"), between)
    return Quartiles(float(low), float(median), float(high))


def scores(trials: pd.DataFrame) -> Floats:
    """The trials' scores, (trial,); NaN where a trial failed, or has an infinite score or what stands for one."""
    values = np.array(trials["score"], dtype=np.float64)
    return np.where((trials["status"] != "failed") & (np.abs(values) < WORST_SCORE), values, np.nan)


def three_numbers(members: pd.DataFrame) -> ThreeNumbers:
    """The three MCC values of one trial, from its members' rows of ``members.csv``.

    - ``at_best_mcc``: each member at its own best ``val/mcc``, on the validation split (``max val/mcc``); the median
      over members.
    - ``at_best_neg_elbo``: each member at its own smallest ``val/neg_elbo``, on the validation split
      (``val/mcc at min val/neg_elbo``); the median over members. No source takes part in this choice of states.
    - ``test_of_chosen``: the member with the largest ``max val/mcc`` is chosen (the first one of equals), at that
      state; its MCC on the test split (``test/mcc at max val/mcc``): one value, of the checkpoint that can be champion.

    In the medians a diverged member counts 0; it is never chosen.
    """
    chosen = np.where(diverged(members), np.nan, _numbers(members, BEST_MCC))
    test = _numbers(members, f"test/mcc {AT_BEST_MCC}")
    return ThreeNumbers(
        at_best_mcc=quartiles(counted(members, BEST_MCC)).median,
        at_best_neg_elbo=quartiles(counted(members, f"val/mcc {AT_BEST_NEG_ELBO}")).median,
        test_of_chosen=np.nan if np.isnan(chosen).all() else float(test[np.nanargmax(chosen)]),
    )


def three_numbers_table(numbers: ThreeNumbers) -> Table:
    """The three values, each with what it is and whether the sources took part in choosing it."""
    table = plain_table("MCC, three ways", "A score chosen by val/mcc is an oracle's: it needs the sources.")
    table.add_column("read at")
    table.add_column("over")
    table.add_column("sources used to choose")
    table.add_column("MCC", justify="right", style="bold")
    table.add_row("best val/mcc", "median of members", "yes", _fixed(numbers.at_best_mcc))
    table.add_row(
        "smallest val/neg_elbo", "median of members", "no (the paper's way)", _fixed(numbers.at_best_neg_elbo)
    )
    table.add_row("best val/mcc, test split", "chosen checkpoint", "yes, on validation", _fixed(numbers.test_of_chosen))
    return table


def no_source_numbers(members: pd.DataFrame) -> NoSourceNumbers:
    """Three values of one trial without sources, from its members' rows of ``members.csv``.

    The member with the smallest ``min val/neg_elbo`` is chosen (the first one of equals), at that state. In the medians
    a diverged member counts as the worst; it is never chosen.
    """
    best = np.where(diverged(members), np.nan, _numbers(members, BEST_NEG_ELBO))
    test = _numbers(members, f"test/neg_elbo {AT_BEST_NEG_ELBO}")
    return NoSourceNumbers(
        neg_elbo=quartiles(counted(members, BEST_NEG_ELBO)).median,
        agreement=quartiles(counted(members, AGREEMENT)).median if AGREEMENT in members else np.nan,
        test_of_chosen=np.nan if np.isnan(best).all() else float(test[np.nanargmin(best)]),
    )


def no_source_table(numbers: NoSourceNumbers) -> Table:
    """The three values, each with what it is."""
    table = plain_table("Without sources", f"{NO_SOURCES}\nAgreement of seeds is no proof that they found the sources.")
    table.add_column("what")
    table.add_column("read at")
    table.add_column("over")
    table.add_column("value", justify="right", style="bold")
    where = "smallest val/neg_elbo"
    table.add_row("−ELBO (nats)", where, "median of members", energy(numbers.neg_elbo))
    table.add_row("agreement of seeds", where, "median of members", _fixed(numbers.agreement))
    table.add_row("−ELBO, test split", where, "chosen checkpoint", energy(numbers.test_of_chosen))
    return table


def chosen_numbers(members: pd.DataFrame) -> dict[str, float]:
    """The three numbers of one trial under the names that a study's run is tracked with."""
    if has_sources(members):
        return {f"mcc/{name}": value for name, value in three_numbers(members)._asdict().items()}
    return {f"chosen/{name}": value for name, value in no_source_numbers(members)._asdict().items()}


def chosen_table(members: pd.DataFrame) -> Table:
    """The three numbers of one trial, with what they are."""
    if has_sources(members):
        return three_numbers_table(three_numbers(members))
    return no_source_table(no_source_numbers(members))


def best_trials(members: pd.DataFrame, trials: pd.DataFrame, keys: Sequence[str], mode: str, top: int = 5) -> Table:
    """The ``top`` trials by score, best first; of equal scores the earlier trial comes first.

    Args:
        members: rows of ``members.csv`` of all trials.
        trials: one row per trial; one without a score (:func:`scores`) is left out.
        keys: dotted keys that were searched.
        mode: ``max`` or ``min``, whichever is the better score.
        top: rows of the table, at the most.
    """
    scored = trials[np.isfinite(scores(trials))]
    best = scored.sort_values(["score", "trial"], ascending=[mode == "min", True]).head(top)
    groups = [members[members["trial"] == trial] for trial in best["trial"]]
    failures = [int(diverged(group).sum()) for group in groups]
    sources = has_sources(members)
    score, state = (BEST_MCC, AT_BEST_MCC) if sources else (AGREEMENT, AT_BEST_NEG_ELBO)
    known = score in members
    spreads = [quartiles(counted(group, score) if known else np.array([])) for group in groups]
    columns = {
        "trial": [str(trial) for trial in best["trial"]],
        "gamma": [_shared(group, "gamma") for group in groups],
        "gamma²": [_shared(group, "gamma_sq") for group in groups],
        **_parameter_columns(best, [key for key in keys if key != "model.gamma"]),
        "MCC" if sources else "agreement": [_fixed(q.median) for q in spreads],
        "quartiles": [MISSING if np.isnan(q.median) else f"{q.low:.3f}–{q.high:.3f}" for q in spreads],
        "c_IMA": [_contrast(quartiles(counted(g, f"val/cima {state}")).median) for g in groups],
        "−ELBO": [energy(quartiles(counted(g, BEST_NEG_ELBO)).median) for g in groups],
    }
    if any(failures):
        columns["seeds lost"] = [f"{n}/{len(group)}" for n, group in zip(failures, groups, strict=True)]
    table = plain_table(
        f"Best {len(best)} of {len(trials)} trials" if len(best) else "No trial has a score",
        (
            "Medians over members: MCC at best val/mcc, c_IMA there, smallest −ELBO (nats)."
            if sources
            else f"{NO_SOURCES}\nMedians over members: smallest −ELBO (nats), agreement of seeds and c_IMA there."
        )
        + (" Seeds lost diverged; each counts as the worst." if any(failures) else ""),
    )
    for name, cells in columns.items():
        widest = max((len(word) for cell in cells for word in cell.split()), default=0)  # numbers are never broken
        if name == PARAMETERS:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name.replace(" ", "\n"), justify="right", min_width=widest)
    for n, row in enumerate(zip(*columns.values(), strict=True)):
        table.add_row(*row, style="bold" if n == 0 else None)
    return table


def front_table(front: Sequence[TrialRecord], objectives: Sequence[Objective], keys: Sequence[str]) -> Table:
    """A row per trial of a Pareto front, best by the first objective first.

    Args:
        front: the trials.
        objectives: the study's, the one that ranks them first.
        keys: dotted keys that were searched.
    """
    arrows = {"max": "↑", "min": "↓"}
    table = plain_table(
        f"Pareto front: {len(front)} trials",
        "Scores: no trial is better by one without being worse by another. The rest of them is read\n"
        "at the states with the best of the first.",
    )
    table.add_column("trial", justify="right")
    for objective in objectives:
        name = f"{objective.aggregate}\n{objective.metric} {arrows[objective.mode]}"
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(PARAMETERS, overflow="fold")
    names = short_names(keys)
    for record in front:
        point = " ".join(f"{names[key]}={compact(record.values[key])}" for key in keys if key in record.values)
        scores = [record.score, *record.further.values()]
        table.add_row(str(record.number), *(compact(score, 4) for score in scores), escape(point))
    return table


def member_table(members: pd.DataFrame) -> Table:
    """A row per member of one point, in the order given, and a last one with the medians and quartiles over them."""
    caption = "On validation but for test MCC; at the best val/mcc but for −ELBO (nats) and MCC there."
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "MCC": (BEST_MCC, _fixed),
        "MCC at\nbest −ELBO": (f"val/mcc {AT_BEST_NEG_ELBO}", _fixed),
        "test MCC": (f"test/mcc {AT_BEST_MCC}", _fixed),
        "c_IMA": (f"val/cima {AT_BEST_MCC}", _contrast),
        "−ELBO": (BEST_NEG_ELBO, energy),
    }
    if not has_sources(members):
        caption = f"{NO_SOURCES}\nOn validation but for test −ELBO (nats); at the smallest −ELBO."
        shown = {
            "−ELBO": (BEST_NEG_ELBO, energy),
            "test −ELBO": (f"test/neg_elbo {AT_BEST_NEG_ELBO}", energy),
            "agreement": (AGREEMENT, _fixed),
            "c_IMA": (f"val/cima {AT_BEST_NEG_ELBO}", _contrast),
        }
    gamma = f"Gamma {_shared(members, 'gamma')}, gamma² {_shared(members, 'gamma_sq')}"
    table = plain_table(
        f"{gamma}: {len(members)} members",
        f"{caption}\nA diverged member counts as the worst in the last row.",
    )
    for name in ("seed", "status", "epochs", *shown):
        table.add_column(name, justify="left" if name == "status" else "right")
    values = {name: _numbers(members, column) for name, (column, _) in shown.items()}
    for n, (seed, status, epochs) in enumerate(zip(members["seed"], members["status"], members["epochs"], strict=True)):
        cells = [form(values[name][n]) for name, (_, form) in shown.items()]
        table.add_row(str(seed), str(status), str(epochs), *cells)
    table.add_section()
    spreads = [(quartiles(counted(members, column)), form) for column, form in shown.values()]
    aggregate = ["\n".join(form(value) for value in (q.median, q.low, q.high)) for q, form in spreads]
    table.add_row("", "median\nquartile 1\nquartile 3", "", *aggregate, style="bold")
    return table


def metric_table(values: pd.DataFrame, checkpoint: str) -> Table:
    """Every metric of a stored model or ensemble on one split, a row each.

    One member has its values; several of one gamma their median and quartiles; several gammas the median at each.

    Args:
        values: a row per member: ``seed``, ``gamma`` (its point's) and a column per ``SPLIT/METRIC``.
        checkpoint: where they come from, for the title.
    """
    metrics = [str(column) for column in values if "/" in str(column)]
    spread = {metric: quartiles(_numbers(values, metric)) for metric in metrics}
    columns = {"value" if len(values) == 1 else "median": [spread[metric].median for metric in metrics]}
    gammas = sorted(set(values["gamma"]))
    if len(gammas) > 1:
        groups = {gamma: values[values["gamma"] == gamma] for gamma in gammas}
        columns = {
            f"gamma {compact(gamma)}": [quartiles(_numbers(group, metric)).median for metric in metrics]
            for gamma, group in groups.items()
        }
    elif len(values) > 1:
        columns["quartile 1"] = [spread[metric].low for metric in metrics]
        columns["quartile 3"] = [spread[metric].high for metric in metrics]
    over = f"medians over {len(values)} members, " if len(values) > 1 else ""
    table = plain_table(escape(checkpoint), f"{over}gamma {', '.join(map(compact, gammas))}")
    table.add_column("metric", overflow="fold")
    for name in columns:
        table.add_column(name.replace(" ", "\n"), justify="right")
    for metric, *row in zip(metrics, *columns.values(), strict=True):
        table.add_row(metric, *(compact(value, 4) for value in row))
    return table


def _parameter_columns(trials: pd.DataFrame, keys: Sequence[str]) -> dict[str, list[str]]:
    names = short_names(keys)
    if len(keys) <= OWN_COLUMNS:
        return {names[key].replace("_", " "): [escape(compact(value)) for value in trials[key]] for key in keys}
    lines = [[f"{names[key]} {escape(compact(value))}" for value in trials[key]] for key in keys]
    return {PARAMETERS: ["\n".join(point) for point in zip(*lines, strict=True)]}


def _numbers(members: pd.DataFrame, column: str) -> Floats:
    """A column as numbers; NaN where it is missing, as it is when no member has lived to its first validation."""
    return np.array(members[column] if column in members else [np.nan] * len(members), dtype=np.float64)


def _shared(group: pd.DataFrame, column: str) -> str:
    """The value that all members of a point share."""
    return compact(float(group[column].iloc[0])) if len(group) else MISSING


def _fixed(value: float) -> str:
    return MISSING if np.isnan(value) else f"{value:.3f}"


def energy(value: float) -> str:
    """A negative ELBO as tables show it."""
    if abs(value) >= 1e6:
        return compact(float(value))
    return MISSING if np.isnan(value) else f"{value:.{3 if abs(value) < 100 else 1}f}"


def _contrast(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= value < 100 else compact(float(value), 2)


def plain_table(title: str, caption: str) -> Table:
    """An empty table with a line under its head and none around it."""
    return Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
    )
