"""Stacked multi-layer perceptrons: weights (member, out, in), activations (member, feature, batch).

All weights of a member lie in one row of a flat (member, parameter) array, so that the optimizer, the best states and
compaction handle one tensor; :class:`Layout` gives the named views into it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import leaky_relu

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class MLP:
    """Linear maps with a leaky ReLU between two of them: ``sizes`` = (inputs, hidden, ..., outputs)."""

    name: str
    sizes: tuple[int, ...]
    slope: float

    @property
    def n_layers(self) -> int:
        """Number of linear maps."""
        return len(self.sizes) - 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each of one member's weights."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (inputs, outputs) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            shapes[f"{self.name}.{i}.weight"] = (outputs, inputs)
            shapes[f"{self.name}.{i}.bias"] = (outputs,)
        return shapes

    def __call__(self, weights: Weights, x: Float[Tensor, "member i batch"]) -> Float[Tensor, "member o batch"]:
        """Outputs of every member, each for its own inputs."""
        for i in range(self.n_layers):
            x = self._linear(weights, i, x)
            if i < self.n_layers - 1:
                x = leaky_relu(x, self.slope)
        return x

    def jacobian(
        self, weights: Weights, x: Float[Tensor, "member i batch"]
    ) -> tuple[Float[Tensor, "member o batch"], Float[Tensor, "member o i batch"]]:
        """Outputs, and J[m, o, i, b] = d out_o / d in_i, by forward mode: all inputs' tangents travel together."""
        members, inputs, batch = x.shape
        tangent = weights[f"{self.name}.0.weight"][..., None].expand(-1, -1, -1, batch)
        x = self._linear(weights, 0, x)
        for i in range(1, self.n_layers):
            tangent = tangent * torch.where(x > 0, torch.ones_like(x), self.slope)[:, :, None, :]
            x = self._linear(weights, i, leaky_relu(x, self.slope))
            tangent = weights[f"{self.name}.{i}.weight"] @ tangent.reshape(members, -1, inputs * batch)
            tangent = tangent.view(members, -1, inputs, batch)
        return x, tangent

    def _linear(self, weights: Weights, i: int, x: Tensor) -> Tensor:
        return torch.baddbmm(weights[f"{self.name}.{i}.bias"][..., None], weights[f"{self.name}.{i}.weight"], x)


@dataclass(frozen=True)
class Layout:
    """Where each named weight lies in a member's flat row."""

    shapes: dict[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """Parameters of one member."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def views(self, flat: Float[Tensor, "member parameter"]) -> Weights:
        """Named views into ``flat``: (member, out, in) and (member, out). They share its memory."""
        views, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            views[name] = flat[:, start:stop].view(len(flat), *shape)
            start = stop
        return views

    def initial(self, generator: torch.Generator) -> Float[Tensor, " parameter"]:
        """One member's start: Xavier-uniform weights (Glorot and Bengio, 2010), biases U(+-1/sqrt(inputs)); in float64,
        so that members of any precision start from the same numbers.
        """
        parts, inputs = [], 1
        for shape in self.shapes.values():
            uniform = 2 * torch.rand(math.prod(shape), generator=generator, dtype=torch.float64) - 1
            if len(shape) == 2:
                outputs, inputs = shape
                parts.append(uniform * math.sqrt(6 / (inputs + outputs)))
            else:  # a bias follows its weight
                parts.append(uniform / math.sqrt(inputs))
        return torch.cat(parts)
