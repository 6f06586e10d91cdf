"""Variants chosen by name: a registry for each kind of variant, filled by built-in modules and by plugins.

A file that holds both the settings and the behaviour of a variant takes ``torch`` or ``optuna`` from here. They are
imported when one of their attributes is first read: checking a setting or printing ``--help`` does not pay for them.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from imavae.config.mapping import Settings as Settings
from imavae.config.mapping import build
from imavae.errors import UserError, require, require_choice

if TYPE_CHECKING:
    import optuna as optuna
    import torch as torch

T = TypeVar("T")
E = TypeVar("E")


class _LazyModule:
    """Stands for a module: looks every attribute up in it and keeps it."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.module), name)
        setattr(self, name, value)
        return value

    def __reduce__(self) -> str:
        return self.module  # pickled by reference, as a module is


if not TYPE_CHECKING:
    optuna, torch = _LazyModule("optuna"), _LazyModule("torch")


class Registry(Generic[T]):
    """Entries by name, such as the priors; the built-in ones are those that the modules of ``package`` register.

    Args:
        setting: Dotted key of the setting that chooses among them, such as ``model.prior``.
        package: Module or package whose import registers the built-in entries. Imported on first use.
        group: Group of options that sets it on the command line; ``model/prior`` unless given.
        key: Attribute and setting that holds an entry's name.
    """

    def __init__(self, setting: str, package: str, group: str | None = None, key: str = "name") -> None:
        self.setting = setting
        self.package = package
        self.key = key
        self.group = group or setting.replace(".", "/")
        self._entries: dict[str, T] = {}
        self._loaded = False

    def register(self, entry: E) -> E:
        """Add an entry under its name; a decorator. A class must be a frozen dataclass derived from Settings."""
        name: str = getattr(entry, self.key, "")
        if isinstance(entry, type):
            parameters = vars(entry).get("__dataclass_params__")  # of the class, not of its base
            frozen = parameters is not None and parameters.frozen and issubclass(entry, Settings)
            rule = f"a variant of {self.setting} is a frozen dataclass of settings"
            require(frozen, rule, entry.__name__, "see docs/plugins.md for an example")
        if not _module(entry).startswith(self.package):
            _ = self.entries  # a plugin's entry comes after the built-in ones
        new = bool(name) and name not in self._entries
        require(new, f"every variant of {self.setting} has a unique name", repr(name), "choose another name")
        self._entries[name] = cast("T", entry)
        return entry

    def __getitem__(self, name: object) -> T:
        """The entry of this name. Raises UserError for an unknown one, with the nearest names."""
        entries = self.entries
        require_choice(str(name), entries, f"{self.setting}.{self.key}")
        return entries[str(name)]

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[T]:
        return iter(self.entries.values())

    def names(self) -> list[str]:
        """Names of all entries, the built-in ones first."""
        return list(self.entries)

    @property
    def entries(self) -> dict[str, T]:
        """All entries by name."""
        if not self._loaded:
            self._loaded = True  # set first: a built-in module may use the registry while it is imported
            try:
                module = importlib.import_module(self.package)
                for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
                    importlib.import_module(f"{self.package}.{found.name}")
            except BaseException:
                self._loaded = False  # the next use imports the failed module again, which registers its entries anew
                self._entries = {k: entry for k, entry in self._entries.items() if _module(entry) in sys.modules}
                raise
            # by module, in whatever order they were imported
            self._entries = dict(sorted(self._entries.items(), key=lambda item: _module(item[1])))
        return self._entries


def _module(entry: object) -> str:
    return str(getattr(entry, "__module__", ""))


class Chosen:
    """Reads a field whose variant is chosen by name; marks the field with the registry of its variants."""

    def __init__(self, registry: Registry[Any], default: str | None = None) -> None:
        self.registry = registry
        self.default = default  # variant of a mapping that names none

    def __call__(self, value: Any) -> Any:
        """The settings of the variant that a mapping names. Raises UserError for an unknown name or a wrong value."""
        if isinstance(value, Settings):
            return value
        setting, group = self.registry.setting, self.registry.group
        require(isinstance(value, Mapping), f"{setting} is a mapping", repr(value), f"choose it by {group}=NAME")
        return build(self.registry[value.get(self.registry.key, self.default)], value, setting)


PLUGIN = "imavae_plugin_"  # prefix of the module names of plugins


def load_plugins(paths: Iterable[str]) -> None:
    """Import a user's Python files, each once, so that they register their variants."""
    for path in paths:
        file = Path(path).resolve()
        name = f"{PLUGIN}{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None or not file.is_file():
            raise UserError(f"`plugins are Python files` must hold, but got {path}; give the path of a .py file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            what = f"{path} raises {type(error).__name__}: {error}"
            raise UserError(f"`plugins can be imported` must hold, but {what}; correct the file") from error


def mistake_of_a_plugin(error: BaseException) -> UserError | None:
    """The UserError for an error raised in a plugin, or in a library that it called; None for any other error."""
    frames = traceback.walk_tb(error.__traceback__)
    own = [(frame, line) for frame, line in frames if str(frame.f_globals.get("__name__")).startswith(PLUGIN)]
    if not own:
        return None
    frame, line = own[-1]
    what = f"line {line} of {frame.f_code.co_filename} raises {type(error).__name__}: {error}"
    return UserError(f"`plugins run without an error` must hold, but {what}; correct the file")
