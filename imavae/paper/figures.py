"""The figures that can be reproduced, by name."""

from __future__ import annotations

from imavae.errors import require_choice
from imavae.paper import gamma, gap, likelihood, mixings, sprites
from imavae.paper.figure import Entry

FIGURES: dict[str, Entry] = {
    entry.name: entry
    for entry in (*gamma.ENTRIES, *likelihood.ENTRIES, *gap.ENTRIES, *mixings.ENTRIES, *sprites.ENTRIES)
}


def entry(name: str) -> Entry:
    """The figure of this name. Raises UserError where there is none."""
    require_choice(name, FIGURES, "figure")
    return FIGURES[name]
