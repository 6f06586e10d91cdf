"""A normalising flow y = h(x) with its inverse, log-determinant and the columns of its inverse's Jacobian.

A layer is an affine map by the product of a unit lower and an upper triangular matrix (as Kingma and Dhariwal, 2018),
then an affine coupling (Dinh et al., 2017): the first half of the coordinates, rounded down, gives scale and shift of
the rest, and the two change places. A monotone rational-quadratic spline of each coordinate (Durkan et al., 2019) is
the last layer; it shapes the densities of the latents, and no contrast depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from pydantic.dataclasses import dataclass as checked_dataclass

from imavae.config.registry import torch
from imavae.config.settings import NETWORKS, Model, NetworkSettings, RunConfig
from imavae.errors import require
from imavae.model.networks import MLP, Invertible, Passed, Weights

LARGEST = 2.0  # log-scale of a coupling, at most
BINS, END, SMALLEST = 16, 8.0, 1e-3  # of a spline: bins on [-END, END], and their least share and slope
UNUSED = ("gamma", "precision", "beta", "kl", "posterior", "decoder", "encoder")  # settings of a VAE alone


@NETWORKS.register
@checked_dataclass(frozen=True)
class FlowNetwork(NetworkSettings):
    """Coupling layers, trained by maximum likelihood."""

    name: str = "flow"
    invertible: ClassVar[bool] = True

    def check(self, config: RunConfig) -> None:
        model, usual, dim, observed = config.model, Model(), config.latents, config.data.features
        rule, got = "model=flow has as many latents as observed numbers, 2 or more", f"{dim} latents of {observed}"
        require(dim == observed >= 2, rule, got, "a flow is invertible: set model.dim, or use model=mlp")
        for name in UNUSED:
            rule, value = f"model.{name} is left alone for model=flow", getattr(model, name)
            require(value == getattr(usual, name), rule, value, "a flow has neither posterior nor noise: drop it")
        for name in ("gamma_schedule", "beta_schedule"):
            rule, remedy = f"training.{name} is constant for model=flow", f"drop training.{name}.shape"
            require(name not in config.training.schedules, rule, config.training.schedules.get(name), remedy)

    def build(self, prefix: str, inputs: int, outputs: int, shape: tuple[int, int], model: Model) -> Couplings:
        """The flow; its conditioners have ``shape``: the number of linear maps and the width between them."""
        n_layers, width = shape
        sizes = (inputs // 2, *(width,) * (n_layers - 1), 2 * (inputs - inputs // 2))
        nets = [MLP(f"flow.{i}", sizes, model.activation, model.slope) for i in range(model.couplings)]
        return Couplings(inputs, tuple(nets))


@dataclass(frozen=True)
class Couplings(Invertible):
    """h = spline ∘ coupling ∘ affine ∘ ... ∘ coupling ∘ affine."""

    dim: int
    conditioners: tuple[MLP, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        layers, shapes = len(self.conditioners), dict[str, tuple[int, ...]]()
        for net in self.conditioners:
            shapes |= net.shapes
        affine = {"flow.affine.weight": (self.dim, self.dim * layers), "flow.shift": (layers, self.dim)}
        return {**shapes, **affine, "flow.spline": (self.dim, 3 * BINS - 1)}

    def passed(self, weights: Weights, x: Float[torch.Tensor, "member d n"], columns: bool = False) -> Passed:
        dim, n = x.shape[1:]
        matrices, log_det = self._affine(weights)
        total = log_det[:, None].expand(-1, n)
        inverses = torch.linalg.inv(matrices).mT if columns else None  # of each layer's few numbers, not of each point
        j = None  # (member, k, i, n): column k of the inverse's Jacobian
        for i, net in enumerate(self.conditioners):
            x = torch.baddbmm(weights["flow.shift"][:, i, :, None], matrices[:, i], x)
            first, rest = x[:, : dim // 2], x[:, dim // 2 :]
            if inverses is None:
                log_scale, shift = _scale_and_shift(net(weights, first))
            else:
                outputs, slopes = net.jacobian(weights, first)
                log_scale, shift = _scale_and_shift(outputs)
                bend = 1 - (log_scale / LARGEST).square()
                by_scale, by_shift = slopes.chunk(2, 1)  # (member, rest, first, n)
                ratio = (rest * bend)[:, :, None] * by_scale + (-log_scale).exp()[:, :, None] * by_shift
                j = inverses[:, i, :, :, None].expand(-1, -1, -1, n) if j is None else _mixed(inverses[:, i], j)
                before, after = j[:, : dim // 2], j[:, dim // 2 :]
                before = before - (ratio[:, :, :, None] * after[:, :, None]).sum(1)
                j = torch.cat([after * (-log_scale).exp()[:, :, None], before], 1)
            x = torch.cat([torch.addcmul(shift, rest, log_scale.exp()), first], 1)
            total = total + log_scale.sum(1)
        y, log_slope = _Spline.of(weights["flow.spline"])(x)
        if j is None:
            return Passed(y, total + log_slope.sum(1), None, None)
        contrast = 0.5 * j.square().sum(2).log().sum(1) + total
        return Passed(y, total + log_slope.sum(1), contrast, (j * (-log_slope).exp()[:, :, None]).transpose(1, 2))

    def inverse(self, weights: Weights, y: Float[torch.Tensor, "member d n"]) -> Float[torch.Tensor, "member d n"]:
        x, rest_size = _Spline.of(weights["flow.spline"]).inverse(y), self.dim - self.dim // 2
        inverses = torch.linalg.inv(self._affine(weights)[0])
        for i, net in reversed(list(enumerate(self.conditioners))):
            rest, first = x[:, :rest_size], x[:, rest_size:]
            log_scale, shift = _scale_and_shift(net(weights, first))
            x = torch.cat([first, (rest - shift) * (-log_scale).exp()], 1) - weights["flow.shift"][:, i, :, None]
            x = inverses[:, i] @ x
        return x

    def _affine(
        self, weights: Weights
    ) -> tuple[Float[torch.Tensor, "member layer d d"], Float[torch.Tensor, " member"]]:
        """The layers' matrices L U, and the sum of their log-determinants. A matrix has L below its diagonal, U above,
        and the logarithm of U's diagonal on its own.
        """
        packed = weights["flow.affine.weight"]
        packed = packed.view(len(packed), self.dim, -1, self.dim).transpose(1, 2)
        diagonal = packed.diagonal(dim1=2, dim2=3)
        lower = packed.tril(-1) + torch.eye(self.dim, dtype=packed.dtype, device=packed.device)
        return lower @ (packed.triu(1) + torch.diag_embed(diagonal.exp())), diagonal.sum((1, 2))


def _mixed(
    matrix: Float[torch.Tensor, "member k l"], j: Float[torch.Tensor, "member l i n"]
) -> Float[torch.Tensor, "member k i n"]:
    return (matrix @ j.flatten(2)).view(j.shape)


def _scale_and_shift(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bounded logarithm of the scale, and the shift."""
    raw, shift = outputs.chunk(2, 1)
    return LARGEST * (raw / LARGEST).tanh(), shift


