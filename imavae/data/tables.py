"""A user's file of numbers (.npy, .csv, .tsv or .parquet), read in blocks: no file has to fit into memory.

Columns have names: those in the first line of a .csv, or in a .parquet; the columns of an .npy, an array (row, column),
are called 0, 1, 2, ... Blocks are (column, row) in float64. Messages name the file, the column and the row (the first
is 1). This module imports neither torch nor pandas: files are checked before the slow imports.

What a .csv leaves open is decided by its first lines (:func:`_dialect`): separator, decimal point or comma, encoding.
Columns that number the rows are left out unless they are asked for. :func:`understood` says what was decided.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from csv import field_size_limit, reader
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, csv, parquet

from imavae.config.data import READERS, FileData, Reader
from imavae.data.storage import written_whole
from imavae.errors import UserError, require, require_choice

Floats = NDArray[np.float64]
Stamp = tuple[int, ...]

ENDINGS = (".npy", ".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")
SEPARATORS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'", " ": "space"}
SAMPLE_LINES = 50  # of a .csv, that decide how it is read
MISSING_LABELS = ["", "nan", "na", "n/a", "null", "none", "<na>", "nat"]  # as pandas, R and others write them
INDEX_NAME = re.compile(r"|Unnamed: \d+|__index_level_\d+__")  # of a column of row numbers that pandas has written
ROWS_PER_LABEL = 10  # on average, at least: a label of fewer rows has no distribution
PICTURES = (".png", ".jpg", ".jpeg")  # endings of images
SAMPLED_ROWS = 1000  # of each block, to estimate quartiles
FAR, TOO_FAR = 100, 1e6  # standard deviations (by quartiles) from the median: told, and refused
DECIMAL_COMMA, DECIMAL_POINT = (re.compile(rf"\s*[-+]?\d*{mark}\d+([eE][-+]?\d+)?\s*") for mark in (",", r"\."))
THOUSANDS = re.compile(r"\s*[-+]?[1-9]\d{0,2}(,\d{3})+\s*")
SHOWN_COLUMNS = 12  # names in a line
IQR_OF_NORMAL = 1.349  # interquartile range over standard deviation
BLOCK_ROWS = 65_536  # rows of a block, at most
BLOCK_NUMBERS = 4 << 20  # numbers of a block, at most: a row may be an image
CSV_BYTES = 4 << 20  # text of a block
DAMAGES = SyntaxError, TokenError, pa.ArrowException, zipfile.BadZipFile, zlib.error  # of Pillow, numpy and others


class Dialect(NamedTuple):
    """How a .csv is written."""

    separator: str
    decimal: str
    encoding: str


@dataclass(frozen=True)
class Table:
    """Columns of a file, known before its rows are read."""

    path: Path
    key: str  # setting that names the file
    numeric: dict[str, bool]  # by column; judged by the first block of a .csv
    rows: int | None  # None for a .csv
    dialect: Dialect | None = None  # of a .csv
    truths: frozenset[str] = frozenset()  # columns of true and false


def open_table(path: str | Path, key: str = "data.path") -> Table:
    """Read the names and types of a file's columns. Raises UserError for a file or names that can't be used."""
    path = Path(path)
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    require_choice(suffix, ENDINGS, f"the ending of {key}")
    require(path.is_file(), f"{key} is a file", path, "correct the path")
    with readable(path, key):
        schema, rows, dialect = pa.schema([]), None, None
        if path.stat().st_size == 0:
            rows = 0
        elif path.suffix == ".npy":
            array = np.load(path, mmap_mode="r")
            shape: tuple[int, ...] = getattr(array, "shape", ())
            rule, flat = f"{key} is an array with two axes, (row, column)", len(shape) == 1
            remedy = "np.save its [:, None], or stack it with other columns" if flat else "reshape it"
            require(len(shape) == 2, rule, f"{shape} in {path}", remedy)
            kind = pa.float64() if array.dtype.kind in "biuf" else pa.null()
            schema, rows = pa.schema([(str(k), kind) for k in range(shape[1])]), shape[0]
        elif path.suffix != ".parquet":
            dialect = _dialect(path)
            batches = _csv_reader(path, dialect, None)
            schema = batches.schema
            rows = sum(batch.num_rows for batch in batches) if set(schema.types) == {pa.null()} else None
            rule, remedy = f"the first line of {key} names its columns", "put a line of names above it"
            with suppress(ValueError):  # from a name that is no number
                values = [float(name.replace(dialect.decimal, ".")) for name in schema.names]
                require(not values, rule, f"{schema.names} in {path}", remedy)
        else:
            file = parquet.ParquetFile(path)
            schema, rows = file.schema_arrow, file.metadata.num_rows
    empty = rows == 0 or not schema.names
    require(not empty, f"{key} has rows", f"{path}, which is empty", "complete it, or name another file")
    twice = sorted(name for name, times in Counter(schema.names).items() if times > 1)
    require(not twice, f"the columns of {key} have different names", f"{twice} twice in {path}", "rename one")
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    truths = frozenset(field.name for field in schema if pa.types.is_boolean(field.type))
    named = {field.name: any(holds(field.type) for holds in numeric) for field in schema}
    return Table(path, key, named, rows, dialect, truths)


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
    with readable(table.path, table.key, list(table.numeric)):
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


def labels(
    path: str, column: str, rows: int | None = None, key: str = "data.segment_column", bins: int | None = None
) -> NDArray[np.int64]:
    """The first rows of a column of labels of any type, as positions in the sorted list of all labels.

    With ``bins``, labels are numbers or dates, and the position is that of one of so many intervals of equally many
    rows. Raises UserError if there is no such column, or a label is missing.
    """
    table = open_table(path)
    require_choice(column, table.numeric, f"{key} (of {path})")
    values = column_of(table, column).slice(0, rows)
    as_text = compute.utf8_lower(values.cast(pa.string()))
    blank = compute.is_in(as_text, pa.array(MISSING_LABELS)).to_numpy(zero_copy_only=False)
    blank |= as_text.is_null().to_numpy(zero_copy_only=False)
    got = f"no label in row {int(np.argmax(blank)) + 1} of column {column!r} of {path}"
    require(not blank.any(), f"{key} labels every row", got, "drop or fill such rows")
    if bins is not None:
        numbers = _ordered(values, table, column)
        ends = np.unique(np.quantile(numbers, np.arange(1, bins) / bins))
        return np.unique(np.searchsorted(ends, numbers), return_inverse=True)[1].astype(np.int64)
    encoded = values.dictionary_encode()
    position = np.argsort(np.argsort(np.array(encoded.dictionary.to_pylist())))
    return np.asarray(position[encoded.indices.to_numpy()], dtype=np.int64)


def column_of(table: Table, column: str) -> Any:
    """A column of any type as an array of Arrow; that of a .csv is text."""
    with readable(table.path, table.key):
        if table.path.suffix == ".npy":
            read: Any = pa.chunked_array([np.load(table.path, mmap_mode="r")[:, int(column)]])
        elif table.dialect is not None:
            read = _csv_reader(table.path, table.dialect, {column: pa.string()}).read_all().column(0)
        else:
            read = parquet.read_table(table.path, columns=[column]).column(0)
    return read.combine_chunks()


def _ordered(values: Any, table: Table, column: str) -> Floats:
    """Labels that are numbers or dates, as numbers. Raises UserError for others."""
    if pa.types.is_string(values.type) and table.dialect is not None:
        values = compute.replace_substring(values, table.dialect.decimal, ".")
    for kinds in ([pa.float64()], [pa.timestamp("us"), pa.int64(), pa.float64()]):
        with suppress(pa.ArrowException):
            cast = values
            for kind in kinds:
                cast = cast.cast(kind)
            return np.asarray(cast.to_numpy(zero_copy_only=False), dtype=np.float64)
    got, remedy = f"others in column {column!r} of {table.path}", "leave data.segment_bins out: each label is a segment"
    require(False, "labels to be binned are numbers or dates", got, remedy)
    raise AssertionError


def _segments(filled: Mapping[str, Any], rows: int) -> int:
    """The number of segments. Raises UserError for labels that make none, or a segment of nearly every row."""
    column, bins = filled["segment_column"], filled.get("segment_bins")
    found = int(labels(filled["path"], column, rows, bins=bins).max()) + 1
    where = f"column {column!r} of {filled['path']}"
    remedy = "leave data.segment_column out"
    require(found > 1, "data.segment_column has two labels or more", f"one in {where}", remedy)
    rule, got = f"a label has {ROWS_PER_LABEL} rows or more on average", f"{found} labels of {rows} rows in {where}"
    require(found * ROWS_PER_LABEL <= rows, rule, got, "a continuous label can be binned: set data.segment_bins=5")
    return found


def absolute(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a user's data with absolute paths, since a worker has another current directory."""
    paths = {key: data[key] for key in ("path", "sources_path") if isinstance(data.get(key), str)}
    return {**data, **{key: str(Path(path).resolve()) for key, path in paths.items()}}


