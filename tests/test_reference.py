"""The reference is made from the code, says all of it, and is fresh; so is what ``--help`` says of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from imavae.cli.reference import pages
from imavae.cli.reference.comments import meanings
from imavae.cli.reference.rules import Rule, rules
from imavae.cli.reference.search_page import EXAMPLE, LEAF
from imavae.cli.reference.settings import DEFAULTS, REGISTRIES, Setting, Tree, settings_at, settings_of
from imavae.cli.reference.settings_page import RUN, STUDY
from imavae.config.mapping import keys_of
from imavae.config.settings import (
    EncodeConfig,
    EvaluateConfig,
    ReproduceConfig,
    RunConfig,
    StudyConfig,
    study_config,
)
from imavae.errors import UserError
from imavae.search.space import FIELDS, TESTS
from imavae.search.study import check

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("docs/config.md", "docs/metrics.md")}
TABLES = [
    (name, line)
    for name, text in PAGES.items()
    for line in text.splitlines()
    if line.startswith("| ") and "---" not in line
]


def cells(row: str) -> list[str]:
    """What stands between the bars of a table's row, as Markdown reads it."""
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def rows(name: str, title: str) -> list[list[str]]:
    """The rows of the first table below a title."""
    below = PAGES[name].split(f"\n{title}\n")[1]
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table
    return [cells(line) for line in table[0].splitlines()[2:]]


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_what_the_code_makes_of_them(name: str) -> None:
    assert pages(ROOT)[name] == PAGES[name], f"{name} is not what the code says: say `make docs`"


def test_every_setting_is_there() -> None:
    stated = {cells(line)[0].strip("`") for name, line in TABLES if name == "docs/config.md"}
    kinds = (RunConfig, StudyConfig, ReproduceConfig, EvaluateConfig, EncodeConfig)
    assert {key for kind in kinds for key in keys_of(kind)} - stated == set()


def every_setting() -> list[Setting]:
    tree = Tree(ROOT / "conf", "tune", StudyConfig, ())
    nodes = ["", *(field.name for field in dataclasses.fields(StudyConfig) if field.name in DEFAULTS)]
    nodes += ["members", "objective", "sampler", "scheduler", "budget"]
    variants = [(node, name) for node, registry in REGISTRIES.items() for name in registry.variants]
    found = [setting for node in nodes for setting in settings_at(tree, node)]
    return found + [setting for node, name in variants for setting in settings_of(tree, node, name)]


@pytest.mark.parametrize("setting", every_setting(), ids=lambda setting: setting.key)
def test_a_meaning_names_all_that_can_be_chosen(setting: Setting) -> None:
    choices = re.findall(r"`(.+?)`", setting.type) if not setting.key.endswith(".name") else []
    told = re.findall(r"[\w/]+", f"{setting.meaning} {setting.default}")
    assert set(choices) <= set(told)


def test_a_setting_without_a_meaning_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("name: null\noutput_dir: outputs # a folder\n")
    with pytest.raises(KeyError, match="name"):
        settings_at(Tree(tmp_path, "train", RunConfig, ()), "")


def bare(rule: str) -> str:
    """A rule without the paths of its settings."""
    return re.sub(r"(?<![\d.])\b\w+(?:\.\w+)*\.(?=[a-z])", "", rule)


def test_every_rule_is_told() -> None:
    text = re.sub(r"```.*?```", "", PAGES["docs/config.md"], flags=re.DOTALL)
    told = {bare(rule) for rule in re.findall(r"`([^`]+)`", text)}
    modules = [importlib.import_module(f"imavae.{name}") for name in (*RUN, *STUDY, "config_encode")]
    checked = [rule for module in modules for rule in rules(module) if rule.owner != "register_network"]
    assert len(checked) > 100
    assert [rule for rule in checked if bare(rule.text) not in told] == []


BROKEN: dict[str, dict[str, Any]] = {
    "data.dim": {"data": {"dim": 1}},
    "data.mixing.slope": {"data": {"mixing": {"name": "mlp", "slope": 0}}},
    "data.source.low": {"data": {"source": {"name": "beta", "low": 1.0}}},
    "members.seed": {"members": {"seed": [1, 1]}},
    "model.encoder.n_layers": {"model": {"encoder": {"n_layers": 0}}},
    "model.gamma": {"model": {"gamma": -3}},
    "model.prior.std": {"model": {"prior": {"name": "gaussian", "std": 0}}},
    "name": {"name": "a/b"},
    "training.threads": {"training": {"threads": 0}},
    "objective.aggregate": {"objective": {"aggregate": "mode"}},
    "scheduler.reduction": {"scheduler": {"reduction": 1}},
}


