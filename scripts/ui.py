"""Open MLflow's page on what was tracked, on this machine, until Ctrl-C.

Examples:
  python scripts/ui.py --port 5000
"""

from __future__ import annotations

import sys

from _launch import require_environment, show

require_environment()

from imavae.tracking.ui import serve

if __name__ == "__main__":
    sys.exit(show(serve, __doc__, port=5000))
