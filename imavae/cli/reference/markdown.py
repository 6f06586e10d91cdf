"""Markdown as GitHub shows it: cells, code and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def cell(text: str) -> str:
    """A text inside a table, where a bar would begin a new cell."""
    return text.replace("|", r"\|").replace("\n", " ")


def code(text: str) -> str:
    """Words that stand in code."""
    return f"`{text}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table and an empty one after it; none if there is no row."""
    lines = ["| " + " | ".join(cell(text) for text in row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines, ""] if lines else []


def listed(words: Sequence[str], last: str = "or") -> str:
    """``a, b or c``."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
