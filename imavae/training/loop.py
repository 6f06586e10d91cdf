"""The training loop: epochs, validations, early stopping and the two best states of each member."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imavae.config.settings import Training
from imavae.data.dataset import Split
from imavae.training.ensemble import ACTIVE, SELECTION, Ensemble, State, Validation
from imavae.training.step import train_epoch

Validate = Callable[[Float[Tensor, "active parameter"], Int[Tensor, " active"]], dict[str, Float[Tensor, " active"]]]


class Progress(NamedTuple):
    """Report of one epoch."""

    epoch: int
    active: int  # members still training after it
    member_steps: int
    train_seconds: float
    validate_seconds: float
    validated: bool  # True: state.history has a new entry


def train(ensemble: Ensemble, state: State, data: Split, training: Training, validate: Validate) -> Iterator[Progress]:
    """Train ``state`` in place on ``data`` until every member has stopped, and yield after each epoch.

    ``validate(weights, rows)`` returns the validation metrics (``val/...``) of the members in ``rows``. A member stops
    after ``training.patience`` validations without a lower val/neg_elbo, or when it diverges. After any yield,
    ``state`` can be saved; training that continues from it gives the same numbers.
    """
    while len(state.active) and state.epoch < training.max_epochs:
        start = time.perf_counter()
        member_steps = len(state.active) * -(-len(data) // training.batch_size)
        train_epoch(ensemble, state, data)
        last = state.epoch == training.max_epochs
        if not bool(state.finite.all()):  # reading the mask waits for the device: once an epoch, not once a step
            state.epochs[state.active.cpu()] = state.epoch
            freeze(state, ~state.finite, "diverged")
        due = len(state.active) > 0 and (last or state.epoch % training.validate_every == 0)
        trained = time.perf_counter()
        if due:
            state.epochs[state.active.cpu()] = state.epoch
            values = validate(state.weights, state.active)
            state.history.append(Validation(state.epoch, state.active.cpu(), values))
            _update_best(state, values, training.settled)
            freeze(state, ~torch.isfinite(values["val/neg_elbo"]), "diverged")
            freeze(state, state.waited[state.active.cpu()] >= training.patience, "stopped")
            freeze(state, torch.full_like(state.active, last, dtype=torch.bool), "finished")
        validated = time.perf_counter()
        yield Progress(state.epoch, len(state.active), member_steps, trained - start, validated - trained, due)


def _update_best(state: State, values: dict[str, Tensor], settled: int) -> None:
    """Keep better states. Those before the epoch ``settled`` had another objective: the next one replaces them."""
    active = state.active.cpu()  # weights rest on the device, values and counts on the CPU
    for name, best in state.best.items():
        value = values[name]
        better = value > best.value[active] if SELECTION[name] == "max" else value < best.value[active]
        better |= (best.epoch[active] < settled) & value.isfinite()
        rows = active[better]
        if name == "val/neg_elbo":
            state.waited[active] += 1
            state.waited[rows] = 0
        best.value[rows], best.epoch[rows] = value[better], state.epoch
        best.weights[rows.to(best.weights.device)] = state.weights[better.to(state.weights.device)]


def freeze(state: State, leaving: Tensor, status: str) -> None:
    """End the training of the active members in the mask ``leaving``, (active,), and remove their rows from the state.

    It may be called between two epochs: :func:`train` continues with the remaining members.
    """
    if not bool(leaving.any()):
        return
    leaving = leaving.to(state.active.device)
    rows = state.active[leaving]
    state.frozen[rows] = state.weights[leaving]
    for row in rows.tolist():
        state.status[row] = status
    kept = (~leaving).nonzero()[:, 0]
    for name in ACTIVE:
        values = getattr(state, name)
        rest = [values[i] for i in kept.tolist()] if isinstance(values, list) else values[kept].contiguous()
        setattr(state, name, rest)
