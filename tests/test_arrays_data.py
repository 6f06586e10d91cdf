"""Observations in memory: each kind trains as its file does, and labels and sources stay with their rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import imavae
from imavae.config.settings import run_config
from imavae.data import dataset, tables
from imavae.errors import UserError
from tests.helpers import file_data, normal

TINY: dict[str, Any] = {
    "members": {"seed": [1, 2]},
    "training": {"max_epochs": 2, "validate_every": 1},
    "model": {"gamma": 3.0},
}


class Pairs(Dataset[tuple[torch.Tensor, int]]):
    """A data set that ends by its length alone."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.x[row], row


X = normal(700, 3).numpy()
KINDS: dict[str, Callable[[], Any]] = {
    "array": lambda: X,
    "reversed twice": lambda: X[::-1].copy()[::-1],
    "columns in Fortran's order": lambda: np.asfortranarray(X),
    "long double": lambda: X.astype(np.longdouble),
    "objects": lambda: X.astype(object),
    "text": lambda: X.astype(str),
    "lists": X.tolist,
    "tensor with gradient": lambda: torch.from_numpy(X).requires_grad_(),
    "data set": lambda: TensorDataset(torch.from_numpy(X)),
    "data set of pairs": lambda: Pairs(torch.from_numpy(X)),
    "frame with numbers for names": lambda: pd.DataFrame(X, index=np.arange(700)[::-1]),
    "Arrow": lambda: pa.table({str(k): X[:, k] for k in range(3)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_observations_of_any_kind_are_one_file(kind: str, tmp_path: Path) -> None:
    expected = tables.written(tmp_path, X)
    assert tables.written(tmp_path, KINDS[kind]()) == expected
    assert len(list(tmp_path.iterdir())) == 1
    read = tables.read(expected["path"], None, 700)
    np.testing.assert_array_equal(read, X)


def test_a_run_on_an_array_is_the_run_on_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    runs = [
        imavae.train(X, **TINY, data={"dim": 2}, output_dir=str(tmp_path / "array")),
        imavae.train(**TINY, data=file_data(tmp_path / "x.npy", dim=2), output_dir=str(tmp_path / "file")),
    ]
    ours, theirs = (run.members.drop(columns="score", errors="ignore") for run in runs)
    pd.testing.assert_frame_equal(ours, theirs)
    assert runs[0].config.data.dim == 2
    same = imavae.train(X[:, :], **TINY, data={"dim": 2}, output_dir=str(tmp_path / "array"), resume=True)
    assert same.folder == runs[0].folder  # its file is found by its content
    assert len(list((tmp_path / "array/data").iterdir())) == 1
    np.testing.assert_allclose(
        imavae.encode(runs[0].champion, X[::-1]).z[::-1], imavae.encode(runs[1].champion, X).z, atol=1e-6
    )


def test_sources_segments_and_groups_stay_with_their_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    s, groups = rng.normal(size=(900, 2)), rng.integers(60, size=900)
    segments = np.where(s[:, 0] > 0, "up", "down")
    frame = pd.DataFrame({"segment": s.sum(1), "b": s[:, 0] - s[:, 1], "who": groups})
    data = tables.written(tmp_path, frame, torch.from_numpy(s), segments, "who")
    config = run_config({"data": {**data, "standardise": False}})
    assert config.data.n_segments == 2
    made = dataset.make(config.data, (1, 2), torch.float64)
    scaling = made.sources_scaling
    assert scaling is not None
    inverse = np.linalg.inv([[1, 1], [1, -1]])
    for world in range(2):
        seen: list[set[int]] = []
        for split in (made.train, made.val, made.test):
            assert split.segments is not None
            found = split.observations[world].numpy() @ inverse.T
            np.testing.assert_allclose(found, split.sources[world] * scaling.std + scaling.mean, atol=1e-12)
            np.testing.assert_array_equal(split.segments[world] == 1, found[:, 0] > 0)
            rows = [int(np.abs(s - row).sum(1).argmin()) for row in found]
            seen.append({int(groups[row]) for row in rows})
        assert not seen[0] & seen[1]
        assert not seen[1] & seen[2]
        assert not seen[0] & seen[2]
        shares = np.array([len(split) for split in (made.train, made.val, made.test)]) / 900
        np.testing.assert_allclose(shares, (0.7, 0.2, 0.1), atol=0.03)


BAD: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "a vector": (lambda _: imavae.train(X[:, 0]), ["x has the shape (n, d)", "(700,)"]),
    "images": (lambda _: imavae.train(X.reshape(50, 14, 3)), ["x has the shape (n, d)", "(50, 14, 3)"]),
    "words": (lambda _: imavae.train(np.full((700, 2), "oops")), ["x is an array of numbers", "oops"]),
    "complex": (lambda _: imavae.train(X + 1j), ["x is an array of numbers"]),
    "a missing value": (
        lambda p: tables.resolved(tables.written(p, np.where(X > 2.9, np.nan, X))),
        ["no value", "row"],
    ),
    "two types": (lambda _: imavae.train(pd.DataFrame({"a": [1, "x"]})), ["x is a table", "column a"]),
    "a name twice": (lambda _: imavae.train(pd.DataFrame(X[:, :2], columns=["a", "a"])), ["x is a table", "'a', 'a'"]),
    "labels of other rows": (lambda _: imavae.train(X, segments=[1, 2]), ["a label for each row", "(2,) for 700"]),
    "sources alone": (lambda _: imavae.train(sources=X), ["belong to observations x", "sources"]),
    "sources of other rows": (lambda _: imavae.train(X, sources=X[:9]), ["as many rows", "9 in"]),
    "few groups": (
        lambda p: dataset.make(
            run_config({"data": tables.written(p, X, groups=np.arange(700) % 2)}).data, (1,), torch.float32
        ),
        ["whole groups", "2 groups"],
    ),
    "settings twice": (lambda _: imavae.train({}, {}), ["are given once"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_observations_are_told_before_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    act, parts = BAD[name]
    with pytest.raises(UserError) as error:
        act(tmp_path / "data")
    assert [part for part in parts if part not in str(error.value)] == []
    assert not (tmp_path / "outputs/runs").exists()


def test_a_frame_keeps_its_names(tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    data = tables.written(tmp_path, frame.assign(kind="x"), segments="kind")
    assert data["segment_column"] == "kind"
    assert tables.resolved(tables.written(tmp_path, frame))["columns"] == ["a", "b", "c"]


def test_encoding_takes_what_training_takes(tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = imavae.train(frame, **TINY, data={"dim": 2}, output_dir=str(tmp_path)).champion
    expected = imavae.encode(model, X).z
    turned = frame[["c", "a", "b"]].assign(more="text")
    kinds = [make() for make in KINDS.values()]
    for x in (*kinds, frame, turned, pa.Table.from_pandas(turned), X[::-1].copy()[::-1], frame.astype(object)):
        np.testing.assert_allclose(imavae.encode(model, x).z, expected, atol=1e-12)
    for x, part in (
        (frame.rename(columns={"a": "A"}), "no a"),
        (frame.assign(b="x"), "column 'b'"),
        (X[:, :2], "(n, 3)"),
    ):
        with pytest.raises(UserError) as error:
            imavae.encode(model, x)
        assert part in str(error.value)
