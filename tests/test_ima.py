"""The local IMA contrast and the posterior's self-consistent variance, against dense linear algebra in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imavae.metrics.ima import contrast, inverse_variance, mean_contrast
from tests.helpers import normal

SHAPES = [(2, 2), (3, 3), (5, 5), (5, 3)]
every_shape = pytest.mark.parametrize(("out", "dim"), SHAPES)


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
    values, full = contrast(jacobian)
    assert full.all()
    assert (values > 0).all()
    torch.testing.assert_close(values, obvious(jacobian), rtol=1e-9, atol=1e-9)


@every_shape
def test_orthogonal_columns_have_zero_contrast_and_nothing_less(out: int, dim: int) -> None:
    jacobian = orthogonal_columns(out, dim, 50)
    values, full = contrast(jacobian)
    assert full.all()
    assert (values >= 0).all()
    assert values.max() < 1e-14
    single, full = contrast(jacobian.float())
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
    values, full = contrast(columns[None])
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
    values, full = contrast(jacobian)
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
    values = inverse_variance(jacobian, width * s * (1 - s), 2 * s * (1 - s), gamma)
    for m in range(members):
        for k in range(dim):
            for i in range(n):
                at = float(s[m, k, i])
                norm = math.sqrt(sum(float(entry) ** 2 for entry in jacobian[m, :, k, i]))
                expected = 2 * at * (1 - at) + float(gamma[m]) ** 2 * norm**2 * (width * at * (1 - at)) ** 2
                assert float(values[m, k, i]) == pytest.approx(expected, rel=1e-12)
