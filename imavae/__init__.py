"""Search the hyper-parameters of VAEs that must recover the true sources of nonlinearly mixed data.

``train``, ``tune`` and ``reproduce`` do the work of the commands; ``load_results`` and ``load_model`` read what they
wrote; ``encode`` gives latents, ``world`` the data of a model, ``metrics`` every metric as a function on arrays. See
docs/tour.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imavae import metrics
    from imavae.api import World, reproduce, train, tune, world
    from imavae.errors import UserError
    from imavae.model.export import Model
    from imavae.report.display import Observer
    from imavae.runs.encode import Latents, encode
    from imavae.runs.models import load_model
    from imavae.runs.results import Results, load_results

__all__ = [
    "Latents",
    "Model",
    "Observer",
    "Results",
    "UserError",
    "World",
    "encode",
    "load_model",
    "load_results",
    "metrics",
    "reproduce",
    "train",
    "tune",
    "world",
]

_MODULES = {
    "Latents": "runs.encode",
    "Model": "model.export",
    "Observer": "report.display",
    "Results": "runs.results",
    "UserError": "errors",
    "encode": "runs.encode",
    "load_model": "runs.models",
    "load_results": "runs.results",
}  # others are in api


def __getattr__(name: str) -> Any:
    """Import torch, Ray and MLflow only when a name that needs them is used: commands must answer at once."""
    if name == "metrics":
        return importlib.import_module("imavae.metrics")
    if name in __all__:
        return getattr(importlib.import_module(f"imavae.{_MODULES.get(name, 'api')}"), name)
    raise AttributeError(f"module 'imavae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
