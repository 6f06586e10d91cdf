"""The page on a person's own data: its blocks run as they stand, one after the other, with a tiny budget."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from imavae.cli.compose import Command
from imavae.cli.main import ENCODE, TRAIN, TUNE, launch
from tests.pages import foreign

PAGE = Path(__file__).parent.parent / "docs/own_data.md"
COMMANDS: dict[str, Command[Any]] = {c.name: c for c in (TRAIN, TUNE, ENCODE)}
TRAINING = ["training.max_epochs=10", "members.seed=[1,2,3]", "tracking=none"]
TINY = {"train": TRAINING, "tune": [*TRAINING, "cluster.cpus=1", "budget.trials=2"], "encode": []}


@pytest.mark.slow
def test_its_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    ran = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S):
        if language == "python":
            exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102  -- our own page
            continue
        _, script, *arguments = shlex.split(block)
        name = Path(script).stem
        monkeypatch.setattr(sys, "argv", [script, *arguments, *TINY[name]])
        assert launch(dataclasses.replace(COMMANDS[name])) == 0, capsys.readouterr().err
        ran.append(name)
    assert ran == ["tune", "encode", "train"]
    said, errors = capsys.readouterr()
    assert foreign(said + errors) == []
    assert "There are no sources, hence no MCC" in said
    assert "agreement of seeds" in said
    latents, z = pd.read_parquet("latents.parquet"), names["z"]
    assert latents[["z0", "z1", "z2"]].to_numpy() == pytest.approx(z.detach().numpy(), abs=1e-5)
    assert "val/agreement at min val/neg_elbo" in names["members"]
    assert not [column for column in names["members"] if "mcc" in column]
