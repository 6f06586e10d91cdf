"""What a person sees of each command: progress while it works, tables and addresses at its end."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from imavae.config import EvaluateConfig, RunConfig, StudyConfig
from imavae.config_encode import EncodeConfig
from imavae.errors import Interrupted
from imavae.families import SpritesMixing
from imavae.report.display import Display, RenderingBar, clock

SUMMARY = "summary.json"  # in a study's folder: what its run was tracked with
SELECTION = "selection.csv"  # there, too: what each criterion would choose

if TYPE_CHECKING:
    import pandas as pd

    from imavae.outcome import Outcome
    from imavae.run import Session
    from imavae.search.space import Parameter
    from imavae.training.loop import Progress as Epoch


def train(config: RunConfig) -> None:
    """Train one point's members, print a row for each and the aggregate, and say where everything is."""
    from imavae.outcome import best_place
    from imavae.report.figures import solo_figures
    from imavae.report.gallery import image_figures
    from imavae.report.portrait import run_figures
    from imavae.report.tables import member_table

    console = Console()
    try:
        outcome, session = run(config, console)
    except Interrupted:
        _say_how_to_go_on(console, config.name)
        raise
    figures = []
    folder, history = outcome.folder / "figures", outcome.history
    if len(history):
        names, portrait = session.portrait()
        factors = [factor.name for factor in config.data.factors]
        figures = solo_figures(history, folder) + run_figures(portrait, names, factors, history, folder)
        if session.data.val.images is not None:
            best = best_place(outcome.records[0])
            figures += image_figures(session.gallery(best), names, best, folder)
    finish(outcome, figures)
    console.print(member_table(outcome.members))
    _addresses(console, outcome, config)


