"""What a variant that the configuration chooses by name is: a frozen dataclass of settings in a registry.

Nothing here imports torch: a mistake in a value is reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict

from imavae.errors import require, require_choice


class Settings:
    """Base of every node of the tree: an unknown key or an infinite number is refused, never ignored."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


V = TypeVar("V", bound=type[Any])


class Registry:
    """The variants of one thing, by name."""

    def __init__(self, what: str, group: str) -> None:
        self.what = what  # the setting that chooses among them, as in data.mixing
        self.group = group  # the group of conf/ that sets it
        self.variants: dict[str, type[Any]] = {}

    def register(self, variant: V) -> V:
        """Add a frozen settings dataclass under its ``name``; a decorator. Raises UserError for one that is none."""
        parameters = vars(variant).get("__dataclass_params__")  # a dataclass's own, not those of its base
        rule = f"what is registered for {self.what} is a frozen dataclass of settings"
        frozen = parameters is not None and parameters.frozen and issubclass(variant, Settings)
        require(frozen, rule, variant.__name__, "see docs/ for an example")
        new = bool(variant.name) and variant.name not in self.variants
        require(new, f"each variant of {self.what} has a name of its own", repr(variant.name), "choose another")
        self.variants[variant.name] = variant
        return variant

    def variant(self, value: Mapping[str, Any]) -> type[Any]:
        """The settings class that a mapping's ``name`` chooses. Raises UserError for an unknown name."""
        require_choice(str(value.get("name")), self.variants, f"{self.what}.name")
        return self.variants[str(value["name"])]
