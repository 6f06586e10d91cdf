"""A person's own file of numbers (.npy, .csv or .parquet), read in blocks: no file has to fit into memory.

Columns have names: those in the first line of a .csv, or in a .parquet; those of an .npy, an array with two axes, are
called 0, 1, 2, ... Blocks are (column, row) in float64. What can't be used is refused by file, column and row (the
first is 1). Nothing here imports torch or pandas: settings are completed and checked before the slow imports.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, csv, parquet

from imavae.errors import UserError, require, require_choice

Floats = NDArray[np.float64]
Stamp = tuple[int, int]

ENDINGS = (".npy", ".csv", ".parquet")
BLOCK = 65_536  # rows of a block, at the most
NUMBERS = 4 << 20  # in it, at the most: a row may be an image
CSV_BYTES = 4 << 20  # of a block of text


@dataclass(frozen=True)
class Table:
    """What is known of a file before its rows are read."""

    path: Path
    key: str  # the setting that names it
    numeric: dict[str, bool]  # by column; those of a .csv as its first block has them
    rows: int | None  # None: a .csv tells when it has been read


def open_table(path: str | Path, key: str = "data.path") -> Table:
    """Look at a file's columns.

    Raises:
        UserError: the file is missing, of another kind, damaged or empty, or two of its columns have one name.
    """
    path = Path(path)
    require_choice(path.suffix, ENDINGS, f"the ending of {key}")
    require(path.is_file(), f"{key} is a file", path, "correct the path")
    if path.stat().st_size == 0:
        raise _empty(path, key)
    rows: int | None = None
    with _readable(path, key):
        match path.suffix:
            case ".npy":
                names, numeric, rows = _npy_columns(np.load(path, mmap_mode="r"), path, key)
            case ".csv":
                reader = _csv_reader(path, None)
                schema = reader.schema
                rows = sum(batch.num_rows for batch in reader) if set(schema.types) == {pa.null()} else None
                names, numeric = schema.names, [_is_numeric(kind) for kind in schema.types]
            case _:
                file = parquet.ParquetFile(path)
                schema, rows = file.schema_arrow, file.metadata.num_rows
                names, numeric = schema.names, [_is_numeric(kind) for kind in schema.types]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, f"the columns of {key} have names of their own", f"{twice} twice in {path}", "rename one")
    headless = path.suffix == ".csv" and bool(names) and all(_is_number(name) for name in names)
    remedy = "put a line of names above it"
    require(not headless, f"the first line of {key} names its columns", f"{list(names)} in {path}", remedy)
    if rows == 0 or not names:
        raise _empty(path, key)
    return Table(path, key, dict(zip(names, numeric, strict=True)), rows)


def pick(table: Table, columns: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the columns that are asked for (None: all), all of them there, numeric and named once.

    Raises:
        UserError: by the file and the column, where one is not.
    """
    asked = tuple(table.numeric if columns is None else columns)
    where, setting = f"{table.key}={table.path}", table.key.replace("path", "columns")
    for name in asked:
        require_choice(name, table.numeric, f"a column of {where}")
        require(
            table.numeric[name],
            f"the columns of {where} are numbers",
            f"column {name!r}, which holds something else",
            f"leave it out: name the others in {setting}=[...]",
        )
    require(len(set(asked)) == len(asked), f"a column of {where} is taken once", list(asked), "drop the copy")
    return asked


def blocks(table: Table, columns: Sequence[str], most: int | None = None) -> Iterator[Floats]:
    """The rows (the first ``most`` of them) of some columns, (column, row), block by block.

    Raises:
        UserError: at a value that is missing, infinite or no number, by its file, column and row.
    """
    first = 0
    with _readable(table.path, table.key, list(table.numeric)):
        for raw in _raw_blocks(table, columns):
            block = raw if most is None else raw[:, : most - first]
            if not np.isfinite(block).all():
                column, row = np.argwhere(~np.isfinite(block))[0]
                value = block[column, row]
                raise UserError(
                    f"`the columns of {table.key} are finite numbers` must hold, but {table.path} has "
                    f"{'no value (nan)' if np.isnan(value) else value} in column {columns[column]!r}, row "
                    f"{first + row + 1}; drop or fill such rows, or leave the column out"
                )
            first += block.shape[1]
            if block.shape[1]:
                yield block
            if most is not None and first >= most:
                return


