"""Stacked multi-layer perceptrons: h <- a(W h + b) between linear maps, for an ensemble."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from pydantic.dataclasses import dataclass as checked_dataclass

from imavae.config.registry import torch
from imavae.config.settings import NETWORKS, Model, NetworkSettings
from imavae.model.networks import ACTIVATIONS, Network, Weights


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
    """Linear maps with an activation between two of them: ``sizes`` = (inputs, hidden, ..., outputs)."""

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

    def __call__(
        self, weights: Weights, x: Float[torch.Tensor, "member i batch"]
    ) -> Float[torch.Tensor, "member o batch"]:
        activate, _ = ACTIVATIONS[self.activation]
        for i in range(self.n_layers):
            x = self._linear(weights, i, x)
            if i < self.n_layers - 1:
                x = activate(x, self.slope)
        return x

    def jacobian(
        self, weights: Weights, x: Float[torch.Tensor, "member i batch"]
    ) -> tuple[Float[torch.Tensor, "member o batch"], Float[torch.Tensor, "member o i batch"]]:
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
