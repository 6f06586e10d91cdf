"""Search the hyper-parameters of VAEs that must recover the true sources of nonlinearly mixed data.

``train``, ``tune`` and ``reproduce`` do the work of the commands; ``load_results`` and ``load_model`` read what they
wrote; ``export`` and ``import_study`` make a study one file and back; ``encode`` gives latents, ``world`` the data of a
model, ``metrics`` every metric as a function on arrays. See docs/tour.md.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("imavae runs on Linux and macOS, but this is Windows; use WSL")

if TYPE_CHECKING:
    from imavae import metrics as metrics
    from imavae.api import Results as Results
    from imavae.api import World as World
    from imavae.api import import_study as import_study
    from imavae.api import load_results as load_results
    from imavae.api import reproduce as reproduce
    from imavae.api import train as train
    from imavae.api import tune as tune
    from imavae.api import world as world
    from imavae.errors import UserError as UserError
    from imavae.estimator import IMAVAE as IMAVAE
    from imavae.model.export import Model as Model
    from imavae.report.display import Observer as Observer
    from imavae.runs.archive import export as export
    from imavae.runs.models import Latents as Latents
    from imavae.runs.models import encode as encode
    from imavae.runs.models import load_model as load_model

_NAMES = {
    "api": ("Results", "World", "import_study", "load_results", "reproduce", "train", "tune", "world"),
    "errors": ("UserError",),
    "estimator": ("IMAVAE",),
    "model.export": ("Model",),
    "report.display": ("Observer",),
    "runs.archive": ("export",),
    "runs.models": ("Latents", "encode", "load_model"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted([*_MODULES, "metrics"])


def __getattr__(name: str) -> Any:
    """Import torch, Ray and MLflow only when a name that needs them is used: commands must answer at once."""
    if name == "metrics":
        return importlib.import_module("imavae.metrics")
    if name in _MODULES:
        return getattr(importlib.import_module(f"imavae.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'imavae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
