"""Latents of observations: of an array, or of a file in blocks, which need not fit into memory.

For each observation, in the input's order:

- ``z_k``: the posterior's location mapped onto the prior's support;
- ``std_k``: its standard deviation; where the support is bounded, |dz/dy| sigma_k, which is exact to first order;
- ``error``: mean over columns of (g(z) - x)^2, in the units that the networks see.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from pyarrow import csv, parquet
from torch import Tensor

from imavae.config.data import SpritesData
from imavae.config.registry import load_plugins
from imavae.config.settings import EncodeConfig
from imavae.data import tables as files
from imavae.errors import require
from imavae.model.export import Model
from imavae.runs.models import load_model, locate
from imavae.training.checkpoint import load_member, rows_of
from imavae.training.ensemble import evaluated

Array = NDArray[np.floating[Any]]


class Latents(NamedTuple):
    """Latents of n observations, in their order."""

    z: Array  # (n, d)
    std: Array  # (n, d)
    error: Array  # (n,)


def encode(model: Model | str | Path, x: ArrayLike | Tensor) -> Latents:
    """Return the latents of observations.

    Args:
        model: a model, or its address as for :func:`imavae.load_model`.
        x: (n, o) finite numbers, raw rows as in the model's data. Of a frame with named columns, the columns that the
            model was trained on are used, in any order.

    Returns:
        NumPy arrays ``z`` (n, d), ``std`` (n, d) and ``error`` (n,).

    Raises:
        UserError: a bad address or file; or observations of another shape, not finite, or images outside [0, 1].
    """
    model = model if isinstance(model, Model) else load_model(model)
    rows = rows_of(model, x)
    require(bool(rows.isfinite().all()), "x has finite numbers", "NaN or infinite ones", "leave those rows out")
    _check_images(model, rows, "x")
    values, dim = encoded(model, rows.T), model.config.data.dim
    return Latents(values[:dim].T.numpy(), values[dim : 2 * dim].T.numpy(), values[-1].numpy())


class Encoded(NamedTuple):
    """Size of an encoded file and its mean reconstruction error."""

    rows: int
    columns: tuple[str, ...]
    error: float


def encode_file(config: EncodeConfig, notify: Callable[[int, int | None], None]) -> Encoded:
    """Write the latents of a file; ``notify`` receives the rows so far and their total, if it is known.

    The output is written under another name and renamed once it is complete: an error leaves nothing behind.

    Raises:
        UserError: a bad checkpoint; a file without the model's columns, before anything is written; or a value that is
            not finite, or outside [0, 1] in an image.
    """
    load_plugins(config.plugins)
    table = files.open_table(config.data.path)
    model = load_member(locate(config.checkpoint, config)).requires_grad_(False)
    columns = _columns(model, table, config.data.columns)
    torch.set_num_threads(model.config.training.threads)
    dim, dtype = model.config.data.dim, next(model.parameters()).dtype
    names = [*(f"z{k}" for k in range(dim)), *(f"std{k}" for k in range(dim)), "error"]
    schema = pa.schema([(name, pa.float64() if dtype == torch.float64 else pa.float32()) for name in names])
    out, rows, total = Path(config.out), 0, 0.0
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with _writer(aside, out.suffix, schema) as writer:
            for block in files.blocks(table, columns):
                observations = torch.from_numpy(block)
                _check_images(model, observations, table.path)
                values = encoded(model, observations)
                writer.write_batch(pa.record_batch([pa.array(row) for row in values.numpy()], schema))
                rows, total = rows + values.shape[1], total + float(values[-1].double().sum())
                notify(rows, table.rows)
        require(rows > 0, "data.path has rows", f"{table.path} is empty", "use another file")
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return Encoded(rows, tuple(names), total / rows)


@torch.no_grad()
def encoded(model: Model, x: Float[Tensor, "o n"]) -> Float[Tensor, "r n"]:
    """Return z, std and error as the rows of one tensor, with a column per observation."""
    architecture, weights, dim = model.architecture, model.weights, model.config.data.dim
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
    if isinstance(model.config.data, SpritesData) and x.numel():
        proper, remedy = bool(x.min() >= 0 and x.max() <= 1), "divide bytes by 255"
        require(proper, "images are numbers in [0, 1]", f"others in {where}", remedy)


def _columns(model: Model, table: files.Table, asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the file's columns in the model's order. Raises UserError if one is missing or their number differs."""
    learned, observed = model.columns, model.config.data.observed
    if asked is None:
        asked = learned if learned is not None else tuple(table.numeric)
        missing = [name for name in asked if name not in table.numeric]
        require(
            not missing,
            f"data.path has the columns that the model was trained on, {', '.join(asked)}",
            f"{table.path} without {', '.join(missing)}",
            "rename them, or list the columns in the model's order: data.columns=[...]",
        )
    got, remedy = f"{len(asked)} of {table.path}: {', '.join(asked)}", "list the columns in data.columns=[...]"
    require(len(asked) == observed, f"the model takes {observed} columns", got, remedy)
    return files.pick(table, asked)


def _writer(path: Path, suffix: str, schema: Any) -> Any:
    if suffix == ".csv":
        return csv.CSVWriter(path, schema)
    # Latents hardly repeat: a dictionary or compression would cost more time than they save in space.
    return parquet.ParquetWriter(path, schema, use_dictionary=False, compression="none", write_statistics=False)
