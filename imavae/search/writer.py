"""A thread that does one thing after another, beside Ray's event loop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Action = Callable[[], None]


class Writer:
    """Carries out what it is given, in this order. The process does not wait for it to end, :meth:`close` does."""

    def __init__(self) -> None:
        self._actions: queue.SimpleQueue[Action | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, action: Action) -> None:
        """Have something done; what fails does not keep the rest from being done."""
        self._actions.put(action)

    def close(self) -> None:
        """Wait until all is done, and raise the first error."""
        self._actions.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self, seconds: float) -> None:
        """Drop what has not begun, and wait for what has, but not longer than so many seconds."""
        self._abandoned = True
        self._actions.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while (action := self._actions.get()) is not None and not self._abandoned:
            try:
                action()
            except BaseException as error:
                self._error = self._error or error
