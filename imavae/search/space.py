"""Search spaces: parameters, their conditions, the points and ensembles that follow from them, and the samplers.

A space is nested like the settings; each leaf is a distribution::

    model:
      gamma: {type: float, low: 3.0, high: 1000.0, log: true}
      n_layers: {type: int, low: 2, high: 4}
      slope: {type: float, low: 0.0, high: 0.5, when: {model: {activation: leaky_relu, n_layers: {at_least: 3}}}}

A parameter with ``when`` belongs to a point only if all conditions hold; otherwise the setting keeps its value from
outside the space. A condition names another searched setting, with the value that it must equal or one of ``TESTS``.

A plugin registers a sampler like those at the end of this file::

    from imavae.config.settings import SAMPLERS, SamplerKind

    def gaussian_process(settings, distributions, seed):
        return optuna.samplers.GPSampler(seed=seed)

    SAMPLERS.register(SamplerKind("gp", gaussian_process, numbers_only=True))
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from imavae.config.mapping import flatten, keys_of, nearest, to_mapping
from imavae.config.registry import optuna
from imavae.config.settings import SAMPLERS, RunConfig, Sampler, SamplerKind, StudyConfig, base_of, with_values
from imavae.errors import UserError, require, require_choice

Value = float | int | str
Point = dict[str, Value]  # values of the searched settings by dotted key
Distributions = Mapping[str, "optuna.distributions.BaseDistribution"]  # by dotted key
# may differ within an ensemble
PER_MEMBER = ("model.gamma", "model.beta", "model.ima_weight", "training.learning_rate")
FIELDS = {"float": ("low", "high", "log"), "int": ("low", "high", "log"), "choice": ("values",)}
TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "at_least": operator.ge,
    "at_most": operator.le,
    "one_of": lambda value, listed: value in listed,
}
BEST_POINTS = 5  # taken from an earlier study


@dataclass(frozen=True)
class Condition:
    """Test of another searched setting."""

    key: str  # dotted
    test: str
    bound: Any

    def holds(self, point: Mapping[str, object]) -> bool:
        return self.key in point and TESTS[self.test](point[self.key], self.bound)

    def __str__(self) -> str:
        return f"{self.key} {self.test} {self.bound}"


@dataclass(frozen=True)
class Parameter:
    """Searched setting: a uniform or log-uniform interval of floats or ints, or a list of choices."""

    key: str  # dotted, as in model.gamma
    type: str
    low: float | int = 0.0
    high: float | int = 0.0
    log: bool = False
    values: tuple[Value, ...] = ()
    when: tuple[Condition, ...] = ()

    @property
    def ends(self) -> tuple[Value, ...]:
        """Both ends of the interval, or every choice: if these obey a setting's rules, all values do."""
        return self.values if self.type == "choice" else (self.low, self.high)

    def active(self, point: Mapping[str, object]) -> bool:
        """Whether the conditions hold, given the settings that the point has so far."""
        return all(condition.holds(point) for condition in self.when)

    def allows(self, value: object) -> bool:
        if self.type == "choice":
            return value in self.values
        return _is_number(value, self.type) and self.low <= cast(float, value) <= self.high

    def distribution(self) -> Any:  # Optuna's
        if self.type == "choice":
            return optuna.distributions.CategoricalDistribution(self.values)
        kinds: Any = {"int": optuna.distributions.IntDistribution, "float": optuna.distributions.FloatDistribution}
        return kinds[self.type](self.low, self.high, log=self.log)

    def suggest(self, trial: optuna.Trial) -> Any:
        """Value in Optuna's trial; sampled if the trial has none yet."""
        if self.type == "choice":
            return trial.suggest_categorical(self.key, self.values)
        kinds: Any = {"int": trial.suggest_int, "float": trial.suggest_float}
        return kinds[self.type](self.key, self.low, self.high, log=self.log)


def check(config: StudyConfig) -> tuple[list[Parameter], list[Point]]:
    """Parameters of a study, and the points that are known beforehand: a grid's, or those to start from.

    Raises UserError for any mistake in the study that can be found before its first trial.
    """
    from imavae.metrics.glossary import check_metric  # it imports torch, which other uses of this module do not need

    metrics = [objective.metric for objective in config.objectives]
    for objective in config.objectives:
        check_metric(config, objective.metric, objective.mode)
    require(len(set(metrics)) == len(metrics), "each objective has a metric of its own", metrics, "drop the copy")
    remedy = "set sampler.name=tpe and scheduler.name=none, or drop further_objectives"
    sampler, scheduler = config.sampler.name, config.scheduler.name
    for setting, name, several in (
        ("sampler.name", sampler, SAMPLERS[sampler].several_objectives),
        ("scheduler.name", scheduler, scheduler == "none"),
    ):
        got = f"{name} with {', '.join(metrics)}"
        require(several or len(metrics) == 1, f"{setting} supports several objectives", got, remedy)
    parameters, base = parse(config), base_of(config)
    for parameter, objective in itertools.product(parameters, config.objectives):
        for value in parameter.ends:
            try:
                check_metric(with_values(base, {parameter.key: value}), objective.metric, objective.mode)
            except UserError as error:
                raise UserError(f"`search.{parameter.key}` reaches {value!r}, where {error}") from None
    if "training.init" in [parameter.key for parameter in parameters] or base.training.init is not None:
        _check_init(base, parameters)
    points = start_points(config, parameters)
    if sampler == "grid":
        return parameters, grid(parameters)[: config.budget.trials]
    remedy = "only a grid ends by itself: set budget.trials=32"
    require(config.budget.trials is not None, "budget.trials is a number, but for a grid", "null", remedy)
    if (config.sampler.pack or 1) > 1:
        _check_pack(parameters)
    return parameters, points


