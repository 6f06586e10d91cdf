"""Studies whose workers and drivers are killed or interrupted go on: no trial is lost or doubled."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from imavae.cli.main import TUNE, launch
from tests.killing import GRID, STARTED, checkpoints, faults, studies, tune, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

MOMENTS = random.Random(os.environ.get("IMAVAE_KILL_SEED", "1"))  # noqa: S311
HELD = f"plugins=[{Path(__file__).with_name('held_metric.py')}]"  # not imported, as that would register it


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """End the studies that a failed test leaves."""
    yield
    while STARTED:
        STARTED.pop().kill()


def let_train(folder: Path, since: float) -> None:
    """Wait until a study in a folder has written a checkpoint after a time, and a random time longer."""
    until(lambda: any(path.stat().st_mtime > since for path in checkpoints(folder)))
    time.sleep(MOMENTS.random())


def tune_here(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    """Exit code of tune.py in this process, on its Ray."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sys, "argv", ["scripts/tune.py", *overrides])
    return launch(TUNE)


def test_two_studies_at_once_of_which_one_loses_a_worker_is_interrupted_and_loses_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its workers wait after some validations, so that it can't end before; the other one runs in this process."""
    hold, there = tmp_path / "hold", f"output_dir={tmp_path}"
    hold.touch()
    line = [*GRID, HELD]
    run = tune(tmp_path, *line, IMAVAE_TEST_HOLD=str(hold))
    assert tune_here(monkeypatch, there, *line, "members.seed=[3,4]") == 0, capfd.readouterr().err
    until(lambda: len(studies(tmp_path)) == 2)
    assert [study.name for study in studies(tmp_path)] == [f"paper-moebius_gamma_uniform{n}" for n in ("", "-2")]
    [study] = [one for one in studies(tmp_path) if seeds_of(one) == [1, 2]]
    until(lambda: list(study.glob("checkpoints/*.pt")))
    again = [*line, "resume=true", f"name={study.name}"]
    assert tune_here(monkeypatch, there, *again) == 2  # it runs already

    killed = time.time()
    os.kill(MOMENTS.choice(run.workers()), signal.SIGKILL)
    let_train(tmp_path, killed)
    run.kill(signal.SIGINT)
    assert run.wait() == 130
    assert f"resume=true name={study.name}" in run.text()
    assert "Traceback" not in run.text()
    tracked = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("artifacts/report.html")]
    assert (study / "report.html").read_text(encoding="utf-8") in tracked

    resumed = time.time()
    run = tune(tmp_path, *again, IMAVAE_TEST_HOLD=str(hold))
    let_train(tmp_path, resumed)
    run.kill()
    assert tune_here(monkeypatch, there, *again) == 0, capfd.readouterr().err
    assert faults(tmp_path) == []


def test_a_study_ends_with_one_line_when_it_loses_its_raylet_or_gcs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hold, line = tmp_path / "hold", [*GRID, HELD]
    hold.touch()
    for part in ("raylet", "gcs_server"):
        begun = time.time()
        run = tune(tmp_path, *line, IMAVAE_TEST_HOLD=str(hold))
        let_train(tmp_path, begun)
        os.kill(run.part(part), signal.SIGKILL)
        assert run.wait() == 2
        last = run.text().splitlines()[-1]
        assert last.startswith("error:")
        assert part in last
        assert "resume=true" in last
        assert "Traceback" not in run.text()
        assert not re.search(r"\(raylet\)|rpc_client|core_worker", run.text())
        line = [*GRID, HELD, "resume=true"]
    assert tune_here(monkeypatch, f"output_dir={tmp_path}", *line) == 0, capfd.readouterr().err
    assert faults(tmp_path) == []


def seeds_of(study: Path) -> object:
    """Seeds of a study's members."""
    return yaml.safe_load((study / "config.yaml").read_text())["members"]["seed"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a separate disk of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_study_survives_a_full_disk(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # With the plugin of the test above, which Ray's workers still hold.
    line, ballast = [f"output_dir={small_disk}", *GRID, HELD], small_disk / "ballast"
    run = tune(tmp_path, *line)  # the printed text goes to tmp_path
    until(lambda: checkpoints(small_disk))
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert run.wait() in (1, 2)
    assert "Traceback" not in run.text()
    ballast.unlink()
    assert tune_here(monkeypatch, *line, "resume=true") == 0, capfd.readouterr().err
    assert faults(small_disk) == []
