"""A study whose workers and drivers are killed or interrupted goes on: no trial is lost or doubled."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.killing import GRID, LONG, STARTED, checkpoints, faults, studies, tune, until

pytestmark = pytest.mark.slow

MOMENTS = random.Random(os.environ.get("IMAVAE_KILL_SEED", "1"))  # noqa: S311


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """End the studies that a failed test leaves."""
    yield
    while STARTED:
        STARTED.pop().kill()


def let_train(folder: Path) -> None:
    """Wait until the study in an output folder has written a checkpoint from now on, and a random time longer."""
    start = time.time()
    until(lambda: any(path.stat().st_mtime > start for path in checkpoints(folder)))
    time.sleep(MOMENTS.random())


def test_a_study_survives_the_death_of_a_worker_an_interrupt_and_the_death_of_its_driver(tmp_path: Path) -> None:
    run = tune(tmp_path, *LONG)
    let_train(tmp_path)
    os.kill(MOMENTS.choice(run.workers()), signal.SIGKILL)
    let_train(tmp_path)
    run.kill(signal.SIGINT)
    assert run.wait() == 130
    [study] = studies(tmp_path)
    assert f"resume=true name={study.name}" in run.text()
    assert "Traceback" not in run.text()
    [tracked] = (tmp_path / "mlartifacts").rglob("artifacts/report.html")
    assert tracked.read_text(encoding="utf-8") == (study / "report.html").read_text(encoding="utf-8")
    run = tune(tmp_path, *LONG, "resume=true")
    let_train(tmp_path)
    run.kill()
    run = tune(tmp_path, *LONG, "resume=true")
    assert run.wait() == 0, run.text()
    assert faults(tmp_path) == []


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


def test_a_study_survives_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    there = f"output_dir={small_disk}"  # the printed text goes to tmp_path
    run = tune(tmp_path, *GRID, there)
    until(lambda: checkpoints(small_disk))
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert run.wait() in (1, 2)
    assert "Traceback" not in run.text()
    ballast.unlink()
    run = tune(tmp_path, *GRID, there, "resume=true")
    assert run.wait() == 0, run.text()
    assert faults(small_disk) == []


def test_two_studies_run_at_once_and_neither_is_run_twice(tmp_path: Path) -> None:
    first = tune(tmp_path, *GRID)
    second = tune(tmp_path, *GRID, "members.seed=[3,4]")
    until(lambda: len(studies(tmp_path)) == 2)
    twice = tune(tmp_path, *GRID, "resume=true", "name=paper-moebius_gamma_uniform")
    assert twice.wait() == 2
    assert (first.wait(), second.wait()) == (0, 0), first.text() + second.text()
    assert [study.name for study in studies(tmp_path)] == [f"paper-moebius_gamma_uniform{n}" for n in ("", "-2")]
    assert faults(tmp_path) == []
