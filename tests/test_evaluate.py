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

from imavae.config.settings import RunConfig
from imavae.data import dataset
from imavae.data.dataset import Split, Truth
from imavae.metrics import evaluate as evaluation
from imavae.metrics.glossary import CURVE_POINTS, METRICS, TRUTH, absent
from imavae.model import vae
from imavae.rng import stream
from imavae.training.ensemble import ensemble
from tests.helpers import (
    BETA,
    GAUSSIAN,
    LAPLACE,
    UNIFORM,
    config,
    normal,
    plain_model,
    point,
    pointwise_jacobian,
    random_members,
    theta_of,
    untouched_generators,
)


def batched(at: RunConfig, size: int) -> RunConfig:
    return dataclasses.replace(at, training=dataclasses.replace(at.training, batch_size=size))


def with_latents(at: RunConfig, count: int) -> RunConfig:
    return dataclasses.replace(at, model=dataclasses.replace(at.model, dim=count))


WORLDS = {"members": {"seed": [1, 2, 3], "data": {"seed": [4, 9]}}}
POINTS = [
    point(3, UNIFORM),
    point(2, {"name": "uniform", "low": 1.0, "high": 4.0}, n_layers=3, gamma=20.0),
    batched(point(5, GAUSSIAN), 600),  # published estimators average over batches of 576, more than a chunk of points
    point(2, {"name": "gaussian", "std": 2.0}, n_layers=1, gamma=0.5),
    point(3, BETA, posterior="full"),
    batched(point(2, {**LAPLACE, "parameters": "learned"}, activation="tanh"), 32),
    point(2, UNIFORM, data={"observed": 5, "mixing": {"name": "mlp"}}),
    with_latents(point(2, GAUSSIAN, data={"observed": 4}, posterior="full"), 3),
    with_latents(point(3, UNIFORM), 5),
    with_latents(point(3, BETA), 2),
]
each_point = pytest.mark.parametrize("at", POINTS, ids=lambda p: f"{p.data.dim}-{p.model.dim}-{p.model.prior}")
Values = dict[str, Tensor]
PROBES = {metric.name for metric in METRICS if metric.probe and "estimate" not in metric.name}
NOT_OBVIOUS = {"agreement", "amari", "conformal_contrast"}  # compared with other computations


def split_of(at: RunConfig, n: int = 1400) -> Split:
    """1,400 points: more than a chunk of points, and not a multiple of 64."""
    val = dataset.make(at.data, at.members.data.seed or (at.data.seed,), vae.torch_dtype(at)).val
    return first(val, n)


def first(split: Split, n: int, dtype: torch.dtype = torch.float64) -> Split:
    """The first points of a split."""
    assert split.truth is not None
    return dataclasses.replace(
        split,
        sources=split.sources[:, :n].to(dtype),
        observations=split.observations[:, :n].to(dtype),
        segments=None if split.segments is None else split.segments[:, :n],
        truth=Truth(split.truth.log_px[:, :n], split.truth.jacobian[..., :n].to(dtype)),
    )


def evaluated(
    at: RunConfig, flat: Tensor, split: Split, seeds: list[int] | None = None, probes: bool = False
) -> Values:
    """Of members of these seeds, in one world."""
    members = dataclasses.replace(at.members, seed=tuple(seeds or range(len(flat))))
    return of_rows(dataclasses.replace(at, members=members), flat, split, probes)


def of_rows(at: RunConfig, flat: Tensor, split: Split, probes: bool = False) -> Values:
    return evaluation.evaluate(ensemble([at], "cpu"), flat, torch.arange(len(flat)), split, maps_of(at), probes)


def maps_of(at: RunConfig) -> Callable[[], Tensor]:
    """Random affine maps in the place of the fitted ones (test_linear.py)."""
    worlds, dim, observed = len(at.members.data.seed or [1]), at.data.dim, at.data.features
    return lambda: 0.3 * normal(worlds, 3 * dim, observed + 1, seed=3)


def best_matching(s: Tensor, z: Tensor) -> float:
    """The mean over the sources; one without a latent counts 0."""
    dim, most = s.shape[1], max(s.shape[1], z.shape[1])
    table = np.zeros((dim, most))
    table[:, : z.shape[1]] = np.abs(np.corrcoef(s.numpy().T, z.numpy().T)[:dim, dim:])
    return max(float(table[range(dim), order].mean()) for order in itertools.permutations(range(most), dim))


def one_contrast(jacobian: Tensor) -> float:
    return float(jacobian.norm(dim=0).log().sum() - 0.5 * torch.linalg.slogdet(jacobian.T @ jacobian).logabsdet)