def read(path: str, columns: Sequence[str] | None, rows: int, key: str = "data.path") -> Floats:
    """The first rows of some columns, (row, column). Raises UserError as :func:`blocks` does, or for too few rows."""
    table = open_table(path, key)
    columns = pick(table, columns)
    values, first = np.empty((rows, len(columns))), 0
    for block in blocks(table, columns, rows):
        values[first : first + block.shape[1]] = block.T
        first += block.shape[1]
    require(
        first == rows,
        f"{key} has {rows} rows",
        f"{first} in {path}",
        "it has changed since: put the old file back, or start anew",
    )
    return values


def labels(path: str, column: str, rows: int | None = None) -> NDArray[np.int64]:
    """The first rows of a column of labels, of any type, as their places in the sorted list of all that occur there.

    Raises:
        UserError: there is no such column, or a label is missing.
    """
    table = open_table(path)
    require_choice(column, table.numeric, f"data.segment_column (of {path})")
    with _readable(table.path, table.key):
        match table.path.suffix:
            case ".npy":
                array: Any = pa.array(np.load(path, mmap_mode="r")[:, int(column)])
            case ".csv":
                array = _csv_reader(table.path, {column: pa.string()}).read_all().column(0)
            case _:
                array = parquet.read_table(path, columns=[column]).column(0)
    values = pa.chunked_array(array).combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    values = values.slice(0, rows)
    blank = compute.equal(values.cast(pa.string()), "").fill_null(True).to_numpy(zero_copy_only=False)
    if blank.any():
        row = int(np.argmax(blank)) + 1
        raise UserError(
            f"`data.segment_column labels every row` must hold, but {path} has no label in column {column!r}, row "
            f"{row}; drop or fill such rows"
        )
    encoded = values.dictionary_encode()
    place = np.argsort(np.argsort(np.array(encoded.dictionary.to_pylist())))
    return np.asarray(place[encoded.indices.to_numpy()], dtype=np.int64)


