"""The library: train an ensemble, run a study, reproduce a figure of the paper, and get the data of a model.

These functions do the work of the commands and write the same folders. They print nothing unless ``progress`` is set;
in a notebook, they show their progress.
Settings are those of docs/config.md. Hydra has no part in it: a group's option such as ``data=mlp`` is the variant's
name here, ``data={"mixing": {"name": "mlp"}}``.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Group

from imavae.config.data import READERS, FileData, UserData
from imavae.config.mapping import build, plain
from imavae.config.registry import load_plugins
from imavae.config.settings import ReproduceConfig, RunConfig, StudyConfig, overridden, run_config, study_config
from imavae.data import dataset, image_files, tables
from imavae.data.storage import write_text
from imavae.errors import UserError, require, require_choice, resumable
from imavae.model.export import Model
from imavae.model.vae import torch_dtype
from imavae.report.display import Display, Observer, new_console
from imavae.runs import archive
from imavae.runs import results as stored
from imavae.runs.ledger import Ledger, run_point
from imavae.runs.session import Session, cache_of, training_step
from imavae.training.loop import Progress

if TYPE_CHECKING:
    from imavae.paper.reproduce import Reproduction
    from imavae.report.study_figures import TrialPlot
    from imavae.search.trials import Snapshot

FIGURES = "imavae.report.study_figures"  # imported while the last trials train
Array = NDArray[np.floating[Any]]
Watcher = Observer | bool | None


class Results(stored.Results):
    """Results that a notebook and Rich show as their answer and the table of the best trials, or of the members."""

    def __rich__(self) -> Group:
        from imavae.report.html import answer
        from imavae.report.tables import result_tables

        return Group(*answer(self), *itertools.islice(result_tables(self), 1))

    def _repr_html_(self) -> str:
        parts: list[Any] = self.__rich__().renderables
        return "".join(f"<p>{escape(part)}</p>" if isinstance(part, str) else part._repr_html_() for part in parts)


def load_results(folder: str | Path, plugins: Sequence[str] = ()) -> Results:
    """Load the results of a run or study, as :func:`train` and :func:`tune` return them.

    Args:
        folder: ``outputs/runs/NAME`` or ``outputs/studies/NAME``.
        plugins: files with the variants of your own that it uses.

    Raises:
        UserError: there is no run or study; a file is damaged or of another version; or a plugin is missing.
    """
    load_plugins(plugins)
    return Results(**vars(stored.load_results(folder)))


def train(
    x: Any = None,
    config: RunConfig | Mapping[str, Any] | None = None,
    *,
    sources: Any = None,
    segments: Any = None,
    groups: Any = None,
    progress: Watcher = None,
    **settings: Any,
) -> Results:
    """Train the members (seeds) of one point as one ensemble; evaluate, save and report them.

    ``train(model={"gamma": 30}, members={"seed": [1, 2, 3]})`` changes some of the defaults;
    ``train(frame, model={"gamma": 3})`` trains on your own observations.

    Args:
        x: observations, a row each: an array, a tensor, a frame (pandas, polars, Arrow) or a torch Dataset, of whose
            items, if they are tuples, the first is the observation. They are written to a file in ``OUTPUT_DIR/data``,
            named after its content, which ``data=file`` then reads, or ``data=images`` for images of bytes, (n, side,
            side[, channel]). May be left out: a first argument that is a configuration is taken for ``config``.
        config: settings to start from; by default the defaults, without tracking.
        sources: (n, data.dim) true sources of the observations, if they are known.
        segments: (n,) labels of any type, the auxiliary variable u; or the name of the column of ``x`` that has them.
        groups: (n,) labels, likewise: observations of one group are never in different splits.
        progress: True shows a progress bar, as in a notebook by default; False none. An observer receives it.
        settings: fields of :class:`imavae.config.settings.RunConfig`, nested mappings, over those of ``config``.

    Returns:
        The results, from ``OUTPUT_DIR/runs/NAME``.

    Raises:
        UserError: a setting that does not exist or breaks a rule, data that can't be used, or all members diverged.
        KeyboardInterrupt: it was interrupted; ``resume=True`` continues from its last validation.
    """
    config, data = _given(x, config, settings, sources=sources, segments=segments, groups=groups)
    base = {"tracking": {"name": "none"}} if config is None else plain(config)
    return train_point(run_config(overridden(overridden(base, data), plain(settings))), _observer(progress))


def tune(
    x: Any = None,
    config: StudyConfig | RunConfig | Mapping[str, Any] | None = None,
    *,
    sources: Any = None,
    segments: Any = None,
    groups: Any = None,
    progress: Watcher = None,
    **settings: Any,
) -> Results:
    """Run a study: search a space of settings, with an ensemble of seeds at every point.

    ``tune(search={"model": {"gamma": {"type": "float", "low": 3.0, "high": 300.0}}}, budget={"trials": 8})`` is one.
    Ray is started for it and shut down at its end. A file of ``search_spaces/`` builds on ``conf/``, which Hydra
    composes: ``python scripts/tune.py search=NAME --cfg job`` prints the mapping that this function takes.

    Args:
        x: your own observations, as for :func:`train`.
        sources: of ``x``.
        segments: of ``x``.
        groups: of ``x``.
        config: settings to start from; a run's become the base that all points share.
        progress: True shows a live display, as in a notebook by default; False none. An observer receives it.
        settings: fields of :class:`imavae.config.settings.StudyConfig`, nested mappings, over those of ``config``;
            ``search`` replaces its search. Without ``tracking={"name": "none"}``, MLflow tracks the study.

    Returns:
        The results, from ``OUTPUT_DIR/studies/NAME``.

    Raises:
        UserError: a setting that does not exist or breaks a rule, data that can't be used, no trial has a result, or
            all members diverged.
        KeyboardInterrupt: it was interrupted; ``resume=True`` continues it.
    """
    config, data = _given(x, config, settings, sources=sources, segments=segments, groups=groups)
    study = study_config(overridden(overridden(plain(config or {}), data), plain(settings)))
    remedy = "use python scripts/tune.py dry_run=true"
    require(not study.dry_run, "dry_run is for the command", study.dry_run, remedy)
    return tune_study(study, _observer(progress))


def reproduce(
    figure: str, studies: Sequence[StudyConfig], *, progress: Watcher = None, **settings: Any
) -> Reproduction:
    """Reproduce a figure of the paper from its studies, and judge it by what was published.

    Args:
        figure: its name, one of :data:`imavae.paper.figures.FIGURES`.
        studies: the figure's studies. Finished ones are read; others are resumed or run.
        progress: True shows a live display of each study; an observer receives the progress.
        settings: further fields of :class:`imavae.config.settings.ReproduceConfig`, such as ``plot_only=True``.

    Returns:
        The rows of its table with their verdicts, and the folder of the figure.

    Raises:
        UserError: there is no such figure, or a study is missing or can't be finished.
    """
    from imavae.paper.reproduce import reproduce_figure

    observer, config = _observer(progress), build(ReproduceConfig, {**settings, "figure": figure})
    return reproduce_figure(config, studies, lambda study: tune_study(study, observer), observer.notice)


def train_point(config: RunConfig, observer: Observer, command: Sequence[str] = ()) -> Results:
    """Do :func:`train` for a checked configuration; the report shows the ``command`` that repeats it."""
    start, threads = time.monotonic(), torch.get_num_threads()
    announce = _announcer(config, observer)

    def notify(session: Session, progress: Progress) -> None:
        announce()
        observer.epoch(progress.epoch, config.training.max_epochs, progress.active, len(session.ensemble))

    try:
        with observer:
            ledger, session = run_point(config, notify, observer.rendered)
            with resumable(ledger.folder.name):
                from imavae.report.run_figures import draw_run

                figures = draw_run(ledger.results, session)
                ledger.finish([*figures, _write_report(ledger, command, start)])
                _say_lost(ledger, observer)
    finally:
        torch.set_num_threads(threads)  # a run sets those of its process
    results = load_results(ledger.folder)
    _check_converged(results)
    return results


def tune_study(config: StudyConfig, observer: Observer, command: Sequence[str] = ()) -> Results:
    """Do :func:`tune` for a checked configuration; the report shows the ``command`` that repeats it.

    Raises:
        NoResultError: all trials failed.
        Interrupted: the report of what has finished is written.
    """
    from imavae.search.study import NoResultError, run_study

    announce = _announcer(config, observer)

    def notify(snapshot: Snapshot) -> None:
        announce()
        observer.snapshot(snapshot)
        last = snapshot.finished + len(snapshot.running) == snapshot.trials_total
        if last and FIGURES not in sys.modules:  # with what it needs, that takes seconds
            threading.Thread(target=importlib.import_module, args=(FIGURES,)).start()

    start = time.monotonic()
    try:
        with observer:
            ledger = run_study(config, notify, observer.notice, observer.rendered)
    except NoResultError as error:
        error.ledger.tracker.finish("failed", {}, [_write_report(error.ledger, command, start)])
        raise
    with resumable(ledger.folder.name):
        if ledger.interrupted:
            ledger.finish([_write_report(ledger, command, start)])
            raise ledger.interrupted
        observer.notice("storing the models, drawing the figures, writing the report")
        _conclude(ledger, command, start)
        _say_lost(ledger, observer)
    results = load_results(ledger.folder)
    _check_converged(results)
    return results


def _say_lost(ledger: Ledger, observer: Observer) -> None:
    if lost := ledger.tracker.lost:
        observer.notice(f"{lost}: `resume=true name={ledger.folder.name}` tracks what is missing")


class DivergedError(UserError):
    """All members of a run or study diverged. ``results`` has what is known of them."""

    def __init__(self, message: str, results: stored.Results) -> None:
        super().__init__(message)
        self.results = results


def _check_converged(results: stored.Results) -> None:
    """Raise DivergedError with the likely cause if all members diverged."""
    members, data = results.members, results.config.data
    if not len(members) or (members["status"] != "diverged").any():
        return
    remedy = "lower training.learning_rate" + " or model.gamma" * (not results.config.model.is_flow)
    if isinstance(data, FileData):
        remedy += "" if data.standardise else ", or set data.standardise=true"
        remedy += "".join(f"; {line}" for line in tables.understood(data)[1:])
    got = f"all {len(members)} of {results.folder} diverged"
    raise DivergedError(f"`a member keeps finite numbers` must hold, but {got}; {remedy}", results)


def _announcer(config: RunConfig, observer: Observer) -> Callable[[], None]:
    """Return a function that tells the observer, the first time, which step trains. UserError: it can't be had."""
    step, reason = training_step(config)
    lines = READERS[config.data.kind].understood(config.data) if isinstance(config.data, UserData) else []

    def say() -> None:
        for line in [*lines, f"training step: {step} ({reason})"]:
            observer.notice(line)

    return functools.cache(say)


