"""What the scripts share: the way from a command line to a checked configuration, and from a mistake to an exit code.

Hydra ends here. It composes one plain mapping per job; all of them are checked before the first one runs, and only then
is anything heavy imported. Exit codes: 0, done; 1, a bug (with its traceback); 2, a person's mistake (one message, no
traceback); 130 and 143, interrupted by SIGINT (Ctrl-C) or SIGTERM.
"""

from __future__ import annotations

import argparse
import codecs
import difflib
import importlib.util
import io
import itertools
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imavae.config.variants import Settings

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
SEARCHES = ROOT / "search_spaces"

C = TypeVar("C", bound="Settings")
T = TypeVar("T")


@dataclass(frozen=True)
class Command(Generic[C]):
    """A script: the primary configuration that it composes, and what it does with it."""

    name: str  # of the file in conf/, and of the script
    summary: str  # what `--help` begins with
    kind: type[C]  # of the configuration
    check: Callable[[Mapping[str, Any]], C]  # raises UserError
    run: Callable[[C], None]  # imports what is heavy in its body
    searches: bool = False  # whether `search=` chooses a file of search_spaces/
    own_studies: bool = False  # whether it composes several, one by one, so that Hydra's own options have no place


def require_environment() -> None:
    """Leave with exit code 2 and one line that says how to activate the environment, unless it is active.

    From here on Ctrl-C ends with one line, too, until :func:`exit_code` sees to it.
    """
    if Path(sys.argv[0]).resolve().parent == ROOT / "scripts":  # a test that imports a script is left alone
        signal.signal(signal.SIGINT, _too_early)
    if all(importlib.util.find_spec(package) for package in ("hydra", "torch", "imavae")):
        return
    here = Path.cwd() == ROOT
    activate = "source .venv/bin/activate" if here else f"source {ROOT / '.venv/bin/activate'}"
    setup = "make setup" if here else f"make -C {ROOT} setup"
    ready = (ROOT / ".venv/.ready").exists()  # the Makefile's mark of a finished installation
    steps = f"say `{activate}`" if ready else f"say `{setup}`, then `{activate}`"
    sys.stderr.write(f"error: the environment of imavae is not active; {steps}\n")
    sys.exit(2)


def _too_early(_number: int, _frame: types.FrameType | None) -> None:
    sys.stderr.write("interrupted; say the same again\n")
    sys.stderr.flush()
    os._exit(130)


def launch(command: Command[C]) -> int:
    """Run a command on ``sys.argv``: once, or once per job of ``--multirun``; return its exit code."""

    def action() -> None:
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(help_text(command, [a for a in sys.argv[1:] if not a.startswith("-")]))
            return
        jobs = compose_jobs(command)
        configs = [command.check(mapping) for _, mapping in jobs]  # all of them, before the first one runs
        words = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]  # the interpreter and the script
        for number, ((overrides, _), config) in enumerate(zip(jobs, configs, strict=True), start=1):
            if len(jobs) > 1:
                print(f"job {number} of {len(jobs)}: {' '.join(overrides)}", flush=True)
                sys.orig_argv = [*words, *overrides]  # of this job alone: what it can be repeated by, or gone on with
            command.run(config)

    return exit_code(action)


LEGIBLE = str.maketrans("−–─━╸²", "-----2")


def _legible(error: UnicodeError) -> tuple[str, int]:
    """Something like the characters that a terminal's encoding lacks, each in one column; else a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(LEGIBLE)
    return text.encode("ascii", "replace").decode(), error.end


codecs.register_error(_legible.__name__, _legible)


def exit_code(action: Callable[[], None]) -> int:
    """Carry out an action. A person's mistake gives one message and 2, a full disk 1, an interruption 130 or 143; bugs
    pass.
    """
    from imavae.config.variants import mistake_of_a_plugin
    from imavae.errors import UserError, is_full_disk
    from imavae.runs import interrupts as signals

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_legible.__name__)
    try:
        signals.handle()  # also where a shell has made its background job deaf to SIGINT
        action()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt as error:
        interrupted = signals.of(error)
        remedy = "say the same again" if interrupted.folder is None else "say what stands above behind `go on`"
        sys.stderr.write(f"interrupted; {remedy}\n")
        return interrupted.code
    except Exception as error:
        mistake = mistake_of_a_plugin(error)
        if is_full_disk(error):
            rule = "there must be room on the disk, but none is left; what has finished is kept"
            sys.stderr.write(f"error: {rule}: make some room, and say resume=true\n")
            return 1
        if mistake is None:
            raise
        sys.stderr.write(f"error: {mistake}\n")
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """One whose errors are a person's mistakes, like any other."""

    def error(self, message: str) -> NoReturn:
        from imavae.errors import UserError

        raise UserError(f"the command line must read [--port PORT] [--output-dir FOLDER], but {message}; see --help")


