"""A study: Ray spreads trials, Optuna proposes points, each trial's score is the objective over its members."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from imavae.config import StudyConfig, base_of
from imavae.errors import UserError, require
from imavae.mapping import to_mapping
from imavae.metrics.glossary import check_metric
from imavae.run import Outcome, tracker_of
from imavae.search import cluster, space
from imavae.search.progress import Snapshot
from imavae.search.recorder import Recorder
from imavae.search.starts import start_packs, start_points
from imavae.search.trainable import trainable
from imavae.tracking import Tracker


def check(config: StudyConfig) -> tuple[list[space.Parameter], list[space.Point]]:
    """The parameters of a study, and the points that are known beforehand: a grid's, or those to start from.

    Raises:
        UserError: anything about the study that can be known to be wrong before its first trial.
    """
    for objective in config.objectives:
        check_metric(config, objective.metric, objective.mode)
    _check_objectives(config)
    parameters = space.parse(config)
    points = start_points(config, parameters)
    if config.sampler.name == "grid":
        return parameters, space.grid(parameters)[: config.budget.trials]
    require(config.budget.trials is not None, "budget.trials is a number", "null", "only a grid ends by itself")
    space.check_pack(parameters, config.sampler.pack or 1)
    return parameters, points


def _check_objectives(config: StudyConfig) -> None:
    """Raise UserError where several objectives don't go with the rest."""
    metrics = [objective.metric for objective in config.objectives]
    require(len(set(metrics)) == len(metrics), "each objective has a metric of its own", metrics, "drop the copy")
    several = len(metrics) > 1
    for key, name, wrong in (
        ("sampler.name", config.sampler.name, "cmaes"),
        ("scheduler.name", config.scheduler.name, "asha"),
        ("scheduler.name", config.scheduler.name, "median"),
    ):
        require(
            not (several and name == wrong),
            f"{key} is one that knows several objectives",
            f"{name} with {', '.join(metrics)}",
            "sampler.name=tpe, qmc, random and grid do, scheduler.name=none does; or drop further_objectives",
        )


def packs_of(
    config: StudyConfig, parameters: list[space.Parameter], points: list[space.Point], slots: int
) -> list[list[int]]:
    """Numbers of the points known beforehand, by the ensembles in which they train, ``slots`` of them at a time."""
    base, limit = base_of(config), config.sampler.pack
    if config.sampler.name == "grid":
        return space.packs(base, points, slots, limit)
    return start_packs(base, points, parameters, limit or 1)


def run_study(config: StudyConfig, notify: Callable[[Snapshot], None]) -> Outcome:
    """Run a study to its end, or until it is interrupted; ``notify`` is told where it stands, about once a second.

    Raises:
        UserError: a mistake in the configuration, an address that can't be reached, or all trials failed.
    """
    parameters, points = check(config)
    with ThreadPoolExecutor(max_workers=1) as beside:
        opened = beside.submit(tracker_of, config, config.study)  # it and Ray take seconds each to start
        with cluster.running(config.cluster) as slots:
            return _run(config, parameters, points, opened.result(), slots, notify)


def _run(
    config: StudyConfig,
    parameters: list[space.Parameter],
    points: list[space.Point],
    tracker: Tracker,
    slots: int,
    notify: Callable[[Snapshot], None],
) -> Outcome:
    """Train all points, ``slots`` trials at a time, on the Ray that is running."""
    from ray import tune

    from imavae.search.hooks import Hooks
    from imavae.search.samplers import open_study
    from imavae.search.searcher import Searcher
    from imavae.search.stopping import Stopping

    packs = packs_of(config, parameters, points, slots)
    outcome = Outcome.start(config, "studies", config.study, tracker, config.objective)
    proposals = open_study(Path(config.output_dir), outcome.folder.name, config.objectives)
    for values in points:
        proposals.enqueue_trial(dict(values))
    n_points = len(points) if config.sampler.name == "grid" else config.budget.trials or 0
    n_trials = len(packs) + math.ceil((n_points - len(points)) / (config.sampler.pack or 1))
    recorder = Hooks.recorder = Recorder(config, outcome, n_points, n_trials, notify)
    bound = tune.with_parameters(
        trainable,
        base=to_mapping(base_of(config)),
        objectives=[asdict(objective) for objective in config.objectives],
        folder=str(outcome.folder),
    )
    tuner = tune.Tuner(
        tune.with_resources(bound, cluster.resources_of(config.cluster)),
        tune_config=tune.TuneConfig(
            search_alg=Searcher(proposals, parameters, config, packs, outcome.folder),
            scheduler=Stopping(config, outcome.folder),
            num_samples=n_trials,
            max_concurrent_trials=slots,
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
        try:
            tuner.fit()
        finally:
            recorder.close()  # what had finished is written, whatever happened
    except BaseException:
        outcome.tracker.finish("failed", {}, [])  # else the page would show it as running for ever
        raise
    outcome.interrupted = len(outcome.records) < n_points  # Ray ends normally after an interrupt
    outcome.work_seconds = recorder.total("train_seconds", "validate_seconds") / min(slots, n_trials)
    if not outcome.ranked():
        outcome.tracker.finish("failed", {}, [])
        reason = next(iter(recorder.failures), "the study was interrupted before the first trial had ended")
        raise UserError(f"no trial of {outcome.folder.name} has a result: {reason}; see {outcome.folder / 'ray'}")
    return outcome
