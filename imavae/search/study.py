"""A study: Ray spreads trials, Optuna proposes points, each trial's score is the objective over its members."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from imavae.config.mapping import to_mapping
from imavae.config.settings import StudyConfig, base_of
from imavae.data.cache import Progress as Rendering
from imavae.errors import UserError, require, resumable
from imavae.metrics.glossary import check_metric
from imavae.runs import interrupts as signals
from imavae.runs.folder import create, reopen
from imavae.runs.ledger import Ledger, tracker_of
from imavae.runs.session import render
from imavae.search import cluster, space
from imavae.search.progress import Snapshot
from imavae.search.recorder import RETRIES, Recorder
from imavae.search.start_points import start_packs, start_points
from imavae.search.trainable import trainable

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

    from imavae.search.dry_run import Cost


class NoResultError(UserError):
    """A study of which every trial has failed, with what has come of it: its tracked run and its folder are closed."""

    def __init__(self, message: str, ledger: Ledger) -> None:
        """Take the message and the ledger."""
        super().__init__(message)
        self.ledger = ledger


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
    require(
        config.budget.trials is not None,
        "budget.trials is a number, but for a grid",
        "null",
        "only a grid ends by itself: say budget.trials=32",
    )
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
            "say sampler.name=tpe (or qmc, random, grid) and scheduler.name=none, or drop further_objectives",
        )


def packs_of(
    config: StudyConfig, parameters: list[space.Parameter], points: list[space.Point], slots: int
) -> list[list[int]]:
    """Numbers of the points known beforehand, by the ensembles in which they train, ``slots`` of them at a time."""
    base, limit = base_of(config), config.sampler.pack
    if config.sampler.name == "grid":
        return space.packs(base, points, slots, limit)
    return start_packs(base, points, parameters, limit or 1)


def run_study(
    config: StudyConfig,
    notify: Callable[[Snapshot], None],
    say: Callable[[str], None] = print,
    rendering: Rendering | None = None,
) -> Ledger:
    """Run a study to its end, or until it is interrupted, or go on with one that was broken off.

    Args:
        config: all about it; with ``resume`` it must ask what the earlier one was asked.
        notify: is told where it stands, about once a second.
        say: is told what was found damaged on resuming, and what became of it.
        rendering: is told of images that are not in the cache.

    Raises:
        NoResultError: all trials failed.
        UserError: a mistake in the configuration, an address that can't be reached, or nothing that can be resumed.
    """
    parameters, points = check(config)
    name = config.study.replace("/", "-")
    home = reopen(config, "studies", name) if config.resume else None
    with ThreadPoolExecutor(max_workers=1) as beside:
        opened = beside.submit(tracker_of, config, config.study)  # it and Ray take seconds each to start
        with cluster.running(config.cluster) as slots:
            tracker = opened.result()
            if not any(parameter.key.startswith("data.") for parameter in parameters):
                render(base_of(config), rendering)  # here, once: workers would all begin with it
            home = home or create(config, "studies", config.name or name)
            with resumable(home.path.name):
                ledger = Ledger.start(config, home, tracker)
            return _run(config, lambda: _Plan.of(config, parameters, points, ledger, slots), ledger, notify, say)


def dry_run(config: StudyConfig) -> Cost:
    """What a study would train and how long that would take here. Nothing is written, tracked or begun.

    The points of a sampler are those that it would propose if it were told no score: the first ones are right.
    """
    import optuna

    from imavae.search import dry_run as cost
    from imavae.search.samplers import DIRECTIONS
    from imavae.search.searcher import Searcher

    parameters, points = check(config)
    slots = cluster.expected_slots(config.cluster)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=[DIRECTIONS[objective.mode] for objective in config.objectives])
    for values in points:
        study.enqueue_trial(dict(values))
    searcher = Searcher(study, parameters, config, packs_of(config, parameters, points, slots), None)
    packs: list[list[int]] = []
    found: dict[int, space.Point] = {}
    while isinstance(trial := searcher.suggest(str(len(packs))), dict):
        packs.append([number for number, _ in trial["points"]])
        found |= dict(trial["points"])
    return cost.estimate(config, [found[number] for number in sorted(found)], packs, slots)


@dataclass(frozen=True)
class _Plan:
    """What is left to be trained."""

    searcher: Searcher
    stopping: TrialScheduler
    n_points: int  # of the whole study
    n_trials: int  # of Ray's, from now on
    slots: int  # trials that run at once

    @classmethod
    def of(
        cls,
        config: StudyConfig,
        parameters: list[space.Parameter],
        points: list[space.Point],
        ledger: Ledger,
        slots: int,
    ) -> _Plan:
        """All of a new study, or what an earlier driver has left."""
        from imavae.search import resume
        from imavae.search.searcher import Searcher
        from imavae.search.stopping import Stopping

        grid = config.sampler.name == "grid"
        n_points = len(points) if grid else config.budget.trials or 0
        study = resume.proposals(config, parameters, points, ledger)
        trials = study.get_trials(deepcopy=False)
        free = resume.unpacked(study, ledger, n_points)
        known = [number for number in free if number < len(points)]
        dealt = packs_of(config, parameters, [points[number] for number in known], slots)
        packs = [[known[i] for i in pack] for pack in dealt]
        packs += resume.runs_of([number for number in free if number >= len(points)])
        for pack in sorted(packs):
            ledger.home.ask([[n, trials[n].system_attrs.get("fixed_params", trials[n].params)] for n in pack])
        waiting = resume.waiting(ledger, n_points)
        resume.check_files(ledger, waiting)
        stopping = Stopping(config, ledger.names)
        resume.remind(stopping, config, ledger)
        n_trials = len(waiting) + math.ceil(max(0, n_points - len(trials)) / (config.sampler.pack or 1))
        return cls(Searcher(study, parameters, config, waiting, ledger.home), stopping, n_points, n_trials, slots)


def _run(
    config: StudyConfig,
    plan_of: Callable[[], _Plan],
    ledger: Ledger,
    notify: Callable[[Snapshot], None],
    say: Callable[[str], None],
) -> Ledger:
    """Train what is left on the Ray that is running."""
    recorder = Recorder(config, ledger, notify)
    try:
        plan = plan_of()
        for notice in ledger.home.notices:
            say(notice)
        ledger.home.state.points = plan.n_points
        ledger.home.save_state()
        recorder.expect(plan.n_points, plan.n_trials)
        if plan.n_trials:
            _tuner(config, plan, ledger, recorder).fit()
        recorder.close()
        at_once = min(plan.slots, plan.n_trials or 1)
        ledger.work_seconds = recorder.total("train_seconds", "validate_seconds") / at_once
    except KeyboardInterrupt as error:
        ledger.interrupted = signals.of(error)
        recorder.abandon()
    except BaseException:
        with suppress(Exception):
            recorder.close()  # what had finished is written, whatever happened
        ledger.abandon("failed")
        raise
    ledger.write_tables()
    if not ledger.ranked() and not ledger.interrupted:
        ledger.abandon("failed")
        reason = next((record.failure for record in ledger.records if record.failure), "nothing was trained")
        raise NoResultError(f"no trial of {ledger.folder.name} has a result: {reason}; see {ledger.names.ray}", ledger)
    return ledger


def _tuner(config: StudyConfig, plan: _Plan, ledger: Ledger, recorder: Recorder) -> Any:
    """Ray's Tuner for all that is left."""
    from ray import tune

    from imavae.search.hooks import Hooks

    Hooks.recorder = recorder
    bound = tune.with_parameters(
        trainable,
        base=to_mapping(base_of(config)),
        objectives=[asdict(objective) for objective in config.objectives],
        folder=str(ledger.folder),
    )
    return tune.Tuner(
        tune.with_resources(bound, cluster.resources_of(config.cluster)),
        tune_config=tune.TuneConfig(
            search_alg=plan.searcher,
            scheduler=plan.stopping,
            num_samples=plan.n_trials,
            max_concurrent_trials=plan.slots,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=ledger.names.ray.name,
            storage_path=str(ledger.folder),
            callbacks=[Hooks()],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
