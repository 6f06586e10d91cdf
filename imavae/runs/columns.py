"""Names of the columns of ``members.csv``.

A member keeps two best states: by ``val/mcc`` (where sources are known) and by ``val/neg_elbo``. The best value of a
criterion is in ``max val/mcc`` or ``min val/neg_elbo``; any other metric at that state is in a column like
``test/mcc at max val/mcc``.
"""

from __future__ import annotations

from collections.abc import Iterable

BEST_MCC, BEST_NEG_ELBO = "max val/mcc", "min val/neg_elbo"
_BEST = {"val/mcc": BEST_MCC, "val/neg_elbo": BEST_NEG_ELBO}
_AT = " at "


def best_column(criterion: str) -> str:
    """The column of a criterion's best value: ``max val/mcc`` or ``min val/neg_elbo``."""
    return _BEST[criterion]


def at_best(metric: str, criterion: str) -> str:
    """The column of a metric at a member's best state by ``criterion``: ``test/mcc at max val/mcc``."""
    return f"{metric}{_AT}{best_column(criterion)}"


def metric_of(column: str) -> str:
    """The metric that a column holds: ``test/mcc`` of ``test/mcc at max val/mcc``; other columns are returned as is."""
    return column.partition(_AT)[0]


def at_state(columns: Iterable[str], criterion: str) -> dict[str, str]:
    """The columns read at the best state by ``criterion``, as metric -> column."""
    return {metric_of(column): column for column in columns if column == at_best(metric_of(column), criterion)}


def criterion_of(columns: Iterable[str]) -> str:
    """The criterion that selects a member and its state: ``val/mcc``, or ``val/neg_elbo`` where sources are unknown."""
    return "val/mcc" if BEST_MCC in columns else "val/neg_elbo"
