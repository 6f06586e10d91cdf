"""One member as a plain ``nn.Module``, for rows of observations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imavae.config.data import FileData
from imavae.config.settings import RunConfig
from imavae.data.dataset import Scaling
from imavae.errors import require
from imavae.model import vae
from imavae.rng import stream

STEPS = 9  # of a traversal
ENDS = 0.01, 0.99  # quantiles of a latent, over observations, between which its traversal runs
FARTHEST, HALVINGS = 1e4, 80  # of the unconstrained latents among which a quantile is sought


class Traversal(NamedTuple):
    """Values of one latent after the other, while the others stay at their medians, and what is decoded from them."""

    values: Float[Tensor, "d step"]
    observations: Float[Tensor, "d step o"]


def traversed(z: Float[Tensor, "n d"], steps: int = STEPS) -> tuple[Float[Tensor, "d step"], Float[Tensor, "d step d"]]:
    """Values of each latent, evenly between its quantiles :data:`ENDS` over rows, and all latents at each of them."""
    low, high = z.quantile(torch.tensor(ENDS, dtype=z.dtype, device=z.device), 0)
    values = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, steps, device=z.device, dtype=z.dtype)
    codes = z.median(0).values.repeat(z.shape[1], steps, 1)
    for k, at in enumerate(values):
        codes[k, :, k] = at
    return values, codes


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
            zeros = torch.zeros(config.data.features, dtype=torch.float64)
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
        """The square root of the decoder's precision; infinite for a flow, which has no noise."""
        if self.config.model.is_flow:
            return math.inf
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

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0, segment: int | None = None) -> Float[Tensor, "n o"]:
        """Observations that the model generates, in the file's own units: g(z) plus the decoder's noise, z ~ p(z).

        A prior that depends on segments needs the number of one, from 0. The same seed gives the same rows.
        """
        model, views, like = self.architecture, self.weights, next(self.parameters())
        rule = "segment is given exactly where the prior depends on it"
        got = f"segment={segment} for model.prior.parameters={getattr(self.config.model.prior, 'parameters', 'fixed')}"
        require((segment is not None) == (model.prior_network is not None), rule, got, "give it, or leave it out")
        segments = self.config.data.n_segments
        require(
            segment is None or 0 <= segment < segments, f"segment is one of 0 to {segments - 1}", segment, "use one"
        )
        theta = model.theta(views, None if segment is None else torch.full((1, n), segment, device=like.device))
        theta = tuple(part.double() for part in theta)
        generator = stream(seed, "samples")
        level = torch.rand(1, model.dim, n, generator=generator, dtype=torch.float64).to(like.device)
        low, high = torch.full_like(level, -FARTHEST), torch.full_like(level, FARTHEST)
        for _ in range(HALVINGS):  # y of the quantile ``level``: every prior has a CDF
            middle = (low + high) / 2
            below = model.prior.cdf(model.prior.latent(middle), theta) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        z = model.prior.latent(low)[0].T.to(like.dtype)
        noise = torch.randn(n, len(self.column_std), generator=generator, dtype=torch.float64).to(like.device)
        return (self.decode(z) + noise * self.column_std / self.gamma).to(like.dtype)

    @torch.no_grad()
    def traverse(self, x: Float[Tensor, "n o"], steps: int = STEPS) -> Traversal:
        """How observations change with each latent: it runs between quantiles of its values for the rows ``x``, 1 % to
        99 %, while the others stay at their medians.
        """
        values, codes = traversed(self.encode(x), steps)
        return Traversal(values, self.decode(codes.flatten(0, 1)).view(*codes.shape[:2], -1))

    def forward(self, x: Float[Tensor, "n o"]) -> Float[Tensor, "n o"]:
        """The reconstruction g(z(mu(x)))."""
        return self.decode(self.encode(x))