@pytest.mark.parametrize("key", BROKEN)
def test_what_a_broken_setting_is_told_stands_beside_it(key: str) -> None:
    with pytest.raises(UserError) as error:
        study_config({"search": {"model": {"beta": {}}}, **BROKEN[key]})
    message = str(error.value)
    found = re.match(r"`(.+?)` must (?:hold|be one of)", message)
    assert found
    beside = [cells(line)[2] for name, line in TABLES if name == "docs/config.md" and cells(line)[0] == f"`{key}`"]
    told = {bare(part.strip("`")) for cell in beside for part in cell.split("<br>")}
    assert any(rule.startswith(bare(found[1])) for rule in told), message


def module(tmp_path: Path, source: str) -> ModuleType:
    path = tmp_path / "checked.py"
    path.write_text("from imavae.errors import require_choice, require\n" + source)
    spec = importlib.util.spec_from_file_location("checked", path)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_rules_are_read_however_they_are_written(tmp_path: Path) -> None:
    source = """
LEAST, NAMES = 3, ("b", "a")
class A:
    def check(self, dim):
        rule, remedy = "first", ""
        require(True, rule, 0, remedy)
        rule = f"x.n >= {LEAST}"
        require(True, rule, 0, remedy)
        for name in ("p", "q"):
            require(True, f"x.{name} > 0", 0, "")
        for key, value in (("y.p", 1), ("y.q", 2)):
            require(value > 0, f"{key} fits {self.dim}", 0, "")
        require_choice("a", sorted(NAMES), "x.name")
        require_choice("a", ("c", "d"), "x.other")
        require_choice("a", self.there, "x.unknown")
"""
    assert [rule.text for rule in rules(module(tmp_path, source))] == [
        "first", "x.n >= 3", "x.p > 0", "x.q > 0", "y.p fits DIM", "y.q fits DIM", "x.name is one of a, b",
        "x.other is one of c, d",
    ]  # fmt: skip


def test_a_rule_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"the rule `text\(\)`"):
        rules(module(tmp_path, "def check(text):\n    require(True, text(), 0, '')\n"))


@pytest.mark.parametrize(
    ("text", "key", "about"),
    [
        ("data.dim >= 2", "data.dim", True),
        ("data.dimension >= 2", "data.dim", False),
        ("data.dim is the number of data.mixing.factors", "data.mixing.factors", False),
        ("data.train + data.val < 1", "data.val", True),
        ("model.encoder.n_layers >= 1", "model.encoder", False),
        ("name is a plain folder name", "name", True),
        ("sampler.start_from is the folder of a study", "study", False),
        ("the ending of out is one of .csv", "out", True),
    ],
)
def test_which_setting_a_rule_is_about(text: str, key: str, about: bool) -> None:
    assert Rule("", text).names(key) is about


def test_an_option_says_what_its_settings_mean() -> None:
    usual = meanings(ROOT / "conf", "tune", DEFAULTS)
    flow = meanings(ROOT / "conf", "tune", {**DEFAULTS, "data": "flow"})
    assert "even" not in usual["data.dim"]
    assert "even" in flow["data.dim"]
    own = meanings(ROOT / "conf", "train", {**DEFAULTS, "model/prior": "own"})
    assert own["model.prior"].startswith("Your own prior")
    evaluated = meanings(ROOT / "conf", "evaluate", {})
    assert usual["plugins"] != evaluated["plugins"]  # each of the command's own file


def test_a_leaf_has_what_the_search_reads() -> None:
    assert set(LEAF) == {"type", "when", *TESTS, *(name for names in FIELDS.values() for name in names)}


def test_the_search_that_the_page_shows_is_accepted() -> None:
    assert EXAMPLE in PAGES["docs/config.md"]
    search: Mapping[str, Any] = yaml.safe_load(EXAMPLE)
    parameters, points = check(study_config({key: value for key, value in search.items() if key != "defaults"}))
    assert [parameter.key for parameter in parameters if parameter.when] == ["model.hidden_factor"]
    assert points == [{"model.gamma": 100.0, "model.n_layers": 2}]


@pytest.mark.parametrize("values", [[True, False], [0.2, 0.5], ["mlp"]], ids=str)
def test_choices_are_of_any_plain_type(values: list[Any]) -> None:
    key = {bool: ("training", "probes"), float: ("model", "slope"), str: ("model", "name")}[type(values[0])]
    search = {key[0]: {key[1]: {"type": "choice", "values": values}}}
    assert check(study_config({"search": search, "sampler": {"name": "grid"}}))[0][0].values == tuple(values)


def test_tables_can_be_read() -> None:
    for _, line in TABLES:
        for part in (part for cell in cells(line) for part in cell.split("<br>")):
            assert len(part) <= 220, part
            assert all(len(word) <= 60 for word in part.split()), part


def test_every_table_is_whole() -> None:
    for text in PAGES.values():
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            head, *below = table.splitlines()
            assert {len(cells(line)) for line in below} == {len(cells(head))}


def test_every_link_within_a_page_leads_somewhere() -> None:
    for text in PAGES.values():
        titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", title).replace(" ", "-").lower() for title in titles}  # as GitHub makes them
        assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
