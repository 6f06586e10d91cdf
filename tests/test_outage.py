"""A tracking server that is absent for a while: training goes on, and everything is logged later, once."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from imavae import tune
from imavae.report.display import Observer
from imavae.tracking import server
from tests.helpers import free_port
from tests.killing import checkpoints, faults, studies, until

pytestmark = pytest.mark.slow


class Server:
    """MLflow's own server, on a database and a folder of artifacts that outlive it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Start the server; it answers after some seconds."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self._folder / "mlartifacts")]
        environment = {**os.environ, **server.MLFLOW_ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.txt").open("ab") as output:
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, cwd=self._folder, start_new_session=True
            )

    def kill(self) -> None:
        """Kill the server and its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def answers(self) -> bool:
        """Return whether the server is up."""
        with suppress(OSError):
            server.request(f"{self.uri}/health")
            return True
        return False


@pytest.fixture
def mlflow_server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    started = Server(tmp_path)
    request.getfixturevalue("shared_ray")  # starts meanwhile
    until(started.answers)
    yield started
    started.kill()


def test_a_study_outlives_an_absence_of_its_tracking_server(
    mlflow_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(server, "LONGEST_PAUSE", 0.5)

    def outage() -> None:
        until(lambda: checkpoints(tmp_path))
        mlflow_server.kill()
        until(lambda: list(studies(tmp_path)[0].glob("records/trial-*.json")))  # a trial ends without a server
        mlflow_server.start()

    with ThreadPoolExecutor(1) as pool:
        away = pool.submit(outage)
        tune(
            search={"model": {"gamma": {"type": "choice", "values": [10.0, 100.0]}}},
            sampler={"name": "grid"},
            data={"n_obs": 1000},
            members={"seed": [1, 2]},
            training={"max_epochs": 20, "validate_every": 1, "patience": 1000},
            cluster={"cpus": 2},
            tracking={"uri": mlflow_server.uri},
            output_dir=str(tmp_path),
        )
        away.result()
    assert faults(tmp_path) == []
    (study,) = studies(tmp_path)
    stored = [path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    tables = ("members.csv", "history.csv", "latents.csv", "selection.csv")
    files = [study / name for name in ("report.html", "champion.pt", *tables)]
    files += [*study.glob("checkpoints/winner-*.pt"), *study.glob("figures/*")]
    once = {path.name: 1 for path in files}
    assert Counter(path.name for path in stored) == once | {
        "members.csv": 3,  # of the study and of its two trials
        "config.yaml": 1,
        "search_space.yaml": 1,
        "MLmodel": 2,
    }
    contents = {(path.name, path.read_bytes()) for path in stored}
    assert [path.name for path in files if (path.name, path.read_bytes()) not in contents] == []


@pytest.mark.usefixtures("shared_ray")
def test_a_study_ends_untracked_when_the_absence_lasts_and_its_resume_tracks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LONGEST_OUTAGE", 0.0)
    settings: dict[str, Any] = {
        "search": {"model": {"gamma": {"type": "choice", "values": [10.0, 100.0]}}},
        "sampler": {"name": "grid"},
        "data": {"n_obs": 1000},
        "training": {"max_epochs": 4, "validate_every": 1},
        "cluster": {"cpus": 2},
        "output_dir": str(tmp_path),
    }
    tune(**settings)
    lines = []
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as other:

        class Locking(Observer):
            def notice(self, line: str) -> None:
                lines.append(line)
                if line == "training":  # the study has found the database writable
                    other.execute("BEGIN IMMEDIATE")

        results = tune(**settings, progress=Locking())
        other.rollback()
    assert [line for line in lines if "resume=true" in line and f"name={results.folder.name}" in line]
    assert len(faults(tmp_path)) > 0
    again = tune(**settings, name=results.folder.name, resume=True)
    assert faults(tmp_path) == []
    assert again.members.equals(results.members)
    assert again.champion_address.startswith("models:/")


def test_a_database_whose_creation_was_killed_is_created_anew(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    uri = f"sqlite:///{database}"
    code = f"from imavae.tracking.server import open_client; open_client({uri!r})"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, env=environment)
    until(lambda: any(has_table(path, "experiments") for path in tmp_path.glob("*/new.db")), 120)
    process.kill()
    process.wait()
    assert not database.exists()
    client = server.open_client(uri)
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]


def has_table(database: Path, name: str) -> bool:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=1)) as connection:
        try:
            return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [name]).fetchone())
        except sqlite3.OperationalError:  # it is being written, or has no content yet
            return False
