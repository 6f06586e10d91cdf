"""Tables of a run or study, for the terminal (at most 80 columns wide) and for the HTML report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from imavae.config.settings import Objective
from imavae.report.summary import (
    AGREEMENT,
    BLIND,
    ORACLE,
    choices,
    chosen_numbers,
    column_values,
    counted,
    diverged,
    has_sources,
    median,
    median_of,
    quartiles,
    scores,
    searched,
)
from imavae.report.text import MISSING, compact, point_text, short_names
from imavae.runs.records import BEST_MCC, BEST_NEG_ELBO, at_best

if TYPE_CHECKING:
    import pandas as pd

    from imavae.runs.results import Results
    from imavae.search.space import Parameter
    from imavae.tracking.base import TrialRecord

NO_SOURCES = "There are no sources, hence no MCC: states and members are chosen by val/neg_elbo."
COLUMN_PER_PARAMETER = 2  # up to this many searched parameters besides gamma have a column each; more share one
CLOSE_REGRETS = 0.01  # regrets that differ by less do not favour a criterion
Form = Callable[[float], str]


@dataclass(frozen=True)
class Table:
    """Rows of text under a title. Rich prints it (``__rich__``); the template of the report makes HTML of it.

    Attributes:
        columns: the text of each column's head.
        rows: a text per column. A text may have several lines.
        left: the columns that are aligned to the left; numbers are aligned to the right.
        bold: the number of the row that stands out.
    """

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str] = ()
    bold: int | None = None

    def __rich__(self) -> RichTable:
        """Build the table for the terminal. No number is broken or cut in 80 columns."""
        table = plain_table(self.title, self.caption)
        for name, *cells in zip(self.columns, *self.rows, strict=True):
            if name in self.left:
                table.add_column(Text(name), overflow="fold")
            else:
                head = name.replace(" ", "\n")
                widest = max(len(word) for text in (head, *cells) for word in text.split() or [""])
                table.add_column(Text(head), justify="right", min_width=widest)
        for n, row in enumerate(self.rows):
            table.add_row(*map(Text, row), style="bold" if n == self.bold else None)
        return table


def plain_table(title: str, caption: str) -> RichTable:
    """An empty Rich table with a line under its head and no frame."""
    return RichTable(
        title=Text(title, style="bold"),
        caption=Text(caption, style="dim"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        title_justify="left",
        caption_justify="left",
    )


def study_tables(results: Results, top: int = 5) -> Iterator[Table]:
    """The tables of a study: best trials, Pareto front, the numbers of the best trial, and selection; none if empty."""
    if not results.ranked():
        return
    keys = searched(results)
    yield best_trials(results.members, results.trials, keys, results.objective.mode, top)
    if len(results.objectives) > 1:
        yield front_table(results.front(), results.objectives, keys)
    yield from point_tables(results, results.winners)


def point_tables(results: Results, members: pd.DataFrame) -> Iterator[Table]:
    """The numbers of one point, given its members, and selection over all points."""
    yield chosen_table(members)
    chosen = choices(results.members, results.trials, searched(results))
    if len(chosen):
        yield selection_table(chosen)


def best_trials(members: pd.DataFrame, trials: pd.DataFrame, keys: Sequence[str], mode: str, top: int = 5) -> Table:
    """The ``top`` trials by score, best first; among equal scores the earlier trial comes first.

    Args:
        members: rows of ``members.csv`` of all trials.
        trials: one row per trial; trials without a score are left out.
        keys: dotted keys that were searched.
        mode: ``max`` or ``min``, the better direction of the score.
        top: maximal number of rows.
    """
    scored = trials[np.isfinite(scores(trials))]
    best = scored.sort_values(["score", "trial"], ascending=[mode == "min", True]).head(top)
    groups = [members[members["trial"] == trial] for trial in best["trial"]]
    failures = [int(diverged(group).sum()) for group in groups]
    sources = has_sources(members)
    score, state = (BEST_MCC, "val/mcc") if sources else (AGREEMENT, "val/neg_elbo")
    contrast = at_best("val/cima", state)
    spreads = [quartiles(counted(group, score) if score in members else np.array([])) for group in groups]
    parameters = _parameter_columns(best, [key for key in keys if key != "model.gamma"])
    columns = {
        "trial": [str(trial) for trial in best["trial"]],
        "gamma": [_shared(group, "gamma") for group in groups],
        "gamma²": [_shared(group, "gamma_sq") for group in groups],
        **parameters,
        "MCC" if sources else "agreement": [fixed(q.median) for q in spreads],
        "quartiles": [MISSING if np.isnan(q.median) else f"{q.low:.3f}–{q.high:.3f}" for q in spreads],
        "c_IMA": [_contrast(quartiles(counted(group, contrast)).median) for group in groups],
        "−ELBO": [fixed(median_of(group, BEST_NEG_ELBO)) for group in groups],
    }
    read = "MCC at best val/mcc, c_IMA there, smallest −ELBO (nats)"
    caption = f"Medians over members: {read}."
    if not sources:
        caption = f"{NO_SOURCES}\nMedians over members: smallest −ELBO (nats), agreement of seeds and c_IMA there."
    if any(failures):
        columns["seeds lost"] = [f"{n}/{len(group)}" for n, group in zip(failures, groups, strict=True)]
        caption += " Seeds lost diverged; each counts as the worst."
    title = f"Best {len(best)} of {len(trials)} trials" if len(best) else "No trial has a score"
    rows = list(zip(*columns.values(), strict=True))
    return Table(title, caption, list(columns), rows, ["parameters"], bold=0)


def front_table(front: Sequence[TrialRecord], objectives: Sequence[Objective], keys: Sequence[str]) -> Table:
    """A row per trial of the Pareto front, best by the first objective first."""
    names = [f"{o.aggregate} {o.metric} {'↑' if o.mode == 'max' else '↓'}" for o in objectives]
    rows = []
    for record in front:
        values = [compact(score, 4) for score in (record.score, *record.further.values())]
        point = point_text({key: record.values[key] for key in keys if key in record.values})
        rows.append((str(record.number), *values, point))
    caption = (
        "No trial is better by one score without being worse by another. Scores after the first are read\n"
        "at the states with the best of the first."
    )
    columns = ["trial", *names, "parameters"]
    return Table(f"Pareto front: {len(front)} trials", caption, columns, rows, ["parameters"])


def chosen_table(members: pd.DataFrame) -> Table:
    """The three numbers of one trial, with the states and members they are read from."""
    numbers = chosen_numbers(members).values()
    if has_sources(members):
        title, caption = "MCC, three ways", "A score chosen by val/mcc is an oracle's: it needs the sources."
        columns = ["read at", "over", "sources used to choose", "MCC"]
        about = [
            ("best val/mcc", "median of members", "yes"),
            ("smallest val/neg_elbo", "median of members", "no (the paper's way)"),
            ("best val/mcc, test split", "chosen checkpoint", "yes, on validation"),
        ]
    else:
        title = "Without sources"
        caption = f"{NO_SOURCES}\nAgreement of seeds does not prove that they found the sources."
        columns, state = ["quantity", "read at", "over", "value"], "smallest val/neg_elbo"
        about = [
            ("−ELBO (nats)", state, "median of members"),
            ("agreement of seeds", state, "median of members"),
            ("−ELBO, test split", state, "chosen checkpoint"),
        ]
    rows = [(*texts, fixed(number)) for texts, number in zip(about, numbers, strict=True)]
    return Table(title, caption, columns, rows, columns[:-1])


def member_table(members: pd.DataFrame) -> Table:
    """A row per member of one point, and a last row with the medians and quartiles over them."""
    caption = "On validation but for test MCC; at the best val/mcc but for −ELBO (nats) and MCC there."
    shown: dict[str, tuple[str, Form]] = {
        "MCC": (BEST_MCC, fixed),
        "MCC at best −ELBO": (at_best("val/mcc", "val/neg_elbo"), fixed),
        "test MCC": (at_best("test/mcc", "val/mcc"), fixed),
        "c_IMA": (at_best("val/cima", "val/mcc"), _contrast),
        "−ELBO": (BEST_NEG_ELBO, fixed),
    }
    if not has_sources(members):
        caption = f"{NO_SOURCES}\nOn validation but for test −ELBO (nats); at the smallest −ELBO."
        shown = {
            "−ELBO": (BEST_NEG_ELBO, fixed),
            "test −ELBO": (at_best("test/neg_elbo", "val/neg_elbo"), fixed),
            "agreement": (AGREEMENT, fixed),
            "c_IMA": (at_best("val/cima", "val/neg_elbo"), _contrast),
        }
    about = [[str(value) for value in members[name]] for name in ("seed", "status", "epochs")]
    values = [[form(value) for value in column_values(members, column)] for column, form in shown.values()]
    spreads = [(quartiles(counted(members, column)), form) for column, form in shown.values()]
    aggregate = ["\n".join(form(value) for value in (q.median, q.low, q.high)) for q, form in spreads]
    rows = [*zip(*about, *values, strict=True), ("", "median\nquartile 1\nquartile 3", "", *aggregate)]
    return Table(
        f"Gamma {_shared(members, 'gamma')}, gamma² {_shared(members, 'gamma_sq')}: {len(members)} members",
        f"{caption}\nA diverged member counts as the worst in the last row.",
        ["seed", "status", "epochs", *shown],
        rows,
        ["status"],
        bold=len(rows) - 1,
    )


def metric_table(values: pd.DataFrame, checkpoint: str) -> Table:
    """A row per metric of a stored model or ensemble on one split.

    One member has its values; several of one gamma have the median and quartiles; several gammas the median at each.

    Args:
        values: a row per member: ``seed``, ``gamma`` (its point's) and a column per ``SPLIT/METRIC``.
        checkpoint: where the values come from, for the title.
    """
    metrics = [str(column) for column in values if "/" in str(column)]
    spread = [quartiles(column_values(values, metric)) for metric in metrics]
    columns = {"value" if len(values) == 1 else "median": [q.median for q in spread]}
    gammas = sorted(set(values["gamma"]))
    if len(gammas) > 1:
        groups = {f"gamma {compact(gamma)}": values[values["gamma"] == gamma] for gamma in gammas}
        columns = {name: [median(group, metric) for metric in metrics] for name, group in groups.items()}
    elif len(values) > 1:
        columns |= {"quartile 1": [q.low for q in spread], "quartile 3": [q.high for q in spread]}
    over = f"medians over {len(values)} members, " if len(values) > 1 else ""
    rows = [(metric, *(compact(x, 4) for x in row)) for metric, *row in zip(metrics, *columns.values(), strict=True)]
    caption = f"{over}gamma {', '.join(map(compact, gammas))}"
    return Table(checkpoint, caption, ["metric", *columns], rows, ["metric"])


def selection_table(chosen: pd.DataFrame) -> Table:
    """Medians over the choices of each kind (:func:`imavae.report.summary.choices`), and which criterion to trust."""
    rows, verdicts = [], []
    for choice, group in chosen.groupby("choice", sort=False):
        sizes = sorted(set(group["among"]))
        among = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}–{sizes[-1]}"
        regrets = {name: median(group, f"regret by {name}") for name in BLIND}
        cells = [MISSING] * len(BLIND)
        for n, (name, regret) in enumerate(regrets.items()):
            if f"regret by {name}" in group:
                worst = float(group[f"regret by {name}"].max())
                cells[n] = f"{fixed(median(group, f'MCC by {name}'))}\n({fixed(regret)}, {fixed(worst)})"
        rows.append((str(choice), among, str(len(group)), fixed(median(group, f"MCC by {ORACLE}")), *cells))
        if not any(map(np.isnan, regrets.values())):
            best = min(regrets, key=regrets.__getitem__)
            close = max(regrets.values()) - regrets[best] < CLOSE_REGRETS
            verdicts.append(f"For {choice} {'either will do' if close else f'trust {best}'}.")
    caption = (
        "Test MCC of what each criterion chooses, median over choices; in brackets the regret against val/mcc, "
        "the oracle: median, worst. "
    )
    columns = ["chosen", "among", "choices", ORACLE, *BLIND]
    return Table("Choosing without ground truth", caption + " ".join(verdicts), columns, rows, ["chosen"])


def space_table(parameters: Sequence[Parameter]) -> Table:
    """A row per searched setting."""
    rows = []
    for parameter in parameters:
        if parameter.type == "choice":
            values = ", ".join(compact(value) for value in parameter.values)
        else:
            low, high = parameter.ends
            values = f"{compact(low)} to {compact(high)}" + (" (log scale)" if parameter.log else "")
        rows.append((parameter.key, parameter.type, values, ", ".join(map(str, parameter.when))))
    columns = ["setting", "type", "values", "only when"]
    return Table("Search space", "", columns, rows, columns)


def _parameter_columns(trials: pd.DataFrame, keys: Sequence[str]) -> dict[str, list[str]]:
    names = short_names(keys)
    if len(keys) <= COLUMN_PER_PARAMETER:
        return {names[key].replace("_", " "): [compact(value) for value in trials[key]] for key in keys}
    lines = [[f"{names[key]} {compact(value)}" for value in trials[key]] for key in keys]
    return {"parameters": ["\n".join(point) for point in zip(*lines, strict=True)]}


def _shared(group: pd.DataFrame, column: str) -> str:
    """The value that all members of a point share."""
    return compact(float(group[column].iloc[0])) if len(group) else MISSING


def fixed(value: float) -> str:
    """Format an MCC or a −ELBO: three decimals, fewer for large values."""
    if np.isnan(value) or abs(value) >= 1e6:
        return compact(float(value))
    return f"{value:.{3 if abs(value) < 100 else 1}f}"


def _contrast(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= value < 100 else compact(float(value), 2)
