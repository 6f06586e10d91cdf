"""Every setting of a configuration tree: its default, type and rules from the code, its meaning from ``conf/``."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from imavae.cli.reference.comments import meanings
from imavae.cli.reference.rules import Rule
from imavae.cli.reference.types import words
from imavae.config.mapping import registry_of
from imavae.config.registry import Settings
from imavae.config.variants import MIXINGS, PRIORS, SOURCES

DEFAULTS = {  # of the groups: what a command chooses that is told nothing
    "cluster": "local",
    "data": "moebius",
    "data/source": "uniform",
    "model": "mlp",
    "model/prior": "uniform",
    "tracking": "mlflow",
    "training": "default",
}
REGISTRIES = {registry.what: registry for registry in (MIXINGS, SOURCES, PRIORS)}


class Setting(NamedTuple):
    """A setting by its dotted key, and all that there is to know of it."""

    key: str
    default: str | None  # None: it must be given
    type: str
    rules: tuple[str, ...]
    meaning: str


class Tree(NamedTuple):
    """The configuration of one command."""

    conf: Path
    command: str
    kind: type[Settings]
    rules: tuple[Rule, ...]  # those that are checked of it


def settings_at(tree: Tree, node: str) -> list[Setting]:
    """The settings of one node (``model``) and of those below it; of the top (an empty name) the plain values alone.

    Raises:
        KeyError: a setting whose meaning ``conf/`` does not say.
    """
    known = meanings(tree.conf, tree.command, DEFAULTS)
    fields = _fields(_kind(tree.kind, node), f"{node}." if node else "")
    return [_setting(tree, known, field, None) for field in fields]


def settings_of(tree: Tree, node: str, name: str) -> list[Setting]:
    """The settings of the variant ``name`` of a node that is chosen by name (``model.prior``), without the name itself.

    Raises:
        KeyError: a setting whose meaning ``conf/`` does not say.
    """
    registry = REGISTRIES[node]
    variant = registry.variants[name]
    known = meanings(tree.conf, tree.command, {**DEFAULTS, registry.group: name})
    fields = [field for field in _fields(variant, f"{node}.") if field[0] != f"{node}.name"]
    return [_setting(tree, known, field, variant) for field in fields]


def _kind(kind: Any, node: str) -> Any:
    """The settings class at a node."""
    for name in filter(None, node.split(".")):
        kind = typing.get_type_hints(kind)[name]
    return kind


def _fields(kind: Any, prefix: str) -> Iterator[tuple[str, Any, str | None]]:
    """Dotted key, type and default of each plain value; at the top no node is entered."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, key = hints[field.name], prefix + field.name
        if registry_of(hint):
            yield f"{key}.name", hint, DEFAULTS[REGISTRIES[key].group]
        elif not dataclasses.is_dataclass(hint):
            yield key, hint, _default(field)
        elif prefix:
            yield from _fields(hint, f"{key}.")


def _default(field: dataclasses.Field[Any]) -> str | None:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING:
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _setting(tree: Tree, known: dict[str, str], field: tuple[str, Any, str | None], variant: Any) -> Setting:
    key, hint, default = field
    rules = dict.fromkeys(
        rule.text.replace(key, key.split(".")[-1]) for rule in tree.rules if about(rule, key, variant)
    )
    return Setting(key, default, words(hint), tuple(rules), known[key])


def about(rule: Rule, key: str, variant: Any = None) -> bool:
    """Whether a rule is about a setting, which may be one of a variant: another variant's rules are not."""
    owners = {kind.__name__ for registry in REGISTRIES.values() for kind in registry.variants.values()}
    if variant is not None and rule.owner in owners:
        word = re.search(rf"\b{key.split('.')[-1]}\b", rule.subject) is not None  # a second one loses its path
        return rule.owner == variant.__name__ and (rule.names(key) or word)
    return rule.names(key) or (key.removesuffix(".name") in REGISTRIES and rule.names(key.removesuffix(".name")))
