"""Images as observations: bytes in memory maps that processes share, made numbers in [0, 1] batch by batch.

Never all of them at once: 60,000 images of 3 x 64 x 64 are 0.7 GB of bytes and would be 3 GB of numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """The images of a split, in each of its worlds."""

    worlds: tuple[UInt8[ndarray, "n o"], ...]
    dtype: torch.dtype  # of the numbers that bytes become, on ``device``
    device: torch.device | str

    def batch(
        self, world: Int[Tensor, " member"], rows: Int[Tensor, "member batch"]
    ) -> Float[Tensor, "member o batch"]:
        """Some images of each member's world."""
        places = zip(world.tolist(), rows.cpu().numpy(), strict=True)
        return self._numbers(np.stack([self.worlds[number][place] for number, place in places]))

    def block(self, world: Int[Tensor, " member"], at: slice) -> Float[Tensor, "member o batch"]:
        """The same images, one after the other, of each member's world; a single world is read but once."""
        if len(self.worlds) == 1:
            return self._numbers(self.worlds[0][None, at].copy()).expand(len(world), -1, -1)
        return self._numbers(np.stack([self.worlds[number][at] for number in world.tolist()]))

    def first(self, count: int) -> Images:
        """The first images of each world."""
        return Images(tuple(images[:count] for images in self.worlds), self.dtype, self.device)

    def _numbers(self, rows: UInt8[ndarray, "member batch o"]) -> Float[Tensor, "member o batch"]:
        """A transposed view: convolutions take an image's numbers one after the other."""
        return torch.from_numpy(rows).to(self.device).to(self.dtype).div_(255).transpose(1, 2)
