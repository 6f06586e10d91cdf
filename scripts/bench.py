"""Measure how fast ensembles train, against loops for one model, and where a study's time goes.

Writes outputs/bench.json; takes some minutes on one core.

usage: python scripts/bench.py [compare=FILE]

  -h, --help      this text
  compare=FILE    print the new numbers beside those of an earlier outputs/bench.json, copied aside

Examples:
  python scripts/bench.py
  python scripts/bench.py compare=old.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from _launch import exit_code, require_environment

require_environment()

from imavae.errors import UserError


def bench() -> None:
    """Read the command line, import what is heavy, and measure."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return
    old = compared(arguments)
    from imavae.bench.trainer import main

    main(Path("outputs/bench.json"), old)


def compared(arguments: list[str]) -> Path | None:
    """The earlier run's file; None without one. Raises UserError for any other argument."""
    if not arguments:
        return None
    name, _, value = arguments[0].partition("=")
    if len(arguments) > 1 or name != "compare" or not value:
        got = " ".join(arguments)
        raise UserError(f"`{got}` must be compare=FILE or nothing; say compare=old.json, or see --help")
    return Path(value)


if __name__ == "__main__":
    sys.exit(exit_code(bench))
