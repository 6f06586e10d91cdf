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
    """What is counted, what was timed, and what follows."""
    each = sorted({steps for _, steps in cost.steps})
    steps = f"{each[0]:,}" if len(each) == 1 else f"{each[0]:,} to {each[-1]:,}"
    members = config.members.count
    yield (
        f"{len(cost.points)} trials x {members} members x {steps} steps: {cost.member_steps:,} member-steps "
        f"in {len(cost.packs)} ensembles, {cost.slots} at a time"
    )
    for size, times in cost.timed:
        yield (
            f"timed: {size.members} members of {size.weights // size.members:,} weights, "
            f"{1e3 * times.step:.2f} ms a step ({size.members / times.step:,.0f} member-steps/s), "
            f"{times.validation:.2f} s a validation"
        )
    if cost.bound:
        yield f"at most {clock(cost.seconds)} on this machine: members or points may stop early"
    else:
        yield f"about {clock(cost.seconds)} on this machine"
