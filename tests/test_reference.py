"""The reference pages and ``--help`` hold every setting and metric, and the pages are up to date."""

from __future__ import annotations

import itertools

import pytest

from imavae.cli.compose import ROOT, group_options
from imavae.cli.main import TRAIN
from imavae.cli.reference import VARIANTS, help_text, pages
from imavae.config.mapping import fields_of, keys_of
from imavae.config.settings import EncodeConfig, EvaluateConfig, ReproduceConfig, RunConfig, StudyConfig
from imavae.metrics.glossary import METRICS


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    """Text of each page, as ``make docs`` writes it."""
    return pages()


def test_the_pages_are_what_make_docs_writes(written: dict[str, str]) -> None:
    for name, text in written.items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name} is out of date: run `make docs`"


def test_every_setting_and_metric_is_there_except_the_settings_of_variants(written: dict[str, str]) -> None:
    kinds = (StudyConfig, ReproduceConfig, EvaluateConfig, EncodeConfig)
    settings = {key for kind in kinds for key in keys_of(kind) if not key.endswith((".name", ".kind"))}
    settings -= {f"{registry.setting}.{key}" for registry in VARIANTS for kind in registry for key in keys_of(kind)}
    assert [key for key in sorted(settings) if f"| `{key}` |" not in written["docs/config.md"]] == []
    assert [name for name in METRICS.names() if f"| `{name}` |" not in written["docs/metrics.md"]] == []


def test_the_help_of_an_option_shows_the_settings_of_its_variant() -> None:
    chosen = itertools.zip_longest(*([(kind.name, registry) for kind in registry] for registry in VARIANTS[:-1]))
    for variants in ([pair for pair in pairs if pair] for pairs in chosen):
        text = help_text(TRAIN, [f"{registry.group}={name}" for name, registry in variants])
        shown = {line.partition(":")[0].strip() for line in text.splitlines()}
        assert {field for name, registry in variants for field in fields_of(registry[name])} <= shown


@pytest.mark.parametrize("name", group_options(RunConfig)["data"])
def test_every_kind_of_data_has_a_help(name: str) -> None:
    assert f"*{name}" in help_text(TRAIN, [f"data={name}"])


def test_tables_are_whole(written: dict[str, str]) -> None:
    for text in written.values():
        for table in text.split("\n\n"):
            rows = [line.replace(r"\|", "") for line in table.splitlines() if line.startswith("|")]
            assert len({row.count("|") for row in rows}) <= 1, rows[0]
