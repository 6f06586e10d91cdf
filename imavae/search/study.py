"""A study: Ray spreads trials, Optuna proposes points, each trial's score is the objective over its members."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imavae.config import StudyConfig, base_of
from imavae.errors import Interrupted, UserError, require
from imavae.mapping import to_mapping
from imavae.metrics.glossary import check_metric
from imavae.outcome import Outcome, tracker_of
from imavae.records import create, reopen
from imavae.search import cluster, space
from imavae.search.progress import Snapshot
from imavae.search.recorder import RETRIES, Recorder
from imavae.search.trainable import trainable

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


def run_study(config: StudyConfig, notify: Callable[[Snapshot], None], say: Callable[[str], None] = print) -> Outcome:
    """Run a study to its end, or until it is interrupted, or go on with one that was broken off.

    Args:
        config: all about it; with ``resume`` it must ask what the earlier one was asked.
        notify: is told where it stands, about once a second.
        say: is told what was found damaged on resuming, and what became of it.

    Raises:
        UserError: a mistake in the configuration, an address that can't be reached, nothing that can be resumed, or all
            trials failed.
    """
    parameters, points = check(config)
    name = config.study.replace("/", "-")
    home = reopen(config, "studies", name) if config.resume else None
    for notice in home.notices if home else ():
        say(notice)
    with ThreadPoolExecutor(max_workers=1) as beside:
        opened = beside.submit(tracker_of, config, config.study)  # it and Ray take seconds each to start
        with cluster.running(config.cluster) as slots:
            tracker = opened.result()
            home = home or create(config, "studies", config.name or name)
            outcome = Outcome.start(config, home, tracker, config.objective)
            return _run(config, parameters, points, outcome, slots, notify)


def _run(
    config: StudyConfig,
    parameters: list[space.Parameter],
    points: list[space.Point],
    outcome: Outcome,
    slots: int,
    notify: Callable[[Snapshot], None],
) -> Outcome:
    """Train what is left, ``slots`` trials at a time, on the Ray that is running."""
    packs = _packs(config, points, outcome, slots)
    n_points = len(points) or config.budget.trials or 0
    n_trials = len(packs) if points else n_points
    recorder = Recorder(config, outcome, n_points, n_trials, notify)
    try:
        if n_trials:
            _tuner(config, parameters, points, packs, outcome.folder, slots, recorder).fit()
        recorder.close()
    except KeyboardInterrupt as error:
        outcome.interrupted = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        recorder.abandon()
    except BaseException:
        with suppress(Exception):
            recorder.close()  # what had finished is written, whatever happened
        outcome.tracker.finish("failed", {}, [])  # else the page would show it as running for ever
        raise
    outcome.work_seconds = recorder.total("train_seconds", "validate_seconds") / min(slots, n_trials or 1)
    outcome.write_tables()
    if not outcome.ranked() and not outcome.interrupted:
        outcome.tracker.finish("failed", {}, [])
        reason = next(iter(recorder.failures), "nothing was trained")
        raise UserError(f"no trial of {outcome.folder.name} has a result: {reason}; see {outcome.folder / 'ray'}")
    return outcome


def _packs(config: StudyConfig, points: list[space.Point], outcome: Outcome, slots: int) -> list[list[int]]:
    """A grid's packs of which not all points have ended. They stay what they were when the study began, whatever
    there are of slots now: a checkpoint is that of a pack.
    """
    state = outcome.home.state
    packed = {number for pack in state.packs for number in pack}
    new = [number for number in range(len(points)) if number not in packed]
    if new:
        dealt = space.packs(base_of(config), [points[number] for number in new], slots)
        state.packs += [[new[i] for i in pack] for pack in dealt]
        outcome.home.save_state()
    return [pack for pack in state.packs if not all(outcome.has(n) or n >= len(points) for n in pack)]


def _tuner(
    config: StudyConfig,
    parameters: list[space.Parameter],
    points: list[space.Point],
    packs: list[list[int]],
    folder: Path,
    slots: int,
    recorder: Recorder,
) -> Any:
    """Ray's Tuner for all that is left."""
    from ray import tune

    from imavae.search.hooks import Hooks

    Hooks.recorder = recorder
    settings = {"base": to_mapping(base_of(config)), "objective": asdict(config.objective)}
    bound = tune.with_parameters(trainable, **settings, folder=str(folder / "checkpoints"))
    choices = [[[number, points[number]] for number in pack] for pack in packs]
    return tune.Tuner(
        tune.with_resources(bound, cluster.resources_of(config.cluster)),
        param_space={"points": tune.grid_search(choices)} if packs else None,
        tune_config=tune.TuneConfig(
            metric=config.objective.metric,
            mode=config.objective.mode,
            search_alg=_search(config, parameters, slots),
            scheduler=_scheduler(config),
            num_samples=1 if packs else config.budget.trials or 0,
            max_concurrent_trials=None if packs else slots,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(folder),
            callbacks=[Hooks()],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )


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
