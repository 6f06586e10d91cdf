"""What a study costs, before it starts: counted, and timed by some seconds of training on this machine.

A step's time is that of its kernels' dispatch and of their arithmetic, and so is a validation's: a non-negative least-
squares fit of seconds = a L + b F to the space's cheapest, middle and dearest ensemble, with L the number of weight
tensors and F members x weights (x points). As many processes measure at once as trials will train at once, since they
share caches and memory. A study's trials are dealt to its slots in their order; the driver's own work (the last
evaluation of each trial, tracking) is done beside, on the same cores.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import math
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls

from imavae.config.data import SpritesData
from imavae.config.mapping import to_mapping
from imavae.config.settings import RunConfig, StudyConfig, base_of, run_config, with_values
from imavae.data.cache import Cache
from imavae.metrics.glossary import Stage
from imavae.model import vae
from imavae.runs.session import Session, resolve_device
from imavae.search import cluster
from imavae.search.space import Point
from imavae.training.ensemble import train_epoch

SECONDS = 10.0  # of calibration, over all ensembles
IMAGES = 6000  # that are rendered to measure, at most
ENSEMBLES = 3  # that are timed: the cheapest, the middle and the dearest
PROCESSES = 16  # that measure at once, at most
# Measured on the reference machine, where the processes that measure take READY to start and to import what they need;
# elsewhere, or while the machine is busy, they are scaled by that time's ratio.
READY = 5.7
START = 17.5  # from the command to the first step: imports, Ray, the tracked run, the first worker
END = 8.0  # from the last trial's record to the end: figures, the logged models
REPORT = 0.01  # of a report to Ray, besides its checkpoint
TRIAL = 0.25  # of a trial: in its worker, to begin; in the driver, its tracked run
MEMBER = 0.05  # of a member's tracked run


class Size(NamedTuple):
    """What decides an ensemble's times."""

    tensors: int  # of weights
    weights: int  # of all members
    steps: int  # of an epoch
    batch: int
    points: int  # of the validation split
    epochs: int
    validations: int
    members: int


class Times(NamedTuple):
    """Seconds of one ensemble, as they were measured."""

    data: float  # to make its data
    step: float
    validation: float
    report: float  # to save a checkpoint
    final: float  # the last evaluation, of validation and test split at both best states


@dataclass(frozen=True)
class Cost:
    """What a study will take.

    Attributes:
        points: all of them, or for a sampler so many as it would propose knowing no score.
        packs: numbers of the points that train together.
        steps: members and steps of each ensemble, if no member stops early.
        timed: the ensembles that were timed, and their times.
        slots: trials that run at once.
        seconds: of the whole command.
        bound: whether trials or members may stop early, so that it may take less.
    """

    points: list[Point]
    packs: list[list[int]]
    steps: list[tuple[int, int]]
    timed: list[tuple[Size, Times]]
    slots: int
    seconds: float
    bound: bool

    @property
    def member_steps(self) -> int:
        """Steps of all members."""
        return sum(members * steps for members, steps in self.steps)


def estimate(config: StudyConfig, points: list[Point], packs: list[list[int]], slots: int) -> Cost:
    """Time ensembles of these packs for about ten seconds, and count."""
    base = base_of(config)
    ensembles = [[with_values(base, points[number]) for number in pack] for pack in packs]
    sizes = [size_of(ensemble) for ensemble in ensembles]
    chosen = spread(sizes)
    on_gpu = config.cluster.gpus_per_trial > 0
    timed, ready = measured([ensembles[i] for i in chosen], min(slots, len(packs), PROCESSES), on_gpu)
    known = [(sizes[i], times) for i, times in zip(chosen, timed, strict=True)]
    factor = ready / READY
    trials = [trial_seconds(size, known, factor) for size in sizes]
    drivers = [driver_seconds(size, known, factor) for size in sizes]
    beside = sum(drivers[:-1]) / slots if cluster.available_cpus() <= slots else 0.0  # else it has its own core
    return Cost(
        points=points,
        packs=packs,
        steps=[(size.members, size.steps * size.epochs) for size in sizes],
        timed=known,
        slots=slots,
        seconds=(START + END) * factor + makespan(trials, slots) + beside + drivers[-1],
        bound=stops_early(config),
    )


def stops_early(config: StudyConfig) -> bool:
    """Whether members or points can stop before their last epoch."""
    training = config.training
    return config.scheduler.name != "none" or training.patience * training.validate_every < training.max_epochs


def size_of(ensemble: Sequence[RunConfig]) -> Size:
    """The size of an ensemble of points."""
    first = ensemble[0]
    shapes = vae.build(first).layout.shapes.values()
    members = first.members.count * len(ensemble)
    training, (train, val, _) = first.training, first.data.sizes
    return Size(
        tensors=len(shapes),
        weights=members * sum(math.prod(shape) for shape in shapes),
        steps=math.ceil(train / training.batch_size),
        batch=training.batch_size,
        points=val,
        epochs=training.max_epochs,
        validations=math.ceil(training.max_epochs / training.validate_every),
        members=members,
    )


def spread(sizes: Sequence[Size]) -> list[int]:
    """Which ensembles to time: the cheapest, the middle and the dearest, each size once."""
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i].weights * sizes[i].batch, sizes[i].tensors))
    picked = [order[round(k * (len(order) - 1) / (ENSEMBLES - 1))] for k in range(ENSEMBLES)]
    return list({sizes[i]: i for i in picked}.values())


