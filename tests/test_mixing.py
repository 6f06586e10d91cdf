"""Mixings: forward, inverse, Jacobian and log-determinant are of one and the same map, point by point."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import scipy.stats
import torch
from torch import Tensor

from imavae.config.data import Automorphism, MixingSettings, SyntheticData
from imavae.config.settings import run_config
from imavae.data import dataset, mixings
from imavae.data.dataset import build_source, draw_mixing
from imavae.data.mixings import Mixing, Shifted, moved
from imavae.data.mixings.ar_flow import AutoregressiveMixing
from imavae.data.mixings.flow import Coupling, Flow, FlowMixing
from imavae.data.mixings.mlp import MLP, LinearMixing, MLPMixing, linear_part
from imavae.data.mixings.moebius import Moebius, MoebiusMixing
from imavae.data.mixings.polar import PolarMixing
from imavae.data.sources import BetaSource, GaussianSource, LaplaceSource, UniformSource
from imavae.errors import UserError
from imavae.metrics.ima import contrast
from imavae.rng import stream
from tests.helpers import PUBLISHED, exact_neg_log_px, normal, per_point, pointwise_jacobian

ROUNDED = MoebiusMixing(matrix=((0.6, -0.80001), (0.8, 0.6)), centre=(0.0, 0.7))  # as a person might type it
MOEBIUS = [
    *(SyntheticData(dim=d, seed=seed) for d in (2, 3, 5) for seed in (1, 2)),
    SyntheticData(mixing=PUBLISHED),
    SyntheticData(dim=2, mixing=ROUNDED),
    SyntheticData(source=GaussianSource(mean=1.0, std=2.0)),
    SyntheticData(source=LaplaceSource(mean=1.0, scale=2.0)),
    SyntheticData(dim=2, source=BetaSource(low=3.0, high=4.0)),
    SyntheticData(dim=3, mixing=MoebiusMixing(distance=1.4)),
    SyntheticData(dim=2, mixing=MoebiusMixing(distance=1.05), source=UniformSource(low=0.0, high=3.0)),
    SyntheticData(dim=3, mixing=MoebiusMixing(distance=None)),
]
POLAR = [
    SyntheticData(dim=2, mixing=PolarMixing()),
    SyntheticData(dim=2, mixing=PolarMixing(stretch=0.9, turn=0.95), source=BetaSource(low=1.0, high=3.0)),
    SyntheticData(dim=3, mixing=PolarMixing()),
    SyntheticData(dim=3, mixing=PolarMixing(stretch=0.9, turn=0.95), source=UniformSource(low=-3.0, high=1.0), seed=2),
]
ORTHOGONAL_COLUMNS = [*MOEBIUS, *POLAR]
ON_TOP = [
    SyntheticData(dim=2, mixing=MoebiusMixing(linear="cosine", cosine=0.7)),
    SyntheticData(dim=2, mixing=MoebiusMixing(linear="cosine", cosine=-0.95), source=BetaSource()),
    SyntheticData(dim=3, mixing=MoebiusMixing(linear="unit_determinant")),
    SyntheticData(dim=5, mixing=MoebiusMixing(linear="unit_determinant"), seed=2),
    SyntheticData(dim=3, mixing=MoebiusMixing(linear="unit_columns")),
    SyntheticData(dim=4, mixing=MoebiusMixing(linear="unit_columns"), seed=2),
    SyntheticData(dim=2, mixing=MoebiusMixing(linear="row_cosine", cosine=0.7)),
    SyntheticData(dim=3, mixing=MoebiusMixing(linear="positive_unit_columns")),
]
NONLINEAR = [
    SyntheticData(dim=2, mixing=MLPMixing(n_layers=2)),
    SyntheticData(dim=3, mixing=MLPMixing(n_layers=4)),
    SyntheticData(dim=5, mixing=MLPMixing(n_layers=2, weights="uniform"), seed=3),
    SyntheticData(dim=3, mixing=MLPMixing(n_layers=4, weights="uniform", slope=0.5)),
    SyntheticData(dim=3, mixing=MLPMixing(n_layers=3, weights="triangular")),
    SyntheticData(dim=5, mixing=MLPMixing(n_layers=2, weights="triangular", off_diagonal=2.0), seed=4),
    SyntheticData(dim=3, mixing=MLPMixing(n_layers=2, weights="positive")),
    SyntheticData(dim=3, mixing=MLPMixing(n_layers=3, gain=5.0)),
    SyntheticData(dim=2, mixing=MLPMixing(n_layers=3, activation="leaky_tanh", gain=4.0)),
    SyntheticData(dim=4, mixing=MLPMixing(n_layers=2, activation="leaky_tanh", slope=0.05), source=GaussianSource()),
    SyntheticData(dim=4, mixing=FlowMixing()),
    SyntheticData(dim=6, mixing=FlowMixing(n_layers=3, width=20), source=LaplaceSource(), seed=2),
    SyntheticData(dim=4, mixing=AutoregressiveMixing()),
    SyntheticData(dim=6, mixing=AutoregressiveMixing(n_layers=3, width=5), source=GaussianSource(), seed=2),
    SyntheticData(dim=3, mixing=MLPMixing(n_layers=2), source=GaussianSource(std=30.0)),  # softplus far from zero, too
]
LINEAR = [
    SyntheticData(dim=3, mixing=MLPMixing(n_layers=1)),
    SyntheticData(dim=2, mixing=MLPMixing(n_layers=1, weights="uniform")),
    SyntheticData(dim=3, mixing=MLPMixing(n_layers=4, slope=1.0)),
    SyntheticData(dim=3, mixing=MLPMixing(n_layers=3, activation="leaky_tanh", slope=1.0, gain=2.0)),
    SyntheticData(dim=3, mixing=LinearMixing()),
    SyntheticData(dim=4, mixing=LinearMixing(weights="general")),
]
TURN = Automorphism(angle=40.0)
TURNED = [
    SyntheticData(dim=2, mixing=MoebiusMixing(automorphism=TURN)),
    SyntheticData(dim=2, mixing=MoebiusMixing(automorphism=TURN), source=UniformSource(low=2.0, high=5.0), seed=2),
    SyntheticData(dim=3, mixing=PolarMixing(automorphism=Automorphism(angle=-75.0, plane=(3, 1))), source=BetaSource()),
    SyntheticData(
        dim=3,
        mixing=MLPMixing(n_layers=2, automorphism=TURN),
        source=BetaSource(alpha=0.8, beta=3.0, low=-2.0, high=1.0),
    ),
    SyntheticData(dim=4, mixing=FlowMixing(automorphism=TURN), source=LaplaceSource(mean=2.0, scale=0.3)),
    SyntheticData(dim=3, mixing=LinearMixing(automorphism=TURN), source=GaussianSource(mean=1.0, std=2.0)),
]
EMBEDDED = [  # more observed numbers than sources
    SyntheticData(dim=3, observed=10, mixing=MLPMixing()),
    SyntheticData(dim=2, observed=3, mixing=MLPMixing(n_layers=4, weights="uniform", activation="leaky_tanh")),
    SyntheticData(dim=3, observed=5, mixing=MLPMixing(weights="triangular"), source=GaussianSource()),
    SyntheticData(dim=2, observed=4, mixing=MLPMixing(n_layers=3, weights="positive", gain=2.0)),
    SyntheticData(dim=3, observed=7, mixing=LinearMixing()),
    SyntheticData(dim=3, observed=7, mixing=LinearMixing(weights="general")),
    SyntheticData(dim=3, observed=4),
    SyntheticData(dim=3, observed=10, mixing=MoebiusMixing(linear="unit_columns")),
    SyntheticData(dim=2, observed=3, mixing=PolarMixing()),
    SyntheticData(dim=4, observed=6, mixing=FlowMixing(), source=LaplaceSource()),
    SyntheticData(dim=4, observed=5, mixing=AutoregressiveMixing()),
    SyntheticData(dim=3, observed=8, mixing=MLPMixing(automorphism=TURN)),
    SyntheticData(dim=2, observed=3, mixing=MoebiusMixing(automorphism=TURN)),
]
EVERY = [*ORTHOGONAL_COLUMNS, *ON_TOP, *NONLINEAR, *LINEAR, *TURNED, *EMBEDDED]
every_mixing = pytest.mark.parametrize("data", EVERY, ids=lambda d: f"{d.dim}-{d.mixing}")


def world(data: SyntheticData, n: int = 40) -> tuple[Mixing, Tensor]:
    """The mixing of ``data``, shifted by something, and sources for it."""
    shift = torch.linspace(-1, 2, data.features, dtype=torch.float64)
    return Shifted(draw_mixing(data), shift), build_source(data.source).sample(n, data.dim, stream(9, "sources"))


@every_mixing
def test_inverse_undoes_forward_and_forward_the_inverse(data: SyntheticData) -> None:
    mixing, s = world(data)
    x = mixing.forward(s)
    torch.testing.assert_close(mixing.inverse(x), s, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mixing.forward(mixing.inverse(x)), x, rtol=1e-11, atol=1e-11)


@every_mixing
def test_jacobian_is_that_of_autograd(data: SyntheticData) -> None:
    mixing, s = world(data)
    at = s.clone().requires_grad_()  # not by torch.func, which SciPy's functions can't pass
    rows = [torch.autograd.grad(column.sum(), at, retain_graph=True)[0] for column in mixing.forward(at).unbind(1)]
    torch.testing.assert_close(mixing.jacobian(s), torch.stack(rows, 1), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("data", TURNED, ids=lambda d: f"{d.dim}-{d.source}")
def test_jacobian_of_an_automorphism_is_that_of_finite_differences(data: SyntheticData) -> None:
    step, source = 1e-6, cast(Any, build_source(data.source))
    [rotation, _] = cast(Any, draw_mixing(data)).layers
    s = source.from_normal(normal(100, data.dim).clamp(-2, 2))
    for k, jump in enumerate(step * torch.eye(data.dim, dtype=torch.float64)):
        column = (rotation.forward(s + jump) - rotation.forward(s - jump)) / (2 * step)
        torch.testing.assert_close(rotation.jacobian(s)[:, :, k], column, rtol=1e-5, atol=1e-6)


@every_mixing
def test_log_det_is_that_of_the_jacobian(data: SyntheticData) -> None:
    mixing, s = world(data)
    jacobian = mixing.jacobian(s)
    assert jacobian.shape == (len(s), data.features, data.dim)
    square = data.features == data.dim  # else the volume of the surface
    expected = torch.slogdet(jacobian).logabsdet if square else 0.5 * torch.logdet(jacobian.mT @ jacobian)
    torch.testing.assert_close(mixing.log_det(s), expected, rtol=1e-11, atol=1e-11)


@every_mixing
def test_a_point_does_not_depend_on_its_batch(data: SyntheticData) -> None:
    mixing, s = world(data)
    x = mixing.forward(s)
    for function, at in ((mixing.forward, s), (mixing.inverse, x), (mixing.jacobian, s), (mixing.log_det, s)):
        alone = torch.cat([function(row[None]) for row in at])
        torch.testing.assert_close(function(at), alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("data", ORTHOGONAL_COLUMNS, ids=lambda d: f"{d.dim}-{d.mixing}")
def test_a_map_with_orthogonal_columns_has_zero_contrast(data: SyntheticData) -> None:
    mixing, s = world(data)
    values, full, _ = contrast(per_point(mixing.jacobian(s)))
    assert full.all()
    assert values.abs().max() < 1e-12


@pytest.mark.parametrize("data", EMBEDDED, ids=lambda d: f"{d.dim}-{d.mixing}")
def test_more_observed_numbers_than_sources(data: SyntheticData) -> None:
    """Only the MLP bends the surface on which they lie; the linear map after another mixing keeps its contrast."""
    mixing, s = world(data, n=200)
    x = mixing.forward(s)
    assert x.shape == (200, data.features)
    bent = isinstance(data.mixing, MLPMixing)
    assert torch.linalg.matrix_rank(x - x.mean(0), rtol=1e-9) == (data.features if bent else data.dim)
    if not data.mixing.embeds:
        alone = draw_mixing(dataclasses.replace(data, observed=None))
        expected, _, _ = contrast(per_point(alone.jacobian(s)))
        values, full, _ = contrast(per_point(mixing.jacobian(s)))
        assert full.all()
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)


def test_an_embedded_mlp_has_positive_contrast() -> None:
    mixing, s = world(SyntheticData(dim=3, observed=10, mixing=MLPMixing()))
    values, full, _ = contrast(per_point(mixing.jacobian(s)))
    assert full.all()
    assert values.min() > 0
    assert values.mean() > 1e-3


@pytest.mark.parametrize("mixing", ["moebius", "mlp", "polar"])
def test_fewer_observed_numbers_than_sources_are_refused(mixing: str) -> None:
    with pytest.raises(UserError, match=r"data\.observed >= data\.dim"):
        run_config({"data": {"observed": 2, "dim": 3, "mixing": {"name": mixing}}})


@pytest.mark.parametrize("data", POLAR, ids=lambda d: f"{d.dim}-{d.mixing}")
def test_polar_coordinates_are_not_conformal(data: SyntheticData) -> None:
    mixing, s = world(data)
    radius, *angles = mixing.jacobian(s).norm(dim=1).unbind(1)
    assert radius.std() < 1e-12 * radius.mean()  # the radius changes at one rate
    for angle in angles:
        assert (angle / radius - 1).abs().max() > 0.1
        assert angle.std() > 0.1 * angle.mean()


@pytest.mark.parametrize("data", TURNED, ids=lambda d: f"{d.dim}-{d.source}")
def test_an_automorphism_keeps_the_law_of_the_observations_and_changes_their_sources(data: SyntheticData) -> None:
    def log_px(mixing: Mixing) -> Tensor:
        s = mixing.inverse(x)
        log_det: Tensor = torch.linalg.slogdet(mixing.jacobian(s)).logabsdet
        return source.log_prob(s) - log_det

    plain = draw_mixing(dataclasses.replace(data, mixing=dataclasses.replace(data.mixing, automorphism=Automorphism())))
    mixing, source = draw_mixing(data), build_source(data.source)
    s = source.sample(2000, data.dim, stream(3, "sources"))
    x = plain.forward(s)
    torch.testing.assert_close(log_px(mixing), log_px(plain), rtol=0, atol=1e-10)
    other = mixing.inverse(x)
    first, second = (number - 1 for number in data.mixing.automorphism.plane)
    for k, (before, after) in enumerate(zip(s.T, other.T, strict=True)):
        assert scipy.stats.ks_2samp(before, after, method="asymp").pvalue > 1e-3
        assert torch.allclose(before, after, rtol=1e-9, atol=1e-9) == (k not in (first, second))
    correlation = torch.corrcoef(other.T)[first, second]
    assert abs(float(correlation)) < 5 / math.sqrt(len(s))  # they are independent again


@pytest.mark.parametrize("data", TURNED, ids=lambda d: f"{d.dim}-{d.source}")
def test_opposite_angles_undo_each_other_and_a_quarter_turn_swaps_two_sources(data: SyntheticData) -> None:
    s = build_source(data.source).sample(200, data.dim, stream(3, "sources"))
    [rotation, _] = cast(Any, draw_mixing(data)).layers
    back = dataclasses.replace(rotation, angle=-rotation.angle)
    torch.testing.assert_close(back.forward(rotation.forward(s)), s, rtol=1e-9, atol=1e-9)
    quarter = dataclasses.replace(rotation, angle=math.pi / 2).forward(s)
    first, second = rotation.plane
    torch.testing.assert_close(quarter[:, second], s[:, first], rtol=1e-9, atol=1e-9)


def test_an_automorphism_of_gaussian_sources_is_a_rotation_about_their_mean() -> None:
    data = SyntheticData(dim=2, mixing=LinearMixing(automorphism=TURN), source=GaussianSource(mean=1.0, std=2.0))
    s = 40 * normal(100, 2)  # far out in the tails, too
    [rotation, _] = cast(Any, draw_mixing(data)).layers
    angle = math.radians(40)
    matrix = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    torch.testing.assert_close(rotation.forward(s), 1 + (s - 1) @ matrix.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (
            {"mixing": {"name": "moebius", "automorphism": {"angle": 30, "plane": [1, 1]}}},
            "data.mixing.automorphism.plane is two different",
        ),
        (
            {"mixing": {"name": "moebius", "automorphism": {"angle": 30, "plane": [0, 1]}}},
            "numbers of sources, from 1 to 3",
        ),
        (
            {"mixing": {"name": "moebius", "automorphism": {"angle": 30, "plane": [1, 4]}}},
            "numbers of sources, from 1 to 3",
        ),
        ({"mixing": {"name": "moebius", "automorphism": {"angle": 30}}, "n_segments": 2}, "data.n_segments is 1"),
    ],
)
def test_automorphisms_that_keep_no_law_are_refused(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        run_config({"data": settings})


def test_a_source_of_unknown_quantiles_has_no_automorphism() -> None:
    class OnlyDrawn(UniformSource):
        def build(self) -> Any:
            return SimpleNamespace(sample=super().build().sample, log_prob=super().build().log_prob)

    with pytest.raises(UserError, match="to_normal, from_normal"):
        draw_mixing(SyntheticData(dim=2, mixing=MoebiusMixing(automorphism=TURN), source=OnlyDrawn()))


def test_stretch_and_turn_are_the_share_of_radius_and_angle() -> None:
    grid = torch.linspace(0, 1, 21, dtype=torch.float64)
    s = torch.cartesian_prod(grid, grid, grid)
    data = SyntheticData(mixing=PolarMixing(stretch=0.25, turn=0.75), source=UniformSource(low=0.0, high=1.0))
    x = draw_mixing(data).forward(s).view(21, 21, 21, 3)
    assert x.norm(dim=-1).aminmax() == pytest.approx((0.75, 1.25))
    equator = x[0, :, 10] / 0.75  # over phi at theta = 0
    assert (equator[1:] * equator[:-1]).sum(1).acos().sum().item() == pytest.approx(2 * math.pi * 0.75)
    meridian = x[0, 10] / 0.75
    assert (meridian[1:] * meridian[:-1]).sum(1).acos().sum().item() == pytest.approx(math.pi * 0.75)


@pytest.mark.parametrize("data", NONLINEAR[:-1], ids=lambda d: f"{d.dim}-{d.mixing}")
def test_a_nonlinear_mlp_has_positive_contrast(data: SyntheticData) -> None:
    mixing, s = world(data)
    values, full, _ = contrast(per_point(mixing.jacobian(s)))
    assert full.all()
    assert values.min() > 0
    assert values.mean() > 1e-3


@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_an_orthogonal_mlp_of_slope_one_is_a_rotation(n_layers: int) -> None:
    mixing, s = world(SyntheticData(dim=3, mixing=MLPMixing(n_layers=n_layers, slope=1.0)))
    difference = mixing.forward(s) - mixing.forward(torch.zeros_like(s))
    torch.testing.assert_close(difference.norm(dim=1), s.norm(dim=1))
    assert mixing.log_det(s).abs().max() < 1e-12


@every_mixing
def test_a_dataset_is_centred_by_its_mixing_which_reproduces_it(data: SyntheticData) -> None:
    made = dataset.make(dataclasses.replace(data, n_obs=6000), (data.seed,), torch.float64)
    splits = (made.train, made.val, made.test)
    x = torch.cat([split.observations[0] for split in splits])
    assert x.mean(0).abs().max() < 1e-10 * (1 + x.abs().max())
    for split in splits:
        again = made.mixings[0].forward(split.sources[0])
        torch.testing.assert_close(again, split.observations[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_orthogonal_matrices_are_orthogonal_and_lean_nowhere(dim: int) -> None:
    generator, n = stream(0, "mixing"), 400
    draws = torch.stack([mixings.orthogonal(dim, generator) for _ in range(n)])
    eye = torch.eye(dim, dtype=torch.float64).expand(n, -1, -1)
    torch.testing.assert_close(draws @ draws.mT, eye, rtol=0, atol=1e-13)
    # Haar: every entry has mean 0 and variance 1/d; LAPACK's signs alone would give the diagonal another mean
    assert draws.mean(0).abs().max() < 5 / math.sqrt(dim * n)
    assert {round(value) for value in torch.linalg.det(draws).tolist()} == {-1, 1}


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_uniform_weights_have_columns_of_unit_norm_and_are_no_rotation(dim: int) -> None:
    draws = torch.stack([mixings.uniform(dim, stream(seed, "mixing")) for seed in range(50)])
    torch.testing.assert_close(draws.norm(dim=1), torch.ones(50, dim, dtype=torch.float64))
    assert (draws.mT @ draws - torch.eye(dim, dtype=torch.float64)).abs().amax((1, 2)).min() > 1e-3
    assert torch.linalg.cond(draws).max() < 100


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_random_linear_maps_are_scaled_as_they_say_and_no_rotations(dim: int) -> None:
    def draws(draw: Any) -> Tensor:
        return torch.stack([draw(dim, stream(seed, "mixing")) for seed in range(50)])

    for draw in (mixings.unit_determinant, mixings.general):
        ones = torch.ones(50, dtype=torch.float64)
        torch.testing.assert_close(torch.linalg.det(draws(draw)).abs(), ones, rtol=1e-9, atol=0)
    columns = draws(mixings.unit_columns)
    torch.testing.assert_close(columns.norm(dim=1), torch.ones(50, dim, dtype=torch.float64))
    assert columns.mean(0).abs().max() < 5 / math.sqrt(50 * dim)  # their directions lean nowhere
    assert draws(mixings.unit_determinant).min() > 0  # U(0, 1) entries, as in the paper's sweep
    for draw in (mixings.unit_determinant, mixings.unit_columns, mixings.general):
        assert len({round(float(matrix[0, 0]), 12) for matrix in draws(draw)}) == 50
        assert torch.linalg.cond(draws(draw)).max() < mixings.NEARLY_SINGULAR
        assert linear_contrast(draws(draw)).median() > 0.01


def test_the_originals_laws_of_entries_can_be_set() -> None:
    entries = torch.stack([mixings.positive(3, stream(seed, "mixing")) for seed in range(400)])
    assert 1 <= entries.min() < 1.05
    assert 2.95 < entries.max() <= 3
    assert entries.mean().item() == pytest.approx(2, abs=5 * math.sqrt(1 / 3 / entries.numel()))
    columns = torch.stack([mixings.positive_unit_columns(3, stream(seed, "mixing")) for seed in range(400)])
    assert columns.min() > 0
    torch.testing.assert_close(columns.norm(dim=1), torch.ones(400, 3, dtype=torch.float64))
    for draws in (entries, columns):
        assert torch.linalg.cond(draws).max() < mixings.NEARLY_SINGULAR


def linear_contrast(draws: Tensor) -> Tensor:
    """c_IMA of linear maps (n, d, d)."""
    values, full, _ = contrast(per_point(draws))
    assert full.all()
    return values[0]


def test_linear_maps_have_the_contrasts_of_the_papers() -> None:
    # origin: shared/published/moebius_linear_map.csv, 98 runs, d = 3: quartiles 1.44, 2.10 and 3.00 of the contrast
    draws = torch.stack([mixings.unit_determinant(3, stream(seed, "mixing")) for seed in range(2000)])
    quartiles = linear_contrast(draws).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    assert quartiles.tolist() == pytest.approx([1.44, 2.10, 3.00], abs=0.35)  # 98 runs have a standard error of 0.15


def test_triangular_weights_are_triangular_with_a_unit_diagonal() -> None:
    draws = torch.stack([mixings.triangular(4, stream(seed, "mixing"), std=3.0) for seed in range(400)])
    assert torch.equal(draws, draws.tril())
    assert (draws.diagonal(dim1=1, dim2=2) == 1).all()
    below = draws[:, *torch.tril_indices(4, 4, -1)]
    assert below.std(0).tolist() == pytest.approx([3.0] * 6, rel=5 / math.sqrt(800))


@pytest.mark.parametrize("data", ON_TOP, ids=lambda d: f"{d.dim}-{d.mixing}")
def test_a_linear_map_on_top_is_the_moebius_map_times_its_linear_part(data: SyntheticData) -> None:
    mixing, s = world(data)
    matrix = linear_part(mixing)
    assert matrix is not None
    plain = draw_mixing(dataclasses.replace(data, mixing=MoebiusMixing()))
    assert linear_part(plain) is None
    expected = matrix @ plain.jacobian(s)
    torch.testing.assert_close(mixing.jacobian(s), expected, rtol=1e-12, atol=1e-12)
    values, full, _ = contrast(per_point(mixing.jacobian(s)))
    assert full.all()
    assert values.mean() > 1e-3


@pytest.mark.parametrize("cosine", [-0.9, 0.0, 0.5])
@pytest.mark.parametrize("linear", ["cosine", "row_cosine"])
def test_cosine_is_that_between_the_columns_or_the_rows(linear: Any, cosine: float) -> None:
    matrix = linear_part(draw_mixing(SyntheticData(dim=2, mixing=MoebiusMixing(linear=linear, cosine=cosine))))
    assert matrix is not None
    by_columns = linear == "cosine"
    gram = torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(matrix.T @ matrix if by_columns else matrix @ matrix.T, gram)
    # in closed form; columns (1, cosine) and (0, sine) are less far from orthogonal than columns at that cosine
    expected = -0.5 * math.log(1 - cosine**2) if by_columns else 0.5 * math.log(1 + cosine**2)
    assert float(linear_contrast(matrix[None])) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weights", ["orthogonal", "general"])
def test_a_linear_mixing_is_linear_and_orthogonal_only_if_asked(weights: Any) -> None:
    mixing = draw_mixing(SyntheticData(dim=4, mixing=LinearMixing(weights=weights)))
    assert isinstance(mixing, MLP)
    matrix = linear_part(mixing)
    assert matrix is not None
    gram = matrix.T @ matrix - torch.eye(4, dtype=torch.float64)
    assert (gram.abs().max() < 1e-12) == (weights == "orthogonal")
    assert mixing.log_det(torch.zeros(1, 4, dtype=torch.float64)).abs().item() < 1e-12


def test_a_flows_halves_alternate_and_reach_each_other() -> None:
    data = SyntheticData(dim=4, mixing=FlowMixing(n_layers=2))
    mixing, s = world(data, n=200)
    assert isinstance(mixing, Shifted)
    assert isinstance(mixing.inner, Flow)
    assert [layer.swapped for layer in mixing.inner.layers if isinstance(layer, Coupling)] == [False, True]
    jacobian = mixing.jacobian(s)
    assert jacobian[:, 2:, 2:].mul(1 - torch.eye(2, dtype=torch.float64)).abs().max() == 0  # b is scaled by itself only
    assert (jacobian[:, :2].abs().amin((1, 2)) > 1e-6).double().mean() > 0.95  # the second layer mixes all into a
    assert mixing.log_det(s).std() > 0.01  # the volume's change depends on s


def test_every_layer_of_the_autoregressive_flow_changes_the_same_half() -> None:
    mixing, s = world(SyntheticData(dim=4, mixing=AutoregressiveMixing()), n=200)
    jacobian = mixing.jacobian(s)
    off = 1 - torch.eye(2, dtype=torch.float64)
    assert jacobian[:, :2, 2:].abs().max() == 0  # a depends on a alone,
    assert jacobian[:, :2, :2].mul(off).abs().max() == 0  # each dimension on itself
    assert jacobian[:, 2:, 2:].mul(off).abs().max() == 0  # b is scaled by itself only
    assert (jacobian[:, 2:, :2].abs().amin((1, 2)) > 1e-9).all()
    assert mixing.log_det(s).std() > 0.01  # the volume's change depends on s


@pytest.mark.parametrize(
    "data",
    [d for d in EVERY if d not in TURNED or not isinstance(d.source, BetaSource)],
    ids=lambda d: f"{d.dim}-{d.mixing}",
)  # on the device "meta" SciPy has no numbers to work on
def test_a_mixing_can_move_to_a_device(data: SyntheticData) -> None:
    mixing, s = world(data, n=3)
    there = moved(mixing, "meta")
    for function in (there.forward, there.jacobian, there.log_det):
        assert function(s.to("meta")).device.type == "meta"
    assert mixing.forward(s).device.type == "cpu"


@every_mixing
def test_the_seed_draws_the_mixing(data: SyntheticData) -> None:
    first, again, other = (draw_mixing(dataclasses.replace(data, seed=seed)) for seed in (1, 1, 2))
    s = world(data, n=5)[1]
    assert torch.equal(first.forward(s), again.forward(s))
    drawn = not isinstance(data.mixing, MoebiusMixing) or data.mixing.centre is None
    assert drawn != torch.allclose(first.forward(s), other.forward(s))


@pytest.mark.parametrize("source", [UniformSource(low=1.0, high=9.0), GaussianSource(mean=4.0), LaplaceSource()])
def test_a_random_pole_lies_at_its_distance_from_the_sources(source: Any) -> None:
    for seed in range(10):
        data = SyntheticData(dim=3, source=source, seed=seed, mixing=MoebiusMixing(distance=1.5))
        mixing = draw_mixing(data)
        assert isinstance(mixing, Moebius)
        middle, half_diagonal = data.box
        assert float((mixing.centre - middle).norm()) == pytest.approx(1.5 * half_diagonal)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("distance", [1.001, 1.05, None])
def test_a_random_pole_keeps_off_the_sources(dim: int, distance: float | None) -> None:
    source, outside, nearest = UniformSource(low=1.0, high=3.0), [], []
    for seed in range(300):
        mixing = draw_mixing(SyntheticData(dim=dim, source=source, seed=seed, mixing=MoebiusMixing(distance=distance)))
        assert isinstance(mixing, Moebius)
        outside.append((mixing.centre - 2).abs() > 1)
        nearest.append((mixing.centre - mixing.centre.clamp(1.0, 3.0)).norm())
    assert min(nearest) > 0.05 * 2
    assert min(nearest) < 0.8  # and no farther than need be
    assert torch.stack(outside).all() == (distance is None)


def test_components_of_a_pole_are_gaussian_outside_the_support() -> None:
    data = SyntheticData(dim=3, mixing=MoebiusMixing(distance=None))  # on [-1/2, 1/2]: the original's law, |a_i| > 1/2
    poles = [draw_mixing(dataclasses.replace(data, seed=seed)) for seed in range(1000)]
    components = torch.stack([pole.centre for pole in poles if isinstance(pole, Moebius)]).flatten()
    positive = components[components > 0]
    assert len(positive) == pytest.approx(len(components) / 2, abs=5 * math.sqrt(len(components)) / 2)
    tail = 0.5 * math.erfc(0.5 / math.sqrt(2))
    for at in (0.75, 1.0, 2.0):
        share = 0.5 * math.erfc(at / math.sqrt(2)) / tail
        error = math.sqrt(share * (1 - share) / len(positive))
        assert (positive > at).double().mean().item() == pytest.approx(share, abs=5 * error)


def test_what_is_given_is_not_drawn() -> None:
    given = draw_mixing(SyntheticData(seed=5, mixing=PUBLISHED))
    assert isinstance(given, Moebius)
    expected = torch.tensor(PUBLISHED.matrix, dtype=torch.float64)
    torch.testing.assert_close(given.matrix, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(given.centre, torch.tensor(PUBLISHED.centre, dtype=torch.float64))


def test_entropy_of_the_published_moebius_data() -> None:
    # origin: DESIGN §10, −E[log p(x)] = −5.297 by quadrature; its standard deviation over data is 0.72
    data = SyntheticData(n_obs=60_000, mixing=PUBLISHED)
    made = dataset.make(data, (data.seed,), torch.float64)
    values = torch.cat([exact_neg_log_px(data, made, split) for split in (made.train, made.val, made.test)])
    assert float(values.mean()) == pytest.approx(-5.297, abs=4 * 0.72 / math.sqrt(60_000) + 5e-4)
    assert float(values.std()) == pytest.approx(0.72, abs=0.02)


@pytest.mark.parametrize("activation", ["leaky_relu", "leaky_tanh"])
@pytest.mark.parametrize("slope", [0.05, 0.2, 1.0])
def test_the_activation_is_inverted_far_from_zero(slope: float, activation: Any) -> None:
    eye = torch.eye(2, dtype=torch.float64)
    mixing = MLP((eye, eye), slope, activation)
    s = torch.linspace(-1e3, 1e3, 402, dtype=torch.float64).view(-1, 2)
    torch.testing.assert_close(mixing.inverse(mixing.forward(s)), s, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mixing.jacobian(s), pointwise_jacobian(mixing.forward, s), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"dim": 3, "mixing": FlowMixing()}, "data.dim is even and above 2"),
        ({"dim": 2, "mixing": FlowMixing()}, "data.dim is even and above 2"),
        ({"dim": 3, "mixing": MoebiusMixing(linear="cosine")}, "data.dim is 2 for data.mixing.linear=cosine"),
        ({"dim": 3, "mixing": MoebiusMixing(linear="row_cosine")}, "data.dim is 2 for data.mixing.linear=row_cosine"),
        ({"mixing": MoebiusMixing(cosine=0.5)}, "cosine is 0 unless linear=cosine"),
        ({"dim": 4, "mixing": PolarMixing()}, "data.dim is 2 or 3"),
        ({"mixing": PolarMixing(), "source": GaussianSource()}, "data.source lives on an interval"),
        ({"mixing": MoebiusMixing(matrix=((1.0, 0.0), (0.0, 1.0)))}, "matrix is orthogonal, 3 x 3"),
        ({"mixing": MoebiusMixing(centre=(0.0, 0.0, 0.0)), "source": LaplaceSource()}, "centre lies outside"),
    ],
)
def test_a_mixing_that_does_not_go_with_the_data_is_refused(values: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        SyntheticData(**values)


@pytest.mark.parametrize(
    ("kind", "values", "rule"),
    [
        (MoebiusMixing, {"linear": "cosine", "cosine": 1.0}, "cosine < 1"),
        (MoebiusMixing, {"distance": 1.0}, "distance > 1"),
        (MLPMixing, {"off_diagonal": 0.0}, "off_diagonal > 0"),
        (MLPMixing, {"n_layers": 0}, "n_layers >= 1"),
        (MLPMixing, {"slope": 0.0}, "slope > 0"),
        (MLPMixing, {"gain": 0.0}, "gain > 0"),
        (PolarMixing, {"stretch": 1.0}, "stretch < 1"),
        (PolarMixing, {"turn": 1.0}, "turn < 1"),
        (FlowMixing, {"n_layers": 1}, "n_layers >= 2"),
        (FlowMixing, {"width": 0}, "width >= 1"),
    ],
)
def test_settings_that_make_no_mixing_are_refused(kind: type[MixingSettings], values: Any, rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        kind(**values)


@dataclass(frozen=True)
class Bare(MixingSettings):
    """An own mixing without build."""

    name: str = "bare"


def test_an_own_mixing_without_build_is_told_so() -> None:
    with pytest.raises(UserError, match=r"data.mixing has a method build.*Bare"):
        draw_mixing(SyntheticData(mixing=Bare()))
