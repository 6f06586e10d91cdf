"""Members of one architecture that train together, and the state of their training.

A member's result does not depend on its company: it has its own generators, gamma, learning rate and step count, each a
row of a tensor along the member axis. Weights and Adam's moments are flat (member, parameter) arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
ACTIVE = ("active", "weights", "first", "second", "steps", "finite", "batches", "noise")  # rows of a State that leave


def evaluated(observed: int) -> int:
    """The number of points of ``observed`` numbers that go through the networks at once: whole batches of 64."""
    return min(EVALUATED_POINTS, max(1, EVALUATED_NUMBERS // observed // 64) * 64)


class Member(NamedTuple):
    """One model: a seed at one point of the search."""

    point: int
    seed: int
    world: int  # data seed
    gamma: float  # fixed, or the initial value; NaN for a flow
    learning_rate: float
    beta: float
    ima_weight: float


@dataclass(frozen=True)
class Ensemble:
    """Members of one architecture and their settings."""

    model: vae.VAE
    members: tuple[Member, ...]
    worlds: tuple[int, ...]  # the data seeds, in the order of the data's first axis
    config: RunConfig  # of the first point; all share it but for what a Member has
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def _columns(self) -> dict[str, Tensor]:
        """Settings that differ between members, put on the device once: an epoch on a GPU never waits for the host."""
        columns = {"world": torch.tensor([self.worlds.index(m.world) for m in self.members], device=self.device)}
        for name in ("learning_rate", "beta", "ima_weight"):
            values = [getattr(member, name) for member in self.members]
            columns[name] = torch.tensor(values, dtype=self.dtype, device=self.device)
        return columns

    def world_of(self, rows: Int[Tensor, " active"]) -> Int[Tensor, " active"]:
        """Positions of the worlds of the members in ``rows`` along the data's first axis."""
        return self._columns["world"][rows]

    def per_member(self, name: str, rows: Int[Tensor, " active"]) -> Float[Tensor, " active"]:
        """One attribute (learning_rate, beta or ima_weight) of the members in ``rows``."""
        return self._columns[name][rows]


def ensemble(points: list[RunConfig], device: torch.device | str) -> Ensemble:
    """The members of ``points``, which must share all but gamma, learning rate, beta and weights of the contrast.

    These weights are all zero or all positive: the two have different steps, and a member must not depend on others.
    """
    first = points[0]
    if len({point.model.ima_weight > 0 for point in points}) > 1:
        raise ValueError("members with and without a weight of the contrast train in two ensembles")
    worlds = first.members.data.seed or (first.data.seed,)
    members = tuple(
        Member(
            i,
            seed,
            world,
            math.nan if point.model.is_flow else point.model.gamma,
            point.training.learning_rate,
            point.model.beta,
            point.model.ima_weight,
        )
        for i, point in enumerate(points)
        for world in worlds
        for seed in point.members.seed
    )
    return Ensemble(vae.build(first, device), members, worlds, first, vae.torch_dtype(first), torch.device(device))


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


def initial_state(ensemble: Ensemble, start: Mapping[str, Tensor] | None = None) -> State:
    """Every member at its own random initial weights, or at those of ``start``, by name; at its own gamma."""
    layout, count, device = ensemble.model.layout, len(ensemble), ensemble.device
    weights = torch.stack([layout.initial(stream(member.seed, "init")) for member in ensemble.members])
    for name, weight in (start or {}).items():
        layout.views(weights)[name][:] = weight
    if vae.GAMMA in layout.shapes:
        gamma = torch.tensor([member.gamma for member in ensemble.members], dtype=torch.float64)
        layout.views(weights)[vae.GAMMA][:] = gamma.log()
    weights = weights.to(device, ensemble.dtype)
    best = {
        name: Best(
            torch.full((count,), -torch.inf if mode == "max" else torch.inf, dtype=torch.float64),
            torch.full((count,), -1, dtype=torch.int64),
            weights.clone(),
        )
        for name, mode in SELECTION.items()
        if name != "val/mcc" or ensemble.config.data.has_sources
    }
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
        best=best,
    )


def table(metrics: Mapping[str, Float[Tensor, " n"]]) -> dict[str, Any]:
    """Metrics as one tensor and their names: a file has a record, and reading it a price, per tensor."""
    return {"names": list(metrics), "values": torch.stack(list(metrics.values()))}


def columns(table: Mapping[str, Any]) -> dict[str, Float[Tensor, " n"]]:
    """Inverse of :func:`table`."""
    return dict(zip(table["names"], table["values"].unbind(), strict=True))


def to_plain(state: State) -> dict[str, Any]:
    """The state as tensors and plain containers, which ``torch.load(weights_only=True)`` reads."""
    return {
        **vars(state),
        "batches": [g.get_state() for g in state.batches],
        "noise": [g.get_state() for g in state.noise],
        "best": {name: vars(best) for name, best in state.best.items()},
        "history": _joined(state.history),
    }


def _joined(history: list[Validation]) -> dict[str, Any]:
    """The validations, which have the same metrics, one after the other."""
    if not history:
        return {}
    names, rows = history[0].values, torch.cat([validation.rows for validation in history])
    values = {name: torch.cat([validation.values[name] for validation in history]) for name in names}
    epochs, sizes = [validation.epoch for validation in history], [len(validation.rows) for validation in history]
    return {"epochs": epochs, "sizes": sizes, "rows": rows, **table(values)}


def _parted(joined: Mapping[str, Any]) -> list[Validation]:
    """Inverse of :func:`_joined`."""
    if not joined:
        return []
    rows, values = (joined[name].split(joined["sizes"], -1) for name in ("rows", "values"))
    tables = [columns({**joined, "values": part}) for part in values]
    return [Validation(*each) for each in zip(joined["epochs"], rows, tables, strict=True)]


def from_plain(plain: dict[str, Any], like: State, device: torch.device) -> State:
    """The state from the result of :func:`to_plain`, on ``device``.

    Raises ValueError, or what a wrong type raises, unless it is a state of the ensemble that begins with ``like``.
    """
    values, count, active = dict(plain), len(like.status), plain["active"].tolist()

    def check(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"{what}: not those of its settings")

    def tensor(value: Tensor, model: Tensor, what: str, rows: int = count) -> Tensor:
        check(value.shape == (rows, *model.shape[1:]) and value.dtype == model.dtype, what)
        check("weights" not in what or bool(value.isfinite().all()), f"{what} (NaN or infinite)")
        return value.to(model.device)

    check(active == sorted(set(active) & set(range(count))), "the active members")
    for name in ("batches", "noise"):
        check(len(plain[name]) == len(active), name)
        values[name] = [torch.Generator(device).set_state(state.cpu()) for state in plain[name]]
    for name in ACTIVE:
        if name not in ("batches", "noise"):
            values[name] = tensor(plain[name], getattr(like, name), name, len(active))
    values["frozen"] = tensor(plain["frozen"], like.frozen, "frozen weights")
    for name in ("epochs", "waited"):
        values[name] = tensor(plain[name], getattr(like, name), name)
    check(plain["best"].keys() == like.best.keys() and len(plain["status"]) == count, "the best states")
    values["best"] = {
        name: Best(**{part: tensor(plain["best"][name][part], model, part) for part, model in vars(best).items()})
        for name, best in like.best.items()
    }
    if not isinstance(plain["history"], dict):
        raise ValueError("an imavae 0.2 before its release wrote the history")
    values["history"] = _parted(plain["history"])
    for _, rows, _ in values["history"]:
        check({*rows.tolist()} <= set(range(count)), "the history's members")
    return State(**values)
