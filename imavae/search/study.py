"""A study: Ray spreads trials, Optuna proposes points, each trial's score is the objective over its members.

The driver alone writes: tables, checkpoints and tracked runs, as trials end, in a thread beside Ray's event loop.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imavae.config import Cluster, StudyConfig, base_of
from imavae.errors import UserError, require
from imavae.mapping import to_mapping
from imavae.metrics.glossary import check_metric
from imavae.run import Outcome, Session, failed_record, resolve_device, tracker_of
from imavae.search import space
from imavae.search.progress import Snapshot
from imavae.search.trainable import STATE, trainable

if TYPE_CHECKING:
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import SearchAlgorithm, Searcher

Point = dict[str, space.Value]
QUIET = {  # what Ray would otherwise print, send, probe or write outside the study's folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}


def check(config: StudyConfig) -> tuple[list[space.Parameter], list[Point]]:
    """The parameters of a study, and the points of a grid (none for a sampler that proposes them).

    Raises:
        UserError: anything about the study that can be known to be wrong before its first trial.
    """
    check_metric(config, config.objective.metric, config.objective.mode)
    parameters = space.parse(config)
    if config.sampler.name != "grid":
        require(config.budget.trials is not None, "budget.trials is a number", "null", "only a grid ends by itself")
        return parameters, []
    require(
        config.scheduler.name == "none",
        "scheduler.name is none for a grid",
        config.scheduler.name,
        "the points of a grid train together, so none of them can be stopped alone",
    )
    return parameters, space.grid(parameters)[: config.budget.trials]


def run_study(config: StudyConfig, notify: Callable[[Snapshot], None]) -> Outcome:
    """Run a study to its end, or until it is interrupted; ``notify`` is told where it stands, about once a second.

    Raises:
        UserError: a mistake in the configuration, an address that can't be reached, or all trials failed.
    """
    parameters, points = check(config)
    tracker = tracker_of(config, config.study)
    start_ray(config.cluster)
    import ray
    from ray import tune

    from imavae.search.hooks import Hooks

    slots = _slots(config.cluster, ray.cluster_resources())  # type: ignore[no-untyped-call]
    base = base_of(config)
    packs = space.packs(base, points, slots) if points else []
    outcome = Outcome.start(config, "studies", config.study, tracker, config.objective)
    n_points = len(points) or config.budget.trials or 0
    n_trials = len(packs) or n_points
    recorder = Hooks.recorder = Recorder(config, outcome, n_points, n_trials, notify)
    bound = tune.with_parameters(trainable, base=to_mapping(base), objective=asdict(config.objective))
    if packs:
        choices = [[[number, points[number]] for number in pack] for pack in packs]
        grid_space = {"points": tune.grid_search(choices)}
    tuner = tune.Tuner(
        tune.with_resources(bound, resources_of(config.cluster)),
        param_space=grid_space if packs else None,
        tune_config=tune.TuneConfig(
            metric=config.objective.metric,
            mode=config.objective.mode,
            search_alg=_search(config, parameters, slots),
            scheduler=_scheduler(config),
            num_samples=1 if packs else n_points,
            max_concurrent_trials=None if packs else slots,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(outcome.folder),
            callbacks=[Hooks()],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            failure_config=tune.FailureConfig(max_failures=2),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        recorder.close()
        ray.shutdown()
    outcome.interrupted = len(outcome.records) < n_points  # Ray ends normally after an interrupt
    outcome.work_seconds = recorder.total("train_seconds", "validate_seconds") / min(slots, n_trials)
    if not outcome.ranked():
        outcome.tracker.finish("failed", {}, [])
        reason = next(iter(recorder.failures), "the study was interrupted before the first trial had ended")
        raise UserError(f"no trial of {outcome.folder.name} has a result: {reason}; see {outcome.folder / 'ray'}")
    return outcome


def start_ray(cluster: Cluster) -> None:
    """Start Ray on this machine, or join the cluster at its address, without output.

    Raises:
        UserError: no cluster answers at the address.
    """
    os.environ.update(QUIET)
    warnings.filterwarnings("ignore", module=r"ray\.|optuna\.")
    import ray

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if cluster.name == "ray":
        try:
            host, colon, port = (cluster.address or "").rpartition(":")
            if colon and port.isdigit():  # Ray itself tries for minutes
                socket.create_connection((host, int(port)), timeout=4).close()
            ray.init(address=cluster.address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"`cluster.address is a running Ray cluster` must hold, but got {cluster.address!r} ({error}); "
                "start one with `ray start --head`, or say cluster=local"
            ) from None
        return
    # One thread per trial, unless training.threads says otherwise: more only get in each other's way on small models.
    workers = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    cpus = cluster.cpus or len(os.sched_getaffinity(0))
    ray.init(num_cpus=cpus, num_gpus=cluster.gpus, include_dashboard=False, runtime_env=workers, **quiet)
    logging.getLogger("ray").setLevel(logging.ERROR)


def resources_of(cluster: Cluster) -> dict[str, float]:
    """What each trial asks Ray for; a worker sees just the GPUs that it was given a share of."""
    return {"cpu": cluster.cpus_per_trial, "gpu": cluster.gpus_per_trial}


def _slots(cluster: Cluster, resources: dict[str, float]) -> int:
    """Trials that can run at once."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    fits = [cpus / cluster.cpus_per_trial]
    if cluster.gpus_per_trial:
        fits.append(gpus / cluster.gpus_per_trial)
    slots = int(min(fits) + 1e-9)
    require(
        slots >= 1,
        "one trial fits into the cluster",
        f"{cpus:g} cpus and {gpus:g} gpus for trials of {cluster.cpus_per_trial:g} and {cluster.gpus_per_trial:g}",
        "lower cluster.cpus_per_trial or cluster.gpus_per_trial",
    )
    return slots


