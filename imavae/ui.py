"""The MLflow page of what was tracked, on this machine alone: one worker, no job processes, no calls home."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
import urllib.error
import urllib.request
from pathlib import Path

from imavae.addresses import QUIET, check_reachable, database_file, is_server, tracking_uri
from imavae.config import Tracking
from imavae.errors import UserError, require

HOST = "127.0.0.1"
OPENS = "/#/experiments?workflowType=machine_learning"  # the page's own start is about language models
START = 60.0  # seconds after which a page that does not answer is given up; it takes 5 to 10
STOP = 5.0  # seconds that the server gets to end by itself


def serve(output_dir: Path, port: int, uri: str | None = None) -> int:
    """Serve the page until Ctrl-C; its address is printed once it answers. Returns the exit code.

    Args:
        output_dir: where ``mlflow.db`` and ``mlartifacts/`` lie.
        port: of the loopback interface.
        uri: a tracking address; None: MLFLOW_TRACKING_URI, or else the output folder's database.

    Raises:
        UserError: the port is out of range or in use, or there is no database yet; nothing was started then.
    """
    address = tracking_uri(Tracking(uri=uri), output_dir)
    if is_server(address):
        print(f"the MLflow page is at {address}: the tracking address is a server's, which shows it itself")
        return 0
    database = database_file(address)
    if database is not None and not database.is_file():
        raise UserError(f"an MLflow database must exist to be shown, but {database} does not; run `make tune` first")
    check_reachable(address)
    _check_port(port)
    output_dir = output_dir.resolve()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", address, "--registry-store-uri", address]
    command += ["--artifacts-destination", str(output_dir / "mlartifacts")]
    quiet = {**QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    for end in (signal.SIGINT, signal.SIGTERM):  # a shell makes its background jobs deaf to the first
        signal.signal(end, _interrupt)
    with tempfile.TemporaryFile() as said:
        # A session of its own, so that the whole of it can be ended: MLflow starts its worker as a child.
        server = subprocess.Popen(
            command, cwd=output_dir, env=os.environ | quiet, stdout=said, stderr=said, start_new_session=True
        )
        try:
            code = _watch(server, f"http://{HOST}:{port}")
        except KeyboardInterrupt:
            return 0
        finally:
            _end(server)
        said.seek(0)
        sys.stderr.write(said.read().decode(errors="replace"))  # it has ended by itself: its own words say why
        return code


def _interrupt(_signal: int, _frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt


def _check_port(port: int) -> None:
    require(0 < port < 65536, "0 < PORT < 65536", port, "say `make ui PORT=5000`")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a page that has just ended holds it no more
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = f"it can't be opened ({error.strerror})"
            raise UserError(
                f"port {port} must be free, but {reason}; choose another, `make ui PORT={port + 1}`"
            ) from None


def _watch(server: subprocess.Popen[bytes], page: str) -> int:
    """Print the page's address when it answers, then wait for the server's end."""
    print("starting the MLflow page ...", flush=True)
    give_up = time.monotonic() + START
    while server.poll() is None and not _answers(page):
        if time.monotonic() > give_up:
            raise UserError(f"the MLflow page must answer within {START:g} s, but {page} does not; try `make ui` again")
        time.sleep(0.2)
    if server.poll() is None:
        print(f"the MLflow page is at {page}{OPENS} (Ctrl-C ends it)", flush=True)
    return server.wait()


def _answers(page: str) -> bool:
    try:
        urllib.request.urlopen(f"{page}/health", timeout=5).close()  # noqa: S310 - the scheme is ours
    except (urllib.error.URLError, OSError):
        return False
    return True


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and its children, kindly first."""
    for kill in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, kill)
            server.wait(STOP)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
