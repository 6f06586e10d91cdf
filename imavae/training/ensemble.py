"""An ensemble's state and its step (DESIGN: a member's result does not depend on its company).

One backward pass of the sum of the members' losses gives every member its own gradient, since no weight is shared; one
Adam step over the flat (member, parameter) arrays applies it. Whatever differs between members is a tensor along the
member axis: generators, gamma, learning rate, step count. A member whose gradient is not finite is masked out
of the update from that step on, so it keeps its last finite weights and disturbs nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imavae.config.settings import RunConfig
from imavae.data.dataset import Split
from imavae.model import vae
from imavae.rng import stream
from imavae.training.batches import batches
from imavae.training.gradient import ByAutograd, WrittenOut, members_at_once, written_out

EVALUATED = 512  # points that go through the networks at once where nothing is differentiated
NUMBERS = 2**20  # of observations that go through them, at the most
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's defaults (Kingma and Ba, 2015)
CRITERIA = {"val/mcc": "max", "val/neg_elbo": "min"}  # what a member's two best states are chosen by; the first
# only where there are sources


def evaluated(observed: int) -> int:
    """The points that go through the networks at once, of so many numbers each: whole batches of 64."""
    return min(EVALUATED, max(1, NUMBERS // observed // 64) * 64)


class Member(NamedTuple):
    """One model: a seed at one point of the search."""

    point: int
    seed: int
    world: int  # the seed of its data
    gamma: float  # where its precision starts, or stays
    learning_rate: float
    beta: float


@dataclass(frozen=True)
class Ensemble:
    """Members of one architecture, and how they are trained."""

    model: vae.VAE
    members: tuple[Member, ...]
    worlds: tuple[int, ...]  # the data seeds, in the order of the data's first axis
    config: RunConfig  # of its first point: what all of them share
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def _columns(self) -> dict[str, Tensor]:
        """What differs between members, put on the device once: an epoch on a GPU never waits for the host."""
        names = ("gamma", "learning_rate", "beta")
        columns = {name: [getattr(member, name) for member in self.members] for name in names}
        worlds = torch.tensor([self.worlds.index(member.world) for member in self.members], device=self.device)
        made = {name: torch.tensor(c, dtype=self.dtype, device=self.device) for name, c in columns.items()}
        return {**made, "world": worlds}

    def world_of(self, rows: Int[Tensor, " active"]) -> Int[Tensor, " active"]:
        """Where the worlds of the members in ``rows`` stand in the data."""
        return self._columns["world"][rows]

    def per_member(self, name: str, rows: Int[Tensor, " active"]) -> Float[Tensor, " active"]:
        """One attribute (gamma, learning_rate, beta) of the members in ``rows``."""
        return self._columns[name][rows]


def ensemble(points: list[RunConfig], device: torch.device | str) -> Ensemble:
    """The members of ``points``, which must share all but gamma, learning rate and beta."""
    first = points[0]
    worlds = first.members.data.seed or (first.data.seed,)
    members = tuple(
        Member(i, seed, world, point.model.gamma, point.training.learning_rate, point.model.beta)
        for i, point in enumerate(points)
        for world in worlds
        for seed in point.members.seed
    )
    return Ensemble(
        model=vae.build(first, device),
        members=members,
        worlds=worlds,
        config=first,
        dtype=vae.torch_dtype(first),
        device=torch.device(device),
    )


@dataclass
class Best:
    """Each member's best state by one criterion; epoch -1 before its first validation."""

    value: Float[Tensor, " member"]
    epoch: Int[Tensor, " member"]
    weights: Float[Tensor, "member parameter"]


class Validation(NamedTuple):
    """The metrics of the members that were training at one epoch."""

    epoch: int
    rows: Int[Tensor, " active"]
    values: dict[str, Float[Tensor, " active"]]


@dataclass
class State:
    """All that training needs to go on: tensors with ``active`` rows for the members still training, and tensors with
    a row per member for what outlives them.
    """

    epoch: int
    active: Int[Tensor, " active"]  # which members the next five have rows for
    weights: Float[Tensor, "active parameter"]
    first: Float[Tensor, "active parameter"]  # Adam's moments
    second: Float[Tensor, "active parameter"]
    steps: Float[Tensor, " active"]
    finite: Bool[Tensor, " active"]
    batches: list[torch.Generator]
    noise: list[torch.Generator]
    frozen: Float[Tensor, "member parameter"]  # the last weights of the members that stopped
    epochs: Int[Tensor, " member"]  # trained by each
    waited: Int[Tensor, " member"]  # validations since the last lower val/neg_elbo
    status: list[str]  # running, finished (all epochs), stopped (early), diverged
    best: dict[str, Best]
    history: list[Validation] = field(default_factory=list)


