"""One epoch of training: the gradient of the loss, and Adam.

The loss is the sum of the members' beta KL - E_q[log p(x|z)] + lambda c_IMA(g, z), with the local contrast of the
decoder at the posterior sample (lambda is model.ima_weight); a flow's is -log p(x) + lambda c_IMA(h^-1). No weight is
shared, so the loss's gradient holds every member's own. There are two statements of a step. The one here is autograd's,
for every model, dtype and device. The other one, step.cpp, is compiled, and carries out a member's whole step in the
processor's cache; see ``compiled.py`` for what it supports, without lambda. It computes, for means over a batch of B:
d/dx_hat = gamma^2 (x_hat - x) / B, through the decoder to z; d/dy = dz/dy d/dz - beta (log p)'(y) / B; d/dmu = d/dy;
d/dlog sigma^2 = (sigma noise d/dy - beta / B) / 2; and through the encoder. A layer a = phi(W h + b) has delta =
phi'(a) * (W_next^T delta_next), dW = delta h^T, db = sum delta.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imavae.data.dataset import Split
from imavae.model.vae import GAMMA, VAE
from imavae.training import compiled
from imavae.training.batches import batches
from imavae.training.ensemble import Ensemble, State, evaluated

Flat = Float[Tensor, "member parameter"]
Batch = Float[Tensor, "member o batch"]
Noise = Float[Tensor, "member d batch"]

CONVOLVED = 4  # axes of the weights of a convolution
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's defaults (Kingma and Ba, 2015)


def train_epoch(ensemble: Ensemble, state: State, data: Split) -> None:
    """One pass of every active member over its world's data, in its own order; ``state`` is changed in place."""
    config = ensemble.config
    beta, rate = (ensemble.per_member(name, state.active) for name in ("beta", "learning_rate"))
    beta = beta * config.training.beta_schedule.share(state.epoch)
    if config.training.schedule == "cosine":
        rate = rate * (0.5 + 0.5 * math.cos(math.pi * state.epoch / config.training.max_epochs))
    if "gamma_schedule" in config.training.schedules:
        share = config.training.gamma_schedule.share(state.epoch)
        gamma = torch.tensor([ensemble.members[row].gamma for row in state.active.tolist()], dtype=torch.float64)
        ensemble.model.layout.views(state.weights)[GAMMA][:] = (gamma * share).log()
    sizes, epsilons = step_sizes(state, rate, -(-len(data) // config.training.batch_size))
    if compiled.chosen(config, ensemble.device)[0] == "compiled":
        compiled.train_epoch(ensemble, state, data, beta, sizes, epsilons, BETAS)
    else:
        gradient, fixed = torch.zeros_like(state.weights), config.model.precision != "learned"
        ima = None
        if config.model.ima_weight > 0:
            ima = ensemble.per_member("ima_weight", state.active) * config.training.ima_schedule.share(state.epoch)
        low = config.training.conv_dtype == "bfloat16"
        fill = ByAutograd(ensemble.model, state.weights, gradient, beta, fixed, ima, low)
        adam = Adam(state, sizes, epsilons)
        for x, noise, u in batches(ensemble, state, data):
            fill(x, noise, u)
            if config.training.clip is not None:
                clip(gradient, config.training.clip)
            adam.step(gradient)
        adam.finish()
    if config.model.precision == "mle":
        _set_gamma(ensemble, state, data)
    state.epoch += 1


def step_sizes(
    state: State, rate: Float[Tensor, " active"], steps: int
) -> tuple[Float[Tensor, "step active"], Float[Tensor, "step active"]]:
    """Adam's step size and epsilon in each of the next steps.

    Numerator and denominator of m_hat / (sqrt(v_hat) + eps) are multiplied by sqrt(1 - beta2^t).
    """
    count = state.steps + torch.arange(1, steps + 1, dtype=rate.dtype, device=rate.device)[:, None]
    scale = (1 - BETAS[1] ** count).sqrt()
    return rate * scale / (1 - BETAS[0] ** count), EPSILON * scale


def clip(gradient: Flat, most: float) -> None:
    """Shorten each member's gradient to the norm ``most`` if it is longer (Pascanu et al., ICML 2013)."""
    norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    gradient.mul_((most / norms).clamp(max=1))  # that of NaN stays NaN, and marks its member


@torch.no_grad()
def _set_gamma(ensemble: Ensemble, state: State, data: Split) -> None:
    """Maximum likelihood given the other weights: gamma^-2 = the mean of (x - g(mu(x)))^2 over data and dimensions."""
    weights = ensemble.model.layout.views(state.weights)
    worlds = ensemble.world_of(state.active)
    error = torch.zeros(len(state.active), dtype=torch.float64, device=ensemble.device)
    size = evaluated(ensemble.config.data.features)
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
    costs less than a mask in each step.
    """

    def __init__(
        self, state: State, sizes: Float[Tensor, "step active"], epsilons: Float[Tensor, "step active"]
    ) -> None:
        """Prepare the steps of :func:`step_sizes`, which change weights and moments of ``state`` in place."""
        self._state, self._done, self._sizes, self._epsilons = state, 0, sizes, epsilons[..., None]
        rate = sizes[0]
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
    """The gradient of the sum over members of beta KL - E_q[log p(x|z)] + ima c_IMA(g, z), or of a flow's loss."""

    def __init__(
        self,
        model: VAE,
        weights: Flat,
        gradient: Flat,
        beta: Float[Tensor, " member"],
        fixed: bool,
        ima: Float[Tensor, " member"] | None = None,
        bfloat16: bool = False,
    ) -> None:
        """It is written into ``gradient``, which is laid out like ``weights``; with ``fixed``, gamma's stays zero.

        Without ``ima`` the decoder is not differentiated by its inputs. With ``bfloat16``, convolutions get weights of
        that type, and compute in it.
        """
        self._low = [name for name, shape in model.layout.shapes.items() if len(shape) == CONVOLVED and bfloat16]
        self._model, self._beta, self._ima = model, beta, ima
        views = model.layout.views(weights.detach())
        self._leaves = {name: view.requires_grad_(not (fixed and name == GAMMA)) for name, view in views.items()}
        self._trained = [view for view in self._leaves.values() if view.requires_grad]
        held = fixed and GAMMA in views
        self._into = gradient[:, : gradient.shape[1] - held]  # gamma is the last of a member's weights, if there is one

    def __call__(self, x: Batch, noise: Noise, u: Int[Tensor, "member batch"] | None) -> None:
        """Write the gradient on one batch."""
        weights = self._leaves | {name: self._leaves[name].bfloat16() for name in self._low}
        elbo, contrast = self._model.objective(weights, x, noise, u, self._ima is not None)
        loss = self._beta * elbo.kl - elbo.log_px_z
        if self._ima is not None:
            loss = loss + self._ima * contrast
        gradients = torch.autograd.grad(loss.sum(), self._trained)
        torch.cat([g.reshape(len(g), -1) for g in gradients], 1, out=self._into)
