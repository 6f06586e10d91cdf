"""Studies, points and quantities of the figures, medians over members, and rows judged by the published numbers.

Intervals are bootstrap intervals of the median (percentile method). Independent draws are resampled: single members
if all share one mixing, otherwise whole mixings with all members trained on them, so that the interval covers mixings
and initialisations. BCa is not used: its jackknife fails for a median (Efron and Tibshirani 1993, chapter 11).

A row passes if our median agrees with the published one, or with the law that it must obey.

Suppose that our n members are drawn from the published distribution, of which m runs are known. The difference of the
two medians then has the standard error  s sqrt(pi / 2) sqrt(1/m + 1/n),  where s = (q75 − q25) / 1.349 estimates the
standard deviation of a normal distribution from the published quartiles. The relative error of s is 1.17 / sqrt(m), as
of a sample's standard deviation with m / 2.7 degrees of freedom. Student's t with these degrees of freedom gives the
number of standard errors that one row in 370 exceeds by chance: 3 for many runs, 4.4 for 20. One draw of the data,
which all seeds share, also moves either median, by the table's ``draw``; three times that is allowed. Our own spread
does not enter, so that a bad replication can't excuse itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from rich.table import Table as RichTable
from scipy import stats

from imavae.config.settings import StudyConfig
from imavae.report.display import MISSING, compact, point_text
from imavae.report.drawing import floats
from imavae.report.summary import Floats, counted, quartiles
from imavae.report.tables import plain_table
from imavae.runs.records import BEST_MCC, BEST_NEG_ELBO
from imavae.search.space import parse

NUMBERS = Path(__file__).with_name("numbers")
ELBO_LOG_PX, ELBO_L_IMA = 14.857, 7.785  # published E[log p(x)] and E[L_IMA] of elbo_gap_triangular_mlp, in nats
ELBO_CONFORMAL = 0.392  # published E[log p(x)] = E[L_IMA] of elbo_gap_ima_class
AT = f"at {BEST_NEG_ELBO}"  # the paper's protocol: metrics are read at the smallest validation −ELBO
LAST = "at the last validation"  # the state of a member's last row of history.csv
GAMMA_AXIS = "γ² (precision of the decoder)"
STATES = {"min −ELBO": AT, "max MCC": f"at {BEST_MCC}"}
RESAMPLES = 2000
CONFIDENCE = 0.95
HUGE = 1e300  # replaces the infinite value of a diverged member, which can't be interpolated
FEW_FOR_CORRELATION = 5
ERRORS = 3.0  # standard errors that a row may be off, where these are known
CHANCE = 2 * stats.norm.sf(ERRORS)  # probability that a row that should pass fails: 1 in 370
IQR_OF_NORMAL = 1.349  # interquartile range over standard deviation
RUNS_PER_FREEDOM = 2.72  # the variance of (q75 − q25) / 1.349 is 1.36 s² / m, that of a standard deviation s² / 2 ν
CURVE_RUNS = 10  # of sprites_over_epochs
FEWEST_RUNS = 5  # fewer published runs don't tell the spread
PASS, FAIL, NOT_JUDGED = "PASS", "FAIL", "not judged"


@dataclass(frozen=True)
class Study:
    """A finished study of a grid."""

    config: StudyConfig
    folder: Path
    members: pd.DataFrame  # the rows of members.csv, with a column for each searched setting
    history: pd.DataFrame  # the rows of history.csv
    seconds: float  # its running time; NaN if unknown

    @property
    def name(self) -> str:
        """Name of its search space, without the folder."""
        return self.config.study.rpartition("/")[2]

    @property
    def keys(self) -> list[str]:
        """Dotted keys of the searched settings."""
        return [parameter.key for parameter in parse(self.config)]


class Quantity(NamedTuple):
    """A quantity with its column names, which ``members.csv`` and the published tables share."""

    label: str  # in tables
    axis: str  # in figures, with its unit
    column: str  # by the published estimator
    corrected: str | None = None  # by the corrected estimator; None if both are the same: `best` is either
    log: bool = False  # whether its axis is logarithmic
    limits: tuple[float, float] | None = None  # of its axis

    @property
    def best(self) -> str:
        return self.corrected or self.column

    def at(self, state: str) -> Quantity:
        """Return the same quantity, read at another best state of each member."""
        corrected = None if self.corrected is None else self.corrected.replace(AT, state)
        return self._replace(column=self.column.replace(AT, state), corrected=corrected)


MCC = Quantity("MCC", "MCC", f"val/mcc_batch {AT}", f"val/mcc {AT}", limits=(0.0, 1.02))
LOCATION_MCC = Quantity("MCC of location", "MCC of locations", f"val/mcc_mean {AT}", limits=(0.0, 1.02))
LINEAR_ICA = Quantity("linear ICA", "MCC", f"val/mcc_linear_ica {AT}")  # MCC of each world
CONTRAST = Quantity("c_IMA", r"$c_{\mathrm{IMA}}$ (nats)", f"val/cima_batch {AT}", f"val/cima {AT}", log=True)
NEG_ELBO = Quantity("−ELBO", "−ELBO (nats)", BEST_NEG_ELBO)
LAST_NEG_ELBO = NEG_ELBO._replace(column=f"val/neg_elbo {LAST}")
ERROR = Quantity("x error", r"mean of $(g(\mu(x)) - x)^2$", f"val/mse_obs {AT}", log=True)
RATIO = Quantity(  # its first column is derived: see figures.with_published_ratio
    "σ² ratio",
    "posterior variance\nover its formula",
    f"val/self_consistency_published {AT}",
    f"val/self_consistency {AT}",
)
PRECISION = Quantity(  # derived, too: the most likely γ² of what was trained at another one
    "1 / x error", "most likely γ²,\n1 / mean of $(g(\\mu(x)) - x)^2$", f"val/precision {AT}", log=True
)
GAP = Quantity("ELBO gap", "$E[\\log p(x)] -$ ELBO\n(nats)", f"val/gap_log_px {AT}", log=True)
GAP_IMA = Quantity("IMA gap", r"$E[L_{\mathrm{IMA}}] -$ ELBO* (nats)", f"val/gap_ima {AT}")
GAMMA = Quantity("gamma", GAMMA_AXIS, f"val/gamma {AT}", log=True)
# Of a true decoder f ∘ a, derived: see figures.with_law. The first two are computed from f ∘ a alone.
LIKELIHOOD = Quantity("log p(x)", "nats", "exact_log_px")
EXACT = Quantity("c_IMA of f ∘ a", r"$c_{\mathrm{IMA}}$ (nats)", "exact_cima")
LAW_GAP = Quantity("law − ELBO*", r"$E[\log p(x) - c_{\mathrm{IMA}}] -$ ELBO* (nats)", "exact_gap")
TRUTH = f"val/cima_truth {AT}"  # contrast of the mixing
LINEAR = "cima_of_linear_map"  # contrast of a mixing's linear map, derived: see figures.with_linear_contrast
MIXING = "mixing_cima"  # contrast of the mixing by the published estimator, derived: see figures.with_mixing_contrast
PUBLISHED = {"model.gamma": "gamma_sq", "model.prior.name": "prior", "data.dim": "dim"}  # setting -> published column


@dataclass(frozen=True)
class Points:
    """The points of a figure: searched settings that group the members, with a name in tables and an axis."""

    keys: tuple[str, ...]
    label: Callable[..., str]  # of the keys' values
    axis: str = ""
    log: bool = False  # the axis is logarithmic, and shows the square of the setting
    kinds: bool = False  # values are kinds, kept in the study's order and not joined by a line

    def groups(self, members: pd.DataFrame) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
        """Return values of the keys and members of each point."""
        return list(members.groupby(list(self.keys), sort=not self.kinds))

    def published(self, key: Sequence[Any]) -> dict[str, Any]:
        """Return the columns of a published table that identify the point with these values of the keys."""
        pairs = zip(self.keys, key, strict=True)
        return {PUBLISHED[name]: float(at) ** 2 if name == "model.gamma" else at for name, at in pairs}

    def positions(self, members: pd.DataFrame) -> Floats:
        """Return the position of each point on the axis, (point,)."""
        values = [key[0] for key, _ in self.groups(members)]
        return np.arange(len(values), dtype=np.float64) if self.kinds else floats(values) ** (2 if self.log else 1)


OVER_GAMMA = Points(("model.gamma",), lambda gamma: f"γ²={compact(float(gamma) ** 2)}", GAMMA_AXIS, log=True)
OVER_COSINE = Points(
    ("data.mixing.cosine",), "cos θ={:g}".format, r"$\cos\theta$ between the columns of the linear map"
)
OVER_ANGLE = Points(("model.automorphism.angle",), "θ={:g}°".format, "θ of f ∘ a (degrees)")
OVER_WEIGHT = Points(("model.ima_weight",), "λ={:g}".format, "weight λ of the contrast", kinds=True)
OVER_PRIOR = Points(
    ("data.dim", "model.prior.name", "model.gamma"), lambda d, prior, gamma: f"d={d} {prior} {OVER_GAMMA.label(gamma)}"
)
OVER_TRANSFORM = Points(("data.transform",), str, "map of the factors", kinds=True)


class Summary(NamedTuple):
    """Statistics of one quantity over our members of one point, or over the ``n`` published runs."""

    n: int
    median: float
    q25: float
    q75: float
    low: float = np.nan  # of the median's 95 % interval, for our members alone
    high: float = np.nan


def summarise(members: pd.DataFrame, column: str) -> Summary:
    """Return median, quartiles and the median's interval of a column.

    A diverged member counts as the worst value; a missing value is left out. With a single independent draw there is no
    interval: both ends are NaN.
    """
    values = counted(members, column) if column in members else np.full(len(members), np.nan)
    keep = ~np.isnan(values)
    worlds = np.array(members["data.seed"]) if "data.seed" in members else np.arange(len(members))
    low, median, high = quartiles(values)
    return Summary(int(keep.sum()), median, low, high, *interval(values[keep], worlds[keep]))


def linear_rows(study: Study) -> list[Row]:
    """Return a row of linear ICA's MCC over the worlds of each setting of the data, not judged."""
    column = LINEAR_ICA.column
    if column not in study.members:
        return []
    keys = [key for key in study.keys if key.startswith("data.")]
    seeds = ["data.seed"] if "data.seed" in study.members else []
    known = study.members.dropna(subset=column)
    known = known.drop_duplicates(keys + seeds) if keys + seeds else known.head(1)
    groups = known.groupby(keys, sort=False) if keys else [((), known)]
    return [
        Row(
            study.name,
            point_text(dict(zip(keys, key, strict=True))) or "all",
            LINEAR_ICA.label,
            summarise(group, column),
        )
        for key, group in groups
    ]


