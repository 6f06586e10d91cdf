"""The loss's gradient, by autograd and, for the common case, written out: that takes six tenths of the time.

A model of a few hundred weights spends its step on dispatch; autograd doubles the number of kernels and allocates each
result anew. Written out, every intermediate has its buffer, gradients go where the optimizer reads them, and the loss
itself, which no one reads while training, is not computed. The tests compare the two.

For means over a batch of B: d/dx_hat = gamma^2 (x_hat - x) / B, through the decoder to z; d/dy = dz/dy d/dz -
beta (log p)'(y) / B; d/dmu = d/dy; d/dlog sigma^2 = (sigma noise d/dy - beta / B) / 2; and through the encoder. A layer
a = phi(W h + b) has delta = phi'(a) * (W_next^T delta_next), dW = delta h^T, db = sum delta.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import leaky_relu_

from imavae.model.networks import MLP
from imavae.model.priors import Prior
from imavae.model.vae import GAMMA, VAE

Flat = Float[Tensor, "member parameter"]
Batch = Float[Tensor, "member o batch"]
Noise = Float[Tensor, "member d batch"]


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


class WrittenOut:
    """The same gradient as :class:`ByAutograd`'s, for the models of :func:`written_out`."""

    def __init__(self, model: VAE, weights: Flat, gradient: Flat, beta: Float[Tensor, " member"]) -> None:
        """It is written into ``gradient``, which is laid out like ``weights``; gamma's stays zero."""
        self._model, self._weights, self._into = model, model.layout.views(weights), model.layout.views(gradient)
        self._precision = (2 * self._weights[GAMMA]).exp()[:, None, None]
        self._beta = beta[:, None, None]
        self._theta = model.theta(self._weights, None)
        self._buffers: dict[tuple[str, int], Tensor] = {}

    @torch.no_grad()
    def __call__(self, x: Batch, noise: Noise, u: Int[Tensor, "member batch"] | None) -> None:
        """Write the gradient on one batch; a fixed prior doesn't ask for its segments."""
        encoder, decoder, prior = self._model.encoder, self._model.decoder, self._model.prior
        dim, batch = noise.shape[1:]
        assert isinstance(encoder, MLP)  # noqa: S101  -- for the type checker
        assert isinstance(decoder, MLP)  # noqa: S101
        inward = self._forward(encoder, x)
        mean, log_square = inward[-1][:, :dim], inward[-1][:, dim:]
        spread = torch.mul(log_square, 0.5, out=self._buffer("spread", noise)).exp_().mul_(noise)  # sigma noise
        y = torch.add(mean, spread, out=self._buffer("y", noise))
        outward = self._forward(decoder, prior.latent(y))
        delta = outward[-1].sub_(x).mul_(self._precision / batch)
        delta = self._backward(decoder, outward, delta, to_input=True)
        code = self._buffer("code", inward[-1])
        at_mean, at_log_square = code[:, :dim], code[:, dim:]
        torch.mul(delta, prior.slope(y), out=at_mean)
        at_mean.addcmul_(prior.score(y, self._theta), self._beta, value=-1 / batch)
        torch.mul(at_mean, spread, out=at_log_square).sub_(self._beta / batch).mul_(0.5)
        self._backward(encoder, inward, code, to_input=False)

    def _forward(self, network: MLP, x: Tensor) -> list[Tensor]:
        """The input and what each layer gives, after its activation."""
        passed = [x]
        for i in range(network.n_layers):
            weight, bias = self._layer(self._weights, network, i)
            shape = (len(x), weight.shape[1], x.shape[2])
            h = torch.baddbmm(bias[..., None], weight, passed[-1], out=self._shaped(f"{network.prefix}{i}", x, shape))
            passed.append(leaky_relu_(h, network.slope) if i < network.n_layers - 1 else h)
        return passed

    def _backward(self, network: MLP, passed: list[Tensor], delta: Tensor, to_input: bool) -> Tensor:
        """Write the weights' gradients, and return the gradient by the network's input if it is wanted."""
        for i in reversed(range(network.n_layers)):
            weight, _ = self._layer(self._weights, network, i)
            into, into_bias = self._layer(self._into, network, i)
            into.copy_(torch.bmm(delta, passed[i].transpose(1, 2)))
            torch.sum(delta, 2, out=into_bias)
            if i > 0 or to_input:
                back = self._shaped(f"d{network.prefix}{i}", passed[i], tuple(passed[i].shape))
                delta = torch.bmm(weight.transpose(1, 2), delta, out=back)
            if i > 0:  # the sign of what a leaky ReLU gives is that of what it got
                torch.ops.aten.leaky_relu_backward(delta, passed[i], network.slope, True, grad_input=delta)
        return delta

    @staticmethod
    def _layer(weights: dict[str, Tensor], network: MLP, i: int) -> tuple[Tensor, Tensor]:
        return weights[f"{network.prefix}.{i}.weight"], weights[f"{network.prefix}.{i}.bias"]

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        return self._shaped(name, like, tuple(like.shape))

    def _shaped(self, name: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A buffer that is made once: batches have two sizes, the full one and what is left at an epoch's end."""
        key = (name, shape[-1])
        if key not in self._buffers:
            self._buffers[key] = like.new_empty(shape)
        return self._buffers[key]
