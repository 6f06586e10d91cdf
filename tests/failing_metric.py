"""Plugin whose metric fails for some gammas in Ray's workers: it raises, its process dies, or it hangs.

A test copies it into a temporary folder. It creates the file ``hangs`` beside it before it hangs.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import ray
import torch

from imavae.metrics.forward import Evaluation
from imavae.metrics.glossary import Metric

RAISES, DIES, HANGS = 20.0, 30.0, 40.0  # gammas


@Metric("none", "0", curve="first")
def failing(at: Evaluation) -> torch.Tensor:
    """Zero."""
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
        gamma = at.ensemble.members[0].gamma
        if gamma == RAISES:
            raise RuntimeError("no such number")
        if gamma == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        if gamma == HANGS:
            Path(__file__).with_name("hangs").touch()
            time.sleep(3600)
    return torch.zeros(len(at.locations))
