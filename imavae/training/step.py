"""One epoch of training: the loss's gradient, by autograd or written out, and Adam.

The loss is the sum of the members' beta KL - E_q[log p(x|z)]; no weight is shared, so its gradient holds every member's
own. A model of a few hundred weights spends its step on dispatch, and autograd doubles the number of kernels. Written
out, for the common case, the gradient takes six tenths of the time: every intermediate has its buffer, gradients go
where the optimizer reads them, and the loss, which training does not need, is not computed.

For means over a batch of B: d/dx_hat = gamma^2 (x_hat - x) / B, through the decoder to z; d/dy = dz/dy d/dz -
beta (log p)'(y) / B; d/dmu = d/dy; d/dlog sigma^2 = (sigma noise d/dy - beta / B) / 2; and through the encoder. A layer
a = phi(W h + b) has delta = phi'(a) * (W_next^T delta_next), dW = delta h^T, db = sum delta.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import leaky_relu_

from imavae.data.dataset import Split
from imavae.model.networks import MLP, Network
from imavae.model.priors import Prior
from imavae.model.vae import GAMMA, VAE
from imavae.training.batches import batches
from imavae.training.ensemble import ACTIVE, Ensemble, State, evaluated

Flat = Float[Tensor, "member parameter"]
Batch = Float[Tensor, "member o batch"]
Noise = Float[Tensor, "member d batch"]

LAYER_NUMBERS = 2**19  # outputs of a layer for the members of a block: a few such arrays, 2 MiB each, stay in cache
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's defaults (Kingma and Ba, 2015)


def train_epoch(ensemble: Ensemble, state: State, data: Split) -> None:
    """One pass of every active member over its world's data, in its own order; ``state`` is changed in place."""
    members = size = len(state.active)
    fixed = ensemble.config.model.precision != "learned"
    if written_out(ensemble.model, fixed) and ensemble.device.type == "cpu":  # a GPU takes all members at once
        size = members_at_once(ensemble.model, ensemble.config.training.batch_size, members)
    for start in range(0, members, size):
        block = slice(start, start + size)
        _train_block(ensemble, replace(state, **{name: getattr(state, name)[block] for name in ACTIVE}), data)
    if ensemble.config.model.precision == "mle":
        _set_gamma(ensemble, state, data)
    state.epoch += 1


