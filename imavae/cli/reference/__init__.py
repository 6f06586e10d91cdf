"""The reference, made from the code: ``docs/config.md`` and ``docs/metrics.md``, and what ``--help`` says shortly."""

from __future__ import annotations

from pathlib import Path


def pages(root: Path) -> dict[str, str]:
    """The text of each page, by its path below ``root``, the folder that holds conf/ and search_spaces/."""
    from imavae.cli.reference.settings_page import settings_page
    from imavae.metrics.glossary import metrics_page

    return {"docs/config.md": settings_page(root), "docs/metrics.md": metrics_page()}
