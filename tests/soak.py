"""Kill parts of studies at random moments and compare the results with undisturbed studies.

The parts are workers, the driver, and Ray's raylet and GCS.

Examples:
  python tests/soak.py                  100 kills
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
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.killing import LONG, faults, may_be_killed, studies, tune

LONGEST_RUN = 30.0  # seconds until a run loses its driver, its raylet or its GCS


def disturb(folder: Path, moments: random.Random, left: int) -> Counter[str]:
    """Run a study to its end, or to an error that is none of a kill; the kills, at most ``left``, by part."""
    kills: Counter[str] = Counter()
    workers: list[float] = []  # times of their kills
    while True:
        run = tune(folder, *LONG, *(["resume=true"] if studies(folder) else []))
        part, end = (
            moments.choice(("driver", "raylet", "gcs_server")),
            time.monotonic() + LONGEST_RUN * moments.random(),
        )
        while run.process.poll() is None:
            time.sleep(0.1 + 4 * moments.random())
            if kills.total() == left:
                continue
            with suppress(ProcessLookupError, ValueError):  # it has just ended, or does not run yet
                if time.monotonic() >= end:
                    os.kill(run.process.pid if part == "driver" else run.part(part), signal.SIGKILL)
                    kills[part] += 1
                    end = float("inf")
                elif may_be_killed(folder, workers) and (found := run.workers()):
                    os.kill(moments.choice(found), signal.SIGKILL)
                    workers.append(time.time())
                    kills["worker"] += 1
        run.kill()
        killed = end == float("inf")
        if not killed or run.process.returncode == 0:
            if run.process.returncode or "Traceback" in run.text():
                print(run.text())
            return kills


def main() -> int:
    """Run the soak of the command line; 1 if there was a difference."""
    settings = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    total, seed = int(settings.get("kills", 100)), int(settings.get("seed", 1))
    end, kills, different, count = time.monotonic() + 60 * float(settings.get("minutes", 0)), Counter[str](), 0, 0
    moments = random.Random(seed)  # noqa: S311
    while kills.total() < total or time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            done, count = disturb(Path(folder), moments, max(total - kills.total(), 20)), count + 1
            wrong = faults(Path(folder))
        kills, different = kills + done, different + len(wrong)
        print(f"study {count}: {dict(done)}, in all {dict(kills)}; {'; '.join(wrong) or 'no difference'}", flush=True)
    print(f"{kills.total()} kills in {count} studies, {different} differences", flush=True)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
