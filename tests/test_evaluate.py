"""evaluate(): every metric of a split is what an obvious loop over one plain member says, whoever its company is."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from imavae.config import RunConfig
from imavae.data import dataset
from imavae.data.dataset import Split
from imavae.errors import UserError
from imavae.metrics.glossary import GLOSSARY, check_metric, evaluate
from imavae.model import vae
from imavae.streams import stream
from tests.helpers import (
    GAUSSIAN,
    UNIFORM,
    normal,
    plain_model,
    point,
    pointwise_jacobian,
    random_members,
    untouched_generators,
)

POINTS = [
    point(3, UNIFORM),
    point(2, {"name": "uniform", "low": 1.0, "high": 4.0}, n_layers=3, gamma=20.0),
    point(5, GAUSSIAN),
    point(2, {"name": "gaussian", "std": 2.0}, n_layers=1, gamma=0.5),
]
each_point = pytest.mark.parametrize("at", POINTS, ids=lambda p: f"{p.data.dim}-{p.model.prior}")
Values = dict[str, Tensor]


def split_of(at: RunConfig, n: int = 1400) -> Split:
    """1,400 points: more than a chunk of points, and not a multiple of 64."""
    val = dataset.make(at.data, vae.torch_dtype(at)).val
    return Split(val.sources[:n], val.observations[:n], val.support)


def single(split: Split, dtype: torch.dtype = torch.float32) -> Split:
    return Split(split.sources.to(dtype), split.observations.to(dtype), split.support)


def evaluated(at: RunConfig, flat: Tensor, split: Split, seeds: list[int] | None = None) -> Values:
    gamma = torch.full((len(flat),), at.model.gamma, dtype=flat.dtype)
    return evaluate(vae.build(at), flat, gamma, seeds or list(range(len(flat))), split)


def best_matching(s: Tensor, z: Tensor) -> float:
    dim = s.shape[1]
    table = np.abs(np.corrcoef(s.numpy().T, z.numpy().T)[:dim, dim:])
    return max(float(table[range(dim), order].mean()) for order in itertools.permutations(range(dim)))


def one_contrast(jacobian: Tensor) -> float:
    return float(jacobian.norm(dim=0).log().sum() - 0.5 * torch.linalg.slogdet(jacobian.T @ jacobian).logabsdet)


def over_batches(n: int, value: Callable[[slice], float]) -> float:
    return float(np.mean([value(slice(start, start + 64)) for start in range(0, n - 63, 64)]))


def obvious(at: RunConfig, row: Tensor, split: Split, seed: int) -> dict[str, float]:
    """Every metric of one member, from its plain module, in the words of the glossary."""
    model, x, s, gamma = plain_model(at, row), split.observations, split.sources, at.model.gamma
    n, dim = x.shape
    mean, std = model.posterior(x)
    noise = torch.randn(dim, n, generator=stream(seed, "evaluation"), dtype=x.dtype).T
    y, location = mean + std * noise, model.encode(x)
    z = model.prior.latent(y)
    jacobian = pointwise_jacobian(model.decode, location)
    in_y = jacobian * model.prior.slope(mean)[:, None]
    curvature = model.prior.curvature(mean)
    kl = (-std.log() - 0.5 - 0.5 * math.log(2 * math.pi) - model.prior.log_prob(y)).sum(1).mean()
    error = gamma**2 * (model.decode(z) - x).square()
    log_px_z = (math.log(gamma) - 0.5 * math.log(2 * math.pi) - 0.5 * error).sum(1).mean()
    ranks = [torch.from_numpy(np.asarray(rankdata(a.numpy(), axis=0))) for a in (s, z)]
    ratio = std.square() * (curvature + gamma**2 * in_y.square().sum(1))

    def batch_ratio(at: slice) -> float:
        precision = curvature[at].mean(0) + gamma**2 * in_y[at].mean(0).square().sum(0)
        return float((std[at].square().mean(0) * precision).mean())

    return {
        "neg_elbo": float(kl - log_px_z),
        "kl": float(kl),
        "log_px_z": float(log_px_z),
        "mcc": best_matching(s, z),
        "mcc_spearman": best_matching(*ranks),
        "mcc_mean": best_matching(s, location),
        "mcc_batch": over_batches(n, lambda at: best_matching(s[at], z[at])),
        "cima": float(np.mean([one_contrast(j) for j in jacobian])),
        "cima_batch": over_batches(n, lambda at: one_contrast(jacobian[at].mean(0))),
        "rank_deficient": 0.0,
        "self_consistency": float(ratio.log().mean().exp()),
        "self_consistency_batch": over_batches(n, batch_ratio),
        "mse_obs": float((model(x) - x).square().mean()),
        "mse_source": float((model.encode(model.decode(s)) - s).square().mean()),
        "active_units": float((location.var(0) > 0.01 * model.prior.variance).sum()),
    }


@each_point
@pytest.mark.parametrize("members", [1, 2])
def test_every_metric_is_the_obvious_one(at: RunConfig, members: int) -> None:
    split, flat = split_of(at, n=1100), random_members(at, [5, 6][:members])
    values = evaluated(at, flat, split, [11, 12][:members])
    assert list(values) == list(GLOSSARY)
    for m in range(members):
        expected = obvious(at, flat[m], split, [11, 12][m])
        assert expected.keys() == GLOSSARY.keys()
        for name, value in expected.items():
            assert float(values[name][m]) == pytest.approx(value, rel=1e-9, abs=1e-10), name


@each_point
def test_a_member_alone_has_the_values_it_has_among_others(at: RunConfig) -> None:
    split, seeds = split_of(at), list(range(40))
    flat = random_members(at, seeds)
    together = evaluated(at, flat, split, seeds)
    for m in (0, 17, 39):
        alone = evaluated(at, flat[m : m + 1], split, [m])
        for name, value in alone.items():
            torch.testing.assert_close(value, together[name][m : m + 1], rtol=1e-10, atol=1e-12, msg=name)
    assert len(set(together["mcc"].tolist())) == 40


def test_members_of_one_seed_share_their_noise_and_gamma_is_each_members_own() -> None:
    at = POINTS[0]
    split, flat = split_of(at), random_members(at, [1]).expand(2, -1)
    gamma = torch.tensor([3.0, 30.0], dtype=torch.float64)
    values = evaluate(vae.build(at), flat, gamma, [4, 4], split)
    other = dataclasses.replace(at, model=dataclasses.replace(at.model, gamma=30.0))
    for name, value in evaluated(other, flat[:1], split, [4]).items():
        torch.testing.assert_close(values[name][1:], value, msg=name)
    assert values["mcc"][0] == values["mcc"][1]
    assert values["log_px_z"][0] > values["log_px_z"][1]
    assert len(set(evaluated(at, flat, split, [4, 5])["mcc"].tolist())) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evaluation_repeats_itself_and_leaves_global_generators_alone(dtype: torch.dtype) -> None:
    at = POINTS[0]
    split, flat = single(split_of(at), dtype), random_members(at, [1, 2]).to(dtype)
    with untouched_generators():
        first, again = evaluated(at, flat, split), evaluated(at, flat, split)
    for name, value in first.items():
        assert value.dtype == torch.float64
        assert value.shape == (2,)
        assert torch.equal(value, again[name]), name


@each_point
def test_single_precision_agrees_with_double(at: RunConfig) -> None:
    split, flat = split_of(at), random_members(at, [1, 2])
    # the noise is another one in another precision, so the metrics of samples are left out
    exact, rounded = evaluated(at, flat, split), evaluated(at, flat.float(), single(split))
    for name in ("mcc_mean", "cima", "cima_batch", "self_consistency", "mse_obs", "mse_source", "active_units"):
        torch.testing.assert_close(rounded[name], exact[name], rtol=1e-4, atol=1e-5, msg=name)


def set_linear(at: RunConfig, jacobian: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """A member whose decoder is z -> J z, and whose posterior is N(mean, diag variance) for every observation."""
    layout, dim = vae.build(at).layout, at.data.dim
    flat = torch.zeros(1, layout.size, dtype=torch.float64)
    weights = layout.views(flat)
    weights["decoder.0.weight"][0] = jacobian
    weights["encoder.0.bias"][0] = torch.cat([mean, variance.log()])
    assert dim == len(mean)
    return flat


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("gamma", [0.3, 3.0, 300.0])
def test_the_exact_gaussian_posterior_is_self_consistent(dim: int, gamma: float) -> None:
    at = point(dim, GAUSSIAN, n_layers=1, gamma=gamma)
    jacobian = normal(dim, dim, seed=7)
    variance = 1 / (1 / GAUSSIAN["std"] ** 2 + gamma**2 * jacobian.square().sum(0))
    mean = torch.linspace(-1, 1, dim, dtype=torch.float64)
    for factor in (1.0, 2.0):  # and the metric is the ratio of variances
        values = evaluated(at, set_linear(at, jacobian, mean, factor * variance), split_of(at))
        assert float(values["self_consistency"]) == pytest.approx(factor, rel=1e-10)
        assert float(values["self_consistency_batch"]) == pytest.approx(factor, rel=1e-10)


@pytest.mark.parametrize("width", [1.0, 3.0])
@pytest.mark.parametrize("gamma", [0.3, 30.0])
def test_self_consistency_under_the_uniform_prior_as_design_has_it(width: float, gamma: float) -> None:
    # DESIGN §3: σ_k² = (2s(1−s) + γ²‖J_:k‖²(w s(1−s))²)⁻¹ with s = sigmoid(y_k), w the support's width
    at = point(3, {"name": "uniform", "low": -1.0, "high": width - 1}, n_layers=1, gamma=gamma)
    jacobian, y = normal(3, 3, seed=7), torch.tensor([-2.0, 0.1, 1.5], dtype=torch.float64)
    s = y.sigmoid()
    variance = 1 / (2 * s * (1 - s) + gamma**2 * jacobian.square().sum(0) * (width * s * (1 - s)) ** 2)
    values = evaluated(at, set_linear(at, jacobian, y, variance), split_of(at))
    assert float(values["self_consistency"]) == pytest.approx(1, rel=1e-10)
    assert float(values["cima"]) == pytest.approx(one_contrast(jacobian), rel=1e-10)


@pytest.mark.parametrize("prior", [UNIFORM, GAUSSIAN], ids=lambda p: str(p["name"]))
def test_a_collapsed_posterior_scores_nothing_and_crashes_nothing(prior: dict[str, Any]) -> None:
    at = point(3, prior, n_layers=1)
    one = torch.ones(3, dtype=torch.float64)
    flat = torch.cat(
        [set_linear(at, normal(3, 3, seed=7), 0.3 * one, one), set_linear(at, 0 * normal(3, 3, seed=7), one, one)]
    )
    values = evaluated(at, flat, split_of(at))
    assert values["mcc_mean"].tolist() == [0.0, 0.0]
    assert values["active_units"].tolist() == [0.0, 0.0]
    assert (values["mcc"] < 0.1).all()
    assert values["rank_deficient"].tolist() == [0.0, 1.0]
    assert values["cima"].isnan().tolist() == [False, True]
    assert values["cima_batch"].isnan().tolist() == [False, True]  # not the best contrast there is


def test_a_unit_is_active_above_a_hundredth_of_the_priors_variance() -> None:
    at = point(3, GAUSSIAN, n_layers=1)
    split, flat = split_of(at), torch.zeros(1, vae.build(at).layout.size, dtype=torch.float64)
    shares = torch.tensor([0.009, 0.011, 1.0], dtype=torch.float64)  # of the prior's variance, in each latent's mean
    scale = shares.sqrt() * GAUSSIAN["std"] / split.observations.std(0, correction=0)
    vae.build(at).layout.views(flat)["encoder.0.weight"][0, :3] = torch.diag(scale)
    assert evaluated(at, flat, split)["active_units"].tolist() == [2.0]


def test_a_member_that_is_not_finite_disturbs_no_other() -> None:
    at = POINTS[0]
    split, flat = split_of(at), random_members(at, [1, 2, 3])
    expected = evaluated(at, flat, split)
    flat[1] = torch.nan
    values = evaluated(at, flat, split)
    for name, value in values.items():
        torch.testing.assert_close(value[[0, 2]], expected[name][[0, 2]], msg=name)
    assert values["neg_elbo"][1].isnan()
    assert values["cima"][1].isnan()
    assert values["mcc"][1] == 0


def test_source_errors_mean_something_only_where_supports_agree() -> None:
    wider = {"name": "uniform", "low": -1.0, "high": 1.0}
    settings = [(UNIFORM, UNIFORM, True), (UNIFORM, {"name": "uniform"}, True), (UNIFORM, wider, False)]
    settings += [(UNIFORM, GAUSSIAN, False), ({"name": "gaussian"}, GAUSSIAN, True)]
    for source, prior, agree in settings:
        at = point(3, prior)
        at = dataclasses.replace(at, data=point(3, source).data)
        values = evaluated(at, random_members(at, [1]), split_of(at))
        assert ("mse_source" in values) == agree
        assert GLOSSARY.keys() - values.keys() <= {"mse_source"}


@pytest.mark.parametrize("n", [64, 65, 1024, 1025])
def test_any_number_of_points_will_do(n: int) -> None:
    at = POINTS[0]
    split, flat = split_of(at, n), random_members(at, [5])
    values, expected = evaluated(at, flat, split, [11]), obvious(at, flat[0], split, 11)
    for name in ("neg_elbo", "mcc_batch", "cima", "mse_source"):
        assert float(values[name]) == pytest.approx(expected[name], rel=1e-9), name


def test_the_glossary_says_what_is_better_and_objectives_are_checked_against_it() -> None:
    for name, metric in GLOSSARY.items():
        assert metric.definition, name
        assert metric.equation, name
        assert metric.direction in ("max", "min", "one", "none")
        if metric.direction in ("max", "min"):
            check_metric(f"val/{name}", metric.direction)
            with pytest.raises(UserError, match=r"objective\.mode"):
                check_metric(f"val/{name}", "max" if metric.direction == "min" else "min")
    for bad in ("val/mc", "test/mcc", "mcc", "val/kl", "val/self_consistency"):
        with pytest.raises(UserError, match=r"objective\.metric"):
            check_metric(bad, "max")
