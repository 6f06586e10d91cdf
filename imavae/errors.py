"""User errors, in one form: the value, the rule and the fix; and interruptions."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

FULL_DISK = ("no space left on device", "disk is full", "disk quota exceeded")


class UserError(Exception):
    """A mistake of the user. The message names value, rule and fix; commands print it and exit with code 2."""


def require(holds: bool, rule: str, got: object, remedy: str) -> None:
    """Raise :class:`UserError` unless ``holds``."""
    if not holds:
        raise UserError(f"`{rule}` must hold, but got {got}; {remedy}")


def require_choice(value: str, valid: Iterable[str], what: str) -> None:
    """Raise :class:`UserError` unless ``value`` is one of the ``valid`` values of ``what``; suggest the nearest."""
    valid = list(valid)
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(valid)}"
        raise UserError(f"`{what}` must be one of {', '.join(valid)}, but got {value!r}; {hint}")


def is_full_disk(error: BaseException | None) -> bool:
    """Return True if the error, or one of its causes, reports a full disk."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        text = str(error).lower()
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in FULL_DISK):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, raised in the main thread by :mod:`imavae.runs.interrupts`."""

    def __init__(self, number: int) -> None:
        """Store the exit code, by convention 128 plus the signal's number."""
        super().__init__(number)
        self.code = 128 + number
        self.folder: str | None = None  # name of the interrupted run's folder, if it can be resumed


@contextmanager
def resumable(folder: str) -> Iterator[None]:
    """Record on an interruption of the block that the run in ``folder`` can be resumed."""
    try:
        yield
    except Interrupted as error:
        error.folder = folder
        raise
