"""Estimate of an unknown mixing whose sources are known: g = argmin E‖g(s) − x‖², an MLP from sources to observations.

A world is fitted once, on the first rows of its training split, with its own random numbers, and cached as the maps of
:mod:`imavae.metrics.linear` are. The weights that are best on the validation split are kept. Where they explain too
little there, g is no estimate of the mixing, and its contrast says nothing.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from imavae.data.dataset import Split
from imavae.metrics import identifiability, ima
from imavae.metrics.linear import ROWS, kept
from imavae.model.networks import MLP, Layout
from imavae.rng import stream

WIDTH, STEPS, BATCH, RATE, CHECKED = 64, 2000, 256, 1e-2, 50  # of the MLP, of Adam, and steps between two validations
SUFFICIENT = 0.9  # R² on the validation split
BLOCK = 2**22  # numbers of Jacobians at once

Fits = Float64[Tensor, "world p1"]  # weights of g, and its R² on the validation split


class Estimate(NamedTuple):
    """What g says of a world: numbers, or tensors (member,)."""

    cima: Any  # mean local contrast in nats; NaN for an insufficient fit
    r2: Any  # on the validation split, averaged over the observed numbers, each clamped to [0, 1]


def fits(train: Split, val: Split, folder: Path) -> Fits:
    """The fit of each world, read from ``folder`` or made."""
    found = []
    for world in range(len(train.sources)):
        pairs = [(one.sources[world, :ROWS].T.cpu(), one.observations[world, :ROWS].T.cpu()) for one in (train, val)]
        parts = [part.contiguous() for pair in pairs for part in pair]
        found.append(kept("mixing", folder, parts, functools.partial(_fit, *(part.double() for part in parts))))
    return torch.stack(found)


def contrast(fit: Float64[Tensor, " p1"], split: Split, world: int) -> Estimate:
    """Mean contrast of one world's g at the sources of a split."""
    s, observed = split.sources[world].T.cpu().double(), split.observations.shape[2]
    net, r2 = _network(len(s), observed), float(fit[-1])
    if r2 < SUFFICIENT:
        return Estimate(math.nan, r2)
    weights, values, full = Layout(net.shapes).views(fit[None, :-1]), list[Tensor](), list[Tensor]()
    for part in torch.split(s, max(1, BLOCK // (len(s) * observed)), 1):
        at = ima.contrast(net.jacobian(weights, part[None])[1])
        values.append(at.values)
        full.append(at.full)
    return Estimate(float(ima.mean_where(torch.cat(values, 1), torch.cat(full, 1))), r2)


def _network(sources: int, observed: int) -> MLP:
    return MLP("g", (sources, WIDTH, WIDTH, observed), "silu")


def _fit(
    s: Float64[Tensor, "d n"], x: Float64[Tensor, "o n"], s_val: Float64[Tensor, "d m"], x_val: Float64[Tensor, "o m"]
) -> NDArray[np.float64]:
    """Weights and R²: Adam with a rate that falls to 0, on standardised observations; sources are standardised."""
    mean, std = x.mean(1, keepdim=True), x.std(1, correction=0, keepdim=True)
    std = torch.where(std > 0, std, 1)
    x, expected, generator = (x - mean) / std, (x_val - mean) / std, stream(0, "batches")
    net = _network(len(s), len(x))
    layout, least = Layout(net.shapes), math.inf
    flat = layout.initial(stream(0, "init"))[None].requires_grad_()
    best, adam = flat.detach().clone(), torch.optim.Adam([flat], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    for step in range(1, STEPS + 1):
        rows = torch.randint(s.shape[1], (BATCH,), generator=generator)
        adam.zero_grad()
        with torch.enable_grad():
            (net(layout.views(flat), s[None, :, rows]) - x[None, :, rows]).square().mean().backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
        if step % CHECKED == 0:
            with torch.no_grad():
                error = float((net(layout.views(flat), s_val[None]) - expected).square().mean())
            if error < least:
                least, best = error, flat.detach().clone()
    r2 = identifiability.explained_variance(expected, net(layout.views(best), s_val[None])[0]).mean()
    last = layout.views(best)
    last[f"g.{net.n_layers - 1}.weight"] *= std
    last[f"g.{net.n_layers - 1}.bias"].mul_(std[:, 0]).add_(mean[:, 0])
    return np.append(best[0].numpy(), float(r2))
