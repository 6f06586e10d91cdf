"""An array of bytes in a file: made once, checked at every opening, shared by all processes that map it.

The file is an ordinary ``.npy`` whose array is followed by four bytes, the CRC-32 of the array. It is written aside and
renamed, so that nobody sees half of it; two processes that make it at once write the same bytes, each to a file of its
own, and the last name stays.
"""

from __future__ import annotations

import errno
import io
import os
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from imavae.errors import UserError

CHUNK = 500  # rows that are made, written and checked at once
CHECKSUM = 4  # bytes

Rows = UInt8[ndarray, "n feature"]
Make = Callable[[int, int], ndarray]  # the rows from start up to stop
Progress = Callable[[int, int], None]  # told the rows done and all of them


@dataclass(frozen=True)
class Cache:
    """Where such files lie, and who is told while one is made."""

    folder: Path = Path("outputs/cache")
    progress: Progress | None = field(default=None, compare=False)


def cached(path: Path, shape: tuple[int, int], make: Make, progress: Progress | None = None) -> Rows:
    """The array of ``shape`` in ``path``, as a read-only memory map; ``make`` gives its rows if there is no whole file.

    Raises:
        UserError: the file can't be written.
    """
    rows = _opened(path, shape)
    if rows is not None:
        return rows
    try:
        return _made(path, shape, make, progress)
    except OSError as error:
        raise UserError(
            f"`the cache can be written` must hold, but got {path} ({error.strerror}); free "
            f"{shape[0] * shape[1] / 1e6:.0f} MB there, or choose another folder"
        ) from None


def _opened(path: Path, shape: tuple[int, int]) -> Rows | None:
    """The array of a whole file; None where it is missing, of another size or shape, or not what its checksum says."""
    header = _header(shape)
    size = shape[0] * shape[1]
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != len(header) + size + CHECKSUM or file.read(len(header)) != header:
                return None
            rows = np.memmap(file, np.uint8, "r", len(header), shape)  # of this very file, whatever bears its name now
            file.seek(len(header) + size)
            checksum = int.from_bytes(file.read(CHECKSUM), "little")
    except OSError:
        return None
    found = 0
    for start in range(0, shape[0], CHUNK):
        found = zlib.crc32(rows[start : start + CHUNK].data, found)
    return rows if found == checksum else None


def _made(path: Path, shape: tuple[int, int], make: Make, progress: Progress | None) -> Rows:
    """Write the file aside, to the disk; then read it back and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            _write(file, shape, make, progress)
        rows = _opened(aside, shape)
        if rows is None:
            raise OSError(errno.EIO, "what was written reads back otherwise")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return rows


def _write(file: BinaryIO, shape: tuple[int, int], make: Make, progress: Progress | None) -> None:
    file.write(_header(shape))
    checksum = 0
    for start in range(0, shape[0], CHUNK):
        stop = min(start + CHUNK, shape[0])
        block = make(start, stop).tobytes()
        file.write(block)
        checksum = zlib.crc32(block, checksum)
        if progress is not None:
            progress(stop, shape[0])
    file.write(checksum.to_bytes(CHECKSUM, "little"))
    file.flush()
    os.fsync(file.fileno())


def _header(shape: tuple[int, int]) -> bytes:
    """The first bytes of an ``.npy`` file of bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()
