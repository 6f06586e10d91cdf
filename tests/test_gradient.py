"""The gradient: autograd's is that of the loss, and the one that is written out is autograd's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from imavae.config.settings import RunConfig, run_config
from imavae.model import vae
from imavae.training.step import LAYER_NUMBERS, ByAutograd, WrittenOut, members_at_once, written_out
from tests.helpers import BETA, GAUSSIAN, LAPLACE, UNIFORM, normal, point, random_members

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
each_common = pytest.mark.parametrize("at", COMMON, ids=lambda p: f"{p.model.prior.name}-{p.model.n_layers}")


def gradient(at: RunConfig, flat: Tensor, beta: Tensor, kind: type[Any], batch: int = 33, steps: int = 1) -> Tensor:
    """Of the last of several batches."""
    model, result = vae.build(at), torch.zeros_like(flat)
    shape = (len(flat), at.data.dim, batch)
    fill = kind(model, flat, result, beta, True) if kind is ByAutograd else kind(model, flat, result, beta)
    for step in range(steps):
        fill(normal(*shape, seed=step).to(flat.dtype), normal(*shape, seed=step + 100).to(flat.dtype), None)
    return result


def three(at: RunConfig) -> tuple[Tensor, Tensor]:
    """Weights and betas of three members."""
    return random_members(at, [0, 1, 2]), torch.tensor([1.0, 0.1, 5.0], dtype=torch.float64)


@each_common
def test_the_gradient_that_is_written_out_is_autograds(at: RunConfig) -> None:
    assert written_out(vae.build(at), fixed=True)
    flat, beta = three(at)
    vae.build(at).layout.views(flat)[vae.GAMMA][:] = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    for batch, steps in ((33, 1), (1, 1), (64, 3)):  # buffers are used again
        by_hand, exact = (gradient(at, flat, beta, kind, batch, steps) for kind in (WrittenOut, ByAutograd))
        torch.testing.assert_close(by_hand, exact, rtol=1e-10, atol=1e-12)
        assert not by_hand[:, -1].any()  # gamma is fixed
        assert by_hand[:, :-1].any()


@each_common
def test_single_precision_agrees_with_double(at: RunConfig) -> None:
    flat, beta = three(at)
    exact = gradient(at, flat, beta, WrittenOut)
    rounded = gradient(at, flat.float(), beta.float(), WrittenOut)
    scale = exact.abs().amax(1, keepdim=True)
    torch.testing.assert_close(rounded.double() / scale, exact / scale, rtol=0, atol=1e-5)


def test_batches_of_different_sizes_and_weights_that_move_are_followed() -> None:
    at = COMMON[0]
    flat, beta = three(at)
    result = torch.zeros_like(flat)
    fill = WrittenOut(vae.build(at), flat, result, beta)
    for step, batch in enumerate((64, 64, 10, 64)):
        x, noise = normal(3, 3, batch, seed=step), normal(3, 3, batch, seed=step + 100)
        fill(x, noise, None)
        exact = torch.zeros_like(flat)
        ByAutograd(vae.build(at), flat.clone(), exact, beta, True)(x, noise, None)
        torch.testing.assert_close(result, exact, rtol=1e-10, atol=1e-12)
        flat -= 0.01 * exact


@pytest.mark.parametrize(
    ("members", "batch", "size"), [(7, LAYER_NUMBERS // 90, 3), (8, 64, 8), (1, LAYER_NUMBERS, 1), (480, 64, 240)]
)
def test_a_block_has_no_more_members_than_fit(members: int, batch: int, size: int) -> None:
    assert members_at_once(vae.build(run_config({})), batch, members) == size  # its width is 30


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_written_out_is_left_to_autograd(name: str) -> None:
    assert not written_out(vae.build(OTHERS[name]), fixed=True)
    assert not written_out(vae.build(COMMON[0]), fixed=False)


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
    gradients = [
        gradient(at, flat, torch.full((3,), beta, dtype=torch.float64), ByAutograd) for beta in (0.5, 1.0, 2.0)
    ]
    torch.testing.assert_close(gradients[2] - gradients[1], 2 * (gradients[1] - gradients[0]), rtol=1e-9, atol=1e-11)
    decoder = torch.cat([torch.full((1, *s), n.startswith("decoder")).flatten() for n, s in shapes(at).items()])
    assert torch.equal(gradients[0][:, decoder], gradients[2][:, decoder])
    assert not torch.equal(gradients[0], gradients[2])


def shapes(at: RunConfig) -> dict[str, tuple[int, ...]]:
    return vae.build(at).layout.shapes


def test_a_prior_that_gives_its_score_has_the_right_one() -> None:
    for at in (*COMMON, dataclasses.replace(COMMON[0], model=point(3, BETA).model, data=point(3, BETA).data)):
        model = vae.build(at)
        theta = model.theta({}, None)
        y = torch.linspace(-20, 20, 81, dtype=torch.float64) + 0.01
        expected = torch.func.vmap(torch.func.grad(lambda v, p=model.prior, t=theta: p.log_prob(v, t)))(y)
        torch.testing.assert_close(model.prior.score(y, theta), expected, rtol=1e-10, atol=1e-12)
