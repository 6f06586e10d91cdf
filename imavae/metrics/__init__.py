"""Metrics as pure functions of NumPy arrays or tensors whose rows are observations: ``imavae.metrics.mcc(s, z)``.

definitions.py has every metric that is logged. Some of them need a model (``neg_elbo``, ``kl``, ``log_px_z``,
``prior_variance``, ``gamma``) and are not offered here; ``mcc_mean``, ``mcc_cdf`` and ``cima_truth`` are :func:`mcc`
and :func:`cima` of other arrays.
"""

# ruff: noqa: F403, F405  -- the names are listed once, below

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imavae.metrics.arrays import *

__all__ = [
    "active_units",
    "agreement",
    "amari",
    "cima",
    "cima_batch",
    "cima_pointwise",
    "column_norms",
    "conformal_contrast",
    "dci",
    "likelihoods",
    "mcc",
    "mcc_batch",
    "mcc_spearman",
    "mig",
    "mse",
    "r2_linear",
    "r2_nonlinear",
    "rank_deficient",
    "sap",
    "self_consistency",
    "self_consistency_batch",
]


def __getattr__(name: str) -> Any:
    """Import torch only when a metric is first used."""
    if name in __all__:
        from imavae.metrics import arrays

        return getattr(arrays, name)
    raise AttributeError(f"module 'imavae.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
