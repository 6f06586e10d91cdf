"""The README's claims that can be checked without running anything."""

from __future__ import annotations

from pathlib import Path

from imavae.metrics.evaluate import GLOSSARY

ROOT = Path(__file__).parent.parent
ARROWS = {"max": "↑", "min": "↓", "one": "→ 1", "none": ""}


def _cell(text: str) -> str:
    return text.replace("|", r"\|")  # else Markdown begins a new column


def test_the_table_of_metrics_is_the_glossary() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
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
