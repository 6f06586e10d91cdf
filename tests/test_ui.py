"""Servers of MLflow's and Optuna's page: mistakes are reported before one starts, and all of its processes end."""

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from imavae.config.settings import Tracking
from imavae.errors import UserError
from imavae.tracking import mlflow as tracking
from imavae.tracking.ui import serve, serve_dashboard
from tests.helpers import free_port


@pytest.fixture
def output_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.parametrize("page", [serve, serve_dashboard])
def test_a_missing_database_is_refused(page: Callable[[Path, int], int], output_dir: Path) -> None:
    with pytest.raises(UserError, match="make tune"):
        page(output_dir, free_port())
    assert not list(output_dir.iterdir())


def test_a_missing_dashboard_is_refused(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (output_dir / "optuna.db").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="optuna-dashboard"):
        serve_dashboard(output_dir, free_port())


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_out_of_range_is_refused(output_dir: Path, port: int) -> None:
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


def test_the_page_of_a_tracking_server_is_named(output_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(output_dir, free_port(), "http://server:5000") == 0
    assert "http://server:5000" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "question"),
    [
        ("serve", "/ajax-api/2.0/mlflow/experiments/search?max_results=10"),
        pytest.param(
            "serve_dashboard",
            "/api/studies",
            marks=pytest.mark.skipif(not importlib.util.find_spec("optuna_dashboard"), reason="an optional extra"),
        ),
    ],
)
def test_a_page_shows_what_was_tracked_and_all_of_its_processes_end(page: str, question: str, output_dir: Path) -> None:
    if page == "serve":
        tracking.open_tracker(Tracking(), output_dir, "paper-grid")
    else:
        optuna.create_study(storage=f"sqlite:///{output_dir}/optuna.db", study_name="paper-grid")
    port = free_port()
    code = f"import sys; from pathlib import Path; from imavae.tracking import ui; ui.{page}(Path(sys.argv[1]), {port})"
    command = [sys.executable, "-c", code, str(output_dir)]
    served = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert served.stdout is not None
    try:
        lines = [served.stdout.readline() for _ in range(2)]
        assert f"http://127.0.0.1:{port}" in lines[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{question}", timeout=30) as answer:
            assert '"paper-grid"' in json.dumps(json.load(answer))
    finally:
        served.send_signal(signal.SIGINT)
        rest, _ = served.communicate(timeout=30)
    assert (served.returncode, rest) == (0, "")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
