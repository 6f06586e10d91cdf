"""Files of tensors and plain containers, written atomically and read without running any code.

There are two kinds: an ensemble (the state to resume from) and a model (one member's weights and configuration).
MLflow's generic ``pyfunc`` loader finds :func:`_load_pyfunc` here.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imavae.config.mapping import build, to_mapping
from imavae.config.settings import RunConfig
from imavae.data import image_files, tables
from imavae.data.dataset import Scaling
from imavae.data.storage import Seal
from imavae.errors import UserError, require
from imavae.model.export import Model
from imavae.model.vae import torch_dtype

C = TypeVar("C", bound=RunConfig)
SEAL = Seal(
    magic=b"imavae checkpoint",
    format=2,
    noun="checkpoint",
    missing="look under outputs/ for one",
    damaged="use another one",
    other="imavae 0.1 wrote format 1: use that version, or train again",
)


def save(path: Path, kind: str, content: dict[str, Any], keep: bool = False) -> None:
    """Write ``content``, of the ``kind`` ensemble or model, atomically; ``keep`` keeps the previous file, too."""
    buffer = io.BytesIO()
    torch.save({"kind": kind, **content}, buffer)
    SEAL.write(path, buffer.getvalue(), keep)


def load(path: Path, recorded: str | None = None) -> dict[str, Any]:
    """The content of a file of :func:`save`, on the CPU.

    Raises UserError for a missing, damaged or other file, or if its digest is not the ``recorded`` one.
    """
    body = SEAL.read(path, recorded)
    with fitting(path):
        with zipfile.ZipFile(io.BytesIO(body)) as archive:  # torch stores, and never compresses
            if sum(entry.file_size for entry in archive.infolist()) > len(body):
                raise ValueError("it grows when it is unpacked")
        try:
            content: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # the file was made to run code
            rule, remedy = "checkpoint holds only tensors and plain values", "do not trust it: use another one"
            raise UserError(f"`{rule}` must hold, but {path} holds more; {remedy}") from None
        if content["kind"] not in ("ensemble", "model"):
            raise ValueError(f"kind {content['kind']!r}")
    return content


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Raise UserError for a checkpoint, read in the block, whose content is not what its settings say."""
    try:
        yield
    except UserError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
    ) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0]
        rule = "checkpoint has weights, and settings that agree with them"
        raise UserError(f"`{rule}` must hold, but got {path} ({reason}); {SEAL.damaged}") from None


def save_member(
    path: Path, config: RunConfig, weights: dict[str, Tensor], about: dict[str, Any], scaling: Scaling | None = None
) -> None:
    """Write one member's weights, named as in ``Layout`` and without a member axis, with its configuration.

    ``about`` is plain provenance; ``scaling`` standardises a file's columns, so that the file is not needed any more.
    """
    state = {k: weight.detach().to("cpu", torch_dtype(config), copy=True) for k, weight in weights.items()}
    columns = {} if scaling is None else {"scaling": scaling._asdict()}
    save(path, "model", {"config": to_mapping(config), "state_dict": state, "about": about, **columns})


def load_member(path: Path) -> Model:
    """The model in a file of :func:`save_member`. Raises as :func:`load` does, and for a whole ensemble."""
    content = load(path)
    got, remedy = f"an {content['kind']} in {path}", "use the champion.pt beside it, or scripts/evaluate.py"
    require(content["kind"] == "model", "checkpoint holds one model", got, remedy)
    with fitting(path):
        scaling = Scaling(**content["scaling"]) if "scaling" in content else None
        weights, config = content["state_dict"], stored_config(content["config"], RunConfig)
        model = Model(config, weights, content["about"], scaling).eval()
        shapes, rows = model.architecture.layout.shapes, (model.column_mean, model.column_std)
        if {name: tuple(weight.shape) for name, weight in weights.items()} != shapes:
            raise ValueError("weights of other shapes")
        if any(weight.dtype != torch_dtype(config) or not weight.isfinite().all() for weight in weights.values()):
            raise ValueError("weights of another dtype, NaN or infinite ones")
        if any(row.shape != (config.data.features,) or not row.isfinite().all() for row in rows):
            raise ValueError("a scaling of other columns")
    return model


def stored_config(mapping: Mapping[str, Any], kind: type[C]) -> C:
    """The configuration in a checkpoint or in a study's folder.

    Neither its files of observations are read, which may no longer exist, nor its plugins run: a file from elsewhere
    must not name code to execute. The caller loads the plugins of user-defined variants first (``load_plugins``).
    Raises UserError for an unknown setting.
    """
    try:
        return build(kind, {**mapping, "plugins": ()})
    except UserError as error:
        remedy = "plugins=[FILE.py]"
        raise UserError(f"{error}; if the checkpoint has a variant of a plugin, name its file: {remedy}") from None


def rows_of(model: Model, data: Any) -> Tensor:
    """Observations (n, o) in float64 from a tensor, an array or a frame; a frame's columns are found by their names.

    Columns without names, 0, 1, ..., are those of the model in its order. Raises UserError for a missing column,
    another shape, and what is no number.
    """
    columns, observed = model.columns, model.config.data.features
    if hasattr(data, "__arrow_c_stream__"):
        frame = tables.arrow_of(data)
        names = frame.column_names
        if columns is not None and names != [str(number) for number in range(observed)]:
            missing = [name for name in columns if name not in names]
            got = f"no {', '.join(missing)}"
            require(not missing, "the frame has the model's columns", got, "rename its columns")
            names = list(columns)
        x = torch.from_numpy(tables.floats(frame, names).T)
    else:
        values, of = tables.numbers(data), model.config.data
        if values.ndim > 2 and of.has_images:
            values = image_files.as_rows(values, observed, getattr(of, "white", 255))
        x = torch.from_numpy(np.array(values, dtype=np.float64, order="C"))
    fits, rule = x.ndim == 2 and x.shape[1] == observed, f"observations have the shape (n, {observed})"
    require(fits, rule, f"shape {tuple(x.shape)}", "reshape it: a row is an observation")
    return x


class _Predictor:
    """Model for MLflow's pyfunc flavor: latents of observations, a row each, in a frame or an array."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> NDArray[np.floating[Any]]:
        with torch.no_grad():
            return np.asarray(self.model.encode(rows_of(self.model, data)))


def _load_pyfunc(path: str) -> _Predictor:
    return _Predictor(load_member(Path(path)))
