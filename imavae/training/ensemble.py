"""Members of one architecture that train together, and the state of their training.

A member's result does not depend on its company: it has its own generators, gamma, learning rate and step count, each a
row of a tensor along the member axis. Weights and Adam's moments are flat (member, parameter) arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imavae.config.settings import RunConfig
from imavae.model import vae
from imavae.rng import stream

EVALUATED_POINTS = 512  # points that go through the networks at once where nothing is differentiated
EVALUATED_NUMBERS = 2**20  # numbers of observations that go through them at once, at most
SELECTION = {"val/mcc": "max", "val/neg_elbo": "min"}  # criteria of a member's best states; the first needs sources
ACTIVE = (
    "active",
    "weights",
    "first",
    "second",
    "steps",
    "finite",
    "batches",
    "noise",
)


def evaluated(observed: int) -> int:
    """The number of points of ``observed`` numbers that go through the networks at once: whole batches of 64."""
    return min(EVALUATED_POINTS, max(1, EVALUATED_NUMBERS // observed // 64) * 64)


class Member(NamedTuple):
    """One model: a seed at one point of the search."""

    point: int
    seed: int
    world: int  # data seed
    gamma: float  # fixed, or the initial value
    learning_rate: float
    beta: float


@dataclass(frozen=True)
class Ensemble:
    """Members of one architecture and their settings."""

    model: vae.VAE
    members: tuple[Member, ...]
    worlds: tuple[int, ...]  # the data seeds, in the order of the data's first axis
    config: RunConfig  # of the first point; all share it but for gamma, learning rate and beta
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def _columns(self) -> dict[str, Tensor]:
        """Settings that differ between members, put on the device once: an epoch on a GPU never waits for the host."""
        names = ("gamma", "learning_rate", "beta")
        columns = {name: [getattr(member, name) for member in self.members] for name in names}
        worlds = torch.tensor([self.worlds.index(member.world) for member in self.members], device=self.device)
        made = {name: torch.tensor(c, dtype=self.dtype, device=self.device) for name, c in columns.items()}
        return {**made, "world": worlds}

    def world_of(self, rows: Int[Tensor, " active"]) -> Int[Tensor, " active"]:
        """Positions of the worlds of the members in ``rows`` along the data's first axis."""
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
    """State of training: tensors with a row per member that is still active, and tensors with a row per member."""

    epoch: int
    active: Int[Tensor, " active"]  # the members of the rows of the next tensors
    weights: Float[Tensor, "active parameter"]
    first: Float[Tensor, "active parameter"]  # Adam's moments
    second: Float[Tensor, "active parameter"]
    steps: Float[Tensor, " active"]
    finite: Bool[Tensor, " active"]
    batches: list[torch.Generator]
    noise: list[torch.Generator]
    frozen: Float[Tensor, "member parameter"]  # last weights of the members that stopped
    epochs: Int[Tensor, " member"]  # trained by each member
    waited: Int[Tensor, " member"]  # validations since the last lower val/neg_elbo
    status: list[str]  # running, finished (all epochs), stopped (early), diverged
    best: dict[str, Best]
    history: list[Validation] = field(default_factory=list)


def initial_state(ensemble: Ensemble) -> State:
    """Every member at its own random initial weights."""
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
            for name, mode in SELECTION.items()
            if name != "val/mcc" or ensemble.config.data.has_sources
        },
    )


def to_plain(state: State) -> dict[str, Any]:
    """The state as tensors and plain containers, which ``torch.load(weights_only=True)`` reads."""
    plain = {name: value for name, value in vars(state).items() if name not in ("batches", "noise", "best", "history")}
    plain["batches"] = [g.get_state() for g in state.batches]
    plain["noise"] = [g.get_state() for g in state.noise]
    plain["best"] = {name: vars(best) for name, best in state.best.items()}
    plain["history"] = [tuple(validation) for validation in state.history]
    return plain


def from_plain(plain: dict[str, Any], device: torch.device) -> State:
    """The state from the result of :func:`to_plain`, on ``device``."""
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
