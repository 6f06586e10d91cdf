"""Tables as people bring them: however a file is written, its numbers are the right ones, or a message says why not."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import imavae
from imavae.config.data import FileData
from imavae.config.settings import EvaluateConfig, RunConfig, run_config
from imavae.data import dataset
from imavae.data import tables as files
from imavae.errors import UserError
from imavae.runs.models import evaluate_checkpoint
from imavae.runs.session import Session
from tests.helpers import file_data, normal

ROWS = 900
FRAME = pd.DataFrame(normal(ROWS, 3).numpy() * [1e-3, 1.0, 1e4] + 5, columns=["a", "b", "ç"])
QUICK: dict[str, Any] = {
    "members": {"seed": [1]},
    "training": {"max_epochs": 2, "validate_every": 1},
    "tracking": {"name": "none"},
}


def data_of(path: Path, **settings: Any) -> FileData:
    data = run_config({"data": file_data(path, **settings)}).data
    assert isinstance(data, FileData)
    return data


def written(path: Path, **options: Any) -> Path:
    FRAME.to_csv(path, index=False, **options)
    return path


KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "semicolons, decimal commas": (lambda at: written(at / "x.csv", sep=";", decimal=","), "';', decimal ','"),
    "semicolons, decimal points": (lambda at: written(at / "x.csv", sep=";"), "';', decimal '.'"),
    "tabs": (lambda at: written(at / "x.tsv", sep="\t"), "tab, decimal '.'"),
    "tabs in a .csv, commas": (lambda at: written(at / "x.csv", sep="\t", decimal=","), "tab, decimal ','"),
    "bars": (lambda at: written(at / "x.csv", sep="|"), "'|'"),
    "spaces": (lambda at: written(at / "x.csv", sep=" "), "space"),
    "byte order mark": (lambda at: written(at / "x.csv", encoding="utf-8-sig"), "','"),
    "latin-1": (lambda at: written(at / "x.csv", encoding="latin-1"), "latin-1"),
    "UTF-16": (lambda at: written(at / "x.csv", encoding="utf-16"), "utf-16"),
    "quotes": (lambda at: written(at / "x.csv", quoting=1, sep=";", decimal=","), "';', decimal ','"),
    "CR LF": (lambda at: written(at / "x.csv", lineterminator="\r\n"), "','"),
    "compressed": (lambda at: written(at / "x.csv.gz"), "','"),
    "compressed tabs": (lambda at: written(at / "x.tsv.gz", sep="\t", decimal=","), "tab, decimal ','"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_has_the_same_numbers_however_it_is_written(kind: str, tmp_path: Path) -> None:
    write, line = KINDS[kind]
    path = write(tmp_path)
    data = data_of(path)
    assert data.columns == ("a", "b", "ç")
    np.testing.assert_allclose(files.read(str(path), data.columns, ROWS), FRAME.to_numpy(), rtol=1e-15)
    [told] = files.understood(data)
    assert told.startswith(f"{path.name}: 900 rows, 3 columns (a, b, ç); separator ")
    assert line in told


def test_columns_of_true_and_false_are_one_and_zero_in_every_format(tmp_path: Path) -> None:
    frame = FRAME.assign(d=FRAME["b"] > 5)
    frame.to_csv(tmp_path / "x.csv", index=False, sep=";", decimal=",")
    frame.to_parquet(tmp_path / "x.parquet")
    for path in (tmp_path / "x.csv", tmp_path / "x.parquet"):
        values = files.read(str(path), data_of(path).columns, ROWS)
        np.testing.assert_array_equal(values[:, 3], FRAME["b"] > 5)


def twice(path: Path) -> None:
    FRAME.to_csv(path)
    pd.read_csv(path).to_csv(path)  # 'Unnamed: 0' after ''


NUMBERED: dict[str, tuple[str, Callable[[Path], Any], list[str]]] = {
    "an index": ("x.csv", lambda at: FRAME.to_csv(at), [""]),
    "read and written again": ("x.csv", twice, ["", "Unnamed: 0"]),
    "a name": ("x.csv", lambda at: FRAME.to_csv(at, index_label="id"), ["id"]),
    "from one": (
        "x.tsv",
        lambda at: FRAME.set_index(np.arange(1, ROWS + 1)).to_csv(at, sep="\t", index_label="id"),
        ["id"],
    ),
    "of parquet": (
        "x.parquet",
        lambda at: FRAME.set_index(np.arange(ROWS) ** 2).to_parquet(at),
        ["__index_level_0__"],
    ),
    "of an array": ("x.npy", lambda at: np.save(at, np.c_[np.arange(ROWS), FRAME]), ["0"]),
}


@pytest.mark.parametrize("kind", NUMBERED)
def test_columns_that_number_the_rows_are_left_out_unless_they_are_asked_for(kind: str, tmp_path: Path) -> None:
    name, write, left_out = NUMBERED[kind]
    path = tmp_path / name
    write(path)
    data = data_of(path)
    np.testing.assert_allclose(files.read(str(path), data.columns, ROWS), FRAME.to_numpy(), rtol=1e-15)
    assert f"left out: {', '.join(map(repr, left_out))}" in files.understood(data)[0]
    asked = [*left_out, *data.columns]
    assert data_of(path, columns=asked).columns == tuple(asked)


def test_whole_numbers_that_do_not_count_the_rows_stay(tmp_path: Path) -> None:
    for values in (np.arange(ROWS)[::-1], np.arange(ROWS) * 2, np.r_[np.arange(ROWS - 1), 0], np.arange(ROWS) + 0.5):
        np.save(tmp_path / "x.npy", np.c_[values, FRAME])
        assert data_of(tmp_path / "x.npy").columns == ("0", "1", "2", "3")


def test_sources_far_from_zero_have_the_mcc_of_centred_ones(tmp_path: Path) -> None:
    s = torch.rand(ROWS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    x, found = np.c_[s[:, 0] + 0.3 * s[:, 1], s[:, 1] - 0.2 * s[:, 0] ** 2], []
    for scale, offset in ((1.0, 0.0), (1.0, 2_460_000.0), (1e-30, 0.0), (1e12, -3e15)):
        config = run_config({"data": files.written(tmp_path, x, s * scale + offset), **QUICK})
        session = Session.start([config], torch.device("cpu"))
        values = session.evaluate("val", session.state.weights, session.state.active)
        found.append([float(values[f"val/{name}"][0]) for name in ("mcc", "mcc_linear_ica", "r2_linear")])
        world = imavae.world(config)  # the sources in their own units
        expected = world.observations[:, 1] + 0.2 * ((world.sources[:, 0] - offset) / scale) ** 2
        np.testing.assert_allclose((world.sources[:, 1] - offset) / scale, expected, atol=1e-4)
    np.testing.assert_allclose(found, [found[0]] * 4, atol=1e-5)
    assert min(found[0]) > 0.1


BLANKS = {".npy": np.nan, ".csv": None, ".parquet": np.nan}


@pytest.mark.parametrize("ending", BLANKS)
def test_a_missing_label_is_no_segment(ending: str, tmp_path: Path) -> None:
    labels, path = np.repeat([1.0, 2.0, np.nan], ROWS // 3), tmp_path / f"x{ending}"
    frame = FRAME.assign(u=labels)
    match ending:
        case ".npy":
            np.save(path, frame)
        case ".csv":
            frame.to_csv(path, index=False)
        case _:
            frame.to_parquet(path)
    with pytest.raises(UserError, match=r"labels every row.*row 601 of column"):
        data_of(path, segment_column="3" if ending == ".npy" else "u")


def test_continuous_labels_are_refused_or_binned(tmp_path: Path) -> None:
    age = np.random.default_rng(0).permutation(np.linspace(18, 90, ROWS))
    days = pd.to_datetime("2020-01-01") + pd.to_timedelta(np.arange(ROWS), "D")
    frame, path = FRAME.assign(age=age, day=days, name=[f"n{k}" for k in range(ROWS)]), tmp_path / "x.csv"
    frame.to_csv(path, index=False, sep=";", decimal=",")
    frame.to_parquet(tmp_path / "x.parquet")
    used: dict[str, Any] = {"columns": ["a", "b", "ç"]}
    for file in (path, tmp_path / "x.parquet"):
        with pytest.raises(UserError, match=r"900 labels of 900 rows in column 'age'.*set data\.segment_bins=5"):
            data_of(file, segment_column="age", **used)
        for column, values in (("age", age), ("day", np.arange(ROWS))):
            data = data_of(file, segment_column=column, segment_bins=4, **used)
            assert data.n_segments == 4
            found = files.labels(str(file), column, ROWS, bins=4)
            np.testing.assert_array_equal(found, pd.qcut(values, 4, labels=False))
        with pytest.raises(UserError, match=r"numbers or dates.*others in column 'name'"):
            data_of(file, segment_column="name", segment_bins=4, **used)
    made = dataset.make(data_of(path, segment_column="age", segment_bins=3, **used), (1,), torch.float64)
    assert made.val.segments is not None
    assert sorted(set(made.val.segments[0].tolist())) == [0, 1, 2]
    with pytest.raises(UserError, match=r"segment_bins is null without data\.segment_column"):
        data_of(path, segment_bins=3, **used)


def test_a_label_of_one_value_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.c_[FRAME, np.ones(ROWS)])
    with pytest.raises(UserError, match=r"two labels or more.*one in column '3'.*leave data\.segment_column out"):
        data_of(tmp_path / "x.npy", segment_column="3")


def test_an_array_with_one_axis_is_told_a_remedy_that_works(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FRAME["a"])
    with pytest.raises(UserError, match=r"two axes.*\(900,\).*\[:, None\]"):
        data_of(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", FRAME["a"].to_numpy()[:, None])
    assert data_of(tmp_path / "x.npy").columns == ("0",)


def model_of(path: Path, tmp_path: Path) -> tuple[RunConfig, str]:
    run = imavae.train(data=file_data(path), output_dir=str(tmp_path / "out"), **QUICK)
    return run.config, str(run.folder)


@pytest.mark.parametrize("change", ["order", "value", "more"])
def test_a_model_knows_the_rows_that_it_was_trained_on(change: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    FRAME.to_parquet(path)
    config, folder = model_of(path, tmp_path)
    evaluate_checkpoint(EvaluateConfig(checkpoint=folder))
    FRAME.assign(unused=1.5).to_parquet(path, compression="gzip")  # the same rows, written in another way
    evaluate_checkpoint(EvaluateConfig(checkpoint=folder))
    changed = {
        "order": FRAME.sort_values("a"),
        "value": FRAME.replace({"b": {FRAME["b"][17]: 5.5}}),
        "more": pd.concat([FRAME[:10] + 0.1, FRAME]),
    }
    changed[change].to_parquet(path)
    for use in (
        lambda: evaluate_checkpoint(EvaluateConfig(checkpoint=folder)),
        lambda: imavae.world(config),
        lambda: imavae.train(config, name="again"),
    ):
        with pytest.raises(UserError, match=r"those of data\.fingerprint.*others in .*x\.parquet"):
            use()


def test_sources_that_were_exchanged_behind_an_equal_time_and_size_are_read_again(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FRAME)
    values = []
    for seed in (1, 2):
        np.save(tmp_path / "s.npy", normal(ROWS, 2, seed=seed))
        os.utime(tmp_path / "s.npy", ns=(1, 1))
        data = data_of(tmp_path / "x.npy", sources_path=str(tmp_path / "s.npy"), dim=2)
        values.append(dataset.make(data, (1,), torch.float32).test.sources)
    assert not torch.equal(*values)


def test_a_value_far_from_the_others_is_told_with_its_place(tmp_path: Path) -> None:
    x = FRAME.to_numpy().copy()
    x[17, 1] = 300.0
    np.save(tmp_path / "x.npy", x)
    _, warning = files.understood(data_of(tmp_path / "x.npy"))
    assert "300 in column '1', row 18" in warning
    x[17, 1] = 1e30
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(UserError, match=r"1,000,000 standard deviations.*1e\+30 in column '1', row 18"):
        data_of(tmp_path / "x.npy")
    assert data_of(tmp_path / "x.npy", columns=["0", "2"]).features == 2


def test_skewed_and_rare_values_are_not_far(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = [rng.lognormal(size=ROWS), rng.standard_t(2, ROWS), rng.random(ROWS) < 0.02, rng.integers(9, size=ROWS)]
    np.save(tmp_path / "x.npy", np.stack(columns, 1))
    assert len(files.understood(data_of(tmp_path / "x.npy"))) == 1


def test_a_run_in_which_all_members_diverge_is_an_error_with_its_likely_cause(tmp_path: Path) -> None:
    huge = {"standardise": False}
    with pytest.raises(
        imavae.UserError, match=r"all 1 of .* diverged; lower .*, or set data\.standardise=true"
    ) as error:
        imavae.train(FRAME.to_numpy() * 1e25, data=huge, output_dir=str(tmp_path), **QUICK)
    assert "diverged" in set(error.value.results.members["status"])  # type: ignore[attr-defined]
    assert "all 1 members diverged" in next(tmp_path.glob("runs/*/report.html")).read_text()


def test_a_compressed_file_that_is_damaged_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"can be read.*x\.csv\.gz"):
        data_of(path)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match=r"x\.csv\.gz"):
        data_of(path)


@pytest.mark.parametrize(
    ("ending", "separator", "columns"), [("tsv", "\t", 3000), ("csv", ";", 3000), ("csv", ",", 20_000)]
)
def test_a_table_of_many_columns_and_few_rows_has_all_of_them(
    ending: str, separator: str, columns: int, tmp_path: Path
) -> None:
    rng, path = np.random.default_rng(0), tmp_path / f"x.{ending}"
    frame = pd.DataFrame(rng.normal(size=(40, columns)), columns=[f"gene number {i}" for i in range(columns)])
    frame.to_csv(path, sep=separator, index=False)
    assert len(files.open_table(path).numeric) == columns


def test_sources_whose_rows_pandas_has_numbered_are_the_sources(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "x.csv", index=False)
    sources = FRAME[["a", "b", "ç"]]
    sources.to_csv(tmp_path / "s.csv")
    data = data_of(tmp_path / "x.csv", sources_path=str(tmp_path / "s.csv"))
    sources.to_csv(tmp_path / "plain.csv", index=False)
    plain = data_of(tmp_path / "x.csv", sources_path=str(tmp_path / "plain.csv"))
    numbered, expected = (dataset.make(of, (1,), torch.float64, "cpu").val.sources for of in (data, plain))
    assert torch.equal(numbered, expected)


def test_a_column_that_counts_stays_where_it_was_given_in_memory(tmp_path: Path) -> None:
    x = normal(ROWS, 3).numpy().astype(np.float64)
    x[:, 0] = np.arange(ROWS)
    settings = files.written(tmp_path, x)
    data = run_config({"data": settings}).data
    assert isinstance(data, FileData)
    assert len(data.columns) == 3


@pytest.mark.parametrize("label", ["NA", "null", "None", "<NA>"])
def test_a_label_that_means_nothing_is_missing(label: str, tmp_path: Path) -> None:
    FRAME.assign(group=[label, *["a", "b"] * ((ROWS - 1) // 2), "a"][:ROWS]).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(UserError, match="no label in row 1"):
        data_of(tmp_path / "x.csv", segment_column="group")


def test_separators_of_thousands_are_not_read_as_fractions(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a;b\n" + "1,100;2,250\n" * ROWS)
    with pytest.raises(UserError, match="a thousand or a fraction"):
        data_of(path)
    path.write_text("a;b\n" + "1,100;0,250\n" * ROWS)
    assert files.read(str(path), None, 1).tolist() == [[1.1, 0.25]]
