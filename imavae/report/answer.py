"""What a study or a run has found, in a sentence or two. Its words follow from the numbers by the bounds below.

Nothing is said to be recovered that could be chance: the best of many validations is taken, so a median MCC is chance
unless it is above twice what latents reach that know nothing of the sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from imavae.config.settings import RunConfig, StudyConfig, base_of, with_values
from imavae.report.summary import (
    AGREEMENT,
    BEST_MCC,
    BEST_NEG_ELBO,
    chance_mcc,
    counted,
    diverged,
    has_sources,
    no_source_numbers,
    quartiles,
    three_numbers,
)
from imavae.report.tables import energy
from imavae.report.text import compact, short_names
from imavae.runs.ledger import Ledger
from imavae.tracking.base import Value

if TYPE_CHECKING:
    import pandas as pd

RECOVERED, PARTLY = 0.95, 0.8  # a median MCC or agreement from here up is called so


def study_answer(ledger: Ledger, config: StudyConfig) -> list[str]:
    """The answer of a study: its best point, and how well it does."""
    ranked, records = ledger.ranked(), ledger.sorted()
    if not ranked:
        if not records:
            return ["There is no answer yet: no point has ended."]
        reason = next((record.failure for record in records if record.failure), "unknown")
        return [f"There is no answer: each of {len(records)} points failed.", f"The first reason: {reason}"]
    best, members = ranked[0], ledger.members
    if diverged(members).all():
        return [f"There is no answer: every member of {_points(len(ranked))} diverged.", DIVERGED]
    mine, where = members[members["trial"] == best.number], point_of(best.values, members)
    among = len(records) - 1
    found = list(_told(mine, where, with_values(base_of(config), best.values), of_several=among > 0))
    objective = config.objective
    if objective.metric != ("val/mcc" if has_sources(members) else "val/neg_elbo") and best.score is not None:
        found.append(f"The point was chosen by the {objective.aggregate} {objective.metric}: {compact(best.score, 4)}.")
    return found


def run_answer(ledger: Ledger, config: RunConfig) -> list[str]:
    """The answer of a run: how well its one point does."""
    members = ledger.members
    if diverged(members).all():
        return ["There is no answer: every member diverged.", DIVERGED]
    return list(_told(members, point_of({}, members), config, of_several=False))


DIVERGED = "A smaller training.learning_rate or model.gamma may help."


def point_of(values: Mapping[str, Value], members: pd.DataFrame) -> str:
    """A point in words; what was not searched of it is its gamma squared, where its members share one."""
    names = short_names(values)
    texts = [f"{names[key]} = {compact(value)}" for key, value in values.items() if key != "model.gamma"]
    if "model.gamma" in values:
        return ", ".join([f"γ² = {compact(float(values['model.gamma']) ** 2)}", *texts])
    if texts:
        return ", ".join(texts)
    squares = np.array(members["gamma_sq"], dtype=np.float64)
    return f"{'' if np.ptp(squares) == 0 else 'median '}γ² = {compact(float(np.median(squares)))}"


def _told(members: pd.DataFrame, where: str, config: RunConfig, of_several: bool) -> Iterator[str]:
    if not has_sources(members):
        yield from _told_without_sources(members, where, of_several)
        return
    spread = quartiles(counted(members, BEST_MCC))
    numbers = _numbers("val/mcc", [f"{value:.3f}" for value in spread], len(members))
    best = f"the best point, {where}," if of_several else where
    if spread.median >= RECOVERED:
        yield f"{where} recovers the sources: {numbers}."
    elif spread.median >= PARTLY:
        yield f"{best[0].upper()}{best[1:]} recovers the sources in part: {numbers}."
    else:
        by_chance = chance_mcc(config.data)
        no_better = spread.median <= 2 * by_chance
        verb = "does better than chance" if no_better else "recovers the sources"
        alone = "does no better than chance" if no_better else "does not recover the sources"
        yield f"No point {verb}: {best} has a {numbers}." if of_several else f"{where} {alone}: {numbers}."
        yield f"Latents that know nothing of the sources reach {by_chance:.3f} here."
    lost = int(diverged(members).sum())
    if lost:
        yield f"{lost} of its {len(members)} members diverged: in the median and the quartiles they count as 0."
    three = three_numbers(members)
    test = (
        "" if np.isnan(three.test_of_chosen) else f" The chosen model has {three.test_of_chosen:.3f} on the test split."
    )
    yield (
        "This is read where each member's val/mcc is best, for which one must know the sources. Read at the smallest "
        f"val/neg_elbo, without them, the median is {three.at_best_neg_elbo:.3f}.{test}"
    )


def _told_without_sources(members: pd.DataFrame, where: str, of_several: bool) -> Iterator[str]:
    spread = quartiles(counted(members, BEST_NEG_ELBO))
    numbers = _numbers("val/neg_elbo", [energy(value) for value in spread], len(members))
    yield f"{where} {'explains the observations best' if of_several else 'explains the observations'}: {numbers}."
    agreement = no_source_numbers(members).agreement
    if AGREEMENT not in members or np.isnan(agreement):
        yield "A single seed can't say whether another would find the same latents: set members.seed to several."
        return
    verb = "find the same latents" if agreement >= RECOVERED else "agree on their latents in part"
    verb = verb if agreement >= PARTLY else "do not find the same latents"
    yield f"Its seeds {verb}: median agreement {agreement:.3f}."
    yield "There are no sources to compare with: seeds that agree are no proof that they found them."


def _numbers(name: str, spread: list[str], count: int) -> str:
    low, median, high = spread
    if count == 1:
        return f"{name} {median} of one member"
    return f"median {name} {median} over {count} members (quartiles {low} to {high})"


def _points(count: int) -> str:
    return "the one point" if count == 1 else f"all {count} points"
