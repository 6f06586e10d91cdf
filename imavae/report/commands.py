"""What a person sees of each command: progress while it works, tables and addresses at its end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from imavae.config import EvaluateConfig, RunConfig, StudyConfig
from imavae.config_encode import EncodeConfig
from imavae.families import SpritesMixing
from imavae.report.display import Display, RenderingBar, clock

SUMMARY = "summary.json"  # in a study's folder: what its run was tracked with
SELECTION = "selection.csv"  # there, too: what each criterion would choose

if TYPE_CHECKING:
    import pandas as pd

    from imavae.run import Outcome, Session
    from imavae.training.loop import Progress as Epoch


def train(config: RunConfig) -> None:
    """Train one point's members, print a row for each and the aggregate, and say where everything is."""
    from imavae.report.figures import solo_figures
    from imavae.report.gallery import image_figures
    from imavae.report.portrait import run_figures
    from imavae.report.tables import member_table
    from imavae.run import best_place, run_point

    console = Console()
    columns = (TextColumn("epoch {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console)
    task = bar.add_task("", total=config.training.max_epochs)

    def notify(session: Session, epoch: Epoch) -> None:
        bar.start()  # not before: a mistake that is found on the way must be all that is printed
        bar.update(task, completed=epoch.epoch, description=f"{epoch.active} of {len(session.ensemble)} training")

    try:
        with RenderingBar(console) as images:
            outcome, session = run_point(config, notify, images.update)
    finally:
        bar.stop()
    figures = []
    if outcome.records[0].history:
        folder, history = outcome.folder / "figures", outcome.history
        names, portrait = session.portrait()
        factors = [factor.name for factor in config.data.factors]
        figures = solo_figures(history, folder) + run_figures(portrait, names, factors, history, folder)
        if session.data.val.images is not None:
            best = best_place(outcome.records[0])
            figures += image_figures(session.gallery(best), names, best, folder)
    _finish(outcome, figures)
    console.print(member_table(outcome.members))
    _addresses(console, outcome, config)


def tune(config: StudyConfig) -> None:
    """Run a study under a live display; print its best trials, the winner's three numbers, and where everything is.

    Raises:
        UserError: a mistake in the configuration, or no trial has a result.
        KeyboardInterrupt: the study was interrupted; what had finished is reported first.
    """
    from imavae.search.study import check, run_study

    parameters, _ = check(config)
    console = Console()
    start = time.monotonic()
    with Display(console) as display:
        outcome = run_study(config, display.update, display.rendered)
    from imavae.report.figures import study_figures
    from imavae.report.selection import choices, selection_metrics, selection_table
    from imavae.report.tables import best_trials, chosen_numbers, chosen_table

    outcome.crown()
    keys = [parameter.key for parameter in parameters]
    members, trials = outcome.members, outcome.trials
    figures = study_figures(members, trials, keys, config.objective, outcome.folder / "figures")
    winner = members[members["trial"] == outcome.ranked()[0].number]
    if isinstance(config.data.mixing, SpritesMixing):
        figures += _champions_images(outcome.folder, config.output_dir)
    chosen = choices(members, trials, keys)
    seconds = time.monotonic() - start
    metrics = chosen_numbers(winner) | selection_metrics(chosen)
    metrics |= {"seconds": seconds, "seconds/training": outcome.work_seconds}
    _finish(outcome, figures + _kept(outcome.folder, metrics, chosen), metrics)
    console.print(best_trials(members, trials, keys, config.objective.mode))
    console.print(chosen_table(winner))
    if len(chosen):
        console.print(selection_table(chosen))
    _addresses(console, outcome, config)
    work = clock(outcome.work_seconds)
    console.print(f"took {clock(seconds)}, of which {work} in training and validation", highlight=False)
    if outcome.interrupted:
        raise KeyboardInterrupt


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
    from imavae.encode import encode_file

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
    from imavae.run import write_text

    write_text(folder / SUMMARY, json.dumps(metrics, indent=1))
    if not len(chosen):
        return []
    write_text(folder / SELECTION, chosen.to_csv(index=False))
    return [folder / SELECTION]


def _finish(outcome: Outcome, figures: list[Path], metrics: dict[str, float] | None = None) -> None:
    tables = [outcome.folder / name for name in ("members.csv", "history.csv")]
    status: Literal["finished", "stopped"] = "stopped" if outcome.interrupted else "finished"
    outcome.tracker.finish(status, metrics or {}, [*tables, *figures])


def _addresses(console: Console, outcome: Outcome, config: RunConfig) -> None:
    """Where the results are, one line each, never wrapped: they are meant to be copied."""
    lines = [f"results   {outcome.folder}", f"figures   {outcome.folder / 'figures'}"]
    if outcome.champion:
        lines.append(f'champion  import imavae; model = imavae.load_model("{outcome.champion}")')
    if config.tracking.name == "mlflow":
        lines.append("browse    make ui")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
