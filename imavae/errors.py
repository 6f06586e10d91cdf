"""A person's mistake, in the one form that all messages about a value have: value, rule, remedy."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

FULL_DISK = ("no space left on device", "disk is full", "disk quota exceeded")


class UserError(Exception):
    """A person's mistake: its text names the value, the rule and the remedy; scripts print it and exit with code 2."""


def require(holds: bool, rule: str, got: object, remedy: str) -> None:
    """Raise :class:`UserError` unless ``holds``."""
    if not holds:
        raise UserError(f"`{rule}` must hold, but got {got}; {remedy}")


def require_choice(value: str, valid: Iterable[str], what: str) -> None:
    """Raise :class:`UserError` unless ``value`` is among the ``valid`` names of ``what``; name the nearest ones."""
    valid = list(valid)
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(valid)}"
        raise UserError(f"`{what}` must be one of {', '.join(valid)}, but got {value!r}; {hint}")


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk is full."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        text = str(error).lower()
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in FULL_DISK):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, raised wherever the main thread is; see signals.py."""

    def __init__(self, number: int) -> None:
        """Take the signal's number; by convention the exit code is 128 more."""
        super().__init__(number)
        self.code = 128 + number
        self.folder: str | None = None  # of what has begun, and can be resumed


@contextmanager
def resumable(folder: str) -> Iterator[None]:
    """Whoever interrupts the block can go on with what lies in the folder of this name."""
    try:
        yield
    except Interrupted as error:
        error.folder = folder
        raise
