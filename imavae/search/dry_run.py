"""Cost of a study before it starts: trials and steps are counted, an epoch and a validation are timed here."""

from __future__ import annotations

import dataclasses
import heapq
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
import torch

from imavae.config.data import ImagesData
from imavae.config.settings import RunConfig, StudyConfig, base_of, with_values
from imavae.data.images import Cache
from imavae.model import vae
from imavae.runs.session import Session, cache_of, resolve_device
from imavae.search import cluster
from imavae.search.searcher import Searcher
from imavae.search.space import Point, check, packs_of
from imavae.search.stored import open_study
from imavae.training.step import train_epoch

TIMED = (0.0, 0.5, 1.0)  # quantiles of the ensembles' numbers of weights: the cheapest, the middle one, the dearest
TIMED_STEPS = 200  # of an epoch, at most
TIMED_IMAGES = 6000  # observations to render, at most


class Timing(NamedTuple):
    """An ensemble that was timed."""

    members: int
    weights: int  # of all members
    epoch: float  # seconds
    validation: float  # seconds


class Cost(NamedTuple):
    """Size of a study, and its expected time if no trial and no member stops early."""

    points: list[Point]  # those of a sampler are what it would propose without knowing a score
    packs: list[list[int]]  # numbers of the points that train together
    member_steps: int  # steps, summed over members
    timed: list[Timing]
    slots: int  # trials that run at once
    seconds: float  # of training and validation here; start-up, tracking and reports are not included
    stops_early: bool  # trials or members may stop early


def dry_run(config: StudyConfig) -> Cost:
    """Count and time the trials of a study. Nothing is written or tracked, and Ray is not started."""
    parameters, points = check(config)
    slots = cluster.expected_slots(config.cluster)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.InMemoryStorage()
    study = open_study(storage, "dry run", config.objectives)
    for values in points:
        study.enqueue_trial(dict(values))
    searcher = Searcher(study, storage, parameters, config, packs_of(config, parameters, points, slots), None)
    trials = list(iter(lambda: searcher.suggest("any"), Searcher.FINISHED))
    found: dict[int, Point] = {number: point for trial in trials for number, point in trial["points"]}
    packs = [[number for number, _ in trial["points"]] for trial in trials]
    return estimate(config, [found[number] for number in sorted(found)], packs, slots)


def estimate(config: StudyConfig, points: list[Point], packs: list[list[int]], slots: int) -> Cost:
    """Time some ensembles of these packs, interpolate the others by their number of weights, and add up."""
    base, training = base_of(config), config.training
    ensembles = [[with_values(base, points[number]) for number in pack] for pack in packs]
    weights = [_weights(ensemble) for ensemble in ensembles]
    sizes = sorted(set(np.quantile(weights, TIMED, method="nearest").tolist()))
    device = resolve_device(training.device if config.cluster.gpus_per_trial else "cpu")
    timed = [_timing(ensembles[weights.index(size)], size, device) for size in sizes]
    epochs, validations = training.max_epochs, math.ceil(training.max_epochs / training.validate_every)
    seconds = np.interp(weights, sizes, [epochs * t.epoch + validations * t.validation for t in timed]).tolist()
    steps = [
        math.ceil(p.data.sizes[0] / p.training.batch_size) * p.training.max_epochs * p.members.count
        for ensemble in ensembles
        for p in ensemble
    ]
    early = config.scheduler.name != "none" or training.patience * training.validate_every < training.max_epochs
    return Cost(points, packs, sum(steps), timed, slots, makespan(seconds, slots), early)


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Time at which the last trial ends if each one, in this order, starts as soon as a slot is free."""
    ends = [0.0] * slots
    for duration in seconds:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def _weights(ensemble: Sequence[RunConfig]) -> int:  # of all members
    shapes = vae.build(ensemble[0]).layout.shapes.values()
    return ensemble[0].members.count * len(ensemble) * sum(math.prod(shape) for shape in shapes)


def _timing(points: list[RunConfig], weights: int, device: torch.device) -> Timing:
    """Time an epoch and a validation of an ensemble, on a part of its data if there is much."""
    train, val, _ = points[0].data.sizes
    batch = points[0].training.batch_size
    if points[0].data.has_images:
        few = min(points[0].data.n_obs, TIMED_IMAGES)
        points = [dataclasses.replace(p, data=dataclasses.replace(p.data, n_obs=few)) for p in points]
    torch.set_num_threads(points[0].training.threads)
    with tempfile.TemporaryDirectory() as folder:
        mine = isinstance(points[0].data, ImagesData)  # they are copied whole, and the study will use them
        session = Session.start(points, device, cache_of(points[0].output_dir) if mine else Cache(Path(folder)))
        rows, part = session.state.active, session.data.train.first(TIMED_STEPS * batch)
        train_epoch(session.ensemble, session.state, part.first(8 * batch))  # the first steps are slower
        epoch = _timed(lambda: train_epoch(session.ensemble, session.state, part)) * train / len(part)
        validation = _timed(lambda: session.validate(session.state.weights, rows)) * val / len(session.data.val)
    return Timing(len(rows), weights, epoch, validation)


def _timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes on its device."""
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