def resolved(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file with columns, n_obs, dim and n_segments read from the file where they are null.

    Raises UserError for a file that can't be used.
    """
    filled = absolute(data)
    columns, label, limit = filled.get("columns"), filled.get("segment_column"), filled.get("n_obs")
    bins = filled.get("segment_bins")
    labelled = {key: filled[key] for key in ("segment_column", "group_column") if isinstance(filled.get(key), str)}
    typed = all(name is None or isinstance(name, str) for name in (label, filled.get("group_column")))
    if not typed or not isinstance(columns, (list, tuple, NoneType)) or not isinstance(bins, (int, NoneType)):
        return filled  # of the wrong type: the settings' own check says so
    table = open_table(filled["path"])
    for key, column in labelled.items():
        require_choice(column, table.numeric, f"data.{key} (of {table.path})")
        rule, remedy = f"data.{key} is none of data.columns", "labels are no observations: leave it out"
        require(column not in (columns or ()), rule, f"{column} of {table.path}", remedy)
    free = [name for name in table.numeric if name not in labelled.values()]
    limit = limit if isinstance(limit, int) else None
    names = pick(table, without_numbers(table, free) if columns is None else columns)
    found = _survey(table.path, table.key, names, limit, stamp(table.path))
    rows, digest = found.rows, hashlib.sha256(found.digest)
    got = f"{limit} of {rows} in {table.path}"
    require(limit in (None, rows), "data.n_obs <= the rows of data.path", got, "set data.n_obs=null for all")
    filled |= {"columns": list(names), "n_obs": rows}
    if filled.get("dim") is None:
        filled["dim"] = _number_of_sources(filled.get("sources_path"), len(names))
    if filled.get("n_segments") is None:
        filled["n_segments"] = 1 if label is None else _segments(filled, rows)
    if isinstance(filled.get("sources_path"), str):
        sources = open_table(filled["sources_path"], "data.sources_path")
        names, got = sources_of(sources, filled["dim"]), f"{len(sources.numeric)} in {sources.path}"
        remedy = "set data.dim=null, and the number of latents by model.dim"
        require(len(names) == filled["dim"], "data.sources_path has data.dim columns", got, remedy)
        of_sources = _survey(sources.path, sources.key, names, limit and rows, stamp(sources.path))
        rule, got = "data.sources_path has as many rows as data.path", f"{of_sources.rows} in {sources.path} and {rows}"
        require(of_sources.rows == rows, rule, got, "row n holds the sources of observation n: give as many rows")
        digest.update(of_sources.digest)
    if filled.get("fingerprint") is None:
        filled["fingerprint"] = digest.hexdigest()[:16]
    return filled


def without_numbers(table: Table, names: Sequence[str]) -> list[str]:
    """Columns without those that number the rows, by their name or, of the first one, by what it holds."""
    left = [name for name in names if not INDEX_NAME.fullmatch(name)] or list(names)
    first = left[0] if len(left) > 1 else None
    if first is not None and table.numeric[first] and _counts(table.path, table.key, first, stamp(table.path)):
        del left[0]
    return left


def _number_of_sources(path: Any, columns: int) -> int:
    """The number of columns of a file of sources but for those that number the rows; without a file, ``columns``."""
    if not isinstance(path, str):
        return columns
    table = open_table(path, "data.sources_path")
    return columns if len(table.numeric) == columns else len(without_numbers(table, list(table.numeric)))


def sources_of(table: Table, dim: int) -> tuple[str, ...]:
    """The columns of a file of ``dim`` sources: all, or those that do not number the rows if there are too many."""
    names = list(table.numeric)
    return pick(table, names if len(names) <= dim else without_numbers(table, names))


def fingerprint(x: Floats, sources: Floats | None = None) -> str:
    """Digest of rows of observations and their sources, (n, d), in their order."""
    parts = [hashlib.sha256(np.ascontiguousarray(part).data).digest() for part in (x, sources) if part is not None]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def understood(data: FileData) -> list[str]:
    """What was read from a file and decided about it, in one line; then a line for each column with far values."""
    table = open_table(data.path)
    used, shown = {*data.columns, data.segment_column, data.group_column}, list(data.columns)
    if len(shown) > SHOWN_COLUMNS:
        shown = [*shown[:3], "…", shown[-1]]
    parts = [f"{data.n_obs:,} rows, {len(data.columns)} columns ({', '.join(shown)})"]
    if table.dialect is not None:
        separator, decimal, encoding = table.dialect
        parts.append(f"separator {SEPARATORS[separator]}, decimal '{decimal}'" + f", {encoding}" * (encoding != "utf8"))
    out = [repr(name) for name in table.numeric if name not in used]
    parts += [f"left out: {', '.join(out)}"] if 0 < len(out) <= SHOWN_COLUMNS else [f"{len(out)} left out"] * bool(out)
    survey = _survey(table.path, table.key, data.columns, data.n_obs, stamp(table.path))
    return [f"{table.path.name}: {'; '.join(parts)}", *survey.far]


READERS.register(Reader("file", resolved, understood))


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
    # All of them: what is given in memory has no column by accident.
    settings["columns"] = [name for name in table.column_names if name not in settings.values()]
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
    """Numbers that differ once a file, or one of a folder, has changed: of its place, size, and last changes; zeros if
    it is missing.
    """
    file = Path(path)
    parts = os.scandir(file) if file.is_dir() else [file]
    found = [part.stat() for part in parts if part.is_file()]
    # The time of the last one can't be set back.
    return tuple(sum(getattr(one, f"st_{name}") for one in found) for name in ("ino", "size", "mtime_ns", "ctime_ns"))


def pictures_in(folder: Path) -> list[str]:
    """Names of a folder's images, sorted."""
    return sorted(one.name for one in folder.iterdir() if one.suffix.lower() in PICTURES and one.name[0] != ".")


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file's content or, of a folder, of the names and contents of its images."""
    return _digest_of(Path(path), stamp(path))


@functools.lru_cache(maxsize=8)
def _digest_of(path: Path, stamp: Stamp) -> str:  # noqa: ARG001
    if not path.is_dir():
        return _sha256(path)
    files = pictures_in(path)
    return hashlib.sha256("\n".join(f"{name} {_sha256(path / name)}" for name in files).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Survey(NamedTuple):
    """What reading all rows of some columns has found."""

    rows: int
    digest: bytes  # of the rows, in their order
    far: tuple[str, ...]  # a line for each column with a value far from the others


@functools.lru_cache(maxsize=8)  # a study checks every point
def _survey(path: Path, key: str, columns: tuple[str, ...], most: int | None, stamp: Stamp) -> Survey:  # noqa: ARG001
    """Read all rows. Raises UserError as :func:`blocks`, for a constant column, or a value too far from the others."""
    ends = np.array([[np.inf], [-np.inf]]).repeat(len(columns), 1)  # lowest and highest value of each column
    at, rows, digest, sampled = np.zeros(ends.shape, dtype=np.int64), 0, hashlib.sha256(), []
    for block in blocks(open_table(path, key), columns, most):
        for side, find, better in ((0, np.argmin, np.less), (1, np.argmax, np.greater)):
            place = find(block, 1)
            value = np.take_along_axis(block, place[:, None], 1)[:, 0]
            new = better(value, ends[side])
            ends[side], at[side] = np.where(new, value, ends[side]), np.where(new, rows + place, at[side])
        rows += block.shape[1]
        digest.update(np.ascontiguousarray(block.T).data)
        sampled.append(block[:, :: max(1, block.shape[1] // SAMPLED_ROWS)])
    remedy = "a single observation has no distribution: take a longer file"
    require(rows > 1, f"{key} has more than one row", f"{'one' if rows else 'none'} in {path}", remedy)
    constant = [name for name, same in zip(columns, ends[0] == ends[1], strict=True) if same]
    got, remedy = f"column {', '.join(constant)} of {path}", "leave it out of the columns"
    require(not constant, f"the columns of {key} vary", got, remedy)
    low, middle, high = np.quantile(np.concatenate(sampled, 1), [0.25, 0.5, 0.75], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # half of a column may have one value: then nothing is far
        distance = np.nan_to_num(np.abs(ends - middle) / (high - low) * IQR_OF_NORMAL, posinf=0)
    side, far = distance.argmax(0), []
    for column in np.flatnonzero(distance.max(0) > FAR):
        value, row = ends[side[column], column], at[side[column], column] + 1
        where = f"{value:.6g} in column {columns[column]!r}, row {row}, of {path}"
        remedy = "correct or drop it, or leave the column out"
        near = bool(distance[side[column], column] < TOO_FAR)
        require(near, f"values lie within {TOO_FAR:,.0f} standard deviations of the median", where, remedy)
        far.append(f"{where} lies {distance[side[column], column]:.0f} standard deviations from the median")
    return Survey(rows, digest.digest(), tuple(far))


@functools.lru_cache(maxsize=8)
def _counts(path: Path, key: str, column: str, stamp: Stamp) -> bool:  # noqa: ARG001
    """True if a column numbers the rows: each whole number is one more than that before it."""
    last = None
    for block in blocks(open_table(path, key), [column]):
        values = block[0] if last is None else np.append(last, block[0])
        if values[0] != round(values[0]) or (np.diff(values) != 1).any():
            return False
        last = values[-1]
    return last is not None


def _raw_blocks(table: Table, columns: Sequence[str]) -> Iterator[Floats]:
    size = min(BLOCK_ROWS, max(1, BLOCK_NUMBERS // len(columns)))
    if table.path.suffix == ".npy":
        array, at = np.load(table.path, mmap_mode="r"), [int(name) for name in columns]
        for start in range(0, len(array), size):
            yield np.ascontiguousarray(array[start : start + size, at].T, dtype=np.float64)
        return
    if table.dialect is not None:
        types = {name: pa.bool_() if name in table.truths else pa.float64() for name in columns}
        batches = _csv_reader(table.path, table.dialect, types)
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


def _dialect(path: Path) -> Dialect:
    """How a .csv is written, by its first lines: the separator that gives the most columns, the same in each line."""
    with pa.input_stream(path, compression="gzip" if path.suffix == ".gz" else None) as file:
        raw = file.read(CSV_BYTES)
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf8"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(raw) - 4:  # else the sample ends within a character
            encoding = "latin-1"
        text = raw.decode(encoding, errors="replace")
    lines = text.removeprefix("\ufeff").splitlines()[: SAMPLE_LINES + 1]
    cut = len(lines) > SAMPLE_LINES or (len(raw) == CSV_BYTES and len(lines) > 1)  # the last line may be a part
    lines = [line for line in lines[: -1 if cut else None] if line.strip()]
    best, most = ",", [[line] for line in lines]
    field_size_limit(max(field_size_limit(), CSV_BYTES))
    for separator in SEPARATORS:
        fields = list(reader(lines, delimiter=separator))
        if len({len(row) for row in fields}) == 1 and len(fields[0]) > len(most[0]):
            best, most = separator, fields
    values = [field for row in most[1:] for field in row]
    comma = best != "," and any(map(DECIMAL_COMMA.fullmatch, values)) and not any(map(DECIMAL_POINT.fullmatch, values))
    unclear = comma and all(THOUSANDS.fullmatch(value) for value in values if "," in value)
    example = next((value for value in values if "," in value), "")
    remedy = "write it without separators of thousands, or with a decimal point"
    require(not unclear, f"numbers of {path} have one meaning", f"{example}, a thousand or a fraction", remedy)
    return Dialect(best, "," if comma else ".", encoding)


def _csv_reader(path: Path, dialect: Dialect, types: dict[str, Any] | None) -> Any:
    """Some columns with given types; None: all columns, with the types that the first block suggests."""
    chosen = {"column_types": types, "include_columns": list(types)} if types else {}
    # One thread: only then an error names its line.
    return csv.open_csv(
        path,
        csv.ReadOptions(use_threads=False, block_size=CSV_BYTES, encoding=dialect.encoding),
        csv.ParseOptions(delimiter=dialect.separator),
        csv.ConvertOptions(decimal_point=dialect.decimal, **chosen),
    )


@contextmanager
def readable(path: Path, key: str, columns: Sequence[str] = ()) -> Iterator[None]:
    """Raise UserError instead of the readers' errors about a damaged file, or text in a column of numbers."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, *DAMAGES) as error:
        other = path.suffix == ".npy" and isinstance(error, ValueError)  # numpy advises to load pickled objects
        reason = "it holds no array of numbers" if other else " ".join(str(error).split())
        for number, name in enumerate(columns):
            reason = reason.replace(f"In CSV column #{number}:", f"in column {name!r}:")
        raise UserError(f"`{key} can be read` must hold, but {path} can't ({reason}); correct the file") from None