def _check_init(base: RunConfig, parameters: Sequence[Parameter]) -> None:
    """Raise UserError unless the initial weights are those of the models at all ends of the search."""
    from imavae.runs.session import initial_weights  # it imports torch, which takes a second

    initial_weights(base)
    for key, value in [(parameter.key, value) for parameter in parameters for value in parameter.ends]:
        try:
            initial_weights(with_values(base, {key: value}))
        except UserError as error:
            raise UserError(f"`search.{key}` reaches {value!r}, for which {error}") from None


def parse(config: StudyConfig) -> list[Parameter]:
    """Parameters of ``config.search`` in the order of the file, each after those that its conditions name.

    Raises UserError for a wrong parameter, a value that its setting refuses, or one that the sampler can't propose.
    """
    parameters, keys = [], set(keys_of(RunConfig))
    for key, leaf in flatten(config.search, is_leaf=lambda node: isinstance(node.get("type"), str)).items():
        remedy = "write {type: float, low: …, high: …} or {type: choice, values: […]}, or set a list outside search"
        require(isinstance(leaf, Mapping), f"search.{key} is a mapping with type, or a plain value", repr(leaf), remedy)
        if key not in keys:
            raise UserError(f"`search.{key}` must name a setting of data, model or training; {nearest(key, RunConfig)}")
        parameters.append(_parameter(key, leaf))
        _check(config, parameters[-1])
    return _in_order(parameters)


def shared(point: Mapping[str, Value]) -> Point:
    """The values of a point that all members of an ensemble have in common."""
    return {key: value for key, value in point.items() if key not in PER_MEMBER}


def grid(parameters: Sequence[Parameter]) -> list[Point]:
    """Every combination of the choices, without repeats; the last parameter changes fastest."""
    points: list[Point] = []
    for values in itertools.product(*(parameter.values for parameter in parameters)):
        point: Point = {}
        for parameter, value in zip(parameters, values, strict=True):
            point |= {parameter.key: value} if parameter.active(point) else {}
        points += [point] if point not in points else []
    return points


def start_points(config: StudyConfig, parameters: Sequence[Parameter]) -> list[Point]:
    """Points of ``sampler.start_from``, which a study trains first: in the listed order, or an earlier study's best.

    A point may be partial: the sampler proposes the settings that it leaves out.
    """
    source, budget = config.sampler.start_from, config.budget.trials or 0
    if source is None:
        return []
    remedy = "a grid trains all of its points: choose another sampler, or drop start_from"
    require(config.sampler.name != "grid", "sampler.start_from is null in a grid", source, remedy)
    if isinstance(source, str):
        return _best_points(source, parameters)[:budget]
    rule = "sampler.start_from has budget.trials points at most"
    require(len(source) <= budget, rule, len(source), "raise budget.trials, or list fewer points")
    by_key, points = {parameter.key: parameter for parameter in parameters}, [flatten(point) for point in source]
    for key, value in itertools.chain.from_iterable(point.items() for point in points):
        rule = "sampler.start_from names settings that are searched"
        require(key in by_key, rule, key, f"those are {', '.join(by_key)}; set others outside search")
        rule = f"sampler.start_from has values that search.{key} allows"
        require(by_key[key].allows(value), rule, repr(value), f"stay within {list(by_key[key].ends)}")
    return points


def packs(base: RunConfig, points: Sequence[Point], slots: int, limit: int | None = None) -> list[list[int]]:
    """Group the numbers of points that can train in one ensemble: those that share all but per-member settings, and
    have an IMA weight of zero or a positive one.

    Each group is dealt out in turn to as many packs as occupy all ``slots`` (trials that run at once) or, with a
    ``limit``, to as many as keep each pack within it. The result depends only on the points and on slots or limit:
    sums round differently in an ensemble of another size, so with a limit a study repeats whatever the slots.
    """
    groups: dict[tuple[RunConfig, bool], list[int]] = {}
    for number, values in enumerate(points):
        weight = cast(float, values.get("model.ima_weight", base.model.ima_weight))
        groups.setdefault((with_values(base, shared(values)), weight > 0), []).append(number)
    least = math.ceil(slots / len(groups)) if groups else 0
    dealt = []
    for group in groups.values():
        count = math.ceil(len(group) / limit) if limit else least
        dealt += [pack for i in range(count) if (pack := group[i::count])]
    return dealt


