"""Reference of all settings, made from the settings tree: ``--help``, docs/config.md and docs/metrics.md."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import yaml
from pydantic.fields import FieldInfo

from imavae.cli.compose import CONF, C, Command, compose, group_options, read_search, searches
from imavae.config.mapping import LIMITS, default_of, fields_of, flatten, nodes_of, registry_of, shown
from imavae.config.settings import EncodeConfig, EvaluateConfig, ReproduceConfig, RunConfig, StudyConfig

COLUMN = 34  # of a meaning in ``--help``
TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "mapping"}
SETTING_HEAD = ("setting", "default", "type", "rules", "meaning")
CONFIG_HEAD = """\
# Settings

Made by `make docs` from the settings tree (`imavae/config/settings.py` and the registries of variants). Write
`SETTING=VALUE` for any of them after `python scripts/NAME.py` (or in `ARGS="..."` of a make target), and
`GROUP=OPTION` for a whole group; `--help` shows them with the values that the rest of the command line gives.

- A value that breaks a rule is refused before anything runs, with exit code 2 and one message that names the value,
  the rule and the fix. Rules about several settings together are checked at the same time.
- Quote a list for the shell: `'members.seed=[1,2,3]'`. `null` means none, or what the meaning says.
- `train.py` takes the sections from *run* to *tracking*; `tune.py` and `reproduce.py` take all but the last two.
"""
SEARCH_HEAD = """\
## Files of search_spaces/

`search=NAME` reads `search_spaces/NAME.yaml`: plain data, with the `question` that the study answers, `defaults`
(options of groups, each as `override /GROUP: OPTION`), `search`, and any other setting of a study. The file goes over
the defaults, and the command line over the file. `${range:1,101}` is the list 1, ..., 100, and `${gammas:1e3,1e4}` the
gammas of these squares.

A leaf of `search` is any setting of `data`, `model` or `training`: a plain value, which every point has, or a mapping:

| key | value | meaning |
|---|---|---|
| `type` | `float`, `int` or `choice` | an interval, or a list |
| `low`, `high` | number | ends of the interval, both included |
| `log` | true or false | draw uniformly in the logarithm |
| `values` | list | the choices |
| `when` | mapping, nested like the settings | conditions on other searched settings; the point has the setting only \
where all hold: a plain value (equal), `at_least`, `at_most` or `one_of` |

Within one ensemble (`sampler.pack`) `model.gamma`, `model.beta` and `training.learning_rate` may differ.
"""


def help_text(command: Command[C], overrides: list[str]) -> str:
    """Usage, groups with their options, and every setting with its value and its meaning, after the overrides.

    Raises:
        UserError: overrides that can't be composed.
    """
    job, options = compose(command, overrides), group_options(command.kind)
    width = shutil.get_terminal_size((80, 24)).columns
    lines = [line for text in command.summary.splitlines() for line in _wrapped(text, width)]
    lines += ["", f"usage: python scripts/{command.name}.py [GROUP=OPTION ...] [SETTING=VALUE ...]", ""]
    lines += [
        "  -h, --help      this text; overrides before it show in it",
        "  --cfg job       print the composed settings and run nothing",
        "  -m, --multirun  one job per combination of values: model.gamma=10,100",
        "",
        "Groups (* marks the chosen option):",
    ]
    if issubclass(command.kind, ReproduceConfig):
        del options["search"]  # a figure has its own studies
    for group in options:
        chosen = job.choices[group]
        names = ", ".join("*" * (name == chosen) + name for name in options[group])
        lines += _wrapped(f"  {group:<16}{names}", width, indent=18)
    lines += ["", "Settings:", *_setting_lines(command.kind, job.settings, width), ""]
    return "\n".join(
        [*lines, *_wrapped("docs/config.md has their types and rules, docs/metrics.md the metrics.", width)]
    )


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    if not indent and text.startswith(" "):  # a command, which is to be copied
        return [text]
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, break_on_hyphens=False) or [""]


def _setting_lines(kind: Any, settings: Mapping[str, Any], width: int, depth: int = 1) -> Iterator[str]:
    """Lines for each setting, nested as they are: its value and, beside it, its meaning."""
    for name, field in fields_of(kind).items():
        value = settings.get(name, "???")
        node = _node(field, value)
        line = f"{'  ' * depth}{name}:" + ("" if node else f" {shown(value)}")
        meaning = (inspect.getdoc(node) or "").partition("\n")[0] if node else field.description or ""
        parts = textwrap.wrap(meaning, max(width - COLUMN - 4, 20), break_long_words=False, break_on_hyphens=False)
        if len(line) > COLUMN or not parts:
            yield line
            line = ""
        for part in parts:
            yield f"{line:<{COLUMN}} # {part}"
            line = ""
        if node:
            yield from _setting_lines(node, value, width, depth + 1)


def _node(field: FieldInfo, value: Any) -> Any:
    """The settings class of a nested value; None for a plain one."""
    if not isinstance(value, Mapping):
        return None
    if registry := registry_of(field):
        return registry[value[registry.key]] if value.get(registry.key) in registry else None
    return next(iter(nodes_of(field)), None)


def pages() -> dict[str, str]:
    """Text of docs/config.md and docs/metrics.md, by path in the repository."""
    from imavae.metrics.glossary import metrics_page

    return {"docs/config.md": settings_page(), "docs/metrics.md": metrics_page()}


def settings_page() -> str:
    """The text of docs/config.md."""
    study = fields_of(StudyConfig)
    lines = [CONFIG_HEAD, *_section("run", _rows(RunConfig))]
    for name in ("data", "model", "training", "members", "tracking"):
        lines += _node_sections(name, study[name])
    lines += _section("study", [row for row in _rows(StudyConfig) if row not in _rows(RunConfig)])
    for name in ("objective", "sampler", "scheduler", "budget", "cluster"):
        lines += _node_sections(name, study[name])
    lines += _section("reproduce", [row for row in _rows(ReproduceConfig) if row not in _rows(StudyConfig)])
    lines += [*_section("evaluate", _rows(EvaluateConfig)), "`tracking` is as above.", ""]
    encode = [*_rows(EncodeConfig), *_rows(fields_of(EncodeConfig)["data"].annotation, "data.")]
    lines += [*_section("encode", encode), "`tracking` is as above.", ""]
    groups = {group: ", ".join(map(_code, names)) for group, names in group_options(StudyConfig).items()}
    lines += [
        "## Groups",
        "",
        *_table(("group", "options"), [[_code(group), names] for group, names in groups.items()]),
    ]
    lines += ["Options that change several settings, from `conf/`:", ""]
    lines += _table(("option", "sets"), [[_code(name), sets] for name, sets in _deltas()])
    questions = [[_code(name), read_search(path).get("question", "")] for name, path in searches().items()]
    return "\n".join([*lines, SEARCH_HEAD, *_table(("search=", "question"), questions)]).rstrip() + "\n"


def _node_sections(name: str, field: FieldInfo) -> Iterator[str]:
    """A node's table, and one for each variant of the node or of a field in it."""
    registry, [first, *others] = registry_of(field), nodes_of(field)
    rows = [row for row in _rows(first, f"{name}.") if not row[0].endswith(".kind`")]
    yield from _section(f"{name}: {registry.key}={getattr(first, registry.key)}" if registry else name, rows)
    for other in others:
        more = [row for row in _rows(other, f"{name}.") if row not in rows and not row[0].endswith(".kind`")]
        yield from _section(f"{name}: {registry.key}={getattr(other, registry.key)}", more)
    for inner, part in fields_of(first).items():
        if chosen := registry_of(part):
            for variant in chosen:
                own = [row for row in _rows(variant, f"{name}.{inner}.") if not row[0].endswith(".name`")]
                doc = (inspect.getdoc(variant) or "").partition("\n")[0]
                yield from (f"### {name}.{inner}: {variant.name}", "", doc, "", *_table(SETTING_HEAD, own))


