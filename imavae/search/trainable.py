"""What a Ray worker runs: a session's training, with a report and a checkpoint after each validation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

STATE = "state.pt"  # the session, in a trial's checkpoint


def trainable(config: dict[str, Any], base: dict[str, Any], objective: dict[str, Any], output_dir: str) -> None:
    """Train the points of ``config`` in one ensemble.

    ``config`` is one point (dotted keys and their values), or has ``points``, a list of (number, point). Each report
    has the score (the best of several points'), every point's score, the epoch and the work done so far. Images are in
    the cache of ``output_dir``, which is absolute: a worker's current directory is another.
    """
    import ray
    import torch
    from ray import tune

    from imavae.config import Objective, run_config, with_values
    from imavae.run import Session, cache_of, resolve_device

    shared = run_config(base)
    torch.set_num_threads(shared.training.threads)
    goal = Objective(**objective)
    points = [with_values(shared, values) for _, values in config.get("points", [(0, config)])]
    device = resolve_device(shared.training.device if ray.get_gpu_ids() else "cpu")
    cache = cache_of(output_dir)
    previous = tune.get_checkpoint()
    if previous is None:
        session = Session.start(points, device, cache)
    else:
        with previous.as_directory() as folder:
            session = Session.load(Path(folder) / STATE, device, cache)
    done = {"member_steps": 0, "train_seconds": 0.0, "validate_seconds": 0.0}

    def report() -> None:
        scores = [session.score(i, goal) for i in range(len(points))]
        best = max(scores) if goal.mode == "max" else min(scores)
        metrics = {goal.metric: best, "scores": scores, "epoch": session.state.epoch, **done}
        metrics["active"] = len(session.state.active)
        with tempfile.TemporaryDirectory() as folder:
            session.save(Path(folder) / STATE)
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))

    progress = None
    for progress in session.train():
        done["member_steps"] += progress.member_steps
        done["train_seconds"] += progress.train_seconds
        done["validate_seconds"] += progress.validate_seconds
        if progress.validated:
            report()
    if progress is None or not progress.validated:
        report()  # nothing was left to do after a restore, or all members diverged: the score must still be known
