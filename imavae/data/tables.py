"""A user's file of numbers (.npy, .csv or .parquet), read in blocks: no file has to fit into memory.

Columns have names: those in the first line of a .csv, or in a .parquet; the columns of an .npy, an array (row, column),
are called 0, 1, 2, ... Blocks are (column, row) in float64. Messages name the file, the column and the row (the first
is 1). This module imports neither torch nor pandas: files are checked before the slow imports.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, csv, parquet

from imavae.config.data import READERS, Reader
from imavae.errors import UserError, require, require_choice

Floats = NDArray[np.float64]
Stamp = tuple[int, int]

ENDINGS = (".npy", ".csv", ".parquet")
BLOCK_ROWS = 65_536  # rows of a block, at most
BLOCK_NUMBERS = 4 << 20  # numbers of a block, at most: a row may be an image
CSV_BYTES = 4 << 20  # text of a block


@dataclass(frozen=True)
class Table:
    """Columns of a file, known before its rows are read."""

    path: Path
    key: str  # setting that names the file
    numeric: dict[str, bool]  # by column; judged by the first block of a .csv
    rows: int | None  # None for a .csv


def open_table(path: str | Path, key: str = "data.path") -> Table:
    """Read the names and types of a file's columns. Raises UserError for a file or names that can't be used."""
    path = Path(path)
    require_choice(path.suffix, ENDINGS, f"the ending of {key}")
    require(path.is_file(), f"{key} is a file", path, "correct the path")
    with _readable(path, key):
        schema, rows = pa.schema([]), None
        if path.stat().st_size == 0:
            rows = 0
        elif path.suffix == ".npy":
            array = np.load(path, mmap_mode="r")
            shape: tuple[int, ...] = getattr(array, "shape", ())
            rule = f"{key} is an array with two axes, (row, column)"
            require(len(shape) == 2, rule, f"{shape} in {path}", "reshape it")
            kind = pa.float64() if array.dtype.kind in "biuf" else pa.null()
            schema, rows = pa.schema([(str(k), kind) for k in range(shape[1])]), shape[0]
        elif path.suffix == ".csv":
            reader = _csv_reader(path, None)
            schema = reader.schema
            rows = sum(batch.num_rows for batch in reader) if set(schema.types) == {pa.null()} else None
            rule, remedy = f"the first line of {key} names its columns", "put a line of names above it"
            with suppress(ValueError):  # from a name that is no number
                require(not [float(name) for name in schema.names], rule, f"{schema.names} in {path}", remedy)
        else:
            file = parquet.ParquetFile(path)
            schema, rows = file.schema_arrow, file.metadata.num_rows
    empty = rows == 0 or not schema.names
    require(not empty, f"{key} has rows", f"{path}, which is empty", "complete it, or name another file")
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    require(not twice, f"the columns of {key} have different names", f"{twice} twice in {path}", "rename one")
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return Table(path, key, {field.name: any(holds(field.type) for holds in numeric) for field in schema}, rows)


def pick(table: Table, columns: Sequence[str] | None) -> tuple[str, ...]:
    """The names of some columns (None: all). Raises UserError unless they exist, are numeric and are named once."""
    asked = tuple(table.numeric if columns is None else columns)
    where, setting = f"{table.key}={table.path}", table.key.replace("path", "columns")
    for name in asked:
        require_choice(name, table.numeric, f"a column of {where}")
        got, remedy = f"column {name!r}, which holds something else", f"leave it out: set {setting}=[...]"
        require(table.numeric[name], f"the columns of {where} are numbers", got, remedy)
    require(len(set(asked)) == len(asked), f"a column of {where} is taken once", list(asked), "drop the copy")
    return asked


def blocks(table: Table, columns: Sequence[str], most: int | None = None) -> Iterator[Floats]:
    """The rows (the first ``most`` of them) of some columns, (column, row), block by block.

    Raises UserError for a value that is missing, infinite or not a number.
    """
    first = 0
    with _readable(table.path, table.key, list(table.numeric)):
        for raw in _raw_blocks(table, columns):
            block = raw if most is None else raw[:, : most - first]
            if not np.isfinite(block).all():
                column, row = np.argwhere(~np.isfinite(block))[0]
                value = "no value (nan)" if np.isnan(block[column, row]) else block[column, row]
                place = f"{table.path} has {value} in column {columns[column]!r}, row {first + row + 1}"
                remedy = "drop or fill such rows, or leave the column out"
                raise UserError(f"`the columns of {table.key} are finite numbers` must hold, but {place}; {remedy}")
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
    remedy = "it has changed since: put the old file back, or start a new run"
    require(first == rows, f"{key} has {rows} rows", f"{first} in {path}", remedy)
    return values


def labels(path: str, column: str, rows: int | None = None) -> NDArray[np.int64]:
    """The first rows of a column of labels of any type, as positions in the sorted list of all labels.

    Raises UserError if there is no such column, or a label is missing.
    """
    table = open_table(path)
    require_choice(column, table.numeric, f"data.segment_column (of {path})")
    with _readable(table.path, table.key):
        if table.path.suffix == ".npy":
            read: Any = pa.chunked_array([np.load(path, mmap_mode="r")[:, int(column)]])
        elif table.path.suffix == ".csv":
            read = _csv_reader(table.path, {column: pa.string()}).read_all().column(0)
        else:
            read = parquet.read_table(path, columns=[column]).column(0)
    values = read.combine_chunks().slice(0, rows)
    blank = compute.equal(values.cast(pa.string()), "").fill_null(True).to_numpy(zero_copy_only=False)
    got = f"no label in row {int(np.argmax(blank)) + 1} of column {column!r} of {path}"
    require(not blank.any(), "data.segment_column labels every row", got, "drop or fill such rows")
    encoded = values.dictionary_encode()
    position = np.argsort(np.argsort(np.array(encoded.dictionary.to_pylist())))
    return np.asarray(position[encoded.indices.to_numpy()], dtype=np.int64)


def resolved(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file with columns, n_obs, dim and n_segments read from the file where they are null.

    Paths become absolute, since a worker has another current directory. Raises UserError for a file that can't be used.
    """
    filled = dict(data)
    for key in ("path", "sources_path"):
        if isinstance(filled.get(key), str):
            filled[key] = str(Path(filled[key]).resolve())
    columns, label, limit = filled.get("columns"), filled.get("segment_column"), filled.get("n_obs")
    if not (columns is None or isinstance(columns, (list, tuple))) or not (label is None or isinstance(label, str)):
        return filled  # of the wrong type: the settings' own check says so
    table = open_table(filled["path"])
    if label is not None:
        require_choice(label, table.numeric, f"data.segment_column (of {table.path})")
        rule, remedy = "data.segment_column is none of data.columns", "labels are no observations: leave it out"
        require(label not in (columns or ()), rule, f"{label} of {table.path}", remedy)
    names = pick(table, [name for name in table.numeric if name != label] if columns is None else columns)
    limit = limit if isinstance(limit, int) else None
    rows = _survey(table.path, table.key, names, limit, stamp(table.path))
    got = f"{limit} of {rows} in {table.path}"
    require(limit in (None, rows), "data.n_obs <= the rows of data.path", got, "set data.n_obs=null for all")
    filled |= {"columns": list(names), "n_obs": rows}
    if filled.get("dim") is None:
        filled["dim"] = len(names)
    if filled.get("n_segments") is None:
        filled["n_segments"] = 1 if label is None else int(labels(filled["path"], label, rows).max()) + 1
    if isinstance(filled.get("sources_path"), str):
        sources = open_table(filled["sources_path"], "data.sources_path")
        names, got = pick(sources, None), f"{len(sources.numeric)} in {sources.path}"
        remedy = "give one column for each latent, or set data.dim"
        require(len(names) == filled["dim"], "data.sources_path has data.dim columns", got, remedy)
        found = _survey(sources.path, sources.key, names, limit and rows, stamp(sources.path))
        rule, got = "data.sources_path has as many rows as data.path", f"{found} in {sources.path} and {rows}"
        require(found == rows, rule, got, "row n holds the sources of observation n: give as many rows")
    return filled


