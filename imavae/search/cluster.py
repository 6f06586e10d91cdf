"""Ray for a study: start it on this machine or join a cluster, and count the trials that run at once."""

from __future__ import annotations

import atexit
import errno
import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import joblib

from imavae.config.settings import Cluster
from imavae.errors import UserError, require

RAY_ENVIRONMENT = {  # keeps Ray from printing, sending statistics, probing the network, writing elsewhere and idling
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt raises, like everywhere else
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # a study keeps its own state; Ray's grows with the trials
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_preload_python_modules": "imavae.search.worker",  # which a worker of this machine imports while Ray starts
    "RAY_enable_worker_prestart": "0",  # no spare workers; there is one for each core from the start
}


# Methods of Ray's Node (no public part of Ray) that start what a local study does not use: the API server, for which
# Ray's start waits, the autoscaler's monitor and the monitor of workers' output. Each takes most of a second of a core.
UNUSED_SERVICES = ("start_api_server", "start_monitor", "start_log_monitor")


def available_cpus() -> int:
    """Cores that this process may use: CPU affinity and container limits count."""
    return int(joblib.cpu_count())


LOOPBACK = "127.0.0.1"
QUIET: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}  # the study reports failures
ERROR_LISTENER = "ray._private.worker.listen_error_messages"  # patched out: it prints Ray's logs
START_ATTEMPTS = 3
WATCH_PERIOD = 3.0  # seconds; the raylet of a joined cluster logs a line each time
UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)
KNOCK_TIMEOUT = 4.0  # seconds that one of its parts gets to accept a connection
LONGEST_END = 10.0  # seconds that a study without its Ray gets to end
LONGEST_SILENCE = {"raylet": 0.0, "gcs_server": 40.0}  # seconds; a cluster may restart its GCS, and Ray waits for 60
LONGEST_TEMPORARY = 20  # bytes; Ray adds up to 80 to the name of its folder
_TOKEN = secrets.token_hex(32)  # of the Rays that this process starts; never in a file
_silent: dict[str, float] = {}  # parts of a joined cluster that do not listen, and since when
_early = False  # Ray was started ahead of the study that will use it


def start(cluster: Cluster) -> bool:
    """Start Ray on this machine, or join the cluster at its address; return False if this process had done so before.

    Raises UserError if no cluster answers at the address.
    """
    os.environ.update(RAY_ENVIRONMENT)
    warnings.filterwarnings("ignore", module=r"ray\.|optuna\.")
    import ray

    if ray.is_initialized():
        return False
    before = signal.getsignal(signal.SIGTERM)
    try:
        _start(cluster)
    except BaseException:
        ray.shutdown()
        raise
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's handler exits with 15
    return True


def start_early(cluster: Cluster, modules: Sequence[str]) -> None:
    """Do :func:`start` ahead of :func:`running`, which then ends Ray as if it had started it.

    Meanwhile ``modules`` are imported in a thread: torch takes as long as Ray.
    """
    global _early
    os.environ.update(RAY_ENVIRONMENT)
    import_module("concurrent.futures.thread")  # by this thread: it registers a hook of forks, which Ray's start makes
    threading.Thread(target=lambda: [import_module(name) for name in modules]).start()
    _early = start(cluster)


@contextmanager
def running(cluster: Cluster) -> Iterator[int]:
    """Do :func:`start`; give the number of trials that run at once.

    Ray is shut down at the end if it was started here. Raises UserError if not one trial fits.
    """
    global _early
    import ray

    ours = start(cluster) or _early
    _early, ended = False, threading.Event()
    _silent.clear()
    threading.Thread(target=_watch, args=(ended,), daemon=True).start()
    try:
        nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        if cluster.name == "local" and cluster.cpus is not None:
            nodes = [{**node, "CPU": min(node.get("CPU", 0.0), float(cluster.cpus))} for node in nodes]
        yield slots(cluster, nodes)
    finally:
        try:
            if ours:
                ray.shutdown()
        finally:
            ended.set()
        if colorama := sys.modules.get("colorama.initialise"):  # Ray's copy
            atexit.unregister(colorama.reset_all)  # else an escape code is printed at exit, also under NO_COLOR


