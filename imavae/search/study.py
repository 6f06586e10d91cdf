"""Run a study: Optuna proposes points, Ray trains them, and each trial's score is the objective over its members."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imavae.config.mapping import to_mapping
from imavae.config.settings import SAMPLERS, StudyConfig, base_of
from imavae.data.images import Progress as Rendering
from imavae.errors import UserError, interruption_of, require, resumable
from imavae.metrics.glossary import check_metric
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
    """All trials of the study in ``ledger`` have failed. Its tracked run and its folder are closed."""

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
    remedy = "set sampler.name=tpe and scheduler.name=none, or drop further_objectives"
    sampler, scheduler = config.sampler.name, config.scheduler.name
    for setting, name, several in (
        ("sampler.name", sampler, SAMPLERS[sampler].several_objectives),
        ("scheduler.name", scheduler, scheduler == "none"),
    ):
        got = f"{name} with {', '.join(metrics)}"
        require(several or len(metrics) == 1, f"{setting} supports several objectives", got, remedy)
    parameters = space.parse(config)
    points = space.start_points(config, parameters)
    if sampler == "grid":
        return parameters, space.grid(parameters)[: config.budget.trials]
    remedy = "only a grid ends by itself: set budget.trials=32"
    require(config.budget.trials is not None, "budget.trials is a number, but for a grid", "null", remedy)
    space.check_pack(parameters, config.sampler.pack or 1)
    return parameters, points


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
                return _run(config, parameters, points, ledger, slots, notify, say)


def _plan(
    config: StudyConfig, parameters: list[space.Parameter], points: list[space.Point], ledger: Ledger, slots: int
) -> tuple[Searcher, Stopping]:
    """Plan a new study, or what an earlier driver has left of it.

    A point that was asked for and has not ended keeps its number, its values and its ensemble.
    """
    from imavae.search.searcher import Searcher, open_storage, synchronised
    from imavae.search.stopping import Stopping

    home, storage = ledger.home, open_storage(Path(config.output_dir))
    study = synchronised(config, storage, parameters, points, ledger)
    trials = study.get_trials(deepcopy=False)
    n_points = len(points) if config.sampler.name == "grid" else config.budget.trials or 0
    packed = {number for pack in home.asked for number, _ in pack} | {record.number for record in ledger.records}
    free = [number for number in range(min(len(trials), n_points)) if number not in packed]
    known = [number for number in free if number < len(points)]
    dealt = space.packs_of(config, parameters, [points[number] for number in known], slots)
    packs = [[known[i] for i in pack] for pack in dealt]
    # A driver that died while it asked for a pack has left a run of consecutive numbers.
    asked = enumerate(number for number in free if number >= len(points))
    packs += [[number for _, number in run] for _, run in itertools.groupby(asked, key=lambda item: item[1] - item[0])]
    for pack in sorted(packs):
        home.ask([[n, trials[n].system_attrs.get("fixed_params", trials[n].params)] for n in pack])
    numbers = [[number for number, _ in pack] for pack in home.asked]
    waiting = sorted(pack for pack in numbers if not all(ledger.has(n) or n >= n_points for n in pack))
    _rename_damaged(ledger, waiting)
    stopping = Stopping(config, ledger.names)
    stopping.catch_up(ledger)
    home.state.points = n_points
    home.save_state()
    return Searcher(study, storage, parameters, config, waiting, home), stopping


def _rename_damaged(ledger: Ledger, packs: Sequence[Sequence[int]]) -> None:
    """Rename damaged checkpoints and stop files of unfinished ensembles, with a notice.

    An ensemble continues from its previous checkpoint then, or trains from its start.
    """
    from imavae.search.stopping import read_stops

    checkpoints = [path for pack in packs if (path := ledger.names.ensemble(min(pack))).exists()]
    readers: dict[Path, Callable[[Path], object]] = dict.fromkeys(checkpoints, SEAL.read)
    for path, read in (readers | dict.fromkeys(ledger.names.stop_files(), read_stops)).items():
        try:
            read(path)
        except UserError as error:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            ledger.home.notices.append(f"{error} (it was renamed to {aside.name})")


def _run(
    config: StudyConfig,
    parameters: list[space.Parameter],
    points: list[space.Point],
    ledger: Ledger,
    slots: int,
    notify: Callable[[Snapshot], None],
    say: Callable[[str], None],
) -> Ledger:
    """Train what is left on the running Ray."""
    from imavae.search.trials import Recorder

    recorder = Recorder(config, ledger, notify)
    try:
        searcher, stopping = _plan(config, parameters, points, ledger, slots)
        for notice in ledger.home.notices:
            say(notice)
        if searcher.n_trials:
            recorder.n_trials = searcher.n_trials
            _tuner(config, searcher, stopping, slots, ledger, recorder).fit()
        recorder.close()
        at_once = min(slots, searcher.n_trials or 1)
        ledger.work_seconds = recorder.total("train_seconds", "validate_seconds") / at_once
    except KeyboardInterrupt as error:
        ledger.interrupted = interruption_of(error)
        recorder.abandon()
        error.__traceback__ = None  # it refers to Ray's controller, whose end ends the workers
        gc.collect()
    except BaseException:
        with suppress(Exception):
            recorder.close()  # write what has finished
        ledger.close("failed")
        raise
    ledger.write_tables()
    if not ledger.results.ranked() and not ledger.interrupted:
        ledger.close("failed")
        reason = next((record.failure for record in ledger.records if record.failure), "nothing was trained")
        raise NoResultError(f"no trial of {ledger.folder.name} has a result: {reason}; see {ledger.names.ray}", ledger)
    return ledger


def _tuner(
    config: StudyConfig, searcher: Searcher, stopping: Stopping, slots: int, ledger: Ledger, recorder: Recorder
) -> Any:
    """Ray's Tuner for the trials that are left."""
    from ray import tune

    from imavae.search.trials import RETRIES, trainable

    objectives = [asdict(objective) for objective in config.objectives]
    base, folder, asked = to_mapping(base_of(config)), str(ledger.folder), config.cluster
    bound = tune.with_parameters(trainable, base=base, objectives=objectives, folder=folder)
    resources = {"cpu": asked.cpus_per_trial, "gpu": asked.gpus_per_trial, **(asked.resources or {})}
    return tune.Tuner(
        tune.with_resources(bound, resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=stopping,
            num_samples=searcher.n_trials,
            max_concurrent_trials=slots,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=ledger.names.ray.name,
            storage_path=folder,
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