def resuming(command: Sequence[str], name: str) -> list[str]:
    """The words of the command that resumes the folder ``name``, given those of the command that made it."""
    words = [word for word in command if not word.startswith(("resume=", "name="))]
    return [*words, "resume=true", f"name={name}"] if words else []


def _conclude(ledger: Ledger, command: Sequence[str], start: float) -> None:
    """Store the models of a finished study, draw its figures, write its report, and track all of it."""
    from imavae.report.html import answer
    from imavae.report.run_figures import draw_champion
    from imavae.report.study_figures import draw_study, trial_plots_of
    from imavae.report.summary import choices, chosen_numbers, searched, selection_metrics
    from imavae.search.stored import write_notes

    ledger.crown()
    results, names = ledger.results, ledger.names
    plots = trial_plots_of(results)
    files = draw_study(results, plots) + draw_champion(results)
    chosen = choices(results.members, results.trials, searched(results))
    if len(chosen):
        write_text(names.selection, chosen.to_csv(index=False))
        files.append(names.selection)
    metrics = chosen_numbers(results.winners) | selection_metrics(chosen)
    write_notes(results, answer(results))
    files.append(_write_report(ledger, command, start, metrics, plots))
    ledger.finish(files, results.summary)


def _write_report(
    ledger: Ledger,
    command: Sequence[str],
    start: float,
    metrics: Mapping[str, float] | None = None,
    plots: Sequence[TrialPlot] | None = None,
) -> Path:
    """Write the summary and the report of what has finished; ``start`` is its start by the monotonic clock."""
    from imavae.report.html import write_report

    work = {"seconds/training": ledger.work_seconds} if isinstance(ledger.config, StudyConfig) else {}
    ledger.write_summary({**(metrics or {}), "seconds": time.monotonic() - start, **work})
    return write_report(ledger.results, command, resuming(command, ledger.folder.name), plots)


