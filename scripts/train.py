"""Train the members (seeds) of one point as one ensemble, and print a row for each of them and their aggregate.

Examples:
  python scripts/train.py model=mlp
  python scripts/train.py data=moebius model.gamma=30 'members.seed=[1,2,3]' training.max_epochs=20 tracking=none
  python scripts/train.py -m model.gamma=10,100
"""

from __future__ import annotations

import sys

from _launch import Command, launch, require_environment

require_environment()

from imavae.config.settings import RunConfig, run_config


def run(config: RunConfig) -> None:
    """Train, evaluate, track and save."""
    from imavae.cli.commands import train

    train(config, sys.orig_argv)


COMMAND = Command("train", __doc__, RunConfig, run_config, run)

if __name__ == "__main__":
    sys.exit(launch(COMMAND))
