"""Numbers that summarise members: quartiles, the MCC of a trial read in three ways, and the regret of each criterion.

A diverged member counts as the worst value of its metric (:func:`counted`). A point that trains three of eight seeds
well therefore does not look better than it is.

Selection (:func:`choices`). Three criteria choose on the validation split: ``val/mcc`` (an oracle, since it needs the
sources), ``val/neg_elbo``, and ``val/agreement`` of the seeds. Each choice is scored by its MCC on the test split. The
regret of a criterion is the oracle's MCC minus its own. A small negative regret means that the oracle's lead did not
last. Three things are chosen: a point (by the medians of its members), a member of a given point, and a member of any
point. Rivals have the same data: points that differ in ``data.*`` are never compared, nor are members with different
data seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from imavae.config.settings import RunConfig, StudyConfig, base_of, with_values
from imavae.metrics.glossary import NEARLY_LINEAR, OF_WORLDS
from imavae.report.display import point_text
from imavae.runs.records import BEST_MCC, BEST_NEG_ELBO, at_best, metric_of
from imavae.search.space import parse
from imavae.tracking import TrialRecord

if TYPE_CHECKING:
    import pandas as pd

    from imavae.runs.results import Results

Floats = NDArray[np.float64]
AGREEMENT = at_best("val/agreement", "val/neg_elbo")  # takes the place of MCC where there are no sources
CHOICES = ("a point", "a member of a point", "a member of any point")
ORACLE = "val/mcc"
ENOUGH_CHOICES = 10  # fewer choices of a kind advise nothing
CLOSE_REGRETS = 0.01  # regrets that differ by less do not favour a criterion
LINEAR_ICA, LINEAR_ICA_TEST = (at_best(f"{split}/mcc_linear_ica", "val/mcc") for split in ("val", "test"))


class Criterion(NamedTuple):
    """A score that chooses members, its better direction, and the column of the MCC of what it chooses."""

    column: str
    sign: int  # 1: the highest is best
    mcc: str


SELECTION = {
    ORACLE: Criterion(BEST_MCC, 1, at_best("test/mcc", "val/mcc")),
    "val/neg_elbo": Criterion(BEST_NEG_ELBO, -1, at_best("test/mcc", "val/neg_elbo")),
    "val/agreement": Criterion(AGREEMENT, 1, at_best("test/mcc", "val/neg_elbo")),
}
BLIND = [name for name in SELECTION if name != ORACLE]  # criteria that need no sources


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile."""

    low: float
    median: float
    high: float


def has_sources(members: pd.DataFrame) -> bool:
    """Return whether members were compared with sources, so that each has a state with the best ``val/mcc``."""
    return BEST_MCC in members or BEST_NEG_ELBO not in members


def diverged(members: pd.DataFrame) -> NDArray[np.bool_]:
    """Mask of the members that diverged, (member,)."""
    return np.asarray(members["status"] == "diverged", dtype=bool)


def column_values(frame: pd.DataFrame, column: str) -> Floats:
    """A column as floats; NaN if it is missing, as it is if no member reached its first validation."""
    return np.array(frame[column] if column in frame else [np.nan] * len(frame), dtype=np.float64)


def counted(members: pd.DataFrame, column: str) -> Floats:
    """A column's values as they enter an aggregate, (member,): a diverged member has the worst possible value.

    The worst is 0 for MCC and agreement, and +inf for −ELBO and c_IMA. Other missing values (of a test split that was
    not evaluated) stay NaN, and so do all values of a world, which do not depend on its members.
    """
    values = column_values(members, column)
    metric = metric_of(column)
    if not metric.endswith(OF_WORLDS):
        values[diverged(members)] = 0.0 if "/mcc" in metric or "/agreement" in metric else np.inf
    return values


def quartiles(values: Floats) -> Quartiles:
    """Quartiles of the values, (n,), without NaN, linear between neighbours; all NaN if none is left."""
    values = values[~np.isnan(values)]
    if not values.size:
        return Quartiles(np.nan, np.nan, np.nan)
    at = [0.25, 0.5, 0.75]
    with np.errstate(invalid="ignore"):
        between = np.quantile(values, at)
    # Between an infinite value and its neighbour, linear interpolation gives NaN: the upper neighbour replaces it.
    low, median, high = np.where(np.isnan(between), np.quantile(values, at, method="higher"), between)
    return Quartiles(float(low), float(median), float(high))


def median_of(members: pd.DataFrame, column: str) -> float:
    """Median of a column over members, diverged ones counted as the worst; NaN if the column is missing."""
    return quartiles(counted(members, column)).median if column in members else np.nan


