"""The tracker's interface, the record of a trial that it receives, and what it tracks beside: curves and versions."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imavae.config.settings import Objective
from imavae.errors import UserError

Value = float | int | str
Row = Mapping[str, Value]
Finals = Mapping[str, float]  # final metrics by name (``val/mcc``), of a member at its best state or of a trial
Status = Literal["finished", "stopped", "failed"]

PROGRESS_PERIOD = 5.0  # seconds between two updates of a running trial's curves, and of a study's
PACKAGES = ("imavae", "torch", "numpy", "scipy", "ray", "optuna", "hydra-core", "mlflow")
# Tracked over epochs, as the objectives.
CURVES = ("val/mcc", "val/neg_elbo", "val/cima", "val/gamma", "train/mcc", "train/neg_elbo")
QUARTILES = {"": 0.5, "/q25": 0.25, "/q75": 0.75}  # suffix of a curve's name -> quantile


@dataclass(frozen=True)
class TrialRecord:
    """Result of one trial."""

    number: int  # index in the study, from 0
    values: Mapping[str, Value]  # the trial's point, dotted key to value (``model.gamma``)
    status: Status  # "stopped": by the scheduler, before the members stopped by themselves
    score: float | None  # aggregate over the members; None if there is none
    history: list[
        dict[str, Value]
    ]  # per member and validation: trial, seed, epoch, ``SPLIT/METRIC``; to the last epoch
    members: Sequence[Row]  # rows of ``members.csv``; empty while the trial runs
    further: Mapping[str, float] = field(default_factory=dict)  # scores by a study's further objectives, by metric
    failure: str = ""  # reason in one line, if the trial failed


class Tracker:
    """Destination of a study's results besides its folder. This base class tracks nothing (``tracking=none``).

    Every method but :meth:`start` needs a started study.
    """

    lost: UserError | None = None  # why it tracks nothing any more

    def start(
        self,
        name: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        objectives: Sequence[Objective] = (),
        resume: bool = False,
    ) -> None:
        """Open a run for the study; with ``resume``, reopen the newest run with this name and these tags, if any.

        The first of the ``objectives`` is that of the trials' scores.
        """

    def open(self) -> None:
        """Get ready to track; called when the first trial trains. Raises what keeps it from tracking."""

    def progress(self, trial: TrialRecord) -> None:
        """Update the curves of a running trial, at most every :data:`PROGRESS_PERIOD` seconds."""

    def is_complete(self, trial: int) -> bool:
        """Return whether a trial and all of its members are tracked."""
        return True

    def finish_trial(self, trial: TrialRecord, members: Sequence[Finals]) -> None:
        """Track a trial, with its ``members`` as in its record, and end its run.

        The trial counts for the study's scores. If its run is complete, the run is left alone and needs no history.
        """

    def log_model(
        self, file: Path, trial: TrialRecord, member: str, metrics: Mapping[str, float], question: str | None = None
    ) -> str:
        """Store a member's model with the metrics that rank it; return the address that ``load_model`` takes.

        Only the study's champion has a ``question``: trials with the same one have comparable scores.
        """
        return str(file)

    def finish(self, status: Status, metrics: Mapping[str, float], artifacts: Iterable[Path]) -> None:
        """End the study's run with its metrics and files."""


class OutageError(UserError):
    """The tracking address does not answer."""


def _passed(method: str) -> Any:
    """The method of a :class:`Lasting` tracker that calls the same one of the tracker inside."""
    return lambda self, *args, **kwargs: self.ask(method, *args, **kwargs)


class Lasting(Tracker):
    """Opens a tracker when it is first needed, since MLflow takes seconds to import, and outlives its outages.

    After the first :class:`OutageError`, which is ``lost`` from then on, it tracks nothing.
    """

    def __init__(self, opening: Callable[[], Tracker], later: bool) -> None:
        self._opening, self._later = opening, later

    @functools.cached_property
    def _tracker(self) -> Tracker:
        tracker = self._opening()
        args, named = self._study
        tracker.start(*args, **named)
        return tracker

    def start(self, *study: Any, **named: Any) -> None:
        self._study = study, named
        if not self._later:
            self.open()

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the tracker."""
        try:
            return getattr(self._tracker, method)(*args, **kwargs)
        except OutageError as error:
            self.lost, self._tracker = error, Tracker()
            return self.ask(method, *args, **kwargs)

    open = _passed("open")
    progress = _passed("progress")
    is_complete = _passed("is_complete")
    finish_trial = _passed("finish_trial")
    log_model = _passed("log_model")
    finish = _passed("finish")


def member_name(row: Row) -> str:
    """Name of a member within its trial: its seed, or ``SEED/DATA_SEED`` if there are several worlds."""
    return "/".join(str(row[axis]) for axis in ("seed", "data.seed") if axis in row)


def quartile_curves(
    history: Sequence[Row], metrics: Sequence[str], after: int = -1
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield median, ``/q25`` and ``/q75`` over members of the metrics, for each epoch later than ``after``.

    A metric that never changes is left out, as one that the history lacks. A member that has stopped, or whose value is
    not finite, counts with its last finite value. So every point of a curve is over all members, and the curve does not
    jump when a member stops.
    """
    epochs = sorted({int(row["epoch"]) for row in history})
    members = list(dict.fromkeys(map(member_name, history)))
    values = np.full((len(epochs), len(metrics), len(members)), np.nan)
    for row in history:
        at = epochs.index(int(row["epoch"])), slice(None), members.index(member_name(row))
        values[at] = [float(row.get(metric, np.nan)) for metric in metrics]
    values[~np.isfinite(values)] = np.nan
    changes = [len(np.unique(one[np.isfinite(one)])) > 1 for one in values.swapaxes(0, 1)]
    for earlier, now in itertools.pairwise(values):
        np.copyto(now, earlier, where=np.isnan(now))
    ordered = np.sort(values, axis=-1)  # NaN comes last
    last = np.maximum(np.isfinite(ordered).sum(axis=-1, keepdims=True) - 1, 0)
    quantiles = {}
    for suffix, share in QUARTILES.items():
        below = np.floor(share * last).astype(int)
        low, high = (np.take_along_axis(ordered, at, -1) for at in (below, np.minimum(below + 1, last)))
        quantiles[suffix] = (low + (share * last - below) * (high - low))[..., 0]
    for i, epoch in enumerate(epochs):
        if epoch > after:
            columns = [(j, metric) for j, metric in enumerate(metrics) if changes[j]]
            yield epoch, {m + suffix: float(value[i, j]) for suffix, value in quantiles.items() for j, m in columns}


def _machine() -> str:
    """The processor, as far as the system names it, its cores and the system."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = found[1] if found else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def provenance() -> dict[str, str]:
    """Tags with the machine, the versions of Python and the packages and, in a checkout, the git commit."""
    tags = {"imavae.machine": _machine(), "imavae.version.python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):  # imavae need not be installed to be run
            tags[f"imavae.version.{package}"] = importlib.metadata.version(package)
    root = Path(__file__).parents[2]
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    with suppress(OSError, subprocess.SubprocessError):  # there is no git, or no commit
        if (root / ".git").exists():
            described = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=5).stdout
            commit, modified, _ = described.strip().partition("-dirty")
            tags |= {"mlflow.source.git.commit": commit, "imavae.git.modified": str(bool(modified)).lower()}
    return tags