def lost() -> UserError | None:
    """The message about a part of Ray that has ended, here or in a joined cluster; None if none has."""
    from ray._private import worker

    node: Any = worker._global_node
    ended = [name for name, _ in node.dead_processes()] if node else []
    silent = [name for name, since in list(_silent.items()) if time.monotonic() - since >= LONGEST_SILENCE[name]]
    parts = [name for name in LONGEST_SILENCE if name in {*ended, *silent}]
    if not parts:
        return None
    remedy = "restart the cluster" if silent else "free some memory, if it was short"
    return UserError(
        f"`Ray's processes run as long as the study` must hold, but got the end or silence of {' and '.join(parts)}; "
        f"{remedy}, and go on by resume=true: finished trials are kept"
    )


def _watch(ended: threading.Event) -> None:
    """End this process if Ray has lost a part and waits for it: it would do so itself, after a minute and with logs."""
    while not ended.wait(WATCH_PERIOD):
        _knock()
        if lost() and not ended.wait(LONGEST_END) and (error := lost()):
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
            os._exit(2)


def _knock() -> None:
    """Note which parts of a joined cluster no longer listen; those started here are this process's children."""
    from ray._private import worker

    node: Any = worker._global_node
    if node is None or node.all_processes:
        _silent.clear()
        return
    host, _, port = node.gcs_address.rpartition(":")
    parts: dict[str, tuple[Any, Any]] = {
        "raylet": (socket.AF_UNIX, node.raylet_socket_name),
        "gcs_server": (socket.AF_INET6 if ":" in host else socket.AF_INET, (host.strip("[]"), int(port))),
    }
    for name, (family, address) in parts.items():
        begun = time.monotonic()
        try:
            with socket.socket(family) as connection:
                connection.settimeout(KNOCK_TIMEOUT)
                connection.connect(address)
            _silent.pop(name, None)
        except OSError as error:
            # Without a refusal, the host of the GCS may be gone; a raylet is on this machine, and only busy.
            vanished = isinstance(error, TimeoutError) or error.errno in UNREACHABLE
            if isinstance(error, ConnectionRefusedError) or (name == "gcs_server" and vanished):
                _silent.setdefault(name, begun)


def expected_slots(cluster: Cluster) -> int:
    """Trials that will run at once: counted on this machine, or asked of the running cluster."""
    if cluster.name == "ray":
        with running(cluster) as found:
            return found
    cpus, gpus = cluster.cpus or available_cpus(), cluster.gpus or 0
    if cluster.gpus is None and cluster.gpus_per_trial:
        import torch

        gpus = torch.cuda.device_count()
    return slots(cluster, [{"CPU": float(cpus), "GPU": float(gpus)}])


def slots(cluster: Cluster, nodes: Sequence[dict[str, float]]) -> int:
    """Trials that can run at once on nodes with these resources; a trial never spans two nodes.

    Raises UserError if not one trial fits.
    """

    def whole(number: float) -> int:
        return int(number + 1e-9)  # 1 / 0.1 or 0.3 / 0.1 may fall short of a whole number

    asked = {"CPU": cluster.cpus_per_trial, "GPU": cluster.gpus_per_trial, **(cluster.resources or {})}
    there = [{name: node.get(name, 0.0) for name in asked} for node in nodes]
    share, fitting = cluster.gpus_per_trial, 0
    for node in there:
        fits = {name: whole(node[name] / amount) for name, amount in asked.items() if amount}
        if 0 < share < 1:  # of one GPU: leftovers of two make none
            fits["GPU"] = whole(node["GPU"]) * whole(1 / share)
        fitting += min(fits.values())
    needs, *offers = [", ".join(f"{amount:g} {name}" for name, amount in node.items()) for node in (asked, *there)]
    require(
        fitting >= 1,
        "one trial fits into the cluster",
        f"{needs} for a trial, and nodes of {' | '.join(offers)}",
        "lower cluster.cpus_per_trial, cluster.gpus_per_trial or cluster.resources",
    )
    return fitting