def import_study(path: str | Path, output_dir: str | Path = "outputs", plugins: Sequence[str] = ()) -> Results:
    """Unpack an archive of ``imavae.export`` into ``output_dir`` and return its results.

    The study can be resumed, by its name, where its data and plugins are.

    Args:
        path: of the archive.
        output_dir: its ``studies/`` or ``runs/`` gets the folder.
        plugins: files with the variants of your own that it uses.

    Raises:
        UserError: the file is no such archive, or a damaged one; or the folder exists.
    """
    load_plugins(plugins)
    return load_results(archive.unpack(path, output_dir))


class World(NamedTuple):
    """A split of a model's data: arrays with a row per observation, empty where the content is unknown."""

    observations: Array  # (n, o), as model.encode takes them
    sources: Array  # (n, d); (n, 0) where they are unknown
    segments: NDArray[np.integer[Any]]  # (n,): u, from 0; 0 where there are none
    jacobian: Array  # (n, o, d) of the mixing at the sources; (0, o, d) except for val and test of a known mixing
    log_px: Array  # (n,): log p(x) under that mixing, in nats; (0,) likewise, and where data.observed > data.dim


def world(of: Model | RunConfig, split: str = "test") -> World:
    """Return the data of a model, or of a configuration's world ``data.seed``, as arrays.

    Args:
        of: a model, which knows its world, or the configuration of a run or study.
        split: ``train``, ``val`` (used for early stopping and selection) or ``test``.

    Raises:
        UserError: there is no such split, or the file of observations can't be used.
    """
    require_choice(split, ("train", "val", "test"), "split")
    config = of.config if isinstance(of, Model) else of
    data = dataset.make(config.data, (config.data.seed,), torch_dtype(config), "cpu", cache_of(config.output_dir))
    rows: dataset.Split = getattr(data, split)
    x = rows.block(torch.tensor([0]), slice(None))[0].T
    if data.scalings:
        x = (x * data.scalings[0].std + data.scalings[0].mean).to(x.dtype)
    s, (n, o) = rows.sources[0], x.shape
    if data.sources_scaling is not None:
        s = s * data.sources_scaling.std + data.sources_scaling.mean
    return World(
        np.array(x),
        np.array(s),
        np.zeros(n, dtype=np.int64) if rows.segments is None else np.array(rows.segments[0]),
        np.array(rows.truth.jacobian[0].permute(2, 0, 1)) if rows.truth else np.zeros((0, o, config.data.dim)),
        np.array(rows.truth.log_px[0]) if rows.truth else np.zeros(0),
    )


def _given(
    x: Any, config: RunConfig | Mapping[str, Any] | None, settings: Mapping[str, Any], **labels: Any
) -> tuple[RunConfig | Mapping[str, Any] | None, dict[str, Any]]:
    """The configuration to start from, and the settings of observations ``x``, which are written to a file."""
    if x is None or isinstance(x, (RunConfig, Mapping)):
        require(x is None or config is None, "the settings to start from are given once", "two", "drop one of them")
        found = [name for name, value in labels.items() if value is not None]
        require(not found, "sources, segments and groups belong to observations x", found, "give x, too")
        return config if x is None else x, {}
    base = plain(config or {})
    output_dir = settings.get("output_dir", base.get("output_dir", RunConfig.output_dir))
    x = x if hasattr(x, "__arrow_c_stream__") else tables.numbers(x)
    write = image_files.written if getattr(x, "ndim", 2) > 2 else tables.written
    return config, {"data": write(Path(output_dir) / "data", x, **labels)}


def _observer(progress: Watcher) -> Observer:
    shown = new_console().is_jupyter if progress is None else progress
    return Display() if shown is True else shown or Observer()
