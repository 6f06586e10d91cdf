"""What a figure of the paper consists of here: its studies, how they are read and judged, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from imavae.paper.judge import Row
from imavae.paper.studies import Study


@dataclass(frozen=True)
class Entry:
    """One figure; ``rows`` and ``draw`` get its studies in the order of ``searches``."""

    name: str
    shows: str  # in one line, for the list
    searches: tuple[str, ...]  # files of search_spaces/
    minutes: int  # that they take on 2 cores, about
    rows: Callable[[Sequence[Study]], list[Row]]
    draw: Callable[[Sequence[Study]], Figure]
    differs: str  # what is different from the published figure, and why
