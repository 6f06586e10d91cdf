"""Progress of runs, studies and files: what an observer receives, and its display on a terminal or in a pipe.

The display holds in 80 columns. No information is in colour alone, so ``NO_COLOR`` and a pipe lose nothing. This module
imports neither Matplotlib nor pandas nor torch: the display must appear before the slow imports begin.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imavae.report.text import MISSING, clock, point_text

if TYPE_CHECKING:
    from imavae.search.trials import Snapshot

PLAIN_WIDTH = 80  # columns of a plain line, whatever the reader's window
PLAIN_INTERVAL = 1.0  # seconds between two plain lines, at least


class Observer:
    """Receives the progress of a run or study, and ignores it. A context manager; override what you need."""

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the observation."""

    def rendered(self, done: int, images: int) -> None:
        """Receive the number of images that have been rendered, before training starts."""

    def epoch(self, epoch: int, max_epochs: int, active: int, members: int) -> None:
        """Receive the epoch that a run has finished, and how many of its members are still training."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """Receive the progress of a study, about once a second."""

    def notice(self, text: str) -> None:
        """Receive a notice, such as about damage found on resuming."""


def new_console() -> Console:
    """Return the console of standard output. Under ``NO_COLOR`` nothing is styled, not even bold."""
    return Console(color_system=None) if os.environ.get("NO_COLOR") else Console()


class Display(Observer):
    """Shows progress on a console.

    On a terminal, a bar or a study's panel is redrawn in place and its last state stays. In a pipe, a bar is printed
    once, at its end; of a study, a line is printed when a trial has finished or the best score has changed, at most one
    a second by the snapshots' own clock.

    Nothing is shown before the first update, so that a mistake found earlier is all that is printed.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``; by default to standard output."""
        self._console = console or new_console()

    def __enter__(self) -> Display:
        in_place = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, refresh_per_second=4) if in_place else None
        self._bar: Progress | None = None
        self._latest: Snapshot | None = None
        self._printed_at = -math.inf
        self._printed_finished = 0
        self._printed_best = ""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()
        if self._live and self._latest:
            self._live.stop()
        elif self._latest:
            for line in self._news(self._latest):
                self.notice(line)

    def rendered(self, done: int, images: int) -> None:
        """Show the images as a bar, which ends with the last of them."""
        self.progress(f"rendered {done:,}/{images:,} images", done, images)
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
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=text, label=label)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Show the study in place of its last snapshot."""
        first, self._latest = self._latest is None, snapshot
        if self._live:
            if first:
                self._live.start()
            self._live.update(_panel(snapshot))
        elif snapshot.seconds - self._printed_at >= PLAIN_INTERVAL:
            for line in self._news(snapshot):
                self._printed_at = snapshot.seconds
                self.notice(line)
                break  # the rest is still news a second later

    def notice(self, text: str) -> None:
        """Print a line, above the panel."""
        wrapped = textwrap.fill(text, PLAIN_WIDTH, subsequent_indent=" " * 5, break_on_hyphens=False)
        self._console.print(wrapped, markup=False, highlight=False, soft_wrap=True)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _news(self, snapshot: Snapshot) -> Iterable[str]:
        """Lines that have not been printed yet; each counts as printed once it was taken."""
        if snapshot.finished != self._printed_finished:
            self._printed_finished = snapshot.finished
            yield _progress_line(snapshot)
        best = _best_text(snapshot)
        if snapshot.best_score is not None and best != self._printed_best:
            self._printed_best = best
            yield f"{clock(snapshot.seconds)} best {snapshot.metric} {best}"


def _left(snapshot: Snapshot) -> str:
    return "time left unknown" if snapshot.seconds_left is None else f"{clock(snapshot.seconds_left)} left"


def _best_text(snapshot: Snapshot) -> str:
    if snapshot.best_score is None:
        return MISSING
    point = point_text(snapshot.best_point or {})
    return f"{snapshot.best_score:.3f}" + (f" at {point}" if point else "")


def _progress_line(snapshot: Snapshot) -> str:
    speed = snapshot.member_steps_per_s
    steps = f"{speed / 1000:.0f}k" if speed >= 10_000 else f"{speed:.0f}"
    return (
        f"{clock(snapshot.seconds)} {snapshot.finished}/{snapshot.trials_total} trials, {snapshot.running} running, "
        f"{snapshot.members_stopped} early stops, {steps} member-steps/s, {_left(snapshot)}"
    )


def _panel(snapshot: Snapshot) -> RenderableType:
    """A bar and, under it, the numbers: four lines, and more for a long best point."""
    waiting = max(0, snapshot.trials_total - snapshot.finished - snapshot.running)
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        Text("trials", style="bold"),
        ProgressBar(total=max(1, snapshot.trials_total), completed=snapshot.finished, width=28),
        Text(f"{snapshot.finished}/{snapshot.trials_total}", style="bold"),
        Text(f"{clock(snapshot.seconds)} so far, {_left(snapshot)}"),
    )
    trials = f"{snapshot.finished} finished, {snapshot.running} running, {waiting} left"
    stopped = f"{snapshot.members_stopped} members stopped early"
    best = f"best {snapshot.metric} {_best_text(snapshot)}" if snapshot.best_score is not None else "no score yet"
    speed = f"{snapshot.member_steps_per_s:,.0f} member-steps/s"
    return Group(bar, Text(f"{trials}; {stopped}"), Text(speed), Text(best, style="bold"))
