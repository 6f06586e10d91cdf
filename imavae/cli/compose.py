"""From a command line to plain settings, by Hydra's compose API.

Hydra's defaults come from the settings tree, the options of its groups from the registries of variants, and the
searches from ``search_spaces/``, all through its ConfigStore. ``conf/`` adds the options that change several settings.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import hydra
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from imavae.config.data import MIXINGS, SOURCES
from imavae.config.mapping import Settings, default_of, fields_of, flatten, nearest, nest, nodes_of
from imavae.config.registry import load_plugins
from imavae.config.settings import NETWORKS, PRIORS, Cluster, Model, RunConfig, StudyConfig, Tracking, Training
from imavae.errors import UserError, nearest_of, require

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
SEARCHES = ROOT / "search_spaces"
MOST_VALUES = 10_000  # of a search space
MOST_NUMBERS = 1_000_000  # of ${range:...}, whose members would need terabytes
MISSING = "???"  # OmegaConf's mark of a value that must be given
OPTIONS: tuple[tuple[str, str, Any, dict[str, Any]], ...] = (  # group, option, its class, and what it changes
    ("training", "default", Training, {}),
    ("tracking", "mlflow", Tracking, {}),
    ("tracking", "none", Tracking, {"name": "none"}),
    ("cluster", "local", Cluster, {}),
    ("cluster", "ray", Cluster, {"name": "ray", "address": "auto"}),
)
CHOSEN = {"data": "moebius", "model": "mlp", "training": "default", "tracking": "mlflow", "cluster": "local"}
_stored: list[object] = []  # what Hydra's ConfigStore holds: of which command, with which variants
OWN = "own"  # option for a variant that a plugin registers, given as a mapping

C = TypeVar("C", bound=Settings)


@dataclass(frozen=True)
class Command(Generic[C]):
    """A command that is configured by the settings tree."""

    entry: Callable[[], int]  # named as its script; its docstring begins ``--help``
    kind: type[C]
    check: Callable[[Mapping[str, Any]], C]  # raises UserError
    run: Callable[[C, list[str]], bool | None]  # gets settings and overrides of a job; False: exit code 1

    @property
    def name(self) -> str:
        return self.entry.__name__


class Job(NamedTuple):
    """One composed set of settings."""

    overrides: list[str]
    choices: dict[str, str | None]  # option of each group
    settings: dict[str, Any]  # nested, plain


def compose(command: Command[C], overrides: list[str]) -> Job:
    """Compose the settings that the overrides give. Raises UserError for overrides that can't be composed."""
    return compose_jobs(command, overrides)[0]


def compose_jobs(command: Command[C], overrides: list[str], multirun: bool = False) -> list[Job]:
    """Compose as :func:`compose` does; with ``multirun`` once per combination of the overrides' values."""
    with _hydra(command.kind, command.name) as loader:
        try:
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
            for override in parsed:
                paths = override.value() if override.key_or_group == "plugins" else None
                if isinstance(paths, list):
                    load_plugins(path for path in paths if isinstance(path, str))
                    _store(command.kind, command.name)  # again, with the plugins' variants
            if issubclass(command.kind, StudyConfig):
                _store_searches(overrides)
            batches = BasicSweeper.split_arguments(parsed, None) if multirun else [[overrides]]
            return [_compose(command.name, one) for batch in batches for one in batch]
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            raise UserError(_explain(error, command)) from None


def resumed(command: Command[C], job: Job) -> Job:
    """Of a job that resumes: the settings of its run or study, and on top only what the command line says.

    Raises UserError if there is nothing to resume.
    """
    if not job.settings.get("resume"):
        return job
    from imavae.runs.folder import remembered  # imports torch

    keys = [override.partition("=")[0].lstrip("+~").replace("/", ".") for override in job.overrides]
    bare = compose(command, [override for override in job.overrides if override.startswith(("search=", "plugins="))])
    before = flatten(bare.settings)
    said = {
        key: value
        for key, value in flatten(job.settings).items()
        if (key not in before or before[key] != value or any(f"{key}.".startswith(f"{one}.") for one in keys))
        and not key.startswith("search.")
    }
    if any(key.startswith("search.") for key in keys):
        said["search"] = job.settings["search"]
    study = issubclass(command.kind, StudyConfig)
    kind, name = ("studies", str(job.settings.get("study")).replace("/", "-")) if study else ("runs", "train")
    return job._replace(settings=remembered(job.settings, said, kind, name))


def group_options(kind: type[Settings]) -> dict[str, list[str]]:
    """Names of the options of each group that a command has."""
    with _hydra(kind, "options"):
        return {group: _option_names(group) for group in _compose("options", []).choices}


