"""`python scripts/docs.py --help` describes this command."""

import sys

import _environment  # noqa: F401
from imavae.cli.main import docs

if __name__ == "__main__":
    sys.exit(docs())
