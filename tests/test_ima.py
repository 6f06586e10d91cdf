"""Contrasts, the Amari distance and the posterior's self-consistent variance, against dense linear algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from imavae.metrics import ima
from imavae.metrics.ima import ColumnNorms, contrast, inverse_variance, pointwise_contrast
from tests.helpers import normal, per_point

SHAPES = [(2, 2), (3, 3), (5, 5), (5, 3)]
every_shape = pytest.mark.parametrize(("out", "dim"), SHAPES)


def mean_contrast(jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the points of full rank, and the share of the others."""
    values, full, _ = contrast(jacobian)
    return ima.mean_where(values, full), 1 - full.double().mean(1)


def conformal_contrast(jacobian: Tensor) -> Tensor:
    return ima.conformal_contrast(contrast(jacobian))


def amari(jacobian: Tensor, truth: Tensor) -> Tensor:
    """The mean over the points of full rank."""
    values = ima.amari(jacobian, truth)
    return ima.mean_where(values, ~values.isnan())


def column_norms(jacobian: Tensor) -> ColumnNorms:
    return ima.column_norms(contrast(jacobian).norms)


def obvious(jacobian: Tensor) -> Tensor:
    """Σ log‖J_:k‖ − ½ log det JᵀJ of (member, out, in, n), one small matrix at a time."""
    matrices = jacobian.permute(0, 3, 1, 2)
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=2)
    log_det: Tensor = torch.linalg.slogdet(matrices.mT @ matrices).logabsdet
    return norms.log().sum(-1) - 0.5 * log_det


def orthogonal_columns(out: int, dim: int, n: int) -> Tensor:
    scales = normal(2, n, 1, dim, seed=8).exp()
    orthogonal: Tensor = torch.linalg.qr(normal(2, n, out, dim))[0]
    return (orthogonal * scales).permute(0, 2, 3, 1)


@every_shape
def test_contrast_is_its_definition(out: int, dim: int) -> None:
    jacobian = normal(4, out, dim, 50)
    values, full, _ = contrast(jacobian)
    assert full.all()
    assert (values > 0).all()
    torch.testing.assert_close(values, obvious(jacobian), rtol=1e-9, atol=1e-9)


@every_shape
def test_orthogonal_columns_have_zero_contrast_and_nothing_less(out: int, dim: int) -> None:
    jacobian = orthogonal_columns(out, dim, 50)
    values, full, _ = contrast(jacobian)
    assert full.all()
    assert (values >= 0).all()
    assert values.max() < 1e-14
    single, full, _ = contrast(jacobian.float())
    assert full.all()
    assert single.dtype == torch.float64
    assert single.max() < 1e-12  # second order in float32's rounding


@every_shape
def test_rotating_the_output_and_scaling_the_columns_change_nothing(out: int, dim: int) -> None:
    jacobian = normal(3, out, dim, 20)
    expected = contrast(jacobian)[0]
    rotation = torch.linalg.qr(normal(out, out, seed=1))[0]
    scales = normal(3, 1, dim, 20, seed=2).exp() * torch.tensor([1e4, 1e-4]).repeat(dim)[:dim, None]
    order = torch.randperm(dim, generator=torch.Generator().manual_seed(3))
    for changed in (
        torch.einsum("po,modn->mpdn", rotation, jacobian),
        jacobian * scales,
        jacobian * 1e-30,
        -jacobian[:, :, order],
    ):
        torch.testing.assert_close(contrast(changed)[0], expected, rtol=1e-9, atol=1e-12)
    mixed = torch.einsum("modn,de->moen", jacobian, torch.linalg.qr(normal(dim, dim, seed=4))[0])
    assert (contrast(mixed)[0] - expected).abs().max() > 1e-2  # rotating the latents does


def test_nearly_collinear_columns_are_resolved() -> None:
    angle = torch.logspace(-12, -1, 12, dtype=torch.float64)  # of two unit columns: contrast −log sin(angle)
    columns = torch.stack([torch.stack([torch.ones_like(angle), angle.cos()]), torch.stack([0 * angle, angle.sin()])])
    values, full, _ = contrast(columns[None])
    assert full.all()
    torch.testing.assert_close(values[0], -angle.sin().log(), rtol=1e-4, atol=0)


@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_without_full_rank_are_counted_and_not_averaged(out: int, dim: int, dtype: torch.dtype) -> None:
    jacobian = normal(2, out, dim, 10).to(dtype)
    expected = obvious(jacobian[..., 5:].double()).mean(1)
    jacobian[:, :, 0, 0] = 0
    jacobian[:, :, 1, 1] = 0.3 * jacobian[:, :, 0, 1]
    jacobian[:, :, -1, 2] = (jacobian[:, :, :-1, 2] * torch.linspace(0.5, 2, dim - 1, dtype=dtype)).sum(-1)
    jacobian[:, 0, 0, 3] = torch.nan
    jacobian[:, 0, 0, 4] = torch.inf
    values, full, _ = contrast(jacobian)
    assert full.tolist() == [[False] * 5 + [True] * 5] * 2
    assert not values[:, :5].any()
    mean, deficient = mean_contrast(jacobian)
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5)
    assert deficient.tolist() == pytest.approx([0.5, 0.5])