def run(config: RunConfig, console: Console) -> tuple[Outcome, Session]:
    """Train one point's members under a progress bar. Raises as :func:`imavae.run.run_point` does."""
    from imavae.run import run_point

    columns = (TextColumn("epoch {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console)
    task = bar.add_task("", total=config.training.max_epochs)

    def notify(session: Session, epoch: Epoch) -> None:
        bar.start()  # not before: a mistake that is found on the way must be all that is printed
        bar.update(task, completed=epoch.epoch, description=f"{epoch.active} of {len(session.ensemble)} training")

    try:
        with RenderingBar(console) as images:
            return run_point(config, notify, images.update)
    finally:
        bar.stop()


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
    console = Console()
    start = time.monotonic()
    outcome = study(config, console)
    trials, keys = outcome.trials, _searched(outcome, parameters)
    if outcome.ranked():
        from imavae.report.selection import choices, selection_table
        from imavae.report.tables import best_trials, chosen_table, front_table

        console.print(best_trials(outcome.members, trials, keys, config.objective.mode))
        if config.further_objectives:
            console.print(front_table(outcome.front(config.objectives), config.objectives, keys))
        console.print(chosen_table(_winner(outcome)))
        chosen = choices(outcome.members, trials, keys)
        if len(chosen):
            console.print(selection_table(chosen))
    _addresses(console, outcome, config)
    work = clock(outcome.work_seconds)
    console.print(
        f"took {clock(time.monotonic() - start)}, of which {work} in training and validation", highlight=False
    )
    if outcome.interrupted is not None:
        _say_how_to_go_on(console, outcome.folder.name)
        raise outcome.interrupted


def study(config: StudyConfig, console: Console) -> Outcome:
    """Run a study under a live display, crown its champion, draw its figures, and close its folder and tracked run.

    Raises:
        UserError: a mistake in the configuration, or no trial has a result.
    """
    from imavae.search.space import parse
    from imavae.search.study import run_study

    start = time.monotonic()
    with Display(console) as display:
        outcome = run_study(config, display.update, display.say, display.rendered)
    try:
        if outcome.interrupted is None:
            _conclude(config, outcome, _searched(outcome, parse(config)), start)
        else:
            finish(outcome, [])
    except Interrupted as error:
        outcome.interrupted = error
    return outcome


def _searched(outcome: Outcome, parameters: Sequence[Parameter]) -> list[str]:
    """The settings whose values the trials' table has: some condition may never have held."""
    trials = outcome.trials
    return [parameter.key for parameter in parameters if parameter.key in trials]


def _show_cost(config: StudyConfig, parameters: Sequence[Parameter]) -> None:
    """Print what a study would train, and how long that would take here."""
    from imavae.report.cost import cost_lines, points_table, space_table
    from imavae.search.study import dry_run

    console = Console()
    console.print(space_table(parameters))
    cost = dry_run(config)
    console.print(points_table(cost))
    for line in cost_lines(config, cost):
        console.print(line, highlight=False)


def _conclude(config: StudyConfig, outcome: Outcome, keys: list[str], start: float) -> None:
    """Crown the champion of a study that has come to its end, draw its figures, and pass all of it on to the tracker.

    ``start`` is when it began, in seconds of the monotonic clock.
    """
    from imavae.report.figures import study_figures
    from imavae.report.selection import choices, selection_metrics
    from imavae.report.tables import chosen_numbers
    from imavae.run import crown

    crown(outcome)
    folder = outcome.folder / "figures"
    members, trials = outcome.members, outcome.trials
    figures = study_figures(members, trials, keys, outcome.objective, folder)
    figures += insights(outcome, config)
    if isinstance(config.data.mixing, SpritesMixing):
        figures += _champions_images(outcome.folder, config.output_dir)
    chosen = choices(members, trials, keys)
    metrics = chosen_numbers(_winner(outcome)) | selection_metrics(chosen)
    metrics |= {"seconds": time.monotonic() - start, "seconds/training": outcome.work_seconds}
    finish(outcome, figures + _kept(outcome.folder, metrics, chosen), metrics)


def insights(outcome: Outcome, config: StudyConfig) -> list[Path]:
    """Draw what the trials say together, if they are enough for that: as figures, and as a page to explore."""
    from imavae.files import write_text
    from imavae.report.drawing import write
    from imavae.report.insight import COST, ENOUGH_TRIALS, Goal, insight, member_steps
    from imavae.report.insight_drawn import drawn
    from imavae.report.insight_page import page
    from imavae.search.space import parse

    columns = ["score", *(objective.metric for objective in config.further_objectives)]
    goals = [Goal(c, f"{o.aggregate} {o.metric}", o.mode) for c, o in zip(columns, config.objectives, strict=True)]
    trials, costs = outcome.trials, member_steps(outcome.records, config)
    found = insight(trials.assign(**{COST: trials["trial"].map(costs)}), parse(config), goals)
    if len(found.trials) < ENOUGH_TRIALS:
        return []
    folder = outcome.folder / "figures"
    figures = write(drawn(found), folder)
    write_text(folder / "insight.html", page(found, outcome.folder.name))
    return [*figures, folder / "insight.html"]


def _winner(outcome: Outcome) -> pd.DataFrame:
    members = outcome.members
    return members[members["trial"] == outcome.ranked()[0].number]


def _say_how_to_go_on(console: Console, name: str | None) -> None:
    """Print the command that resumes: this one, with the folder's name."""
    words = [word for word in sys.orig_argv if not word.startswith(("resume=", "name="))]
    words += ["resume=true"] if name is None else ["resume=true", f"name={name}"]
    console.print(f"go on     {shlex.join(words)}", soft_wrap=True, markup=False, highlight=False)


def evaluate(config: EvaluateConfig) -> None:
    """Print every metric of a stored model or ensemble on one split, and why others are absent."""
    from imavae.report.tables import metric_table
    from imavae.run import evaluate_checkpoint

    console = Console()
    with RenderingBar(console) as images:
        values, reasons = evaluate_checkpoint(config, images.update)
    console.print(metric_table(values, config.checkpoint))
    for reason in dict.fromkeys(reasons.values()):
        names = ", ".join(name for name in reasons if reasons[name] == reason)
        console.print(f"no {names}: {reason}", highlight=False)


def encode(config: EncodeConfig) -> None:
    """Write a file's latents under a progress bar, and say where they are."""
    from imavae.encoding import encode_file

    console = Console()
    columns = (TextColumn("{task.completed:,.0f} rows"), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console)
    task = bar.add_task("", total=None)

    def notify(rows: int, total: int | None) -> None:
        bar.start()  # not before: a mistake that is found on the way must be all that is printed
        bar.update(task, completed=rows, total=total)

    start = time.monotonic()
    try:
        done = encode_file(config, notify)
    finally:
        bar.stop()
    console.print(
        f"{done.rows:,} rows in {clock(time.monotonic() - start)}, mean reconstruction error {done.error:.4g}; "
        f"columns {', '.join(done.columns)}",
        highlight=False,
    )
    console.print(f"latents   {Path(config.out).resolve()}", soft_wrap=True, markup=False, highlight=False)


def _champions_images(folder: Path, output_dir: str) -> list[Path]:
    from imavae.report.gallery import image_figures
    from imavae.run import cache_of, model_session

    session, flat = model_session(folder / "champion.pt", cache_of(output_dir))
    return image_figures(session.gallery(0, flat), ["champion"], 0, folder / "figures")


def _kept(folder: Path, metrics: dict[str, float], chosen: pd.DataFrame) -> list[Path]:
    """Write what a study's run is tracked with into its folder, too; return the table of choices, if there is one."""
    from imavae.files import write_text

    write_text(folder / SUMMARY, json.dumps(metrics, indent=1))
    if not len(chosen):
        return []
    write_text(folder / SELECTION, chosen.to_csv(index=False))
    return [folder / SELECTION]


def finish(outcome: Outcome, figures: list[Path], metrics: dict[str, float] | None = None) -> None:
    """Close a run's or study's tracked run, with its tables and figures, and its folder."""
    tables = [outcome.folder / name for name in ("members.csv", "history.csv")]
    status: Literal["finished", "stopped"] = "stopped" if outcome.interrupted else "finished"
    outcome.tracker.finish(status, metrics or {}, [*tables, *figures])
    outcome.close(finished=outcome.interrupted is None)


def _addresses(console: Console, outcome: Outcome, config: RunConfig) -> None:
    """Where the results are, one line each, never wrapped: they are meant to be copied."""
    lines = [f"results   {outcome.folder}"]
    if (outcome.folder / "figures").exists():
        lines.append(f"figures   {outcome.folder / 'figures'}")
    if outcome.champion:
        lines.append(f'champion  import imavae; model = imavae.load_model("{outcome.champion}")')
    if config.tracking.name == "mlflow":
        lines.append("browse    make ui")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
