"""Stacked networks are the plain networks of their members, side by side."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from imavae.model.networks import MLP, Layout
from imavae.streams import stream
from tests.helpers import normal, pointwise_jacobian

NETWORKS = [
    MLP("net", (2, 4), 0.2),
    MLP("net", (3, 30, 6), 0.2),
    MLP("net", (5, 10, 10, 5), 0.0),
    MLP("net", (2, 6, 7, 8, 2), 0.01),
    MLP("net", (3, 9, 3), 1.0),
]
each_network = pytest.mark.parametrize("mlp", NETWORKS, ids=lambda mlp: f"{mlp.sizes}-{mlp.slope}")
every_company = pytest.mark.parametrize("members", [1, 3])


def flat_weights(mlp: MLP, members: int) -> Tensor:
    layout = Layout(mlp.shapes)
    return torch.stack([layout.initial(stream(seed, "init")) for seed in range(members)])


def inputs(mlp: MLP, members: int, batch: int = 17) -> Tensor:
    return normal(members, mlp.sizes[0], batch, seed=5)


def sequential(mlp: MLP, flat: Tensor) -> nn.Sequential:
    """One member as torch would write it; its weights are taken from the flat row piece by piece."""
    layers: list[nn.Module] = []
    start = 0
    for i, (n_in, n_out) in enumerate(zip(mlp.sizes, mlp.sizes[1:], strict=False)):
        linear = nn.Linear(n_in, n_out, dtype=torch.float64)
        with torch.no_grad():
            for parameter in (linear.weight, linear.bias):
                parameter.copy_(flat[start : start + parameter.numel()].view_as(parameter))
                start += parameter.numel()
        layers += [nn.LeakyReLU(mlp.slope), linear] if i else [linear]
    assert start == len(flat)
    return nn.Sequential(*layers).requires_grad_(False)


@each_network
@every_company
def test_a_stacked_network_is_each_members_sequential(mlp: MLP, members: int) -> None:
    flat, x = flat_weights(mlp, members), inputs(mlp, members)
    stacked = mlp(Layout(mlp.shapes).views(flat), x)
    assert stacked.shape == (members, mlp.sizes[-1], 17)
    for m in range(members):
        torch.testing.assert_close(stacked[m].T, sequential(mlp, flat[m])(x[m].T), rtol=1e-13, atol=1e-13)


@each_network
@every_company
def test_jacobian_is_that_of_autograd_at_each_point(mlp: MLP, members: int) -> None:
    flat, x = flat_weights(mlp, members), inputs(mlp, members)
    outputs, jacobian = mlp.jacobian(Layout(mlp.shapes).views(flat), x)
    torch.testing.assert_close(outputs, mlp(Layout(mlp.shapes).views(flat), x), rtol=0, atol=0)
    for m in range(members):
        expected = pointwise_jacobian(sequential(mlp, flat[m]), x[m].T).permute(1, 2, 0)
        torch.testing.assert_close(jacobian[m], expected, rtol=1e-12, atol=1e-13)


@each_network
def test_jacobian_keeps_the_precision(mlp: MLP) -> None:
    flat, x = flat_weights(mlp, 2), inputs(mlp, 2)
    _, double = mlp.jacobian(Layout(mlp.shapes).views(flat), x)
    _, single = mlp.jacobian(Layout(mlp.shapes).views(flat.float()), x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@each_network
def test_views_name_every_parameter_once_and_share_its_memory(mlp: MLP) -> None:
    layout = Layout(mlp.shapes)
    flat = torch.arange(3 * layout.size, dtype=torch.float64).view(3, -1)
    views = layout.views(flat)
    assert list(views) == list(mlp.shapes)
    assert all(view.shape == (3, *mlp.shapes[name]) for name, view in views.items())
    assert torch.equal(torch.cat([view.flatten(1) for view in views.values()], 1), flat)
    for view in views.values():
        view.zero_()
    assert not flat.any()


@each_network
def test_initial_weights_are_xavier_uniform_and_a_seeds_own(mlp: MLP) -> None:
    layout = Layout(mlp.shapes)
    draws = torch.stack([layout.initial(stream(seed, "init")) for seed in range(200)])
    assert torch.equal(draws[7], layout.initial(stream(7, "init")))
    views = layout.views(draws)
    for i, (n_in, n_out) in enumerate(zip(mlp.sizes, mlp.sizes[1:], strict=False)):
        bounds = {"weight": math.sqrt(6 / (n_in + n_out)), "bias": 1 / math.sqrt(n_in)}
        for kind, bound in bounds.items():
            values = views[f"net.{i}.{kind}"]
            assert 0.98 * bound < float(values.abs().max()) <= bound
            spread = bound**2 / 3 * (1 + 5 * math.sqrt(0.8 / values.numel()))  # variance of a uniform, and 5 errors
            assert float(values.var()) < spread
            assert abs(float(values.mean())) < 5 * bound / math.sqrt(3 * values.numel())
