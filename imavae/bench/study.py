"""Time budget of one small study, from the call to its last figure: one trial at a time, on one core.

The study runs as ``imavae.tune`` runs it, with Ray and MLflow, in a temporary folder. The driver's calls are timed, and
each report says how long its worker trained and validated. The driver's second thread writes while workers train, so
it counts only where the driver waits for it. Checkpoints count as one, saved alone, times their number.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from imavae.api import tune
from imavae.config.settings import base_of, study_config
from imavae.runs.session import Session
from imavae.search import study
from imavae.search.trials import Recorder
from imavae.tracking.mlflow import MLflowTracker

TRIALS, MEMBERS, EPOCHS, OBSERVATIONS = 4, 20, 10, 20_000
PARTS = {  # of the wall time, in the order in which they happen
    "set-up": "until the first training step: imports, Ray, tracked run, first worker",
    "training": "in the workers",
    "validation": "in the workers",
    "checkpoints": "in the workers: their number times one saved alone",
    "last trial": "evaluated, written and tracked after all have ended",
    "tracking": "of the winners, the study's end and its files",
    "reports": "tables, figures and model files",
    "other": "the rest: Ray between reports and at its end, its copies of checkpoints",
    "wall": "from the call to its end",
}
TIMED = {
    "run_study": study,
    "on_trial_result": Recorder,
    "close": Recorder,
    **dict.fromkeys(("progress", "finish_trial", "log_model", "finish"), MLflowTracker),
}


def measure_study() -> dict[str, float]:
    """Seconds of each of :data:`PARTS`, and of tracking ``beside`` the workers."""
    with tempfile.TemporaryDirectory() as folder, _timed() as calls:
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
        session = Session.start([base_of(config)], torch.device("cpu"))
        start = time.perf_counter()
        session.save(Path(folder) / "state.pt")
        save = time.perf_counter() - start
        start = time.perf_counter()
        tune(config)
        end = time.perf_counter()
    spent = {name: sum(ended - started for started, ended, *_ in calls[name]) for name in TIMED}
    reported, _, recorder, result = calls["on_trial_result"][0]
    seconds = {
        "set-up": reported - start - result["train_seconds"] - result["validate_seconds"] - save,
        "training": recorder.total("train_seconds"),
        "validation": recorder.total("validate_seconds"),
        "checkpoints": save * len(calls["on_trial_result"]),
        "last trial": spent["close"],
        "tracking": spent["log_model"] + spent["finish"],
    }
    seconds["reports"] = end - calls["run_study"][0][1] - seconds["tracking"]
    seconds["other"] = end - start - sum(seconds.values())
    beside = spent["progress"] + spent["finish_trial"]
    return {**seconds, "wall": end - start, "beside": beside, "one checkpoint": save}


def study_table(seconds: dict[str, float]) -> str:
    """A line per part, with its share of the wall time."""
    size = f"{TRIALS} trials of {MEMBERS} members, {EPOCHS} epochs of {OBSERVATIONS:,} observations"
    lines = [
        f"{seconds[part]:8.2f} s {100 * seconds[part] / seconds['wall']:4.0f} %  {part}: {content}"
        for part, content in PARTS.items()
    ]
    beside = f"The driver's second thread tracked trials for {seconds['beside']:.1f} s."
    return "\n".join([f"One study: {size}", *lines, beside])


@contextmanager
def _timed() -> Iterator[dict[str, list[tuple[Any, ...]]]]:
    """Record start, end, first argument and ``result`` of the calls of :data:`TIMED` within the block."""
    calls: dict[str, list[tuple[Any, ...]]] = {name: [] for name in TIMED}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                calls[name].append((start, time.perf_counter(), arguments[0], keywords.get("result")))

        return call

    with ExitStack() as stack:
        for name, owner in TIMED.items():
            stack.enter_context(mock.patch.object(owner, name, timed(name, getattr(owner, name))))
        yield calls
