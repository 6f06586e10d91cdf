"""Open Optuna's dashboard on the studies, on this machine, until Ctrl-C.

Examples:
  python scripts/dashboard.py --port 8080
"""

from __future__ import annotations

import sys

from _launch import require_environment, show

require_environment()

from imavae.tracking.ui import serve_dashboard

if __name__ == "__main__":
    sys.exit(show(serve_dashboard, __doc__, port=8080))