def _train_block(ensemble: Ensemble, state: State, data: Split) -> None:
    beta, rate = (ensemble.per_member(name, state.active) for name in ("beta", "learning_rate"))
    if ensemble.config.training.schedule == "cosine":
        rate = rate * (0.5 + 0.5 * math.cos(math.pi * state.epoch / ensemble.config.training.max_epochs))
    gradient, fixed = torch.zeros_like(state.weights), ensemble.config.model.precision != "learned"
    if written_out(ensemble.model, fixed):
        fill: ByAutograd | WrittenOut = WrittenOut(ensemble.model, state.weights, gradient, beta)
    else:
        fill = ByAutograd(ensemble.model, state.weights, gradient, beta, fixed)
    adam = Adam(state, rate, -(-len(data) // ensemble.config.training.batch_size))
    for x, noise, u in batches(ensemble, state, data):
        fill(x, noise, u)
        adam.step(gradient)
    adam.finish()


@torch.no_grad()
def _set_gamma(ensemble: Ensemble, state: State, data: Split) -> None:
    """Maximum likelihood given the other weights: gamma^-2 = the mean of (x - g(mu(x)))^2 over data and dimensions."""
    weights = ensemble.model.layout.views(state.weights)
    worlds = ensemble.world_of(state.active)
    error = torch.zeros(len(state.active), dtype=torch.float64, device=ensemble.device)
    size = evaluated(ensemble.config.data.observed)
    for start in range(0, len(data), size):
        x = data.block(worlds, slice(start, start + size))
        location = ensemble.model.prior.latent(ensemble.model.posterior(weights, x).mean)
        error += (x - ensemble.model.decoder(weights, location)).double().square().mean(1).sum(1)
    log_gamma = -0.5 * (error / len(data)).log()
    state.finite &= torch.isfinite(log_gamma)
    weights[GAMMA].copy_(torch.where(state.finite, log_gamma.to(ensemble.dtype), weights[GAMMA]))


class Adam:
    """Adam with a rate and a step count per member, over the steps of one epoch.

    A member whose gradient is not finite keeps its weights from that step on: a NaN in its step size marks it, which
    costs less than a mask in each step. Numerator and denominator of m_hat / (sqrt(v_hat) + eps) are multiplied by
    sqrt(1 - beta2^t).
    """

    def __init__(self, state: State, rate: Float[Tensor, " active"], steps: int) -> None:
        """Prepare ``steps`` steps, which change weights and moments of ``state`` in place."""
        self._state, self._done = state, 0
        count = state.steps + torch.arange(1, steps + 1, dtype=rate.dtype, device=rate.device)[:, None]
        scale = (1 - BETAS[1] ** count).sqrt()
        self._sizes = rate * scale / (1 - BETAS[0] ** count)
        self._epsilons = (EPSILON * scale)[..., None]
        self._mark = torch.where(state.finite, 0.0, torch.nan).to(rate.dtype)
        self._zero, self._total, self._size = torch.zeros_like(rate), torch.empty_like(rate), torch.empty_like(rate)
        self._column, self._update = self._size[:, None], torch.empty_like(state.weights)

    @torch.no_grad()
    def step(self, gradient: Float[Tensor, "active parameter"]) -> None:
        """Move the weights by one step."""
        state, update = self._state, self._update
        torch.sum(gradient, 1, out=self._total)
        self._mark.addcmul_(self._total, self._zero)
        torch.add(self._sizes[self._done], self._mark, out=self._size)
        state.first.lerp_(gradient, 1 - BETAS[0])
        state.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        torch.sqrt(state.second, out=update).add_(self._epsilons[self._done])
        torch.div(state.first, update, out=update).mul_(self._column).nan_to_num_(0.0, 0.0, 0.0)
        state.weights.sub_(update)
        self._done += 1

    def finish(self) -> None:
        """Write the step counts, and which members are still finite, into the state."""
        self._state.steps += self._done
        self._state.finite &= torch.isfinite(self._mark)


class ByAutograd:
    """The gradient of the sum over members of beta KL - E_q[log p(x|z)], for every model."""

    def __init__(self, model: VAE, weights: Flat, gradient: Flat, beta: Float[Tensor, " member"], fixed: bool) -> None:
        """It is written into ``gradient``, which is laid out like ``weights``; with ``fixed``, gamma's stays zero."""
        self._model, self._beta = model, beta
        views = model.layout.views(weights.detach())
        self._leaves = {name: view.requires_grad_(not (fixed and name == GAMMA)) for name, view in views.items()}
        self._trained = [view for view in self._leaves.values() if view.requires_grad]
        self._into = gradient[:, : gradient.shape[1] - fixed]  # gamma is the last of a member's weights

    def __call__(self, x: Batch, noise: Noise, u: Int[Tensor, "member batch"] | None) -> None:
        """Write the gradient on one batch."""
        elbo = self._model.elbo(self._leaves, x, noise, u)
        gradients = torch.autograd.grad((self._beta * elbo.kl - elbo.log_px_z).sum(), self._trained)
        torch.cat([g.reshape(len(g), -1) for g in gradients], 1, out=self._into)


def written_out(model: VAE, fixed: bool) -> bool:
    """True if :class:`WrittenOut` knows the model: leaky ReLU, diagonal posterior, sampled KL, the rest fixed."""
    networks = (model.encoder, model.decoder)
    plain = all(isinstance(network, MLP) and network.activation == "leaky_relu" for network in networks)
    known = type(model.prior).score is not Prior.score and not (model.learned_prior or model.prior_network)
    return plain and known and fixed and not (model.full or model.analytic)


def members_at_once(model: VAE, batch: int, members: int) -> int:
    """The size of blocks of members that train side by side, so that their intermediates fit in the cache.

    With 30 units and batches of 64, a block has up to 273 members; all blocks have about the same size.
    """
    widest = max(max(shape) for network in (model.encoder, model.decoder) for shape in network.shapes.values())
    blocks = min(members, -(-members * widest * batch // LAYER_NUMBERS))
    return -(-members // blocks)


class _Layer(NamedTuple):
    """Views of one linear map's weights and gradients, made once: a view takes microseconds."""

    weight: Float[Tensor, "member out inputs"]
    bias: Float[Tensor, "member out 1"]
    transposed: Float[Tensor, "member inputs out"]
    into: Float[Tensor, "member out inputs"]
    into_bias: Float[Tensor, "member out"]
    slope: float | None  # of the leaky ReLU after it; None after the last map


class WrittenOut:
    """The gradient of :class:`ByAutograd`, for the models of :func:`written_out`."""

    def __init__(self, model: VAE, weights: Flat, gradient: Flat, beta: Float[Tensor, " member"]) -> None:
        """It is written into ``gradient``, which is laid out like ``weights``; gamma's stays zero."""
        self._prior, views, into = model.prior, model.layout.views(weights), model.layout.views(gradient)
        self._encoder, self._decoder = (_layers(network, views, into) for network in (model.encoder, model.decoder))
        self._precision, self._beta = (2 * views[GAMMA]).exp()[:, None, None], beta[:, None, None]
        self._theta = model.theta(views, None)
        self._buffers: dict[int, _Buffers] = {}

    @torch.no_grad()
    def __call__(self, x: Batch, noise: Noise, u: Int[Tensor, "member batch"] | None) -> None:
        """Write the gradient on one batch; a fixed prior doesn't ask for its segments."""
        latent, batch = noise.shape[1:]
        if batch not in self._buffers:  # batches have two sizes, the full one and what is left at an epoch's end
            self._buffers[batch] = self._made(x, noise)
        at = self._buffers[batch]
        code = _forward(self._encoder, x, at.inward)
        spread = torch.mul(code[:, latent:], 0.5, out=at.spread).exp_().mul_(noise)  # sigma noise
        y = torch.add(code[:, :latent], spread, out=at.y)
        z, slope, score = self._prior.together(y, self._theta)
        delta = _forward(self._decoder, z, at.outward).sub_(x).mul_(at.precision)
        delta = _backward(self._decoder, z, at.outward, at.outward_back, delta)
        torch.addcmul(delta.mul_(slope), score, at.beta, value=-1, out=at.at_mean)
        torch.mul(at.at_mean, spread, out=at.at_log_square).sub_(at.beta).mul_(0.5)
        _backward(self._encoder, x, at.inward, at.inward_back, at.at_code)

    def _made(self, x: Batch, noise: Noise) -> _Buffers:
        members, latent, batch = noise.shape
        inward, outward = ([x.new_empty(members, len(layer.bias[0]), batch) for layer in layers]
                           for layers in (self._encoder, self._decoder))  # fmt: skip
        code = torch.empty_like(inward[-1])
        return _Buffers(
            inward=inward,
            inward_back=[None, *(torch.empty_like(h) for h in inward[:-1])],  # no one asks for the gradient by x
            outward=outward,
            outward_back=[torch.empty_like(noise), *(torch.empty_like(h) for h in outward[:-1])],
            spread=torch.empty_like(noise),
            y=torch.empty_like(noise),
            at_code=code,
            at_mean=code[:, :latent],
            at_log_square=code[:, latent:],
            precision=self._precision / batch,
            beta=self._beta / batch,
        )


class _Buffers(NamedTuple):
    """Intermediates of a batch of one size. Lists: each layer's output, or the gradient by its input."""

    inward: list[Tensor]
    inward_back: list[Tensor | None]
    outward: list[Tensor]
    outward_back: list[Tensor | None]
    spread: Tensor
    y: Tensor
    at_code: Tensor
    at_mean: Tensor
    at_log_square: Tensor
    precision: Tensor
    beta: Tensor


def _layers(network: Network, views: dict[str, Tensor], into: dict[str, Tensor]) -> list[_Layer]:
    assert isinstance(network, MLP)  # noqa: S101  -- see written_out
    layers = []
    for i in range(network.n_layers):
        weight, bias = f"{network.prefix}.{i}.weight", f"{network.prefix}.{i}.bias"
        slope = network.slope if i < network.n_layers - 1 else None
        given = views[weight], views[bias][..., None], views[weight].transpose(1, 2)
        layers.append(_Layer(*given, into[weight], into[bias], slope))
    return layers


def _forward(layers: list[_Layer], x: Tensor, passed: list[Tensor]) -> Tensor:
    """The last layer's output; ``passed`` receives each layer's output after its activation."""
    for layer, out in zip(layers, passed, strict=True):
        torch.baddbmm(layer.bias, layer.weight, x, out=out)
        x = out if layer.slope is None else leaky_relu_(out, layer.slope)
    return x


def _backward(
    layers: list[_Layer], x: Tensor, passed: list[Tensor], back: list[Tensor | None], delta: Tensor
) -> Tensor:
    """Write the weights' gradients; the gradient by the network's input is returned where it has a buffer."""
    for i in reversed(range(len(layers))):
        layer, given, buffer = layers[i], passed[i - 1] if i else x, back[i]
        layer.into.copy_(torch.bmm(delta, given.transpose(1, 2)))
        torch.sum(delta, 2, out=layer.into_bias)
        if buffer is not None:
            delta = torch.bmm(layer.transposed, delta, out=buffer)
        slope = layers[i - 1].slope
        if i and slope is not None:  # the sign of what a leaky ReLU gives is that of what it got
            torch.ops.aten.leaky_relu_backward(delta, given, slope, True, grad_input=delta)
    return delta