def show(serve: Callable[[Path, int], int], summary: str, port: int) -> int:
    """Serve a page of an output folder on a port, ``port`` unless the command line says otherwise; the exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(f"python scripts/{Path(sys.argv[0]).name}", description=summary, formatter_class=raw)
    parser.add_argument("--port", type=int, default=port, help="of the loopback interface; %(default)s")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="where databases lie; %(default)s")
    ended = [0]  # the server's own exit code

    def action() -> None:
        arguments = parser.parse_args()
        ended[0] = serve(arguments.output_dir, arguments.port)

    return exit_code(action) or ended[0]


def searches() -> dict[str, Path]:
    """The search spaces there are, by the names that ``search=`` takes (``paper/moebius_gamma_uniform``)."""
    return {p.relative_to(SEARCHES).with_suffix("").as_posix(): p for p in sorted(SEARCHES.rglob("*.yaml"))}


def compose_jobs(command: Command[C]) -> list[tuple[list[str], dict[str, Any]]]:
    """The overrides and the composed mapping of each job on the command line; none for ``--cfg`` and the like.

    Raises:
        UserError: a command line that Hydra can't compose.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    jobs: list[tuple[list[str], DictConfig]] = []

    def collect(config: DictConfig) -> None:
        overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)
        jobs.append((overrides, config))

    def resolved() -> list[tuple[list[str], dict[str, Any]]]:
        main(collect)()
        return [(overrides, _plain(config)) for overrides, config in jobs]

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, rather than print its own text and exit with 1
    _register(command)
    main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=command.name)
    with tempfile.TemporaryDirectory() as scratch:  # conf/ sends here what Hydra insists on writing
        OmegaConf.register_new_resolver("scratch", lambda: scratch, replace=True)
        return _explained(resolved, command)


def register_resolvers() -> None:
    """Make known what a value may be computed by: a hundred seeds need no hundred numbers.

    ``${range:1,101}`` is [1, ..., 100]; ``${gammas:1e3,1e4}`` the gammas of these squares, which are the paper's axis.
    """
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("range", lambda start, stop: list(range(start, stop)), replace=True)
    OmegaConf.register_new_resolver("gammas", lambda *squares: [math.sqrt(square) for square in squares], replace=True)


def register_searches() -> None:
    """Make each file of search_spaces/ an option of the group ``search``, whatever the current directory."""
    from hydra.core.config_store import ConfigStore

    for name, path in searches().items():
        group, _, option = f"search/{name}".rpartition("/")
        content = read_search(path)
        node = {"study": name, "question": question_of(path), **content}
        ConfigStore.instance().store(group=group, name=option, node=node, package="_global_")


def question_of(path: Path) -> str:
    """What a search space asks: the first sentence of the comment that it begins with; empty without one."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.lstrip("# ") for line in lines).strip()
    return re.split(r"(?<=[.?!])\s", text)[0]


def _register(command: Command[C]) -> None:
    register_resolvers()
    if command.searches:
        register_searches()


def composed(command: Command[C], overrides: list[str]) -> dict[str, Any]:
    """The mapping that overrides make, for a command that composes more than once. Raises UserError."""
    _register(command)
    return _explained(lambda: _compose(command, overrides)[1], command)


def read_search(path: Path) -> dict[str, Any]:
    """The content of a search space, which is data: a mapping without tags.

    Raises:
        UserError: the file can't be read as such.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from imavae.errors import UserError

    try:
        for token in yaml.scan(path.read_text(encoding="utf-8")):
            if isinstance(token, yaml.TagToken):
                line = token.start_mark.line + 1
                raise UserError(
                    f"`{path}` must have no YAML tags, but has one in line {line}; it is plain data: drop the tag"
                )
        config = OmegaConf.load(path)  # reads 1e3 as a number, which PyYAML does not
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"`{path}` must be YAML, but {reason}; correct the file") from None
    if not isinstance(config, DictConfig):
        raise UserError(f"`{path}` must hold a mapping, but holds a list; see {SEARCHES / 'gamma_uniform.yaml'}")
    content: Any = OmegaConf.to_container(config)  # interpolations are Hydra's, once all is composed
    return dict(content)


