"""DCI, SAP and MIG on latents whose scores are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imavae.metrics.disentanglement import dci, mig, sap
from tests.helpers import untouched_generators

Array = NDArray[np.floating[Any]]
N = 6000
HALF = 1 - math.log(2, 3)  # purity of two equal shares among three


def scores(factors: Array, latents: Array, *discrete: bool) -> dict[str, float]:
    kinds = discrete or (False,) * factors.shape[1]
    return dci(factors, latents, kinds)._asdict() | {
        "sap": sap(factors, latents, kinds),
        "mig": mig(factors, latents, kinds),
    }


def close(found: dict[str, float], expected: tuple[float, ...], within: float) -> None:
    """In the order disentanglement, completeness, informativeness, SAP, MIG."""
    assert list(found.values()) == pytest.approx(list(expected), abs=within), found


def uniform(dim: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (N, dim))


def gaussian(dim: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=(N, dim))


def classes(*counts: int) -> Array:
    """Independent, equally likely classes; codes that neither start at zero nor are evenly spaced."""
    codes: Array = np.floor((uniform(len(counts)) + 0.5) * counts) ** 2 + 3.0
    return codes


@pytest.mark.parametrize(
    "factors", [uniform(3), gaussian(3), classes(2, 4, 10)], ids=["uniform", "gaussian", "classes"]
)
def test_recovered_factors_score_one_whatever_their_order_sign_scale_and_shift(factors: Array) -> None:
    discrete = (len(np.unique(factors)) < N,) * 3
    codes = factors if not discrete[0] else np.sqrt(factors - 3)
    for latents in (codes, -7 * codes[:, [2, 0, 1]] + 40):
        close(scores(factors, latents, *discrete), (1, 1, 1, 1, 1), 0.03)


@pytest.mark.parametrize("make", [uniform, gaussian])
def test_two_factors_turned_by_45_degrees_share_their_latents_equally(make: Callable[[int], Array]) -> None:
    factors = make(3)
    turn = np.array([[1, 1, 0], [-1, 1, 0], [0, 0, math.sqrt(2)]]) / math.sqrt(2)
    third = (1 + 2 * HALF) / 3  # one latent of three is pure
    close(scores(factors, factors @ turn), (third, third, 1, 1 / 3, 1 / 3), 0.03)
    plane = scores(factors[:, :2], factors[:, :2] @ turn[:2, :2])
    close(plane, (0, 0, 1, 0, 0), 0.05)


def test_sap_of_a_rotation_is_the_difference_of_squared_cosines() -> None:
    angle = 0.3
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    found = sap(gaussian(2), gaussian(2) @ turn, [False, False])
    assert found == pytest.approx(math.cos(angle) ** 2 - math.sin(angle) ** 2, abs=0.03)


def test_mig_of_noisy_gaussian_latents_is_the_information_over_the_entropy() -> None:
    # 6,000 points fall into 20 bins of equal width over their range: the binned entropy is near h(s) − log width
    factors, noise = gaussian(2), gaussian(2, seed=2)
    correlation = 1 / math.sqrt(1 + 0.5**2)
    information = -0.5 * math.log(1 - correlation**2)
    width = np.ptp(factors, axis=0) / 20
    entropy = 0.5 * math.log(2 * math.pi * math.e) - np.log(width)
    assert mig(factors, factors + 0.5 * noise, [False] * 2) == pytest.approx(np.mean(information / entropy), abs=0.04)


@pytest.mark.parametrize("discrete", [False, True])
def test_noise_scores_zero(discrete: bool) -> None:
    factors = classes(2, 4, 10) if discrete else uniform(3)
    close(scores(factors, gaussian(3), *[discrete] * 3), (0, 0, 0, 0, 0), 0.04)


def test_a_factor_coded_twice_costs_completeness_and_the_gaps_but_not_disentanglement() -> None:
    factors = uniform(2)
    twice = np.column_stack([factors[:, 0], factors])
    close(scores(factors, twice), (1, (1 + HALF) / 2, 1, 0.5, 0.5), 0.03)


def test_two_factors_in_one_latent_cost_disentanglement_but_not_completeness() -> None:
    factors = classes(4, 4)
    both = np.column_stack([4 * np.sqrt(factors[:, 0] - 3) + np.sqrt(factors[:, 1] - 3), gaussian(1)])
    found = dci(factors, both, [True, True])
    assert found.disentanglement < 0.05
    assert found.completeness > 0.9
    assert found.informativeness > 0.95


def test_kinds_mix_and_a_class_is_no_number() -> None:
    factors = np.column_stack([uniform(1, seed=4), classes(10)])
    latents = np.column_stack([factors[:, 0], np.sqrt(factors[:, 1] - 3)])
    close(scores(factors, latents, False, True), (1, 1, 1, 1, 1), 0.03)
    shuffled = np.random.default_rng(5).permutation(10)[np.sqrt(factors[:, 1] - 3).astype(int)]
    relabelled = np.column_stack([factors[:, 0], shuffled.astype(float)])
    assert sap(relabelled, latents, [False, True]) == pytest.approx(sap(factors, latents, [False, True]), abs=1e-12)
    assert sap(relabelled, latents, [False, False]) < 0.8


def test_accuracy_is_balanced_over_unequal_classes() -> None:
    # 95 % of the first class: guessing it always is right that often, and worth nothing
    rare = (uniform(1) > 0.45).astype(np.float64)
    close(scores(rare, gaussian(2), True), (1, 0, 0, 0, 0), 0.08)  # a latent can't code two of one factor
    # classes at −1 and 1, noise of deviation 1: Φ(1) of each is on its side of 0
    noisy = np.column_stack([2 * rare - 1, 0 * rare]) + gaussian(2)
    assert sap(rare, noisy, [True]) == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.08)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.3, 1e30, math.nan, math.inf])
def test_a_collapsed_or_broken_latent_knows_nothing(discrete: bool, value: float) -> None:
    factors = classes(2, 4, 10) if discrete else uniform(3)
    latents = np.array(np.sqrt(factors - 3) if discrete else factors)
    latents[:, 1] = value
    found = scores(factors, latents, *[discrete] * 3)
    assert found["completeness"] > 0.6
    assert found["informativeness"] == pytest.approx(2 / 3, abs=0.04)
    assert found["sap"] == pytest.approx(2 / 3, abs=0.04)
    assert found["mig"] == pytest.approx(2 / 3, abs=0.04)
    close(scores(factors, np.full_like(latents, value), *[discrete] * 3), (0, 0, 0, 0, 0), 1e-12)


def test_a_factor_that_never_changes_is_left_out() -> None:
    factors = uniform(2)
    more = np.column_stack([factors, np.ones(N)])
    assert scores(more, factors) == scores(factors, factors)
    assert all(math.isnan(value) for value in scores(np.ones((N, 2)), factors).values())


def test_one_factor_and_one_latent() -> None:
    factors = uniform(1)
    close(scores(factors, factors), (1, 1, 1, 1, 1), 0.01)
    close(scores(factors, np.zeros((N, 1))), (0, 0, 0, 0, 0), 1e-12)


def test_scores_repeat_themselves_and_draw_from_no_global_generator() -> None:
    factors, latents = uniform(3), (uniform(3) + 0.3 * gaussian(3)).astype(np.float32)
    with untouched_generators():
        first = scores(factors, latents)
    assert scores(factors, latents) == first
    assert all(0 < value < 1 for value in first.values())
