"""The commands: each calls the library with a live display, then prints tables and addresses."""

from __future__ import annotations

import functools
import math
import shlex
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from imavae.config.settings import EncodeConfig, EvaluateConfig, ReproduceConfig, RunConfig, StudyConfig
from imavae.errors import Interrupted
from imavae.report.display import Display, clock, new_console, point_text

if TYPE_CHECKING:
    from imavae.runs.results import Results

FIRST_POINTS = 10  # of a dry run, that are printed


def train(config: RunConfig, command: Sequence[str] = ()) -> None:
    """Train one point's members; print their table and addresses. ``command`` holds the words that repeat it."""
    from imavae import api
    from imavae.report.tables import member_table

    console = new_console()
    try:
        results = api.train_point(config, Display(console), command)
    except api.DivergedError as error:
        _print_addresses(console, error.results)
        raise
    except Interrupted as error:
        _print_resuming(console, error, command)
        raise
    console.print(member_table(results.members))
    _print_addresses(console, results)


def tune(config: StudyConfig, command: Sequence[str] = ()) -> None:
    """Run a study; print its tables and addresses, also after an interruption. ``command`` as in :func:`train`."""
    from imavae.search import cluster
    from imavae.search.space import check

    _, points = check(config)
    console = new_console()
    trials = len(points) if config.sampler.name == "grid" else config.budget.trials
    at_once = "" if config.cluster.name == "ray" else f", {cluster.expected_slots(config.cluster)} at a time"
    size = f"{trials} trials x {config.members.count} members, at most {config.training.max_epochs} epochs{at_once}"
    display = Display(console)
    display.notice(f"{config.study}: {size}")
    if config.dry_run:
        display.notice("timing an epoch and a validation")
        _print_cost(console, config)
        return
    display.notice("starting Ray")
    cluster.start_early(config.cluster, ("imavae.api", "imavae.search.trials"))

    from imavae import api
    from imavae.runs.results import load_results
    from imavae.search.study import NoResultError

    try:
        results = api.tune_study(config, display, command)
    except NoResultError as error:
        _print_addresses(console, error.ledger.results)
        raise
    except api.DivergedError as error:
        _print_addresses(console, error.results)
        raise
    except Interrupted as error:
        if error.folder is not None:
            _print_study(console, load_results(Path(config.output_dir) / "studies" / error.folder))
            _print_resuming(console, error, command)
        raise
    _print_study(console, results)


def evaluate(config: EvaluateConfig) -> None:
    """Print every metric of a stored model or ensemble on one split, and why others are absent."""
    from imavae.report.tables import metric_table
    from imavae.runs.models import evaluate_checkpoint

    console = new_console()
    with Display(console) as display:
        values, reasons = evaluate_checkpoint(config, display.rendered)
    console.print(metric_table(values, config.checkpoint))
    for reason in dict.fromkeys(reasons.values()):
        names = ", ".join(name for name in reasons if reasons[name] == reason)
        console.print(f"no {names}: {reason}", highlight=False)


def encode(config: EncodeConfig) -> None:
    """Write a file's latents under a progress bar, and print their address."""
    from imavae.runs.models import encode_file

    console = new_console()
    start = time.monotonic()
    with Display(console) as display:
        done = encode_file(config, lambda rows, total: display.progress(f"{rows:,} rows", rows, total))
    took = f"{done.rows:,} rows in {clock(time.monotonic() - start)}, mean reconstruction error {done.error:.4g}"
    console.print(f"{took}; columns {', '.join(done.columns)}", highlight=False)
    _print_lines(console, [f"latents   {Path(config.out).resolve()}"])


def list_figures() -> None:
    """Print the figures of the paper, what each shows, and how long its studies take."""
    from imavae.paper.figures import FIGURES
    from imavae.report.tables import Table

    rows = [(figure.name, figure.shows, str(figure.minutes)) for figure in FIGURES.values()]
    caption = "make reproduce FIGURE=NAME; minutes on 2 cores, unless its studies are there."
    columns = ("figure", "shows", "minutes")
    new_console().print(Table("Figures", caption, columns, rows, left=columns[:2]))


