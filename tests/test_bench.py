"""The bench's comparison with an earlier run, and its command line; what it measures is no matter of tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from imavae.bench.measure import PlainVAE, comparison_table, read_rows
from imavae.cli.main import bench
from imavae.config.settings import run_config
from imavae.model import vae
from imavae.rng import stream


def written(path: Path, rates: dict[int, float]) -> Path:
    """A file of ensembles' rates, by their members."""
    rows: list[dict[str, Any]] = [
        {"loop": "ensemble", "members": members, "dim": 3, "maps": 2, "member_steps_per_s": rate}
        for members, rate in rates.items()
    ]
    path.write_text(json.dumps({"training": rows}))
    return path


def test_comparison_shows_old_new_and_change(tmp_path: Path) -> None:
    old = read_rows(written(tmp_path / "old.json", {8: 20_000.0, 20: 40_000.0}))
    new = read_rows(written(tmp_path / "new.json", {8: 25_000.0, 20: 30_000.0, 60: 70_000.0}))
    lines = [line.split() for line in comparison_table(old, new).splitlines() if "ensemble" in line]
    assert lines == [
        ["ensemble", "8", "3", "2", "20,000", "25,000", "+25.0"],
        ["ensemble", "20", "3", "2", "40,000", "30,000", "-25.0"],
        ["ensemble", "60", "3", "2", "70,000"],
    ]


BAD_INPUT = [
    *([*arguments] for arguments in (["compare"], ["compare="], ["members=3"], ["compare=a.json", "compare=b.json"])),
    *([f"compare={name}"] for name in ("none.json", ".", "text.json", "empty.json", "list.json", "zero.json")),
]


@pytest.mark.parametrize("arguments", BAD_INPUT, ids=" ".join)
def test_bad_command_line_ends_in_one_message_before_any_work(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"text": "not JSON", "empty": "{}", "list": "[1]"}.items():
        (tmp_path / f"{name}.json").write_text(text)
    written(tmp_path / "zero.json", {8: 0.0})
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    monkeypatch.setattr(torch, "set_num_threads", None)  # measuring would begin with it
    assert bench() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "compare" in err
    assert not (tmp_path / "outputs").exists()


def test_plain_model_is_the_ensembles_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config({})
    model = vae.build(config)
    row = model.layout.initial(stream(1, "init"))[None]
    weights = model.layout.views(row)
    weights[vae.GAMMA][:] = torch.tensor(config.model.gamma, dtype=torch.float64).log()
    x, noise = torch.randn(2, 5, config.data.dim, generator=stream(1, "noise"), dtype=torch.float64)

    plain = PlainVAE(config.data.dim, config.model.hidden_factor * config.data.dim, config.model.gamma).double()
    names = {f"{net}.{2 * i}.{kind}": f"{net}.{i}.{kind}" for net in ("encoder", "decoder") for i in (0, 1)
             for kind in ("weight", "bias")}  # fmt: skip
    plain.load_state_dict({theirs: weights[ours][0] for theirs, ours in names.items()})
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    torch.testing.assert_close(plain(x), model.elbo(weights, x.T[None], noise.T[None]).neg_elbo[0])