def _search(config: StudyConfig, parameters: list[space.Parameter], slots: int) -> SearchAlgorithm | Searcher:
    if config.sampler.name == "grid":
        from ray.tune.search import BasicVariantGenerator

        return BasicVariantGenerator(max_concurrent=slots)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = config.sampler.seed
    if config.sampler.name == "random":
        sampler: Any = optuna.samplers.RandomSampler(seed)
    else:
        # A joint model of all parameters; trials still running count as bad, so that workers spread out.
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=config.sampler.startup, multivariate=True, constant_liar=True
        )
    distributions = {parameter.key: parameter.distribution() for parameter in parameters}
    return OptunaSearch(distributions, metric=config.objective.metric, mode=config.objective.mode, sampler=sampler)


def _scheduler(config: StudyConfig) -> TrialScheduler | None:
    if config.scheduler.name == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler

    horizon, grace = config.training.max_epochs, min(config.scheduler.grace, config.training.max_epochs)
    return ASHAScheduler(
        time_attr="epoch", max_t=horizon, grace_period=grace, reduction_factor=config.scheduler.reduction
    )


@dataclass
class _Running:
    """What the driver knows of a Ray trial."""

    first: int  # number of its first point, when it has one
    points: dict[int, Point]  # by their numbers in the study
    result: dict[str, Any] = field(default_factory=dict)
    past: dict[str, float] = field(default_factory=dict)  # work done before a restart
    writing: Future[None] | None = None
    ended: bool = False


