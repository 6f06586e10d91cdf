"""Between plain mappings and the typed settings tree: building and checking, turning back, nested and dotted keys."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from imavae.errors import UserError

LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}  # names of limits in pydantic's Field, and their signs


class Checked(type):
    """Metaclass of settings classes: a call with wrong values raises UserError instead of pydantic's error."""

    if not TYPE_CHECKING:

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().__call__(*args, **kwargs)
            except ValidationError as error:
                raise _explained(error, kwargs, cls, "") from None


class Settings(metaclass=Checked):
    """Base of every node of the settings tree: refuses unknown keys and infinite numbers.

    A node is a frozen ``pydantic.dataclasses.dataclass``. One line of it holds a setting's type, rule, meaning and
    default: ``gamma: Annotated[float, Field(gt=0, description="...")] = 100.0``.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


T = TypeVar("T", bound=Settings)


def build(kind: type[T], mapping: Mapping[str, Any], prefix: str = "") -> T:
    """Build a node of the tree from a mapping; ``prefix`` is the node's dotted key, such as ``data.mixing``."""
    try:
        return typing.cast(T, _adapter(typing.cast(Any, kind)).validate_python(dict(mapping)))
    except ValidationError as error:
        raise _explained(error, mapping, kind, prefix) from None


@functools.cache
def _adapter(kind: Any) -> Any:  # a TypeAdapter, which beartype does not know
    return TypeAdapter(kind)


def to_mapping(config: Settings) -> dict[str, Any]:
    """Plain containers (dict, list, scalars) that :func:`build` turns back into the same settings."""
    return dict(plain(dataclasses.asdict(config)))  # type: ignore[call-overload]


def plain(value: Any) -> Any:
    """The value with tuples as lists and settings as mappings, at any depth."""
    if isinstance(value, Settings):
        return to_mapping(value)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def flatten(node: Mapping[str, Any], is_leaf: Callable[[Mapping[str, Any]], bool] | None = None) -> dict[str, Any]:
    """Values of a nested mapping by dotted key. A mapping that is empty, or a leaf by ``is_leaf``, is a value."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping) and value and not (is_leaf and is_leaf(value)):
            flat |= {f"{name}.{key}": inner for key, inner in flatten(value, is_leaf).items()}
        else:
            flat[name] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mapping of values by dotted key: the inverse of :func:`flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, leaf = key.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return nested


@functools.cache
def fields_of(kind: Any) -> dict[str, FieldInfo]:
    """Annotation, rules and description of each field of a settings class, by name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: FieldInfo.from_annotation(hints[field.name]) for field in dataclasses.fields(kind)}


def registry_of(field: FieldInfo) -> Any:
    """The registry whose variants a field can hold; None for a field of another kind."""
    readers: list[Any] = [getattr(mark, "func", None) for mark in field.metadata]
    return next((reader.registry for reader in readers if hasattr(reader, "registry")), None)


def nodes_of(field: FieldInfo) -> list[Any]:
    """The settings classes that a field can hold; none for a plain value."""
    if registry := registry_of(field):
        return list(registry)
    return [field.annotation] if dataclasses.is_dataclass(field.annotation) else []


