"""Files of tensors and plain containers, written whole or not at all, read back without running any code.

Two kinds: an ensemble (a state to go on from, see run.py) and a model (one member's state dict with its configuration).
MLflow's generic ``pyfunc`` loader finds :func:`_load_pyfunc` here.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from imavae.config.mapping import build, to_mapping
from imavae.config.settings import RunConfig
from imavae.data.dataset import Scaling
from imavae.data.storage import Seal
from imavae.errors import UserError, require
from imavae.model.export import Model

C = TypeVar("C", bound=RunConfig)
SEAL = Seal(
    magic=b"imavae checkpoint",
    format=2,
    noun="checkpoint",
    missing="look under outputs/ for one",
    damaged="use another one",
    other="use the version of imavae that wrote it, or train again",
)


def save(path: Path, kind: str, content: dict[str, Any], keep: bool = False) -> None:
    """Write ``content`` to ``path``, whole or not at all. ``kind`` is ensemble or model; with ``keep`` the file that is
    replaced stays as the previous one.
    """
    buffer = io.BytesIO()
    torch.save({"kind": kind, **content}, buffer)
    SEAL.write(path, buffer.getvalue(), keep)


def load(path: Path) -> dict[str, Any]:
    """The content of a file that :func:`save` wrote, on the CPU.

    Raises:
        UserError: the file is missing, truncated, changed since, not a checkpoint, or of another format version.
    """
    body = SEAL.read(path)
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # it was made to run something: no file of save() is
        raise UserError(
            f"`checkpoint holds tensors and plain values alone` must hold, but {path} holds more; it is not to be "
            "trusted: use another one"
        ) from None
    return content


def save_member(
    path: Path, config: RunConfig, weights: dict[str, Tensor], about: dict[str, Any], scaling: Scaling | None = None
) -> None:
    """Write one member's weights (names and shapes as in ``Layout``, without a member axis: (out, in), (out,)) with its
    configuration; ``about`` is plain provenance.

    ``scaling`` standardises the columns that it has learned from: the file that they lay in is not needed any more.
    """
    state = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
    columns = {} if scaling is None else {"scaling": scaling._asdict()}
    save(path, "model", {"config": to_mapping(config), "state_dict": state, "about": about, **columns})


def load_member(path: Path) -> Model:
    """The model in a file that :func:`save_member` wrote.

    Raises:
        UserError: the file is missing, damaged, of another format version, or holds a whole ensemble.
    """
    content = load(path)
    if content["kind"] != "model":
        raise UserError(
            f"`checkpoint holds one model` must hold, but got an {content['kind']} in {path}; "
            "take the champion.pt beside it, or evaluate it with scripts/evaluate.py"
        )
    scaling = Scaling(**content["scaling"]) if "scaling" in content else None
    return Model(stored_config(content["config"], RunConfig), content["state_dict"], content["about"], scaling).eval()


def stored_config(mapping: Mapping[str, Any], kind: type[C]) -> C:
    """The configuration in a checkpoint, or in a study's folder. No file of observations is read for it, and its
    plugins are not run: a file from elsewhere must not name code to execute.

    Whoever reads a checkpoint of an own variant loads its plugin first (``plugins=``, or ``load_plugins``).

    Raises:
        UserError: a setting that this program does not know: that of an own variant, perhaps.
    """
    try:
        return build(kind, {**mapping, "plugins": ()})
    except UserError as error:
        raise UserError(
            f"{error}; if the checkpoint has a variant of your own, name the file that registers it: "
            "plugins=[FILE.py] (in Python: imavae.config.registry.load_plugins)"
        ) from None


def rows_of(model: Model, data: Any) -> Tensor:
    """Observations (n, o) in float64 of a frame, an array or a tensor. Of a frame with named columns those are taken
    that the model has learned from, in whatever order they stand.

    Raises:
        UserError: a column is missing, or it has another shape.
    """
    columns, observed = model.columns, model.config.data.observed
    if columns is not None and isinstance(data, pd.DataFrame) and data.columns.dtype != np.int64:
        missing = [name for name in columns if name not in data]
        require(
            not missing, "the frame has the model's columns", f"none called {', '.join(missing)}", "rename its columns"
        )
        data = data[list(columns)]
    x = (
        data.detach().cpu().double()
        if isinstance(data, Tensor)
        else torch.tensor(np.asarray(data), dtype=torch.float64)
    )
    fits, rule = x.ndim == 2 and x.shape[1] == observed, f"observations have the shape (n, {observed})"
    require(fits, rule, f"shape {tuple(x.shape)}", "reshape it: a row is an observation")
    return x


class _Predictor:
    """What MLflow's pyfunc flavor calls: observations in (a frame or an array, a row each), latents out."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> NDArray[np.floating[Any]]:
        with torch.no_grad():
            return np.asarray(self.model.encode(rows_of(self.model, data)))


def _load_pyfunc(path: str) -> _Predictor:
    return _Predictor(load_member(Path(path)))
