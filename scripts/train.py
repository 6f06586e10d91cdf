"""`python scripts/train.py --help` describes this command."""

import sys

import _environment  # noqa: F401
from imavae.cli.main import train

if __name__ == "__main__":
    sys.exit(train())
