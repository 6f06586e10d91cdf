"""`python scripts/bench.py --help` describes this command."""

import sys

import _environment  # noqa: F401
from imavae.cli.main import bench

if __name__ == "__main__":
    sys.exit(bench())
