"""Files that are whole or absent, whatever happens to the process or the machine; and a folder's lock.

A file is written aside, brought to the disk, and renamed. A sealed file begins with a line of its magic words, its
format and the SHA-256 of all that follows; with ``keep``, the one that it replaces stays beside it as the previous one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from imavae.errors import UserError

DIGEST = 64  # hexadecimal digits of a SHA-256


class OtherFormatError(UserError):
    """A file that is whole, but of another version of this program."""


@contextmanager
def written_whole(path: Path, keep: bool = False) -> Iterator[BinaryIO]:
    """A file to write to: a reader, even one after a crash, finds the old content or the new one, never a part.

    With ``keep`` the old file stays as :func:`previous_of`; a crash may leave that one alone, never none.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep:
            with suppress(FileNotFoundError):
                path.replace(previous_of(path))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_whole(path: Path, content: bytes, keep: bool = False) -> None:
    """Write a small file; see :func:`written_whole`."""
    with written_whole(path, keep) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """:func:`write_whole` of a text."""
    write_whole(path, text.encode())


def previous_of(path: Path) -> Path:
    """Where the file lies that ``path`` has replaced."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Seal:
    """How files of one kind are sealed, and what is said of one that can't be read."""

    magic: bytes  # the first words of the file
    format: int  # a change that old readers misread raises it
    noun: str  # what such a file is called
    missing: str  # the remedy where there is none
    damaged: str  # the remedy where it is damaged
    other: str  # the remedy where it is of another format

    def write(self, path: Path, body: bytes, keep: bool = False) -> None:
        """Write a sealed file; see :func:`write_whole`."""
        header = b"%s %d %s\n" % (self.magic, self.format, hashlib.sha256(body).hexdigest().encode())
        write_whole(path, header + body, keep)

    def read(self, path: Path) -> bytes:
        """The body of a file that :meth:`write` wrote.

        Raises:
            UserError: the file is missing, truncated, changed since, something else, or of another format.
        """
        noun = self.noun
        try:
            header, newline, body = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise UserError(
                f"`{noun} is a file` must hold, but got {path} ({error.strerror}); {self.missing}"
            ) from None
        if not header:
            raise UserError(f"`{noun} is whole` must hold, but {path} is empty; {self.damaged}")
        if not header.startswith(self.magic):
            raise UserError(
                f"`{noun} is one of imavae's` must hold, but got {path}; something else has written it: {self.missing}"
            )
        version, _, digest = header.removeprefix(self.magic).strip().partition(b" ")
        whole_header = newline and version.isdigit() and len(digest) == DIGEST
        if whole_header and int(version) != self.format:
            raise OtherFormatError(
                f"`{noun} format = {self.format}` must hold, but got {int(version)} in {path}; {self.other}"
            )
        if not whole_header or hashlib.sha256(body).hexdigest().encode() != digest:
            raise UserError(
                f"`{noun} is whole` must hold, but {path} does not match its own checksum; "
                f"it is truncated or damaged: {self.damaged}"
            )
        return body

    def newest(self, path: Path) -> Path | None:
        """The file itself if it is good, else the previous one if that is; None where neither is.

        Raises:
            OtherFormatError: of a file of another version, which is not to be taken for a damaged one.
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


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process is in a block under the lock file ``path``."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Lock:
    """The right to work in a folder, held until the process ends, however it does, or :meth:`release`."""

    def __init__(self, folder: Path) -> None:
        """Take it.

        Raises:
            UserError: another process has it.
        """
        self._file = (folder / ".lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read()
            self._file.close()
            raise UserError(
                f"`one process at a time works in {folder}` must hold, but process {holder} does; wait for it or end it"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Give it back."""
        self._file.close()
