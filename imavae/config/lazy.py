"""``torch``, imported when one of its attributes is first read.

Importing torch takes a second. A file that holds both the settings and the behaviour of a variant takes torch from
here, so that checking a setting or printing ``--help`` does not pay for it::

    from imavae.config.lazy import torch
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
else:

    class LazyTorch:
        """Stands for the module: looks every attribute up in torch and keeps it."""

        def __getattr__(self, name: str) -> Any:
            import torch

            value = getattr(torch, name)
            setattr(self, name, value)
            return value

        def __reduce__(self) -> str:
            return "torch"  # pickled by reference, as a module is

    torch = LazyTorch()
