"""Laws of the MLflow page: mistakes are told before anything starts, and nothing of it outlives its end."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from imavae import tracking
from imavae.config import Tracking
from imavae.errors import UserError
from imavae.ui import serve


@pytest.fixture
def output_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_without_a_database_it_says_what_makes_one(output_dir: Path) -> None:
    with pytest.raises(UserError, match="make tune"):
        serve(output_dir, free_port())
    assert not list(output_dir.iterdir())


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_is_a_port_number(output_dir: Path, port: int) -> None:
    (output_dir / "mlflow.db").touch()
    with pytest.raises(UserError, match="PORT"):
        serve(output_dir, port)


def test_a_port_in_use_is_refused(output_dir: Path) -> None:
    (output_dir / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="must be free"):
            serve(output_dir, taken.getsockname()[1])


def test_a_servers_own_page_is_pointed_at(output_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(output_dir, free_port(), "http://server:5000") == 0
    assert "http://server:5000" in capsys.readouterr().out


def test_the_page_shows_what_was_tracked_and_ends_with_all_its_processes(output_dir: Path) -> None:
    tracking.open_tracker(Tracking(), output_dir, "paper/grid")
    port = free_port()
    code = "import pathlib, sys; from imavae import ui; sys.exit(ui.serve(pathlib.Path(sys.argv[1]), int(sys.argv[2])))"
    command = [sys.executable, "-c", code, str(output_dir), str(port)]
    page = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert page.stdout is not None
    try:
        lines = [page.stdout.readline() for _ in range(2)]
        assert f"http://127.0.0.1:{port}" in lines[1]
        url = f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/experiments/search?max_results=10"
        with urllib.request.urlopen(url, timeout=30) as answer:
            names = {experiment["name"] for experiment in json.load(answer)["experiments"]}
        assert "paper/grid" in names
    finally:
        page.send_signal(signal.SIGINT)
        rest, _ = page.communicate(timeout=30)
    assert (page.returncode, rest) == (0, "")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