def resolved(data: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of file settings with what it leaves open read from the file: columns, n_obs, dim and n_segments.

    Paths become absolute, since a worker's current directory is another.

    Raises:
        UserError: the file, or that of the sources, can't be used.
    """
    filled = dict(data)
    for key in ("path", "sources_path"):
        if isinstance(filled.get(key), str):
            filled[key] = str(Path(filled[key]).resolve())
    columns, label, limit = filled.get("columns"), filled.get("segment_column"), filled.get("n_obs")
    if not (columns is None or isinstance(columns, (list, tuple))) or not (label is None or isinstance(label, str)):
        return filled  # of the wrong type: the tree says so
    table = open_table(filled["path"])
    if label is not None:
        require_choice(label, table.numeric, f"data.segment_column (of {table.path})")
        rule, remedy = "data.segment_column is none of data.columns", "labels are no observations: leave it out"
        require(label not in (columns or ()), rule, f"{label} of {table.path}", remedy)
    names = pick(table, [name for name in table.numeric if name != label] if columns is None else columns)
    limit = limit if isinstance(limit, int) else None
    rows = _survey(table.path, table.key, names, limit, stamp(table.path))
    require(
        limit is None or limit == rows,
        "data.n_obs <= the rows of data.path",
        f"{limit} of {rows} in {table.path}",
        "say data.n_obs=null for all",
    )
    filled |= {"columns": list(names), "n_obs": rows}
    if filled.get("dim") is None:
        filled["dim"] = len(names)
    if filled.get("n_segments") is None:
        filled["n_segments"] = 1 if label is None else int(labels(filled["path"], label, rows).max()) + 1
    if isinstance(filled.get("sources_path"), str):
        _check_sources(filled["sources_path"], rows, limit is not None, filled["dim"])
    return filled


def stamp(path: str | Path | None) -> Stamp:
    """What changes when a file does."""
    if path is None or not Path(path).is_file():
        return 0, 0
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size


def _check_sources(path: str, rows: int, at_least: bool, dim: Any) -> None:
    table = open_table(path, "data.sources_path")
    names = pick(table, None)
    remedy = "give one column for each latent, or set data.dim"
    require(len(names) == dim, "data.sources_path has data.dim columns", f"{len(names)} in {path}", remedy)
    found = _survey(table.path, table.key, names, rows if at_least else None, stamp(path))
    remedy = "row n holds the sources of observation n: give as many rows"
    require(found == rows, "data.sources_path has as many rows as data.path", f"{found} in {path} and {rows}", remedy)


@functools.lru_cache(maxsize=8)  # a study checks every point
def _survey(
    path: Path,
    key: str,
    columns: tuple[str, ...],
    most: int | None,
    stamp: Stamp,  # noqa: ARG001  -- it tells a file that has changed since
) -> int:
    """The number of rows, once all of them have been read. Raises UserError as :func:`blocks`, or for a constant."""
    low, high, rows = np.full(len(columns), np.inf), np.full(len(columns), -np.inf), 0
    for block in blocks(open_table(path, key), columns, most):
        low, high = np.minimum(low, block.min(1)), np.maximum(high, block.max(1))
        rows += block.shape[1]
    if rows == 0:
        raise _empty(path, key)
    require(
        rows > 1,
        f"{key} has more than one row",
        f"one in {path}",
        "a single observation has no distribution: take a longer file",
    )
    constant = [name for name, same in zip(columns, low == high, strict=True) if same]
    remedy = "it tells nothing: leave it out of the columns"
    require(not constant, f"the columns of {key} vary", f"column {', '.join(constant)} of {path}", remedy)
    return rows


def _raw_blocks(table: Table, columns: Sequence[str]) -> Iterator[Floats]:
    size = min(BLOCK, max(1, NUMBERS // len(columns)))
    match table.path.suffix:
        case ".npy":
            array, at = np.load(table.path, mmap_mode="r"), [int(name) for name in columns]
            for start in range(0, len(array), size):
                yield np.ascontiguousarray(array[start : start + size, at].T, dtype=np.float64)
        case ".csv":
            for batch in _csv_reader(table.path, dict.fromkeys(columns, pa.float64())):
                yield _stacked(batch, columns)
        case _:
            file = parquet.ParquetFile(table.path)
            for batch in file.iter_batches(size, columns=list(columns), use_threads=False):
                yield _stacked(batch, columns)


def _stacked(batch: Any, columns: Sequence[str]) -> Floats:
    block = np.empty((len(columns), batch.num_rows))
    for row, name in zip(block, columns, strict=True):
        row[:] = batch.column(name).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)  # null: NaN
    return block


def _csv_reader(path: Path, types: dict[str, Any] | None) -> Any:
    """All columns with the types that the first block suggests, or some with given ones, whatever comes later."""
    chosen = csv.ConvertOptions(column_types=types, include_columns=list(types)) if types else csv.ConvertOptions()
    # One thread: only then an error names its line.
    return csv.open_csv(path, csv.ReadOptions(use_threads=False, block_size=CSV_BYTES), convert_options=chosen)


def _npy_columns(array: Any, path: Path, key: str) -> tuple[list[str], list[bool], int]:
    shape: tuple[int, ...] = getattr(array, "shape", ())
    require(len(shape) == 2, f"{key} is an array with two axes, (row, column)", f"{shape} in {path}", "reshape it")
    return [str(k) for k in range(shape[1])], [array.dtype.kind in "biuf"] * shape[1], shape[0]


def _is_numeric(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _empty(path: Path, key: str) -> UserError:
    return UserError(f"`{key} has rows` must hold, but {path} is empty; write it to its end, or name another")


@contextmanager
def _readable(path: Path, key: str, columns: Sequence[str] = ()) -> Iterator[None]:
    """Raise UserError instead of what the readers raise for a damaged file, or text in a column of numbers."""
    try:
        yield
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        text = path.suffix == ".npy" and isinstance(error, ValueError)  # numpy advises to load whatever it is
        reason = "it holds no array of numbers" if text else " ".join(str(error).split())
        for place, name in enumerate(columns):
            reason = reason.replace(f"In CSV column #{place}:", f"in column {name!r}:")
        raise UserError(f"`{key} can be read` must hold, but {path} can't ({reason}); correct the file") from None
