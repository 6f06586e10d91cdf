"""Stored models: one member of an ensemble as a plain module, found by its address, evaluated, and applied to data.

The latents of each observation, of an array or of a file read in blocks, are in the input's order:

- ``z_k``: the posterior's location mapped onto the prior's support;
- ``std_k``: its standard deviation; where the support is bounded, |dz/dy| sigma_k, which is exact to first order;
- ``error``: mean over columns of (g(z) - x)^2, in the units that the networks see.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pyarrow import csv, parquet
from torch import Tensor

from imavae.config.registry import load_plugins
from imavae.config.settings import EncodeConfig, EncodeData, EvaluateConfig, Members, RunConfig
from imavae.data import image_files
from imavae.data import tables as files
from imavae.data.dataset import Scaling
from imavae.data.images import Cache
from imavae.data.images import Progress as Rendering
from imavae.data.storage import temporary
from imavae.errors import require
from imavae.metrics.glossary import absent
from imavae.metrics.regression import SUFFICIENT
from imavae.model.export import Model
from imavae.runs.folder import RunFolder, check_recorded
from imavae.runs.session import Session, cache_of
from imavae.tracking.server import fetch_model
from imavae.training import checkpoint
from imavae.training.ensemble import evaluated

Array = NDArray[np.floating[Any]]
Parts = tuple[RunConfig, dict[str, Tensor], dict[str, Any], Scaling | None]


def member_parts(session: Session, row: int, criterion: str, about: dict[str, Any]) -> Parts:
    """Return what a model is made of, for a member at its best state by ``criterion``; ``about`` is plain provenance.

    ``Model(*parts)`` is the model, and ``checkpoint.save_member(path, *parts)`` writes it.
    """
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


def load_model(address: str | Path, output_dir: str = "outputs", plugins: Sequence[str] = ()) -> Model:
    """Load a model from a file, the folder of a run or study (its champion), or an MLflow address.

    Args:
        address: ``outputs/studies/NAME``, ``….pt``, ``models:/NAME@champion`` or ``runs:/ID``.
        output_dir: folder of the tracking database, unless MLFLOW_TRACKING_URI is set.
        plugins: files with the variants of your own that it uses.

    Returns:
        A plain ``nn.Module`` with ``encode`` and ``decode`` for rows of observations.

    Raises:
        UserError: there is no such model, or its file is damaged or of another format version.
    """
    load_plugins(plugins)
    return checkpoint.load_member(locate(str(address), EvaluateConfig(checkpoint=str(address), output_dir=output_dir)))


def locate(address: str, config: EvaluateConfig | EncodeConfig) -> Path:
    """Return the local file of a checkpoint's address; a model of MLflow is downloaded."""
    if address.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
        return fetch_model(address, config.tracking, Path(config.output_dir))
    path = Path(address)
    path = RunFolder(path).champion if path.is_dir() else path
    check_recorded(path)
    return path


def model_session(path: Path, cache: Cache) -> tuple[Session, Tensor]:
    """Return an ensemble of one in the world of a stored model, and the model's weights as (1, parameter)."""
    model = checkpoint.load_member(path)
    session = Session.start([model.config], torch.device("cpu"), cache)
    return session, torch.cat([weight.detach().flatten() for weight in model.weights.values()])[None]


