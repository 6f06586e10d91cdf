"""Metrics as pure functions of NumPy arrays or tensors whose rows are observations: ``imavae.metrics.mcc(s, z)``.

glossary.py has every metric that is logged; those that need a model (such as ``kl``) are not offered here.
"""

# ruff: noqa: F403, F405  -- the names are listed once, below

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imavae.metrics.arrays import *

__all__ = [
    "active_units", "agreement", "amari", "cima", "cima_batch", "cima_pointwise", "column_norms", "conformal_contrast",
    "dci", "latent_correlation", "likelihoods", "mcc", "mcc_batch", "mcc_spearman", "mig", "mse", "r2_linear",
    "r2_nonlinear", "rank_deficient", "sap", "self_consistency", "self_consistency_batch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import torch only when a metric is first used."""
    if name in __all__:
        from imavae.metrics import arrays

        return getattr(arrays, name)
    raise AttributeError(f"module 'imavae.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
