"""Text for a terminal: short forms of numbers, points and durations, and the live display of runs, studies and files.

The display holds in 80 columns. No information is in colour alone, so ``NO_COLOR`` and a pipe lose nothing. This module
imports neither Matplotlib nor pandas nor torch: the display must appear before the slow imports begin.
"""

from __future__ import annotations

import math
import os
import textwrap
import time
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from imavae.search.trials import Snapshot

MISSING = "–"  # stands for a missing number
PLAIN_WIDTH = 80  # columns of a plain line, whatever the width of the terminal
PLAIN_INTERVAL = 1.0  # seconds between updates in a pipe, at least
CELL_INTERVAL = 0.25  # seconds between updates in a notebook, at least


def compact(value: object, digits: int = 3) -> str:
    """Format a value briefly: a number to ``digits`` significant digits (``9.65e3``), a dash for a missing one."""
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return MISSING
    if isinstance(value, (bool, Integral)) or not isinstance(value, Real):
        return str(value)
    number = float(value)
    form = f".{digits - 1}e" if 0 < abs(number) < 1e-3 else f".{digits}g"
    mantissa, _, exponent = f"{number:{form}}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The shortest ending that distinguishes each dotted key from the others, never just ``name``."""
    keys = list(keys)
    names = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        alone = [e for e in endings if e != "name" and sum(f".{k}".endswith(f".{e}") for k in keys) == 1]
        names[key] = alone[0] if alone else key
    return names


def point_text(point: Mapping[str, object]) -> str:
    """Format a point as ``gamma=98.2 n_layers=3``, without missing values (of conditional parameters)."""
    names = short_names(point)
    texts = {names[key]: compact(value) for key, value in point.items()}
    return " ".join(f"{name}={text}" for name, text in texts.items() if text != MISSING)


def clock(seconds: float) -> str:
    """Format seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def new_console() -> Console:
    """Return the console of standard output. Under ``NO_COLOR`` nothing is styled, not even bold."""
    return Console(color_system=None) if os.environ.get("NO_COLOR") else Console()


class Observer:
    """Receives the progress of a run or study, and ignores it. A context manager; override what you need."""

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *error: object) -> None:
        """End the observation."""

    def rendered(self, done: int, images: int) -> None:
        """Receive the number of images that are in the cache, before training starts."""

    def epoch(self, epoch: int, max_epochs: int, active: int, members: int) -> None:
        """Receive the epoch that a run has finished, and how many of its members are still training."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """Receive the progress of a study, about once a second."""

    def notice(self, text: str) -> None:
        """Receive a notice: the phase of a study that begins, or damage that was found on resuming."""


class _Cell:
    """The output of a cell of a notebook, replaced in place as by ``Live``; without widgets, so that it is saved."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_at = -math.inf

    def start(self) -> None:
        """Do nothing: the first update shows it."""

    def update(self, shown: RenderableType) -> None:
        self._shown = Table.grid()
        self._shown.add_row(shown)
        if time.monotonic() - self._shown_at >= CELL_INTERVAL:
            self.stop()

    def stop(self) -> None:
        """Show the last update."""
        from IPython import display

        self._shown_at = time.monotonic()
        if self._handle is None:
            self._handle = cast("Any", display).display(self._shown, display_id=True)
        else:
            self._handle.update(self._shown)


