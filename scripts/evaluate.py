"""Evaluate a stored model on a split.

Examples:
  python scripts/evaluate.py checkpoint=PATH
  python scripts/evaluate.py checkpoint=models:/NAME@champion split=val
"""

from __future__ import annotations

import sys

from _launch import Command, launch, require_environment

require_environment()

from imavae.config.settings import EvaluateConfig, evaluate_config


def run(config: EvaluateConfig) -> None:
    """Evaluate and print."""
    from imavae.cli.commands import evaluate

    evaluate(config)


COMMAND = Command("evaluate", __doc__, EvaluateConfig, evaluate_config, run)

if __name__ == "__main__":
    sys.exit(launch(COMMAND))
