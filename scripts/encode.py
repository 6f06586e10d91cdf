"""Write the latents that a stored model infers from a file of observations.

Examples:
  python scripts/encode.py checkpoint=outputs/runs/train/champion.pt data.path=x.parquet out=z.parquet
  python scripts/encode.py checkpoint=models:/NAME@champion data.path=x.csv 'data.columns=[a,b,c]' out=z.csv
"""

from __future__ import annotations

import sys

from _launch import Command, launch, require_environment

require_environment()

from imavae.config.settings import EncodeConfig, encode_config


def run(config: EncodeConfig) -> None:
    """Encode and write."""
    from imavae.cli.commands import encode

    encode(config)


COMMAND = Command("encode", __doc__, EncodeConfig, encode_config, run)

if __name__ == "__main__":
    sys.exit(launch(COMMAND))