def trial_seconds(size: Size, timed: Sequence[tuple[Size, Times]], factor: float) -> float:
    """A trial's time in its worker, if no member stops early."""
    step = _fitted(timed, size, lambda s: (s.tensors, s.weights * s.batch), lambda t: t.step)
    validation = _fitted(timed, size, lambda s: (s.tensors, s.weights * s.points), lambda t: t.validation)
    data, report = (float(np.mean([getattr(t, name) for _, t in timed])) for name in ("data", "report"))
    validating = size.validations * (validation + report + REPORT * factor)
    return data + size.epochs * size.steps * step + validating + TRIAL * factor


def driver_seconds(size: Size, timed: Sequence[tuple[Size, Times]], factor: float) -> float:
    """A trial's time in the driver."""
    final = _fitted(timed, size, lambda s: (s.tensors, s.weights * s.points), lambda t: t.final)
    return final + (TRIAL + size.members * MEMBER) * factor


def makespan(seconds: Sequence[float], slots: int) -> float:
    """When the last trial ends, if each is begun, in this order, as soon as one of the slots is free."""
    ends = [0.0] * slots
    for duration in seconds:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def _fitted(
    timed: Sequence[tuple[Size, Times]],
    size: Size,
    features: Callable[[Size], tuple[float, ...]],
    seconds: Callable[[Times], float],
) -> float:
    """A time at another size, by the fit whose relative errors are least."""
    y = np.array([seconds(times) for _, times in timed])
    x = np.array([features(s) for s, _ in timed], dtype=np.float64)
    scale = x.max(0)
    weights, _ = nnls(x / scale / y[:, None], np.ones(len(y)))
    return float(np.array(features(size)) / scale @ weights)


def measured(ensembles: list[list[RunConfig]], processes: int, on_gpu: bool) -> tuple[list[Times], float]:
    """The times of some ensembles, averaged over processes that measure them at the same time; and how long these took
    to be ready.
    """
    task = [[to_mapping(point) for point in ensemble] for ensemble in ensembles], SECONDS / len(ensembles), on_gpu
    context = get_context("spawn")
    start, barrier = time.perf_counter(), context.Barrier(processes + 1)
    with context.Pool(processes, _begin, (barrier,)) as pool:
        barrier.wait()
        ready = time.perf_counter() - start
        found = pool.map(_measure_all, [task] * processes, chunksize=1)
    return [Times(*np.mean([times[i] for times in found], axis=0).tolist()) for i in range(len(ensembles))], ready


def _begin(barrier: Barrier) -> None:
    """Wait until all processes have imported what they need."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that has started it ends it
    barrier.wait()


def _measure_all(task: tuple[list[list[dict[str, Any]]], float, bool]) -> list[Times]:
    ensembles, seconds, on_gpu = task
    return [_measure([run_config(point) for point in points], seconds, on_gpu) for points in ensembles]


def _measure(points: list[RunConfig], seconds: float, on_gpu: bool) -> Times:
    """One ensemble's times, measured for so many seconds, or somewhat longer where one validation takes so long."""
    training = points[0].training
    torch.set_num_threads(training.threads)
    images = isinstance(points[0].data, SpritesData)
    if images:  # some are enough, and a study renders all of them once, before its first trial
        few = min(points[0].data.n_obs, IMAGES)
        points = [dataclasses.replace(p, data=dataclasses.replace(p.data, n_obs=few)) for p in points]
    with tempfile.TemporaryDirectory() as folder:
        session = Session.start(points, resolve_device(training.device if on_gpu else "cpu"), Cache(Path(folder)))
        data = _timed(lambda: session.data)
        step = _step_seconds(session, seconds / 2)
        validation = _evaluation_seconds(session, "val", "validation", seconds / 4)
        test = _evaluation_seconds(session, "test", "probes" if training.probes else "final", seconds / 4)
        final = 2 * test * (1 + len(session.data.val) / len(session.data.test))
        report = _timed(lambda: session.save(Path(folder) / "state.pt"))
    return Times(0.0 if images else data, step, validation, report, final)


def _step_seconds(session: Session, seconds: float) -> float:
    """The mean over short epochs; the first of them is a trial, by which the others get their length."""
    split, size = session.data.train, session.points[0].training.batch_size
    steps, taken, done, begun = 8, 0.0, 0, time.perf_counter()
    while not done or time.perf_counter() - begun < seconds:
        few = split.first(steps * size)
        epoch = _timed(functools.partial(train_epoch, session.ensemble, session.state, few))
        if steps > 8:
            taken, done = taken + epoch, done + math.ceil(len(few) / size)
        steps = max(9, min(256, round(seconds / 4 * 8 / epoch))) if steps == 8 else steps
    return taken / done


def _evaluation_seconds(session: Session, split: str, stage: Stage, seconds: float) -> float:
    """Of all members; where that would take too long, of a few, times their share."""
    rows = session.state.active
    few = rows[:4]
    of_few = min(_timed(lambda: session.evaluate(split, session.state.weights[few], few, stage)) for _ in range(2))
    if of_few * len(rows) / len(few) > seconds:
        return of_few * len(rows) / len(few)
    return _timed(lambda: session.evaluate(split, session.state.weights, rows, stage))


def _timed(action: Callable[[], object]) -> float:
    """Seconds that it takes, on its device, too."""
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
