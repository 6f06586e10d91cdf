"""The claims of the README and of the pages that can be checked without running anything."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from imavae.cli.compose import compose, compose_jobs, searches
from imavae.cli.main import TRAIN, TUNE
from tests.pages import PAGES, README, ROOT, anchors, blocks, links, text_of

CLUSTER = ROOT / "docs" / "cluster.md"
ORIGINAL = ROOT / "docs" / "original.md"
STUDIES = ROOT / "docs" / "studies.md"
MAKE = re.compile(r"\bmake ([a-z]+)")
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.name)
def test_what_a_page_links_or_shows_is_there(page: Path) -> None:
    lost = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


def test_every_page_is_linked_by_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(README)}
    assert [page.name for page in PAGES if page.resolve() not in linked | {README.resolve()}] == []


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.name)
def test_what_a_page_names_for_make_and_python_is_there(page: Path) -> None:
    text = text_of(page)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    code = "\n".join(re.findall(r"`[^`]+`", prose) + blocks(page, "bash"))
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(MAKE.findall(code)) <= known
    assert [name for name in re.findall(r"scripts/(?!NAME)\w+\.py", code) if not (ROOT / name).is_file()] == []
    assert set(re.findall(r"\b(?:SEARCH|search)=([\w/]+)", code)) - {"NAME"} <= set(searches())


@pytest.mark.parametrize("arguments", re.findall(r"`python scripts/train\.py ([^`\n]+)`", text_of(ORIGINAL)))
def test_every_command_of_the_originals_is_accepted(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It composes, and every rule about its values holds; other tests train."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(arguments, comments=True)
    for job in compose_jobs(TRAIN, [word for word in words if word != "-m"], multirun="-m" in words):
        TRAIN.check(job.settings)


def test_the_search_that_is_shown_is_accepted() -> None:
    from imavae.config.settings import study_config
    from imavae.search.space import check

    [example] = blocks(STUDIES, "yaml")
    search = yaml.safe_load(example)
    del search["defaults"]  # Hydra's
    parameters, known = check(study_config(search))
    assert len(parameters) == 3
    assert known == [{"model.gamma": 100.0, "model.n_layers": 2}]


@pytest.mark.parametrize("line", re.findall(r"python scripts/tune\.py (.+)", text_of(CLUSTER).replace("\\\n", "")))
def test_every_study_on_a_cluster_is_accepted(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert TUNE.check(compose(TUNE, shlex.split(line, comments=True)).settings).cluster.name == "ray"


def test_the_job_script_for_slurm_can_be_read_by_its_shell(tmp_path: Path) -> None:
    [job] = [block for block in blocks(CLUSTER, "bash") if block.startswith("#!/bin/bash")]
    script = tmp_path / "job.sh"
    script.write_text(job)
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
