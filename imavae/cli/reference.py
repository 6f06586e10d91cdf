"""Reference of all settings, made from the settings tree: ``--help``, docs/config.md and docs/metrics.md."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import yaml
from pydantic.fields import FieldInfo

from imavae.cli.compose import CONF, C, Command, compose, group_options, read_search, searches
from imavae.config.data import MIXINGS, SOURCES
from imavae.config.mapping import LIMITS, default_of, fields_of, flatten, nodes_of, registry_of, shown
from imavae.config.registry import Registry
from imavae.config.settings import (
    NETWORKS,
    PRIORS,
    EncodeConfig,
    EncodeData,
    EvaluateConfig,
    ReproduceConfig,
    RunConfig,
    StudyConfig,
)

COLUMN = 34  # of a meaning in ``--help``
TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "mapping"}

Section = tuple[str, list[list[str]]]  # heading, and rows of a table of settings
VARIANTS: tuple[Registry[Any], ...] = (MIXINGS, SOURCES, PRIORS, NETWORKS)  # only ``--help`` lists them


def help_text(command: Command[C], overrides: list[str]) -> str:
    """Usage, groups with their options, and every setting with its value and its meaning, after the overrides."""
    job, options = compose(command, overrides), group_options(command.kind)
    width = shutil.get_terminal_size((80, 24)).columns
    lines = [line for text in (inspect.getdoc(command.entry) or "").splitlines() for line in _wrapped(text, width)]
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
    for group in (group for group in options if group in job.choices):  # a user's data have no sources to choose
        chosen = job.choices[group]
        names = ", ".join("*" * (name == chosen) + name for name in options[group])
        lines += _wrapped(f"  {group:<16}{names}", width, indent=18)
    lines += ["", "Settings:", *_setting_lines(command.kind, job.settings, width), ""]
    lines += _wrapped("docs/config.md has their types, docs/metrics.md the metrics.", width)
    return "\n".join(lines)


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
        meaning = (inspect.getdoc(node) or "").partition("\n")[0] if node else _meaning(field)
        parts = textwrap.wrap(meaning, max(width - COLUMN - 4, 20), break_long_words=False, break_on_hyphens=False)
        if len(line) > COLUMN or not parts:
            yield line
            line = ""
        for part in parts:
            yield f"{line:<{COLUMN}} # {part}"
            line = ""
        if node:
            yield from _setting_lines(node, value, width, depth + 1)


def _meaning(field: FieldInfo) -> str:
    """Meaning and rules of a setting."""
    rules = ", ".join(dict.fromkeys(_rules(field)))
    return " ".join(part for part in (field.description, rules and f"({rules})") if part)


def _node(field: FieldInfo, value: Any) -> Any:
    """The settings class of a nested value; None for a plain one."""
    if not isinstance(value, Mapping):
        return None
    if registry := registry_of(field):
        return registry[value[registry.key]] if value.get(registry.key) in registry else None
    return next(iter(nodes_of(field)), None)


def pages() -> dict[str, str]:
    """Text of docs/config.md and docs/metrics.md, by path in the repository."""
    return {"docs/config.md": settings_page(), "docs/metrics.md": metrics_page()}


def metrics_page() -> str:
    """The text of docs/metrics.md."""
    from imavae.metrics.glossary import CURVE_POINTS, METRICS

    arrows = {"max": "↑", "min": "↓", "one": "→ 1", "none": ""}
    reasons = list(dict.fromkeys(reason for entry in METRICS for reason in entry.reasons))
    points = f"{CURVE_POINTS:,}"
    return _rendered("metrics.md.j2", metrics=list(METRICS), reasons=reasons, arrows=arrows, points=points)


def settings_page() -> str:
    """The text of docs/config.md."""
    study, run_rows, study_rows = fields_of(StudyConfig), _rows(RunConfig), _rows(StudyConfig)
    sections: list[Section] = [("## run", run_rows)]
    for name in ("data", "model", "training", "members", "tracking"):
        sections += _node_sections(name, study[name])
    sections.append(("## study", [row for row in study_rows if row not in run_rows]))
    for name in ("objective", "sampler", "scheduler", "budget", "cluster"):
        sections += _node_sections(name, study[name])
    sections += [
        ("## reproduce", [row for row in _rows(ReproduceConfig) if row not in study_rows]),
        ("## evaluate", _rows(EvaluateConfig)),
        ("## encode", [*_rows(EncodeConfig), *_rows(EncodeData, "data.")]),
    ]
    return _rendered(
        "config.md.j2",
        sections=sections,
        groups=list(_groups()),
        options=[(_code(option), sets) for option, sets in _deltas()],
        questions=[(_code(name), read_search(path).get("question", "")) for name, path in searches().items()],
    )


def _rendered(template: str, **values: Any) -> str:
    """Render a page of docs/."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # noqa: S701  -- Markdown, from our own texts
        loader=PackageLoader("imavae", "cli"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)


def _node_sections(name: str, field: FieldInfo) -> Iterator[Section]:
    """A node's section, or one for each of its kinds."""
    registry, [first, *others] = registry_of(field), nodes_of(field)
    rows: list[list[str]] = []
    for node in (first, *others):
        more = [row for row in _rows(node, f"{name}.") if row not in rows and not row[0].endswith(".kind`")]
        rows = rows or more
        yield f"## {name}: {registry.key}={getattr(node, registry.key)}" if registry else f"## {name}", more


def _rows(kind: Any, prefix: str = "") -> list[list[str]]:
    """Setting, default, type, rules and meaning of the plain fields of a class, and of nested nodes below the top."""
    rows = []
    for name, field in fields_of(kind).items():
        default, registry = default_of(kind, name), registry_of(field)
        if registry:
            key, meaning = _code(f"{prefix}{name}.{registry.key}"), f"{registry.group}=NAME; `--help` lists them"
            rows.append([key, _code(default[registry.key]), "text", "", meaning])
            for inner, below in fields_of(nodes_of(field)[0]).items() if prefix else ():  # nested: in all variants
                rows += [row for node in nodes_of(below) for row in _rows(node, f"{prefix}{name}.{inner}.")]
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


def _groups() -> Iterator[tuple[str, str]]:
    """Each group with its options, except those that are made from variants."""
    variants = {registry.group: registry for registry in VARIANTS}
    for group, names in group_options(StudyConfig).items():
        options = [_code(name) for name in names if name not in variants.get(group, ())]
        yield _code(group), ", ".join([*options, *["one for each variant"] * (group in variants)])


def _deltas() -> Iterator[tuple[str, str]]:
    """The options in ``conf/``, and what each sets."""
    for path in sorted(CONF.rglob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = [entry for entry in content.pop("defaults", []) if isinstance(entry, dict)]
        chosen = [pair for entry in entries for pair in entry.items()]
        sets = [f"{group.removeprefix('override ').lstrip('/')}={option}" for group, option in chosen]
        sets += [f"{key}={shown(value)}" for key, value in flatten(content).items()]
        yield f"{path.relative_to(CONF).parent.as_posix()}={path.stem}", "<br>".join(map(_code, sets))


def _code(text: str) -> str:
    return f"`{text}`"
