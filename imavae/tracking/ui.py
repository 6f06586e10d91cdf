"""Local servers of MLflow's page and Optuna's dashboard. They make no calls home."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from imavae.config.settings import Tracking
from imavae.errors import UserError, require, without_password
from imavae.tracking.mlflow import first_page
from imavae.tracking.server import MLFLOW_ENVIRONMENT, database_file, is_server, request, sqlite_uri, tracking_uri

HOST = "127.0.0.1"
LOCAL_NAMES = (HOST, "localhost", "[::1]")
OPTUNA_DATABASE = "optuna.db"  # in the output folder
START_TIMEOUT = 60.0  # seconds in which a page must answer; it takes 5 to 10
STOP_TIMEOUT = 5.0  # seconds until a server is killed


def serve(output_dir: Path, port: int, uri: str | None = None) -> int:
    """Serve MLflow's page until Ctrl-C, print its address once it answers, and return the exit code.

    The tracking address is ``uri``, else MLFLOW_TRACKING_URI, else the database in the output folder.

    Raises:
        UserError: the port is out of range or in use, or there is no database that answers.
    """
    address = tracking_uri(Tracking(uri=uri), output_dir)
    if is_server(address):
        print(f"the MLflow page is at {without_password(address)} (open it there: the tracking server shows it)")
        return 0
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--backend-store-uri", address, "--registry-store-uri", address]
    command += ["--artifacts-destination", str(output_dir.resolve() / "mlartifacts")]
    return _serve("MLflow page", command, port, database_file(address), "/health", lambda: first_page(address))


def serve_dashboard(output_dir: Path, port: int) -> int:
    """Serve Optuna's dashboard on ``optuna.db`` until Ctrl-C, as :func:`serve` does.

    Raises:
        UserError: the port is out of range or in use, there is no database, or the dashboard is not installed.
    """
    database = output_dir.resolve() / OPTUNA_DATABASE
    found = importlib.util.find_spec("optuna_dashboard")
    require(found is not None, "optuna-dashboard is installed", "none", "install it by `pip install -e '.[dashboard]'`")
    code = f"from imavae.tracking.ui import run_dashboard; run_dashboard({str(database)!r}, {port})"
    command = [sys.executable, "-c", code]
    return _serve("Optuna dashboard", command, port, database, "/api/meta", lambda: "/dashboard")


def run_dashboard(database: str, port: int) -> None:
    """Serve Optuna's dashboard in this process, for this machine's own pages only."""
    from optuna_dashboard import wsgi
    from optuna_dashboard._cli import run_wsgiref

    run_wsgiref(guarded(wsgi(sqlite_uri(Path(database)))), HOST, port, quiet=True)


def guarded(application: Any) -> Any:
    """A WSGI application that refuses requests of other pages and names: a page elsewhere could point its name here."""

    def answer(environ: dict[str, Any], start: Any) -> Any:
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        site = environ.get("HTTP_SEC_FETCH_SITE", "none")
        if name not in LOCAL_NAMES or origin not in (None, f"http://{host}") or site not in ("none", "same-origin"):
            start("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"only pages of this machine's loopback interface may ask\n"]
        return application(environ, start)

    return answer


def _serve(
    name: str, command: list[str], port: int, database: Path | None, health: str, first: Callable[[], str]
) -> int:
    """Run a server until Ctrl-C. Once its path ``health`` answers, print the address of its page ``first()``."""
    require(0 < port < 65536, "0 < PORT < 65536", port, "set another, such as PORT=5000")
    exists = database is None or database.is_file()
    require(exists, f"the database of the {name} exists", f"no {database}", "run `make tune` first")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that has just ended is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port {port} must be free, but is not ({error.strerror}); set PORT={port + 1}") from None
    for ending in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first
        signal.signal(ending, signal.default_int_handler)
    print(f"starting the {name} ...", flush=True)
    # Without job execution, MLflow's server starts in half the time.
    quiet = {"PYTHONWARNINGS": "ignore", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment = os.environ | MLFLOW_ENVIRONMENT | quiet
    with tempfile.TemporaryFile() as output:
        # In a session, so that the server and the workers that it starts can be ended together.
        command += ["--host", HOST, "--port", str(port)]
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            path, end = first(), time.monotonic() + START_TIMEOUT
            while server.poll() is None:
                with suppress(OSError):
                    request(f"http://{HOST}:{port}{health}")
                    print(f"the {name} is at http://{HOST}:{port}{path} (Ctrl-C ends it)", flush=True)
                    break
                in_time, rule = time.monotonic() < end, f"the {name} answers within {START_TIMEOUT:g} s"
                require(in_time, rule, "no answer", f"run the command again, perhaps with PORT={port + 1}")
                time.sleep(0.2)
            code = server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(STOP_TIMEOUT)
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
        output.seek(0)
        sys.stderr.write(output.read().decode(errors="replace"))  # the server has failed: its output says why
        return code
