"""The local IMA contrast of sprites: that of their renderer, whose Jacobian is taken by central differences.

It is averaged over the points at which a decoder's contrast is, and cached as the maps of :mod:`imavae.metrics.linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from imavae.config.data import SpritesData
from imavae.data.dataset import Split, rendered_jacobian
from imavae.metrics import ima
from imavae.metrics.forward import DIFFERENTIATED, shortened
from imavae.metrics.linear import kept


def contrasts(
    data: SpritesData, seeds: Sequence[int], name: str, split: Split, folder: Path
) -> Float64[Tensor, " world"]:
    """Mean c_IMA of each world's images at the first points of the split ``name``, read from ``folder`` or computed."""
    few, at = shortened(split, data.features, DIFFERENTIATED), ("train", "val", "test").index(name)
    start, found = sum(data.sizes[:at]), []
    for world, seed in enumerate(seeds):

        def fit(seed: int = seed) -> NDArray[np.float64]:
            parts = rendered_jacobian(replace(data, seed=seed), slice(start, start + len(few)))
            values = torch.cat([ima.pointwise_contrast(part[None])[0] for part in parts])
            return np.array(values.nanmean())

        x = few.block(torch.tensor([world]), slice(None))[0].cpu().contiguous()
        found.append(kept("rendering", folder, [x, few.sources[world].cpu().contiguous()], fit))
    return torch.stack(found)
