"""What a Ray worker runs: a session's training, with a checkpoint and a report after each validation.

The checkpoint is the study's own: it lies where a successor finds it, whether Ray, the driver or the machine has died.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def trainable(config: dict[str, Any], base: dict[str, Any], objectives: list[dict[str, Any]], folder: str) -> None:
    """Train the points of ``config`` in one ensemble, from its checkpoint in the study's ``folder`` if there is one.

    ``config`` has ``points``, a list of (number, point); a point is dotted keys and their values. Each report has every
    point's scores, its members that are still training, the epoch and the work done so far. What the driver makes of
    it, the note in the study's ``folder``, is obeyed before training goes on. Images are in the output folder's cache.
    """
    import ray
    import torch
    from filelock import FileLock
    from ray import tune

    from imavae.config.settings import Objective, run_config, with_values
    from imavae.runs.folder import RunFolder
    from imavae.runs.session import Session, cache_of, resolve_device
    from imavae.search.stopping import read_note

    shared = run_config(base)
    torch.set_num_threads(shared.training.threads)
    goals = [Objective(**objective) for objective in objectives]
    numbers = [number for number, _ in config["points"]]
    names = RunFolder(Path(folder))
    note, place = names.note(min(numbers)), names.ensemble(min(numbers))
    points = [with_values(shared, values) for _, values in config["points"]]
    device = resolve_device(shared.training.device if ray.get_gpu_ids() else "cpu")
    cache = cache_of(names.output_dir)
    done = {"member_steps": 0, "train_seconds": 0.0, "validate_seconds": 0.0}

    def report(session: Session) -> None:
        alive = [len(session.alive(i)) for i in range(len(points))]
        metrics = {"scores": session.scores(goals), "alive": alive, "epoch": session.state.epoch, **done}
        session.save(place, keep=True)
        tune.report(metrics)
        obey(session)

    def obey(session: Session) -> None:
        for number, epoch in read_note(note).items():
            if epoch <= session.state.epoch:
                session.stop(numbers.index(number))

    with FileLock(names.ensemble_lock(min(numbers))):
        session = Session.resume(place, points, device, cache) or Session.start(points, device, cache)
        obey(session)  # a restored state is that from before the driver's decision
        progress = None
        for progress in session.train():
            done["member_steps"] += progress.member_steps
            done["train_seconds"] += progress.train_seconds
            done["validate_seconds"] += progress.validate_seconds
            if progress.validated:
                report(session)
        if progress is None or not progress.validated:
            report(session)  # it was complete already, or all members diverged: the score must still be known
