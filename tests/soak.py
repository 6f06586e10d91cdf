"""Kill workers and drivers of studies at random moments and compare the results with undisturbed studies.

Examples:
  python tests/soak.py                  20 kills of workers, 20 of drivers
  python tests/soak.py kills=3 seed=7
  python tests/soak.py minutes=30       repeat with other moments until the time is over
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.killing import LONG, faults, may_be_killed, studies, tune


def kill_workers(folder: Path, moments: random.Random, left: int) -> int:
    """Run a study to its end and kill some of its workers; the number of kills."""
    run = tune(folder, *LONG)
    kills: list[float] = []  # times
    while run.process.poll() is None:
        time.sleep(0.5 + 4 * moments.random())
        workers = run.workers()
        if workers and len(kills) < left and may_be_killed(folder, kills):
            with suppress(ProcessLookupError):
                os.kill(moments.choice(workers), signal.SIGKILL)
                kills.append(time.time())
    if run.wait() != 0:
        print(run.text())
    return len(kills)


def kill_drivers(folder: Path, moments: random.Random, left: int) -> int:
    """Run a study to its end, killing and resuming its driver; the number of kills."""
    kills = 0
    while True:
        run = tune(folder, *LONG, *(["resume=true"] if studies(folder) else []))
        end = time.monotonic() + 25 * moments.random()
        while run.process.poll() is None and (kills == left or time.monotonic() < end):
            time.sleep(0.05)
        if run.process.poll() is not None:
            if run.wait() != 0:
                print(run.text())
            return kills
        run.kill()
        kills += 1


def soak(name: str, kill: Callable[[Path, random.Random, int], int], total: int, seed: int) -> int:
    """Kill ``total`` times in as many studies as it takes; the number of differences from undisturbed studies."""
    moments, kills, different, count = random.Random(seed), 0, 0, 0  # noqa: S311
    while kills < total:
        with tempfile.TemporaryDirectory() as folder:
            done, count = kill(Path(folder), moments, total - kills), count + 1
            wrong = faults(Path(folder))
        kills, different = kills + done, different + len(wrong)
        print(
            f"{name}: study {count}, {done} kills ({kills} of {total}), {'; '.join(wrong) or 'no difference'}",
            flush=True,
        )
    print(f"{name}: {kills} kills in {count} studies, {different} differences", flush=True)
    return different


def main() -> int:
    """Run the soak of the command line; 1 if there was a difference."""
    settings = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    total, seed = int(settings.get("kills", 20)), int(settings.get("seed", 1))
    end, different = time.monotonic() + 60 * float(settings.get("minutes", 0)), 0
    while True:
        for name, kill in {"workers": kill_workers, "drivers": kill_drivers}.items():
            different += soak(name, kill, total, seed)
        seed += 1
        if time.monotonic() >= end:
            return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
