"""A tracking server that is absent for a while: training goes on, and everything is logged later, once."""

from __future__ import annotations

import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from imavae.tracking.server import MLFLOW_ENVIRONMENT, open_client, request
from tests.killing import GRID, STARTED, checkpoints, faults, studies, tune, until

pytestmark = pytest.mark.slow

MOMENTS = random.Random(os.environ.get("IMAVAE_KILL_SEED", "1"))  # noqa: S311
AWAY = float(os.environ.get("IMAVAE_AWAY_SECONDS", "4"))  # at least so long


class Server:
    """MLflow's own server, on a database and a folder of artifacts that outlive it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self._folder / "mlartifacts")]
        environment = {**os.environ, **MLFLOW_ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.txt").open("ab") as said:
            self._process = subprocess.Popen(
                command, env=environment, stdout=said, stderr=said, cwd=self._folder, start_new_session=True
            )
        until(self._answers)

    def kill(self) -> None:
        """Kill it and its workers, whatever they are at."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _answers(self) -> bool:
        try:
            request(f"{self.uri}/health")
        except OSError:
            return False
        return True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that answers; nothing is left of it, or of a study, whatever becomes of the test."""
    server = Server(tmp_path)
    server.start()
    yield server
    while STARTED:
        STARTED.pop().kill()
    server.kill()


def artifacts(folder: Path) -> dict[str, list[bytes]]:
    """The contents of all files that a server holds, by their names."""
    found: dict[str, list[bytes]] = {}
    for path in (folder / "mlartifacts").rglob("*"):
        if path.is_file():
            found.setdefault(path.name, []).append(path.read_bytes())
    return found


def test_a_study_outlives_an_absence_of_its_tracking_server(server: Server, tmp_path: Path) -> None:
    run = tune(tmp_path, *GRID, "training.max_epochs=20", f"tracking.uri={server.uri}")
    until(lambda: checkpoints(tmp_path))
    time.sleep(MOMENTS.random())
    server.kill()
    gone = time.monotonic()
    until(lambda: list(studies(tmp_path)[0].glob("records/trial-*.json")))  # a trial comes to its end meanwhile
    time.sleep(max(0.0, AWAY - (time.monotonic() - gone)))
    assert run.process.poll() is None, run.text()
    server.start()
    assert run.wait() == 0, run.text()
    assert faults(tmp_path) == []
    (study,) = studies(tmp_path)
    files = [study / name for name in ("members.csv", "history.csv", "selection.csv", "champion.pt")]
    files += [*study.glob("checkpoints/winner-*.pt"), *study.glob("figures/*")]
    stored = artifacts(tmp_path)
    assert len(stored.pop("report.html")) == 1  # it says when it was written
    written = {name: len(stored.pop(name)) for name in ("config.yaml", "search_space.yaml", "MLmodel")}
    assert written == {"config.yaml": 1, "search_space.yaml": 1, "MLmodel": 3}
    assert stored == {path.name: [path.read_bytes()] for path in files}


def test_a_database_whose_making_is_killed_is_made_again(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    aside, uri = tmp_path / ".mlflow.db.new/new.db", f"sqlite:///{database}"
    make = [sys.executable, "-c", f"from imavae.tracking.server import open_client; open_client({uri!r})"]
    process = subprocess.Popen(make, cwd=Path(__file__).parent.parent)
    until(lambda: aside.exists() and has_table(aside, "experiments"), 120)
    process.kill()
    process.wait()
    assert not database.exists()
    client = open_client(uri)
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]
    assert not aside.parent.exists()


def has_table(database: Path, name: str) -> bool:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=1)) as connection:
        try:
            return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [name]).fetchone())
        except sqlite3.OperationalError:  # it is being written, or has no content yet
            return False