def initial_state(ensemble: Ensemble) -> State:
    """Every member at its own random start."""
    layout, count, device = ensemble.model.layout, len(ensemble), ensemble.device
    rows = [layout.initial(stream(member.seed, "init")) for member in ensemble.members]
    weights = torch.stack(rows)
    gamma = torch.tensor([member.gamma for member in ensemble.members], dtype=torch.float64)
    layout.views(weights)[vae.GAMMA][:] = gamma.log()
    weights = weights.to(device, ensemble.dtype)
    return State(
        epoch=0,
        active=torch.arange(count, device=device),
        weights=weights,
        first=torch.zeros_like(weights),
        second=torch.zeros_like(weights),
        steps=torch.zeros(count, dtype=ensemble.dtype, device=device),
        finite=torch.ones(count, dtype=torch.bool, device=device),
        batches=[stream(member.seed, "batches", device) for member in ensemble.members],
        noise=[stream(member.seed, "noise", device) for member in ensemble.members],
        frozen=weights.clone(),
        epochs=torch.zeros(count, dtype=torch.int64),
        waited=torch.zeros(count, dtype=torch.int64),
        status=["running"] * count,
        best={
            name: Best(
                torch.full((count,), -torch.inf if mode == "max" else torch.inf, dtype=torch.float64),
                torch.full((count,), -1, dtype=torch.int64),
                weights.clone(),
            )
            for name, mode in CRITERIA.items()
            if name != "val/mcc" or ensemble.config.data.has_sources
        },
    )


def train_epoch(ensemble: Ensemble, state: State, data: Split) -> None:
    """One pass of every active member over its world's data, in an order of its own; ``state`` is changed in place."""
    for part in _blocks(ensemble, state):
        _train_block(ensemble, part, data)
    if ensemble.config.model.precision == "mle":
        _set_gamma(ensemble, state, data)
    state.epoch += 1


def _blocks(ensemble: Ensemble, state: State) -> list[State]:
    """The state in parts that train one after the other, each of so many members as fit in a processor's cache (a GPU
    takes all at once); they are views: what changes in them changes in the state.
    """
    members = size = len(state.active)
    if _by_hand(ensemble) and ensemble.device.type == "cpu":
        size = members_at_once(ensemble.model, ensemble.config.training.batch_size, members)
    parts = (slice(start, start + size) for start in range(0, members, size))
    names = ("active", "weights", "first", "second", "steps", "finite", "batches", "noise")
    return [replace(state, **{name: getattr(state, name)[rows] for name in names}) for rows in parts]


def _by_hand(ensemble: Ensemble) -> bool:
    return written_out(ensemble.model, ensemble.config.model.precision != "learned")


def _train_block(ensemble: Ensemble, state: State, data: Split) -> None:
    beta, rate = (ensemble.per_member(name, state.active) for name in ("beta", "learning_rate"))
    if ensemble.config.training.schedule == "cosine":
        rate = rate * (0.5 + 0.5 * math.cos(math.pi * state.epoch / ensemble.config.training.max_epochs))
    gradient = torch.zeros_like(state.weights)
    if _by_hand(ensemble):
        fill: ByAutograd | WrittenOut = WrittenOut(ensemble.model, state.weights, gradient, beta)
    else:
        fixed = ensemble.config.model.precision != "learned"
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
    weights[vae.GAMMA].copy_(torch.where(state.finite, log_gamma.to(ensemble.dtype), weights[vae.GAMMA]))


class Adam:
    """Adam with a rate and a step count per member, over the steps of one epoch.

    A member whose gradient is not finite stays where it is from that step on: what marks it is a NaN that its steps'
    size takes up, which costs less than a mask of each step. m_hat / (sqrt(v_hat) + eps) has its numerator and its
    denominator multiplied by sqrt(1 - beta2^t).
    """

    def __init__(self, state: State, rate: Float[Tensor, " active"], steps: int) -> None:
        """Of the active members of ``state``, whose weights and moments change at each of so many steps."""
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


def keep(state: State, rows: Int[Tensor, " kept"]) -> None:
    """Compact the active members to those at positions ``rows``; the others' slots are gone and cost nothing more."""
    for name in ("active", "weights", "first", "second", "steps", "finite"):
        setattr(state, name, getattr(state, name)[rows].contiguous())
    kept = rows.tolist()
    state.batches = [state.batches[i] for i in kept]
    state.noise = [state.noise[i] for i in kept]


def to_plain(state: State) -> dict[str, Any]:
    """The state as tensors and plain containers, which ``torch.load(weights_only=True)`` reads back."""
    plain = {name: value for name, value in vars(state).items() if name not in ("batches", "noise", "best", "history")}
    plain["batches"] = [g.get_state() for g in state.batches]
    plain["noise"] = [g.get_state() for g in state.noise]
    plain["best"] = {name: vars(best) for name, best in state.best.items()}
    plain["history"] = [tuple(validation) for validation in state.history]
    return plain


def from_plain(plain: dict[str, Any], device: torch.device) -> State:
    """The state that :func:`to_plain` gave, on ``device``."""
    generators = {
        name: [torch.Generator(device).set_state(s.cpu()) for s in plain[name]] for name in ("batches", "noise")
    }
    best = {
        name: Best(values["value"], values["epoch"], values["weights"].to(device))
        for name, values in plain["best"].items()
    }
    history = [Validation(*validation) for validation in plain["history"]]
    resting = ("active", "weights", "first", "second", "steps", "finite", "frozen")
    moved = {name: plain[name].to(device) for name in resting}
    return State(**{**plain, **moved, **generators, "best": best, "history": history})
