"""Reproduce a figure of the paper: run its studies, or read finished ones; draw and judge it beside what was published.

Exit code 1: a row of its table disagrees with what was published.

Examples:
  python scripts/reproduce.py                                       the list of figures
  python scripts/reproduce.py figure=moebius_gamma
  python scripts/reproduce.py figure=moebius_gamma plot_only=true   never runs a study
  python scripts/reproduce.py figure=moebius_gamma 'members.seed=[1,2]' training.max_epochs=5
"""

from __future__ import annotations

import sys

from _launch import Command, composed, exit_code, help_text, require_environment

require_environment()

from imavae.config.settings import ReproduceConfig, reproduce_config, study_of
from imavae.errors import require


def reproduce(arguments: list[str]) -> bool:
    """Read the command line, and reproduce; False if a row fails."""
    if {"-h", "--help"} & set(arguments):
        print(help_text(COMMAND, [argument for argument in arguments if not argument.startswith("-")]))
        return True
    odd = [argument for argument in arguments if argument.startswith(("-", "search="))]
    require(
        not odd, "an argument reads figure=NAME or SETTING=VALUE", " ".join(odd), "a figure has its studies: see --help"
    )
    config = reproduce_config(composed(COMMAND, arguments))
    from imavae.cli.commands import list_figures
    from imavae.cli.commands import reproduce as reproduce_figure
    from imavae.paper.figures import paper_figure

    if config.figure is None:
        list_figures()
        return True
    searches = paper_figure(config.figure).searches
    studies = [study_of(composed(COMMAND, [*arguments, f"search={search}"])) for search in searches]
    return reproduce_figure(config, studies, sys.orig_argv)


def run(config: ReproduceConfig) -> None:
    """Nothing: a figure's studies are composed one by one, by :func:`reproduce`."""


COMMAND = Command("reproduce", __doc__, ReproduceConfig, reproduce_config, run, searches=True, own_studies=True)


def main() -> int:
    """Reproduce; return the exit code."""
    passed = [True]

    def action() -> None:
        passed[0] = reproduce(sys.argv[1:])

    return exit_code(action) or int(not passed[0])


if __name__ == "__main__":
    sys.exit(main())