def test_the_mean_of_no_point_is_not_a_number() -> None:
    mean, deficient = mean_contrast(torch.zeros(2, 3, 3, 7))
    assert mean.isnan().all()
    assert deficient.tolist() == [1.0, 1.0]


@every_shape
def test_mean_contrast_is_the_mean(out: int, dim: int) -> None:
    jacobian = normal(4, out, dim, 50)
    mean, deficient = mean_contrast(jacobian)
    torch.testing.assert_close(mean, obvious(jacobian).mean(1), rtol=1e-9, atol=1e-9)
    assert not deficient.any()


@every_shape
def test_variance_formula_written_out_for_the_uniform_prior(out: int, dim: int) -> None:
    # DESIGN §3: σ_k² = (2s(1−s) + γ²‖J_:k‖²(w s(1−s))²)⁻¹ with s = sigmoid(y_k), w the support's width
    members, n, width = 2, 5, 3.0
    jacobian, y, gamma = normal(members, out, dim, n), normal(members, dim, n, seed=1), torch.tensor([2.0, 50.0])
    s = y.sigmoid()
    values = inverse_variance(jacobian.square().sum(1), width * s * (1 - s), 2 * s * (1 - s), gamma)
    for m in range(members):
        for k in range(dim):
            for i in range(n):
                at = float(s[m, k, i])
                norm = math.sqrt(sum(float(entry) ** 2 for entry in jacobian[m, :, k, i]))
                expected = 2 * at * (1 - at) + float(gamma[m]) ** 2 * norm**2 * (width * at * (1 - at)) ** 2
                assert float(values[m, k, i]) == pytest.approx(expected, rel=1e-12)


def moebius(dim: int, n: int) -> Tensor:
    """Jacobians of (s - a) / |s - a|^2, turned: A (I - 2 u u^T) / |s - a|^2, as (1, out, in, n)."""
    r = normal(n, dim) + 2
    square = r.square().sum(1)[:, None, None]
    rotation = torch.linalg.qr(normal(dim, dim, seed=1))[0]
    jacobian: Tensor = rotation @ (torch.eye(dim) - 2 * r[:, :, None] * r[:, None] / square) / square
    return per_point(jacobian)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_a_moebius_map_has_no_contrast_of_either_kind_and_scaling_a_latent_gives_it_one(dim: int) -> None:
    jacobian = moebius(dim, 50)
    assert float(conformal_contrast(jacobian)) == pytest.approx(0, abs=1e-13)
    assert float(pointwise_contrast(jacobian[0]).max()) == pytest.approx(0, abs=1e-13)
    scales = torch.arange(1.0, dim + 1, dtype=torch.float64)  # its columns stay orthogonal
    expected = 0.5 * dim * scales.square().mean().log() - scales.log().sum()
    assert float(conformal_contrast(jacobian * scales[:, None])) == pytest.approx(float(expected), rel=1e-12)
    assert float(mean_contrast(jacobian * scales[:, None])[0]) == pytest.approx(0, abs=1e-13)


@every_shape
def test_conformal_contrast_is_its_definition_and_never_below_cima(out: int, dim: int) -> None:
    jacobian = normal(4, out, dim, 50)
    gram = jacobian.permute(0, 3, 2, 1) @ jacobian.permute(0, 3, 1, 2)
    trace = gram.diagonal(dim1=2, dim2=3).sum(2)
    expected = (0.5 * dim * (trace / dim).log() - 0.5 * torch.linalg.slogdet(gram).logabsdet).mean(1)
    values = conformal_contrast(jacobian)
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)
    for scale in (1e-30, 1e-140, 1e140):  # in whatever units
        torch.testing.assert_close(conformal_contrast(jacobian * scale), expected, rtol=1e-9, atol=1e-9)
    for one in jacobian.unbind(3):  # at each point: the inequality of arithmetic and geometric means
        assert (conformal_contrast(one[..., None]) >= mean_contrast(one[..., None])[0]).all()
    equal = orthogonal_columns(out, dim, 50)
    equal = equal / equal.norm(dim=1, keepdim=True) * 3  # JᵀJ = 9 I, though JJᵀ is not where out > dim
    assert float(conformal_contrast(equal).max()) == pytest.approx(0, abs=1e-13)


