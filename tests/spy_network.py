"""Plugin for studies on a cluster: an MLP that records beside this file where its trials run.

A test copies it into a temporary folder. It watches Ray's workers, not the driver.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import ray
from ray import tune
from torch import Tensor

from imavae.config.settings import NETWORKS, Model, NetworkSettings
from imavae.model.networks import Network, Weights

HERE = Path(__file__).parent
STARTS = HERE / "starts.jsonl"  # a line for each start of a trial in a worker
TOGETHER = HERE / "together"  # holds a number n: the first n trials wait until all of them have started
DOOMED = HERE / "doomed"  # holds a node's id: its second trial stops there after some epochs ...
HELD = HERE / "held"  # ... and creates this file; trials on other nodes wait for it
BATCHES = 4 * 8  # of four epochs of 700 observations; each epoch ends in a checkpoint

_place: list[tuple[int, IO[str]]] = []  # of this worker, until it ends
_seen = {"batches": 0, "held": False, "waits": False}  # of the trial that runs here


@dataclass(frozen=True)
class Spied(Network):
    """An encoder or a decoder that may wait."""

    inner: Network
    watched: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inner network."""
        return self.inner.shapes

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """Output of the inner network."""
        if self.watched:
            _wait()
        return self.inner(weights, x)


@NETWORKS.register
@dataclass(frozen=True)
class SpiedNetwork(NetworkSettings):
    """Settings of model.name=spied."""

    name: str = "spied"

    def build(self, prefix: str, inputs: int, outputs: int, shape: tuple[int, int], model: Model) -> Spied:
        """An MLP, watched if it is a worker's encoder."""
        watched = prefix == "encoder" and ray.is_initialized() and bool(ray.get_runtime_context().get_actor_id())
        if watched:
            _start()
        return Spied(NETWORKS["mlp"]().build(prefix, inputs, outputs, shape, model), watched)


def starts() -> list[dict[str, object]]:
    """Of each start: trial, node, pool (the node's GPUs that it sees) and place in that pool.

    A place is the lowest number that no other living worker holds, so places count the concurrent workers.
    """
    return [json.loads(line) for line in STARTS.read_text().splitlines()] if STARTS.exists() else []


def _start() -> None:
    node = ray.get_runtime_context().get_node_id()
    pool = "-".join([node, *map(str, ray.get_gpu_ids())])
    for number in itertools.count() if not _place else ():
        lock = (HERE / f"{pool}.{number}").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        _place.append((number, lock))
        break
    trial = str(tune.get_context().get_trial_id())
    first, doomed = all(earlier["node"] != node for earlier in starts()), DOOMED.exists() and DOOMED.read_text()
    _seen.update(batches=0, held=doomed == node and not first, waits=doomed not in (False, node))
    line = {"trial": trial, "node": node, "pool": pool, "place": _place[0][0]}
    with STARTS.open("a") as notes:
        notes.write(json.dumps(line) + "\n")


def _wait() -> None:
    _seen["batches"] += 1
    while TOGETHER.exists() and len(starts()) < int(TOGETHER.read_text()):
        time.sleep(0.05)
    while _seen["waits"] and not HELD.exists():
        time.sleep(0.05)
    while _seen["held"] and _seen["batches"] > BATCHES:
        HELD.touch()
        time.sleep(0.05)