def linear_mcc(members: pd.DataFrame, split: str = "val", method: str = "linear_ica") -> Floats:
    """MCC of linear ICA, or of ``pca``, in each world of one trial's members, (world,); empty where it is unknown."""
    column = at_best(f"{split}/mcc_{method}", "val/mcc")
    if column not in members:
        return np.array([])
    worlds = members["data.seed"] if "data.seed" in members else members["trial"]
    return np.array(members.groupby(worlds)[column].median().dropna(), dtype=np.float64)


def linear_sentence(members: pd.DataFrame) -> str:
    """Compare the MCC of one trial's members with that of linear methods, and say whether it is evidence of nonlinear
    recovery; empty where that of linear ICA is unknown.
    """
    return compared_with_linear(median_of(members, BEST_MCC), linear_mcc(members), linear_mcc(members, method="pca"))


def compared_with_linear(mcc: float, ica: Floats, pca: Floats) -> str:
    """:func:`linear_sentence` for a median ``mcc``, and the MCC of linear ICA and of PCA in each world."""
    if not len(ica):
        return ""
    level, other = quartiles(ica).median, quartiles(pca).median
    nearly, count = int((ica > NEARLY_LINEAR).sum()), len(ica)
    reached, best = f"Linear ICA reaches {level:.3f} here", level
    if count > 1:
        reached += f" (median of {count} worlds, {ica.min():.3f} to {ica.max():.3f}; {nearly} nearly linear)"
    if other > level:  # by the chance that the principal axes are those of the sources
        reached, best = f"{reached}, and PCA {other:.3f}", other
    if count == 1 and nearly:
        reached += ": this world is nearly linear"
    if level > NEARLY_LINEAR or mcc <= best:
        return f"{reached}, so this result is no evidence of nonlinear recovery."
    return f"{reached}; this result exceeds that by {mcc - best:.3f}."


def chosen_numbers(members: pd.DataFrame) -> dict[str, float]:
    """The three numbers of one trial, by the names under which a study is tracked; NaN for a missing one.

    They are the median MCC over members at the best ``val/mcc`` (an oracle's choice), the median at the smallest
    ``val/neg_elbo`` (the paper's protocol), and the MCC on the test split of the member with the largest ``val/mcc``.
    Without sources: the median −ELBO and agreement, and the −ELBO on the test split of the member with the smallest
    ``val/neg_elbo``. A diverged member counts as the worst in medians and is never chosen.
    """
    if has_sources(members):
        names = ("mcc/at_best_mcc", "mcc/at_best_neg_elbo", "mcc/test_of_chosen")
        best, sign, test = BEST_MCC, 1, at_best("test/mcc", "val/mcc")
        second = quartiles(counted(members, at_best("val/mcc", "val/neg_elbo"))).median
    else:
        names = ("chosen/neg_elbo", "chosen/agreement", "chosen/test_of_chosen")
        best, sign, test = BEST_NEG_ELBO, -1, at_best("test/neg_elbo", "val/neg_elbo")
        second = median_of(members, AGREEMENT)
    value = np.where(diverged(members), np.nan, sign * column_values(members, best))
    of_chosen = np.nan if np.isnan(value).all() else float(column_values(members, test)[np.nanargmax(value)])
    return dict(zip(names, (quartiles(counted(members, best)).median, second, of_chosen), strict=True))


def chance_mcc(config: RunConfig) -> float:
    """95 % quantile of the MCC between the sources of the validation split and latents independent of them."""
    # Correlations of independent variables are normal around 0, with standard deviation 1 / sqrt(n).
    shape, rows = (1000, config.data.dim, config.latents), config.data.sizes[1]
    random = np.random.default_rng(0).normal(size=shape) / np.sqrt(rows)
    matched = [table[linear_sum_assignment(-table)].sum() / config.data.dim for table in np.abs(random)]
    return float(np.quantile(matched, 0.95))


