"""Numbers, points and durations as short text. This module imports nothing slow: the live display uses it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real

MISSING = "–"  # stands for a missing number


def compact(value: object, digits: int = 3) -> str:
    """Format a value briefly: a number to ``digits`` significant digits (``9.65e3``), a dash for a missing one."""
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return MISSING
    if isinstance(value, (bool, Integral)) or not isinstance(value, Real):
        return str(value)
    number = float(value)
    form = f".{digits - 1}e" if 0 < abs(number) < 1e-3 else f".{digits}g"
    mantissa, _, exponent = f"{number:{form}}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The shortest ending that distinguishes each dotted key from the others, never just ``name``."""
    keys = list(keys)
    names = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        alone = [e for e in endings if e != "name" and sum(f".{k}".endswith(f".{e}") for k in keys) == 1]
        names[key] = alone[0] if alone else key
    return names


def point_text(point: Mapping[str, object]) -> str:
    """Format a point as ``gamma=98.2 n_layers=3``, without missing values (of conditional parameters)."""
    names = short_names(point)
    texts = {names[key]: compact(value) for key, value in point.items()}
    return " ".join(f"{name}={text}" for name, text in texts.items() if text != MISSING)


def clock(seconds: float) -> str:
    """Format seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