def packs_of(
    config: StudyConfig, parameters: Sequence[Parameter], points: Sequence[Point], slots: int
) -> list[list[int]]:
    """Group the numbers of points that are known beforehand by the ensembles in which they train.

    A start point whose architecture the sampler has yet to complete trains alone.
    """
    base, limit = base_of(config), config.sampler.pack
    if config.sampler.name == "grid":
        return packs(base, points, slots, limit)
    needed = [parameter for parameter in parameters if parameter.key not in PER_MEMBER]
    partial = {n for n, point in enumerate(points) if any(p.key not in point and p.active(point) for p in needed)}
    whole = [number for number in range(len(points)) if number not in partial]
    together = packs(base, [points[number] for number in whole], 1, limit or 1)
    return sorted([[number] for number in partial] + [[whole[i] for i in pack] for pack in together])


def _check_pack(parameters: Sequence[Parameter]) -> None:
    keys = [parameter.key for parameter in parameters]
    rule = "sampler.pack > 1 needs a searched setting that may differ within an ensemble"
    remedy = f"search one of {', '.join(PER_MEMBER)}, or drop sampler.pack"
    require(any(key in PER_MEMBER for key in keys), rule, f"search of {', '.join(keys)}", remedy)
    rule = "with sampler.pack > 1, no setting of the whole ensemble depends on one of a single member"
    for parameter in parameters:
        names = [condition.key for condition in parameter.when if condition.key in PER_MEMBER]
        got = f"{parameter.key} when {', '.join(names)}"
        require(not names or parameter.key in PER_MEMBER, rule, got, "drop the condition, or sampler.pack")


def _parameter(key: str, leaf: Mapping[str, Any]) -> Parameter:
    kind, name = leaf["type"], f"search.{key}"
    require_choice(kind, FIELDS, f"{name}.type")
    for field in leaf:
        require_choice(field, ("type", "when", *FIELDS[kind]), f"a field of {name}")
    when = _conditions(name, leaf.get("when", {}))
    if kind == "choice":
        values = leaf.get("values")
        require(isinstance(values, list) and len(values) > 0, f"{name}.values has a choice", values, "list some")
        return Parameter(key, kind, values=tuple(values or ()), when=when)
    low, high, log = leaf.get("low"), leaf.get("high"), leaf.get("log", False)
    for end, value in (("low", low), ("high", high)):
        finite = _is_number(value, kind) and math.isfinite(cast(float, value))
        require(finite, f"{name}.{end} is a number of type {kind}", repr(value), "give both ends of the interval")
    require(isinstance(log, bool), f"{name}.log is true or false", repr(log), "set log: true for a log scale")
    parameter = Parameter(key, kind, cast(float, low), cast(float, high), log, when=when)
    got = f"low={low}, high={high}"
    require(parameter.low <= parameter.high, f"{name}.low <= {name}.high", got, "swap them")
    require(not log or parameter.low > 0, f"{name}.low > 0 where log is true", got, "raise low, or drop log")
    return parameter


def _is_number(value: object, kind: str) -> bool:
    return isinstance(value, int if kind == "int" else (int, float)) and not isinstance(value, bool)


def _conditions(name: str, when: Any) -> tuple[Condition, ...]:
    require(isinstance(when, Mapping), f"{name}.when is a mapping", repr(when), "nest it like the settings")
    found = []
    for key, value in flatten(when, is_leaf=lambda node: bool(node) and set(node) <= set(TESTS)).items():
        for test, bound in (value if isinstance(value, Mapping) else {"one_of": [value]}).items():
            listed = test == "one_of"
            right = isinstance(bound, list) if listed else _is_number(bound, "float")
            rule = f"{name}.when.{key}.{test} is {'a list' if listed else 'a number'}"
            require(right, rule, repr(bound), "see search_spaces/ for examples")
            found.append(Condition(key, test, bound))
    return tuple(found)


