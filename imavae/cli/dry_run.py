"""What a dry run shows: the space, the first points, and what the study will cost on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from imavae.config.settings import StudyConfig
from imavae.report.text import clock, point_text

if TYPE_CHECKING:
    from imavae.search.dry_run import Cost

FIRST = 10  # points that are shown


def points_table(cost: Cost) -> Table:
    """The first points, and the ensembles that they train in."""
    table = Table(title=f"First points of {len(cost.points)}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("trial", justify="right")
    table.add_column("ensemble", justify="right")
    table.add_column("point", overflow="fold")
    ensemble = {number: place for place, pack in enumerate(cost.packs) for number in pack}
    for number, point in enumerate(cost.points[:FIRST]):
        table.add_row(str(number), str(ensemble[number]), escape(point_text(point)))
    return table


def cost_lines(config: StudyConfig, cost: Cost) -> Iterator[str]:
    """The size of the study, the timed ensembles and the expected time."""
    yield (
        f"{len(cost.points)} trials x {config.members.count} members: {cost.member_steps:,} member-steps "
        f"in {len(cost.packs)} ensembles, {cost.slots} at a time"
    )
    for timing in cost.timed:
        yield (
            f"timed: {timing.members} members of {timing.weights // timing.members:,} weights, "
            f"{timing.epoch:.2f} s an epoch, {timing.validation:.2f} s a validation"
        )
    bound = "at most" if cost.stops_early else "about"
    reason = ", less if trials or members stop early" if cost.stops_early else ""
    yield (
        f"{bound} {clock(cost.seconds)} of training and validation on this machine{reason}; "
        "start-up, tracking and reports are not included"
    )
