"""Search spaces: nested mappings whose leaves name a distribution, checked against the config tree before any trial.

model: {gamma: {type: float, low: 3.0, high: 1000.0, log: true}, n_layers: {type: choice, values: [2, 3]}}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imavae.config import RunConfig, StudyConfig, base_of, with_values
from imavae.errors import UserError, known, require
from imavae.mapping import keys_of, nearest

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution

Value = float | int | str
Point = dict[str, Value]  # a value for each searched setting, by its dotted key
PER_MEMBER = ("model.gamma", "model.beta", "training.learning_rate")  # may differ within an ensemble
FIELDS = {"float": ("low", "high", "log"), "int": ("low", "high", "log"), "choice": ("values",)}


@dataclass(frozen=True)
class Parameter:
    """One searched setting: an interval of floats or ints, uniform or log-uniform, or a list of choices."""

    key: str  # dotted, as in model.gamma
    type: str
    low: float | int = 0.0
    high: float | int = 0.0
    log: bool = False
    values: tuple[Value, ...] = ()

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that decide whether all of them obey the rules: both ends of an interval, or every choice."""
        if self.type == "choice":
            return self.values
        return (int(self.low), int(self.high)) if self.type == "int" else (self.low, self.high)

    def distribution(self) -> BaseDistribution:
        """Optuna's name for it."""
        from optuna import distributions

        if self.type == "choice":
            return distributions.CategoricalDistribution(self.values)
        if self.type == "int":
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)

    def suggest(self, trial: Trial) -> Value:
        """The value that Optuna's trial has for it; sampled, where it has none."""
        if self.type == "choice":
            value: Value = trial.suggest_categorical(self.key, self.values)
            return value
        if self.type == "int":
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


def parse(config: StudyConfig) -> list[Parameter]:
    """The parameters of ``config.search``, in the file's order.

    Raises:
        UserError: a key that names no setting, an unknown type or field, an empty interval or list, a log interval
            that reaches 0, a value that breaks the setting's own rule, or a continuous parameter in a grid.
    """
    base = base_of(config)
    valid = set(keys_of(RunConfig))
    parameters = []
    for key, leaf in _leaves(config.search, ""):
        searchable = key in valid and key.split(".")[0] in ("data", "model", "training")
        if not searchable:
            raise UserError(
                f"`search.{key}` must name a setting of data, model or training, but it names none; "
                f"{nearest(key, RunConfig)}"
            )
        parameter = _parameter(key, leaf)
        for value in parameter.ends:
            _check_value(base, key, value)
        if config.sampler.name == "grid" and parameter.type != "choice":
            raise UserError(
                f"`search.{key}.type` must be choice in a grid, but got {parameter.type}; "
                "list the values, or take another sampler"
            )
        parameters.append(parameter)
    return parameters


def grid(parameters: Sequence[Parameter]) -> list[Point]:
    """Every combination of the choices, the last parameter changing fastest."""
    keys = [parameter.key for parameter in parameters]
    return [dict(zip(keys, point, strict=True)) for point in itertools.product(*(p.values for p in parameters))]


def packs(base: RunConfig, points: Sequence[Point], slots: int) -> list[list[int]]:
    """Numbers of the points that train together: those that share all but what is a value per member.

    Each group is dealt out, in turn, to so many packs that all ``slots`` (trials that run at once) have one; the count
    depends on shapes and slots alone, so a study's results can be repeated.
    """
    groups: dict[RunConfig, list[int]] = {}
    for number, values in enumerate(points):
        shared = {k: v for k, v in values.items() if k not in PER_MEMBER}
        groups.setdefault(with_values(base, shared), []).append(number)
    each = math.ceil(slots / len(groups))
    return [pack for group in groups.values() for i in range(each) if (pack := group[i::each])]


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, value in node.items():
        if not isinstance(value, Mapping):
            raise UserError(
                f"`search.{prefix}{name}` must be a mapping with `type`, but got {value!r}; "
                "write {type: float, low: …, high: …} or {type: choice, values: […]}, or set the value outside search"
            )
        if isinstance(value.get("type"), str):
            yield f"{prefix}{name}", value
        else:
            yield from _leaves(value, f"{prefix}{name}.")


def _parameter(key: str, leaf: Mapping[str, Any]) -> Parameter:
    known(leaf["type"], FIELDS, f"search.{key}.type")
    for name in leaf:
        known(name, ("type", *FIELDS[leaf["type"]]), f"a field of search.{key}")
    if leaf["type"] == "choice":
        values = leaf.get("values")
        require(isinstance(values, list) and len(values) > 0, f"search.{key}.values has a choice", values, "list some")
        return Parameter(key, "choice", values=tuple(values))  # type: ignore[arg-type]
    low, high = _number(key, leaf, "low"), _number(key, leaf, "high")
    log = leaf.get("log", False)
    require(isinstance(log, bool), f"search.{key}.log is true or false", repr(log), "true searches magnitudes")
    got = f"low={low}, high={high}"
    require(-math.inf < low <= high < math.inf, f"search.{key}.low <= search.{key}.high", got, "swap them")
    require(not log or low > 0, f"search.{key}.low > 0 where log is true", got, "raise low, or drop log")
    return Parameter(key, leaf["type"], low, high, log)


def _number(key: str, leaf: Mapping[str, Any], name: str) -> float | int:
    value = leaf.get(name)
    kind = int if leaf["type"] == "int" else (int, float)
    number = isinstance(value, kind) and not isinstance(value, bool)
    require(number, f"search.{key}.{name} is a number of type {leaf['type']}", repr(value), "give both ends")
    return value  # type: ignore[return-value]


def _check_value(base: RunConfig, key: str, value: Value) -> None:
    try:
        with_values(base, {key: value})
    except UserError as error:
        raise UserError(f"`search.{key}` reaches {value!r}, which its setting refuses: {error}") from None