class Display(Observer):
    """Shows progress on a console, by default that of standard output.

    On a terminal and in a notebook, a bar or a study's panel is redrawn in place and its last state stays. In a pipe, a
    bar is printed once, at its end; of a study, lines are printed when a trial has finished or the best score has
    changed, at most once a second by the snapshots' own clock.

    Nothing is shown before the first update, so that a mistake found earlier is all that is printed.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or new_console()

    def __enter__(self) -> Display:
        in_place = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live: Live | _Cell | None = Live(console=self._console, refresh_per_second=4) if in_place else None
        if self._console.is_jupyter:
            self._live = _Cell()
        self._bar: Progress | None = None
        self._latest: Snapshot | None = None
        self._printed_at = -math.inf
        self._printed = (0, MISSING)  # finished trials and best score
        return self

    def __exit__(self, *error: object) -> None:
        self._end_bar()
        if self._live and self._latest:
            self._live.stop()
        elif self._latest:
            self._print_news(self._latest)

    def rendered(self, done: int, images: int) -> None:
        """Show the images as a bar, which ends with the last of them."""
        self.progress(f"prepared {done:,}/{images:,} images", done, images)
        if done == images:
            self._end_bar()

    def epoch(self, epoch: int, max_epochs: int, active: int, members: int) -> None:
        """Show a run as a bar."""
        self.progress(f"epoch {epoch}/{max_epochs}", epoch, max_epochs, f"{active} of {members} training")

    def progress(self, label: str, done: int, total: int | None, text: str = "") -> None:
        """Show a bar with a label before it and a text behind it; ``total`` is None if unknown."""
        if self._bar is None:
            columns = TextColumn("{task.fields[label]}"), BarColumn(), TextColumn("{task.description}")
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console)
            self._bar.add_task(text, total=total, label=label)
            if not self._console.is_jupyter:
                self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=text, label=label)
        if isinstance(self._live, _Cell):
            self._live.update(self._bar.get_renderable())

    def snapshot(self, snapshot: Snapshot) -> None:
        """Show the study in place of its last snapshot."""
        self._latest = snapshot
        if self._live:
            self._live.start()  # does nothing if it has started
            self._live.update(_panel(snapshot))
        elif snapshot.seconds - self._printed_at >= PLAIN_INTERVAL:
            self._print_news(snapshot)

    def notice(self, text: str) -> None:
        """Print a line, above the panel."""
        wrapped = textwrap.fill(text, PLAIN_WIDTH, subsequent_indent=" " * 5, break_on_hyphens=False)
        self._console.print(wrapped, markup=False, highlight=False, soft_wrap=True)

    def _end_bar(self) -> None:
        if self._bar is not None:
            (self._live if isinstance(self._live, _Cell) else self._bar).stop()
            self._bar = None

    def _print_news(self, snapshot: Snapshot) -> None:
        """Print the number of finished trials and the best score, as far as they have changed."""
        news, at, steps = (snapshot.finished, _best(snapshot)), clock(snapshot.seconds), snapshot.member_steps_per_s
        if news[0] != self._printed[0]:
            self.notice(
                f"{at} {news[0]}/{snapshot.trials_total} trials, {len(snapshot.running)} running, "
                f"{snapshot.stopped} stopped early, {steps:,.0f} member-steps/s, {_left(snapshot)}"
            )
        if news[1] != self._printed[1]:
            self.notice(f"{at} best {snapshot.metric} {news[1]}")
        if news != self._printed:
            self._printed, self._printed_at = news, snapshot.seconds


def _left(snapshot: Snapshot) -> str:
    return "time left unknown" if snapshot.seconds_left is None else f"{clock(snapshot.seconds_left)} left"


def _best(snapshot: Snapshot) -> str:
    if snapshot.best_score is None:
        return MISSING
    point = point_text(snapshot.best_point or {})
    return f"{snapshot.best_score:.3f}" + (f" at {point}" if point else "")


def _panel(snapshot: Snapshot) -> RenderableType:
    """The running trials, a bar and, under it, the numbers."""
    trials = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head in ("trial", "epoch", "training", "score"):
        trials.add_column(head, justify="right", min_width=len(head))
    trials.add_column("point")
    for one in snapshot.running:
        active = f"{one.active}/{snapshot.members}"
        score = MISSING if one.score is None else f"{one.score:.3f}"
        trials.add_row(str(one.number), str(one.epoch), active, score, Text(point_text(one.point)))
    finished, total = snapshot.finished, snapshot.trials_total
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        Text("trials", style="bold"),
        ProgressBar(total=max(1, total), completed=finished, width=28),
        Text(f"{finished}/{total}", style="bold"),
        Text(f"{clock(snapshot.seconds)} so far, {_left(snapshot)}"),
    )
    running = len(snapshot.running)
    waiting = max(0, total - finished - running)
    counts = f"{finished} finished, {running} running, {waiting} left; {snapshot.stopped} stopped early"
    speed = f"{snapshot.member_steps_per_s:,.0f} member-steps/s"
    best = "no score yet" if snapshot.best_score is None else f"best {snapshot.metric} {_best(snapshot)}"
    shown = [trials] if snapshot.running else []
    return Group(*shown, bar, Text(counts), Text(speed), Text(best, style="bold"))
