"""Files of tensors and plain containers, written whole or not at all, read back without running any code.

Two kinds: an ensemble (a state to go on from, see run.py) and a model (one member's state dict with its configuration).
MLflow's generic ``pyfunc`` loader finds :func:`_load_pyfunc` here.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imavae.config import RunConfig, UserError, run_config, to_mapping
from imavae.model.export import Model

FORMAT = 1  # of every file that save() writes; a change that old readers misread raises it


def save(path: Path, kind: str, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path`` atomically: aside, to the disk, then renamed. ``kind`` is ensemble or model."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            torch.save({"format": FORMAT, "kind": kind, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """The content of a file that :func:`save` wrote, on the CPU.

    Raises:
        UserError: the file is missing, truncated, not a checkpoint, or of another format version.
    """
    if not path.is_file():
        raise UserError(f"`checkpoint is a file` must hold, but got {path}; look under outputs/ for one that is there")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise UserError(
            f"`checkpoint can be read` must hold, but got {path} ({str(error).splitlines()[0]:.80}); "
            "it is truncated, damaged or no checkpoint of imavae: use another one"
        ) from None
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise UserError(
            f"`checkpoint format = {FORMAT}` must hold, but got {version} in {path}; "
            "use the version of imavae that wrote it, or train again"
        )
    return content


def save_member(path: Path, config: RunConfig, weights: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write one member's weights (names as in ``Layout``) with its configuration; ``about`` is plain provenance."""
    state = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
    save(path, "model", {"config": to_mapping(config), "state_dict": state, "about": about})


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
    model = Model(run_config(content["config"]), content["about"])
    model.load_state_dict(content["state_dict"])
    return model.eval()


class _Predictor:
    """What MLflow's pyfunc flavor calls: observations in (a frame or an array, a row each), latents out."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> NDArray[np.floating[Any]]:
        x = torch.as_tensor(np.asarray(data), dtype=next(self.model.parameters()).dtype)
        with torch.no_grad():
            return np.asarray(self.model.encode(x))


def _load_pyfunc(path: str) -> _Predictor:
    return _Predictor(load_member(Path(path)))
