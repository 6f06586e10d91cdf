"""What ``--help`` says of a command's groups and settings: their options and values, each with its meaning."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

COLUMN = 34  # where meanings begin
POINTER = "docs/config.md has their types and rules, and what a search space is; docs/metrics.md has the metrics."


def prose_lines(text: str, width: int) -> Iterator[str]:
    """A text whose sentences keep to the width; commands, which are indented, stay as they are."""
    for line in text.splitlines():
        yield from [line] if line.startswith(" ") else textwrap.wrap(line, width) or [""]


def group_lines(groups: Mapping[str, tuple[str | None, Sequence[str]]], width: int) -> Iterator[str]:
    """A line, or several, for each group: its options, the chosen one with a star."""
    for group, (chosen, names) in groups.items():
        options = ", ".join("*" * (name == chosen) + name for name in names)
        yield from textwrap.wrap(
            options, width, initial_indent=f"  {group:<16}", subsequent_indent=" " * 18, break_on_hyphens=False
        )


def setting_lines(settings: Mapping[str, Any], known: Mapping[str, str], width: int) -> Iterator[str]:
    """A line, or several, for each setting, nested as they are: its value and, beside it, its meaning."""
    yield from _lines(settings, known, (), width)


def _lines(node: Mapping[str, Any], known: Mapping[str, str], path: tuple[str, ...], width: int) -> Iterator[str]:
    for key, value in node.items():
        inner = isinstance(value, Mapping) and len(value) > 0
        shown = "" if inner else value if isinstance(value, str) and value else json.dumps(value)
        line = f"{'  ' * (len(path) + 1)}{key}: {shown}".rstrip()
        yield from _beside(line, known.get(".".join([*path, key]), ""), width)
        if inner:
            yield from _lines(value, known, (*path, key), width)


def _beside(line: str, meaning: str, width: int) -> Iterator[str]:
    """A line with its meaning beside it, which goes on below where it is long."""
    parts = textwrap.wrap(meaning, max(width - COLUMN - 4, 20), break_long_words=False, break_on_hyphens=False)
    if not parts:
        yield line
    elif len(line) > COLUMN:
        yield line
        yield from (f"{'':<{COLUMN}} # {part}" for part in parts)
    else:
        yield f"{line:<{COLUMN}} # {parts[0]}"
        yield from (f"{'':<{COLUMN}} # {part}" for part in parts[1:])
