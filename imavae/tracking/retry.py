"""MLflow calls that are tried again while what answers them is away: a locked database, a server that is restarted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from imavae.errors import is_full_disk

T = TypeVar("T")
LIMIT = 600.0  # seconds after which an absence is an error; what was not tracked by then is when the study is resumed
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between two attempts, the last one again and again
AWAY = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")  # MLflow's words
# MLflow's own retries carry out a second time what was carried out and only not answered: a run would be doubled.
NO_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


def insist(action: Callable[[], T], again: Callable[[], T] | None = None) -> T:
    """Do something that MLflow may be away for, until it is done; give what it gives.

    Args:
        action: what is to be done.
        again: the same after an attempt that failed, of which some may have been done; None: the same action will do.

    Raises:
        MlflowException: what no patience mends, or an absence longer than LIMIT.
    """
    from mlflow.exceptions import MlflowException

    end, attempt = time.monotonic() + LIMIT, 0
    while True:
        try:
            return (again or action)() if attempt else action()
        except MlflowException as error:
            if not _is_away(error) or time.monotonic() > end:
                raise
        time.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
        attempt += 1


@contextmanager
def unless_away() -> Iterator[None]:
    """Do something once; what MLflow is away for stays undone.

    Raises:
        MlflowException: what no patience would mend.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if not _is_away(error):
            raise


def _is_away(error: Exception) -> bool:
    return getattr(error, "error_code", "") in AWAY and not is_full_disk(error)
