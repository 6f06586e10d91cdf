"""Stacked networks, and the multi-layer perceptron: weights (member, out, in), activations (member, feature, batch).

All weights of a member lie in one row of a flat (member, parameter) array, so that the optimizer, the best states and
the removal of members handle one tensor; :class:`Layout` gives the named views into it. To add a network, add a module
here: a class in the registry ``NETWORKS`` whose ``build`` returns a :class:`Network`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from pydantic.dataclasses import dataclass as checked_dataclass

from imavae.config.registry import torch
from imavae.config.settings import NETWORKS, Model, NetworkSettings

Weights = Mapping[str, "torch.Tensor"]
Function = Callable[["torch.Tensor", float], "torch.Tensor"]

# Each activation, which may overwrite its input, and its derivative, as functions of the input and of the slope.
# The leaky ReLU's derivative is a kernel of one pass; a comparison and a choice would be two. Its own derivative is 0.
ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "leaky_relu": (
        lambda x, slope: torch.nn.functional.leaky_relu_(x, slope),
        lambda x, slope: torch.ops.aten.leaky_relu_backward(x.new_ones(()).expand_as(x), x.detach(), slope, True),
    ),
    "tanh": (lambda x, _: torch.tanh(x), lambda x, _: 1 - torch.tanh(x).square()),
    "silu": (lambda x, _: torch.nn.functional.silu(x), lambda x, _: torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))),
    "softplus": (lambda x, _: torch.nn.functional.softplus(x), lambda x, _: torch.sigmoid(x)),
}


class Network(ABC):
    """A function of (member, feature, batch) with weights per member, found by name.

    Names end in ``.weight`` (out, in, and the kernel of a convolution) or ``.bias`` (out), a bias after its weight;
    these start as :meth:`Layout.initial` says, weights of other names at zero.
    """

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each of one member's weights; the names begin with the network's prefix."""

    @abstractmethod
    def __call__(self, weights: Weights, x: Float[torch.Tensor, "member i n"]) -> Float[torch.Tensor, "member o n"]:
        """Outputs of every member, each for its own inputs; no point of the batch may depend on another."""

    def jacobian(
        self, weights: Weights, x: Float[torch.Tensor, "member i n"]
    ) -> tuple[Float[torch.Tensor, "member o n"], Float[torch.Tensor, "member o i n"]]:
        """Outputs, and J[m, o, i, b] = d out_o / d in_i: a forward-mode pass for each input."""
        columns, outputs = [], x
        for i in range(x.shape[1]):
            direction = torch.zeros_like(x)
            direction[:, i] = 1
            outputs, tangent = torch.func.jvp(lambda z: self(weights, z), (x,), (direction,))  # type: ignore[misc]
            columns.append(tangent)
        return outputs, torch.stack(columns, 2)


class Passed(NamedTuple):
    """What an invertible network h gives at each observation x."""

    y: Float[torch.Tensor, "member d n"]
    log_det: Float[torch.Tensor, "member n"]  # log |det of h's Jacobian|
    contrast: Float[torch.Tensor, "member n"] | None  # c_IMA of the inverse
    inverse_jacobian: Float[torch.Tensor, "member d d n"] | None  # J[m, i, k, n] = d x_i / d y_k


class Invertible(Network):
    """A bijection y = h(x) of the observations and the unconstrained latents: encoder, and by its inverse decoder."""

    @abstractmethod
    def passed(self, weights: Weights, x: Float[torch.Tensor, "member d n"], columns: bool = False) -> Passed:
        """Apply h, with its log-determinant and, with ``columns``, the contrast and Jacobian of its inverse."""

    @abstractmethod
    def inverse(self, weights: Weights, y: Float[torch.Tensor, "member d n"]) -> Float[torch.Tensor, "member d n"]:
        """The observations of these latents."""

    def __call__(self, weights: Weights, x: Float[torch.Tensor, "member i n"]) -> Float[torch.Tensor, "member o n"]:
        return self.passed(weights, x).y


