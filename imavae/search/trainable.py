"""What a Ray worker runs: a session's training, with a checkpoint and a report after each validation.

The checkpoint is the study's own: it lies where a successor finds it, whether Ray, the driver or the machine has died.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def place_of(folder: Path, config: dict[str, Any], trial_id: str) -> Path:
    """Where the checkpoint of an ensemble lies: it is called by its first point's number."""
    listed = config.get("points")
    return folder / (f"ensemble-{min(n for n, _ in listed):03d}.pt" if listed else f"ensemble-{trial_id}.pt")


def lock_of(place: Path) -> Path:
    """The file that keeps two workers from one ensemble: the first may still be dying when its successor starts."""
    return place.with_suffix(".lock")


def trainable(config: dict[str, Any], base: dict[str, Any], objective: dict[str, Any], folder: str) -> None:
    """Train the points of ``config`` in one ensemble, from its checkpoint in ``folder`` if there is one.

    ``config`` is one point (dotted keys and their values), or has ``points``, a list of (number, point). Each report
    has the score (the best of several points'), every point's score, the epoch and the work done so far.
    """
    import ray
    import torch
    from ray import tune

    from imavae.config import Objective, run_config, with_values
    from imavae.files import one_at_a_time
    from imavae.run import Session, resolve_device

    shared = run_config(base)
    torch.set_num_threads(shared.training.threads)
    goal = Objective(**objective)
    points = [with_values(shared, values) for _, values in config.get("points", [(0, config)])]
    device = resolve_device(shared.training.device if ray.get_gpu_ids() else "cpu")
    place = place_of(Path(folder), config, tune.get_context().get_trial_id())
    done = {"member_steps": 0, "train_seconds": 0.0, "validate_seconds": 0.0}

    def report(session: Session) -> None:
        scores = [session.score(i, goal) for i in range(len(points))]
        best = max(scores) if goal.mode == "max" else min(scores)
        metrics = {goal.metric: best, "scores": scores, "epoch": session.state.epoch, **done}
        session.save(place, keep=True)
        tune.report({**metrics, "active": len(session.state.active)})

    with one_at_a_time(lock_of(place)):
        session = Session.resume(place, points, device) or Session.start(points, device)
        progress = None
        for progress in session.train():
            done["member_steps"] += progress.member_steps
            done["train_seconds"] += progress.train_seconds
            done["validate_seconds"] += progress.validate_seconds
            if progress.validated:
                report(session)
        if progress is None or not progress.validated:
            report(session)  # it was complete already, or all members diverged: the score must still be known