def interval(values: Floats, units: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median of values, (n,); values of one unit are resampled together."""
    groups = [np.nan_to_num(values[units == unit], posinf=HUGE) for unit in np.unique(units)]
    if len(groups) < 2:
        return np.nan, np.nan
    padded = np.full((len(groups), max(map(len, groups))), np.nan)  # a row per unit
    for row, group in zip(padded, groups, strict=True):
        row[: len(group)] = group

    drawn = np.random.default_rng(0).integers(len(groups), size=(RESAMPLES, len(groups)))  # always the same
    with np.errstate(all="ignore"):
        medians = np.nanmedian(padded[drawn].reshape(RESAMPLES, -1), axis=1)
        low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2])
    return (np.inf if low >= HUGE / 2 else float(low)), (np.inf if high >= HUGE / 2 else float(high))


def correlation(members: pd.DataFrame, x: str, y: str) -> Summary:
    """Return Spearman's rank correlation of two columns with its 95 % interval (Fisher's transformation)."""
    first, second = floats(members[x]), floats(members[y])
    sound = np.isfinite(first) & np.isfinite(second)
    n = int(sound.sum())
    if n < FEW_FOR_CORRELATION:
        return Summary(n, *[np.nan] * 5)
    value = float(stats.spearmanr(first[sound], second[sound]).statistic)
    error = 1.96 * np.sqrt(1.06 / (n - 3))
    low, high = (float(np.tanh(np.arctanh(value) + side * error)) for side in (-1, 1))
    return Summary(n, value, np.nan, np.nan, low, high)


@dataclass(frozen=True)
class Published:
    """A published table, by the column names of ``members.csv``."""

    rows: pd.DataFrame
    draw: dict[str, float | dict[int, float]]  # see :meth:`deviation`, and origins.yaml

    def deviation(self, quantity: str, dim: int) -> float:
        """Return the standard deviation of a quantity's median over draws of the data."""
        draw = self.draw.get(quantity, 0.0)
        return draw[dim] if isinstance(draw, dict) else draw

    def where(self, quantity: str, at: Mapping[str, Any]) -> pd.DataFrame:
        """Return the rows of a quantity where other columns, as ``gamma_sq``, have these values."""
        found = self.rows[self.rows["quantity"] == quantity]
        for name, value in at.items():
            near = found[name] == value if isinstance(value, str) else np.isclose(found[name], value, rtol=1e-6)
            found = found[near]
        return found

    def spread(self, quantity: str, at: Mapping[str, Any]) -> Summary | None:
        """Return the published numbers of the first of these rows, or None."""
        found = self.where(quantity, at)
        rows = found[["n", "median", "q25", "q75"]].itertuples(index=False)
        return next((Summary(*row) for row in rows), None)

    def column(self, name: str) -> Summary:
        """Return median and quartiles of a column with one row per run."""
        low, median, high = quartiles(floats(self.rows[name]))
        return Summary(len(self.rows), median, low, high)


