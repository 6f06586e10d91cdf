"""Known good points, which a study trains first: those that ``sampler.start_from`` lists, or an earlier study's best.

A point need not be whole: what it does not say is proposed by the sampler.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from imavae.config.settings import RunConfig, StudyConfig
from imavae.errors import UserError, require
from imavae.search.samplers import open_storage
from imavae.search.space import Parameter, Point, packs
from imavae.tracking.ui import OPTUNA_DATABASE

BEST = 5  # points that are taken from an earlier study


def start_points(config: StudyConfig, parameters: Sequence[Parameter]) -> list[Point]:
    """The points to begin with, in the order of the list, or best first.

    Raises:
        UserError: a listed setting is not searched or can't have its value, there are more points than the budget has,
            or there is no such study, or it knows nothing of what is searched.
    """
    source = config.sampler.start_from
    if source is None:
        return []
    require(
        config.sampler.name != "grid",
        "sampler.start_from is null in a grid",
        source,
        "a grid trains all of its points: take another sampler, or drop start_from",
    )
    points = _earlier(source, parameters) if isinstance(source, str) else [_listed(p, parameters) for p in source]
    budget = config.budget.trials or 0
    if isinstance(source, str):
        return points[:budget]
    require(
        len(points) <= budget,
        "sampler.start_from has budget.trials points at most",
        len(points),
        "raise it, or list fewer",
    )
    return points


def start_packs(
    base: RunConfig, points: Sequence[Point], parameters: Sequence[Parameter], limit: int
) -> list[list[int]]:
    """Numbers of the points that train together; one whose ensemble is not known yet trains alone."""
    whole = [
        number
        for number, point in enumerate(points)
        if all(p.per_member or p.key in point or not p.active(point) for p in parameters)
    ]
    dealt = [[whole[i] for i in pack] for pack in packs(base, [points[n] for n in whole], 1, limit)]
    return sorted(dealt + [[number] for number in range(len(points)) if number not in whole])


def _listed(nested: Mapping[str, Any], parameters: Sequence[Parameter]) -> Point:
    """A point as it is written in a search space: nested like it."""
    by_key = {parameter.key: parameter for parameter in parameters}
    point: Point = {}
    for key, value in _flat(nested, ""):
        require(
            key in by_key,
            "sampler.start_from names settings that are searched",
            key,
            f"those are {', '.join(by_key)}; set others outside search",
        )
        parameter = by_key[key]
        require(
            parameter.allows(value),
            f"sampler.start_from has values that search.{key} allows",
            repr(value),
            f"stay within {list(parameter.ends)}",
        )
        point[key] = value
    return point


def _flat(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _earlier(source: str, parameters: Sequence[Parameter]) -> list[Point]:
    """The best points of an earlier study, as far as this space has and allows their settings.

    A setting that the earlier study did not search has the value that it trained with.
    """
    import optuna

    folder = Path(source).resolve()
    output_dir = folder.parent.parent
    rule, remedy = "sampler.start_from is the folder of a study", "name one, as in outputs/studies/NAME"
    require((folder / "config.yaml").is_file() and (output_dir / OPTUNA_DATABASE).is_file(), rule, source, remedy)
    fixed = dict(_flat(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")), ""))
    storage = open_storage(output_dir)
    require(
        folder.name in optuna.get_all_study_names(storage),
        rule,
        source,
        f"{output_dir / OPTUNA_DATABASE} has none so called: name another",
    )
    study = optuna.load_study(study_name=folder.name, storage=storage)
    sign = -1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1
    scored = [trial for trial in study.get_trials(deepcopy=False) if trial.values]
    points: list[Point] = []
    for trial in sorted(scored, key=lambda trial: (sign * trial.values[0], trial.number)):
        known = {**fixed, **trial.params}
        point = {p.key: known[p.key] for p in parameters if p.key in known and p.allows(known[p.key])}
        if point and point not in points:
            points.append(point)
    if not points:
        keys = ", ".join(parameter.key for parameter in parameters)
        raise UserError(
            f"`{rule}` that knows something of what is searched must hold, but {source} has no scored point with "
            f"a value for {keys} within their bounds; choose another study"
        )
    return points[:BEST]
