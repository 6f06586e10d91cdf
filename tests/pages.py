"""Read the Markdown pages: code blocks, command lines, links; and find what other libraries print."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FOREIGN = re.compile(  # lines that Ray, MLflow, Optuna, torch or Python print among ours
    r"(?i:warning|deprecat|alembic|traceback|raylet)|\b(WARN|INFO|DEBUG|ERROR|CRITICAL)\b|\(.*pid=\d|ray::|site-packages"
    r"|^\[[IWED] ?\d{4}|^\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:|^[IWEF]\d{4} \d\d:\d\d"
)


def foreign(text: str) -> list[str]:
    """The lines of an output that are not ours."""
    return [line for line in text.splitlines() if FOREIGN.search(line)]


def text_of(page: Path) -> str:
    """A page's Markdown."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language, in their order."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return found


def shell_lines(page: Path) -> list[str]:
    """The command lines of its shell blocks without their comments; a line that goes on after a backslash is one."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def links(page: Path) -> list[str]:
    """Targets of its links and pictures within this repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL))
    return [target for target in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Anchors of its headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
