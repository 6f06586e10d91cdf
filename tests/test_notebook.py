"""The example notebook runs as it stands, and shows its progress and its results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLE = Path(__file__).parent.parent / "docs/example.ipynb"


@pytest.mark.slow
def test_it_runs_and_shows_what_it_has_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLE.parent.parent))
    read: Any = nbformat.read
    stored, again = (read(EXAMPLE, as_version=4) for _ in range(2))
    NotebookClient(again, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for notebook in (stored, again):
        shown = ["".join(map(str, cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"]
        run, latents, study, _ = shown
        assert "epoch 100/100" in run
        assert "8/8" in study
        for text in (run, study):
            assert float(re.findall(r"median val/mcc ([0-9.]+)", text)[0]) > 0.9
            assert float(re.findall(r"Linear ICA reaches ([0-9.]+)", text)[0]) < 0.7
        assert float(re.findall(r"split: ([0-9.]+)", latents)[0]) > 0.9
        assert ["image/png" in text for text in shown] == [False, True, False, True]
