"""The gradient by autograd is that of the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imavae.config.settings import RunConfig, run_config
from imavae.errors import UserError
from imavae.metrics import ima
from imavae.model import vae
from imavae.model.vae import local_contrast
from imavae.training.step import ByAutograd, clip
from tests.helpers import BETA, GAUSSIAN, LAPLACE, UNIFORM, normal, point, random_members, sprites

COMMON = [
    point(3, UNIFORM),
    point(2, {"name": "uniform", "low": 1.0, "high": 4.0}, n_layers=1, gamma=20.0),
    point(3, BETA, n_layers=4, slope=0.0),
    point(5, GAUSSIAN, n_layers=3, slope=1.0),
    point(2, LAPLACE, encoder={"n_layers": 1}),
    point(3, UNIFORM, encoder={"n_layers": 3, "hidden_factor": 7}, slope=0.01),
]
OTHERS: dict[str, RunConfig] = {
    "activation": point(3, UNIFORM, activation="tanh"),
    "full posterior": point(3, UNIFORM, posterior="full"),
    "analytic KL": point(3, GAUSSIAN, kl="analytic"),
    "learned prior": point(3, {**GAUSSIAN, "parameters": "learned"}),
    "mixing as decoder": point(3, UNIFORM, decoder="mixing"),
}


def gradient(at: RunConfig, flat: Tensor, beta: Tensor) -> Tensor:
    model, result = vae.build(at), torch.zeros_like(flat)
    shape = (len(flat), at.data.dim, 33)
    ByAutograd(model, flat, result, beta, True)(normal(*shape), normal(*shape, seed=100), None)
    return result


def three(at: RunConfig) -> tuple[Tensor, Tensor]:
    """Weights and betas of three members."""
    return random_members(at, [0, 1, 2]), torch.tensor([1.0, 0.1, 5.0], dtype=torch.float64)


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("at", [*COMMON, *OTHERS.values()], ids=lambda p: f"{p.model.prior.name}-{p.model.n_layers}")
def test_with_beta_one_the_gradient_is_that_of_neg_elbo(at: RunConfig, fixed: bool) -> None:
    flat, _ = three(at)
    model, x, noise = vae.build(at), normal(3, at.data.dim, 33), normal(3, at.data.dim, 33, seed=1)
    result, one = torch.zeros_like(flat), torch.ones(3, dtype=torch.float64)
    ByAutograd(model, flat, result, one, fixed)(x, noise, None)

    def loss(row: Tensor, m: int) -> Tensor:
        return model.elbo(model.layout.views(row[None]), x[m : m + 1], noise[m : m + 1]).neg_elbo[0]

    for m in range(3):
        row = flat[m].clone().requires_grad_()
        [expected] = torch.autograd.grad(loss(row, m), row)
        assert expected[-1] != 0
        if fixed:
            expected[-1] = 0
        torch.testing.assert_close(result[m], expected, rtol=1e-10, atol=1e-12)


def test_beta_weighs_the_kl_divergence_alone() -> None:
    at = OTHERS["activation"]
    flat, _ = three(at)
    gradients = [gradient(at, flat, torch.full((3,), beta, dtype=torch.float64)) for beta in (0.5, 1.0, 2.0)]
    torch.testing.assert_close(gradients[2] - gradients[1], 2 * (gradients[1] - gradients[0]), rtol=1e-9, atol=1e-11)
    decoder = torch.cat([torch.full((1, *s), n.startswith("decoder")).flatten() for n, s in shapes(at).items()])
    assert torch.equal(gradients[0][:, decoder], gradients[2][:, decoder])
    assert not torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "silu", "softplus"])
@pytest.mark.parametrize("prior", [UNIFORM, GAUSSIAN], ids=lambda p: p["name"])
def test_the_ima_weight_adds_the_gradient_of_the_contrast_at_posterior_samples(
    activation: str, prior: dict[str, Any]
) -> None:
    at = point(3, prior, n_layers=3, activation=activation)
    flat, beta = three(at)
    model, x, noise = vae.build(at), normal(3, 3, 33), normal(3, 3, 33, seed=100)
    weights = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    with_it, without = torch.zeros_like(flat), torch.zeros_like(flat)
    ByAutograd(model, flat, with_it, beta, True, weights)(x, noise, None)
    ByAutograd(model, flat, without, beta, True)(x, noise, None)
    torch.testing.assert_close(with_it[0], without[0], rtol=1e-12, atol=1e-15)

    def exact(row: Tensor, m: int) -> Tensor:
        """The contrast by autograd's Jacobian, point by point, and by a determinant."""
        views = model.layout.views(row[None])
        z = model.prior.latent(model.posterior(views, x[m : m + 1]).sample(noise[m : m + 1]))
        decode = lambda one: model.decoder(views, one[None, :, None])[0, :, 0]  # noqa: E731
        jacobian = torch.stack([torch.func.jacrev(decode)(one) for one in z[0].T])
        gram = jacobian.mT @ jacobian
        return 0.5 * (gram.diagonal(dim1=1, dim2=2).log().sum(1) - torch.logdet(gram)).mean()

    for m in (1, 2):
        row = flat[m].clone().requires_grad_()
        [expected] = torch.autograd.grad(exact(row, m), row, allow_unused=True)
        torch.testing.assert_close(with_it[m] - without[m], weights[m] * expected, rtol=1e-7, atol=1e-10)


