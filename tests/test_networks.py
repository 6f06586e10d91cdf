"""Stacked networks are the plain networks of their members, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from imavae.config.settings import Model
from imavae.model import vae
from imavae.model.networks import ACTIVATIONS, MLP, Layout, Network
from imavae.rng import stream
from tests.helpers import UNIFORM, normal, point, pointwise_jacobian

LEAKY = [
    MLP("net", (2, 4), slope=0.2),
    MLP("net", (3, 30, 6), slope=0.2),
    MLP("net", (5, 10, 10, 5), slope=0.0),
    MLP("net", (2, 6, 7, 8, 2), slope=0.01),
    MLP("net", (3, 9, 3), slope=1.0),
]
NETWORKS = [
    *LEAKY,
    MLP("net", (3, 8, 8, 2), "tanh"),
    MLP("net", (2, 5, 7, 3), "silu"),
    MLP("net", (4, 6, 4), "softplus"),
]
MODULES: dict[str, Callable[[float], nn.Module]] = {
    "leaky_relu": nn.LeakyReLU,
    "tanh": lambda _: nn.Tanh(),
    "silu": lambda _: nn.SiLU(),
    "softplus": lambda _: nn.Softplus(),
}
each_network = pytest.mark.parametrize("mlp", NETWORKS, ids=lambda mlp: f"{mlp.sizes}-{mlp.activation}-{mlp.slope}")
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
        layers += [MODULES[mlp.activation](mlp.slope), linear] if i else [linear]
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
@every_company
def test_the_jacobian_of_any_network_is_the_mlps(mlp: MLP, members: int) -> None:
    weights, x = Layout(mlp.shapes).views(flat_weights(mlp, members)), inputs(mlp, members)
    for single, of_any in zip(mlp.jacobian(weights, x), Network.jacobian(mlp, weights, x), strict=True):
        torch.testing.assert_close(of_any, single, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_an_activation_is_torchs_and_its_derivative_is_that_of_autograd(name: str, slope: float) -> None:
    activate, derivative = ACTIVATIONS[name]
    x = torch.linspace(-60, 60, 481, dtype=torch.float64) + 0.01  # a leaky ReLU has none at 0
    torch.testing.assert_close(activate(x.clone(), slope), MODULES[name](slope)(x))
    expected = torch.func.vmap(torch.func.grad(lambda at: activate(at.clone(), slope)))(x)
    cut = 3e-9 if name == "softplus" else 1e-12  # torch's softplus is the identity above 20
    torch.testing.assert_close(derivative(x, slope), expected, rtol=1e-11, atol=cut)
    assert derivative(x.float(), slope).dtype == torch.float32


def test_every_activation_can_be_chosen() -> None:
    assert set(get_args(get_type_hints(Model)["activation"])) == set(ACTIVATIONS) == set(MODULES)


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


def test_weights_of_other_names_start_at_zero_and_disturb_no_draw() -> None:
    shapes: dict[str, tuple[int, ...]] = {"net.0.weight": (4, 3), "net.0.bias": (4,)}
    own: dict[str, tuple[int, ...]] = {"net.scale": (2, 5), "weight": (3,), "log_gamma": ()}
    plain = Layout(shapes).initial(stream(3, "init"))
    views = Layout({**own, **shapes}).views(Layout({**own, **shapes}).initial(stream(3, "init"))[None])
    assert all(not views[name].any() for name in own)
    assert torch.equal(torch.cat([views[name].flatten() for name in shapes]), plain)


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
@pytest.mark.parametrize(
    ("encoder", "hidden"),
    [
        ({}, [12]),
        ({"n_layers": 4}, [12, 12, 12]),
        ({"hidden_factor": 7}, [21]),
        ({"n_layers": 3, "hidden_factor": 1}, [3, 3]),
        ({"n_layers": 1}, []),
    ],
)
def test_the_encoder_has_its_own_depth_and_width(encoder: dict[str, int], hidden: list[int], posterior: str) -> None:
    shapes = vae.build(point(3, UNIFORM, encoder=encoder, posterior=posterior)).layout.shapes
    sizes = [3, *hidden, 6 if posterior == "diagonal" else 9]
    found = [shape for name, shape in shapes.items() if name.startswith("encoder.") and name.endswith("weight")]
    assert found == list(zip(sizes[1:], sizes, strict=False))
    decoder = [shape for name, shape in shapes.items() if name.startswith("decoder.") and name.endswith("weight")]
    assert decoder == [(12, 3), (3, 12)]  # it stays as it was
