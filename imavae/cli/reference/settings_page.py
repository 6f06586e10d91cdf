"""``docs/config.md``: every setting of the commands, with its default, type, rules and meaning."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from imavae.cli.reference.comments import beside, prefix_of, summary
from imavae.cli.reference.markdown import code, table
from imavae.cli.reference.rules import Rule, rules
from imavae.cli.reference.search_page import search_section
from imavae.cli.reference.settings import DEFAULTS, REGISTRIES, Setting, Tree, about, settings_at, settings_of
from imavae.config import settings as config
from imavae.config.settings import EncodeConfig, EvaluateConfig, ReproduceConfig, RunConfig, StudyConfig

RUN = ("config_data", "config", "families_data", "families", "data.files")  # where the rules of a run are checked
STUDY = ("config_search", "search.space", "search.study", "search.cluster")
ELSEWHERE = ("EvaluateConfig", "register_network")  # what they check is no setting of a run
OTHERS = {  # rules that stand beside no setting: what they are about, and where they are checked
    "Of settings together:": (*RUN[:-1], "config_search", "search.starts", "search.study", "search.cluster"),
    "Of a file of observations or sources; KEY is `data.path` or `data.sources_path`:": RUN[-1:],
    "Of a leaf of `search`; KEY is its setting:": ("search.space",),
}
HEAD = """\
# Settings

Made by `make docs` from the code: defaults, types and rules from the typed tree (`imavae/config/settings.py` and its
neighbours), meanings from the comments in `conf/`. Say `SETTING=VALUE` for any of them after `python scripts/NAME.py`
(or in `ARGS="..."` of a make target), and `GROUP=OPTION` for a whole group at once; `--help` shows them shortly,
after whatever stands before it on the command line.

- A rule is what must hold. A command line or file that breaks one is refused before anything runs, with exit code 2
  and one message that names the value, the rule and what to do.
- A list is written `'members.seed=[1,2,3]'`, in quotes for the shell; `null` means none, or what the meaning says.
- Words in capitals stand for what is given.

