"""Tables of a run or study, for the terminal (at most 80 columns wide) and for the HTML report."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from imavae.config.data import Data
from imavae.config.settings import WORST_SCORE, Objective, StudyConfig
from imavae.report import summary
from imavae.report.display import MISSING, compact, point_text, short_names
from imavae.report.summary import ORACLE, chosen_numbers, counted, diverged, has_sources, quartiles
from imavae.runs.records import BEST_MCC, BEST_NEG_ELBO, at_best

if TYPE_CHECKING:
    import pandas as pd

    from imavae.runs.results import Results
    from imavae.search.space import Parameter
    from imavae.tracking import TrialRecord

NO_SOURCES = "There are no sources, hence no MCC: states and members are chosen by val/neg_elbo."
MINUS = re.compile(r"(?<![\w.])-(?=\d)")
COLUMN_PER_PARAMETER = 2  # up to this many searched parameters besides gamma have a column each; more share one


@dataclass(frozen=True)
class Table:
    """Rows of text under a title. Rich prints it, a notebook shows it, and the template of the report has it."""

    title: str
    caption: str
    columns: Sequence[str]  # heads
    rows: Sequence[Sequence[str]]  # a text per column, of one or more lines
    left: Sequence[str] = ()  # columns that are aligned to the left; numbers are aligned to the right
    bold: Collection[int] = ()  # numbers of the rows that stand out

    @classmethod
    def of(cls, title: str, caption: str, columns: Mapping[str, Sequence[str]], **more: Any) -> Table:
        """Make a table of columns, by their heads."""
        return cls(title, caption, list(columns), list(zip(*columns.values(), strict=True)), **more)

    def __post_init__(self) -> None:
        """Write negative numbers with a minus sign."""
        number = [name not in self.left for name in self.columns]
        rows = [[MINUS.sub("−", c) if n else c for c, n in zip(row, number, strict=True)] for row in self.rows]
        object.__setattr__(self, "rows", rows)

    def _repr_html_(self) -> str:
        """Build the table for a notebook."""
        import pandas as pd

        cells = pd.DataFrame(self.rows, columns=pd.Index(self.columns)).map(_html)
        caption = _html(self.caption)
        return f"<p><b>{escape(self.title)}</b><br>{caption}</p>{cells.to_html(index=False, escape=False, border=0)}"

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
            table.add_row(*map(Text, row), style="bold" if n in self.bold else None)
        return table


def _html(text: str) -> str:
    return escape(text).replace("\n", "<br>")


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


def result_tables(results: Results, top: int = 5) -> Iterator[Table]:
    """The tables of a run or study, as far as it has results: of the best trials or the members, and of selection."""
    if not results.ranked():
        return
    keys = summary.searched(results)
    if isinstance(results.config, StudyConfig):
        yield best_trials(results.members, results.trials, keys, results.objective.mode, top)
    else:
        yield member_table(results.members)
    if len(results.objectives) > 1:
        yield front_table(results.front(), results.objectives, keys)
    yield chosen_table(results.winners)
    if len(results.latents):
        yield latent_table(results.latents, results.config.data)
    chosen = summary.choices(results.members, results.trials, keys)
    if len(chosen):
        yield selection_table(chosen)


def best_trials(members: pd.DataFrame, trials: pd.DataFrame, keys: Sequence[str], mode: str, top: int = 5) -> Table:
    """The ``top`` of the ``trials`` by score, best first, with their ``members`` and the searched ``keys``.

    Among equal scores the earlier trial comes first. Failed trials and scores that stand for infinity are left out.
    """
    scored = trials[(trials["status"] != "failed") & (trials["score"].astype(float).abs() < WORST_SCORE)]
    best = scored.sort_values(["score", "trial"], ascending=[mode == "min", True]).head(top)
    if not len(best):
        none = ["No trial has a score"]
        return Table("", "", none, [], none)
    lost = diverged(members[members["trial"].isin(best["trial"])]).any()
    sources = has_sources(members)
    score, state = (BEST_MCC, "val/mcc") if sources else (summary.AGREEMENT, "val/neg_elbo")
    linear = summary.LINEAR_ICA in members
    keys = [key for key in keys if key != "model.gamma"]
    names, rows = short_names(keys), []
    for point in best.to_dict("records"):
        group = members[members["trial"] == point["trial"]]
        spread = quartiles(counted(group, score) if score in members else np.array([]))
        cells = {"trial": str(point["trial"]), "MCC" if sources else "agreement": fixed(spread.median)}
        cells["quartiles"] = MISSING if np.isnan(spread.median) else f"{spread.low:.3f}–{spread.high:.3f}"
        if linear:
            cells["linear ICA"] = fixed(quartiles(summary.linear_mcc(group)).median)
        if group["gamma"].notna().any():
            cells |= {"gamma": _shared(group, "gamma"), "gamma²": _shared(group, "gamma_sq")}
        if len(keys) <= COLUMN_PER_PARAMETER:
            cells |= {names[key].replace("_", " "): compact(point[key]) for key in keys}
        else:
            cells["parameters"] = "\n".join(f"{names[key]} {compact(point[key])}" for key in keys)
        cells["c_IMA"] = fixed(quartiles(counted(group, at_best("val/cima", state))).median, contrast=True)
        cells["−ELBO"] = fixed(summary.median_of(group, BEST_NEG_ELBO))
        if lost:
            cells["seeds lost"] = f"{diverged(group).sum()}/{len(group)}"
        rows.append(cells)
    caption = "Medians over members: MCC at best val/mcc, c_IMA (nats) there, smallest −ELBO (nats)."
    caption += "\nLinear ICA: its MCC on the same points, median over worlds." * linear
    if not sources:
        caption = (
            f"{NO_SOURCES}\nMedians over members: smallest −ELBO (nats), agreement of seeds and c_IMA (nats) there."
        )
    if lost:
        caption += " Seeds lost diverged; each counts as the worst."
    title = f"Best {len(best)} of {len(trials)} trials"
    return Table(title, caption, list(rows[0]), [list(row.values()) for row in rows], ["parameters"], bold=[0])


def front_table(front: Sequence[TrialRecord], objectives: Sequence[Objective], keys: Sequence[str]) -> Table:
    """A row per trial of the Pareto front, best by the first objective first."""
    import pandas as pd

    rows = []
    linear = [quartiles(summary.linear_mcc(pd.DataFrame(record.members))).median for record in front]
    known = not np.isnan(linear).all()
    for record, level in zip(front, linear, strict=True):
        values = [compact(score, 4) for score in (record.score, *record.further.values())]
        values += [fixed(level)] * known
        point = point_text({key: record.values[key] for key in keys if key in record.values})
        rows.append((str(record.number), *values, point))
    caption = (
        "No trial is better by one score without being worse by another. Scores after the first are read\n"
        "at the states with the best of the first."
    )
    names = [f"{o.aggregate} {o.metric} {'↑' if o.mode == 'max' else '↓'}" for o in objectives]
    names += ["linear ICA"] * known
    return Table(f"Pareto front: {len(front)} trials", caption, ["trial", *names, "parameters"], rows, ["parameters"])


def chosen_table(members: pd.DataFrame) -> Table:
    """The three numbers of one trial, with the states and members they are read from."""
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
    numbers = map(fixed, chosen_numbers(members).values())
    rows = [(*texts, number) for texts, number in zip(about, numbers, strict=True)]
    for method, name in (("linear_ica", "linear ICA"), ("pca", "PCA")):
        worlds = summary.linear_mcc(members, "test", method)
        if len(worlds):
            over = "the world" if len(worlds) == 1 else f"median of {len(worlds)} worlds"
            rows.append((f"{name}, test split", over, "no", fixed(float(np.median(worlds)))))
    caption = f"{caption}\n{summary.linear_sentence(members)}".rstrip()
    return Table(title, caption, columns, rows, columns[:-1])


def member_table(members: pd.DataFrame) -> Table:
    """A row per member of one point, and a last row with the medians and quartiles over them."""
    caption = "On validation but for test MCC; at the best val/mcc but for −ELBO and MCC there. −ELBO, c_IMA: nats."
    shown = {
        "MCC": BEST_MCC,
        "MCC at best −ELBO": at_best("val/mcc", "val/neg_elbo"),
        "test MCC": at_best("test/mcc", "val/mcc"),
        "c_IMA": at_best("val/cima", "val/mcc"),
        "−ELBO": BEST_NEG_ELBO,
    }
    if summary.LINEAR_ICA in members:
        shown["linear ICA"] = summary.LINEAR_ICA
    if not has_sources(members):
        caption = f"{NO_SOURCES}\nOn validation but for test −ELBO; at the smallest −ELBO. −ELBO and c_IMA in nats."
        shown = {
            "−ELBO": BEST_NEG_ELBO,
            "test −ELBO": at_best("test/neg_elbo", "val/neg_elbo"),
            "agreement": summary.AGREEMENT,
            "c_IMA": at_best("val/cima", "val/neg_elbo"),
        }
    columns = {name: [*map(str, members[name]), ""] for name in ("seed", "status", "epochs")}
    columns["status"][-1] = "median\nquartile\u00a01\nquartile\u00a03"  # never broken
    for name, column in shown.items():
        spread = quartiles(counted(members, column))
        values = [*summary.column_values(members, column), spread.median, spread.low, spread.high]
        *each, middle, low, high = (fixed(value, contrast=name == "c_IMA") for value in values)
        columns[name] = [*each, f"{middle}\n{low}\n{high}"]
    caption += "\nA diverged member counts as the worst in the last row."
    gamma = f"Gamma {_shared(members, 'gamma')}, gamma² {_shared(members, 'gamma_sq')}: "
    title = f"{gamma * bool(members['gamma'].notna().any())}{len(members)} members"
    caption = f"{caption}\n{summary.linear_sentence(members)}".rstrip()
    return Table.of(title, caption, columns, left=["status"], bold=[len(members)])


def latent_table(latents: pd.DataFrame, data: Data) -> Table:
    """The latents of the best member; each with the source that it is matched with, where sources are known."""
    matched = set(latents["source"]) if "source" in latents else {factor.name for factor in data.source_factors}
    alone = [factor.name for factor in data.source_factors if factor.name not in matched]
    shown = {
        "correlation": "correlation",
        "variance of y": "variance",
        "its formula": "formula",
        "column norm": "column_norm",
        "KL": "kl",
    }
    columns = {"latent": [f"{number}" for number in latents["latent"]]}
    if "source" in latents:
        columns["source"] = [MISSING if isinstance(name, float) else str(name) for name in latents["source"]]
    for name, column in shown.items():
        if column in latents:
            columns[name] = [compact(value, 3) for value in latents[column]]
    columns["active"] = ["yes" if value else "no" for value in latents["active"]]
    caption = "On validation; y is the unconstrained latent. Geometric means of variances; KL in nats; column norms in "
    caption += "units of x per unit of the latent." + f" Without a latent: {', '.join(alone)}." * bool(alone)
    return Table.of("Latents of the best member", caption, columns, left=["source", "active"])


def metric_table(values: pd.DataFrame, checkpoint: str) -> Table:
    """A row per metric of a ``checkpoint``, given a row per member: ``gamma`` and a column per ``SPLIT/METRIC``.

    One member has its values; several of one gamma have the median and quartiles; several gammas the median at each.
    """
    gammas = sorted(set(values["gamma"].dropna()))  # none of a flow
    columns = ["value"] if len(values) == 1 else ["median", "quartile 1", "quartile 3"]
    if len(gammas) > 1:
        columns = [f"gamma {compact(gamma)}" for gamma in gammas]
    rows = []
    for metric in (str(column) for column in values if "/" in str(column)):
        low, middle, high = quartiles(summary.column_values(values, metric))
        numbers = [middle, low, high][: len(columns)]
        if len(gammas) > 1:
            numbers = [summary.median(values[values["gamma"] == gamma], metric) for gamma in gammas]
        rows.append((metric, *(compact(number, 4) for number in numbers)))
    over = f"medians over {len(values)} members, " if len(values) > 1 else ""
    caption = over + f"gamma {', '.join(map(compact, gammas))}" * bool(gammas)
    for split in ("train", "val", "test"):
        columns_of = (summary.column_values(values, f"{split}/mcc_{name}") for name in ("linear_ica", "pca"))
        ica, pca = (np.unique(column[~np.isnan(column)]) for column in columns_of)
        sentence = summary.compared_with_linear(summary.median(values, f"{split}/mcc"), ica, pca)
        caption = f"{caption}\n{sentence}".rstrip()
    return Table(checkpoint, caption, ["metric", *columns], rows, ["metric"])


def selection_table(chosen: pd.DataFrame) -> Table:
    """Medians over the choices of each kind (:func:`imavae.report.summary.choices`), and what they advise."""
    rows, advice = [], []
    for choice, group in chosen.groupby("choice", sort=False):
        fewest, most = group["among"].min(), group["among"].max()
        regrets = {name: summary.median(group, f"regret by {name}") for name in summary.BLIND}
        cells = [str(choice), str(most) if fewest == most else f"{fewest}–{most}", str(len(group))]
        cells.append(fixed(summary.median(group, f"MCC by {ORACLE}")))
        for name, regret in regrets.items():
            if np.isnan(regret):
                cells.append(MISSING)
            else:
                worst = group[f"regret by {name}"].max()
                cells.append(f"{fixed(summary.median(group, f'MCC by {name}'))}\n({fixed(regret)}, {fixed(worst)})")
        rows.append(cells)
        if best := summary.preferred(group):
            advice.append(f"For {choice}, prefer {best}.")
    caption = (
        "Test MCC of what each criterion chooses, median over choices; in brackets the regret against val/mcc, "
        f"the oracle: median, worst. A criterion is advised from {summary.ENOUGH_CHOICES} choices of a kind on, if it "
        "loses less both in the median and at worst. "
    )
    linear = summary.median(chosen, "MCC of linear ICA")
    if not np.isnan(linear):
        caption += f"Linear ICA has {fixed(linear)}. "
    columns = ["chosen", "among", "choices", ORACLE, *summary.BLIND]
    return Table("Choosing without ground truth", caption + " ".join(advice), columns, rows, ["chosen"])


def space_table(parameters: Sequence[Parameter]) -> Table:
    """A row per searched setting."""
    rows = []
    for parameter in parameters:
        if parameter.type == "choice":
            values = ", ".join(map(compact, parameter.values))
        else:
            values = " to ".join(map(compact, parameter.ends)) + (" (log scale)" if parameter.log else "")
        rows.append((parameter.key, parameter.type, values, ", ".join(map(str, parameter.when))))
    columns = ["setting", "type", "values", "only when"]
    return Table("Search space", "", columns, rows, columns)


def failure_table(records: Sequence[TrialRecord]) -> Table:
    """The trials that failed or lost members, and why."""
    rows = []
    for record in records:
        lost = sum(row["status"] == "diverged" for row in record.members)
        if record.status == "failed" or lost:
            reason = record.failure or f"{lost} of {len(record.members)} members diverged"
            rows.append((str(record.number), point_text(record.values), reason))
    caption = "A failed trial has no result; resuming the study repeats it."
    return Table("Failed and diverged", caption, ["trial", "point", "reason"], rows, ["point", "reason"])


def fixed(value: float, contrast: bool = False) -> str:
    """Format an MCC or a −ELBO: three decimals, fewer for large values. A c_IMA, being smaller, has four."""
    if contrast:
        return f"{value:.4f}" if 1e-3 <= value < 100 else compact(float(value), 2)
    if np.isnan(value) or abs(value) >= 1e6:
        return compact(float(value))
    return f"{value:.{3 if abs(value) < 100 else 1}f}"


def _shared(group: pd.DataFrame, column: str) -> str:
    """The value that all members of a point share."""
    return compact(float(group[column].iloc[0])) if len(group) else MISSING
