"""The convolutional networks of an ensemble are the plain ones of its members, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from imavae.config.settings import NETWORKS, Model
from imavae.errors import UserError
from imavae.model.networks import Layout, Network
from imavae.model.networks.conv import ConvDecoder, ConvEncoder
from imavae.rng import stream
from tests.helpers import normal, pointwise_jacobian

SIDE, LATENTS, BATCH = 16, 4, 3
SHAPE = (3, 10)
MODELS = [Model(name="conv"), Model(name="conv", activation="tanh"), Model(name="conv", activation="silu")]
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.activation)
each_end = pytest.mark.parametrize("prefix", ["encoder", "decoder"])
MODULES: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
}


def network(prefix: str, model: Model, side: int = SIDE, colours: int = 3) -> Network:
    ends = (colours * side**2, 2 * LATENTS) if prefix == "encoder" else (LATENTS, colours * side**2)
    net: Network = NETWORKS[model.name]().build(prefix, *ends, SHAPE, model)
    return net


def flat_weights(net: Network, members: int) -> Tensor:
    return torch.stack([Layout(net.shapes).initial(stream(seed, "init")) for seed in range(members)])


def inputs(prefix: str, members: int, side: int = SIDE, colours: int = 3) -> Tensor:
    return normal(members, colours * side**2 if prefix == "encoder" else LATENTS, BATCH, seed=4)


def sequential(prefix: str, model: Model, row: Tensor, side: int = SIDE, colours: int = 3) -> nn.Sequential:
    """One member as torch would write it, weights taken from the flat row piece by piece; images are (c, row, col)."""
    activation, small = MODULES[model.activation], side // 16
    code = 32 * small**2
    layers: list[nn.Module] = []
    if prefix == "encoder":
        layers.append(nn.Unflatten(1, (colours, side, side)))
        for channels in (colours, 32, 32, 32):
            layers += [nn.Conv2d(channels, 32, 4, 2, 1), activation()]
        layers += [nn.Flatten(), nn.Linear(code, 10), activation(), nn.Linear(10, 10), activation(), nn.Linear(10, 8)]
    else:
        layers += [nn.Linear(4, 10), activation(), nn.Linear(10, 10), activation(), nn.Linear(10, code), activation()]
        layers.append(nn.Unflatten(1, (32, small, small)))
        for halvings, channels in zip((3, 2, 1, 0), (32, 32, 32, colours), strict=True):
            odd = side // 2**halvings % 2
            layers += [nn.ConvTranspose2d(32, channels, 4, 2, 1, output_padding=odd), activation()]
        layers[-1] = nn.Flatten()
    plain, start = nn.Sequential(*layers).to(row.dtype).requires_grad_(False), 0
    for parameter in plain.parameters():
        parameter.copy_(row[start : start + parameter.numel()].view_as(parameter))
        start += parameter.numel()
    assert start == len(row)
    return plain


@each_end
@each_model
@pytest.mark.parametrize(("side", "colours"), [(16, 3), (32, 1), (21, 3), (31, 1)])
def test_a_stacked_network_is_each_members_sequential(prefix: str, model: Model, side: int, colours: int) -> None:
    net, x = network(prefix, model, side, colours), inputs(prefix, 2, side, colours)
    flat = flat_weights(net, 2)
    stacked = net(Layout(net.shapes).views(flat), x)
    for m in range(2):
        torch.testing.assert_close(stacked[m].T, sequential(prefix, model, flat[m], side, colours)(x[m].T))


@pytest.mark.parametrize("colours", [1, 3])
def test_images_of_any_side_come_back_in_their_own_size(colours: int) -> None:
    for side in range(16, 129):
        net = network("decoder", MODELS[0], side, colours)
        assert network("encoder", MODELS[0], side, colours).shapes["encoder.conv.0.weight"] == (32, colours, 4, 4)
        assert net(Layout(net.shapes).views(flat_weights(net, 1)), inputs("decoder", 1)).shape[1] == colours * side**2


@each_end
def test_its_gradient_is_that_of_each_members_sequential(prefix: str) -> None:
    net, x = network(prefix, MODELS[0]), inputs(prefix, 2)
    flat = flat_weights(net, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(net(Layout(net.shapes).views(flat), x).square().sum(), flat)
    for m in range(2):
        plain = sequential(prefix, MODELS[0], flat[m].detach()).requires_grad_()
        expected = torch.autograd.grad(plain(x[m].T).square().sum(), list(plain.parameters()))
        torch.testing.assert_close(gradient[m], torch.cat([part.flatten() for part in expected]))


@each_end
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_a_member_does_not_depend_on_its_company(prefix: str, dtype: torch.dtype, within: float) -> None:
    net, x = network(prefix, MODELS[0]), inputs(prefix, 3).to(dtype)
    flat = flat_weights(net, 3).to(dtype)
    together = net(Layout(net.shapes).views(flat), x)
    alone = net(Layout(net.shapes).views(flat[1:2]), x[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=within, atol=within)


@each_end
def test_no_point_of_the_batch_depends_on_another(prefix: str) -> None:
    net, x = network(prefix, MODELS[0]), inputs(prefix, 2)
    weights = Layout(net.shapes).views(flat_weights(net, 2))
    singly = torch.cat([net(weights, x[..., i : i + 1]) for i in range(BATCH)], 2)
    torch.testing.assert_close(net(weights, x), singly)


@each_model
@pytest.mark.parametrize(("side", "colours"), [(16, 3), (23, 1)])
def test_the_decoders_jacobian_is_that_of_autograd_at_each_point(model: Model, side: int, colours: int) -> None:
    net, z = network("decoder", model, side, colours), inputs("decoder", 2)
    flat = flat_weights(net, 2)
    weights = Layout(net.shapes).views(flat)
    outputs, jacobian = net.jacobian(weights, z)
    torch.testing.assert_close(outputs, net(weights, z))
    for m in range(2):
        expected = pointwise_jacobian(sequential("decoder", model, flat[m], side, colours), z[m].T).permute(1, 2, 0)
        torch.testing.assert_close(jacobian[m], expected)


@each_end
def test_initial_weights_are_xavier_uniform(prefix: str) -> None:
    views = Layout(network(prefix, MODELS[0]).shapes).views(flat_weights(network(prefix, MODELS[0]), 20))
    for i, channels in enumerate((3, 32, 32, 32) if prefix == "encoder" else (32, 32, 32, 3)):
        inward = 16 * channels  # torch counts a transposed convolution's outputs for its inputs
        bounds = {"weight": math.sqrt(6 / (inward + 16 * 32)), "bias": 1 / math.sqrt(inward)}
        for kind, bound in bounds.items():
            values = views[f"{prefix}.conv.{i}.{kind}"]
            assert 0.9 * bound < float(values.abs().max()) <= bound
            assert abs(float(values.mean())) < 5 * bound / math.sqrt(3 * values.numel())


def test_the_network_is_found_by_its_name() -> None:
    encoder, decoder = network("encoder", MODELS[0], 64), network("decoder", MODELS[0], 64)
    assert isinstance(encoder, ConvEncoder)
    assert isinstance(decoder, ConvDecoder)
    assert (encoder.maps.sizes, decoder.maps.sizes) == ((512, 10, 10, 8), (4, 10, 10, 512))


@each_end
@pytest.mark.parametrize("size", [3, 3 * 8**2, 15**2, 3 * 16**2 + 1, 2 * 16**2, 3 * 16 * 32])
def test_observations_that_are_no_such_images_are_refused(prefix: str, size: int) -> None:
    ends = (size, 8) if prefix == "encoder" else (4, size)
    with pytest.raises(UserError, match="observations are square images"):
        NETWORKS["conv"]().build(prefix, *ends, SHAPE, MODELS[0])
