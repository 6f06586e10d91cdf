"""A person's mistake, in the one form that all messages about a value have: value, rule, remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A person's mistake: its text names the value, the rule and the remedy; scripts print it and exit with code 2."""


def require(holds: bool, rule: str, got: object, remedy: str) -> None:
    """Raise :class:`UserError` unless ``holds``."""
    if not holds:
        raise UserError(f"`{rule}` must hold, but got {got}; {remedy}")


def known(value: str, valid: Iterable[str], what: str) -> None:
    """Raise :class:`UserError` unless ``value`` is among the ``valid`` names of ``what``; name the nearest ones."""
    valid = list(valid)
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(valid)}"
        raise UserError(f"`{what}` must be one of {', '.join(valid)}, but got {value!r}; {hint}")


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, raised wherever the main thread is; see signals.py."""

    def __init__(self, number: int) -> None:
        """Take the signal's number; by convention the exit code is 128 more."""
        super().__init__(number)
        self.code = 128 + number
