"""SIGINT and SIGTERM: the first one is raised in the main thread, so that everything is closed properly.

A second one, or taking too long to end, kills the process: what had finished is on disk by then.
"""

from __future__ import annotations

import os
import signal
import threading
import types

from imavae.errors import Interrupted

KILL_AFTER = 9.0  # seconds from the first signal
_received: list[int] = []  # the first signal


def handle() -> None:
    """From now on, raise :class:`Interrupted` at the first SIGINT or SIGTERM. Call this in the main thread."""
    _set(_first)


def check() -> None:
    """Raise :class:`Interrupted` again if a library has swallowed it."""
    if _received:
        raise Interrupted(_received[0])


def of(error: KeyboardInterrupt) -> Interrupted:
    """Return the interruption behind an error: Ray raises a plain KeyboardInterrupt for either signal."""
    if isinstance(error, Interrupted):
        return error
    return Interrupted(_received[0] if _received else signal.SIGINT)


def _set(handler: signal._HANDLER) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _first(number: int, _frame: types.FrameType | None) -> None:
    _set(_second)
    timer = threading.Timer(KILL_AFTER, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()
    _received.append(number)
    raise Interrupted(number)


def _second(number: int, _frame: types.FrameType | None) -> None:
    os._exit(128 + number)