class Recorder:
    """Follows the trials: tells where the study stands, and records each trial as it ends."""

    def __init__(
        self, config: StudyConfig, outcome: Outcome, n_points: int, n_trials: int, notify: Callable[[Snapshot], None]
    ) -> None:
        self._config, self._outcome, self._notify = config, outcome, notify
        self._n_points, self._n_trials = n_points, n_trials
        self._trials: dict[str, _Running] = {}
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._written: list[Future[None]] = []
        self._start = self._said = time.monotonic()
        self.failures: list[str] = []

    def started(self, trial: Trial) -> None:
        """Number the trial's points: a grid's by their place in it, others by their arrival."""
        if trial.trial_id in self._trials:
            return
        listed = trial.config.get("points")
        if listed is None:
            number = len(self._trials)
            points = {number: dict(trial.config)}
        else:
            points = {number: dict(values) for number, values in listed}
        self._trials[trial.trial_id] = _Running(min(points), points)

    def reported(self, trial: Trial, result: dict[str, Any]) -> None:
        """Remember a report, and pass the curves so far on to the tracker."""
        running = self._trials[trial.trial_id]
        if running.result and result["member_steps"] < running.result["member_steps"]:
            for name in ("member_steps", "train_seconds", "validate_seconds"):  # its worker was restarted
                running.past[name] = running.past.get(name, 0) + running.result[name]
        running.result = result
        if trial.checkpoint and (running.writing is None or running.writing.done()):
            running.writing = self._writer.submit(self._progress, running, Path(trial.checkpoint.path))

    def ended(self, trial: Trial, failed: bool) -> None:
        """Record a trial that has completed, was stopped by the scheduler, or has failed for good."""
        running = self._trials[trial.trial_id]
        running.ended = True
        if failed or not trial.checkpoint:
            reason = str(trial.get_pickled_error() or "no checkpoint").strip().splitlines()[-1]
            self.failures.append(reason)
            self._written.append(self._writer.submit(self._record_failure, running))
        else:
            self._written.append(self._writer.submit(self._record, running, Path(trial.checkpoint.path)))

    def tell(self) -> None:
        """Notify of where the study stands, once a second."""
        now = time.monotonic()
        if now - self._said >= 1:
            self._said = now
            self._notify(self.snapshot())

    def close(self) -> None:
        """Wait until all is written; an error in writing surfaces here."""
        self._writer.shutdown(wait=True)
        self._notify(self.snapshot())
        for written in self._written:
            written.result()

    def total(self, *names: str) -> float:
        """Work done by all trials so far, what restarted workers did included."""
        trials = self._trials.values()
        return float(sum(t.result.get(name, 0) + t.past.get(name, 0) for t in trials for name in names))

    def snapshot(self) -> Snapshot:
        """Where the study stands now."""
        seconds = time.monotonic() - self._start
        trials = list(self._trials.values())
        work = sum(1.0 if t.ended else t.result.get("epoch", 0) / self._config.training.max_epochs for t in trials)
        seeds = len(self._config.members.seed)
        stopped = [len(t.points) * seeds - t.result["active"] for t in trials if t.result and not t.ended]
        scores = {
            number: score for t in trials for number, score in zip(t.points, t.result.get("scores", ()), strict=False)
        }
        pick = max if self._config.objective.mode == "max" else min
        best = pick(scores, key=lambda number: scores[number]) if scores else None
        points = {number: point for t in trials for number, point in t.points.items()}
        ended = sum(row["status"] != "finished" for r in self._outcome.records for row in r.members)
        return Snapshot(
            trials_total=self._n_points,
            finished=sum(len(t.points) for t in trials if t.ended),
            running=sum(len(t.points) for t in trials if not t.ended),
            members_stopped=sum(stopped) + ended,
            best_score=None if best is None else scores[best],
            best_point=None if best is None else dict(points[best]),
            member_steps_per_s=self.total("member_steps") / max(seconds, 1e-9),
            seconds_left=seconds * (self._n_trials - work) / work if work > 0 else None,
            seconds=seconds,
            metric=self._config.objective.metric,
        )

    def _progress(self, running: _Running, checkpoint: Path) -> None:
        try:
            session = Session.load(checkpoint / STATE, resolve_device("cpu"))
        except UserError:
            return  # Ray has replaced it by a later one already, which will be shown
        for i, (number, point) in enumerate(running.points.items()):
            self._outcome.tracker.progress(session.partial_record(i, number, point, self._config.objective))

    def _record(self, running: _Running, checkpoint: Path) -> None:
        folder = self._outcome.folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        kept = folder / f"ensemble-{running.first:03d}.pt"
        shutil.copyfile(checkpoint / STATE, kept)
        session = Session.load(kept, resolve_device("cpu"))
        for i, (number, point) in enumerate(running.points.items()):
            self._outcome.add(session.record(i, number, point, self._config.objective), kept, i)

    def _record_failure(self, running: _Running) -> None:
        for number, point in running.points.items():
            self._outcome.add(failed_record(number, point), None, 0)