def help_text(command: Command[C], overrides: list[str]) -> str:
    """Usage, groups with their options, and every setting with its value and its meaning, after the overrides."""
    from imavae.cli.reference.comments import meanings
    from imavae.cli.reference.shortly import POINTER, group_lines, prose_lines, setting_lines

    _register(command)
    choices, settings = _explained(lambda: _compose(command, overrides), command)
    groups = {g: (chosen, options(g)) for g, chosen in choices.items() if not (command.own_studies and g == "search")}
    width = shutil.get_terminal_size((80, 24)).columns
    of_hydra = [
        "  --cfg job       print the composed settings and run nothing",
        "  -m, --multirun  one job per combination of values: model.gamma=10,100",
    ]
    return "\n".join(
        [
            *prose_lines(command.summary.strip(), width),
            "",
            f"usage: python scripts/{command.name}.py [GROUP=OPTION ...] [SETTING=VALUE ...]",
            "",
            "  -h, --help      this text; overrides before it show in it",
            *([] if command.own_studies else of_hydra),
            "",
            "Groups (* marks the chosen option):",
            *group_lines(groups, width),
            "",
            "Settings:",
            *setting_lines(settings, meanings(CONF, command.name, choices), width),
            "",
            *prose_lines(POINTER, width),
        ]
    )


def _compose(command: Command[C], overrides: list[str]) -> tuple[dict[str, str | None], dict[str, Any]]:
    """The chosen option of each group, and the settings."""
    import hydra
    from omegaconf import open_dict

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config: Any = hydra.compose(command.name, overrides, return_hydra_config=True)
    choices = {g: c for g, c in sorted(config.hydra.runtime.choices.items()) if not g.startswith("hydra/")}
    with open_dict(config):
        del config["hydra"]
    return choices, _plain(config)


def _plain(config: DictConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(config, resolve=True)
    return dict(content)


def options(group: str) -> list[str]:
    """The names that a group takes; those of nested searches with their folder."""
    return list(searches()) if group == "search" else sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _explained(compose: Callable[[], T], command: Command[C]) -> T:
    """What Hydra composes; what it refuses is raised again as a UserError."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from imavae.errors import UserError

    try:
        return compose()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(_explain(error, command)) from None


def _explain(error: Exception, command: Command[C]) -> str:
    """Hydra's error as value, rule and remedy."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        example = "model.gamma=30, or 'members.seed=[1,2,3]' in quotes"
        return f"`{error.override}` must read GROUP=OPTION or SETTING=VALUE, but can't be parsed; write it as {example}"
    path = (isinstance(error, MissingConfigException) and error.missing_cfg_file) or ""
    if "/" in path:  # GROUP/OPTION; a search's option may hold a folder
        group, _, option = path.partition("/") if path.startswith("search/") else path.rpartition("/")
        valid = ", ".join(options(group))
        return f"`{group}={option}` must name an option of {group}, but there is none so called; choose one of {valid}"
    match = re.match(r"Could not override '([^']+)'", str(error))
    if match:
        return _unknown(match[1], command)
    reason = str(error) or str(error.__cause__)
    lines = [line.strip() for line in reason.splitlines() if line.strip() and "https://" not in line]
    return f"the command line can't be composed: {' '.join(lines)}; see --help for groups and settings"


def _unknown(key: str, command: Command[C]) -> str:
    """The message for a key that is neither a setting nor a group."""
    from imavae.config.mapping import nearest

    choices, settings = _compose(command, [])
    if "." not in key:
        near = difflib.get_close_matches(key, [*choices, *settings], n=1)
        if near or "/" in key:
            hint = f"did you mean {near[0]}?" if near else f"choose among the groups, {', '.join(choices)}"
            return f"`{key}` is neither a group nor a setting; {hint}"
    return f"`{key}` is not a setting; {nearest(key, command.kind)}"