def test_the_contrast_in_the_loss_is_the_metric_and_finite_where_columns_depend_on_each_other() -> None:
    jacobian = normal(2, 4, 3, 50)
    values, full, _ = ima.contrast(jacobian)
    assert full.all()
    torch.testing.assert_close(local_contrast(jacobian), values, rtol=1e-10, atol=1e-10)
    jacobian[:, :, 2] = jacobian[:, :, 0] + jacobian[:, :, 1]
    jacobian[0, :, 1] = 0
    at = jacobian.float().requires_grad_()
    result = local_contrast(at)
    [gradient] = torch.autograd.grad(result.sum(), at)
    assert result.isfinite().all()
    assert gradient.isfinite().all()


def shapes(at: RunConfig) -> dict[str, tuple[int, ...]]:
    return vae.build(at).layout.shapes


def test_a_clipped_gradient_keeps_its_direction_and_is_torchs() -> None:
    at = COMMON[0]
    flat, betas = three(at)
    whole = gradient(at, flat, betas)
    norms = whole.norm(dim=1)
    most = float(norms.median())
    clipped = whole.clone()
    clip(clipped, most)
    for row, expected, norm in zip(clipped, whole, norms, strict=True):
        leaf = torch.zeros_like(expected).requires_grad_()
        leaf.grad = expected.clone()
        torch.nn.utils.clip_grad_norm_([leaf], most)
        torch.testing.assert_close(row, leaf.grad, rtol=1e-6, atol=0)
        assert torch.equal(row, expected) is bool(norm <= most)
    for bad in (torch.nan, torch.inf):
        clipped[1, 0] = bad
        clip(clipped, most)
        assert clipped[1].isnan().any()  # it diverges, and the others do not
        assert clipped[[0, 2]].isfinite().all()
    clip(zero := torch.zeros(2, 3), 1.0)
    assert torch.equal(zero, torch.zeros(2, 3))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "with the contrast"])
def test_convolutions_in_bfloat16_have_nearly_the_same_gradient(weighted: bool, tmp_path: Path) -> None:
    at = sprites(tmp_path)
    model, flat = vae.build(at), random_members(at, [0, 1])
    x, noise = normal(2, at.data.features, 20).sigmoid().float(), normal(2, at.data.dim, 20, seed=1).float()

    def gradient(low: bool, *members: int) -> Tensor:
        rows, one = list(members), torch.ones(len(members))
        result = torch.zeros_like(flat[rows])
        ByAutograd(model, flat[rows], result, one, True, one if weighted else None, low)(x[rows], noise[rows], None)
        return result

    exact, rough = gradient(False, 0, 1), gradient(True, 0, 1)
    assert (torch.cosine_similarity(exact, rough) > 0.999).all()
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(gradient(True, 1), rough[1:])  # alone as in company
    with pytest.raises(UserError, match=r"training\.conv_dtype"):
        run_config({"training": {"conv_dtype": "bfloat16"}})
