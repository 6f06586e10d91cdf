"""Images as observations: bytes in memory-mapped files that processes share, numbers in [0, 1] batch by batch.

60,000 images of 3 x 64 x 64 are 0.7 GB of bytes and would be 3 GB of numbers, so they are never all numbers at once.
A file is an ordinary ``.npy``, named after all that determines its pixels, written aside and renamed. The SHA-256 of
the pixels follows them: a process checks it when it first opens the file.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from mmap import MADV_DONTNEED, mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from imavae.data.storage import DIGEST, written_whole
from imavae.errors import UserError, require

READ_AT_ONCE = 2**20  # bytes
Progress = Callable[[int, int], None]  # called with the rows done and all rows


@dataclass(frozen=True)
class Cache:
    """Folder of cached images, and a callback for the making of new ones."""

    folder: Path = Path("outputs/cache")
    progress: Progress | None = field(default=None, compare=False)


@functools.cache
def _whole(path: Path, size: int, modified: int) -> bool:  # noqa: ARG001 -- part of the key
    """Return whether the last ``size`` bytes before the digest match it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(-size - DIGEST, os.SEEK_END)
        for start in range(0, size, READ_AT_ONCE):
            digest.update(file.read(min(READ_AT_ONCE, size - start)))
        return file.read() == digest.hexdigest().encode()


def cached(
    path: Path, shape: tuple[int, int], make: Callable[[], Iterator[ndarray]], progress: Progress | None = None
) -> UInt8[ndarray, "n feature"]:
    """The bytes in ``path`` as a read-only memory map; ``make()`` gives blocks of rows to write if they are missing.

    Raises:
        UserError: the file can't be written.
    """
    size = shape[0] * shape[1]
    with suppress(OSError, ValueError, EOFError):  # missing, or too short
        rows: ndarray = np.load(path, mmap_mode="r")
        if rows.shape == shape and rows.dtype == np.uint8 and _whole(path, size, path.stat().st_mtime_ns):
            return rows
    remedy, rule = f"free {size / 1e6:.0f} MB there, or choose another folder", "the cache can be written"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require(size < shutil.disk_usage(path.parent).free, rule, f"{path} (the disk is too small)", remedy)
        with written_whole(path) as file:  # a full disk is an error here; in a memory map it would kill the process
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            done, digest = 0, hashlib.sha256()
            for block in make():
                pixels = np.ascontiguousarray(block).data
                file.write(pixels)
                digest.update(pixels)
                done += len(block)
                if progress is not None:
                    progress(done, shape[0])
            file.write(digest.hexdigest().encode())
    except OSError as error:
        raise UserError(f"`{rule}` must hold, but got {path} ({error.strerror}); {remedy}") from None
    made: ndarray = np.load(path, mmap_mode="r")
    return made


class Pixels(NamedTuple):
    """Images of a split: rows of a memory map."""

    bytes: UInt8[ndarray, "m o"]
    rows: Int64[ndarray, " n"]


@dataclass(frozen=True)
class Images:
    """The images of a split, in each of its worlds."""

    worlds: tuple[Pixels, ...]
    dtype: torch.dtype  # of the numbers that the bytes become, on ``device``
    device: torch.device | str
    white: int = 255  # byte that becomes 1

    def batch(
        self, world: Int[Tensor, " member"], rows: Int[Tensor, "member batch"]
    ) -> Float[Tensor, "member o batch"]:
        """Some images of each member's world."""
        at = zip(world.tolist(), rows.cpu().numpy(), strict=True)
        return self._numbers(np.stack([self._picked(number, of) for number, of in at]))

    def block(self, world: Int[Tensor, " member"], at: slice) -> Float[Tensor, "member o batch"]:
        """A slice of the images of each member's world; a single world is read only once."""
        if len(self.worlds) == 1:
            return self._numbers(self._picked(0, at)[None]).expand(len(world), -1, -1)
        return self._numbers(np.stack([self._picked(number, at) for number in world.tolist()]))

    def rows(self, at: slice) -> Images:
        """A slice of the images of each world."""
        return replace(self, worlds=tuple(Pixels(of.bytes, of.rows[at]) for of in self.worlds))

    def _picked(self, world: int, at: slice | ndarray) -> UInt8[ndarray, "batch o"]:
        pixels, rows = self.worlds[world]
        picked: ndarray = pixels[rows[at]]
        under: object = pixels
        while isinstance(under, ndarray):
            under = under.base
        if isinstance(under, mmap):  # else all that has been read would count as memory of this process
            under.madvise(MADV_DONTNEED)
        return picked

    def _numbers(self, rows: UInt8[ndarray, "member batch o"]) -> Float[Tensor, "member o batch"]:
        """A transposed view: convolutions take an image's numbers one after the other."""
        return torch.from_numpy(rows).to(self.device).to(self.dtype).div_(self.white).transpose(1, 2)
