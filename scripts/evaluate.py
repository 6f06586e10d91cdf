"""`python scripts/evaluate.py --help` describes this command."""

import sys

import _environment  # noqa: F401
from imavae.cli.main import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
