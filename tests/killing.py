"""Start studies in separate processes, kill them, and compare their results with an undisturbed study.

Used by the kill tests and by ``python tests/soak.py``. Processes are looked up in Linux's /proc.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from imavae.config.settings import Objective, RunConfig
from imavae.runs.records import trial_record
from imavae.runs.session import Session
from imavae.search.trials import RETRIES
from imavae.tracking import TrialRecord, Value

ROOT = Path(__file__).resolve().parent.parent
GRID = (  # three points in two packs, a second of training
    "search=paper/moebius_gamma_uniform",
    "search.model.gamma.values=[10.0,100.0,1000.0]",
    "data.n_obs=1000",
    "members.seed=[1,2]",
    "training.max_epochs=14",
    "training.validate_every=1",
    "training.patience=1000",
    "cluster.cpus=2",
)
LONG = (*GRID, "data.n_obs=2000", "training.max_epochs=150")  # long enough for several kills
MODELS = ("logged_models", "logged_models WHERE status = 2", "inputs", "model_versions")  # 2: READY; inputs are links


@dataclass
class Run:
    """A started ``scripts/tune.py``."""

    process: subprocess.Popen[bytes]
    output: Path  # file of its output

    def wait(self, seconds: float = 500) -> int:
        """Wait for the exit code."""
        return self.process.wait(seconds)

    def processes(self) -> dict[int, str]:
        """Command lines of its descendants, by process id."""
        return dict(_below(self.process.pid))

    def workers(self) -> list[int]:
        """Ids of its training processes."""
        return [pid for pid, line in self.processes().items() if line.startswith("ray::ImplicitFunc")]

    def part(self, name: str) -> int:
        """Id of its raylet or gcs_server."""
        [pid] = [pid for pid, line in self.processes().items() if Path(line.split(" ")[0]).name == name]
        return pid

    def kill(self, number: int = signal.SIGKILL) -> float:
        """Send a signal and wait until it and its descendants have ended; the seconds that took.

        After SIGKILL two idle agents of Ray stay for up to a minute.
        """
        if self.process.poll() is not None:
            return 0.0
        started, start = self.processes(), time.monotonic()
        self.process.send_signal(number)
        self.wait()
        staying = "Agent" if number == signal.SIGKILL else "nothing"
        until(lambda: not any(_is(pid, line) for pid, line in started.items() if staying not in line))
        return time.monotonic() - start

    def text(self) -> str:
        """Its output so far."""
        return self.output.read_text()


STARTED: list[Run] = []


def tune(folder: Path, *overrides: str, **variables: str) -> Run:
    """Start a study with the output folder ``folder`` and these variables of the environment."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "scripts/tune.py", f"output_dir={folder}", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    environment.pop("MLFLOW_TRACKING_URI", None)
    output = folder / f"output-{len(list(folder.glob('output-*')))}.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True)
    STARTED.append(Run(process, output))
    return STARTED[-1]


def until(holds: Callable[[], object], seconds: float = 300) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.02)