def obvious_amari(decoder: Tensor, truth: Tensor) -> float:
    r = np.abs(np.linalg.pinv(decoder.numpy()) @ truth.numpy())
    dim = len(r)
    total = sum(sum(row) / max(row) - 1 for row in r) + sum(sum(column) / max(column) - 1 for column in r.T)
    return float(total / (2 * dim * (dim - 1)))


@every_shape
def test_amari_is_its_definition_for_one_truth_or_many(out: int, dim: int) -> None:
    decoder, truth = normal(4, out, dim, 20), normal(4, out, dim, 20, seed=1)
    values = amari(decoder, truth)
    assert ((values > 0) & (values < 1)).all()
    for m in range(4):
        expected = np.mean([obvious_amari(decoder[m, ..., i], truth[m, ..., i]) for i in range(20)])
        assert float(values[m]) == pytest.approx(expected, rel=1e-9)
        torch.testing.assert_close(amari(decoder, truth[m])[m], values[m], rtol=1e-12, atol=0)
    torch.testing.assert_close(amari(decoder.float(), truth), values, rtol=1e-4, atol=0)


@every_shape
def test_amari_vanishes_up_to_permutation_sign_and_scale_and_nowhere_else(out: int, dim: int) -> None:
    truth = normal(out, dim, 50)
    order = torch.randperm(dim, generator=torch.Generator().manual_seed(3))
    scales = -normal(dim, 50, seed=4).exp() * torch.tensor([1e2, 1e-2]).repeat(dim)[:dim, None]
    rotated = torch.einsum("odn,de->oen", truth, torch.linalg.qr(normal(dim, dim, seed=5))[0])
    values = amari(torch.stack([truth, truth[:, order] * scales, rotated]), truth)
    assert values[:2].tolist() == pytest.approx([0, 0], abs=1e-8)
    assert values[2] > 0.1


def test_amari_is_one_where_every_latent_has_an_equal_part_of_every_source() -> None:
    corner = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    for mix in (corner, torch.kron(corner, corner)):  # by 45°; of four
        decoder = normal(len(mix), len(mix), 10)
        truth = torch.einsum("odn,de->oen", decoder, mix)
        assert float(amari(decoder[None], truth)) == pytest.approx(1, rel=1e-9)
    assert float(amari(normal(1, 1, 1, 10), normal(1, 1, 10))) == 0  # one latent can't be mixed


def test_points_without_full_rank_do_not_count_for_amari_and_conformal_contrast() -> None:
    decoder, truth = normal(2, 3, 3, 10), normal(3, 3, 10, seed=1)
    expected = amari(decoder[..., 5:], truth[..., 5:]), conformal_contrast(decoder[..., 5:])
    decoder[:, :, 0, 0] = 0
    decoder[:, :, 1, 1] = 0.3 * decoder[:, :, 0, 1]
    decoder[:, 0, 0, 2] = torch.nan
    decoder[:, 0, 0, 3], truth[:, 1, 4] = torch.inf, 0
    torch.testing.assert_close(amari(decoder, truth), expected[0], rtol=1e-12, atol=0)
    decoder[..., 4] = 0
    torch.testing.assert_close(conformal_contrast(decoder), expected[1], rtol=1e-12, atol=0)
    assert amari(torch.zeros_like(decoder), truth).isnan().all()
    assert conformal_contrast(torch.full_like(decoder, torch.nan)).isnan().all()


def test_the_pointwise_contrast_keeps_its_points() -> None:
    jacobian = normal(4, 3, 3, 20)
    values = pointwise_contrast(jacobian)
    torch.testing.assert_close(values, obvious(jacobian), rtol=1e-9, atol=1e-9)
    assert torch.equal(pointwise_contrast(jacobian[1]), values[1:2])
    jacobian[2, :, 0, 5] = 0
    assert pointwise_contrast(jacobian).isnan().nonzero().tolist() == [[2, 5]]


def test_column_norms_of_known_columns() -> None:
    norms = torch.tensor([[[1.0, 3.0], [4.0, 8.0]], [[2.0, 2.0], [2.0, 2.0]]])  # (member, column, point)
    jacobian = orthogonal_columns(5, 2, 2)
    changed = jacobian / jacobian.norm(dim=1, keepdim=True) * norms[:, None]
    found = column_norms(changed)
    expected = [(4.0, 2.0), (4.0, 0.0), (8.0, 2.0), (2.5, 0.0)]  # column means 2 and 6, variances over points 1 and 4
    for values, (first, second) in zip(found, expected, strict=True):
        assert values.tolist() == pytest.approx([first, second], abs=1e-12)
    assert column_norms(jacobian.float()).mean.dtype == torch.float64
    assert all(values.isnan().all() for values in column_norms(torch.full_like(jacobian, torch.nan)))
