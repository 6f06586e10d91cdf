"""What a person sees of each command: progress while it works, tables and addresses at its end."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, TextColumn

from imavae.cli.display import Bar, Display, RenderingBar, new_console
from imavae.config.data import SpritesData
from imavae.config.settings import EncodeConfig, EvaluateConfig, RunConfig, StudyConfig
from imavae.errors import Interrupted, resumable
from imavae.report.text import clock

SUMMARY = "summary.json"  # in a study's folder: what its run was tracked with
SELECTION = "selection.csv"  # there, too: what each criterion would choose
REPORT = "report.html"  # and all of it, to be read

if TYPE_CHECKING:
    import pandas as pd

    from imavae.report.report import Ending
    from imavae.runs.ledger import Ledger
    from imavae.runs.session import Session
    from imavae.search.space import Parameter
    from imavae.training.loop import Progress as Epoch


def train(config: RunConfig) -> None:
    """Train one point's members, print a row for each and the aggregate, and say where everything is."""
    from imavae.report.report import run_report
    from imavae.report.tables import member_table

    console = new_console()
    start = time.monotonic()
    try:
        ledger, session = run(config, console)
        with resumable(ledger.folder.name):
            figures = _run_figures(config, ledger, session)
            ending = dataclasses.replace(_ending(ledger, start), figures=figures)
            report = _write_report(ledger, run_report(ledger, config, ending))
            finish(ledger, [*figures, report])
    except Interrupted as error:
        _say_how_to_go_on(console, error)
        raise
    console.print(member_table(ledger.members))
    _addresses(console, ledger, config)


