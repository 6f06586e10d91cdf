"""Imavae as a library: train an ensemble, run a study, and have the data that models were trained on.

These functions do what the commands do, by the same code, and write the same folders, without printing.
Settings are those of the configuration tree (docs/config.md); their defaults stand in :mod:`imavae.config.settings`,
and ``conf/`` has the same. Hydra has no part in it: a group's option, as in ``data=mlp``, is here the variant's name,
``data={"mixing": {"name": "mlp"}}``.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from imavae.cli import commands
from imavae.config.mapping import to_mapping
from imavae.config.settings import RunConfig, StudyConfig, overridden, run_config, study_config
from imavae.config.variants import Settings
from imavae.data import dataset
from imavae.errors import require, require_choice
from imavae.model.export import Model
from imavae.model.vae import torch_dtype
from imavae.runs.results import Results, load_results
from imavae.runs.session import cache_of

Array = NDArray[np.floating[Any]]


def train(config: RunConfig | Mapping[str, Any] | None = None, *, progress: bool = False, **settings: Any) -> Results:
    """Train the members (seeds) of one point as one ensemble, and evaluate and save them.

    ``train(model={"gamma": 30}, members={"seed": [1, 2, 3]})`` changes some of the defaults. Figures are drawn by the
    command, ``scripts/train.py``, alone.

    Args:
        config: what to start from; by default the defaults, without tracking (``tracking={"name": "mlflow"}`` tracks).
        progress: whether to show how far it is.
        settings: of :class:`imavae.config.settings.RunConfig`, nested mappings, over those of ``config``.

    Returns:
        The run: its tables, and its members as models. It lies in ``OUTPUT_DIR/runs/NAME``.

    Raises:
        UserError: a setting that does not exist or breaks a rule, or data that can't be used.
        KeyboardInterrupt: it was interrupted; with ``resume=True`` it goes on from its last validation.
    """
    point = run_config(_mapping({"tracking": {"name": "none"}} if config is None else config, settings))
    with _threads_kept():
        ledger, _ = commands.run(point, _console(progress))
    commands.finish(ledger, [])
    return load_results(ledger.folder)


def tune(
    config: StudyConfig | RunConfig | Mapping[str, Any] | None = None, *, progress: bool = False, **settings: Any
) -> Results:
    """Run a study: search a space of settings, with an ensemble of seeds at every point.

    ``tune(search={"model": {"gamma": {"type": "float", "low": 3.0, "high": 300.0}}}, budget={"trials": 8})`` is one.
    Ray is started for it, and shut down at its end. A file of ``search_spaces/`` builds on ``conf/``, which Hydra
    composes: ``python scripts/tune.py search=NAME --cfg job`` prints the mapping that this function takes.

    Args:
        config: what to start from; a run's becomes the base that all points share.
        progress: whether to show how far it is.
        settings: of :class:`imavae.config.settings.StudyConfig`, nested mappings, over those of ``config``; ``search``
            replaces its search. As with the command, a study is tracked by MLflow unless ``tracking={"name": "none"}``.

    Returns:
        The study: its tables, and all members as models. It lies in ``OUTPUT_DIR/studies/NAME``, with its figures.

    Raises:
        UserError: a setting that does not exist or breaks a rule, data that can't be used, or no trial has a result.
        KeyboardInterrupt: it was interrupted; with ``resume=True`` it goes on where it was.
    """
    study = study_config(_mapping({} if config is None else config, settings))
    remedy = "say python scripts/tune.py with it, or use imavae.search.study.dry_run"
    require(not study.dry_run, "dry_run is for the command", study.dry_run, remedy)
    ledger = commands.study(study, _console(progress))
    if ledger.interrupted is not None:
        raise ledger.interrupted
    return load_results(ledger.folder)


class World(NamedTuple):
    """A split of the data that a model was trained in, a row for each of n observations; empty is what nobody knows."""

    observations: Array  # (n, o), as model.encode takes them
    sources: Array  # (n, d); (n, 0) where they are unknown
    segments: NDArray[np.integer[Any]]  # (n,): u, from 0 up; 0 where there are none
    jacobian: Array  # (n, o, d) of the mixing at the sources; (0, o, d) but for val and test of a known mixing
    log_px: Array  # (n,): log p(x) under that mixing, in nats; (0,) likewise


def world(of: Model | RunConfig, split: str = "test") -> World:
    """The data of a model, or of the world ``data.seed`` of a configuration.

    Args:
        of: a model, which knows its world, or a configuration (that of a run or a study's base).
        split: ``train``, ``val`` (which stops and selects) or ``test``.

    Returns:
        Arrays whose rows are observations: (n, o), (n, d), (n,), (n, o, d) and (n,).

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
    segments, truth = rows.segments, rows.truth
    return World(
        np.array(x),
        np.array(rows.sources[0]),
        np.zeros(len(rows), dtype=np.int64) if segments is None else np.array(segments[0]),
        np.zeros((0, *x.shape[1:], config.data.dim)) if truth is None else np.array(truth.jacobian[0].permute(2, 0, 1)),
        np.zeros(0) if truth is None else np.array(truth.log_px[0]),
    )


def _mapping(config: Settings | Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain nested settings: those of a configuration, and others over them."""
    base = to_mapping(config) if isinstance(config, Settings) else config
    plain = {key: to_mapping(value) if isinstance(value, Settings) else value for key, value in settings.items()}
    return overridden(base, plain)


def _console(progress: bool) -> Console:
    """Standard output, or nothing."""
    return Console() if progress else Console(file=io.StringIO(), quiet=True, force_jupyter=False)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """A run sets torch's number of threads for its process; a library leaves it as it was."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
