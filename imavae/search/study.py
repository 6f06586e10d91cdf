"""A study: Ray spreads trials, Optuna proposes points, each trial's score is the objective over its members."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imavae.config import StudyConfig, base_of
from imavae.data.cache import Progress as Rendering
from imavae.errors import UserError, require
from imavae.mapping import to_mapping
from imavae.metrics.glossary import check_metric
from imavae.run import Outcome, render, tracker_of
from imavae.search import cluster, space
from imavae.search.progress import Snapshot
from imavae.search.recorder import Recorder
from imavae.search.trainable import trainable
from imavae.tracking import Tracker

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import SearchAlgorithm, Searcher


def check(config: StudyConfig) -> tuple[list[space.Parameter], list[space.Point]]:
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


def run_study(config: StudyConfig, notify: Callable[[Snapshot], None], rendering: Rendering | None = None) -> Outcome:
    """Run a study to its end, or until it is interrupted; ``notify`` is told where it stands, about once a second, and
    ``rendering`` of images that are not in the cache.

    Raises:
        UserError: a mistake in the configuration, an address that can't be reached, or all trials failed.
    """
    parameters, points = check(config)
    with ThreadPoolExecutor(max_workers=1) as beside:
        opened = beside.submit(tracker_of, config, config.study)  # it and Ray take seconds each to start
        with cluster.running(config.cluster) as slots:
            tracker = opened.result()
            if not any(parameter.key.startswith("data.") for parameter in parameters):
                render(base_of(config), rendering)  # here, once: workers would all begin with it
            return _run(config, parameters, points, tracker, slots, notify)


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

    base = base_of(config)
    packs = space.packs(base, points, slots) if points else []
    outcome = Outcome.start(config, "studies", config.study, tracker, config.objective)
    n_points = len(points) or config.budget.trials or 0
    n_trials = len(packs) or n_points
    recorder = Hooks.recorder = Recorder(config, outcome, n_points, n_trials, notify)
    output_dir = str(Path(config.output_dir).resolve())
    bound = tune.with_parameters(
        trainable, base=to_mapping(base), objective=asdict(config.objective), output_dir=output_dir
    )
    choices = [[[number, points[number]] for number in pack] for pack in packs]
    tuner = tune.Tuner(
        tune.with_resources(bound, cluster.resources_of(config.cluster)),
        param_space={"points": tune.grid_search(choices)} if packs else None,
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
