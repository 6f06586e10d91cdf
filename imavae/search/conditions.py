"""Conditions of a search space: settings that a point has only where others have certain values.

slope: {type: float, low: 0.0, high: 0.5, when: {model: {activation: leaky_relu, n_layers: {at_least: 3}}}}

``when`` is nested like the settings; what it names must be searched. A plain value must be equal. A setting that is
missing itself fulfils no condition.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imavae.errors import UserError, require

if TYPE_CHECKING:
    from imavae.search.space import Parameter

TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "at_least": operator.ge,
    "at_most": operator.le,
    "one_of": lambda value, listed: value in listed,
}


@dataclass(frozen=True)
class Condition:
    """One test of one searched setting."""

    key: str  # dotted
    test: str
    bound: Any

    def holds(self, point: Mapping[str, object]) -> bool:
        """Whether the point has the setting, and its value passes."""
        return self.key in point and TESTS[self.test](point[self.key], self.bound)

    def __str__(self) -> str:
        return f"{self.key} {self.test} {self.bound}"


def conditions(key: str, when: object) -> tuple[Condition, ...]:
    """The conditions of the parameter ``key``. Raises UserError for a test that there is not, or a wrong bound."""
    place = f"search.{key}.when"
    require(isinstance(when, Mapping), f"{place} is a mapping", repr(when), "nest it like the settings")
    found = tuple(_conditions(when, ""))  # type: ignore[arg-type]
    for condition in found:
        number = isinstance(condition.bound, (int, float)) and not isinstance(condition.bound, bool)
        right = isinstance(condition.bound, list) if condition.test == "one_of" else number
        kind = "a list" if condition.test == "one_of" else "a number"
        got = repr(condition.bound)
        require(right, f"{place}.{condition.key}.{condition.test} is {kind}", got, "see search_spaces/ for examples")
    return found


def in_order(parameters: Sequence[Parameter]) -> list[Parameter]:
    """The parameters, each after those that its conditions name, otherwise in the order given.

    Raises:
        UserError: a condition names what is not searched, or comes back to itself, or can't hold.
    """
    by_key = {parameter.key: parameter for parameter in parameters}
    for parameter in parameters:
        for condition in parameter.when:
            _check(parameter.key, condition, by_key)
    placed: dict[str, Parameter] = {}
    while len(placed) < len(parameters):
        ready = [p for p in parameters if p.key not in placed and all(c.key in placed for c in p.when)]
        if not ready:
            left = ", ".join(key for key in by_key if key not in placed)
            raise UserError(f"`when` must not come back to itself, but does in search of {left}; drop one condition")
        placed[ready[0].key] = ready[0]
    return list(placed.values())


def _conditions(node: Mapping[str, Any], prefix: str) -> Iterator[Condition]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if not isinstance(value, Mapping):
            yield Condition(key, "one_of", [value])
        elif value and set(value) <= set(TESTS):
            yield from (Condition(key, test, bound) for test, bound in value.items())
        else:
            yield from _conditions(value, f"{key}.")


def _check(key: str, condition: Condition, by_key: Mapping[str, Parameter]) -> None:
    place = f"search.{key}.when"
    if condition.key not in by_key:
        raise UserError(
            f"`{place}` must name settings that are searched, with a plain value or {', '.join(TESTS)}, but names "
            f"{condition.key}; choose among {', '.join(by_key)}"
        )
    other = by_key[condition.key]
    numeric = other.type != "choice" or not any(isinstance(value, str) for value in other.values)
    require(
        numeric or condition.test == "one_of",
        f"{place} compares numbers",
        f"{condition}, which has the values {list(other.values)}",
        "say one_of: […]",
    )
    reached = (
        [other.allows(v) for v in condition.bound]
        if condition.test == "one_of"
        else [condition.holds({condition.key: value}) for value in other.ends]
    )
    require(any(reached), f"{place} can hold", f"{condition}, of {list(other.ends)}", "correct its bound")