def over_batches(at: RunConfig, n: int, value: Callable[[slice], float]) -> float:
    """The mean over whole batches of the training's size, in multiples of 64, or one of all points."""
    size = max(64, min(at.training.batch_size, n) // 64 * 64)
    return float(np.mean([value(slice(start, start + size)) for start in range(0, n - size + 1, size)]))


def obvious(at: RunConfig, row: Tensor, split: Split, seed: int, world: int = 0) -> dict[str, float]:
    """Every quick metric of one member, from its plain module, in the words of the glossary."""
    model, x, s, gamma = plain_model(at, row), split.observations[world], split.sources[world], at.model.gamma
    prior, theta = model.architecture.prior, theta_of(model, None if split.segments is None else split.segments[world])
    n, dim = len(x), at.latents
    mean, std = model.posterior(x)
    noise = torch.randn(dim, n, generator=stream(seed, "evaluation"), dtype=x.dtype)
    q = model.architecture.posterior(model.weights, x.T[None])
    y, location = q.sample(noise[None])[0].T, model.encode(x)
    z = prior.latent(y)
    jacobian, sampled = (pointwise_jacobian(model.decode, at) for at in (location, z))
    norms, in_y = jacobian.norm(dim=1), jacobian * prior.slope(mean)[:, None]
    curvature = prior.curvature(mean, theta)
    kl = (-q.entropy()[0].T - prior.log_prob(y, theta)).sum(1).mean()
    error = gamma**2 * (model.decode(z) - x).square()
    log_px_z = (math.log(gamma) - 0.5 * math.log(2 * math.pi) - 0.5 * error).sum(1).mean()
    ranks = [torch.from_numpy(np.asarray(rankdata(a.numpy(), axis=0))) for a in (s, z)]
    ratio = std.square() * (curvature + gamma**2 * in_y.square().sum(1))
    assert split.truth is not None
    truth = split.truth.jacobian[world].permute(2, 0, 1).double()
    affine = maps_of(at)()[world]
    ica, pca, guess = torch.tensor_split(x.double() @ affine[:, :-1].T + affine[:, -1], 3, 1)
    left = (s - guess).square().sum(0) / (s - s.mean(0)).square().sum(0)
    log_px, c_truth = float(split.truth.log_px[world].mean()), float(np.mean([one_contrast(j) for j in truth]))

    low, high = at.data.support or (-0.5, 0.5)
    inside = ((s > low + 0.1 * (high - low)) & (s < high - 0.1 * (high - low))).all(1)

    def batch_ratio(rows: slice) -> float:
        precision = curvature[rows].mean(0) + gamma**2 * in_y[rows].mean(0).square().sum(0)
        return float((std[rows].square().mean(0) * precision).mean())

    again = model.encode(model.decode(s)) - s if at.latents == at.data.dim else torch.zeros(n, 1)
    values = {
        "neg_elbo": kl - log_px_z,
        "kl": kl,
        "log_px_z": log_px_z,
        "mcc": best_matching(s, z),
        "mcc_spearman": best_matching(*ranks),
        "mcc_mean": best_matching(s, location),
        "mcc_cdf": best_matching(s, prior.cdf(z, theta)),
        "mcc_batch": over_batches(at, n, lambda rows: best_matching(s[rows], z[rows])),
        "mcc_linear_ica": best_matching(s, ica),
        "mcc_pca": best_matching(s, pca),
        "r2_linear_world": (1 - left).clamp_min(0).mean(),
        "nonlinear_gain": best_matching(s, z) - best_matching(s, ica),
        "r2_linear": linear_probe(location, s),
        "cima": np.mean([one_contrast(j) for j in jacobian]),
        "cima_batch": over_batches(at, n, lambda rows: one_contrast(sampled[rows].mean(0))),
        "rank_deficient": 0.0,
        "cima_truth": c_truth,
        "column_norm": norms.mean(),
        "column_norm_max": norms.max(),
        "column_norm_var_columns": norms.mean(0).var(correction=0),
        "column_norm_var_points": norms.var(0, correction=0).mean(),
        "self_consistency": ratio.log().mean().exp(),
        "self_consistency_batch": over_batches(at, n, batch_ratio),
        "log_px": log_px,
        "l_ima": log_px - c_truth,
        "gap_log_px": log_px + kl - log_px_z,
        "gap_ima": log_px - c_truth + kl - log_px_z,
        "mse_obs": (model(x) - x).square().mean(),
        "mse_source": again.square().mean(),
        "mse_obs_interior": (model(x) - x)[inside].square().mean(),
        "mse_source_interior": again[inside].square().mean(),
        "latent_correlation": np.abs(np.corrcoef(location.T)[np.triu_indices(dim, 1)]).mean(),
        "gamma": gamma,
        "prior_variance": prior.variance(theta).double().mean(),
        "active_units": (location.var(0) > 0.01 * prior.variance(theta).squeeze()).sum(),
    }
    return {name: float(value) for name, value in values.items()}


def linear_probe(z: Tensor, s: Tensor) -> float:
    """R² on the second half of a least-squares map, with intercept, from the first."""
    half, one = len(z) // 2, torch.ones(len(z), 1, dtype=z.dtype)
    inputs = torch.cat([z, one], 1)
    guess = inputs[half:] @ torch.linalg.lstsq(inputs[:half], s[:half]).solution
    left = (guess - s[half:]).square().sum(0) / (s[half:] - s[half:].mean(0)).square().sum(0)
    return float((1 - left).clamp_min(0).mean())


@each_point
@pytest.mark.parametrize("members", [1, 2])
def test_every_metric_is_the_obvious_one(at: RunConfig, members: int) -> None:
    split, flat, seeds = split_of(at, n=1100), random_members(at, [5, 6][:members]), [11, 12][:members]
    values = evaluated(at, flat, split, seeds)
    for m in range(members):
        expected = obvious(at, flat[m], split, seeds[m])
        for name in values.keys() - NOT_OBVIOUS:
            assert float(values[name][m]) == pytest.approx(expected[name], rel=1e-9, abs=1e-10), name
    asked = dataclasses.replace(at, members=dataclasses.replace(at.members, seed=tuple(seeds)))
    assert set(values) == set(METRICS.names()) - absent(asked, True).keys()
    assert list(values) == [name for name in METRICS.names() if name in values]
    if members == 2:
        locations = [plain_model(at, row).encode(split.observations[0]) for row in flat]
        assert values["agreement"].tolist() == pytest.approx([best_matching(*locations)] * 2)


@each_point
def test_the_latents_of_a_figure_are_matched_with_their_sources(at: RunConfig) -> None:
    split, flat = split_of(at, n=600), random_members(at, [5, 6])
    at = dataclasses.replace(at, members=dataclasses.replace(at.members, seed=(11, 12)))
    shapes = evaluation.posterior_shapes(ensemble([at], "cpu"), flat, torch.arange(2), split)
    for m in range(2):
        locations = plain_model(at, flat[m]).encode(split.observations[0])
        s, z, place = shapes.sources[m], shapes.latents[m], shapes.matched[m]
        table = np.corrcoef(s.numpy(), z.numpy())[: len(s), len(s) :]
        np.testing.assert_allclose(shapes.correlation[m], table, atol=1e-9)
        assert place[place >= 0].tolist() == list(range(min(at.data.dim, at.latents)))
        found = [abs(table[k, p]) if p >= 0 else 0.0 for k, p in enumerate(place.tolist())]
        assert np.mean(found) == pytest.approx(best_matching(split.sources[0], locations))
        torch.testing.assert_close(z.T, locations[:, shapes.numbers[m]])


@each_point
def test_probes_are_added_and_change_nothing(at: RunConfig) -> None:
    split, flat = split_of(at, n=400), random_members(at, [5, 6])
    final, probed = (evaluated(at, flat, split, [5, 6], probes) for probes in (False, True))
    assert probed.keys() - final.keys() == PROBES
    for name, value in probed.items():
        assert value.shape == (2,)
        assert value.isfinite().all(), name
        assert torch.equal(final.get(name, value), value), name
    for name in PROBES:
        assert ((probed[name] >= 0) & (probed[name] <= 1)).all(), name
    if at.latents <= at.data.features:
        assert (final["conformal_contrast"] >= final["cima"] - 1e-12).all()
    no_truth = evaluated(at, flat, dataclasses.replace(split, truth=None), [5, 6], True)
    known = {metric.name for metric in METRICS if TRUTH[-1] in metric.needs}
    assert probed.keys() - no_truth.keys() == known - absent(at, True).keys()


@each_point
def test_a_validation_has_curves_at_the_first_points_and_objectives_over_all(at: RunConfig) -> None:
    split, flat, rows = split_of(at), random_members(at, [5, 6]), torch.arange(2)
    members = ensemble([dataclasses.replace(at, members=dataclasses.replace(at.members, seed=(5, 6)))], "cpu")
    whole = evaluation.evaluate(members, flat, rows, split, maps_of(at))
    few = evaluation.evaluate(members, flat, rows, first(split, CURVE_POINTS), maps_of(at))
    for objectives in ((), ("mcc", "cima", "amari", "agreement")):
        values = evaluation.evaluate(members, flat, rows, split, maps_of(at), objectives=objectives)
        curves = {metric.name: metric.curve for metric in METRICS if metric.name in whole}
        curves |= dict.fromkeys(objectives, "all")
        assert list(values) == [name for name in whole if curves[name] != "none"]
        for name, value in values.items():
            assert len(split) > CURVE_POINTS
            assert torch.equal(value, whole[name]) == (curves[name] == "all" or torch.equal(few[name], whole[name]))
            if curves[name] == "first":
                torch.testing.assert_close(value, few[name], rtol=1e-12, atol=0)


def test_each_member_is_compared_with_the_sources_of_its_own_world() -> None:
    at = config({"dim": 3, "n_obs": 2000, "mixing": {"name": "mlp"}}, {"gamma": 3.0}, **WORLDS)
    split, flat = split_of(at, 400), random_members(at, [1, 2, 3, 1, 2, 3])
    values = of_rows(at, flat, split)
    assert split.truth is not None
    for row, (world, seed) in enumerate((w, seed) for w in range(2) for seed in (1, 2, 3)):
        expected = obvious(at, flat[row], split, seed, world)
        for name in values.keys() - NOT_OBVIOUS:
            assert float(values[name][row]) == pytest.approx(expected[name], rel=1e-9, abs=1e-10), name
    for world, others in enumerate(([1, 2], [4, 5])):  # agreement stays within a world
        locations = [plain_model(at, flat[row]).encode(split.observations[world]) for row in (3 * world, *others)]
        expected_agreement = np.median([best_matching(locations[0], other) for other in locations[1:]])
        assert float(values["agreement"][3 * world]) == pytest.approx(expected_agreement)


def test_a_conditional_priors_metrics_follow_the_segments() -> None:
    data = {"dim": 2, "n_obs": 2000, "n_segments": 4, "source": {"name": "gaussian"}, "mixing": {"name": "mlp"}}
    prior = {"name": "gaussian", "parameters": "conditional"}
    at = config(data, {"prior": prior, "gamma": 3.0}, members={"seed": [1, 2]})
    split, flat = split_of(at, 400), random_members(at, [1, 2])
    values = of_rows(at, flat, split)
    for row, seed in enumerate((1, 2)):
        expected = obvious(at, flat[row], split, seed)
        for name in values.keys() - {*NOT_OBVIOUS, "active_units"}:
            assert float(values[name][row]) == pytest.approx(expected[name], rel=1e-9, abs=1e-10), name


@each_point
def test_a_member_alone_has_the_values_it_has_among_others(at: RunConfig) -> None:
    split, seeds = split_of(at), list(range(40))
    flat = random_members(at, seeds)
    together = evaluated(at, flat, split, seeds)
    for m in (0, 17, 39):
        alone = evaluated(at, flat[m : m + 1], split, [m])
        assert together.keys() - alone.keys() == {"agreement"}
        for name, value in alone.items():
            torch.testing.assert_close(value, together[name][m : m + 1], rtol=1e-10, atol=1e-12, msg=name)
    assert len(set(together["mcc"].tolist())) == 40


def test_members_of_one_seed_share_their_noise_and_gamma_is_each_members_own() -> None:
    at, wide = (dataclasses.replace(point(3, UNIFORM, gamma=g), members=POINTS[0].members) for g in (3.0, 30.0))
    one_seed = [dataclasses.replace(p, members=dataclasses.replace(p.members, seed=(4,))) for p in (at, wide)]
    split, flat = split_of(at), torch.cat([random_members(p, [1]) for p in one_seed])
    values = evaluation.evaluate(ensemble(one_seed, "cpu"), flat, torch.arange(2), split, maps_of(at))
    for name, value in evaluated(wide, flat[1:], split, [4]).items():
        torch.testing.assert_close(values[name][1:], value, msg=name)
    assert values["gamma"].tolist() == pytest.approx([3.0, 30.0])
    assert values["mcc"][0] == values["mcc"][1]
    assert values["log_px_z"][0] > values["log_px_z"][1]
    assert len(set(evaluated(at, flat[[0, 0]], split, [4, 5])["mcc"].tolist())) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evaluation_repeats_itself_and_leaves_global_generators_alone(dtype: torch.dtype) -> None:
    at = POINTS[0]
    split, flat = first(split_of(at), 1400, dtype), random_members(at, [1, 2]).to(dtype)
    with untouched_generators():
        once, again = evaluated(at, flat, split), evaluated(at, flat, split)
    for name, value in once.items():
        assert value.dtype == torch.float64
        assert value.shape == (2,)
        assert torch.equal(value, again[name]), name


@each_point
def test_single_precision_agrees_with_double(at: RunConfig) -> None:
    split, flat = split_of(at), random_members(at, [1, 2])
    # the noise is another one in another precision, so the metrics of samples are left out
    exact = evaluated(at, flat, split)
    rounded = evaluated(at, flat.float(), first(split, 1400, torch.float32))
    plain = ("mcc_mean", "r2_linear", "agreement", "cima", "cima_truth", "column_norm", "amari")
    more = ("self_consistency", "mse_obs", "mse_source", "active_units", "gamma", "log_px", "l_ima")
    for name in (name for name in (*plain, *more) if name in exact):
        torch.testing.assert_close(rounded[name], exact[name], rtol=2e-4, atol=2e-5, msg=name)


def set_linear(at: RunConfig, jacobian: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """A member whose decoder is z -> J z, and whose posterior is N(mean, diag variance) for every observation."""
    layout, dim = vae.build(at).layout, at.data.dim
    flat = torch.zeros(1, layout.size, dtype=torch.float64)
    weights = layout.views(flat)
    weights[vae.GAMMA][:] = math.log(at.model.gamma)
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
    scale = shares.sqrt() * GAUSSIAN["std"] / split.observations[0].std(0, correction=0)
    vae.build(at).layout.views(flat)["encoder.0.weight"][0, :3] = torch.diag(scale)
    assert evaluated(at, flat, split)["active_units"].tolist() == [2.0]


def test_a_unit_is_compared_with_its_own_priors_variance() -> None:
    at = point(2, {**GAUSSIAN, "parameters": "learned"}, n_layers=1)
    split, flat = split_of(at), torch.zeros(1, vae.build(at).layout.size, dtype=torch.float64)
    weights = vae.build(at).layout.views(flat)
    weights["encoder.0.weight"][0, :2] = torch.diag(1 / split.observations[0].std(0, correction=0))
    weights["prior.offset"][0, -1] = torch.tensor([8.0, 0.0])  # log std: the first prior is far wider
    assert evaluated(at, flat, split)["active_units"].tolist() == [1.0]


def test_a_member_that_is_not_finite_disturbs_no_other() -> None:
    at = POINTS[0]
    split, flat = split_of(at), random_members(at, [1, 2, 3])
    expected = evaluated(at, flat, split)
    flat[1] = torch.nan
    values = evaluated(at, flat, split)
    for name in values.keys() - {"agreement"}:  # which is a matter between members
        torch.testing.assert_close(values[name][[0, 2]], expected[name][[0, 2]], msg=name)
    assert values["agreement"].isfinite().all()
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
        assert ("mcc_cdf" in values) == (source["name"] == "uniform" and prior["name"] != "uniform")


@pytest.mark.parametrize("n", [64, 65, 1024, 1025])
def test_any_number_of_points_will_do(n: int) -> None:
    at = POINTS[0]
    split, flat = split_of(at, n), random_members(at, [5])
    values, expected = evaluated(at, flat, split, [11]), obvious(at, flat[0], split, 11)
    for name in ("neg_elbo", "mcc_batch", "cima", "mse_source"):
        assert float(values[name]) == pytest.approx(expected[name], rel=1e-9), name


@each_point
def test_the_rows_of_the_latents_add_up_to_the_members_metrics(at: RunConfig) -> None:
    split, flat, row = split_of(at), random_members(at, [5, 6]), 1
    at = dataclasses.replace(at, members=dataclasses.replace(at.members, seed=(5, 6)))
    rows = evaluation.latent_rows(ensemble([at], "cpu"), flat[row:], row, split)
    values = of_rows(at, flat, split)
    names = ["kl", "mcc_mean", "active_units", "self_consistency", "column_norm"]
    expected = {name: float(values[name][row]) for name in names}
    column = {name: np.array([entry[name] for entry in rows]) for name in rows[0] if name != "source"}
    found = {
        "kl": column["kl"].sum(),
        "mcc_mean": np.nansum(np.abs(column["correlation"])) / at.data.dim,
        "active_units": column["active"].sum(),
        "self_consistency": np.exp(np.log(column["variance"] / column["formula"]).mean()),
        "column_norm": column["column_norm"].mean(),
    }
    assert found == pytest.approx(expected, rel=1e-5)
    assert column["latent"].tolist() == list(range(1, at.latents + 1))
    matched = [entry["source"] for entry in rows if entry["source"]]
    assert len(matched) == min(at.latents, at.data.dim)
    assert set(matched) <= {factor.name for factor in at.data.source_factors}
    assert all(np.isnan(entry["correlation"]) for entry in rows if not entry["source"])
