"""Stored models: one member of an ensemble as a plain module, found by its address, and evaluated on a split."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from imavae.config.registry import load_plugins
from imavae.config.settings import EncodeConfig, EvaluateConfig, Members, RunConfig
from imavae.data.dataset import Scaling
from imavae.data.images import Cache
from imavae.data.images import Progress as Rendering
from imavae.errors import require
from imavae.metrics.glossary import absent
from imavae.model.export import Model
from imavae.runs.folder import RunFolder
from imavae.runs.session import Session, cache_of
from imavae.tracking.server import fetch_model
from imavae.training import checkpoint

Parts = tuple[RunConfig, dict[str, torch.Tensor], dict[str, Any], Scaling | None]


def member_model(session: Session, row: int, criterion: str, about: dict[str, Any]) -> Model:
    """Return one member at its best state by ``criterion`` as a plain module; ``about`` is plain provenance."""
    return Model(*_parts(session, row, criterion, about)).eval()


def save_best(path: Path, session: Session, row: int, criterion: str, about: dict[str, Any]) -> None:
    """Write the same member as a model file."""
    checkpoint.save_member(path, *_parts(session, row, criterion, about))


def _parts(session: Session, row: int, criterion: str, about: dict[str, Any]) -> Parts:
    ensemble, data = session.ensemble, session.data
    member = ensemble.members[row]
    config = session.points[member.point]
    config = dataclasses.replace(
        config, members=Members(seed=(member.seed,)), data=dataclasses.replace(config.data, seed=member.world)
    )
    weights = ensemble.model.layout.views(session.state.best[criterion].weights[row : row + 1])
    weights = {name: weight[0] for name, weight in weights.items()}
    scaling = data.scalings[ensemble.worlds.index(member.world)] if data.scalings else None
    return config, weights, {**session.axes(row), "chosen by": criterion, **about}, scaling


def load_model(address: str | Path, output_dir: str = "outputs") -> Model:
    """Load a model from a file, the folder of a run or study (its champion), or an MLflow address.

    Args:
        address: ``outputs/studies/NAME``, ``….pt``, ``models:/NAME@champion`` or ``runs:/ID``.
        output_dir: folder of the tracking database, unless MLFLOW_TRACKING_URI is set.

    Returns:
        A plain ``nn.Module`` with ``encode`` and ``decode`` for rows of observations.

    Raises:
        UserError: there is no such model, or its file is damaged or of another format version.
    """
    return checkpoint.load_member(locate(str(address), EvaluateConfig(checkpoint=str(address), output_dir=output_dir)))


def locate(address: str, config: EvaluateConfig | EncodeConfig) -> Path:
    """Return the local file of a checkpoint's address; a model of MLflow is downloaded."""
    if address.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
        return fetch_model(address, config.tracking, Path(config.output_dir))
    path = Path(address)
    return RunFolder(path).champion if path.is_dir() else path


def model_session(path: Path, cache: Cache) -> tuple[Session, torch.Tensor]:
    """Return an ensemble of one in the world of a stored model, and the model's weights as (1, parameter)."""
    model = checkpoint.load_member(path)
    session = Session.start([model.config], torch.device("cpu"), cache)
    return session, torch.cat([weight.detach().flatten() for weight in model.weights.values()])[None]


def evaluate_checkpoint(
    config: EvaluateConfig, rendering: Rendering | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Evaluate a stored model, or each member of a stored ensemble at its best state, with every metric on one split.

    ``rendering`` is called while images that are not in the cache are rendered.

    Returns:
        A row per member, with its seeds and the gamma of its point; and the metrics that are absent, with the reason.

    Raises:
        UserError: a bad checkpoint.
    """
    load_plugins(config.plugins)
    path = locate(config.checkpoint, config)
    cache = cache_of(config.output_dir, rendering)
    if checkpoint.load(path)["kind"] == "model":
        session, flat = model_session(path, cache)
    else:
        session = Session.load(path, torch.device("cpu"), cache)
        require(
            config.select is None or config.select in session.criteria,
            f"select is one of the best states' criteria, {', '.join(session.criteria)}",
            f"{config.select} without sources",
            "leave select at null",
        )
        flat = session.state.best[config.select or session.criteria[0]].weights
    values = session.evaluate(config.split, flat, torch.arange(len(flat)), "probes")
    axes = [{**session.axes(row), "gamma": member.gamma} for row, member in enumerate(session.ensemble.members)]
    frame = pd.concat([pd.DataFrame(axes), pd.DataFrame({k: v.numpy() for k, v in values.items()})], axis=1)
    return frame, absent(session.ensemble.config, getattr(session.data, config.split).truth is not None, "probes")
