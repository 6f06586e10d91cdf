"""The one live display of a study: a redrawn panel on a terminal, sparse plain lines anywhere else.

Both hold in 80 columns. Nothing is told by colour alone, so that ``NO_COLOR`` and a pipe lose nothing. This module
imports neither Matplotlib nor pandas: the display must stand before the slow imports begin.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imavae.report.text import MISSING, clock, point_text
from imavae.search.progress import Snapshot

PLAIN_WIDTH = 80  # columns of a plain line, whatever the reader's window
PLAIN_INTERVAL = 1.0  # seconds between two plain lines, at the least


def new_console() -> Console:
    """Standard output. Under ``NO_COLOR`` nothing has a style, not even a bold one; what is redrawn still moves."""
    return Console(color_system=None) if os.environ.get("NO_COLOR") else Console()


class Display:
    """Shows the snapshots of a study while it runs; a context manager.

    On a terminal the panel is redrawn in place and its last state stays. Elsewhere a line is printed when a trial has
    finished or the best score has changed, at most one a second by the snapshots' own clock; what was held back is said
    on leaving.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``; by default to standard output."""
        self._console = console or new_console()
        in_place = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, refresh_per_second=4) if in_place else None
        self._latest: Snapshot | None = None
        self._said_at = -math.inf
        self._said_finished = 0
        self._said_best = ""

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        elif self._latest:
            for line in self._news(self._latest):
                self.say(line)

    def update(self, snapshot: Snapshot) -> None:
        """Show this snapshot in place of the last one."""
        self._latest = snapshot
        if self._live:
            self._live.update(_panel(snapshot))
        elif snapshot.seconds - self._said_at >= PLAIN_INTERVAL:
            for line in self._news(snapshot):
                self._said_at = snapshot.seconds
                self.say(line)
                break  # the rest is still news a second later

    def rendered(self, done: int, images: int) -> None:
        """Show how many images have been rendered, before the first trial starts."""
        if self._live:
            bar = Table.grid(padding=(0, 1))
            bar.add_row(Text(_rendered(done, images)), ProgressBar(total=images, completed=done, width=28))
            self._live.update(bar)
        elif done == images:
            self.say(_rendered(done, images))

    def _news(self, snapshot: Snapshot) -> Iterable[str]:
        """Lines that have not been said yet; each counts as said once it was taken."""
        if snapshot.finished != self._said_finished:
            self._said_finished = snapshot.finished
            yield _progress_line(snapshot)
        best = _best_text(snapshot)
        if snapshot.best_score is not None and best != self._said_best:
            self._said_best = best
            yield f"{clock(snapshot.seconds)} best {snapshot.metric} {best}"

    def say(self, line: str) -> None:
        """Print a line of its own, above the panel."""
        wrapped = textwrap.fill(line, PLAIN_WIDTH, subsequent_indent=" " * 5, break_on_hyphens=False)
        self._console.print(wrapped, markup=False, highlight=False, soft_wrap=True)


class Bar:
    """A progress bar that stands from its first update on: a mistake found before it is all that is printed.

    A context manager; in a pipe its last state is printed, once.
    """

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        """Write to ``console`` the columns and the time that is left."""
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def update(self, done: int, total: int | None, text: str = "") -> None:
        """Show how much is done, of how much if that is known, and a text."""
        self._bar.start()
        self._bar.update(self._task, completed=done, total=total, description=text)

    def stop(self) -> None:
        """Leave it as it is."""
        if self._bar.live.is_started:  # else Rich would print an empty line
            self._bar.stop()


class RenderingBar(Bar):
    """A progress bar of images that are rendered; nothing where the cache has them. A context manager."""

    def __init__(self, console: Console) -> None:
        """Write to ``console``."""
        super().__init__(console, TextColumn("{task.description}"), BarColumn())

    def __enter__(self) -> RenderingBar:
        return self

    def rendered(self, done: int, images: int) -> None:
        """Show how many have been rendered; the bar is closed with the last of them."""
        self.update(done, images, _rendered(done, images))
        if done == images:
            self.stop()


def _rendered(done: int, images: int) -> str:
    return f"rendered {done:,}/{images:,} images"


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
    """The bar and, under it, the numbers: four lines and as many more as a long best point needs."""
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
