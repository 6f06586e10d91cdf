"""What `make reproduce` does: find or run a figure's studies, draw, judge, write, track and print."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from imavae.cli.commands import tune
from imavae.config.mapping import to_mapping
from imavae.config.settings import ReproduceConfig, StudyConfig
from imavae.data.storage import write_text
from imavae.errors import UserError, require
from imavae.paper import style as paper
from imavae.paper.figure import Entry
from imavae.paper.figures import FIGURES, entry
from imavae.paper.judge import FAIL, PASS, Row
from imavae.paper.studies import Study, broken_off, find, unlike
from imavae.paper.tables import frame, markdown_table, terminal_table
from imavae.report.display import new_console
from imavae.report.drawing import write
from imavae.report.summary import choices
from imavae.report.tables import plain_table, selection_table
from imavae.report.text import clock
from imavae.runs.ledger import tracker_of

DPI = 300  # for print
FAILED = (
    "A FAIL is further from the published number than chance allows (docs/figures.md); with other settings than the "
    "study's own, such as fewer observations or epochs, that is to be expected."
)


def list_figures() -> None:
    """Print the figures that there are, what each shows and how long it takes."""
    table: Table = plain_table(
        "Figures", "make reproduce FIGURE=NAME; minutes on 2 cores, unless its studies are there."
    )
    for name in ("figure", "shows", "minutes"):
        table.add_column(name, justify="right" if name == "minutes" else "left")
    for figure in FIGURES.values():
        table.add_row(figure.name, figure.shows, str(figure.minutes))
    new_console().print(table)


def reproduce_figure(config: ReproduceConfig, wanted: Sequence[StudyConfig]) -> bool:
    """Reproduce the figure ``config.figure`` from its studies; False if a row of its table fails.

    Raises:
        UserError: a study that is not there with ``plot_only``, or that could not be finished.
        Interrupted: the same command goes on.
    """
    figure = entry(config.figure or "")
    console = new_console()
    if config.dry_run:
        for one in wanted:
            console.print(f"{one.study}:", highlight=False, markup=False)
            tune(one)
        return True
    wanted = [dataclasses.replace(one, resume=False, name=None if one.resume else one.name) for one in wanted]
    studies = [study_for(one, config.plot_only, console) for one in wanted]
    folder = Path(config.output_dir).resolve() / "reproduce" / figure.name
    rows = figure.rows(studies)
    with paper.style():
        files = write({figure.name: figure.draw(studies)}, folder, DPI)
    notes = [figure.differs, *(f"{study.name}: {study_note(study)}." for study in studies)]
    text = markdown_table(rows) + "\n" + "\n\n".join(notes) + "\n"
    write_text(folder / "table.md", text)
    write_text(folder / "table.csv", frame(rows).to_csv(index=False))
    _track(config, figure, rows, [*files, folder / "table.md", folder / "table.csv"])
    _print(console, figure, studies, rows)
    for note in notes:
        console.print(note, highlight=False, markup=False)
    console.print(f"figure    {folder / figure.name}.pdf", soft_wrap=True, markup=False, highlight=False)
    console.print(f"table     {folder / 'table.md'}, table.csv", soft_wrap=True, markup=False, highlight=False)
    console.print(summary(rows), highlight=False, markup=False)
    failed = any(row.verdict == FAIL for row in rows)
    if failed:
        console.print(FAILED, highlight=False, markup=False)
    return not failed


def study_for(wanted: StudyConfig, plot_only: bool, console: Console) -> Study:
    """The finished study of this configuration: one that is there, else one that is resumed or run now.

    Raises:
        UserError: ``plot_only`` and there is none, or it can't be run.
    """
    found = find(wanted)
    if found is not None:
        console.print(f"{wanted.study}: read from {found.folder}", soft_wrap=True, highlight=False, markup=False)
        return found
    require(not plot_only, f"{wanted.study} is there, finished, with these settings", unlike(wanted), "drop plot_only")
    begun = broken_off(wanted)
    console.print(f"{wanted.study}: {f'going on with {begun}' if begun else 'running'}", highlight=False, markup=False)
    tune(wanted if begun is None else dataclasses.replace(wanted, resume=True, name=begun))
    found = find(wanted)
    if found is None:
        raise UserError(
            f"`{wanted.study} is finished` must hold, but some of its trials failed; see {wanted.output_dir}"
        )
    return found


def study_note(study: Study) -> str:
    """Over what its intervals are, and how long it took."""
    more = ""
    if study.config.members.data.seed is None:
        one = study.config.model.decoder == "mixing"  # several worlds have no one mixing
        more = f" and one draw of its data; {'data.seed=2' if one else 'members.data.seed=[1,2,3]'} varies both"
    took = "" if math.isnan(study.seconds) else f"; took {clock(study.seconds)}"
    return f"intervals are over {study.over}{more}; {len(study.members)} members{took}"


def summary(rows: Sequence[Row]) -> str:
    """How many rows passed and failed."""
    counts = Counter(row.verdict for row in rows)
    return ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))


def _print(console: Console, figure: Entry, studies: Sequence[Study], rows: Sequence[Row]) -> None:
    for study in studies:
        own = [row for row in rows if row.study == study.name]
        took = "" if math.isnan(study.seconds) else f", took {clock(study.seconds)}"
        title = f"{figure.name}: {study.name}, {study.config.members.count} members a point{took}"
        console.print(terminal_table(own, title))
        points = study.members[["trial", *study.keys]].drop_duplicates()
        chosen = choices(study.members, points, study.keys)
        if len(chosen):
            console.print(selection_table(chosen))


def _track(config: ReproduceConfig, figure: Entry, rows: Sequence[Row], files: Sequence[Path]) -> None:
    """A run of the experiment `reproduce`, with the rows' numbers, the table and the figure."""
    tracker = tracker_of(config, "reproduce")
    tracker.start(figure.name, to_mapping(config), {"imavae.figure": figure.name})
    metrics = {f"rows/{verdict}": float(n) for verdict, n in Counter(row.verdict for row in rows).items()}
    for row in rows:
        name = _metric_name(f"{row.study}/{row.quantity}/{row.point}")
        known = {"ours": row.ours.median, "expected": row.expected, "tolerance": row.tolerance}
        metrics |= {f"{name}/{key}": value for key, value in known.items() if value is not None}
        if row.verdict in (PASS, FAIL):
            metrics[f"{name}/passes"] = float(row.verdict == PASS)
    tracker.finish("finished", metrics, files)


def _metric_name(text: str) -> str:
    """Text in the characters that MLflow takes in a metric's name."""
    known = {"γ²=": "gamma_sq ", "−": "neg ", "θ": "theta", "ρ": "rho", "=": " "}
    for sign, word in known.items():
        text = text.replace(sign, word)
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. /") else "" for c in text)
