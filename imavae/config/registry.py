"""Variants chosen by name: a registry for each kind of variant, filled by built-in modules and by plugins."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

from pydantic import ConfigDict

from imavae.errors import require, require_choice


class Settings:
    """Base of every node of the settings tree: refuses unknown keys and infinite numbers."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


T = TypeVar("T")
E = TypeVar("E")


class Registry(Generic[T]):
    """Entries by name, such as the priors; the built-in ones are those that the modules of ``package`` register.

    Args:
        setting: Dotted key of the setting that chooses among them, such as ``model.prior``.
        package: Module or package whose import registers the built-in entries. Imported on first use.
        group: Group of options that sets it on the command line; ``model/prior`` unless given.
    """

    def __init__(self, setting: str, package: str, group: str | None = None) -> None:
        self.setting = setting
        self.package = package
        self.group = group or setting.replace(".", "/")
        self._entries: dict[str, T] = {}
        self._loaded = False

    def register(self, entry: E) -> E:
        """Add an entry under its ``name``; a decorator.

        Raises:
            UserError: a class that is not a frozen dataclass derived from Settings, or a name that is empty or taken.
        """
        name: str = getattr(entry, "name", "")
        if isinstance(entry, type):
            parameters = vars(entry).get("__dataclass_params__")  # of the class, not of its base
            frozen = parameters is not None and parameters.frozen and issubclass(entry, Settings)
            rule = f"a variant of {self.setting} is a frozen dataclass of settings"
            require(frozen, rule, entry.__name__, "see docs/plugins.md for an example")
        if not str(getattr(entry, "__module__", "")).startswith(self.package):
            self._all()  # a plugin's entry comes after the built-in ones
        new = bool(name) and name not in self._entries
        require(new, f"every variant of {self.setting} has a unique name", repr(name), "choose another name")
        self._entries[name] = cast("T", entry)
        return entry

    def __getitem__(self, name: object) -> T:
        """The entry of this name. Raises UserError for an unknown one, with the nearest names."""
        entries = self._all()
        require_choice(str(name), entries, f"{self.setting}.name")
        return entries[str(name)]

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[T]:
        return iter(self._all().values())

    def __len__(self) -> int:
        return len(self._all())

    def names(self) -> list[str]:
        """Names of all entries, the built-in ones first."""
        return list(self._all())

    def _all(self) -> dict[str, T]:
        if not self._loaded:
            self._loaded = True  # set first: a built-in module may use the registry while it is imported
            module = importlib.import_module(self.package)
            for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
                importlib.import_module(f"{self.package}.{found.name}")
        return self._entries

    # The old names, until every caller has moved.
    @property
    def what(self) -> str:
        """Old name of ``setting``."""
        return self.setting

    @property
    def variants(self) -> dict[str, T]:
        """Old name of the entries by name."""
        return self._all()

    def variant(self, value: Mapping[str, Any]) -> T:
        """Old name of ``registry[value["name"]]``."""
        return self[value.get("name")]
