"""Run a study: search a space of settings, with an ensemble of seeds at every point.

Examples:
  python scripts/tune.py search=gamma_uniform
  python scripts/tune.py search=gamma_uniform budget.trials=4 training.max_epochs=20
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from _launch import Command, launch, options, require_environment

require_environment()

from imavae.config.settings import StudyConfig, study_config
from imavae.errors import require


def check(mapping: Mapping[str, Any]) -> StudyConfig:
    """The checked configuration; a command line without a search is told which ones there are."""
    names = options("search")
    require(bool(mapping.get("search")), f"search is one of {', '.join(names)}", "none", f"say search={names[0]}")
    return study_config(mapping)


def run(config: StudyConfig) -> None:
    """Search, track and report."""
    from imavae.cli.commands import tune

    tune(config, sys.orig_argv)


COMMAND = Command("tune", __doc__, StudyConfig, check, run, searches=True)

if __name__ == "__main__":
    sys.exit(launch(COMMAND))
