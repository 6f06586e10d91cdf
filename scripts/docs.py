"""Write docs/config.md and docs/metrics.md anew from the code.

Examples:
  python scripts/docs.py
"""

from __future__ import annotations

import argparse
import sys

from _launch import ROOT, exit_code, require_environment

require_environment()

from imavae.cli.reference import pages


def docs() -> None:
    """Write each page, and say so."""
    for name, text in pages(ROOT).items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    raw = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser("python scripts/docs.py", description=__doc__, formatter_class=raw).parse_args()
    sys.exit(exit_code(docs))