def _option_names(group: str) -> list[str]:
    """Names of a group's options; those of searches with their folder. Hydra must be initialised."""
    loader: Any = GlobalHydra.instance().config_loader()
    return list(searches()) if group == "search" else sorted(loader.get_group_options(group))


def searches() -> dict[str, Path]:
    """Files of search spaces by the names that ``search=`` takes, such as ``paper/moebius_gamma_uniform``."""
    return {p.relative_to(SEARCHES).with_suffix("").as_posix(): p for p in sorted(SEARCHES.rglob("*.yaml"))}


def read_search(path: Path) -> dict[str, Any]:
    """The content of a search space, which is data: a mapping without tags. Raises UserError for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
        for token in yaml.scan(text):
            if isinstance(token, yaml.TagToken):
                line = token.start_mark.line + 1
                raise UserError(f"`{path}` must have no YAML tags, but has one in line {line}; drop the tag")
        if _values(yaml.compose(text, Loader=yaml.SafeLoader), {}) > MOST_VALUES:
            rule, fix = f"`{path}` must have at most {MOST_VALUES} values", "write them out, without aliases"
            raise UserError(f"{rule}, but its aliases stand for more, or for themselves; {fix}")
        config = OmegaConf.load(path)  # reads 1e3 as a number, which PyYAML does not
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"`{path}` must be YAML, but {reason}; correct the file") from None
    if not isinstance(config, DictConfig):
        raise UserError(f"`{path}` must hold a mapping, but holds a list; see {SEARCHES / 'gamma_uniform.yaml'}")
    content: Any = OmegaConf.to_container(config)  # Hydra resolves interpolations when all is composed
    return dict(content)


def _values(node: Any, seen: dict[int, float]) -> float:
    """The number of values of a YAML node once its aliases are written out; infinite if one stands for itself."""
    if id(node) not in seen:
        seen[id(node)] = math.inf
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        seen[id(node)] = 1.0 + sum(_values(part, seen) for part in parts)
    return seen[id(node)]


def _range(start: int, stop: int) -> list[int]:
    require(stop - start <= MOST_NUMBERS, f"a range has at most {MOST_NUMBERS} numbers", stop - start, "use fewer")
    return list(range(start, stop))


@contextmanager
def _hydra(kind: type[Settings], name: str) -> Iterator[Any]:
    """Hydra's config loader, with everything stored that it composes from."""
    # ${range:1,101} is [1, ..., 100]; ${gammas:1e3,1e4} the gammas of these squares, which are the paper's axis.
    OmegaConf.register_new_resolver("range", _range, replace=True)
    OmegaConf.register_new_resolver("gammas", lambda *squares: [math.sqrt(square) for square in squares], replace=True)
    _store(kind, name)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield GlobalHydra.instance().config_loader()


def _store(kind: type[Settings], name: str) -> None:
    """Put a command's defaults and the options of its groups into Hydra's ConfigStore, unless they are there."""
    wanted = [kind, name, *SOURCES, *MIXINGS, *PRIORS, *NETWORKS]
    if _stored == wanted:  # the studies of a figure are composed one by one
        return
    store = ConfigStore.instance().store
    whole = issubclass(kind, RunConfig)
    groups = [group for group in CHOSEN if group in fields_of(kind) and (whole or group == "tracking")]
    node = {key: value for key, value in defaults(kind).items() if key not in groups}
    after = [{"experiment": None}] * whole + [{"search": None}] * issubclass(kind, StudyConfig)
    store(name=name, node={"defaults": [*({group: CHOSEN[group]} for group in groups), "_self_", *after], **node})
    for group, option, settings, changes in OPTIONS:
        store(group=group, name=option, node={**defaults(settings), **changes})
    data = {kind.kind: defaults(kind) for kind in nodes_of(fields_of(RunConfig)["data"])}
    synthetic = data.pop("synthetic")  # an option for each of its mixings
    data |= {mixing.name: {**synthetic, "dim": mixing.usual_dim, "mixing": defaults(mixing)} for mixing in MIXINGS}
    for option, content in (data | {OWN: {**synthetic, "mixing": None}}).items():
        store(group="data", name=option, node=_with_group(content, "source"))
    files = {path.stem for path in (CONF / "model").glob("*.yaml")}  # those go over a network's own options
    for option in set(NETWORKS.names()) - files:
        store(group="model", name=option, node=_with_group({**defaults(Model), "name": option}, "prior"))
    for registry in (SOURCES, PRIORS):
        parent, _, key = registry.setting.rpartition(".")
        store(group=registry.group, name=OWN, node={key: None}, package=parent)
        for variant in registry:
            store(group=registry.group, name=variant.name, node=defaults(variant))
    for search in searches() if issubclass(kind, StudyConfig) else ():
        _store_search(search, {})
    _stored[:] = wanted