def evaluate_checkpoint(
    config: EvaluateConfig, rendering: Rendering | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Evaluate a stored model, or each member of a stored ensemble at its best state, with every metric on one split.

    Returns a row per member, with its seeds and the gamma of its point; and the metrics that are absent, with the
    reason. ``rendering`` is called while images that are not in the cache are rendered.
    """
    load_plugins(config.plugins)
    path = locate(config.checkpoint, config)
    cache = cache_of(config.output_dir, rendering)
    if checkpoint.load(path)["kind"] == "model":
        session, flat = model_session(path, cache)
    else:
        session = Session.load(path, torch.device("cpu"), cache)
        select = config.select or session.criteria[0]
        rule = f"select is one of the best states' criteria, {', '.join(session.criteria)}"
        require(select in session.criteria, rule, f"{select} without sources", "leave select at null")
        flat = session.state.best[select].weights
    values = session.evaluate(config.split, flat, torch.arange(len(flat)), probes=True)
    axes = [{**session.axes(row), "gamma": member.gamma} for row, member in enumerate(session.ensemble.members)]
    missing = absent(session.ensemble.config, getattr(session.data, config.split).truth is not None, probes=True)
    estimate = f"{config.split}/cima_truth_estimate"
    if estimate in values and bool(values[estimate].isnan().all()):
        del values[estimate]
        r2 = float(values[f"{estimate}_r2"].max())
        missing["cima_truth_estimate"] = f"the sources explain the observations too badly: R² {r2:.2f} < {SUFFICIENT}"
    frame = pd.concat([pd.DataFrame(axes), pd.DataFrame({k: v.numpy() for k, v in values.items()})], axis=1)
    return frame, missing


IMAGES = 1000  # encoded at once


class Latents(NamedTuple):
    """Latents of n observations, in their order."""

    z: Array  # (n, d)
    std: Array  # (n, d)
    error: Array  # (n,)


def encode(model: Model | str | Path, x: Any) -> Latents:
    """Return the latents of observations.

    Args:
        model: a model, or its address as for :func:`imavae.load_model`.
        x: (n, o) finite numbers, raw rows as in the model's data: what :func:`imavae.train` takes. Of a frame with
            named columns, the columns that the model was trained on are used, in any order. Images may also be
            (n, side, side[, channel]), bytes or numbers in [0, 1].

    Returns:
        NumPy arrays ``z`` (n, d), ``std`` (n, d) and ``error`` (n,).

    Raises:
        UserError: a bad address or file; or observations of another shape, not finite, or images outside [0, 1].
    """
    model = model if isinstance(model, Model) else load_model(model)
    x = x if hasattr(x, "__arrow_c_stream__") else files.numbers(x)
    parts = [x[at : at + IMAGES] for at in range(0, max(1, len(x)), IMAGES)] if getattr(x, "ndim", 2) > 2 else [x]
    found = []
    for part in parts:  # of images: as numbers they would be eight times as large
        rows = checkpoint.rows_of(model, part)
        require(bool(rows.isfinite().all()), "x has finite numbers", "NaN or infinite ones", "leave those rows out")
        _check_images(model, rows, "x")
        found.append(encoded(model, rows.T))
    values, dim = torch.cat(found, 1), model.config.latents
    return Latents(values[:dim].T.numpy(), values[dim : 2 * dim].T.numpy(), values[-1].numpy())


class Encoded(NamedTuple):
    """Size of an encoded file and its mean reconstruction error."""

    rows: int
    columns: tuple[str, ...]
    error: float


def encode_file(config: EncodeConfig, notify: Callable[[int, int | None], None]) -> Encoded:
    """Write the latents of a file; ``notify`` receives the rows so far and their total, if it is known.

    The output is written under another name and renamed once it is complete: an error leaves nothing behind. Raises
    UserError for a bad checkpoint, missing columns, and values that are not finite, or outside [0, 1] in an image.
    """
    load_plugins(config.plugins)
    model = checkpoint.load_member(locate(config.checkpoint, config)).requires_grad_(False)
    blocks, total_rows = _blocks(model, config.data)
    torch.set_num_threads(model.config.training.threads)
    dim, dtype = model.config.latents, next(model.parameters()).dtype
    names = [*(f"z{k}" for k in range(dim)), *(f"std{k}" for k in range(dim)), "error"]
    schema = pa.schema([(name, pa.float64() if dtype == torch.float64 else pa.float32()) for name in names])
    out, rows, total = Path(config.out), 0, 0.0
    aside = temporary(out.parent)
    try:
        # Latents hardly repeat: a dictionary or compression would cost more time than they save in space.
        parquet_writer = functools.partial(
            parquet.ParquetWriter, use_dictionary=False, compression="none", write_statistics=False
        )
        with (csv.CSVWriter if out.suffix == ".csv" else parquet_writer)(aside, schema) as writer:
            for block in blocks:
                observations = torch.from_numpy(block)
                _check_images(model, observations, config.data.path)
                values = encoded(model, observations)
                writer.write_batch(pa.record_batch([pa.array(row) for row in values.numpy()], schema))
                rows, total = rows + values.shape[1], total + float(values[-1].double().sum())
                notify(rows, total_rows)
        require(rows > 0, "data.path has rows", f"{config.data.path} is empty", "use another file")
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return Encoded(rows, tuple(names), total / rows)


@torch.no_grad()
def encoded(model: Model, x: Float[Tensor, "o n"]) -> Float[Tensor, "r n"]:
    """Return z, std and error as the rows of one tensor, with a column per observation."""
    architecture, weights, dim = model.architecture, model.weights, model.config.latents
    standard = ((x - model.column_mean[:, None]) / model.column_std[:, None]).to(next(model.parameters()).dtype)
    result = standard.new_empty(2 * dim + 1, x.shape[1])
    size = 2 * evaluated(len(x))  # rows at once: their activations stay in the processor's cache
    for part, into in zip(torch.split(standard, size, 1), torch.split(result, size, 1), strict=True):
        q = architecture.posterior(weights, part[None])
        location = architecture.prior.latent(q.mean)
        into[:dim] = location[0]
        torch.mul(q.variance()[0].sqrt_(), architecture.prior.slope(q.mean)[0], out=into[dim : 2 * dim])
        torch.mean(architecture.decoder(weights, location)[0].sub_(part).square_(), 0, out=into[-1])
    return result


def _check_images(model: Model, x: Tensor, where: object) -> None:
    """Raise UserError for values outside [0, 1] if the model takes images."""
    if model.config.data.has_images and x.numel():
        proper, remedy = bool(x.min() >= 0 and x.max() <= 1), "divide bytes by 255"
        require(proper, "images are numbers in [0, 1]", f"others in {where}", remedy)


def _blocks(model: Model, given: EncodeData) -> tuple[Iterable[Array], int | None]:
    """The observations of a file, (o, n), block by block, and their number if it is known."""
    data = model.config.data
    if data.has_images and image_files.holds_images(given.path):
        images, white = image_files.open_images(given.path), getattr(data, "white", 255)
        rule, got = f"data.path has images of {data.features} numbers", f"{images.channels} x {images.side}²"
        require(images.features == data.features, rule, got, "resize them, or convert them to as many channels")
        return (block.reshape(len(block), -1).T / white for block in images.blocks()), images.n
    table = files.open_table(given.path)
    return files.blocks(table, _columns(model, table, given.columns)), table.rows


def _columns(model: Model, table: files.Table, asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the file's columns in the model's order. Raises UserError if one is missing or their number differs."""
    learned, observed = model.columns, model.config.data.features
    if asked is None:
        asked = learned if learned is not None else tuple(table.numeric)
        missing = [name for name in asked if name not in table.numeric]
        rule = f"data.path has the columns that the model was trained on, {', '.join(asked)}"
        remedy = "rename them, or list the columns in the model's order: data.columns=[...]"
        require(not missing, rule, f"{table.path} without {', '.join(missing)}", remedy)
    got, remedy = f"{len(asked)} of {table.path}: {', '.join(asked)}", "list the columns in data.columns=[...]"
    require(len(asked) == observed, f"the model takes {observed} columns", got, remedy)
    return files.pick(table, asked)