def studies(folder: Path) -> list[Path]:
    """Folders of the studies that have started."""
    return sorted((folder / "studies").glob("[!.]*"))


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of all ensembles."""
    return [path for study in studies(folder) for path in (study / "checkpoints").glob("ensemble-*[0-9].pt")]


def faults(folder: Path) -> list[str]:
    """Differences of finished grid studies from undisturbed ones."""
    wrong = []
    for study in studies(folder):
        if not json.loads(_body(study / "study.json"))["finished"]:
            wrong.append(f"{study.name} is not finished")
            continue
        for name, table in _undisturbed(study).items():
            if (found := (study / name).read_text()) != table:
                lines = difflib.unified_diff(table.splitlines(), found.splitlines(), lineterm="", n=0)
                wrong.append("\n".join([f"{study.name}: {name} differs", *itertools.islice(lines, 8)]))
    return wrong + list(_tracking_faults(folder))


def may_be_killed(folder: Path, kills: Sequence[float]) -> bool:
    """Return whether every unfinished ensemble has got further since the last few kills of workers, at these times.

    A trial whose workers die again and again before that fails, as it should.
    """
    for pack in (file for study in studies(folder) for file in (study / "records").glob("ensemble-*.json")):
        checkpoint = pack.parents[1] / "checkpoints" / f"{pack.stem}.pt"
        if pack.with_name(pack.name.replace("ensemble", "trial")).exists():
            continue  # finished
        written = checkpoint.stat().st_mtime if checkpoint.exists() else 0.0
        if sum(kill > written for kill in kills) >= RETRIES:
            return False
    return True


def _body(path: Path) -> str:
    """Content of a sealed file."""
    return path.read_text().partition("\n")[2]


def _undisturbed(study: Path) -> dict[str, str]:
    """Tables of the same packs, trained here without Ray."""
    members: list[dict[str, Value]] = []
    history: list[dict[str, Value]] = []
    for file in sorted((study / "records").glob("ensemble-*.json")):
        pack = [number for number, _ in json.loads(_body(file))]
        stored = Session.load(study / "checkpoints" / f"ensemble-{min(pack):03d}.pt", torch.device("cpu"))
        points = [dataclasses.replace(point, output_dir=os.devnull, name=None) for point in stored.points]
        for record in _trained(tuple(points), tuple(pack)):
            members += map(dict, record.members)
            history += record.history
    tables = {"members.csv": members, "history.csv": history}
    return {
        name: str(pd.DataFrame(rows).sort_values("trial", kind="stable").to_csv(index=False))
        for name, rows in tables.items()
    }


@functools.cache  # a soak repeats one study
def _trained(points: tuple[RunConfig, ...], pack: tuple[int, ...]) -> list[TrialRecord]:
    session = Session.start(list(points), torch.device("cpu"))
    for _ in session.train():
        pass
    return [trial_record(session, point, number, {}, [Objective()]) for point, number in enumerate(pack)]


def _tracking_faults(folder: Path) -> Iterator[str]:
    """Runs, models and values that are doubled or missing in MLflow."""
    n_trials = n_epochs = 0
    for study in studies(folder):
        epochs = pd.read_csv(study / "history.csv", usecols=["trial", "epoch"])
        n_trials += epochs["trial"].nunique()
        n_epochs += len(epochs.drop_duplicates())
    with sqlite3.connect(folder / "mlflow.db") as connection:
        kinds = "SELECT value, COUNT(*) FROM tags WHERE key = 'imavae.kind' GROUP BY value"
        runs = dict(connection.execute(kinds))
        unended = connection.execute("SELECT COUNT(*) FROM runs WHERE status != 'FINISHED'").fetchone()[0]
        doubled = "SELECT 1 FROM metrics WHERE key LIKE 'curves/%' GROUP BY run_uuid, key, step HAVING COUNT(*) > 1"
        twice = len(connection.execute(doubled).fetchall())
        curves = "SELECT COUNT(*) FROM metrics WHERE key LIKE '%mcc/q25' GROUP BY key"
        points = {count for (count,) in connection.execute(curves)}
        models = [connection.execute(f"SELECT COUNT(*) FROM {rows}").fetchone()[0] for rows in MODELS]  # noqa: S608
    expected = {"study": len(studies(folder)), "trial": n_trials}
    if runs != expected:
        yield f"MLflow has {runs}, not {expected}"
    # A winner per trial, linked with it; a champion per study, linked with both.
    wanted = [n_trials, n_trials, n_trials + len(studies(folder)), len(studies(folder))]
    if models != wanted:
        yield f"MLflow has {models} of {', '.join(MODELS)}, not {wanted}"
    if unended:
        yield f"{unended} MLflow runs are not finished"
    if twice:
        yield f"{twice} values of MLflow's curves are doubled"
    if points != {n_epochs}:
        yield f"MLflow's curves have {sorted(points)} points, not {n_epochs}"


def _below(parent: int) -> Iterator[tuple[int, str]]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        parents.setdefault(int(fields[1]), []).append(int(entry.name))
    waiting = [parent]
    while waiting:
        for pid in parents.get(waiting.pop(), []):
            waiting.append(pid)
            if line := _line(pid):
                yield pid, line


def _line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def _is(pid: int, line: str) -> bool:
    """Return whether the process still runs; Ray changes its processes' command lines."""
    now = _line(pid)
    return now == line or (now.startswith("ray::") and line.startswith("ray::"))
