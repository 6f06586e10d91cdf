"""Nothing that was finished is lost or doubled: workers and drivers are killed, studies end by signals, and go on."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.killing import GRID, STARTED, checkpoints, faults, studies, tune, until

pytestmark = pytest.mark.slow

MOMENTS = random.Random(os.environ.get("IMAVAE_KILL_SEED", "1"))  # noqa: S311


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """A test that fails leaves no study behind."""
    yield
    while STARTED:
        STARTED.pop().kill()


def test_a_study_survives_the_death_of_a_worker(tmp_path: Path) -> None:
    run = tune(tmp_path, *GRID)
    until(lambda: checkpoints(tmp_path))
    time.sleep(2 * MOMENTS.random())
    os.kill(MOMENTS.choice(run.workers()), signal.SIGKILL)
    assert run.wait() == 0, run.text()
    assert faults(tmp_path) == []


def test_a_study_survives_the_death_of_its_driver(tmp_path: Path) -> None:
    run = tune(tmp_path, *GRID)
    until(lambda: checkpoints(tmp_path))
    time.sleep(2 * MOMENTS.random())
    run.kill()
    run = tune(tmp_path, *GRID, "resume=true")
    assert run.wait() == 0, run.text()
    assert faults(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_study_in_order_and_leaves_no_process(number: int, code: int, tmp_path: Path) -> None:
    run = tune(tmp_path, *GRID)
    until(lambda: checkpoints(tmp_path))
    time.sleep(2 * MOMENTS.random())
    run.kill(number)
    assert run.wait() == code
    [study] = studies(tmp_path)
    assert f"resume=true name={study.name}" in run.text()
    report = (study / "report.html").read_text(encoding="utf-8")
    assert re.search(r"Broken off: \d of 3 points have ended", report)
    assert f"resume=true name={study.name}</code>" in report
    [tracked] = (tmp_path / "mlartifacts").rglob("artifacts/report.html")
    assert tracked.read_text(encoding="utf-8") == report
    assert "Traceback" not in run.text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a disk of its own, of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_study_survives_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    there = f"output_dir={small_disk}"  # what is said is written elsewhere
    run = tune(tmp_path, *GRID, there)
    until(lambda: checkpoints(small_disk))
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert run.wait() in (1, 2)
    assert "Traceback" not in run.text()
    assert "no space left" in run.text().lower() or "none is left" in run.text()
    ballast.unlink()
    run = tune(tmp_path, *GRID, there, "resume=true")
    assert run.wait() == 0, run.text()
    assert faults(small_disk) == []


def test_two_studies_at_once_do_not_meet_and_one_is_not_run_twice(tmp_path: Path) -> None:
    first = tune(tmp_path, *GRID)
    second = tune(tmp_path, *GRID, "members.seed=[3,4]")
    until(lambda: len(studies(tmp_path)) == 2)
    twice = tune(tmp_path, *GRID, "resume=true", "name=paper-moebius_gamma_uniform")
    assert twice.wait() == 2
    assert "one process at a time" in twice.text()
    assert (first.wait(), second.wait()) == (0, 0), first.text() + second.text()
    assert [study.name for study in studies(tmp_path)] == [f"paper-moebius_gamma_uniform{n}" for n in ("", "-2")]
    assert faults(tmp_path) == []
