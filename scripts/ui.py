"""`python scripts/ui.py --help` describes this command."""

import sys

import _environment  # noqa: F401
from imavae.cli.main import ui

if __name__ == "__main__":
    sys.exit(ui())
