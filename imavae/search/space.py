"""Search spaces: nested mappings whose leaves name a distribution, checked against the config tree before any trial.

model: {gamma: {type: float, low: 3.0, high: 1000.0, log: true}, n_layers: {type: choice, values: [2, 3]}}

A leaf with ``when`` is conditional: a point has it only where its conditions hold, and otherwise the value that stands
outside the space. Constants are no longer here: :func:`imavae.config.settings.study_config` has set them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from imavae.config.mapping import keys_of, nearest
from imavae.config.settings import NUMBERS_ONLY, RunConfig, StudyConfig, base_of, with_values
from imavae.errors import UserError, require, require_choice
from imavae.search.conditions import Condition, conditions, in_order

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
    when: tuple[Condition, ...] = ()  # a point has it only where all of them hold

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that decide whether all of them obey the rules: both ends of an interval, or every choice."""
        if self.type == "choice":
            return self.values
        return (int(self.low), int(self.high)) if self.type == "int" else (self.low, self.high)

    @property
    def per_member(self) -> bool:
        """Whether it may differ between the members of an ensemble."""
        return self.key in PER_MEMBER

    def active(self, point: Mapping[str, object]) -> bool:
        """Whether a point has it, by the settings that the point has been given before."""
        return all(condition.holds(point) for condition in self.when)

    def allows(self, value: object) -> bool:
        """Whether it can take this value."""
        if self.type == "choice":
            return value in self.values
        kind = int if self.type == "int" else (int, float)
        return isinstance(value, kind) and not isinstance(value, bool) and self.low <= value <= self.high

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
            return cast("Value", trial.suggest_categorical(self.key, self.values))
        if self.type == "int":
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


def parse(config: StudyConfig) -> list[Parameter]:
    """The parameters of ``config.search``, in the file's order as far as conditions allow.

    Raises:
        UserError: a key that names no setting, an unknown type or field, an empty interval or list, a log interval
            that reaches 0, a value that breaks the setting's own rule, a condition on what is not searched, or a
            parameter that the sampler can't propose.
    """
    base = base_of(config)
    parameters = []
    for key, leaf in _leaves(config.search, ""):
        _check_key(key)
        parameter = _parameter(key, leaf)
        for value in parameter.ends:
            _check_value(base, key, value)
        _check_sampler(config.sampler.name, parameter)
        parameters.append(parameter)
    return in_order(parameters)


def grid(parameters: Sequence[Parameter]) -> list[Point]:
    """Every combination of the choices, the last parameter changing fastest; each once, where some are conditional."""
    points: list[Point] = []
    for values in itertools.product(*(parameter.values for parameter in parameters)):
        point: Point = {}
        for parameter, value in zip(parameters, values, strict=True):
            if parameter.active(point):
                point[parameter.key] = value
        if point not in points:
            points.append(point)
    return points


def packs(base: RunConfig, points: Sequence[Point], slots: int, limit: int | None = None) -> list[list[int]]:
    """Numbers of the points that train together: those that share all but what is a value per member.

    Each group is dealt out, in turn, to so many packs that all ``slots`` (trials that run at once) have one or, with a
    ``limit``, that none has more points than that. The count depends on shapes, and on slots or limit, alone: a study's
    results can be repeated, with a limit whatever the slots. (In an ensemble of another size sums round otherwise.)
    """
    groups: dict[RunConfig, list[int]] = {}
    for number, values in enumerate(points):
        groups.setdefault(with_values(base, shared(values)), []).append(number)
    least = math.ceil(slots / len(groups)) if groups else 0
    dealt = []
    for group in groups.values():
        each = math.ceil(len(group) / limit) if limit else least
        dealt += [pack for i in range(each) if (pack := group[i::each])]
    return dealt


def shared(point: Mapping[str, Value]) -> Point:
    """What all members of an ensemble have in common, of a point's settings."""
    return {key: value for key, value in point.items() if key not in PER_MEMBER}


def check_pack(parameters: Sequence[Parameter], pack: int) -> None:
    """Raise UserError unless points of this space can train together."""
    keys = ", ".join(PER_MEMBER)
    require(
        pack == 1 or any(parameter.per_member for parameter in parameters),
        "sampler.pack > 1 needs a searched setting that may differ within an ensemble",
        f"pack={pack}, search of {', '.join(p.key for p in parameters)}",
        f"search one of {keys}, or leave sampler.pack at null",
    )
    for parameter in parameters:
        names = [c.key for c in parameter.when if c.key in PER_MEMBER]
        require(
            pack == 1 or parameter.per_member or not names,
            "with sampler.pack > 1, no setting of the whole ensemble depends on one of a single member",
            f"{parameter.key} when {', '.join(names)}",
            "drop the condition, or leave sampler.pack at null",
        )


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, value in node.items():
        if not isinstance(value, Mapping):
            raise UserError(
                f"`search.{prefix}{name}` must be a mapping with `type`, or a plain value, but got {value!r}; "
                "write {type: float, low: …, high: …} or {type: choice, values: […]}, or set a list outside search"
            )
        if isinstance(value.get("type"), str):
            yield f"{prefix}{name}", value
        else:
            yield from _leaves(value, f"{prefix}{name}.")


def _check_key(key: str) -> None:
    if key not in set(keys_of(RunConfig)):
        raise UserError(
            f"`search.{key}` must name a setting of data, model or training, but it names none; "
            f"{nearest(key, RunConfig)}"
        )


def _parameter(key: str, leaf: Mapping[str, Any]) -> Parameter:
    require_choice(leaf["type"], FIELDS, f"search.{key}.type")
    for name in leaf:
        require_choice(name, ("type", "when", *FIELDS[leaf["type"]]), f"a field of search.{key}")
    when = conditions(key, leaf.get("when", {}))
    if leaf["type"] == "choice":
        values = leaf.get("values")
        require(isinstance(values, list) and len(values) > 0, f"search.{key}.values has a choice", values, "list some")
        return Parameter(key, "choice", values=tuple(values), when=when)  # type: ignore[arg-type]
    low, high = _number(key, leaf, "low"), _number(key, leaf, "high")
    log = leaf.get("log", False)
    require(
        isinstance(log, bool), f"search.{key}.log is true or false", repr(log), "say log: true to search magnitudes"
    )
    got = f"low={low}, high={high}"
    require(-math.inf < low <= high < math.inf, f"search.{key}.low <= search.{key}.high", got, "swap them")
    require(not log or low > 0, f"search.{key}.low > 0 where log is true", got, "raise low, or drop log")
    return Parameter(key, leaf["type"], low, high, log, when=when)


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
        raise UserError(
            f"`search.{key}` reaches {value!r}, which its setting refuses ({error}); correct its bounds or values"
        ) from None


def _check_sampler(name: str, parameter: Parameter) -> None:
    require(
        name != "grid" or parameter.type == "choice",
        f"search.{parameter.key}.type is choice in a grid",
        parameter.type,
        "list the values, or take another sampler",
    )
    plain = parameter.type != "choice" and not parameter.when
    require(
        name not in NUMBERS_ONLY or plain,
        f"sampler.name={name} searches numbers that every point has",
        f"search.{parameter.key}, a {'condition' if parameter.when else 'choice'}",
        "take sampler.name=tpe, which models it",
    )
