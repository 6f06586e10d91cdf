"""A user's file of numbers (.npy, .csv or .parquet), read in blocks: no file has to fit into memory.

Columns have names: those in the first line of a .csv, or in a .parquet; the columns of an .npy, an array (row, column),
are called 0, 1, 2, ... Blocks are (column, row) in float64. Messages name the file, the column and the row (the first
is 1). This module imports neither torch nor pandas: files are checked before the slow imports.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, csv, parquet

from imavae.config.data import READERS, Reader
from imavae.data.storage import written_whole
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


def labels(path: str, column: str, rows: int | None = None, key: str = "data.segment_column") -> NDArray[np.int64]:
    """The first rows of a column of labels of any type, as positions in the sorted list of all labels.

    Raises UserError if there is no such column, or a label is missing.
    """
    table = open_table(path)
    require_choice(column, table.numeric, f"{key} (of {path})")
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
    require(not blank.any(), f"{key} labels every row", got, "drop or fill such rows")
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
    labelled = {key: filled[key] for key in ("segment_column", "group_column") if isinstance(filled.get(key), str)}
    typed = all(name is None or isinstance(name, str) for name in (label, filled.get("group_column")))
    if not typed or not isinstance(columns, (list, tuple, NoneType)):
        return filled  # of the wrong type: the settings' own check says so
    table = open_table(filled["path"])
    for key, column in labelled.items():
        require_choice(column, table.numeric, f"data.{key} (of {table.path})")
        rule, remedy = f"data.{key} is none of data.columns", "labels are no observations: leave it out"
        require(column not in (columns or ()), rule, f"{column} of {table.path}", remedy)
    free = [name for name in table.numeric if name not in labelled.values()]
    names = pick(table, free if columns is None else columns)
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


def written(
    folder: Path, x: Any, sources: Any = None, segments: Any = None, groups: Any = None, name: str = "x"
) -> dict[str, Any]:
    """Write observations in memory, and their labels, to a file of a folder; return the settings that read it.

    The file is named after its content, so equal observations are written once and a resumed run finds them. Labels are
    (n,), or the name of a column of ``x``. Raises UserError for observations that are no table of numbers.
    """
    table = arrow_of(x, name)
    settings: dict[str, Any] = {"kind": "file"}
    for key, labels in (("segment", segments), ("group", groups)):
        if labels is None:
            continue
        column = labels
        if not isinstance(labels, str):
            column = next(label for label in (key, f"{key} label", f"_{key}") if label not in table.column_names)
            values = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
            rule, got = f"{key}s has a label for each row of {name}", f"shape {values.shape} for {table.num_rows} rows"
            require(values.shape == (table.num_rows,), rule, got, "give one label for each observation")
            table = table.append_column(column, pa.array(values, from_pandas=True))
        settings[f"{key}_column"] = column
    buffer = pa.BufferOutputStream()
    parquet.write_table(table.replace_schema_metadata(None), buffer)
    content = buffer.getvalue()
    path = folder.resolve() / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(content)
    if sources is not None:
        settings["sources_path"] = written(folder, sources, name="sources")["path"]
    return settings | {"path": str(path)}


def arrow_of(x: Any, name: str = "x") -> pa.Table:
    """A frame (pandas, polars, Arrow) or an array with its columns named 0, 1, ... as a table of Arrow.

    Raises UserError as :func:`numbers` does, or for a column of several types.
    """
    if not hasattr(x, "__arrow_c_stream__"):
        values = numbers(x, name)
        rule, remedy = f"{name} has the shape (n, d)", "reshape it: a row is an observation"
        require(values.ndim == 2, rule, f"shape {values.shape}", remedy)
        return pa.table({str(column): values[:, column] for column in range(values.shape[1])})
    try:
        return pa.Table.from_pandas(x, preserve_index=False) if hasattr(x, "iloc") else pa.table(x)
    except (ValueError, TypeError, pa.ArrowException) as error:
        reason = "; ".join(map(str, error.args))
        raise UserError(f"`{name} is a table` must hold, but {reason}; give each column one name and type") from None


def numbers(x: Any, name: str = "x") -> NDArray[Any]:
    """An array, a tensor, nested lists or a torch Dataset as an array of numbers; the first of a Dataset's tuples.

    Text is parsed. Raises UserError for anything else.
    """
    if hasattr(x, "__getitem__") and not hasattr(x, "__array__") and not isinstance(x, (list, tuple)):
        items = [x[row] for row in range(len(x))] if hasattr(x, "__len__") else list(x)
        x = np.stack([numbers(item[0] if isinstance(item, tuple) else item, name) for item in items])
    try:
        values = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
        native = values.dtype.kind in "biuf" and values.itemsize <= 8
        return (
            values if native else values.astype(np.float64, casting="unsafe" if values.dtype.kind in "fOUS" else "safe")
        )
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"`{name} is an array of numbers` must hold, but it isn't ({reason}); give numbers") from None


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
        yield floats(batch, columns)


def floats(batch: Any, columns: Sequence[str]) -> Floats:
    """Some columns of a table or batch of Arrow as numbers, (column, row); a missing one is NaN.

    Raises UserError for a column that can't be converted.
    """
    block = np.empty((len(columns), batch.num_rows))
    for row, name in zip(block, columns, strict=True):
        try:
            values = batch.column(name).cast(pa.float64(), safe=False)
        except pa.ArrowException as error:
            rule, got = "columns are numbers", f"column {name!r} ({error})"
            raise UserError(f"`{rule}` must hold, but got {got}; convert it, or leave it out") from None
        row[:] = values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()
    return block


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