def _in_order(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Parameters, each after those that its conditions name, otherwise in the given order."""
    by_key = {parameter.key: parameter for parameter in parameters}
    for name, condition in ((f"search.{p.key}.when", condition) for p in parameters for condition in p.when):
        key, remedy = condition.key, f"choose among {', '.join(by_key)}"
        require(key in by_key, f"{name} names settings that are searched", key, remedy)
        other, got = by_key[key], f"{condition}, of {list(by_key[key].ends)}"
        numeric = other.type != "choice" or not any(isinstance(value, str) for value in other.values)
        require(numeric or condition.test == "one_of", f"{name} compares numbers", got, "use one_of: […]")
        values = condition.bound if condition.test == "one_of" else other.ends
        possible = any(other.allows(value) and condition.holds({key: value}) for value in values)
        require(possible, f"{name} can hold", got, "correct its bound")
    placed: dict[str, Parameter] = {}
    while len(placed) < len(parameters):
        ready = [p for p in parameters if p.key not in placed and all(c.key in placed for c in p.when)]
        if not ready:
            left = ", ".join(key for key in by_key if key not in placed)
            raise UserError(f"`when` must not depend on itself, but does in search of {left}; drop one condition")
        placed[ready[0].key] = ready[0]
    return list(placed.values())


def _check(config: StudyConfig, parameter: Parameter) -> None:
    name, sampler = f"search.{parameter.key}", config.sampler.name
    for value in parameter.ends:
        try:
            with_values(base_of(config), {parameter.key: value})
        except UserError as error:
            remedy = f"which its setting refuses ({error}); correct its bounds or values"
            raise UserError(f"`{name}` reaches {value!r}, {remedy}") from None
    rule, remedy = f"{name}.type is choice in a grid", "list the values, or choose another sampler"
    require(sampler != "grid" or parameter.type == "choice", rule, parameter.type, remedy)
    plain = parameter.type != "choice" and not parameter.when
    rule, got = "numbers that every point has", f"{name}, a {'condition' if parameter.when else 'choice'}"
    fits = plain or not SAMPLERS[sampler].numbers_only
    require(fits, f"sampler.name={sampler} searches {rule}", got, "set sampler.name=tpe")


def _best_points(source: str, parameters: Sequence[Parameter]) -> list[Point]:
    """Best points of the earlier study in the folder ``source``, reduced to settings and values that this space allows.

    A setting that the earlier study did not search has the value that it trained with.
    """
    from imavae.runs.results import load_results

    rule, remedy = "sampler.start_from is the folder of a study", "name one, as in outputs/studies/NAME"
    require(Path(source).is_dir(), rule, source, remedy)
    results = load_results(source)
    require(isinstance(results.config, StudyConfig), rule, source, remedy)
    fixed, points = flatten(to_mapping(results.config)), list[Point]()
    for record in results.ranked():
        known = {**fixed, **record.values}
        point = {p.key: known[p.key] for p in parameters if p.key in known and p.allows(known[p.key])}
        points += [point] if point and point not in points else []
    rule = "sampler.start_from is a study that has searched or set what this one searches"
    got = f"{source} without a scored point for {', '.join(parameter.key for parameter in parameters)}"
    require(bool(points), rule, got, "choose another study")
    return points[:BEST_POINTS]


def tpe(settings: Sampler, distributions: Distributions, seed: int) -> optuna.samplers.BaseSampler:
    """TPE with a joint model of all parameters; points in training count as bad.

    It is given the space, which it would otherwise infer from all trials at each proposal.
    """
    sampler = optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=settings.startup, multivariate=True, constant_liar=True
    )
    space = {key: law for key, law in sorted(distributions.items()) if not law.single()}
    sampler.infer_relative_search_space = lambda *_: dict(space)  # type: ignore[method-assign]
    return sampler


def grouped_tpe(settings: Sampler, _: Distributions, seed: int) -> optuna.samplers.BaseSampler:
    """TPE with a joint model of each set of parameters that points have; points in training count as bad."""
    options: Any = {"multivariate": True, "group": True, "constant_liar": True}
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=settings.startup, **options)


def _cmaes(_: Sampler, __: Distributions, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.CmaEsSampler(seed=seed, consider_pruned_trials=True, warn_independent_sampling=False)


def quasi_random(settings: Sampler, distributions: Distributions, _: int) -> optuna.samplers.BaseSampler:
    """Scrambled Sobol points of the whole space.

    The sequence has one seed for all points. Optuna's sampler by itself draws the first point at random and infers the
    space from it, so a parameter that only a later point has would never be spread.
    """
    sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=settings.seed)
    sampler.infer_relative_search_space = lambda *_: dict(distributions)  # type: ignore[method-assign]
    return sampler


def _uniform(_: Sampler, __: Distributions, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed)


SAMPLERS.register(SamplerKind("tpe", tpe, conditional=grouped_tpe))
SAMPLERS.register(SamplerKind("cmaes", _cmaes, numbers_only=True, several_objectives=False))
SAMPLERS.register(SamplerKind("qmc", quasi_random))
SAMPLERS.register(SamplerKind("random", _uniform))
SAMPLERS.register(SamplerKind("grid", _uniform))  # every combination of the choices: nothing is left to propose
