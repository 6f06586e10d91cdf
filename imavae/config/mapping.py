"""Between plain mappings and the typed tree: building with one clear message per mistake, and back again."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from imavae.config.variants import Registry, Settings
from imavae.errors import UserError

T = TypeVar("T", bound=Settings)


def build(kind: type[T], mapping: Mapping[str, Any], prefix: str = "") -> T:
    """The node of the tree that a mapping describes; ``prefix`` is where it stands, as in ``data.mixing``.

    Raises:
        UserError: a key that does not exist, a value of the wrong type, or one that breaks a rule.
    """
    try:
        built: T = _adapter(typing.cast(Any, kind)).validate_python(dict(mapping))
    except ValidationError as error:
        raise UserError("\n".join(_explain(e, mapping, kind, prefix) for e in error.errors())) from None
    return built


def chosen_from(registry: Registry[Any]) -> _Chosen:
    """How a field is read whose variant is chosen by name."""
    return _Chosen(registry)


class _Chosen:
    """Reads a variant; also marks, for :func:`keys_of`, which registry a field's variants are in."""

    def __init__(self, registry: Registry[Any]) -> None:
        self.registry = registry

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Settings):
            return value
        if not isinstance(value, Mapping):
            raise UserError(
                f"`{self.registry.what}` must be a mapping, but got {value!r}; "
                f"choose a variant by its group, as in {self.registry.group}=NAME"
            )
        return build(self.registry.variant(value), value, self.registry.what)


@functools.cache
def _adapter(kind: Any) -> Any:  # a TypeAdapter, which beartype does not know
    return TypeAdapter(kind)


def to_mapping(config: Settings) -> dict[str, Any]:
    """Plain containers (dict, list, scalars) that :func:`build` turns back into the same."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))  # type: ignore[call-overload]
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def split_constants(node: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A search space without its constants (the leaves that are plain values), and the constants, nested alike."""
    space: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping) and not isinstance(value.get("type"), str):
            inner, fixed = split_constants(value)
            space |= {name: inner} if inner else {}
            constants |= {name: fixed} if fixed else {}
        else:
            (space if isinstance(value, (Mapping, list, tuple)) else constants)[name] = value
    return space, constants


def merged(over: Mapping[str, Any], under: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings in one; where both have a value, that of ``over`` stands."""
    both = dict(under)
    for name, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(name), Mapping)
        both[name] = merged(value, both[name]) if nested else value
    return both


def keys_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of all values that a tree of this type can hold, those of every variant included."""
    fields = {field.name for field in dataclasses.fields(kind)}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if name not in fields:
            continue
        for node in _nodes(hint):
            yield from keys_of(node, f"{prefix}{name}.")
        if not _nodes(hint):
            yield prefix + name


def registry_of(hint: Any) -> Registry[Any] | None:
    """The registry whose variants a field can hold; None for a field of another kind."""
    readers = (getattr(mark, "func", None) for mark in getattr(hint, "__metadata__", ()))
    return next((reader.registry for reader in readers if isinstance(reader, _Chosen)), None)


def _nodes(hint: Any) -> list[Any]:
    """The settings classes that a field can hold; none for a plain value."""
    if registry := registry_of(hint):
        return list(registry.variants.values())
    return [hint] if dataclasses.is_dataclass(hint) else []


def nearest(key: str, kind: type[Settings]) -> str:
    """A hint that names the valid dotted keys most like ``key``."""
    keys = sorted(set(keys_of(kind)))
    if key in keys:
        node = key.rpartition(".")[0]
        return f"another variant of `{node}` has it: choose that one by its group (`--help` lists them)"
    leaf = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.6) or [k for k in keys if k.rsplit(".", 1)[-1] == leaf]
    return f"did you mean {' or '.join(near)}?" if near else "see --help, which lists the settings"


def _explain(error: Any, mapping: Mapping[str, Any], kind: type[Settings], prefix: str) -> str:
    """One validation error as value, rule and remedy."""
    path, node = [prefix] if prefix else [], typing.cast(Any, mapping)
    for part in error["loc"]:
        inside = isinstance(node, (list, tuple)) and isinstance(part, int) and part < len(node)
        if inside or (isinstance(node, Mapping) and part in node):
            path.append(str(part))
            node = node[part]
    key = ".".join(path)
    if error["type"] == "unexpected_keyword_argument":
        return f"`{key}` is not a setting (got {node!r}); {_nearest(key, kind, prefix)}"
    if error["type"] in ("dataclass_type", "model_attributes_type"):
        return f"`{key}` must be a mapping, but got {node!r}; see --help for the settings in it"
    rule = error["msg"][0].lower() + error["msg"][1:]
    if error["type"] == "missing":
        return (
            f"`{'.'.join(map(str, error['loc']))}` must be given, but is missing; see --help, which shows every setting"
        )
    return f"`{key}` has the wrong type or value: {rule}, but got {node!r}; see --help for each setting's meaning"


def _nearest(key: str, kind: type[Settings], prefix: str) -> str:
    if not prefix:
        return nearest(key, kind)
    own = list(keys_of(kind))
    near = difflib.get_close_matches(key.removeprefix(f"{prefix}."), own, n=3, cutoff=0.6)
    names = [f"{prefix}.{name}" for name in near or own]
    return f"did you mean {' or '.join(names)}?" if near else f"choose among {', '.join(names)}"
