"""The function that a worker of Ray runs, alone in its module: a worker imports no more than this needs.

A worker trains one ensemble, and saves a checkpoint and reports after each validation. The checkpoint lies in the
study's folder, where a successor finds it after the death of the worker, the driver or the machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ray
import torch
from filelock import FileLock
from ray import tune

from imavae.config.settings import Objective, run_config, with_values
from imavae.data.storage import Seal
from imavae.runs.folder import RunFolder
from imavae.runs.session import Session, cache_of, resolve_device
from imavae.training.checkpoint import SEAL

WORK = ("member_steps", "train_seconds", "validate_seconds")  # counted in each report since the worker's start
REMEDY = "remove it: the point is judged again when the study is resumed"
OTHER_VERSION = "resume the study with the version of imavae that wrote it"
STOPS = Seal(b"imavae note", 1, "stop file", REMEDY, REMEDY, OTHER_VERSION)


def trainable(config: dict[str, Any], base: dict[str, Any], objectives: list[dict[str, Any]], folder: str) -> None:
    """Train ``config["points"]``, (number, values) each, in one ensemble; continue from its checkpoint if there is one.

    All points share the settings ``base``. Each report has every point's ``scores``, by objective, and what Optuna's
    page tells ``about`` it.
    """
    shared, names = run_config(base), RunFolder(Path(folder))
    torch.set_num_threads(shared.training.threads)
    goals = [Objective(**objective) for objective in objectives]
    numbers = [number for number, _ in config["points"]]
    points = [with_values(shared, values) for _, values in config["points"]]
    checkpoint, cache = names.ensemble(min(numbers)), cache_of(names.output_dir)
    device = resolve_device(shared.training.device if ray.get_gpu_ids() else "cpu")
    work = dict.fromkeys(WORK, 0.0)

    def stop_points(session: Session) -> None:
        for number, epoch in read_stops(names.stop_file(min(numbers))).items():
            if epoch <= session.state.epoch:
                session.stop(numbers.index(number))

    def metrics_of(session: Session) -> dict[str, Any]:
        return {
            "scores": session.scores(goals),
            "about": session.described(goals[0]),
            "alive": [len(session.alive(i)) for i in range(len(points))],
            "epoch": session.state.epoch,
            "seconds": session.seconds,  # of earlier workers, too
            **work,
        }

    def report(session: Session) -> None:
        metrics = metrics_of(session)
        if not any(metrics["alive"]):  # the driver would evaluate one trial after the other
            session.finals = {point: session.final(point) for point in range(len(points))}
        session.save(checkpoint, keep=True)
        tune.report(metrics)
        stop_points(session)

    with FileLock(names.ensemble_lock(min(numbers))):  # a dying worker may still train when its successor starts
        session = Session.resume(checkpoint, points, device, cache) or Session.start(points, device, cache)
        stop_points(session)  # the checkpoint is older than the driver's last decision
        progress = None
        for progress in session.train(goals):
            for name in WORK:
                work[name] += getattr(progress, name)
            if progress.validated:
                report(session)
        if progress is None and SEAL.newest(checkpoint) == checkpoint:
            tune.report(metrics_of(session))  # complete before: a record may have the digest of its file
        elif progress is None or not progress.validated:
            report(session)  # the ensemble was complete, or all members diverged: the driver still needs the scores


def read_stops(path: Path) -> dict[int, int]:
    """Epochs at which points were stopped, by number. Raises UserError for a damaged file."""
    if not path.exists():
        return {}
    return {int(number): int(epoch) for number, epoch in json.loads(STOPS.read(path)).items()}


def write_stops(path: Path, stopped: dict[int, int]) -> None:
    """Write the epochs at which points were stopped, by number."""
    path.parent.mkdir(exist_ok=True)
    STOPS.write(path, json.dumps(stopped).encode())
