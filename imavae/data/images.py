"""Images as observations: bytes in memory-mapped files that processes share, numbers in [0, 1] batch by batch.

60,000 images of 3 x 64 x 64 are 0.7 GB of bytes and would be 3 GB of numbers, so they are never all numbers at once.
A file is an ordinary ``.npy``, named after all that determines its pixels, written aside and renamed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor

from imavae.data.storage import written_whole
from imavae.errors import UserError

RENDERED_AT_ONCE = 500  # rows

Progress = Callable[[int, int], None]  # called with the rows done and all rows


@dataclass(frozen=True)
class Cache:
    """Folder of cached images, and a callback for the rendering of new ones."""

    folder: Path = Path("outputs/cache")
    progress: Progress | None = field(default=None, compare=False)


def cached(
    path: Path, shape: tuple[int, int], make: Callable[[int, int], ndarray], progress: Progress | None = None
) -> UInt8[ndarray, "n feature"]:
    """The bytes in ``path`` as a read-only memory map; ``make(start, stop)`` gives rows to write if they are missing.

    Raises:
        UserError: the file can't be written.
    """
    with suppress(OSError, ValueError, EOFError):  # missing, or too short
        rows: ndarray = np.load(path, mmap_mode="r")
        if rows.shape == shape and rows.dtype == np.uint8:
            return rows
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:  # a full disk is an error here; in a memory map it would kill the process
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for start in range(0, shape[0], RENDERED_AT_ONCE):
                stop = min(start + RENDERED_AT_ONCE, shape[0])
                file.write(make(start, stop).tobytes())
                if progress is not None:
                    progress(stop, shape[0])
    except OSError as error:
        remedy = f"free {shape[0] * shape[1] / 1e6:.0f} MB there, or choose another folder"
        raise UserError(f"`the cache can be written` must hold, but got {path} ({error.strerror}); {remedy}") from None
    made: ndarray = np.load(path, mmap_mode="r")
    return made


@dataclass(frozen=True)
class Images:
    """The images of a split, in each of its worlds."""

    worlds: tuple[UInt8[ndarray, "n o"], ...]
    dtype: torch.dtype  # of the numbers that the bytes become, on ``device``
    device: torch.device | str

    def batch(
        self, world: Int[Tensor, " member"], rows: Int[Tensor, "member batch"]
    ) -> Float[Tensor, "member o batch"]:
        """Some images of each member's world."""
        picked = [self.worlds[number][at] for number, at in zip(world.tolist(), rows.cpu().numpy(), strict=True)]
        return self._numbers(np.stack(picked))

    def block(self, world: Int[Tensor, " member"], at: slice) -> Float[Tensor, "member o batch"]:
        """A slice of the images of each member's world; a single world is read only once."""
        if len(self.worlds) == 1:
            return self._numbers(self.worlds[0][None, at].copy()).expand(len(world), -1, -1)
        return self._numbers(np.stack([self.worlds[number][at] for number in world.tolist()]))

    def rows(self, at: slice) -> Images:
        """A slice of the images of each world."""
        return Images(tuple(images[at] for images in self.worlds), self.dtype, self.device)

    def _numbers(self, rows: UInt8[ndarray, "member batch o"]) -> Float[Tensor, "member o batch"]:
        """A transposed view: convolutions take an image's numbers one after the other."""
        return torch.from_numpy(rows).to(self.device).to(self.dtype).div_(255).transpose(1, 2)
