"""One member as a plain ``nn.Module``, for rows of observations."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from imavae.config import RunConfig
from imavae.model import priors, vae
from imavae.model.networks import MLP


class Model(nn.Module):
    """A trained VAE for rows of observations. ``config`` is its point, ``about`` says where it comes from."""

    def __init__(self, config: RunConfig, about: dict[str, Any] | None = None) -> None:
        super().__init__()
        architecture = vae.build(config)
        self.config, self.about = config, about or {}
        self.gamma = config.model.gamma
        self.prior = priors.build(config)
        self.encoder = _linear_maps(architecture.encoder)
        self.decoder = _linear_maps(architecture.decoder)
        self.activation = nn.LeakyReLU(config.model.slope)
        self.to(vae.torch_dtype(config))

    def posterior(self, x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Mean and standard deviation of the unconstrained y, whose latent is z(y), for each observation."""
        mean, log_variance = self._run(self.encoder, x).chunk(2, dim=1)
        return mean, (0.5 * log_variance).exp()

    def encode(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The posterior's location, mapped onto the prior's support: the estimate of the sources."""
        return self.prior.latent(self.posterior(x)[0])

    def decode(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Observations g(z) of latents on the prior's support."""
        return self._run(self.decoder, z)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The reconstruction g(z(mu(x)))."""
        return self.decode(self.encode(x))

    def _run(self, maps: nn.ModuleList, x: Tensor) -> Tensor:
        for i, linear in enumerate(maps):
            x = linear(self.activation(x) if i else x)
        return x


def _linear_maps(mlp: MLP) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(i, o) for i, o in zip(mlp.sizes, mlp.sizes[1:], strict=False))
