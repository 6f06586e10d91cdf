"""A person's file: every format gives the same numbers, and what can't be used is told by file, column and row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from imavae.data import tables as files
from imavae.errors import UserError
from tests.helpers import file_data, normal, observations

ENDINGS = (".npy", ".csv", ".parquet")
every_ending = pytest.mark.parametrize("ending", ENDINGS)


@every_ending
def test_blocks_are_the_files_columns_whatever_their_size(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = observations(tmp_path / f"x{ending}")
    expected = np.load(observations(tmp_path / "expected.npy"))
    monkeypatch.setattr(files, "BLOCK_ROWS", 64)
    monkeypatch.setattr(files, "CSV_BYTES", 4096)
    table = files.open_table(path)
    names = files.pick(table, None)[::-1]  # in the order that is asked for
    blocks = list(files.blocks(table, names))
    assert len(blocks) > 1
    np.testing.assert_allclose(np.concatenate(blocks, 1).T, expected[:, ::-1], rtol=1e-15)
    np.testing.assert_array_equal(files.read(str(path), names, 100), expected[:100, ::-1])
    assert table.rows == (None if ending == ".csv" else 1000)


@every_ending
def test_what_is_left_open_is_read_from_the_file(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = observations(tmp_path / f"x{ending}")
    monkeypatch.chdir(tmp_path)
    read = files.resolved(file_data(Path(path.name)))
    assert (read["dim"], read["n_obs"], read["n_segments"], read["path"]) == (4, 1000, 1, str(path))
    assert read["columns"] == (list("0123") if ending == ".npy" else list("abcd"))
    some = files.resolved(file_data(path, columns=read["columns"][:3], dim=2, n_obs=700))
    assert (some["dim"], some["n_obs"], some["columns"]) == (2, 700, read["columns"][:3])
    assert files.resolved(read) == read


LABELS = [["p", "q", "p", "r"], [7, -3, 7, 12], [False, True, False, True]]


@every_ending
@pytest.mark.parametrize("values", LABELS, ids=str)
def test_labels_of_any_type_are_counted_in_their_order(values: list[Any], ending: str, tmp_path: Path) -> None:
    path, column = tmp_path / f"x{ending}", pd.Series(values * 200)
    frame = pd.DataFrame(normal(800, 2).numpy(), columns=["a", "b"])
    expected = np.unique(column.to_numpy().astype(str) if ending == ".csv" else column, return_inverse=True)[1]
    name = "label"
    if ending == ".npy":
        if isinstance(values[0], str):
            return  # an array of numbers has no text
        np.save(path, np.column_stack([frame, column]))
        name = "2"
    elif ending == ".csv":
        frame.assign(label=column).to_csv(path, index=False)
    else:
        frame.assign(label=column).to_parquet(path)
    read = files.resolved(file_data(path, segment_column=name))
    assert name not in read["columns"]
    assert read["n_segments"] == len(set(values))
    np.testing.assert_array_equal(files.labels(str(path), name), expected)


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, normal(100, 3))
    assert files.resolved(file_data(path))["n_obs"] == 100
    np.save(path, normal(90, 3))
    assert files.resolved(file_data(path))["n_obs"] == 90


def frame(**columns: Any) -> pd.DataFrame:
    numbers = normal(500, 2).numpy()
    return pd.DataFrame({"a": numbers[:, 0], "b": numbers[:, 1], **columns})


def with_value(row: int, value: float) -> pd.DataFrame:
    changed = frame()
    changed.loc[row, "b"] = value
    return changed


# Of both formats that have names: what is in the file, the settings, and what the message must hold.
BAD: dict[str, tuple[Callable[[], pd.DataFrame], dict[str, Any], list[str]]] = {
    "nan": (lambda: with_value(70, np.nan), {}, ["no value (nan)", "column 'b'", "row 71", "drop or fill"]),
    "infinite": (lambda: with_value(499, np.inf), {}, ["inf in column 'b'", "row 500"]),
    "constant": (lambda: frame(c=3.0), {}, ["vary", "column c", "leave it out"]),
    "text": (lambda: frame(c="x"), {}, ["are numbers", "column 'c'", "data.columns=[...]"]),
    "one row": (lambda: frame()[:1], {}, ["more than one row", "one in"]),
    "no row": (lambda: frame()[:0], {}, ["has rows", "is empty"]),
    "missing column": (frame, {"columns": ["a", "bb"]}, ["must be one of a, b", "'bb'", "mean b?"]),
    "column twice": (frame, {"columns": ["a", "a"]}, ["taken once", "drop the copy"]),
    "too many rows": (frame, {"n_obs": 501}, ["data.n_obs <= the rows", "501 of 500", "data.n_obs=null"]),
    "no such label": (frame, {"segment_column": "c"}, ["data.segment_column", "a, b", "'c'"]),
    "a label asked for": (frame, {"segment_column": "a", "columns": ["a", "b"]}, ["none of data.columns", "got a"]),
    "no label": (lambda: frame(c=["x"] * 499 + [None]), {"segment_column": "c"}, ["column 'c'", "row 500"]),
    "sources": (frame, {"sources_path": "s.npy"}, ["as many rows as data.path", "90 in", "s.npy and 500"]),
    "sources' columns": (frame, {"sources_path": "s.npy", "dim": 1}, ["data.dim columns", "2 in", "s.npy"]),
    "no sources": (frame, {"sources_path": "t.npy"}, ["data.sources_path is a file", "t.npy"]),
}


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_told_by_its_column_and_row(
    name: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, settings, parts = BAD[name]
    monkeypatch.chdir(tmp_path)
    np.save("s.npy", normal(90, 2))
    path = tmp_path / f"x{ending}"
    make().to_csv(path, index=False) if ending == ".csv" else make().to_parquet(path)
    with pytest.raises(UserError) as error:
        files.resolved(file_data(path, **settings))
    told = parts if "sources_path" in settings else [*parts, str(path)]
    assert [part for part in told if part not in str(error.value)] == []


RAW: dict[str, tuple[str, bytes, list[str]]] = {
    "empty csv": ("x.csv", b"", ["has rows", "is empty"]),
    "empty npy": ("x.npy", b"", ["has rows", "is empty"]),
    "empty parquet": ("x.parquet", b"", ["has rows", "is empty"]),
    "only names": ("x.csv", b"a,b\n", ["has rows", "is empty"]),
    "no names": ("x.csv", b"1,2\n3,4\n", ["names its columns", "'1', '2'", "line of names"]),
    "one name twice": ("x.csv", b"a,a\n3,4\n", ["different names", "'a'", "rename"]),
    "ragged": ("x.csv", b"a,b\n3,4\n5\n", ["can be read", "Row #3", "correct the file"]),
    "late text": ("x.csv", b"n,a\n" + b"x,1\n" * 2_000_000 + b"x,oops\n", ["column 'a'", "Row #2000002", "'oops'"]),
    "no array": ("x.npy", b"hello", ["can be read", "no array of numbers"]),
    "no parquet": ("x.parquet", b"hello", ["can be read", "correct the file"]),
    "another ending": (
        "x.npz",
        b"hello",
        ["the ending of data.path", "one of .npy, .csv, .tsv, .parquet", "mean .npy?"],
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_a_damaged_file_is_told(name: str, tmp_path: Path) -> None:
    file, content, parts = RAW[name]
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        files.resolved(file_data(path, columns=["a"] if name == "late text" else None))
    assert [part for part in parts if part not in str(error.value)] == []
    assert file in str(error.value) or name == "another ending"


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.zeros(4), "two axes"),
        (np.zeros((0, 3)), "is empty"),
        (np.zeros((1, 3)), "more than one row"),
        (np.array([["a", "b"]]), "are numbers"),
        (np.array([[1, None]]), "no array of numbers"),
        (np.c_[np.arange(9.0), np.ones(9)], "column 1 of"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), "column '1', row 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_array_is_told(array: Any, part: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, array)
    with pytest.raises(UserError, match=r"x\.npy") as error:
        files.resolved(file_data(path))
    assert part in str(error.value)
