"""Encoding a file writes what the model computes, in every format; a failure leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from imavae.config.mapping import build
from imavae.config.settings import EncodeConfig, run_config
from imavae.data import tables as files
from imavae.errors import UserError
from imavae.runs.models import encode_file, load_model, member_parts
from imavae.runs.session import Session
from imavae.training.checkpoint import save_member
from tests.helpers import file_data, observations

COLUMNS = ["z0", "z1", "std0", "std1", "error"]


def model_of(folder: Path, prior: dict[str, Any], dtype: str = "float64", **data: Any) -> Path:
    """A model of the columns a, b and c, at its start, whose training file is gone."""
    path = observations(folder / "train.parquet", columns=3)
    data = file_data(path, dim=2, **data)
    config = run_config({"data": data, "model": {"prior": prior}, "training": {"dtype": dtype}})
    session = Session.start([config], torch.device("cpu"))
    save_member(folder / "model.pt", *member_parts(session, 0, "val/neg_elbo", {}))
    path.unlink()
    return folder / "model.pt"


def asked(folder: Path, path: Path, out: str = "z.parquet", **data: Any) -> EncodeConfig:
    data = {"path": str(path), **data}
    return build(EncodeConfig, {"checkpoint": str(folder / "model.pt"), "data": data, "out": str(folder / out)})


@pytest.mark.parametrize("prior", [{"name": "uniform"}, {"name": "gaussian"}], ids=lambda p: p["name"])
@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("ending", [".csv", ".parquet", ".npy"])
def test_a_row_holds_location_deviation_and_error(
    ending: str, standardise: bool, prior: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(model_of(tmp_path, prior, standardise=standardise)).requires_grad_(False)
    path = observations(tmp_path / f"x{ending}", 5000, columns=4)  # one more than the model takes
    monkeypatch.setattr(files, "BLOCK_ROWS", 3000)
    told: list[tuple[int, int | None]] = []
    columns: dict[str, Any] = {"columns": [0, 1, 2]} if ending == ".npy" else {}
    done = encode_file(asked(tmp_path, path, **columns), lambda *rows: told.append(rows))
    assert told[-1] == (5000, None if ending == ".csv" else 5000)
    z = pd.read_parquet(tmp_path / "z.parquet")
    assert list(z) == list(done.columns) == COLUMNS
    x = torch.from_numpy(files.read(str(path), list("012" if ending == ".npy" else "abc"), 5000))
    np.testing.assert_allclose(z[["z0", "z1"]], model.encode(x), rtol=1e-9)
    mean, std = model.posterior(x)
    np.testing.assert_allclose(z[["std0", "std1"]], std * model.architecture.prior.slope(mean), rtol=1e-9)
    error = ((model(x) - x) / model.column_std).square().mean(1)
    np.testing.assert_allclose(z["error"], error, rtol=1e-9)
    assert done.error == pytest.approx(float(error.mean()), rel=1e-9)


def test_columns_are_found_by_name_and_a_csv_holds_the_same(tmp_path: Path) -> None:
    model_of(tmp_path, {"name": "uniform"}, "float32")
    frame = pd.read_parquet(observations(tmp_path / "x.parquet", columns=3))
    frame[["c", "a", "b"]].assign(note="text").to_csv(tmp_path / "turned.csv", index=False)
    frame.set_axis(["p", "q", "r"], axis=1).to_parquet(tmp_path / "renamed.parquet")
    encode_file(asked(tmp_path, tmp_path / "x.parquet"), lambda *_: None)
    encode_file(asked(tmp_path, tmp_path / "turned.csv", "turned.csv.csv"), lambda *_: None)
    encode_file(asked(tmp_path, tmp_path / "renamed.parquet", "r.parquet", columns=["p", "q", "r"]), lambda *_: None)
    expected = pd.read_parquet(tmp_path / "z.parquet")
    assert set(expected.dtypes) == {np.dtype("float32")}
    np.testing.assert_allclose(pd.read_csv(tmp_path / "turned.csv.csv"), expected, rtol=1e-5)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "r.parquet"), expected)


def test_a_value_that_is_missing_far_down_leaves_nothing_behind_but_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_of(tmp_path, {"name": "uniform"})
    monkeypatch.setattr(files, "BLOCK_ROWS", 300)
    path = observations(tmp_path / "x.parquet", columns=3)
    frame = pd.read_parquet(path)
    frame.loc[800, "b"] = np.nan
    frame.to_parquet(path)
    (tmp_path / "z.parquet").write_text("older")
    before = sorted(tmp_path.iterdir())
    told: list[int] = []
    with pytest.raises(UserError, match=r"x\.parquet has no value \(nan\) in column 'b', row 801"):
        encode_file(asked(tmp_path, path), lambda rows, _: told.append(rows))
    assert told == [300, 600]
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "z.parquet").read_text() == "older"


def test_a_file_without_the_models_columns_is_told_before_anything_is_written(tmp_path: Path) -> None:
    model_of(tmp_path, {"name": "uniform"})
    good = pd.read_parquet(observations(tmp_path / "x.parquet", columns=3))
    cases: list[tuple[pd.DataFrame, dict[str, Any], list[str]]] = [
        (good.drop(columns="b"), {}, ["trained on, a, b, c", "without b", "data.columns=[...]"]),
        (good.assign(b="text"), {}, ["are numbers", "column 'b'"]),
        (good, {"columns": ["a", "b"]}, ["the model takes 3 columns", "2 of", "a, b"]),
        (good, {"columns": ["a", "b", "e"]}, ["must be one of a, b, c", "'e'"]),
        (good[:0], {}, ["has rows", "is empty"]),
    ]
    before = sorted(tmp_path.iterdir())
    for frame, settings, parts in cases:
        frame.to_parquet(tmp_path / "x.parquet")
        with pytest.raises(UserError) as error:
            encode_file(asked(tmp_path, tmp_path / "x.parquet", **settings), lambda *_: None)
        assert [part for part in [*parts, "x.parquet"] if part not in str(error.value)] == []
        assert sorted(tmp_path.iterdir()) == before