def member_steps(records: Sequence[TrialRecord], config: RunConfig) -> dict[int, int]:
    """Cost of each trial, by its number: the training steps of all its members."""
    base, costs = base_of(config) if isinstance(config, StudyConfig) else config, {}
    for record in records:
        moves = any(key.startswith("data.") for key in record.values)  # else the data file need not be read again
        data = (with_values(base, record.values) if moves else base).data
        batch = int(record.values.get("training.batch_size", base.training.batch_size))
        costs[record.number] = -(-data.sizes[0] // batch) * sum(int(row["epochs"]) for row in record.members)
    return costs


def searched(results: Results) -> list[str]:
    """Dotted keys of the searched settings that some trial has: a condition may never have held."""
    if not isinstance(results.config, StudyConfig):
        return []
    return [parameter.key for parameter in parse(results.config) if parameter.key in results.trials]


def choices(members: pd.DataFrame, points: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Selection table: a row per choice with the number of candidates, each criterion's test MCC and regret, and linear
    ICA's test MCC, median over candidates.

    Args:
        members: rows of ``members.csv`` of all trials.
        points: a row per trial, with ``trial`` and a column for each of ``keys``.
        keys: dotted keys that were searched.

    Returns:
        An empty frame without sources or if there is nothing to choose from.
    """
    import pandas as pd

    needed = {BEST_MCC, BEST_NEG_ELBO, *(criterion.mcc for criterion in SELECTION.values())}
    if not needed <= set(members.columns):
        return pd.DataFrame()
    world = [key for key in keys if key.startswith("data.")]
    seeds = ["data.seed"] if "data.seed" in members else []
    joined = members.drop(columns=[key for key in keys if key in members]).merge(points[["trial", *keys]], on="trial")
    columns = {column for criterion in SELECTION.values() for column in (criterion.column, criterion.mcc)}
    columns.add(LINEAR_ICA_TEST)
    used = dict.fromkeys(["trial", "status", *keys, *seeds, *sorted(columns & {*joined})])
    joined = joined[[*used]]  # rows of many columns are slow to read one by one
    sound = joined[~diverged(joined)]  # a diverged member is never a candidate
    medians = joined.sort_values("trial", kind="stable").drop_duplicates("trial").set_index("trial", drop=False)
    with_worst = {column: counted(joined, column) for column in columns if column in joined}
    medians = medians.assign(**joined.assign(**with_worst).groupby("trial")[[*with_worst]].median())
    rows: list[dict[str, object]] = []
    for choice, frame, same in zip(
        CHOICES, (medians, sound, sound), (world, ["trial", *seeds], [*world, *seeds]), strict=True
    ):
        # Once for all choices: a frame for each would take a second per thousand.
        values = {column: column_values(frame, column) for column in columns}
        searched_values, trials = frame[["trial", *keys]].to_dict("records"), np.asarray(frame["trial"])
        for at in frame.groupby(same, sort=False).indices.values() if same else [np.arange(len(frame))]:
            if len(at) < 2 or (choice == CHOICES[2] and len({*trials[at]}) < 2):
                continue
            rivals, first = {column: all_values[at] for column, all_values in values.items()}, searched_values[at[0]]
            row: dict[str, object] = {"data": point_text({key: first[key] for key in world})}
            if choice == CHOICES[1]:
                row["point"] = point_text({key: first[key] for key in keys if key not in world})
            rows.append({**row, "choice": choice, "among": len(at), **_chosen(rivals)})
            rows[-1]["MCC of linear ICA"] = quartiles(rivals[LINEAR_ICA_TEST]).median
    return pd.DataFrame(rows)


def _chosen(rivals: Mapping[str, Floats]) -> dict[str, float]:
    """Test MCC of what each criterion chooses, and its regret; nothing of a criterion without values."""
    found = {}
    for name, criterion in SELECTION.items():
        score = criterion.sign * rivals[criterion.column]
        if not np.isnan(score).all():
            found[f"MCC by {name}"] = float(rivals[criterion.mcc][np.nanargmax(score)])
    oracle = found.get(f"MCC by {ORACLE}", np.nan)
    return found | {
        f"regret by {name}": oracle - found[f"MCC by {name}"] for name in BLIND if f"MCC by {name}" in found
    }


def preferred(group: pd.DataFrame) -> str | None:
    """The criterion to advise, from rows of one kind of choice: its regret is smaller in the median and at worst.

    None from fewer than ``ENOUGH_CHOICES`` choices, or if no criterion leads in both, or by too little to matter.
    """
    regrets = {name: column_values(group, f"regret by {name}") for name in BLIND}
    if len(group) < ENOUGH_CHOICES or np.isnan(list(regrets.values())).any():
        return None
    losses = {name: np.array([np.median(values), values.max()]) for name, values in regrets.items()}
    for name, loss in losses.items():
        leads = [other - loss for rival, other in losses.items() if rival != name]
        if all((lead >= 0).all() and lead.max() > CLOSE_REGRETS for lead in leads):
            return name
    return None


def selection_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Median regret of each criterion in each kind of choice, by the names under which a study is tracked."""
    if not len(table):
        return {}
    return {
        f"regret/{criterion.removeprefix('val/')}/{choice}": median(group, f"regret by {criterion}")
        for choice, group in table.groupby("choice", sort=False)
        for criterion in BLIND
        if f"regret by {criterion}" in group
    }


def median(frame: pd.DataFrame, column: str) -> float:
    """Median of a column without NaN; NaN if there is none."""
    return quartiles(column_values(frame, column)).median