def _rows(kind: Any, prefix: str = "") -> list[list[str]]:
    """Setting, default, type, rules and meaning of the plain fields of a class, and of nested nodes below the top."""
    rows = []
    for name, field in fields_of(kind).items():
        default, registry = default_of(kind, name), registry_of(field)
        if registry:
            names = " or ".join(map(_code, registry.names()))
            rows.append(
                [
                    _code(f"{prefix}{name}.{registry.key}"),
                    _code(default[registry.key]),
                    names,
                    "",
                    f"{registry.group}=NAME",
                ]
            )
        elif nodes := nodes_of(field):
            rows += _rows(nodes[0], f"{prefix}{name}.") if prefix else []
        else:
            given = "must be given" if default is dataclasses.MISSING else _code(shown(default))
            rules = ", ".join(dict.fromkeys(_rules(field)))
            rows.append([_code(prefix + name), given, type_words(field.annotation), rules, field.description or ""])
    return rows if prefix else [row for row in rows if not row[0].endswith(("name`", "kind`")) or row[0] == "`name`"]


def _rules(field: FieldInfo) -> Iterator[str]:
    for limit in field.metadata:
        for name, sign in LIMITS.items():
            if hasattr(limit, name):
                yield f"{sign} {getattr(limit, name):g}"
        if hasattr(limit, "min_length"):
            yield f"at least {limit.min_length}"
    for inner in typing.get_args(field.annotation):
        if inner is not Ellipsis and not isinstance(inner, str):
            yield from _rules(FieldInfo.from_annotation(inner))


def type_words(hint: Any) -> str:
    """A type in plain words: ``whole number or null``."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return type_words(inner[0])
    if origin is Literal:
        return " or ".join(_code(str(value)) for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if kind is types.NoneType else type_words(kind) for kind in inner)
    if origin is tuple:
        return f"list of {type_words(inner[0])}" if inner[-1] is Ellipsis else f"list of {len(inner)} numbers"
    return TYPES.get(origin or hint, "mapping")


def _deltas() -> Iterator[tuple[str, str]]:
    """The options in ``conf/``, and what each sets."""
    for path in sorted(CONF.rglob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = [entry for entry in content.pop("defaults", []) if isinstance(entry, dict)]
        chosen = [pair for entry in entries for pair in entry.items()]
        sets = [f"{group.removeprefix('override ').lstrip('/')}={option}" for group, option in chosen]
        sets += [f"{key}={shown(value)}" for key, value in flatten(content).items()]
        yield f"{path.relative_to(CONF).parent.as_posix()}={path.stem}", "<br>".join(map(_code, sets))


def _section(title: str, rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"## {title}", "", *_table(SETTING_HEAD, rows)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines, ""] if lines else []


def _code(text: str) -> str:
    return f"`{text}`"
