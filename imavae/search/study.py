"""Run a study: Optuna proposes points, Ray trains them, and each trial's score is the objective over its members."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imavae.config.mapping import to_mapping
from imavae.config.settings import SAMPLERS, StudyConfig, base_of
from imavae.data.images import Progress as Rendering
from imavae.errors import UserError, require, resumable
from imavae.metrics.glossary import check_metric
from imavae.runs import interrupts
from imavae.runs.folder import create, reopen
from imavae.runs.ledger import Ledger, tracker_of
from imavae.runs.session import render
from imavae.search import cluster, space
from imavae.training.checkpoint import SEAL

if TYPE_CHECKING:
    from imavae.search.searcher import Searcher
    from imavae.search.stopping import Stopping
    from imavae.search.trials import Recorder, Snapshot


class NoResultError(UserError):
    """All trials of a study have failed. Its tracked run and its folder are closed.

    Attributes:
        ledger: Records of the study.
    """

    def __init__(self, message: str, ledger: Ledger) -> None:
        super().__init__(message)
        self.ledger = ledger


def check(config: StudyConfig) -> tuple[list[space.Parameter], list[space.Point]]:
    """Parameters of a study, and the points that are known beforehand: a grid's, or those to start from.

    Raises:
        UserError: any mistake in the study that can be found before its first trial.
    """
    metrics = [objective.metric for objective in config.objectives]
    for objective in config.objectives:
        check_metric(config, objective.metric, objective.mode)
    require(len(set(metrics)) == len(metrics), "each objective has a metric of its own", metrics, "drop the copy")
    for key, name, fits in (
        ("sampler.name", config.sampler.name, SAMPLERS[config.sampler.name].several_objectives),
        ("scheduler.name", config.scheduler.name, config.scheduler.name == "none"),
    ):
        require(
            fits or len(metrics) == 1,
            f"{key} is one that knows several objectives",
            f"{name} with {', '.join(metrics)}",
            "set sampler.name=tpe and scheduler.name=none, or drop further_objectives",
        )
    parameters = space.parse(config)
    points = space.start_points(config, parameters)
    if config.sampler.name == "grid":
        return parameters, space.grid(parameters)[: config.budget.trials]
    remedy = "only a grid ends by itself: set budget.trials=32"
    require(config.budget.trials is not None, "budget.trials is a number, but for a grid", "null", remedy)
    space.check_pack(parameters, config.sampler.pack or 1)
    return parameters, points


def packs_of(
    config: StudyConfig, parameters: list[space.Parameter], points: list[space.Point], slots: int
) -> list[list[int]]:
    """Numbers of the points known beforehand, grouped by the ensembles in which they train."""
    base, limit = base_of(config), config.sampler.pack
    if config.sampler.name == "grid":
        return space.packs(base, points, slots, limit)
    return space.start_packs(base, points, parameters, limit or 1)


def run_study(
    config: StudyConfig,
    notify: Callable[[Snapshot], None],
    say: Callable[[str], None] = print,
    rendering: Rendering | None = None,
) -> Ledger:
    """Run a study until its end or an interrupt; with ``config.resume``, continue an earlier one.

    Args:
        config: All settings.
        notify: Called about once a second with the progress.
        say: Called with each notice about damage that was found on resuming.
        rendering: Called with the progress of rendering images that are not in the cache.

    Raises:
        NoResultError: All trials failed.
        UserError: A mistake in the configuration, an address that does not answer, or nothing that can be resumed.
    """
    parameters, points = check(config)
    name = config.study.replace("/", "-")
    home = reopen(config, "studies", name) if config.resume else None
    with ThreadPoolExecutor(max_workers=1) as beside:
        opened = beside.submit(tracker_of, config, config.study)  # while Ray starts: both take seconds
        with cluster.running(config.cluster) as slots:
            tracker = opened.result()
            if not any(parameter.key.startswith("data.") for parameter in parameters):
                render(base_of(config), rendering)  # once, here: otherwise every worker would
            home = home or create(config, "studies", config.name or name)
            with resumable(home.path.name):
                ledger = Ledger.start(config, home, tracker)
                return _run(config, lambda: _Plan.of(config, parameters, points, ledger, slots), ledger, notify, say)


@dataclass(frozen=True)
class _Plan:
    """Trials that are left to be trained."""

    searcher: Searcher
    stopping: Stopping
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
        """All trials of a new study, or those that an earlier driver has left.

        A point that was asked for and has not ended keeps its number, its values and its ensemble.
        """
        from imavae.search.searcher import Searcher, open_storage, synchronised
        from imavae.search.stopping import Stopping

        storage = open_storage(Path(config.output_dir))
        study = synchronised(config, storage, parameters, points, ledger)
        trials = study.get_trials(deepcopy=False)
        n_points = len(points) if config.sampler.name == "grid" else config.budget.trials or 0
        packed = {number for pack in ledger.home.asked for number, _ in pack} | {r.number for r in ledger.records}
        free = [number for number in range(min(len(trials), n_points)) if number not in packed]
        known = [number for number in free if number < len(points)]
        dealt = packs_of(config, parameters, [points[number] for number in known], slots)
        packs = [[known[i] for i in pack] for pack in dealt]
        packs += _consecutive([number for number in free if number >= len(points)])
        for pack in sorted(packs):
            ledger.home.ask([[n, trials[n].system_attrs.get("fixed_params", trials[n].params)] for n in pack])
        asked = [[number for number, _ in pack] for pack in ledger.home.asked]
        waiting = sorted(pack for pack in asked if not all(ledger.has(n) or n >= n_points for n in pack))
        _set_damaged_aside(ledger, waiting)
        stopping = Stopping(config, ledger.names)
        stopping.catch_up(ledger)
        n_trials = len(waiting) + math.ceil(max(0, n_points - len(trials)) / (config.sampler.pack or 1))
        searcher = Searcher(study, storage, parameters, config, waiting, ledger.home)
        return cls(searcher, stopping, n_points, n_trials, slots)


def _consecutive(numbers: Sequence[int]) -> list[list[int]]:
    """Runs of consecutive numbers: a driver that died while it asked for a pack has left such a run."""
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b != a + 1]
    return [list(numbers[a:b]) for a, b in pairwise([0, *breaks, len(numbers)]) if b > a]


def _set_damaged_aside(ledger: Ledger, packs: Sequence[Sequence[int]]) -> None:
    """Rename damaged checkpoints and stop files of unfinished ensembles, with a notice.

    An ensemble continues from its previous checkpoint then, or trains from its start.
    """
    from imavae.search.stopping import read_stops

    names, notices = ledger.names, ledger.home.notices
    files: list[tuple[Path, Callable[[Path], object]]] = [
        (path, SEAL.read) for path in (names.ensemble(min(pack)) for pack in packs) if path.exists()
    ]
    files += [(path, read_stops) for path in names.stop_files()]
    for path, read in files:
        try:
            read(path)
        except UserError as error:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            notices.append(f"{error} (it was renamed to {aside.name})")


def _run(
    config: StudyConfig,
    plan_of: Callable[[], _Plan],
    ledger: Ledger,
    notify: Callable[[Snapshot], None],
    say: Callable[[str], None],
) -> Ledger:
    """Train what is left on the running Ray."""
    from imavae.search.trials import Recorder

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
        ledger.interrupted = interrupts.of(error)
        recorder.abandon()
        error.__traceback__ = None  # it refers to Ray's controller, whose end ends the workers
        gc.collect()
    except BaseException:
        with suppress(Exception):
            recorder.close()  # write what has finished
        ledger.abandon("failed")
        raise
    ledger.write_tables()
    if not ledger.results.ranked() and not ledger.interrupted:
        ledger.abandon("failed")
        reason = next((record.failure for record in ledger.records if record.failure), "nothing was trained")
        raise NoResultError(f"no trial of {ledger.folder.name} has a result: {reason}; see {ledger.names.ray}", ledger)
    return ledger


def _tuner(config: StudyConfig, plan: _Plan, ledger: Ledger, recorder: Recorder) -> Any:
    """Ray's Tuner for the trials that are left."""
    from ray import tune

    from imavae.search.trials import RETRIES, trainable

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
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
