"""docs/architecture.md names all modules, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MAP, _, RECIPES = TEXT.partition("\n## How to add\n")


def test_every_module_is_named_once_and_every_named_one_is_there() -> None:
    there = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "imavae").rglob("*.py"))
    named = re.findall(r"`(imavae/[\w/]+\.py)`", MAP)
    hint = "docs/architecture.md has a sentence for each module: add it there, or take it away"
    assert sorted(named) == there, hint


def test_a_recipe_names_what_is_there() -> None:
    paths = re.findall(r"`((?:imavae|conf|tests|docs)/[\w/.]+)`", RECIPES)
    assert len(paths) > 15
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert {"own_mixing.py", "own_source.py", "own_prior.py", "own_network.py"} <= set(links)
    assert [link for link in links if not (ROOT / "docs" / link).is_file()] == []


def test_what_a_recipe_calls_by_name_stands_in_the_file_that_it_names() -> None:
    words = {
        "imavae/families_data.py": ("MixingSettings", "SourceSettings", "@MIXINGS.register", "@SOURCES.register"),
        "imavae/data/mixing.py": ("def forward", "def inverse", "def jacobian", "def log_det", "def shifted"),
        "imavae/families.py": ("PriorSettings", "@PRIORS.register", "bounded", "NETWORK_NAMES"),
        "imavae/model/priors.py": ("class Prior(", "@build.register"),
        "imavae/model/networks.py": ("class Network(", "def shapes", "@register_network("),
        "imavae/metrics/glossary.py": ("GLOSSARY", "class Absence(", "ABSENCES", "FINAL", "PROBES", "TRUTH", "SOURCES"),
        "imavae/metrics/evaluate.py": ("def _metrics(", "def _identifiability(", "def forward(", "def add("),
        "imavae/config_search.py": ("SAMPLERS", "NUMBERS_ONLY"),
        "imavae/search/samplers.py": ("def _sampler(",),
        "tests/test_mixing.py": ("NONLINEAR",),
        "tests/test_priors.py": ("LAWS",),
    }
    for path, parts in words.items():
        code = (ROOT / path).read_text(encoding="utf-8")
        for part in parts:
            assert part in code, f"{part} in {path}"
            assert re.split(r"^(?:class|def) ", part.strip("@("))[-1].split(".")[0] in RECIPES, part
