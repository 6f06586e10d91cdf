"""Where the time of one small study goes, from its command to its last figure: one trial at a time, on one core.

The study is run as ``scripts/tune.py`` runs it, with the real Ray and MLflow, in a temporary folder. The clock stands
in the driver: around what it calls, and at each trial's report, which says how long its worker has trained and
validated. What the driver's second thread writes while workers train takes no time of its own, except where it is
waited for. The time of the workers' checkpoints is that of one, saved alone, times their number.
"""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from imavae.config.settings import base_of, study_config
from imavae.runs.session import Session
from imavae.search import study
from imavae.search.recorder import Recorder

TRIALS, MEMBERS, EPOCHS, OBSERVATIONS = 4, 20, 10, 20_000
PARTS = {  # of the wall time, in the order in which they come to pass
    "set-up": "until the first training step: imports, Ray, tracked run, first worker",
    "training": "in the workers",
    "validation": "in the workers",
    "checkpoints": "in the workers: their number times one saved alone",
    "last trial": "until what the trials found is evaluated, written and tracked, once all have ended",
    "tracking": "of the winners, the study's end and its files",
    "reports": "tables, figures and model files",
    "other": "the rest: Ray between reports and at its end, its copies of checkpoints",
}


def measure_study() -> dict[str, float]:
    """Seconds of each of :data:`PARTS`, of the ``wall``, and of tracking ``beside`` the workers."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = study_config(
            {
                "output_dir": folder,
                "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
                "data": {"n_obs": OBSERVATIONS},
                "members": {"seed": list(range(1, MEMBERS + 1))},
                "training": {"max_epochs": EPOCHS},
                "search": {"model": {"gamma": {"type": "float", "low": 3.0, "high": 1000.0, "log": True}}},
                "budget": {"trials": TRIALS},
                "cluster": {"cpus": 1},  # one trial after the other: their times add up
            }
        )
        save = _save_seconds(Session.start([base_of(config)], torch.device("cpu")), Path(folder))
        with clock.watching():
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):  # the study's own display and tables
                from imavae.cli.commands import tune

                tune(config)
            end = time.perf_counter()
    first_report, result = clock.reports[0]
    recorder = clock.recorders[0]
    seconds = {
        "set-up": first_report - start - result["train_seconds"] - result["validate_seconds"] - save,
        "training": recorder.total("train_seconds"),
        "validation": recorder.total("validate_seconds"),
        "checkpoints": save * len(clock.reports),
        "last trial": clock.spent["close"],
        "tracking": clock.spent["log_model"] + clock.spent["finish"],
    }
    seconds["reports"] = end - clock.studied - seconds["tracking"]
    seconds["other"] = end - start - sum(seconds.values())
    beside = clock.spent["progress"] + clock.spent["finish_trial"]
    return {**seconds, "wall": end - start, "beside": beside, "one checkpoint": save}


def study_table(seconds: dict[str, float]) -> Table:
    """A row per part, with its share of the wall time."""
    size = f"{TRIALS} trials of {MEMBERS} members, {EPOCHS} epochs of {OBSERVATIONS:,} observations"
    table = Table(title=f"One study: {size}", box=SIMPLE_HEAD)
    table.caption = f"in its second thread, the driver tracked trials for {seconds['beside']:.1f} s"
    for column in ("part", "seconds", "share", "what"):
        table.add_column(column, justify="right" if column in ("seconds", "share") else "left")
    for part, what in {**PARTS, "wall": "from the command to its end"}.items():
        table.add_row(part, f"{seconds[part]:.2f}", f"{100 * seconds[part] / seconds['wall']:.0f} %", what)
    return table


def _save_seconds(session: Session, folder: Path) -> float:
    start = time.perf_counter()
    session.save(folder / "state.pt")
    return time.perf_counter() - start


class _Clock:
    """What the driver does, and when."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(("close", "progress", "finish_trial", "log_model", "finish"), 0.0)  # seconds
        self.reports: list[tuple[float, dict[str, Any]]] = []  # when each arrived, and what it held
        self.recorders: list[Recorder] = []
        self.studied = 0.0  # when the last trial had been recorded

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take the times of what is called in the block."""
        from imavae.tracking.mlflow import MLflowTracker

        run_study, reported = study.run_study, Recorder.reported

        def studied(*arguments: Any) -> Any:
            ledger = run_study(*arguments)
            self.studied = time.perf_counter()
            return ledger

        def noted(recorder: Recorder, trial: Any, result: dict[str, Any]) -> None:
            self.reports.append((time.perf_counter(), dict(result)))
            self.recorders.append(recorder)
            reported(recorder, trial, result)

        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(study, "run_study", studied))
            stack.enter_context(mock.patch.object(Recorder, "reported", noted))
            for name in self.spent:
                owner: Any = Recorder if name == "close" else MLflowTracker
                stack.enter_context(mock.patch.object(owner, name, self._timed(name, getattr(owner, name))))
            yield

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.spent[name] += time.perf_counter() - start

        return timed
