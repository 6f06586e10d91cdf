"""The Ray that a study runs on: this machine's, or a running cluster; and what a trial takes of it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from imavae.config.settings import Cluster
from imavae.errors import UserError, require

QUIET = {  # what Ray would otherwise print, send, probe or write outside the study's folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt is raised, like everywhere else
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # the study has a state of its own; Ray's grows with the trials
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@contextmanager
def running(cluster: Cluster) -> Iterator[int]:
    """Start Ray on this machine, or join the cluster at its address, without output; give the trials that fit at once.

    Ray is left as it was found: what is started here is shut down, whatever happens.

    Raises:
        UserError: no cluster answers at the address, or not one trial fits.
    """
    os.environ.update(QUIET)
    warnings.filterwarnings("ignore", module=r"ray\.|optuna\.")
    import ray

    found = ray.is_initialized()
    try:
        if not found:
            with _signals_kept():
                _start(cluster)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        yield slots(cluster, nodes)
    finally:
        if not found:
            ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, to exit with 15."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _start(cluster: Cluster) -> None:
    import ray

    quiet: dict[str, Any] = {
        "logging_level": logging.CRITICAL,
        "log_to_driver": False,
    }  # failures are told by the study
    if cluster.name == "ray":
        try:
            host, colon, port = (cluster.address or "").rpartition(":")
            if colon and port.isdigit():  # Ray itself tries for minutes
                socket.create_connection((host, int(port)), timeout=4).close()
            ray.init(address=cluster.address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"`cluster.address is a running Ray cluster` must hold, but got {cluster.address!r} ({error}); "
                "start one with `ray start --head`, give this machine its token (docs/cluster.md), or say cluster=local"
            ) from None
        _check_answers()
        return
    # One thread per trial, unless training.threads says otherwise: more only get in each other's way on small models.
    workers = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    cpus = cluster.cpus or len(os.sched_getaffinity(0))
    # "local": one that someone has started on this machine, or RAY_ADDRESS, must not be joined
    ray.init("local", num_cpus=cpus, num_gpus=cluster.gpus, include_dashboard=False, runtime_env=workers, **quiet)
    logging.getLogger("ray").setLevel(logging.CRITICAL)


class _Probe:
    """What a worker holds that has nothing to do."""

    def answer(self) -> None:
        """Return."""


def _check_answers() -> None:
    """Raise UserError unless the cluster runs a worker for this driver: without the right token it accepts the driver,
    but then takes each of its workers for abandoned.
    """
    import ray
    from ray.exceptions import RayActorError

    probe: Any = ray.remote(num_cpus=0)(_Probe).remote()
    try:
        ray.get(probe.answer.remote())
    except RayActorError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"`cluster.address is a cluster that runs workers` must hold, but they end at once ({reason}); give the "
            "cluster and this machine the same RAY_AUTH_MODE and token (docs/cluster.md)"
        ) from None


def expected_slots(cluster: Cluster) -> int:
    """Trials that will run at once: counted on this machine, or asked of the running cluster."""
    if cluster.name == "ray":
        with running(cluster) as found:
            return found
    import torch

    cpus = cluster.cpus or len(os.sched_getaffinity(0))
    gpus = torch.cuda.device_count() if cluster.gpus is None else cluster.gpus
    return slots(cluster, [{"CPU": float(cpus), "GPU": float(gpus)}])


def resources_of(cluster: Cluster) -> dict[str, float]:
    """What each trial asks Ray for; a worker sees just the GPUs that it was given a share of."""
    return {"cpu": cluster.cpus_per_trial, "gpu": cluster.gpus_per_trial, **(cluster.resources or {})}


def slots(cluster: Cluster, nodes: Sequence[Mapping[str, float]]) -> int:
    """Trials that can run at once on nodes with these resources, each of them whole on one node.

    Raises:
        UserError: not one trial fits.
    """
    fitting = sum(_fitting(cluster, node) for node in nodes)
    asked = {"CPU": cluster.cpus_per_trial, "GPU": cluster.gpus_per_trial, **(cluster.resources or {})}
    there = [{name: node.get(name, 0.0) for name in asked} for node in nodes]
    require(
        fitting >= 1,
        "one trial fits into the cluster",
        f"{_text(asked)} for a trial, and nodes of {' | '.join(map(_text, there))}",
        "lower cluster.cpus_per_trial, cluster.gpus_per_trial or cluster.resources",
    )
    return fitting


def _fitting(cluster: Cluster, node: Mapping[str, float]) -> int:
    """Trials that can run at once on one node."""
    asked = {"CPU": cluster.cpus_per_trial, **(cluster.resources or {})}
    fits = [_whole(node.get(name, 0.0) / amount) for name, amount in asked.items()]
    share, gpus = cluster.gpus_per_trial, node.get("GPU", 0.0)
    if share > 1:
        fits.append(_whole(gpus / share))
    elif share:
        fits.append(_whole(gpus) * _whole(1 / share))  # a share is of one GPU: what two have left over makes none
    return min(fits)


def _whole(number: float) -> int:
    return int(number + 1e-9)  # 1 / 0.1 or 0.3 / 0.1 may fall short of a whole number


def _text(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
