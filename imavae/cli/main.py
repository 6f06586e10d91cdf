"""Entry points of the scripts: from the command line to the library, and from an error to an exit code.

Exit codes: 0, done; 1, a bug (with its traceback), a full disk, or a figure that disagrees with the published numbers;
2, a user's mistake (one message, no traceback); 130 and 143, interrupted by SIGINT (Ctrl-C) or SIGTERM.
"""

from __future__ import annotations

import argparse
import codecs
import inspect
import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from imavae.cli import commands
from imavae.cli.compose import ROOT, C, Command, compose, compose_jobs, searches
from imavae.config.registry import mistake_of_a_plugin
from imavae.config.settings import (
    EncodeConfig,
    EvaluateConfig,
    ReproduceConfig,
    RunConfig,
    StudyConfig,
    encode_config,
    evaluate_config,
    reproduce_config,
    run_config,
    study_config,
    study_of,
)
from imavae.errors import UserError, handle_signals, interruption_of, is_full_disk, require

LEGIBLE = str.maketrans("−–─━╸²", "-----2")


class Parser(argparse.ArgumentParser):
    """Parser that raises UserError instead of leaving."""

    def __init__(self, summary: str) -> None:
        name = Path(sys.argv[0]).name
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(f"python scripts/{name}", description=summary, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"`the command line can be read` must hold, but {message}; see --help")


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


def ui() -> int:
    """Open MLflow's page on the tracked results, on this machine, until Ctrl-C.

    Examples:
      python scripts/ui.py --port 5000
    """

    def page(folder: Path, port: int) -> int:
        from imavae.tracking.ui import serve

        return serve(folder, port)

    return show(page, ui, 5000)


def dashboard() -> int:
    """Open Optuna's dashboard on the studies, on this machine, until Ctrl-C.

    Examples:
      python scripts/dashboard.py --port 8080
    """

    def page(folder: Path, port: int) -> int:
        from imavae.tracking.ui import serve_dashboard

        return serve_dashboard(folder, port)

    return show(page, dashboard, 8080)


def bench() -> int:
    """Measure how fast ensembles train, against loops for one model, and where a study's time goes.

    Writes outputs/bench.json; takes some minutes on one core.

    Examples:
      python scripts/bench.py
      python scripts/bench.py compare=old.json
    """

    def action() -> None:
        parser = Parser(summary_of(bench))
        fix = "print the new numbers beside those of an earlier outputs/bench.json, copied aside"
        parser.add_argument("compare", nargs="?", metavar="compare=FILE", help=fix)
        argument = parser.parse_args().compare or ""
        file = argument.removeprefix("compare=")
        rule = "the argument reads compare=FILE"
        require(not argument or file not in ("", argument), rule, argument, "give compare=old.json")
        from imavae.bench.trainer import main

        main(Path("outputs/bench.json"), Path(file) if file else None)

    return exit_code(action)


def docs() -> int:
    """Write docs/config.md and docs/metrics.md from the settings tree and the glossary."""

    def action() -> None:
        Parser(summary_of(docs)).parse_args()
        from imavae.cli.reference import pages

        for name, text in pages().items():
            (ROOT / name).write_text(text, encoding="utf-8")
            print(f"wrote {name}")

    return exit_code(action)


def launch(command: Command[C]) -> int:
    """Run a command of the settings tree on ``sys.argv``, once for each job of ``--multirun``; return its exit code.

    All jobs are checked before the first one runs, and only then is anything heavy imported.
    """
    passed: list[bool | None] = []

    def action() -> None:
        parser = Parser(command.summary)
        parser.add_argument("overrides", nargs="*")
        parser.add_argument("-m", "--multirun", action="store_true")
        parser.add_argument("--cfg", choices=["job"])
        words = sys.argv[1:]
        if {"-h", "--help"} & set(words):
            from imavae.cli.reference import help_text

            print(help_text(command, [word for word in words if not word.startswith("-")]))
            return
        arguments = parser.parse_intermixed_args(words)
        jobs = compose_jobs(command, arguments.overrides, arguments.multirun)
        if arguments.cfg:
            import yaml

            for job in jobs:
                print(yaml.safe_dump(job.settings, sort_keys=False, allow_unicode=True), end="")
            return
        configs = [command.check(job.settings) for job in jobs]
        for number, (job, config) in enumerate(zip(jobs, configs, strict=True), start=1):
            if len(jobs) > 1:
                print(f"job {number} of {len(jobs)}: {' '.join(job.overrides)}", flush=True)
            passed.append(command.run(config, job.overrides))

    return exit_code(action) or int(False in passed)


def exit_code(action: Callable[[], None]) -> int:
    """Carry out an action; return 0, or the code of a user's mistake, a full disk or an interruption. Bugs pass."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_legible.__name__)
    try:
        handle_signals()  # also where a shell has made its background job deaf to SIGINT
        action()
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
    return 0


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


def show(serve: Callable[[Path, int], int], function: Callable[[], int], port: int) -> int:
    """Serve a page of an output folder on a port, ``port`` unless the command line gives another; the exit code."""
    codes = []

    def action() -> None:
        parser = Parser(summary_of(function))
        parser.add_argument("--port", type=int, default=port, help="of the loopback interface; %(default)s")
        parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="folder of results; %(default)s")
        arguments = parser.parse_args()
        codes.append(serve(arguments.output_dir, arguments.port))

    return exit_code(action) or sum(codes)


def summary_of(function: Callable[[], int]) -> str:
    """The docstring of an entry point, for its ``--help``."""
    return inspect.getdoc(function) or ""


def _check_study(mapping: Mapping[str, Any]) -> StudyConfig:
    names = list(searches())
    require(bool(mapping.get("search")), f"search is one of {', '.join(names)}", "none", f"set search={names[0]}")
    return study_config(mapping)


def command_line(overrides: list[str]) -> list[str]:
    """The words that run this script again with these overrides."""
    program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]  # the interpreter and the script
    return [*program, *overrides]


def _reproduce(config: ReproduceConfig, overrides: list[str]) -> bool:
    from imavae.paper.figures import paper_figure

    if config.figure is None:
        commands.list_figures()
        return True
    searched = [override for override in overrides if override.startswith("search=")]
    require(not searched, "search is not set for a figure", searched, "drop it: a figure has its own studies")
    names = paper_figure(config.figure).searches
    studies = [study_of(compose(REPRODUCE, [*overrides, f"search={name}"]).settings) for name in names]
    return commands.reproduce(config, studies, command_line(overrides))


TRAIN = Command(
    "train", summary_of(train), RunConfig, run_config, lambda config, line: commands.train(config, command_line(line))
)
TUNE = Command(
    "tune", summary_of(tune), StudyConfig, _check_study, lambda config, line: commands.tune(config, command_line(line))
)
EVALUATE = Command(
    "evaluate", summary_of(evaluate), EvaluateConfig, evaluate_config, lambda config, _: commands.evaluate(config)
)
ENCODE = Command("encode", summary_of(encode), EncodeConfig, encode_config, lambda config, _: commands.encode(config))
REPRODUCE = Command("reproduce", summary_of(reproduce), ReproduceConfig, reproduce_config, _reproduce)
