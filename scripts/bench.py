"""Measure how fast ensembles train, against the idiomatic loop for one model; writes outputs/bench.json."""

from __future__ import annotations

import sys
from pathlib import Path

from _launch import exit_code, require_environment

require_environment()


def bench() -> None:
    """Import what is heavy, and measure."""
    from imavae.bench import main

    main(Path("outputs/bench.json"))


if __name__ == "__main__":
    sys.exit(exit_code(bench))
