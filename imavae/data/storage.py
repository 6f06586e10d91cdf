"""Atomic file writes, sealed files and the lock of a folder."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import os
import re
import secrets
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from imavae.errors import UserError, require

DIGEST = 64  # hexadecimal digits of a SHA-256
_TEMPORARY = re.compile(r"\.imavae-[0-9a-f]{32}")


class OtherFormatError(UserError):
    """The file is intact, but a different version of imavae wrote it."""


def temporary(folder: Path) -> Path:
    """A name in ``folder`` that nothing else has, in whichever process, container or machine."""
    return folder / f".imavae-{secrets.token_hex(16)}"


def leftovers(folder: Path) -> list[Path]:
    """Files with names of :func:`temporary`: of writes that were cut off, if nobody writes in ``folder``."""
    names = [path for path in folder.glob(".imavae-*") if _TEMPORARY.fullmatch(path.name)]
    return [path for path in names if path.is_file() and not path.is_symlink()]


@contextmanager
def written_whole(path: Path, keep: bool = False) -> Iterator[BinaryIO]:
    """Open ``path`` for writing, atomically: readers see the old content or the new one, even after a crash.

    With ``keep`` the old file stays as :func:`previous_of`; a crash may leave only that one, never neither.
    """
    aside = temporary(path.parent)
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep:
            with suppress(FileNotFoundError):
                path.replace(previous_of(path))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header and no text for NaN or what a row lacks; empty without rows."""
    if not rows:
        return ""
    text = io.StringIO()  # a frame of pandas takes several times as long for the few rows of a trial
    writer = csv.DictWriter(text, [*dict.fromkeys(name for row in rows for name in row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value != value else value for name, value in row.items()} for row in rows)
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a text by :func:`written_whole`."""
    with written_whole(path) as file:
        file.write(text.encode())


def previous_of(path: Path) -> Path:
    """Path of the file that ``path`` replaced."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


@dataclass(frozen=True)
class Seal:
    """A kind of file that starts with a line of magic words, format number and the SHA-256 of the rest."""

    magic: bytes  # first words of the file
    format: int  # raised by a change that old readers would misread
    noun: str  # name of the kind in messages
    missing: str  # remedy in the message about a missing file
    damaged: str  # or a damaged one
    other: str  # or one of a different format

    def write(self, path: Path, body: bytes, keep: bool = False) -> None:
        """Write a sealed file by :func:`written_whole`."""
        digest = hashlib.sha256(body).hexdigest()
        with written_whole(path, keep) as file:
            file.write(b"%s %d %s\n" % (self.magic, self.format, digest.encode()) + body)

    def digest(self, path: Path) -> str:
        """The SHA-256 in the first line of a file that has been read or written."""
        with path.open("rb") as file:
            return file.readline().split()[-1].decode()

    def read(self, path: Path, recorded: str | None = None) -> bytes:
        """The body of a file of :meth:`write`.

        Raises UserError if it is missing, damaged or of another kind, or if its digest is not the ``recorded`` one.
        """
        noun, damaged = self.noun, f"the file is truncated or damaged: {self.damaged}"
        try:
            header, newline, body = path.read_bytes().partition(b"\n")
        except OSError as error:
            got = f"{path} ({error.strerror})"
            raise UserError(f"`{noun} is a file` must hold, but got {got}; {self.missing}") from None
        require(bool(header), f"{noun} is not empty", path, damaged)
        require(header.startswith(self.magic), f"{noun} was written by imavae", path, self.missing)
        version, _, digest = header.removeprefix(self.magic).strip().partition(b" ")
        whole = bool(newline) and version.isdigit() and len(digest) == DIGEST
        if whole and int(version) != self.format:
            rule = f"{noun} format = {self.format}"
            raise OtherFormatError(f"`{rule}` must hold, but got {int(version)} in {path}; {self.other}")
        whole = whole and hashlib.sha256(body).hexdigest().encode() == digest
        require(whole, f"{noun} matches its checksum", path, damaged)
        rule, other = f"{noun} is the one that was recorded", f"{path}, which is another one: {self.damaged}"
        require(recorded in (None, digest.decode()), rule, other, "do not swap or restore single files")
        return body

    def newest(self, path: Path) -> Path | None:
        """Return ``path`` if that file is good, else the previous one if it is, else None.

        Raises OtherFormatError for a file of a different format: it must not be mistaken for a damaged one.
        """
        for candidate in (path, previous_of(path)):
            try:
                self.read(candidate)
            except OtherFormatError:
                raise
            except UserError:
                continue
            return candidate
        return None


class Lock:
    """Exclusive right to work in a folder, until :meth:`release` or the end of the process, however it ends.

    Acquired without waiting. Raises UserError if another process holds it. The folder itself is locked, since the file
    ``.lock`` may be unlinked; the file covers file systems that lock no folders, and tells who holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        path, descriptor = folder / ".lock", os.open(folder, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, descriptor)
        self._lock = FileLock(path, timeout=0, thread_local=False)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    raise
            self._lock.acquire()
        except (BlockingIOError, Timeout):
            self._close()
            holder = f"process {path.read_text()}" if path.is_file() else "another"
            rule = f"one process at a time works in {folder}"
            raise UserError(f"`{rule}` must hold, but {holder} does; wait for it or end it") from None
        path.write_text(str(os.getpid()))

    def release(self) -> None:
        self._lock.release()
        self._close()
