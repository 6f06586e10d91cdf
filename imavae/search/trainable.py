"""What a Ray worker runs: a session's training, with a report and a checkpoint after each validation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

STATE = "state.pt"  # the session, in a trial's checkpoint


def trainable(config: dict[str, Any], base: dict[str, Any], objectives: list[dict[str, Any]], folder: str) -> None:
    """Train the points of ``config`` in one ensemble.

    ``config`` has ``points``, a list of (number, point); a point is dotted keys and their values. Each report has every
    point's scores, its members that are still training, the epoch and the work done so far. What the driver makes of
    it, the note in the study's ``folder``, is obeyed before training goes on.
    """
    import ray
    import torch
    from ray import tune

    from imavae.config import Objective, run_config, with_values
    from imavae.run import Session, resolve_device
    from imavae.search.stopping import note_of, read_note

    shared = run_config(base)
    torch.set_num_threads(shared.training.threads)
    goals = [Objective(**objective) for objective in objectives]
    numbers = [number for number, _ in config["points"]]
    note = note_of(Path(folder), min(numbers))
    points = [with_values(shared, values) for _, values in config["points"]]
    device = resolve_device(shared.training.device if ray.get_gpu_ids() else "cpu")
    previous = tune.get_checkpoint()
    if previous is None:
        session = Session.start(points, device)
    else:
        with previous.as_directory() as stored:
            session = Session.load(Path(stored) / STATE, device)
    done = {"member_steps": 0, "train_seconds": 0.0, "validate_seconds": 0.0}

    def report() -> None:
        alive = [len(session.alive(i)) for i in range(len(points))]
        metrics = {"scores": session.scores(goals), "alive": alive, "epoch": session.state.epoch, **done}
        with tempfile.TemporaryDirectory() as aside:
            session.save(Path(aside) / STATE)
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(aside))
        obey()

    def obey() -> None:
        for number, epoch in read_note(note).items():
            if epoch <= session.state.epoch:
                session.stop(numbers.index(number))

    obey()  # a restored state is that from before the driver's decision
    progress = None
    for progress in session.train():
        done["member_steps"] += progress.member_steps
        done["train_seconds"] += progress.train_seconds
        done["validate_seconds"] += progress.validate_seconds
        if progress.validated:
            report()
    if progress is None or not progress.validated:
        report()  # nothing was left to do after a restore, or all members diverged: the score must still be known
