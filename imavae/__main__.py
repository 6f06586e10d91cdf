"""The command line: ``python -m imavae train model=mlp`` does what ``python scripts/train.py model=mlp`` does."""

import sys

from imavae.cli import main
from imavae.errors import require_choice

COMMANDS = ("train", "tune", "evaluate", "encode", "reproduce", "ui", "dashboard")


@main.entry_point
def run() -> int:
    """Run the command that the first word names."""
    words = sys.argv[1:]
    if words == ["--version"]:
        print(main.VERSION)
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m imavae COMMAND ...; the commands are {', '.join(COMMANDS)}, each with its --help")
        return 0
    require_choice(words[0], COMMANDS, "the command")
    del sys.argv[1]
    return int(getattr(main, words[0])())


if __name__ == "__main__":
    sys.exit(run())