@functools.cache
def table(name: str) -> Published:
    """Return the published table ``numbers/NAME.csv``."""
    origins = yaml.safe_load((NUMBERS / "origins.yaml").read_text(encoding="utf-8"))
    return Published(pd.read_csv(NUMBERS / f"{name}.csv"), origins[name]["draw"])


@dataclass(frozen=True)
class Row:
    """One quantity at one point of a study."""

    study: str  # its name
    point: str  # as in γ²=1e3
    quantity: str  # its label
    ours: Summary  # our members, by the published estimator
    published: Summary | None = None
    corrected: Summary | None = None  # our members, by the corrected estimator; None if both are the same
    expected: float | None = None  # value that `ours` is judged by; None if the row is not judged
    tolerance: float | None = None  # largest distance from it that passes

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or NOT_JUDGED."""
        if self.expected is None or self.tolerance is None:
            return NOT_JUDGED
        return PASS if abs(self.ours.median - self.expected) <= self.tolerance else FAIL  # NaN fails


def compare(row: Row, published: Summary | None, draw: float = 0.0, worlds: int = 1, comparable: bool = True) -> Row:
    """Return the row with the published numbers, judged by them if it is comparable and they rest on enough runs."""
    if published is None:
        return row
    if published.n < FEWEST_RUNS or not comparable:
        return dataclasses.replace(row, published=published)
    limit = tolerance(published, row.ours.n, draw, worlds)
    return dataclasses.replace(row, published=published, expected=published.median, tolerance=limit)


def tolerance(published: Summary, seeds: int, draw: float = 0.0, worlds: int = 1) -> float:
    """Return the allowed distance of a median of our members from the published one, in the quantity's unit.

    Args:
        published: the published median, quartiles and number of runs.
        seeds: number of our members.
        draw: standard deviation of a median over draws of the data; the published runs share one draw.
        worlds: number of draws among our members (``members.data.seed``).
    """
    spread = (published.q75 - published.q25) / IQR_OF_NORMAL
    error = spread * math.sqrt(math.pi / 2 * (1 / published.n + 1 / max(1, seeds)))
    errors = float(stats.t.isf(CHANCE / 2, published.n / RUNS_PER_FREEDOM))
    return math.hypot(errors * error, ERRORS * draw * math.sqrt(1 + 1 / worlds))


def quartile_rows(row: Row, published: Summary, limit: float) -> list[Row]:
    """Return a row for each quartile of a row whose median is judged by ``limit``.

    The standard error of a normal distribution's quartile is 1.36 s / sqrt(n), that of its median 1.25 s / sqrt(n).
    """
    return [
        dataclasses.replace(
            row,
            point=f"{row.point}, {name} quartile",
            ours=Summary(row.ours.n, ours, *[np.nan] * 2),
            published=Summary(published.n, known, *[np.nan] * 2),
            corrected=None,
            expected=known,
            tolerance=limit * 1.3626 / 1.2533,
        )
        for name, ours, known in (("lower", row.ours.q25, published.q25), ("upper", row.ours.q75, published.q75))
    ]


def mean_tolerance(deviation: float, runs: int, seeds: int) -> float:
    """Return the same for a mean over runs with a known standard deviation."""
    return float(stats.t.isf(CHANCE / 2, runs - 1)) * deviation * math.sqrt(1 / runs + 1 / max(1, seeds))


def correlation_tolerance(published: float, runs: int, mixings: int) -> float:
    """Return the same for a rank correlation: standard error (1 − rho²) sqrt(1.06 / (n − 3)) (Fieller et al. 1957)."""
    return ERRORS * ((1 - published**2) * math.sqrt(1.06 * (1 / (runs - 3) + 1 / max(1, mixings - 3))))


def terminal_table(rows: Sequence[Row], title: str) -> RichTable:
    """Return the rows as a table of 80 columns; quartiles are below the medians."""
    table = plain_table(title, "Medians, their quartiles below; ours and its 95 % interval by the published estimator.")
    heads = {name: name for name in ("at", "quantity", "published", "ours", "95 %", "corrected", "verdict")}
    heads |= {"quantity": "what", "corrected": "cor-\nrected"}
    if all(row.corrected is None for row in rows):
        del heads["corrected"]
    for name, head in heads.items():
        words = name in ("quantity", "verdict")  # these may be wrapped, numbers never
        table.add_column(head, justify="left" if words or name == "at" else "right", no_wrap=not words)
    for row in rows:
        cells = _cells(row)
        cells |= {name: cells[name].replace(" (", "\n").rstrip(")") for name in ("published", "ours")}
        cells["at"] = cells["at"].replace(" ", "\n")
        table.add_row(*(cells[name] for name in heads), style="bold" if row.verdict == FAIL else None)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    cells = [_cells(row) for row in rows]
    lines = [list(cells[0]), ["---"] * len(cells[0]), *(row.values() for row in cells)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return every number of every row, at full precision."""
    records: list[dict[str, object]] = []
    for row in rows:
        record: dict[str, object] = {"study": row.study, "at": row.point, "quantity": row.quantity}
        for prefix, numbers in (("published", row.published), ("ours", row.ours), ("corrected", row.corrected)):
            if numbers is not None:
                shown = numbers._fields[: 4 if prefix == "published" else None]  # without an interval
                record |= {f"{prefix} {name}": getattr(numbers, name) for name in shown}
        records.append(record | {"expected": row.expected, "tolerance": row.tolerance, "verdict": row.verdict})
    return pd.DataFrame(records)


