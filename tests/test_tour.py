"""The tour of the library: its blocks run as they stand, one after the other, and say what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

PAGE = Path(__file__).parent.parent / "docs/tour.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_its_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    said: list[str] = []
    for block in re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.M | re.S):
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102  -- our own page
        out, err = capfd.readouterr()
        assert err == ""
        assert (out == "") == ("print(" not in block), "what is not asked for is not printed"
        said.append(out)
    everything = "".join(said)
    for shown in re.findall(r"^    (`.*)\n", TEXT, flags=re.M):
        assert shown in everything
    equal = re.search(r"^([0-9.]+)\n([0-9.]+)\n", next(s for s in said if s.count("\n") == 2 and s[0].isdigit()))
    assert equal
    assert float(equal[1]) == pytest.approx(float(equal[2]), abs=1e-6)

    run, study = names["run"], names["study"]
    reached = run.members["test/mcc at max val/mcc"]
    assert reached.min() > 0.9 > 0.7 > run.members["test/mcc_linear_ica at max val/mcc"].max()
    x = names["world"].observations
    assert np.array_equal(names["imavae"].encode(names["same"], x).z, names["latents"].z)
    assert names["other"].about["seed"] == 2
    assert study.trials["model.gamma"].tolist() == [10.0, 30.0]
    assert study.trials["status"].tolist() == ["finished"] * 2
    assert len(study.members) == 6
    assert study.folder == tmp_path / "outputs/studies/tour"
    assert names["imavae"].load_results(study.folder).members.equals(study.members)
    assert names["imavae"].load_results(run.folder).history.equals(run.history)
    assert not ray.is_initialized(), "Ray is left as it was found"
    assert not (tmp_path / "outputs/mlflow.db").exists()
