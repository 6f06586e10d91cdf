"""Measure whether the memory of a study's driver grows with the number of trials, from the 20th to the last.

Examples:
  python tests/memory.py                200 trials; exit code 1 if it grows by more than a tenth
  python tests/memory.py trials=60
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.killing import Run, studies, tune

TINY = (  # very short trials
    "search=gamma_uniform",
    "sampler.name=random",
    "scheduler.name=none",
    "data.n_obs=1000",
    "members.seed=[1,2]",
    "training.max_epochs=2",
    "training.validate_every=1",
    "cluster.cpus=2",
)
FIRST = 20  # trials after which everything is loaded
GROWTH = 0.1  # of the resident memory from then on, limit


def resident(run: Run) -> float:
    """Memory of a study's driver alone in MB; 0 when it has ended."""
    try:
        text = Path(f"/proc/{run.process.pid}/status").read_text()
    except OSError:
        return 0.0
    return float(next((line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")), 0)) / 1024


def measure(folder: Path, trials: int) -> dict[int, float]:
    """Run a study; its driver's memory in MB by the number of recorded trials."""
    run = tune(folder, *TINY, f"budget.trials={trials}")
    found: dict[int, float] = {}
    while run.process.poll() is None and trials not in found:
        memory, recorded = (
            resident(run),
            sum(len(list(study.glob("records/trial-*.json"))) for study in studies(folder)),
        )
        if recorded not in found:
            found[recorded] = memory
            if recorded % FIRST == 0:
                print(f"memory: {recorded} trials, {memory:.1f} MB", flush=True)
        time.sleep(0.05)
    if run.wait() != 0 or max(found) < trials:
        raise RuntimeError(f"the study failed:\n{run.text()}")
    return found


def main() -> int:
    """Measure as the command line says; 1 if the driver has grown."""
    settings = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    trials = int(settings.get("trials", 200))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), trials)
    first, last = found[min(number for number in found if number >= FIRST)], found[trials]
    growth = last / first - 1
    print(f"memory: {first:.1f} MB after {FIRST} trials, {last:.1f} MB after {trials}, {growth:+.1%}", flush=True)
    return int(growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
