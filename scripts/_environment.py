"""Imported first by every script: exits with one message on Windows, or if the environment is not active."""

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import FrameType


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    """End on Ctrl-C while the program is still being imported."""
    sys.stderr.write("interrupted; run the same command again\n")
    sys.stderr.flush()
    os._exit(130)


if sys.platform == "win32":
    sys.stderr.write("error: imavae runs on Linux and macOS, but this is Windows; use WSL\n")
    sys.exit(2)
if not all(importlib.util.find_spec(package) for package in ("hydra", "torch", "imavae")):
    root = Path(__file__).resolve().parent.parent
    setup = [] if (root / ".venv/.ready").exists() else [f"make -C {root} setup"]  # the Makefile's mark
    steps = ", then ".join(f"`{step}`" for step in [*setup, f"source {root / '.venv/bin/activate'}"])
    sys.stderr.write(f"error: the environment of imavae is not active; run {steps}\n")
    sys.exit(2)
signal.signal(signal.SIGINT, _interrupted)