@dataclass(frozen=True)
class Layout:
    """Positions of the named weights in a member's flat row."""

    shapes: dict[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """Number of parameters of one member."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def views(self, flat: Float[torch.Tensor, "member parameter"]) -> dict[str, torch.Tensor]:
        """Named views into ``flat``, each (member, *shape). They share its memory."""
        views, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            views[name] = flat[:, start:stop].view(len(flat), *shape)
            start = stop
        return views

    def initial(self, generator: torch.Generator) -> Float[torch.Tensor, " parameter"]:
        """One member's initial weights, in float64, so that members of any precision start from the same numbers.

        Xavier-uniform weights (Glorot and Bengio, 2010), biases U(+-1/sqrt(inputs)), zeros for all others. Inputs and
        outputs of a convolution count its kernel; those of a transposed one are in the order of its shape, as in torch.
        """
        parts, inputs = [], 1
        for name, shape in self.shapes.items():
            if name.endswith((".weight", ".bias")):
                uniform = 2 * torch.rand(math.prod(shape), generator=generator, dtype=torch.float64) - 1
                if name.endswith(".weight"):
                    outputs, inputs = (size * math.prod(shape[2:]) for size in shape[:2])
                    parts.append(uniform * math.sqrt(6 / (inputs + outputs)))
                else:  # a bias follows its weight
                    parts.append(uniform / math.sqrt(inputs))
            else:
                parts.append(torch.zeros(math.prod(shape), dtype=torch.float64))
        return torch.cat(parts)


@NETWORKS.register
@checked_dataclass(frozen=True)
class MLPNetwork(NetworkSettings):
    """Linear maps with an activation between two of them."""

    name: str = "mlp"

    def build(self, prefix: str, inputs: int, outputs: int, shape: tuple[int, int], model: Model) -> MLP:
        """The encoder or the decoder; ``shape`` is the number of linear maps and the width between them."""
        n_layers, width = shape
        return MLP(prefix, (inputs, *(width,) * (n_layers - 1), outputs), model.activation, model.slope)


@dataclass(frozen=True)
class MLP(Network):
    """h <- a(W h + b), with an activation between two linear maps; ``sizes`` = (inputs, hidden, ..., outputs)."""

    prefix: str
    sizes: tuple[int, ...]
    activation: str = "leaky_relu"
    slope: float = 0.2

    @property
    def n_layers(self) -> int:
        return len(self.sizes) - 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (inputs, outputs) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            shapes[f"{self.prefix}.{i}.weight"] = (outputs, inputs)
            shapes[f"{self.prefix}.{i}.bias"] = (outputs,)
        return shapes

    def __call__(self, weights: Weights, x: Float[torch.Tensor, "member i n"]) -> Float[torch.Tensor, "member o n"]:
        activate, _ = ACTIVATIONS[self.activation]
        for i in range(self.n_layers):
            x = self._linear(weights, i, x)
            if i < self.n_layers - 1:
                x = activate(x, self.slope)
        return x

    def jacobian(
        self, weights: Weights, x: Float[torch.Tensor, "member i n"]
    ) -> tuple[Float[torch.Tensor, "member o n"], Float[torch.Tensor, "member o i n"]]:
        # The tangents of all inputs go together. Those after the second map, W_1 diag(a'(x)) W_0, are linear in a'(x):
        # one product gives them.
        activate, derivative = ACTIVATIONS[self.activation]
        members, inputs, batch = x.shape
        first = weights[f"{self.prefix}.0.weight"]
        tangent = first[..., None].expand(-1, -1, -1, batch)
        x = self._linear(weights, 0, x)
        for i in range(1, self.n_layers):
            weight, slope = weights[f"{self.prefix}.{i}.weight"], derivative(x, self.slope)
            x = self._linear(weights, i, activate(x, self.slope))
            if i == 1:
                tangent = (weight[:, :, None] * first.mT[:, None]).flatten(1, 2) @ slope
            else:
                tangent = weight @ (tangent * slope[:, :, None]).reshape(members, -1, inputs * batch)
            tangent = tangent.view(members, -1, inputs, batch)
        return x, tangent

    def _linear(self, weights: Weights, i: int, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(weights[f"{self.prefix}.{i}.bias"][..., None], weights[f"{self.prefix}.{i}.weight"], x)