def run(config: RunConfig, console: Console) -> tuple[Ledger, Session]:
    """Train one point's members under a progress bar. Raises as :func:`imavae.runs.ledger.run_point` does."""
    from imavae.runs.ledger import run_point

    columns = (TextColumn("epoch {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
    bar = Bar(console, *columns)

    def notify(session: Session, epoch: Epoch) -> None:
        text = f"{epoch.active} of {len(session.ensemble)} training"
        bar.update(epoch.epoch, config.training.max_epochs, text)

    with RenderingBar(console) as images, bar:
        return run_point(config, notify, images.rendered)


def _run_figures(config: RunConfig, ledger: Ledger, session: Session) -> list[Path]:
    """Draw what a run has come to."""
    import torch

    from imavae.metrics.figure_data import image_panels, posterior_shapes
    from imavae.report.figures import solo_figures
    from imavae.report.image_panels import image_figures
    from imavae.report.posterior_shapes import run_figures
    from imavae.runs.results import best_member
    from imavae.tracking.base import member_name

    figures = []
    folder, history = ledger.folder / "figures", ledger.history
    if len(history):
        rows = torch.arange(len(session.ensemble), device=session.ensemble.device)
        names = [f"seed {member_name(session.axes(row))}" for row in rows.tolist()]
        weights, val = session.best_weights, session.data.val
        portrait = posterior_shapes(session.ensemble, weights, rows, val)
        factors = [factor.name for factor in config.data.source_factors]
        figures = solo_figures(history, folder) + run_figures(portrait, names, factors, history, folder)
        if session.data.val.images is not None:
            row = best_member(ledger.records[0])
            best = 0 if row is None else ledger.records[0].members.index(row)
            panels = image_panels(session.ensemble, weights, rows, val, best)
            figures += image_figures(panels, names, best, folder)
    return figures


def tune(config: StudyConfig) -> None:
    """Run a study under a live display; print its best trials, the winner's three numbers, and where everything is.

    Raises:
        UserError: a mistake in the configuration, or no trial has a result.
        Interrupted: the study can be resumed; what had finished and how to go on is printed first.
    """
    from imavae.search.study import check

    parameters, _ = check(config)
    if config.dry_run:
        _show_cost(config, parameters)
        return
    console = new_console()
    start = time.monotonic()
    ledger = study(config, console)
    _show_results(console, ledger, config, _searched(ledger, parameters))
    _addresses(console, ledger, config)
    work = clock(ledger.work_seconds)
    console.print(
        f"took {clock(time.monotonic() - start)}, of which {work} in training and validation", highlight=False
    )
    if ledger.interrupted is not None:
        ledger.interrupted.folder = ledger.folder.name
        _say_how_to_go_on(console, ledger.interrupted)
        raise ledger.interrupted


def _show_results(console: Console, ledger: Ledger, config: StudyConfig, keys: list[str]) -> None:
    """Print the tables of a study, as far as it has results."""
    if not ledger.ranked():
        return
    from imavae.report.summary import choices
    from imavae.report.tables import best_trials, chosen_table, front_table, selection_table

    members, trials = ledger.members, ledger.trials
    console.print(best_trials(members, trials, keys, config.objective.mode))
    if config.further_objectives:
        console.print(front_table(ledger.front(), config.objectives, keys))
    console.print(chosen_table(_winner(ledger)))
    chosen = choices(members, trials, keys)
    if len(chosen):
        console.print(selection_table(chosen))


def study(config: StudyConfig, console: Console) -> Ledger:
    """Run a study under a live display, crown its champion, draw its figures, write its report, and close its folder
    and tracked run.

    Raises:
        UserError: a mistake in the configuration, or no trial has a result.
    """
    from imavae.search.study import NoResultError, check, run_study

    parameters, known = check(config)
    points = len(known) if config.sampler.name == "grid" else config.budget.trials or 0
    start = time.monotonic()
    try:
        with Display(console) as display:
            ledger = run_study(config, display.update, display.say, display.rendered)
    except NoResultError as error:
        report = _report_study(error.ledger, config, _ending(error.ledger, start, points))
        error.ledger.tracker.finish("failed", {}, [report])
        _addresses(console, error.ledger, config)
        raise
    try:
        if ledger.interrupted is None:
            _conclude(config, ledger, _searched(ledger, parameters), start, points)
        else:
            finish(ledger, [_report_study(ledger, config, _ending(ledger, start, points))])
    except Interrupted as error:
        ledger.interrupted = error
    return ledger


def _searched(ledger: Ledger, parameters: Sequence[Parameter]) -> list[str]:
    """The settings whose values the trials' table has: some condition may never have held."""
    trials = ledger.trials
    return [parameter.key for parameter in parameters if parameter.key in trials]


def _show_cost(config: StudyConfig, parameters: Sequence[Parameter]) -> None:
    """Print what a study would train, and how long that would take here."""
    from imavae.cli.dry_run import cost_lines, points_table
    from imavae.report.tables import space_table
    from imavae.search.study import dry_run

    console = new_console()
    console.print(space_table(parameters))
    cost = dry_run(config)
    console.print(points_table(cost))
    for line in cost_lines(config, cost):
        console.print(line, highlight=False)


def _conclude(config: StudyConfig, ledger: Ledger, keys: list[str], start: float, points: int) -> None:
    """Crown the champion of a study that has come to its end, draw its figures, write its report, and pass all of it
    on to the tracker.

    ``start`` is when it began, in seconds of the monotonic clock; ``points`` is how many points it has.
    """
    from imavae.report.drawing import write
    from imavae.report.figures import study_figures
    from imavae.report.insight import insight_of
    from imavae.report.insight_drawn import drawn
    from imavae.report.summary import choices, chosen_numbers, selection_metrics

    ledger.crown()
    folder = ledger.folder / "figures"
    members, trials = ledger.members, ledger.trials
    figures = study_figures(members, trials, keys, ledger.objective, folder)
    found = insight_of(ledger, config)
    if found is not None:
        figures += write(drawn(found), folder)
    if isinstance(config.data, SpritesData):
        figures += _champions_images(ledger.folder, config.output_dir)
    chosen = choices(members, trials, keys)
    metrics = chosen_numbers(_winner(ledger)) | selection_metrics(chosen)
    ending = dataclasses.replace(_ending(ledger, start, points), figures=figures, insight=found)
    report = _report_study(ledger, config, ending)
    metrics |= {"seconds": ending.seconds, "seconds/training": ledger.work_seconds}
    finish(ledger, [*figures, *_kept(ledger.folder, metrics, chosen), report], metrics)


def _ending(ledger: Ledger, start: float, points: int = 1) -> Ending:
    """What is known of a command that ends, but for its figures; it began at ``start`` of the monotonic clock."""
    from imavae.report.report import Ending

    again = [word for word in sys.orig_argv if not word.startswith("resume=")]
    return Ending(again, _words_to_go_on(ledger.folder.name), time.monotonic() - start, points)


def _report_study(ledger: Ledger, config: StudyConfig, ending: Ending) -> Path:
    from imavae.report.report import study_report

    return _write_report(ledger, study_report(ledger, config, ending))


def _write_report(ledger: Ledger, page: str) -> Path:
    from imavae.data.storage import write_text

    path = ledger.folder / REPORT
    write_text(path, page)
    return path


def _winner(ledger: Ledger) -> pd.DataFrame:
    members = ledger.members
    return members[members["trial"] == ledger.ranked()[0].number]


def _words_to_go_on(name: str) -> list[str]:
    """The command that resumes: this one, with the folder's name."""
    words = [word for word in sys.orig_argv if not word.startswith(("resume=", "name="))]
    return [*words, "resume=true", f"name={name}"]


def _say_how_to_go_on(console: Console, interrupted: Interrupted) -> None:
    """Print the command that resumes, if anything has begun."""
    if interrupted.folder is None:
        return
    words = _words_to_go_on(interrupted.folder)
    console.print(f"go on     {shlex.join(words)}", soft_wrap=True, markup=False, highlight=False)


def evaluate(config: EvaluateConfig) -> None:
    """Print every metric of a stored model or ensemble on one split, and why others are absent."""
    from imavae.report.tables import metric_table
    from imavae.runs.models import evaluate_checkpoint

    console = new_console()
    with RenderingBar(console) as images:
        values, reasons = evaluate_checkpoint(config, images.rendered)
    console.print(metric_table(values, config.checkpoint))
    for reason in dict.fromkeys(reasons.values()):
        names = ", ".join(name for name in reasons if reasons[name] == reason)
        console.print(f"no {names}: {reason}", highlight=False)


def encode(config: EncodeConfig) -> None:
    """Write a file's latents under a progress bar, and say where they are."""
    from imavae.runs.encode import encode_file

    console = new_console()
    start = time.monotonic()
    with Bar(console, TextColumn("{task.completed:,.0f} rows"), BarColumn()) as bar:
        done = encode_file(config, bar.update)
    console.print(
        f"{done.rows:,} rows in {clock(time.monotonic() - start)}, mean reconstruction error {done.error:.4g}; "
        f"columns {', '.join(done.columns)}",
        highlight=False,
    )
    console.print(f"latents   {Path(config.out).resolve()}", soft_wrap=True, markup=False, highlight=False)


def _champions_images(folder: Path, output_dir: str) -> list[Path]:
    import torch

    from imavae.metrics.figure_data import image_panels
    from imavae.report.image_panels import image_figures
    from imavae.runs.models import model_session
    from imavae.runs.session import cache_of

    session, flat = model_session(folder / "champion.pt", cache_of(output_dir))
    panels = image_panels(session.ensemble, flat, torch.arange(1), session.data.val, 0)
    return image_figures(panels, ["champion"], 0, folder / "figures")


def _kept(folder: Path, metrics: dict[str, float], chosen: pd.DataFrame) -> list[Path]:
    """Write what a study's run is tracked with into its folder, too; return the table of choices, if there is one."""
    from imavae.data.storage import write_text

    write_text(folder / SUMMARY, json.dumps(metrics, indent=1))
    if not len(chosen):
        return []
    write_text(folder / SELECTION, chosen.to_csv(index=False))
    return [folder / SELECTION]


def finish(ledger: Ledger, figures: list[Path], metrics: dict[str, float] | None = None) -> None:
    """Close a run's or study's tracked run, with its tables and figures, and its folder."""
    tables = [ledger.folder / name for name in ("members.csv", "history.csv")]
    status: Literal["finished", "stopped"] = "stopped" if ledger.interrupted else "finished"
    ledger.tracker.finish(status, metrics or {}, [*tables, *figures])
    ledger.close(finished=ledger.interrupted is None)


def _addresses(console: Console, ledger: Ledger, config: RunConfig) -> None:
    """Where the results are, one line each, never wrapped: they are meant to be copied."""
    lines = [f"results   {ledger.folder}"]
    if (ledger.folder / "figures").exists():
        lines.append(f"figures   {ledger.folder / 'figures'}")
    if (ledger.folder / REPORT).exists():
        lines.append(f"report    {ledger.folder / REPORT}")
    if ledger.champion:
        lines.append(f'champion  import imavae; model = imavae.load_model("{ledger.champion}")')
    if config.tracking.name == "mlflow":
        lines.append("browse    make ui")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
