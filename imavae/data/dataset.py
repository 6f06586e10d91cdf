"""Observations of one synthetic world, in three splits that rest on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from imavae.config import Data
from imavae.data import sources
from imavae.data.mixing import Mixing, build
from imavae.streams import stream


@dataclass(frozen=True)
class Split:
    """Sources and the observations made of them, row by row."""

    sources: Float[Tensor, "n d"]
    observations: Float[Tensor, "n d"]
    support: tuple[float, float]  # the interval that each source lives on

    def __len__(self) -> int:
        return len(self.observations)


@dataclass(frozen=True)
class Dataset:
    """One world: the exact mixing (its shift centres the observations) and the splits made with it."""

    mixing: Mixing
    train: Split
    val: Split
    test: Split


def make(data: Data, dtype: torch.dtype, device: torch.device | str = "cpu") -> Dataset:
    """Draw the world of ``data.seed`` in float64, and put its splits onto ``device`` as ``dtype``."""
    s = sources.sample(data.source, data.n_obs, data.dim, stream(data.seed, "sources"))
    mixing = build(data)
    mixing = mixing.shifted(-mixing.forward(s).mean(0))
    x = mixing.forward(s)
    order = torch.randperm(data.n_obs, generator=stream(data.seed, "split"))
    train, val, test = (
        Split(s[rows].to(device, dtype), x[rows].to(device, dtype), sources.support(data.source))
        for rows in torch.split(order, list(data.sizes))
    )
    return Dataset(mixing, train, val, test)
