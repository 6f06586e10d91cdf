"""Nothing that was finished is lost or doubled: workers and drivers are killed, studies end by signals, and go on."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.killing import GRID, checkpoints, faults, tune, until

SEED = random.Random(os.environ.get("IMAVAE_KILL_SEED", "1"))  # noqa: S311 - of the moments


def test_a_study_survives_the_death_of_a_worker(tmp_path: Path) -> None:
    run = tune(tmp_path, *GRID)
    until(lambda: checkpoints(tmp_path))
    time.sleep(2 * SEED.random())
    os.kill(SEED.choice(run.workers()), signal.SIGKILL)
    assert run.wait() == 0, run.text()
    assert faults(tmp_path) == []


def test_a_study_survives_the_death_of_its_driver(tmp_path: Path) -> None:
    run = tune(tmp_path, *GRID)
    until(lambda: checkpoints(tmp_path))
    time.sleep(2 * SEED.random())
    run.kill()
    run = tune(tmp_path, *GRID, "resume=true")
    assert run.wait() == 0, run.text()
    assert faults(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_study_soon_and_in_order(number: int, code: int, tmp_path: Path) -> None:
    run = tune(tmp_path, *GRID)
    until(lambda: checkpoints(tmp_path))
    time.sleep(2 * SEED.random())
    assert run.kill(number) < 10
    assert run.wait() == code
    assert "go on     " in run.text()
    assert "Traceback" not in run.text()
