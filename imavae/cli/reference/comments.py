"""What a setting means: the comment beside it in ``conf/``, which is the one place that says it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

LINE = re.compile(r"^((?:  )*)(\w+):.*?(?: # (.*))?$")
PARENT = re.compile(r"^  - (\w+)$")  # of the defaults: a primary file that another one builds on


def summary(path: Path) -> str:
    """What a file is, in the words of its first line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if not line.startswith("# @package")).removeprefix("# ")


def beside(path: Path) -> Iterator[tuple[str, str]]:
    """Dotted keys of a file with the comments beside them."""
    parents: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := LINE.match(line):
            indent, key, comment = match.groups()
            parents[len(indent) // 2 :] = [key]
            if comment:
                yield ".".join(parents), comment


def primary(conf: Path, name: str) -> list[Path]:
    """A command's own file, after those that it builds on."""
    path = conf / f"{name}.yaml"
    above = [match[1] for line in path.read_text(encoding="utf-8").splitlines() if (match := PARENT.match(line))]
    return [file for parent in above if parent != "_self_" for file in primary(conf, parent)] + [path]


def prefix_of(group: str, path: Path) -> str:
    """Where the settings of a group's option stand in the tree."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    package = first.removeprefix("# @package ") if first.startswith("# @package ") else group.replace("/", ".")
    return "" if package == "_global_" else f"{package}."


def meanings(conf: Path, command: str, choices: Mapping[str, str | None]) -> dict[str, str]:
    """What each setting of a command means where these options are chosen; a group is what its option is."""
    found = {key: comment for path in primary(conf, command) for key, comment in beside(path)}
    for group, option in choices.items():
        path = conf / group / f"{option}.yaml"
        if option is None or not path.exists() or group == "experiment":  # deltas, which mean what they change
            continue
        found |= {prefix_of(group, path) + key: comment for key, comment in beside(path)}
        found[group.replace("/", ".")] = summary(path)
    return found