def reproduce(config: ReproduceConfig, studies: Sequence[StudyConfig], command: Sequence[str] = ()) -> bool:
    """Reproduce a figure from its studies, and print its tables and addresses; False if a row of its table fails.

    ``command`` holds the words that repeat it. Raises as :func:`imavae.paper.reproduce.reproduce_figure` does.
    """
    from imavae.paper.quantities import terminal_table
    from imavae.paper.reproduce import reproduce_figure
    from imavae.report.summary import choices
    from imavae.report.tables import selection_table

    console = new_console()
    if config.dry_run:
        for wanted in studies:
            _print_lines(console, [f"{wanted.study}:"])
            tune(wanted)
        return True
    run = functools.partial(tune, command=command)
    found = reproduce_figure(config, studies, run, lambda line: _print_lines(console, [line]))
    for study in found.studies:
        took = "" if math.isnan(study.seconds) else f", took {clock(study.seconds)}"
        title = f"{found.figure.name}: {study.name}, {study.config.members.count} members a point{took}"
        console.print(terminal_table([row for row in found.rows if row.study == study.name], title))
        points = study.members[["trial", *study.keys]].drop_duplicates()
        chosen = choices(study.members, points, study.keys)
        if len(chosen):
            console.print(selection_table(chosen))
    for note in found.notes:
        console.print(note, highlight=False, markup=False)
    figure = f"figure    {found.folder / found.figure.name}.{'pdf' if config.pdf else 'png'}"
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(found.verdicts.items()))
    _print_lines(console, [figure, f"table     {found.folder / 'table.md'}, table.csv", verdicts])
    if not found.passed:
        note = "A FAIL is further from the published number than chance allows (docs/figures.md). It is expected"
        console.print(f"{note} with fewer observations or epochs than the study's own.", highlight=False)
    return found.passed


def _print_study(console: Console, results: Results) -> None:
    """Print the tables of a study, as far as it has results, its addresses and its duration."""
    from imavae.report.tables import result_tables

    for table in result_tables(results):
        console.print(table)
    _print_addresses(console, results)
    took = f"took {clock(results.seconds)}, of which {clock(results.work_seconds)} in training and validation"
    console.print(took, highlight=False)


def _print_cost(console: Console, config: StudyConfig) -> None:
    """Print what a study would train, and how long that would take on this machine."""
    from imavae.report.tables import Table, space_table
    from imavae.search.dry_run import dry_run
    from imavae.search.space import parse

    console.print(space_table(parse(config)))
    cost = dry_run(config)
    ensemble = {number: place for place, pack in enumerate(cost.packs) for number in pack}
    points = enumerate(cost.points[:FIRST_POINTS])
    rows = [(str(number), str(ensemble[number]), point_text(point)) for number, point in points]
    title, head = f"First points of {len(cost.points)}", ("trial", "ensemble", "point")
    console.print(Table(title, "", head, rows, left=("point",)))
    size = f"{len(cost.points)} trials x {config.members.count} members: {cost.member_steps:,} member-steps"
    timed = [
        f"timed: {timing.members} members of {timing.weights // timing.members:,} weights, "
        f"{timing.epoch:.2f} s an epoch, {timing.validation:.2f} s a validation"
        for timing in cost.timed
    ]
    bound, reason = ("at most", ", less if trials or members stop early") if cost.stops_early else ("about", "")
    time_needed = f"{bound} {clock(cost.seconds)} of training and validation on this machine{reason}"
    lines = [f"{size} in {len(cost.packs)} ensembles, {cost.slots} at a time", *timed]
    _print_lines(console, [*lines, f"{time_needed}; start-up, tracking and reports are not included"])


def _print_resuming(console: Console, interrupted: Interrupted, command: Sequence[str]) -> None:
    """Print the command that resumes, if anything has begun."""
    from imavae.api import resuming

    if interrupted.folder is not None:
        _print_lines(console, [f"resume    {shlex.join(resuming(command, interrupted.folder))}"])


def _print_addresses(console: Console, results: Results) -> None:
    names = results.names
    lines = [f"results   {results.folder}"]
    lines += [f"figures   {names.figures}"] if names.figures.exists() else []
    lines += [f"report    {names.report}"] if names.report.exists() else []
    if results.champion_address:
        registered = results.champion_address.startswith("models:/")
        note = f"  # in MLflow: {results.champion_address}" if registered else ""
        lines.append(f"champion  import imavae; model = {results.loading('load_model')}{note}")
    if results.config.tracking.name == "mlflow":
        lines.append("browse    make ui")
    _print_lines(console, lines)


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines that are never wrapped: they are meant to be copied."""
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
