"""What a dry run shows: the space, the first points, and what the study will cost on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from imavae.cli.display import clock, compact, point_text
from imavae.config.settings import StudyConfig

if TYPE_CHECKING:
    from imavae.search.dry_run import Cost
    from imavae.search.space import Parameter

FIRST = 10  # points that are shown


def space_table(parameters: Sequence[Parameter]) -> Table:
    """A row per searched setting."""
    table = Table(title="Space", title_justify="left", box=SIMPLE_HEAD)
    for column in ("setting", "type", "values", "only when"):
        table.add_column(column, overflow="fold")
    for parameter in parameters:
        if parameter.type == "choice":
            values = ", ".join(compact(value) for value in parameter.values)
        else:
            low, high = parameter.ends
            values = f"{compact(low)} to {compact(high)}" + (", by magnitude" if parameter.log else "")
        conditions = ", ".join(map(str, parameter.when))
        table.add_row(parameter.key, parameter.type, escape(values), escape(conditions))
    return table


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
