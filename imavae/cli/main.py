"""Entry points of the scripts: from the command line to the library, and from an error to an exit code.

Exit codes: 0, done; 1, a bug (with its traceback), a full disk, or a figure that disagrees with the published numbers;
2, a user's mistake (one message, no traceback); 130 and 143, interrupted by SIGINT (Ctrl-C) or SIGTERM.
"""

from __future__ import annotations

import argparse
import codecs
import gc
import importlib.metadata
import inspect
import io
import sys
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import yaml

from imavae.cli import commands
from imavae.cli.compose import ROOT, C, Command, compose, compose_jobs, resumed, searches
from imavae.config import settings as tree
from imavae.config.mapping import build
from imavae.config.registry import mistake_of_a_plugin
from imavae.errors import UserError, handle_signals, interruption_of, is_full_disk, require

P = ParamSpec("P")
VERSION = f"imavae {importlib.metadata.version('imavae')}"
LEGIBLE = str.maketrans("−–─━╸²", "-----2")


class Parser(argparse.ArgumentParser):
    """Parser that raises UserError instead of leaving."""

    def __init__(self, entry: Callable[[], int]) -> None:
        raw, program = argparse.RawDescriptionHelpFormatter, f"python scripts/{entry.__name__}.py"
        super().__init__(program, description=inspect.getdoc(entry), formatter_class=raw, allow_abbrev=False)
        self.add_argument("--version", action="version", version=VERSION)

    def error(self, message: str) -> NoReturn:
        if "--config" in message:
            fix = "write SETTING=VALUE, or resume=true name=NAME to go on with the run or study of that name"
            raise UserError(f"`options are those of --help` must hold, but got one of Hydra's ({message}); {fix}")
        raise UserError(f"`the command line can be read` must hold, but {message}; see --help")


def exit_code(action: Callable[[], int | None]) -> int:
    """Run an action and return its code, or that of a user's mistake, a full disk or an interruption. Bugs pass."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_legible.__name__)
    try:
        handle_signals()  # also where a shell has made its background job deaf to SIGINT
        return action() or 0
    except UserError as error:
        return _report(str(error), 2)
    except KeyboardInterrupt as error:
        interrupted = interruption_of(error)
        fix = "run the same command again" if interrupted.folder is None else "to continue, run the command above"
        sys.stderr.write(f"interrupted; {fix}\n")
        return interrupted.code
    except Exception as error:
        if is_full_disk(error):
            return _report("the disk is full, and finished results are kept; free some space and add resume=true", 1)
        mistake = mistake_of_a_plugin(error)
        if mistake is None:
            raise
        return _report(str(mistake), 2)
    finally:
        gc.freeze()  # else the interpreter would look for garbage among all of torch at its end, for seconds


def _report(message: str, code: int) -> int:
    sys.stderr.write(f"error: {message}\n")
    return code


def _legible(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that a terminal's encoding lacks by similar ones of one column, or by a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(LEGIBLE)
    return text.encode("ascii", "replace").decode(), error.end


codecs.register_error(_legible.__name__, _legible)


def entry_point(function: Callable[P, int | None]) -> Callable[P, int]:
    """Return the function with :func:`exit_code` around it; a decorator."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
        return exit_code(lambda: function(*args, **kwargs))

    return guarded


def _page_arguments(entry: Callable[[], int], port: int) -> tuple[Path, int]:
    """The output folder and the port of the command line."""
    parser = Parser(entry)
    parser.add_argument("--port", type=int, default=port, help="of the loopback interface; %(default)s")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="folder of results; %(default)s")
    arguments = parser.parse_args()
    return arguments.output_dir, arguments.port


def train() -> int:
    """Train the members (seeds) of one point as one ensemble, and print a row for each of them and their aggregate.

    Examples:
      python scripts/train.py model=mlp
      python scripts/train.py data=moebius model.gamma=30 'members.seed=[1,2,3]' training.max_epochs=20 tracking=none
      python scripts/train.py -m model.gamma=10,100
    """
    return launch(TRAIN)


def tune() -> int:
    """Run a study: search a space of settings, with an ensemble of seeds at every point.

    Examples:
      python scripts/tune.py search=gamma_uniform
      python scripts/tune.py search=gamma_uniform budget.trials=4 training.max_epochs=20
    """
    return launch(TUNE)


def evaluate() -> int:
    """Evaluate a stored model on a split.

    Examples:
      python scripts/evaluate.py checkpoint=PATH
      python scripts/evaluate.py checkpoint=models:/NAME@champion split=val
    """
    return launch(EVALUATE)


