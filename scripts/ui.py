"""Open MLflow's page on what was tracked, on this machine, until Ctrl-C.

Examples:
  python scripts/ui.py --port 5000
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _launch import exit_code, require_environment

require_environment()


def main() -> int:
    """Serve the page; return the exit code."""
    from imavae.ui import serve

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=5000, help="of the loopback interface")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="where mlflow.db lies")
    arguments = parser.parse_args()
    ended = [0]  # the server's own exit code

    def action() -> None:
        ended[0] = serve(arguments.output_dir, arguments.port)

    return exit_code(action) or ended[0]


if __name__ == "__main__":
    sys.exit(main())
