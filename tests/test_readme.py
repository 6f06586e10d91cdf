"""The README's claims that can be checked without running anything."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from imavae.metrics.glossary import GLOSSARY

ROOT = Path(__file__).parent.parent
ARROWS = {"max": "↑", "min": "↓", "one": "→ 1", "none": ""}


def _cell(text: str) -> str:
    return text.replace("|", r"\|")  # else Markdown begins a new column


def test_the_table_of_metrics_is_the_glossary() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Metrics\n")[2]
    rows = [line for line in text.splitlines() if re.match(r"\| `[a-z0-9_]+` \|", line)]
    expected = [
        f"| `{name}` | {_cell(metric.definition)} | {ARROWS[metric.direction]} | {_cell(metric.equation)} |".replace(
            "  ", " "
        )
        for name, metric in GLOSSARY.items()
    ]
    assert rows == expected


def test_every_file_that_the_readme_shows_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = [part.split(")")[0] for part in text.split("](")[1:] if part.startswith("docs/")]
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).is_file(), picture


def _train_commands() -> list[str]:
    """The command lines of train.py in the README: in code blocks and in tables."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"python scripts/train\.py ([^`\n]+)", text)
    lines = [line for line in dict.fromkeys(found) if not line.startswith("--")]
    return [line for line in lines if "data=file" not in line]  # it needs the file; test_own_data_page.py has one


@pytest.mark.parametrize("arguments", _train_commands())
def test_every_train_command_is_accepted(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It composes, and every rule about its values holds; other tests train."""
    import train  # the script
    from _launch import compose_jobs

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(arguments, comments=True)])
    for _, mapping in compose_jobs(train.COMMAND):
        train.COMMAND.check(mapping)


def test_the_search_that_the_readme_shows_is_accepted() -> None:
    from imavae.config import study_config
    from imavae.search.study import check

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [example] = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "\nsearch:" in block]
    search = yaml.safe_load(example)
    del search["defaults"]  # Hydra's
    parameters, known = check(study_config(search))
    assert len(parameters) == 3
    assert known == [{"model.gamma": 100.0, "model.n_layers": 2}]


def test_every_figure_that_the_readme_names_can_be_reproduced() -> None:
    from imavae.report.reproduce.registry import FIGURES

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"FIGURE=([a-z_]+)", text)
    assert set(named) == set(FIGURES)
