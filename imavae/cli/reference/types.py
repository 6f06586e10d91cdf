"""The type of a setting in plain words, from its annotation."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

from imavae.cli.reference.markdown import code, listed
from imavae.config.mapping import registry_of
from imavae.config.registry import Settings

PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false"}
MANY = {int: "whole numbers", float: "numbers", str: "texts"}
COUNTS = {2: "two", 3: "three"}


def words(hint: Any) -> str:
    """A type in plain words: ``whole number, or null``."""
    if registry := registry_of(hint):
        return listed([code(name) for name in sorted(registry.variants)])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        *kinds, last = ["null" if kind is types.NoneType else words(kind) for kind in arguments]
        return f"{', '.join(kinds)}, or {last}"
    if origin is Literal:
        return listed([code(str(value)) for value in arguments])
    if origin is tuple:
        return _sequence(arguments)
    if origin is dict:
        return "mapping of names to numbers" if arguments[1] is float else "mapping"
    return PLAIN[hint]


def _sequence(arguments: tuple[Any, ...]) -> str:
    kind, *rest = arguments
    if rest != [Ellipsis]:
        return f"list of {COUNTS[len(arguments)]} {MANY[kind]}"
    if typing.get_origin(kind) is tuple:
        return f"list of {_sequence(typing.get_args(kind)).replace('list', 'lists', 1)}"
    if typing.get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Settings)):
        return "list of mappings"
    return f"list of {MANY[kind]}" if kind in MANY else f"list of {words(kind)}"
