"""The pages on what was tracked, on this machine alone: MLflow's, and Optuna's dashboard. They don't call home."""

from __future__ import annotations

import importlib.util
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imavae.config.settings import Tracking
from imavae.errors import UserError, require
from imavae.tracking.page import opens
from imavae.tracking.server import QUIET, check_reachable, database_file, is_server, tracking_uri

HOST = "127.0.0.1"
START = 60.0  # seconds after which a page that does not answer is given up; it takes 5 to 10
STOP = 5.0  # seconds that the server gets to end by itself


@dataclass(frozen=True)
class Page:
    """A page's server: how it is started, and where it answers."""

    name: str
    make: str  # the command of the Makefile
    port: int
    command: list[str]
    environment: dict[str, str]
    health: str  # the path that answers when it is up
    opens: Callable[[str], str]  # from the address, once it answers, to the path to look at

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.port}"


def serve(output_dir: Path, port: int, uri: str | None = None) -> int:
    """Serve MLflow's page until Ctrl-C; its address is printed once it answers. Returns the exit code.

    Args:
        output_dir: where ``mlflow.db`` and ``mlartifacts/`` lie.
        port: of the loopback interface.
        uri: a tracking address; None: MLFLOW_TRACKING_URI, or else the output folder's database.

    Raises:
        UserError: the port is out of range or in use, or there is no database yet; nothing was started then.
    """
    address = tracking_uri(Tracking(uri=uri), output_dir)
    if is_server(address):
        print(f"the MLflow page is at {address} (open it there: a server that is tracked to shows it itself)")
        return 0
    database = database_file(address)
    if database is not None and not database.is_file():
        raise UserError(f"an MLflow database must exist to be shown, but {database} does not; run `make tune` first")
    check_reachable(address)
    output_dir = output_dir.resolve()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", address, "--registry-store-uri", address]
    command += ["--artifacts-destination", str(output_dir / "mlartifacts")]
    quiet = {**QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return _run(Page("MLflow page", "ui", port, command, quiet, "/health", opens), output_dir)


def serve_dashboard(output_dir: Path, port: int) -> int:
    """Serve Optuna's dashboard on ``optuna.db`` until Ctrl-C, as :func:`serve` does.

    Raises:
        UserError: the port is out of range or in use, there is no database yet, or the dashboard is not installed.
    """
    from imavae.search.samplers import DATABASE

    database = output_dir.resolve() / DATABASE
    if not database.is_file():
        raise UserError(f"an Optuna database must exist to be shown, but {database} does not; run `make tune` first")
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise UserError(
            "the package optuna-dashboard must be installed to show a study, but is not; say "
            "`pip install -e '.[dashboard]'`"
        )
    code = "from optuna_dashboard._cli import main; main()"  # what its script does, which may not be on the path
    command = [sys.executable, "-c", code, f"sqlite:///{database}", "--host", HOST, "--port", str(port)]
    command += ["--server", "wsgiref", "--quiet"]
    page = Page("Optuna dashboard", "dashboard", port, command, {}, "/api/meta", opens=lambda _: "/dashboard")
    return _run(page, output_dir)


def _run(page: Page, folder: Path) -> int:
    """Serve a page until Ctrl-C; return the exit code."""
    _check_port(page)
    for end in (signal.SIGINT, signal.SIGTERM):  # a shell makes its background jobs deaf to the first
        signal.signal(end, _interrupt)
    environment = os.environ | {"PYTHONWARNINGS": "ignore"} | page.environment
    with tempfile.TemporaryFile() as said:
        # A session of its own, so that the whole of it can be ended: a server may start its workers as children.
        server = subprocess.Popen(
            page.command, cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            code = _watch(server, page)
        except KeyboardInterrupt:
            return 0
        finally:
            _end(server)
        said.seek(0)
        sys.stderr.write(said.read().decode(errors="replace"))  # it has ended by itself: its own words say why
        return code


def _interrupt(_signal: int, _frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt


def _check_port(page: Page) -> None:
    require(0 < page.port < 65536, "0 < PORT < 65536", page.port, f"say `make {page.make} PORT=5000`")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a page that has just ended holds it no more
        try:
            probe.bind((HOST, page.port))
        except OSError as error:
            reason = f"it can't be opened ({error.strerror})"
            raise UserError(
                f"port {page.port} must be free, but {reason}; choose another, `make {page.make} PORT={page.port + 1}`"
            ) from None


def _watch(server: subprocess.Popen[bytes], page: Page) -> int:
    """Print the page's address when it answers, then wait for the server's end."""
    print(f"starting the {page.name} ...", flush=True)
    give_up = time.monotonic() + START
    while server.poll() is None and not _answers(f"{page.address}{page.health}"):
        if time.monotonic() > give_up:
            raise UserError(
                f"the {page.name} must answer within {START:g} s, but {page.address} does not; "
                f"try `make {page.make}` again"
            )
        time.sleep(0.2)
    if server.poll() is None:
        print(f"the {page.name} is at {page.address}{page.opens(page.address)} (Ctrl-C ends it)", flush=True)
    return server.wait()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()  # noqa: S310 - the scheme is ours
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
