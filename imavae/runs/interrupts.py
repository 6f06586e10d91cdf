"""SIGINT and SIGTERM: the first one is raised where the main thread is, so that all is left in order.

A second one, or a process that takes too long to end, is cut off: what was finished is on the disk by then.
"""

from __future__ import annotations

import os
import signal
import threading
import types

from imavae.errors import Interrupted

_received: list[int] = []  # the signal, once one has come
LIMIT = 9.0  # seconds from the first signal to the process's end, however busy it is


def handle() -> None:
    """Raise :class:`Interrupted` in the main thread at the first SIGINT or SIGTERM; to be called from it."""
    _set(_first)


def check() -> None:
    """Raise it again, where a library has swallowed it."""
    if _received:
        raise Interrupted(_received[0])


def of(error: KeyboardInterrupt) -> Interrupted:
    """What has interrupted: Ray raises a plain KeyboardInterrupt, whichever signal has reached it."""
    if isinstance(error, Interrupted):
        return error
    return Interrupted(_received[0] if _received else signal.SIGINT)


def _set(handler: signal._HANDLER) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _first(number: int, _frame: types.FrameType | None) -> None:
    _set(_second)
    end = threading.Timer(LIMIT, os._exit, (128 + number,))
    end.daemon = True
    end.start()
    _received.append(number)
    raise Interrupted(number)


def _second(number: int, _frame: types.FrameType | None) -> None:
    os._exit(128 + number)
