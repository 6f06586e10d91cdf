"""Laws of judging: what was published passes, what is wrong fails, and more seeds are judged more strictly."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from imavae.paper.quantities import (
    CONTRAST,
    ERROR,
    FAIL,
    LAST,
    LAST_NEG_ELBO,
    MCC,
    NEG_ELBO,
    NOT_JUDGED,
    NUMBERS,
    PASS,
    RATIO,
    Row,
    Summary,
    compare,
    correlation_tolerance,
    interval,
    summarise,
    table,
    tolerance,
)

GAMMA_TABLES = (
    "moebius_gamma_gaussian",
    "moebius_gamma_uniform",
    "moebius_priors_dimensions",
    "rotation_gamma_gaussian",
    "sprites_gamma",
)
QUANTITIES = {quantity.column for quantity in (MCC, CONTRAST, NEG_ELBO, ERROR, RATIO)}
QUANTITIES |= {quantity.column for quantity in (MCC.at(LAST), CONTRAST.at(LAST), LAST_NEG_ELBO)}


def row(median: float, n: int = 20) -> Row:
    return Row("study", "γ²=1", "MCC", Summary(n, median, median, median, median, median))


def spread(values: np.ndarray) -> Summary:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Summary(len(values), float(median), float(low), float(high))


# ---- what was published


def test_every_table_has_its_origin_and_every_origin_its_table() -> None:
    origins = yaml.safe_load((NUMBERS / "origins.yaml").read_text(encoding="utf-8"))
    assert {path.stem for path in NUMBERS.glob("*.csv")} == set(origins)
    for name in origins:
        known = table(name)
        assert len(known.rows) > 0
        dims = known.rows["dim"].unique().tolist() if "dim" in known.rows else [3]
        assert all(known.deviation(quantity, dim) > 0 for quantity in known.draw for dim in dims)


@pytest.mark.parametrize("name", GAMMA_TABLES)
def test_every_published_row_is_found_and_passes_its_own_judgement(name: str) -> None:
    for entry in table(name).rows.to_dict("records"):
        quantity = str(entry["quantity"])
        at = {str(key): value for key, value in entry.items() if key in ("gamma_sq", "prior", "dim")}
        found = table(name).spread(quantity, at)
        assert quantity in QUANTITIES
        assert found is not None
        assert found.q25 <= found.median <= found.q75
        rounded = at | {"gamma_sq": at["gamma_sq"] * (1 + 1e-9)}  # a gamma is stored, not its square
        assert table(name).spread(quantity, rounded) == found
        assert compare(row(found.median), found).verdict == (PASS if found.n >= 5 else NOT_JUDGED)


def test_what_was_not_published_is_not_there() -> None:
    assert table("moebius_gamma_uniform").spread("min val/neg_elbo", {"gamma_sq": 1e6}) is None
    assert table("moebius_gamma_uniform").spread("val/mse_obs at min val/neg_elbo", {"gamma_sq": 1e5}) is None


def test_a_table_of_runs_gives_their_quartiles() -> None:
    known = table("moebius_linear_map")
    found = known.column(MCC.column)
    values = known.rows[MCC.column]
    assert tuple(found[:4]) == pytest.approx((98, values.median(), values.quantile(0.25), values.quantile(0.75)))


# ---- judging


@pytest.mark.parametrize("direction", [-1, 1])
def test_a_row_passes_up_to_its_tolerance_and_fails_beyond(direction: int) -> None:
    known = Summary(20, 0.8, 0.75, 0.83)
    limit = tolerance(known, 20)
    assert compare(row(0.8 + direction * 0.999 * limit), known).verdict == PASS
    assert compare(row(0.8 + direction * 1.001 * limit), known).verdict == FAIL


@pytest.mark.parametrize(
    ("median", "published", "verdict"),
    [
        (0.5, None, NOT_JUDGED),
        (math.nan, Summary(20, 0.8, 0.7, 0.9), FAIL),
        (math.inf, Summary(20, 0.8, 0.7, 0.9), FAIL),
        (0.1, Summary(3, 0.8, 0.79, 0.81), NOT_JUDGED),
        (0.15, table("moebius_gamma_uniform").spread(MCC.column, {"gamma_sq": 1e4}), FAIL),  # chance is no pass
    ],
)
def test_a_verdict(median: float, published: Summary | None, verdict: str) -> None:
    assert compare(row(median), published).verdict == verdict


def test_tolerance_shrinks_with_seeds_and_with_published_runs_and_grows_with_their_spread() -> None:
    by_seeds = [tolerance(Summary(20, 0.0, -1.0, 1.0), seeds) for seeds in (1, 2, 5, 20, 100, 1000)]
    by_runs = [tolerance(Summary(runs, 0.0, -1.0, 1.0), 20) for runs in (5, 10, 20, 100)]
    by_spread = [tolerance(Summary(20, 0.0, -width, width), 20) for width in (2.0, 1.0, 0.5, 0.0)]
    for series in (by_seeds, by_runs, by_spread):
        assert all(later < earlier for earlier, later in itertools.pairwise(series))
    correlations = [correlation_tolerance(rho, 98, n) for rho, n in ((-0.5, 100), (-0.5, 20), (0.0, 20))]
    assert correlations == sorted(correlations)
    assert by_spread[-1] == 0
    assert by_spread[0] == pytest.approx(2 * by_spread[1])


def test_what_all_seeds_share_stays_however_many_there_are() -> None:
    known = Summary(10**6, 0.0, -1.0, 1.0)
    assert tolerance(known, 10**6, draw=0.5) == pytest.approx(3 * math.sqrt(2) * 0.5, rel=1e-3)
    assert tolerance(known, 20, draw=0.5) > tolerance(known, 20)
    assert tolerance(known, 10**6, 0.5, worlds=10**6) == pytest.approx(3 * 0.5, rel=1e-3)  # the published draw is one


def test_for_many_runs_it_is_three_standard_errors_of_two_medians() -> None:
    q75 = float(stats.norm.ppf(0.75))
    error = math.sqrt(math.pi / 2 * (1 / 10_000 + 1 / 20))
    assert tolerance(Summary(10_000, 0.0, -q75, q75), 20) == pytest.approx(3 * error, rel=5e-3)


@pytest.mark.parametrize(("runs", "away"), [(10, 6.0), (20, 3.0), (60, 2.0)])
def test_the_same_distribution_fails_once_in_370_and_one_that_is_away_nearly_always(runs: int, away: float) -> None:
    rng = np.random.default_rng(0)
    known = [spread(rng.normal(size=runs)) for _ in range(1500)]
    same = [compare(row(float(np.median(rng.normal(size=20)))), one).verdict == FAIL for one in known]
    other = [compare(row(float(np.median(rng.normal(away, 1, size=20)))), one).verdict == FAIL for one in known]
    assert np.mean(same) < 3 / 370
    assert np.mean(other) > 0.95


def test_a_law_judges_like_a_published_number() -> None:
    law = dataclasses.replace(row(0.1), expected=0.0, tolerance=0.2)
    assert law.verdict == PASS
    assert dataclasses.replace(law, tolerance=0.05).verdict == FAIL


# ---- medians and their intervals


COLUMN = MCC.best


def members(values: list[float], **columns: object) -> pd.DataFrame:
    return pd.DataFrame({"status": "finished", COLUMN: values, **columns})


def test_an_interval_holds_the_median_and_narrows_with_members() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for n in (10, 40, 160):
        found = summarise(members(list(rng.normal(0.5, 0.1, n))), COLUMN)
        assert found.q25 < found.median < found.q75
        assert found.low < found.median < found.high
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)


def test_an_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    ends = [interval(rng.normal(size=25), np.arange(25)) for _ in range(60)]
    assert 0.85 <= np.mean([low <= 0 <= high for low, high in ends]) <= 1


def test_members_of_one_mixing_are_drawn_together() -> None:
    values = list(np.repeat([0.2, 0.5, 0.6, 0.8, 0.9], 10))  # ten initialisations that add nothing to five mixings
    worlds = list(np.repeat([1, 2, 3, 4, 5], 10))
    alone = summarise(members(values), COLUMN)
    together = summarise(members(values, **{"data.seed": worlds}), COLUMN)
    assert together.high - together.low > alone.high - alone.low
    once = summarise(members([0.2, 0.5, 0.6, 0.8, 0.9]), COLUMN)
    assert (together.low, together.high) == pytest.approx((once.low, once.high), abs=0.15)


def test_one_member_has_no_interval_and_a_diverged_one_counts_as_worst() -> None:
    alone = summarise(members([0.5]), COLUMN)
    assert (alone.n, alone.median) == (1, 0.5)
    assert math.isnan(alone.low)
    failed = pd.DataFrame({"status": ["finished", "diverged", "diverged"], "min val/neg_elbo": [1.0, 2.0, np.nan]})
    found = summarise(failed, "min val/neg_elbo")
    assert (found.median, found.low, found.high) == (math.inf, 1.0, math.inf)


def test_the_same_members_give_the_same_interval() -> None:
    one, again = (summarise(members([0.1, 0.4, 0.5, 0.9]), COLUMN) for _ in range(2))
    assert one == again
    assert summarise(members([]), COLUMN).n == 0
    assert summarise(members([0.1]), "val/cima at min val/neg_elbo").n == 0
