"""Example of a network: a residual one, h <- h + W2 silu(W1 h + b1) + b2, between two linear maps.

Train with it with the settings 'plugins=[docs/own_network.py]' model.name=residual model.n_layers=4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor
from torch.nn.functional import silu

from imavae.config.settings import NETWORKS, Model, NetworkSettings
from imavae.model.networks import Network, Weights


@NETWORKS.register
@checked_dataclass(frozen=True)
class ResidualNetwork(NetworkSettings):
    """The kind of network that model.name=residual chooses."""

    name: str = "residual"

    def build(self, prefix: str, inputs: int, outputs: int, shape: tuple[int, int], model: Model) -> Residual:
        """Return the ``encoder`` or the ``decoder``, as ``prefix`` says; ``shape`` is its n_layers and its width."""
        n_layers, width = shape
        return Residual(prefix, inputs, outputs, width, n_blocks=max(1, (n_layers - 1) // 2))


@dataclass(frozen=True)
class Residual(Network):
    """``n_blocks`` blocks of the given width; arrays are (member, feature, batch).

    Its Jacobian is the base class's. Each weight is named after the network, ``encoder`` or ``decoder``: this is its
    ``prefix``. Those in .weight and .bias start at random, others at zero.
    """

    prefix: str
    inputs: int
    outputs: int
    width: int
    n_blocks: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of one member's weights, each bias after its weight."""
        maps = {"in": (self.width, self.inputs)}
        for i in range(self.n_blocks):
            maps |= {f"{i}.a": (self.width, self.width), f"{i}.b": (self.width, self.width)}
        maps["out"] = (self.outputs, self.width)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (rows, columns) in maps.items():
            shapes[f"{self.prefix}.{name}.weight"] = (rows, columns)
            shapes[f"{self.prefix}.{name}.bias"] = (rows,)
        return shapes

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """Outputs of every member, each for its own inputs."""
        h = self._linear(weights, "in", x)
        for i in range(self.n_blocks):
            h = h + self._linear(weights, f"{i}.b", silu(self._linear(weights, f"{i}.a", h)))
        return self._linear(weights, "out", h)

    def _linear(self, weights: Weights, name: str, x: Tensor) -> Tensor:
        bias = weights[f"{self.prefix}.{name}.bias"][..., None]
        return torch.baddbmm(bias, weights[f"{self.prefix}.{name}.weight"], x)
