"""User errors, in one form: the value, the rule and the fix; and interruptions."""

from __future__ import annotations

import difflib
import errno
import os
import re
import signal
import threading
import types
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

FULL_DISK = ("no space left on device", "disk is full", "disk quota exceeded")
KILL_AFTER = 9.0  # seconds that a process has to end after a signal
_received: list[int] = []  # the first signal


def without_password(text: str) -> str:
    """The text with the passwords of the addresses in it replaced by stars."""
    text = re.sub(r"(://[^\s/:@]*:)[^\s/]*(?=@)", r"\1***", text)
    return re.sub(r"(?i)([?&][a-z_-]*(?:password|passwd|token|secret)=)[^\s&;'\"`]+", r"\1***", text)


class UserError(Exception):
    """A mistake of the user. The message names value, rule and fix; commands print it and exit with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(without_password(message))


def require(holds: bool, rule: str, got: object, remedy: str) -> None:
    """Raise :class:`UserError` unless ``holds``."""
    if not holds:
        raise UserError(f"`{rule}` must hold, but got {got}; {remedy}")


def require_choice(value: str, valid: Collection[str], what: str) -> None:
    """Raise :class:`UserError` unless ``value`` is one of the ``valid`` values of ``what``; suggest the nearest."""
    if value not in valid:
        raise UserError(f"`{what}` must be one of {', '.join(valid)}, but got {value!r}; {nearest_of(value, valid)}")


def nearest_of(value: str, valid: Collection[str]) -> str:
    """A hint that names the nearest of the valid values, or all of them if none is near."""
    near = difflib.get_close_matches(value, valid, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(valid)}"


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
    """SIGINT or SIGTERM, as :func:`handle_signals` raises it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number  # exit code, by convention
        self.folder: str | None = None  # name of the interrupted run's folder, if it can be resumed


def handle_signals() -> None:
    """Raise :class:`Interrupted` in the main thread at the first SIGINT or SIGTERM, so that everything is closed.

    A second signal, or more than ``KILL_AFTER`` seconds, kills the process: finished results are on disk by then.
    """

    def first(number: int, _: types.FrameType | None) -> None:
        install(lambda number, _: os._exit(128 + number))
        timer = threading.Timer(KILL_AFTER, os._exit, (128 + number,))
        timer.daemon = True
        timer.start()
        _received.append(number)
        raise Interrupted(number)

    def install(handler: Callable[[int, types.FrameType | None], None]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)

    install(first)


def check_interruption() -> None:
    """Raise :class:`Interrupted` again if a library has swallowed it."""
    if _received:
        raise Interrupted(_received[0])


def interruption_of(error: KeyboardInterrupt) -> Interrupted:
    """Return the interruption behind an error: Ray raises a plain KeyboardInterrupt for either signal."""
    if isinstance(error, Interrupted):
        return error
    return Interrupted(_received[0] if _received else signal.SIGINT)


@contextmanager
def resumable(folder: str) -> Iterator[None]:
    """Record on an interruption of the block that the run in ``folder`` can be resumed."""
    try:
        yield
    except Interrupted as error:
        error.folder = folder
        raise