@dataclass(frozen=True)
class _Spline:
    """A monotone rational-quadratic spline of each coordinate on [-END, END], the identity outside."""

    x: Float[torch.Tensor, "member d knot"]
    y: Float[torch.Tensor, "member d knot"]
    slope: Float[torch.Tensor, "member d knot"]

    @classmethod
    def of(cls, raw: Float[torch.Tensor, "member d parameter"]) -> _Spline:
        """The spline of unconstrained parameters; at zero it is the identity."""
        widths, heights, slopes = torch.split(raw, [BINS, BINS, BINS - 1], 2)
        knots = list[torch.Tensor]()
        for sizes in (widths, heights):
            share = SMALLEST + (1 - SMALLEST * BINS) * sizes.softmax(2)
            inner = END * (2 * share.cumsum(2)[:, :, :-1] - 1)
            ends = torch.full_like(inner[:, :, :1], END)
            knots.append(torch.cat([-ends, inner, ends], 2))
        one = torch.ones_like(slopes[:, :, :1])
        return cls(knots[0], knots[1], torch.cat([one, slopes.exp().clamp_min(SMALLEST), one], 2))

    def _bin(self, values: torch.Tensor, knots: torch.Tensor) -> list[torch.Tensor]:
        """Of the bin that holds each value: x and y at its lower end, width, height, and the slopes at its ends."""
        at = torch.searchsorted(knots.detach(), values.detach().contiguous(), right=True).clamp(1, BINS) - 1
        tables = (self.x[:, :, :-1], self.y[:, :, :-1], self.x.diff(), self.y.diff(), self.slope[:, :, :-1])
        return [table.gather(2, at) for table in (*tables, self.slope[:, :, 1:])]

    def __call__(self, v: Float[torch.Tensor, "member d n"]) -> tuple[torch.Tensor, torch.Tensor]:
        """The spline, and the logarithm of its slope."""
        inside = v.clamp(-END, END)
        x, y, width, height, low, high = self._bin(inside, self.x)
        share, mean = (inside - x) / width, height / width
        inner = share * (1 - share)
        below = mean + (low + high - 2 * mean) * inner
        values = y + height * (mean * share.square() + low * inner) / below
        slope = mean.square() * (high * share.square() + 2 * mean * inner + low * (1 - share).square())
        outside = (v - inside).detach() != 0
        log_slope = torch.where(outside, 0.0, (slope / below.square()).log())
        return torch.where(outside, v, values), log_slope

    def inverse(self, values: Float[torch.Tensor, "member d n"]) -> Float[torch.Tensor, "member d n"]:
        inside = values.clamp(-END, END)
        x, y, width, height, low, high = self._bin(inside, self.y)
        mean, above = height / width, inside - y
        bend = above * (low + high - 2 * mean)
        a, b, c = height * (mean - low) + bend, height * low - bend, -mean * above
        root = (b.square() - 4 * a * c).clamp_min(0).sqrt()
        return torch.where(values == inside, x + width * 2 * c / (-b - root), values)