READERS.register(Reader("file", resolved))


def stamp(path: str | Path) -> Stamp:
    """Time of modification and size of a file, which differ once it has changed; zeros if it is missing."""
    file = Path(path)
    return (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)


@functools.lru_cache(maxsize=8)  # a study checks every point
def _survey(path: Path, key: str, columns: tuple[str, ...], most: int | None, stamp: Stamp) -> int:  # noqa: ARG001
    """The number of rows, after reading all of them. Raises UserError as :func:`blocks`, or for a constant column."""
    low, high, rows = np.full(len(columns), np.inf), np.full(len(columns), -np.inf), 0
    for block in blocks(open_table(path, key), columns, most):
        low, high = np.minimum(low, block.min(1)), np.maximum(high, block.max(1))
        rows += block.shape[1]
    remedy = "a single observation has no distribution: take a longer file"
    require(rows > 1, f"{key} has more than one row", f"{'one' if rows else 'none'} in {path}", remedy)
    constant = [name for name, same in zip(columns, low == high, strict=True) if same]
    got, remedy = f"column {', '.join(constant)} of {path}", "leave it out of the columns"
    require(not constant, f"the columns of {key} vary", got, remedy)
    return rows


def _raw_blocks(table: Table, columns: Sequence[str]) -> Iterator[Floats]:
    size = min(BLOCK_ROWS, max(1, BLOCK_NUMBERS // len(columns)))
    if table.path.suffix == ".npy":
        array, at = np.load(table.path, mmap_mode="r"), [int(name) for name in columns]
        for start in range(0, len(array), size):
            yield np.ascontiguousarray(array[start : start + size, at].T, dtype=np.float64)
        return
    if table.path.suffix == ".csv":
        batches = _csv_reader(table.path, dict.fromkeys(columns, pa.float64()))
    else:
        batches = parquet.ParquetFile(table.path).iter_batches(size, columns=list(columns), use_threads=False)
    for batch in batches:
        block = np.empty((len(columns), batch.num_rows))
        for row, name in zip(block, columns, strict=True):
            row[:] = batch.column(name).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)  # null: NaN
        yield block


def _csv_reader(path: Path, types: dict[str, Any] | None) -> Any:
    """Some columns with given types; None: all columns, with the types that the first block suggests."""
    chosen = csv.ConvertOptions(column_types=types, include_columns=list(types)) if types else csv.ConvertOptions()
    # One thread: only then an error names its line.
    return csv.open_csv(path, csv.ReadOptions(use_threads=False, block_size=CSV_BYTES), convert_options=chosen)


@contextmanager
def _readable(path: Path, key: str, columns: Sequence[str] = ()) -> Iterator[None]:
    """Raise UserError instead of the readers' errors about a damaged file, or text in a column of numbers."""
    try:
        yield
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        other = path.suffix == ".npy" and isinstance(error, ValueError)  # numpy advises to load pickled objects
        reason = "it holds no array of numbers" if other else " ".join(str(error).split())
        for number, name in enumerate(columns):
            reason = reason.replace(f"In CSV column #{number}:", f"in column {name!r}:")
        raise UserError(f"`{key} can be read` must hold, but {path} can't ({reason}); correct the file") from None