def encode() -> int:
    """Write the latents that a stored model infers from a file of observations.

    Examples:
      python scripts/encode.py checkpoint=outputs/runs/train/champion.pt data.path=x.parquet out=z.parquet
      python scripts/encode.py checkpoint=models:/NAME@champion data.path=x.csv 'data.columns=[a,b,c]' out=z.csv
    """
    return launch(ENCODE)


def reproduce() -> int:
    """Reproduce a figure of the paper: run its studies, or read finished ones; draw it and compare it with the paper.

    Exit code 1: a row of its table disagrees with the published number.

    Examples:
      python scripts/reproduce.py                                       the list of figures
      python scripts/reproduce.py figure=moebius_gamma
      python scripts/reproduce.py figure=moebius_gamma plot_only=true   never runs a study
      python scripts/reproduce.py figure=moebius_gamma 'members.seed=[1,2]' training.max_epochs=5
    """
    return launch(REPRODUCE)


@entry_point
def ui() -> int:
    """Open MLflow's page on the tracked results, on this machine, until Ctrl-C.

    Examples:
      python scripts/ui.py --port 5000
    """
    folder, port = _page_arguments(ui, 5000)
    from imavae.tracking.ui import serve

    return serve(folder, port)


@entry_point
def dashboard() -> int:
    """Open Optuna's dashboard on the studies, on this machine, until Ctrl-C.

    Examples:
      python scripts/dashboard.py --port 8080
    """
    folder, port = _page_arguments(dashboard, 8080)
    from imavae.tracking.ui import serve_dashboard

    return serve_dashboard(folder, port)


@entry_point
def docs() -> None:
    """Write docs/config.md and docs/metrics.md from the settings tree and the glossary."""
    Parser(docs).parse_args()
    from imavae.cli.reference import pages

    for name, text in pages().items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(f"wrote {name}")


@entry_point
def launch(command: Command[C]) -> int:
    """Run a command of the settings tree on ``sys.argv``, once for each job of ``--multirun``.

    All jobs are checked before the first one runs, and only then is anything heavy imported.
    """
    parser = Parser(command.entry)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--cfg", choices=["job"])
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        from imavae.cli.reference import help_text

        print(help_text(command, [word for word in words if not word.startswith("-")]))
        return 0
    arguments = parser.parse_intermixed_args(words)
    jobs = [resumed(command, job) for job in compose_jobs(command, arguments.overrides, arguments.multirun)]
    if arguments.cfg:
        for job in jobs:
            print(yaml.safe_dump(job.settings, sort_keys=False, allow_unicode=True), end="")
        return 0
    passed, configs = [], [command.check(job.settings) for job in jobs]
    for number, (job, config) in enumerate(zip(jobs, configs, strict=True), start=1):
        if len(jobs) > 1:
            print(f"job {number} of {len(jobs)}: {' '.join(job.overrides)}", flush=True)
        passed.append(command.run(config, job.overrides))
    return int(False in passed)


def _check_study(mapping: Mapping[str, Any]) -> tree.StudyConfig:
    names = list(searches())
    require(bool(mapping.get("search")), f"search is one of {', '.join(names)}", "none", f"set search={names[0]}")
    return tree.study_config(mapping)


def command_line(overrides: list[str]) -> list[str]:
    """The words that run this script again with these overrides."""
    program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]  # the interpreter and the script
    return [*program, *overrides]


def _reproduce(config: tree.ReproduceConfig, overrides: list[str]) -> bool:
    from imavae.paper.figures import paper_figure

    if config.figure is None:
        commands.list_figures()
        return True
    searched = [override for override in overrides if override.startswith("search=")]
    require(not searched, "search is not set for a figure", searched, "drop it: a figure has its own studies")
    names = paper_figure(config.figure).searches
    studies = [tree.study_of(compose(REPRODUCE, [*overrides, f"search={name}"]).settings) for name in names]
    return commands.reproduce(config, studies, command_line(overrides))


TRAIN = Command(train, tree.RunConfig, tree.run_config, lambda config, line: commands.train(config, command_line(line)))
TUNE = Command(tune, tree.StudyConfig, _check_study, lambda config, line: commands.tune(config, command_line(line)))
EVALUATE = Command(
    evaluate, tree.EvaluateConfig, partial(build, tree.EvaluateConfig), lambda config, _: commands.evaluate(config)
)
ENCODE = Command(
    encode, tree.EncodeConfig, partial(build, tree.EncodeConfig), lambda config, _: commands.encode(config)
)
REPRODUCE = Command(reproduce, tree.ReproduceConfig, partial(build, tree.ReproduceConfig), _reproduce)