def _cells(row: Row) -> dict[str, str]:
    """Return the cells of a row by column; medians have three or four digits, numbers around them one less."""
    nats = row.quantity == NEG_ELBO.label
    fine = row.quantity in (MCC.label, LOCATION_MCC.label, LINEAR_ICA.label, RATIO.label)

    def show(value: float, digits: int = 4 if nats else 3) -> str:
        whole = nats and 1000 <= abs(value) < math.inf  # powers of ten would hide differences: images have 1e4 nats
        return f"{value:.0f}" if whole else compact(value, digits)

    def between(low: float, high: float) -> str:
        return "" if math.isnan(low) else "–".join(show(end, 3 if nats or fine else 2) for end in (low, high))

    def median(of: Summary) -> str:
        quartiles = between(of.q25, of.q75)
        return f"{show(of.median)} ({quartiles})" if quartiles else show(of.median)

    law = MISSING if row.expected is None else f"{show(row.expected)} (by law)"
    return {
        "at": row.point,
        "quantity": row.quantity,
        "published": law if row.published is None else median(row.published),
        "ours": median(row.ours),
        "95 %": between(row.ours.low, row.ours.high) or MISSING,
        "corrected": MISSING if row.corrected is None else show(row.corrected.median),
        "n": str(row.ours.n),
        "tolerance": MISSING if row.tolerance is None else f"±{compact(row.tolerance, 2)}",
        "verdict": row.verdict,
    }