| command | settings |
|---|---|
| `train.py` | [run](#run), [data](#data), [model](#model), [training](#training), [members](#members), \
[tracking](#tracking) |
| `tune.py` | the same, [study](#study), [objective](#objective), [sampler](#sampler), [scheduler](#scheduler), \
[budget](#budget), [cluster](#cluster), and [files of search_spaces/](#files-of-search_spaces) |
| `reproduce.py` | the same, and [its own](#reproduce); they go over those of all studies of the figure |
| `evaluate.py` | [evaluate](#evaluate) |
| `encode.py` | [encode](#encode) |

What a group's option changes is listed below its settings; `experiment=NAME` [goes over all of them](#experiments).
"""


def settings_page(root: Path) -> str:
    """The page; ``root`` holds conf/ and search_spaces/.

    Raises:
        KeyError: a setting whose meaning ``conf/`` does not say.
    """
    conf = root / "conf"
    run = Tree(conf, "train", RunConfig, _rules(RUN))
    study = Tree(conf, "tune", StudyConfig, _rules((*RUN, *STUDY)))
    lines = [HEAD, *_section("Run", _top(run)), *_section("data", settings_at(run, "data")), *_options(conf, "data")]
    lines += [*_variants(run, "data.mixing"), *_variants(run, "data.source")]
    lines += [*_section("model", settings_at(run, "model")), *_options(conf, "model"), *_variants(run, "model.prior")]
    lines += [line for node in ("training", "members") for line in _section(node, settings_at(run, node))]
    lines += [*_section("tracking", settings_at(run, "tracking")), *_options(conf, "tracking")]
    lines += _section("Study", _top(study, RunConfig))
    for node in ("objective", "sampler", "scheduler", "budget", "cluster"):
        lines += _section(node, settings_at(study, node))
    lines += [*_options(conf, "cluster"), *search_section(root), *_joint(run, study), *_experiments(conf)]
    return "\n".join([*lines, *_small_commands(conf)]).rstrip() + "\n"


def _rules(modules: Iterable[str]) -> tuple[Rule, ...]:
    found = [rule for name in modules for rule in rules(importlib.import_module(f"imavae.{name}"))]
    return tuple(rule for rule in found if rule.owner not in ELSEWHERE)


def _top(tree: Tree, without: Any = None) -> list[Setting]:
    """The plain values at the top of a tree, without those that another tree has, too."""
    others = {setting.key for setting in settings_at(tree._replace(kind=without), "")} if without else set()
    return [setting for setting in settings_at(tree, "") if setting.key not in others]


def _section(title: str, settings: Sequence[Setting], level: int = 2) -> list[str]:
    head = ["setting", "default", "type and rules", "meaning"]
    return [f"{'#' * level} {title}", "", *table(head, map(_row, settings))]


def _row(setting: Setting) -> list[str]:
    default = "must be given" if setting.default is None else code(setting.default) if setting.default else "none"
    return [code(setting.key), default, "<br>".join([setting.type, *map(code, setting.rules)]), setting.meaning]


def _variants(tree: Tree, node: str) -> Iterator[str]:
    """A section for each variant of a node that has settings of its own."""
    registry = REGISTRIES[node]
    for name in registry.variants:
        if found := settings_of(tree, node, name):
            yield from _section(f"{node}: {name}", found, level=3)


def _options(conf: Path, group: str) -> list[str]:
    """The options of a group: what each is, and what it sets otherwise than the one that is chosen by itself."""
    default = _values(conf, group, DEFAULTS[group])
    rows = []
    for path in sorted((conf / group).glob("*.yaml")):
        values, chosen = _values(conf, group, path.stem), path.stem == DEFAULTS[group]
        changed = [code(f"{key}={value}") for key, value in values.items() if value != default.get(key, value)]
        rows.append([code(f"{group}={path.stem}"), summary(path), "the default" if chosen else "<br>".join(changed)])
    return [*table(["option", "what it is", "sets otherwise"], rows), *_otherwise(conf, group)]


def _otherwise(conf: Path, group: str) -> list[str]:
    """What a setting of the group means under another option, where that says more."""
    usual = dict(beside(conf / group / f"{DEFAULTS[group]}.yaml"))
    lines = [
        f"- `{prefix_of(group, path)}{key}` with `{group}={path.stem}`: {comment}"
        for path in sorted((conf / group).glob("*.yaml"))
        for key, comment in beside(path)
        if comment != usual.get(key, comment) and "mixing" not in key and key != "name"
    ]
    return [*lines, ""] if lines else []


def _values(conf: Path, group: str, option: str) -> dict[str, Any]:
    """Dotted keys of an option with their values; a mixing has a section of its own."""
    path = conf / group / f"{option}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    flat = _flat({key: value for key, value in content.items() if key not in ("defaults", "mixing", "source")}, "")
    return {prefix_of(group, path) + key: "null" if value is None else value for key, value in flat}


def _flat(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _joint(run: Tree, study: Tree) -> Iterator[str]:
    """The rules that stand beside no single setting."""
    told: list[tuple[str, Any]] = [(setting.key, None) for setting in _every(study)]
    told += [
        (setting.key, variant)
        for node, registry in REGISTRIES.items()
        for name, variant in registry.variants.items()
        for setting in settings_of(run, node, name)
    ]
    yield from ("## Other rules", "")
    for title, modules in OTHERS.items():
        left = [rule.text for rule in _rules(modules) if not any(about(rule, key, kind) for key, kind in told)]
        yield from (title, "", *(f"- `{text}`" for text in dict.fromkeys(left)), "")


def _every(tree: Tree) -> list[Setting]:
    nodes = ("", "data", "model", "training", "members", "tracking")
    more = ("objective", "sampler", "scheduler", "budget", "cluster")
    return [setting for node in (*nodes, *more) for setting in settings_at(tree, node)]


def _experiments(conf: Path) -> list[str]:
    rows = []
    for path in sorted((conf / "experiment").glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        groups = [f"{group}={option}" for entry in content.pop("defaults", []) for group, option in entry.items()]
        sets = [text.removeprefix("override /") for text in groups] + [f"{k}={v}" for k, v in _flat(content, "")]
        rows.append([code(f"experiment={path.stem}"), summary(path), "<br>".join(map(code, sets))])
    return ["## Experiments", "", *table(["option", "what it is", "sets"], rows)]


def _small_commands(conf: Path) -> Iterator[str]:
    """What the commands have that train nothing, and what reproduce adds to a study."""
    checked = tuple(rule for rule in rules(config) if rule.owner in ("EvaluateConfig", "_with_plugins"))
    evaluate = Tree(conf, "evaluate", EvaluateConfig, checked)
    encode = Tree(conf, "encode", EncodeConfig, _rules(["config_encode"]))
    tracking = "`tracking` is as [above](#tracking)."
    yield from _section("Evaluate", settings_at(evaluate, ""))
    yield from (tracking, "")
    yield from _section(
        "Encode", [*settings_at(encode, "")[:1], *settings_at(encode, "data"), *settings_at(encode, "")[1:]]
    )
    yield from (tracking, "")
    yield from _section("Reproduce", _top(Tree(conf, "reproduce", ReproduceConfig, ()), StudyConfig))
