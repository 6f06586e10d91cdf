"""One member as a plain ``nn.Module``, for rows of observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imavae.config.data import FileData
from imavae.config.settings import RunConfig
from imavae.data.dataset import Scaling
from imavae.model import vae


class Model(nn.Module):
    """A trained VAE for rows of observations in their own units: it standardises a file's columns itself. An image is a
    row of 3 x side x side numbers in [0, 1], in the order (channel, row, column).

    Attributes:
        config: Settings of its point, with its own seeds.
        about: Provenance (seed, trial, score, ...).
        architecture: Networks and prior, which hold no weights: those are given, named as in its layout.
    """

    def __init__(
        self,
        config: RunConfig,
        weights: Mapping[str, Tensor],
        about: Mapping[str, Any] | None = None,
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        self.config, self.about = config, dict(about or {})
        self.architecture = vae.build(config)
        dtype = vae.torch_dtype(config)
        self.names = {name: name.replace(".", "_") for name in self.architecture.layout.shapes}
        parameters = {plain: nn.Parameter(weights[name].detach().to(dtype)) for name, plain in self.names.items()}
        self.parameters_by_name = nn.ParameterDict(parameters)
        if scaling is None:
            zeros = torch.zeros(config.data.observed, dtype=torch.float64)
            scaling = Scaling(zeros, zeros + 1)
        self.column_mean = nn.Buffer(scaling.mean)
        self.column_std = nn.Buffer(scaling.std)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the file's columns that the model was trained on; None if its data were no file."""
        return self.config.data.columns if isinstance(self.config.data, FileData) else None

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights by their names in the layout, with a member axis of one: (1, out, in), (1, out), (1,)."""
        return {name: self.parameters_by_name[plain][None] for name, plain in self.names.items()}

    @property
    def gamma(self) -> float:
        """The square root of the decoder's precision."""
        return float(self.weights[vae.GAMMA].detach().exp())

    def posterior(self, x: Float[Tensor, "n o"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Mean and standard deviation of the unconstrained y, whose latent is z(y), for each observation."""
        standard = ((x - self.column_mean) / self.column_std).to(next(self.parameters()).dtype)
        q = self.architecture.posterior(self.weights, standard.T[None])
        return q.mean[0].T, q.variance().sqrt()[0].T

    def encode(self, x: Float[Tensor, "n o"]) -> Float[Tensor, "n d"]:
        """The posterior's location, mapped onto the prior's support: the estimate of the sources."""
        return self.architecture.prior.latent(self.posterior(x)[0])

    def decode(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n o"]:
        """Observations g(z), in the file's own units, of latents on the prior's support."""
        rows = self.architecture.decoder(self.weights, z.T[None])[0].T
        return (self.column_mean + rows * self.column_std).to(rows.dtype)

    def jacobian(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n o d"]:
        """J[n, j, k] = d x_j / d z_k of :meth:`decode` at latents on the prior's support."""
        jacobian = self.architecture.decoder.jacobian(self.weights, z.T[None])[1][0].permute(2, 0, 1)
        return (self.column_std[:, None] * jacobian).to(jacobian.dtype)

    def forward(self, x: Float[Tensor, "n o"]) -> Float[Tensor, "n o"]:
        """The reconstruction g(z(mu(x)))."""
        return self.decode(self.encode(x))
