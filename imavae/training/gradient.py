"""The loss's gradient, by autograd and, for the common case, written out: that takes six tenths of the time.

A model of a few hundred weights spends its step on dispatch; autograd doubles the number of kernels and allocates each
result anew. Written out, every intermediate has its buffer, gradients go where the optimizer reads them, and the loss
itself, which no one reads while training, is not computed. The tests compare the two.

For means over a batch of B: d/dx_hat = gamma^2 (x_hat - x) / B, through the decoder to z; d/dy = dz/dy d/dz -
beta (log p)'(y) / B; d/dmu = d/dy; d/dlog sigma^2 = (sigma noise d/dy - beta / B) / 2; and through the encoder. A layer
a = phi(W h + b) has delta = phi'(a) * (W_next^T delta_next), dW = delta h^T, db = sum delta.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import leaky_relu_

from imavae.model.networks import Network
from imavae.model.networks.mlp import MLP
from imavae.model.priors import Prior
from imavae.model.vae import GAMMA, VAE

Flat = Float[Tensor, "member parameter"]
Batch = Float[Tensor, "member o batch"]
Noise = Float[Tensor, "member d batch"]

# that a layer gives for the members of a block: a handful of such arrays, 2 MiB each, should stay in cache
NUMBERS = 2**19


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
    """Whether :class:`WrittenOut` is for this model: leaky ReLU, diagonal posterior, sampled KL, the rest fixed."""
    networks = (model.encoder, model.decoder)
    plain = all(isinstance(network, MLP) and network.activation == "leaky_relu" for network in networks)
    known = type(model.prior).score is not Prior.score and not (model.learned_prior or model.prior_network)
    return plain and known and fixed and not (model.full or model.analytic)


def members_at_once(model: VAE, batch: int, members: int) -> int:
    """How many of the members should train side by side, for speed; so many blocks of about the same size there are.

    With 30 units and batches of 64, up to 273 members go together; their intermediates should fit the cache.
    """
    widest = max(max(shape) for network in (model.encoder, model.decoder) for shape in network.shapes.values())
    blocks = min(members, -(-members * widest * batch // NUMBERS))
    return -(-members // blocks)


class _Layer(NamedTuple):
    """Views of one linear map's weights and of where their gradients go, made once: a view takes microseconds."""

    weight: Float[Tensor, "member out inputs"]
    bias: Float[Tensor, "member out 1"]
    transposed: Float[Tensor, "member inputs out"]
    into: Float[Tensor, "member out inputs"]
    into_bias: Float[Tensor, "member out"]
    slope: float | None  # of the leaky ReLU after it; None after the last map


class WrittenOut:
    """The same gradient as :class:`ByAutograd`'s, for the models of :func:`written_out`."""

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
    """Where the intermediates of a batch of one size go; they are made once. Per layer: what it gives, and the
    gradient by what it is given.
    """

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
    """What the last layer gives; ``passed`` is filled with what each of them gives, after its activation."""
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
