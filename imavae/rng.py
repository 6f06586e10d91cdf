"""Random streams: one generator per (seed, purpose), so that no draw depends on who else draws, or when."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

Purpose = Literal[
    "mixing", "warp", "sources", "variances", "segments", "split", "init", "batches", "noise", "evaluation", "samples"
]


def stream(seed: int, purpose: Purpose, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on ``device``; the same (seed, purpose) always starts the same stream."""
    digest = hashlib.blake2b(f"{purpose}/{seed}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
