"""Search the hyper-parameters of VAEs that must recover the true sources of nonlinearly mixed data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imavae.run import load_model as load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """Import torch and MLflow only when a name that needs them is asked for: commands must answer at once."""
    if name == "load_model":
        from imavae.run import load_model

        return load_model
    raise AttributeError(f"module 'imavae' has no attribute {name!r}")