def owners_of(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of all values that a tree of this type can hold, in any variant, and the class of each."""
    for name, field in fields_of(kind).items():
        nodes = nodes_of(field)
        for node in nodes:
            yield from owners_of(node, f"{prefix}{name}.")
        if not nodes:
            yield prefix + name, kind


def keys_of(kind: Any) -> list[str]:
    """Dotted keys of all values that a tree of this type can hold, in any variant."""
    return [key for key, _ in owners_of(kind)]


def nearest(key: str, kind: type[Settings], prefix: str = "") -> str:
    """A hint that names the valid dotted keys most like ``key``; ``prefix`` is the dotted key of ``kind``."""
    keys = sorted({f"{prefix}.{name}".removeprefix(".") for name in keys_of(kind)})
    if key in keys:
        node = key.rpartition(".")[0]
        return f"another variant of `{node}` has it: choose that one by its group (`--help` lists them)"
    node, _, leaf = key.rpartition(".")
    near = [k for k in keys if k.rpartition(".")[2] == leaf] or [k for k in keys if _abbreviates(leaf, node, k)]
    if near := near or difflib.get_close_matches(key, keys, n=3):
        return f"did you mean {' or '.join(near)}?"
    return f"choose one of {', '.join(keys)}" if prefix else "see --help, which lists the settings"


def _abbreviates(leaf: str, node: str, key: str) -> bool:
    """True if ``leaf`` is one word, or the initials, of the last part of a key of the same node: lr, learning_rate."""
    parent, _, name = key.rpartition(".")
    words = name.split("_")
    return node in ("", parent) and leaf in (*words, "".join(word[0] for word in words))


def _explained(error: ValidationError, mapping: Mapping[str, Any], kind: Any, prefix: str) -> UserError:
    problems = error.errors()
    if len(problems) > 1:  # a tuple with a wrong item counts as too short, too
        problems = [problem for problem in problems if problem["type"] != "too_short"]
    return UserError("\n".join(_explain(problem, mapping, kind, prefix) for problem in problems))


def _explain(problem: Any, mapping: Mapping[str, Any], kind: Any, prefix: str) -> str:
    """One of pydantic's errors as value, rule and fix."""
    path, node, got = [prefix] if prefix else [], typing.cast(Any, mapping), problem["input"]
    for part in problem["loc"]:
        if isinstance(node, Mapping) and part in node:
            path.append(part)
            node = node[part]
    key, name, context = ".".join(path), problem["type"], problem.get("ctx", {})
    if name == "unexpected_keyword_argument":
        return f"`{key}` is not a setting (got {got!r}); {nearest(key, kind, prefix)}"
    if name in ("dataclass_type", "model_attributes_type"):
        return f"`{key}` must be a mapping, but got {got!r}; see --help for the settings in it"
    if name == "missing":
        missing = ".".join([*path, str(problem["loc"][-1])])
        return f"`{missing}` must be given, but is missing; see --help, which shows every setting"
    if name == "literal_error":
        near = difflib.get_close_matches(str(got), re.findall(r"'([^']*)'", context["expected"]), n=1)
        fix = f"did you mean {near[0]}?" if near else _fix(kind, key, prefix)
        return f"`{key}` must be one of {context['expected']}, but got {got!r}; {fix}"
    rules = [f"{key} {sign} {context[limit]:g}" for limit, sign in LIMITS.items() if limit in context]
    if "min_length" in context:
        rules, got = [f"{key} has at least {context['min_length']} value"], plain(got)
    if rules:
        return f"`{rules[0]}` must hold, but got {got!r}; {_fix(kind, key, prefix)}"
    if name == "tuple_type" and not isinstance(got, (str, Mapping)):
        return f"`{key}` must be a list, but got {got!r}; write '{key}=[{shown(got)}]'"
    if name == "string_type" and isinstance(got, (bool, int, float)):
        return f"`{key}` must be a text, but got the value {got!r}; write it in quotes: '{key}=\"{got}\"'"
    rule = problem["msg"].removeprefix("Input should be ")
    return f"`{key}` must be {rule}, but got {got!r}; {_fix(kind, key, prefix)}"


def _fix(kind: Any, key: str, prefix: str) -> str:
    """Fix for a wrong value: its meaning and its default."""
    inner = key.removeprefix(f"{prefix}.")
    owner, name = next((owner for full, owner in owners_of(kind) if full == inner), None), inner.rpartition(".")[2]
    if owner is None:
        return "see --help for the settings"
    default, meaning = default_of(owner, name), fields_of(owner)[name].description
    fix = "see --help" if default is dataclasses.MISSING else f"the default is {key}={shown(default)}"
    return f"{fix} ({meaning})" if meaning else fix


def default_of(kind: Any, name: str) -> Any:
    """The default of a field, as a plain value; ``dataclasses.MISSING`` for one that must be given."""
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return plain(made)


def shown(value: Any) -> str:
    """A value as it is written on a command line or in YAML."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