def _start(cluster: Cluster) -> None:
    import ray

    if cluster.name == "ray":
        _forget_token()
        try:
            host, colon, port = (cluster.address or "").rpartition(":")
            if colon and port.isdigit():  # Ray itself tries for minutes
                socket.create_connection((host, int(port)), timeout=4).close()
            with patch(ERROR_LISTENER):
                ray.init(address=cluster.address, **QUIET)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"`cluster.address is a running Ray cluster` must hold, but got {cluster.address!r} ({error}); "
                "start one with `ray start --head`, give this machine its token (docs/cluster.md), or set cluster=local"
            ) from None
        _check_workers()
        return
    for left in reversed(range(START_ATTEMPTS)):
        try:
            _start_here(cluster)
            break
        except Exception as error:  # of any class: the machine is busy, and a part of Ray was not ready in time
            ray.shutdown()
            reason, fix = str(error).strip().split("\n")[0], "try again when the machine is less busy"
            require(left > 0, f"Ray starts in {START_ATTEMPTS} attempts", reason, fix)


def _start_here(cluster: Cluster) -> None:
    import ray
    from ray._private.node import Node

    cpus, folder = cluster.cpus or available_cpus(), _private_folder()
    # One torch thread per trial: small models gain nothing from more. The compiled step takes the cores that are idle.
    threads = {"OMP_NUM_THREADS": "1", "IMAVAE_STEP_THREADS": str(cpus)}
    with ExitStack() as stack:
        stack.enter_context(_environment(threads | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}))
        _forget_token()
        stack.enter_context(patch(ERROR_LISTENER))
        stack.enter_context(patch("ray._private.services.resolve_ip_for_localhost", lambda host: host))
        for name in UNUSED_SERVICES:
            if hasattr(Node, name):
                stack.enter_context(patch.object(Node, name))
        # "local": never join a cluster that happens to run on this machine or that RAY_ADDRESS names
        ray.init(
            "local",
            num_cpus=cpus,
            num_gpus=cluster.gpus,
            include_dashboard=False,
            _node_ip_address=LOOPBACK,
            _temp_dir=folder,
            **QUIET,
        )
    logging.getLogger("ray").setLevel(logging.CRITICAL)


def _forget_token() -> None:
    """Let Ray read the mode and the token from the environment again: this process may have used another cluster."""
    raylet: Any = import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _private_folder() -> str:
    """Make a folder for Ray that only this user can enter, removed at the end of the process.

    Those that killed processes have left, whose locks ended with them, are removed, too. Ray's sockets lie in it, and
    the address of a socket has 107 bytes at most.
    """
    parent = tempfile.gettempdir()
    parent = parent if len(os.fsencode(parent)) <= LONGEST_TEMPORARY else "/tmp"  # noqa: S108
    for abandoned in Path(parent).glob("imavae.????????"):
        with suppress(OSError):
            if os.listdir(abandoned) == ["ray"]:  # one of ours
                _lock(abandoned)
                shutil.rmtree(abandoned)
    folder = tempfile.mkdtemp(prefix="imavae.", dir=parent)
    _lock(Path(folder), least_age=0.0)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return f"{folder}/ray"  # which Ray opens to everybody


def _lock(folder: Path, least_age: float = 60.0) -> None:
    """Lock a folder of this user until the end of the process. OSError: it is another's, too new, or locked."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    status = os.fstat(descriptor)
    try:
        if status.st_uid != os.getuid() or time.time() - status.st_mtime < least_age:
            raise PermissionError
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes that start in the block; those that threads set meanwhile stay."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Probe:
    """Actor that does nothing."""


def _check_workers() -> None:
    import ray
    from ray.exceptions import RayActorError

    probe: Any = ray.remote(num_cpus=0)(_Probe).remote()
    try:  # a cluster accepts a driver with the wrong token, but then ends each of its workers at once
        ray.get(probe.__ray_ready__.remote())
    except RayActorError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"`cluster.address is a cluster that runs workers` must hold, but they end at once ({reason}); give the "
            "cluster and this machine the same RAY_AUTH_MODE and token (docs/cluster.md)"
        ) from None