def _store_searches(overrides: Sequence[str]) -> None:
    """Put the search spaces that the overrides name, and those that they build on, into Hydra's ConfigStore.

    Reading all of them would be slow.
    """
    files = searches()
    named = {word for text in overrides if "search" in text for word in re.findall(r"[\w./-]+", text)}
    wanted = [name for name in files if name in named]
    for name in wanted:
        content = read_search(files[name])
        _store_search(name, {"study": name, **content})
        entries = content.get("defaults")
        bases = [str(entry).removeprefix("/search/") for entry in entries] if isinstance(entries, list) else []
        wanted += [base for base in bases if base in files and base not in wanted]


def _store_search(name: str, node: dict[str, Any]) -> None:
    group, _, option = f"search/{name}".rpartition("/")
    ConfigStore.instance().store(group=group, name=option, node=node, package="_global_")


def defaults(kind: Any) -> dict[str, Any]:
    """Default of every setting of a class, nested and plain; OmegaConf's mark where one must be given."""
    found = {name: default_of(kind, name) for name in fields_of(kind)}
    for name, value in found.items():
        if value is dataclasses.MISSING:
            nodes = nodes_of(fields_of(kind)[name])
            found[name] = defaults(nodes[0]) if nodes else MISSING
    return found


def _with_group(node: dict[str, Any], inner: str) -> dict[str, Any]:
    """A node whose part ``inner`` is chosen by a group of its own."""
    if inner not in node:
        return node
    rest = {key: value for key, value in node.items() if key != inner}
    return {"defaults": [{inner: node[inner]["name"]}, "_self_"], **rest}


def _compose(name: str, overrides: list[str]) -> Job:
    config: DictConfig = hydra.compose(name, overrides, return_hydra_config=True)
    choices = {g: c for g, c in sorted(config.hydra.runtime.choices.items()) if not g.startswith("hydra/")}
    with open_dict(config):
        del config["hydra"]
    content: Any = OmegaConf.to_container(config, resolve=True)
    given = {key: value for key, value in flatten(content).items() if not (isinstance(value, str) and value == MISSING)}
    return Job(overrides, choices, nest(given))


def quoted(key: str, value: str) -> str:
    """A setting whose value is a text of any characters, as a word of a shell."""
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + found[2].replace('"', '\\"'), value)
    return shlex.quote(f'{key}="{escaped}"')


def _explain(error: Exception, command: Command[C]) -> str:
    """Hydra's error as value, rule and fix."""
    if isinstance(error, OverrideParseException):
        key, equals, value = str(error.override).partition("=")
        example = f"{quoted(key, value)}, if it is a text" if equals and value else "model.gamma=30"
        example += (
            ", or 'members.seed=[1,2,3]' in quotes; a value with spaces is quoted, too: 'data.path=\"my file.csv\"'"
        )
        return f"`{error.override}` must read GROUP=OPTION or SETTING=VALUE, but can't be parsed; write it as {example}"
    if found := re.search(r"Ambiguous value for argument '(?P<key>[^=']*)=(?P<value>.*)'", str(error)):
        fix = f"write {quoted(**found.groupdict())} for a text, '{found['key']}=[{found['value']}]' for a list"
        return f"`{found['key']}={found['value']}` must be one value; {fix}, or add --multirun for a job for each"
    path = (isinstance(error, MissingConfigException) and error.missing_cfg_file) or ""
    if "/" in path:  # GROUP/OPTION; a search's option may hold a folder
        group, _, option = path.partition("/") if path.startswith("search/") else path.rpartition("/")
        hint = nearest_of(option, _option_names(group))
        return f"`{group}={option}` must name an option of {group}, but does not; {hint}"
    match = re.match(r"Could not override '([^']+)'", str(error))
    if match:
        key, job = match[1], _compose(command.name, [])
        near = difflib.get_close_matches(key, [*job.choices, *job.settings], n=1) if "." not in key else []
        if near or ("/" in key and "." not in key):
            hint = f"did you mean {near[0]}?" if near else f"choose among the groups, {', '.join(job.choices)}"
            return f"`{key}` is neither a group nor a setting; {hint}"
        return f"`{key}` is not a setting; {nearest(key, command.kind)}"
    reason = str(error) or str(error.__cause__)
    lines = [line.strip() for line in reason.splitlines() if line.strip() and "https://" not in line]
    return f"the command line can't be composed: {' '.join(lines)}; see --help for groups and settings"
