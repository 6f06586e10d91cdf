"""A user's images with their factors: .npz, .h5 or .npy of bytes, or a folder of PNG or JPEG.

Arrays are (n, row, column), (n, row, column, channel) or (n, channel, row, column). Those of an .npz or .h5 are found
by the names that published data sets use (:data:`IMAGES`, :data:`FACTORS`); pickled objects are never loaded. Shapes
and factors are read first; pixels are read in blocks, (m, channel, row, column), in the order of the file. As batches
are drawn at random and blocks are compressed, the pixels are copied once into the cache, from which they are mapped. An
.npy in that order is mapped as it is. This module does not import torch, and h5py and Pillow only where needed.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imavae.config.data import READERS, SIDES, ImagesData, Reader
from imavae.data import tables
from imavae.data.storage import written_whole
from imavae.errors import require, require_choice

Bytes = NDArray[np.uint8]

KEY = "data.path"
IMAGES = ("imgs", "images")  # dSprites, Shapes3D
FACTORS = ("latents_values", "labels", "factors", "latents_classes")
NAMES = ("latents_names", "names")
# Names that a published data set has only in a pickle, or not at all, by the shape of its factors.
KNOWN: dict[tuple[int, ...], tuple[str, ...]] = {
    (737_280, 6): ("color", "shape", "scale", "orientation", "posX", "posY"),  # dSprites
    (480_000, 6): ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation"),  # Shapes3D
}
MODES = {"1": 1, "L": 1, "RGB": 3}  # of Pillow: channels
FEW = 5  # values of a factor that is taken for discrete
MOST_IMAGES, MOST_FACTORS = 10**8, 1000
BLOCK, CHUNKED = 2**23, 2**28  # bytes read at once, at most; and from an .h5 whose chunks are as large


class Array(NamedTuple):
    """One array of a file: its shape and type are known before its content is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Any]  # the whole
    blocks: Callable[[], Iterator[NDArray[Any]]]  # rows after rows


class ImageFile(NamedTuple):
    """Images of a file or folder, known before their pixels are read."""

    path: Path
    n: int
    channels: int
    side: int
    blocks: Callable[[], Iterator[Bytes]]  # (m, channel, row, column)
    mapped: Bytes | None  # (n, channel * row * column), if the file has the pixels in this order
    factors: NDArray[Any] | None  # (n, factor)
    names: tuple[str, ...] | None  # of the factors
    files: tuple[str, ...] = ()  # of a folder

    @property
    def features(self) -> int:
        return self.channels * self.side**2


def open_images(path: str | Path) -> ImageFile:
    """Read the shapes and factors of a file or folder. Raises UserError for what can't be used."""
    return _open(Path(path), tables.stamp(path))


@functools.lru_cache(maxsize=2)  # a study checks every point
def _open(path: Path, stamp: tables.Stamp) -> ImageFile:  # noqa: ARG001
    if path.is_dir():
        return _folder(path)
    require_choice(path.suffix, READ_BY, f"the ending of {KEY}, a file of images or a folder of PNG or JPEG,")
    require(path.is_file(), f"{KEY} is a file or folder", path, "correct the path")
    with tables.readable(path, KEY):
        arrays = READ_BY[path.suffix](path)
        found = [name for name in arrays if name in IMAGES]
        rule, got = f"{KEY} has an array called {' or '.join(IMAGES)}", f"{', '.join(arrays) or 'none'} in {path}"
        require(bool(found), rule, got, "rename that of the images")
        images = _images(path, arrays[found[0]])
        named = next((name for name in FACTORS if name in arrays), None)
        if named is None:
            return images
        array = arrays[named]
        rule = f"{named} has the shape (n, factors), a row of numbers for each image, up to {MOST_FACTORS} factors"
        shaped = len(array.shape) == 2 and array.shape[0] == images.n and 1 <= array.shape[1] <= MOST_FACTORS
        got = f"{array.dtype} {array.shape} for {images.n} images in {path}"
        require(shaped and array.dtype.kind in "biuf", rule, got, "correct the array, or leave it out")
        names = next((arrays[name] for name in NAMES if name in arrays), None)
        told = names.read().ravel() if names is not None and names.dtype.kind in "SUT" else ()
        texts = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in told)
        return images._replace(factors=array.read(), names=texts or KNOWN.get(array.shape))


def _images(path: Path, array: Array) -> ImageFile:
    """The images of an array. Raises UserError for a shape or type that can't be used."""
    shape = array.shape
    channels, side = _layout(shape, path)
    remedy = "np.save them as np.round(255 * x).astype(np.uint8) if they are in [0, 1], else as x.astype(np.uint8)"
    require(array.dtype in (np.uint8, np.bool_), "images are bytes (uint8)", f"{array.dtype} in {path}", remedy)
    require(0 < shape[0] <= MOST_IMAGES, f"{KEY} has up to {MOST_IMAGES:,} images", f"{shape[0]:,} in {path}", "cut it")

    def blocks() -> Iterator[Bytes]:
        with tables.readable(path, KEY):
            for block in array.blocks():
                yield np.ascontiguousarray(_channels_first(block), np.uint8)

    mapped = None
    if path.suffix == ".npy" and (channels == 1 or shape[1] == channels):
        whole = array.read()
        mapped = whole.view(np.uint8).reshape(shape[0], -1) if whole.flags.c_contiguous else None
    return ImageFile(path, shape[0], channels, side, blocks, mapped, None, None)


def _layout(shape: tuple[int, ...], where: object) -> tuple[int, int]:
    """Channels and side of images of a shape. Raises UserError for one that can't be used."""
    channels = 1 if len(shape) == 3 else 0
    if len(shape) == 4:
        channels = next((shape[axis] for axis in (3, 1) if shape[axis] in (1, 3)), 0)
    rule = "images are (n, side, side), (n, side, side, channel) or (n, channel, side, side) of 1 or 3 channels"
    require(channels > 0, rule, f"{shape} in {where}", "reshape them, or leave other channels out")
    sides = shape[1:3] if len(shape) == 3 or shape[3] == channels else shape[2:]
    _check_sides(sides, where)
    return channels, sides[0]


def _channels_first(block: NDArray[Any]) -> NDArray[Any]:
    """Images of any layout as (n, channel, row, column)."""
    if block.ndim == 3:
        return block[:, None]
    return block.transpose(0, 3, 1, 2) if block.shape[3] in (1, 3) else block


def as_rows(values: NDArray[Any], features: int, white: int) -> tables.Floats:
    """Images in memory, bytes or numbers in [0, 1], as rows (n, features) of such numbers."""
    channels, side = _layout(values.shape, "x")
    rule, got = f"the model's images have {features} numbers", f"{channels} x {side} x {side}"
    require(channels * side**2 == features, rule, got, "resize them, or convert them to as many channels")
    rows = np.ascontiguousarray(_channels_first(values)).reshape(len(values), features)
    return rows / white if rows.dtype == np.uint8 else rows.astype(np.float64)


def holds_images(path: str | Path) -> bool:
    """True if a file or folder may have images, and an .npy more than rows of numbers."""
    path = Path(path)
    if path.suffix == ".npy" and path.is_file():
        with tables.readable(path, KEY):
            return len(np.load(path, mmap_mode="r").shape) != 2
    return path.is_dir() or path.suffix in READ_BY


def _check_sides(sides: Sequence[int], where: object) -> None:
    rule = f"images are square, with a side from {SIDES[0]} to {SIDES[1]} pixels"
    proper = sides[0] == sides[1] and SIDES[0] <= sides[0] <= SIDES[1]
    require(proper, rule, f"{sides[0]} x {sides[1]} in {where}", "crop or resize them to a side of 64")


def _npy(path: Path) -> dict[str, Array]:
    whole = np.load(path, mmap_mode="r")
    return {IMAGES[0]: Array(whole.shape, whole.dtype, lambda: whole, lambda: _parts(whole))}


def _parts(rows: Any, step: int = 0) -> Iterator[NDArray[Any]]:
    step = max(step, BLOCK // max(1, rows[:1].nbytes), 1)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _npz(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        return {info.filename[:-4]: _member(path, archive, info) for info in members}


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file)
        size, rest = int(np.prod(shape, dtype=object)) * dtype.itemsize, info.file_size - file.tell()
    rule, got = f"{info.filename} is as long as its header says", f"{rest:,} bytes for {size:,} in {path}"
    require(dtype.hasobject or size == rest, rule, got, "save it again")

    def blocks() -> Iterator[NDArray[Any]]:
        require(not fortran, f"{info.filename} is stored row by row", path, "np.savez its np.ascontiguousarray")
        row = size // shape[0]
        step = max(1, BLOCK // row)
        with zipfile.ZipFile(path) as archive, archive.open(info.filename) as file:
            _header(file)
            for start in range(0, shape[0], step):
                count = min(step, shape[0] - start)
                yield np.frombuffer(file.read(count * row), dtype).reshape(count, *shape[1:])

    return Array(shape, dtype, lambda: np.load(path, allow_pickle=False)[info.filename[:-4]], blocks)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return tuple(shape), fortran, dtype


def _h5(path: Path) -> dict[str, Array]:
    import h5py

    arrays = {}
    with h5py.File(path, "r") as file:
        for name, found in file.items():
            if not isinstance(found, h5py.Dataset) or found.shape is None:
                continue

            def read(name: str = name) -> Any:
                with h5py.File(path, "r") as file:
                    return file[name].asstr()[()] if h5py.check_string_dtype(file[name].dtype) else file[name][()]

            def blocks(name: str = name) -> Iterator[NDArray[Any]]:
                with h5py.File(path, "r") as file:
                    rows = file[name]
                    chunk, *inner = rows.chunks or (1, *rows.shape[1:])
                    row = max(1, int(np.prod(rows.shape[1:])))
                    step = chunk * max(1, BLOCK // (row * chunk))  # whole chunks: each is decompressed as a whole
                    step = max(1, min(step, CHUNKED // row))
                    for start in range(0, len(rows), step):
                        if inner == [*rows.shape[1:]]:
                            yield rows[start : start + step]
                        else:
                            yield _by_chunks(rows, start, min(start + step, len(rows)))

            text = h5py.check_string_dtype(found.dtype) is not None
            arrays[name] = Array(found.shape, np.dtype("U1") if text else found.dtype, read, blocks)
    return arrays


def _by_chunks(rows: Any, start: int, stop: int) -> NDArray[Any]:
    """Some rows whose chunks hold parts of images, strip by strip, so that a strip stays in cache; channels first."""
    shape, (_, height, *_, depth) = (stop - start, *rows.shape[1:]), rows.chunks
    last = len(shape) == 4 and shape[3] in (1, 3)
    block = np.moveaxis(np.empty((shape[0], shape[3], *shape[1:3]), rows.dtype), 1, -1) if last else None
    block = np.empty(shape, rows.dtype) if block is None else block
    for at, colour in itertools.product(range(0, shape[1], height), range(0, shape[3], depth) if last else (0,)):
        strip = (slice(at, at + height), slice(None), *[slice(colour, colour + depth)] * last)
        block[:, *strip] = rows[start:stop, *strip]
    return block


READ_BY = {".npz": _npz, ".npy": _npy, ".h5": _h5, ".hdf5": _h5}


def _folder(path: Path) -> ImageFile:
    from PIL import Image

    files = tables.pictures_in(path)
    require(bool(files), f"{KEY} is a folder with PNG or JPEG", f"none in {path}", "correct the path")

    def opened(name: str) -> Image.Image:
        """An image whose mode and size are known, and whose pixels have not been read."""
        try:
            image = Image.open(path / name)
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from None
        rule, remedy = "images are grey or RGB, of 8 bits", "convert them: image.convert('RGB')"
        require(image.mode in MODES, rule, f"the mode {image.mode} of {path / name}", remedy)
        return image

    with tables.readable(path / files[0], KEY), opened(files[0]) as first:
        size, channels = first.size, MODES[first.mode]
    _check_sides(size[::-1], path / files[0])

    def blocks() -> Iterator[Bytes]:
        step = max(1, BLOCK // (channels * size[0] ** 2))
        for start in range(0, len(files), step):
            block = np.empty((min(step, len(files) - start), size[1], size[0], channels), np.uint8)
            for row, name in zip(block, files[start : start + step], strict=True):
                with tables.readable(path / name, KEY), opened(name) as image:
                    got = f"{image.size[0]} x {image.size[1]} x {MODES[image.mode]} in {path / name}"
                    rule = f"the images of a folder are all {size[0]} x {size[1]} x {channels}, as {files[0]}"
                    require((image.size, MODES[image.mode]) == (size, channels), rule, got, "resize or convert it")
                    row[:] = np.asarray(image.convert("L") if image.mode == "1" else image).reshape(row.shape)
            yield np.ascontiguousarray(block.transpose(0, 3, 1, 2))

    return ImageFile(path, len(files), channels, size[0], blocks, None, None, None, tuple(files))


class Factors(NamedTuple):
    """The factors of images: those of their file, or of a table."""

    names: tuple[str, ...]
    values: tables.Floats  # (n, factor)
    labels: tuple[bool, ...]  # True for a factor that was text

    @property
    def vary(self) -> tuple[str, ...]:
        return tuple(name for name, values in zip(self.names, self.values.T, strict=True) if np.ptp(values) > 0)

    def discrete(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the names that were text, or have few values."""
        texts = dict(zip(self.names, self.labels, strict=True))
        return tuple(name for name in names if texts[name] or len(np.unique(self.of([name]))) <= FEW)

    def of(self, names: Sequence[str]) -> tables.Floats:
        return self.values[:, [self.names.index(name) for name in names]]


def factors_of(images: ImageFile, sources_path: str | None, names: Sequence[str] | None) -> Factors:
    """All factors, which may be no finite numbers. Raises UserError unless there is a row for each image, and a name
    for each factor.
    """
    stamps = tables.stamp(images.path), tables.stamp(sources_path) if sources_path else ()
    return _factors_of(images.path, sources_path, None if names is None else tuple(names), stamps)


@functools.lru_cache(maxsize=2)
def _factors_of(
    path: Path, sources_path: str | None, names: tuple[str, ...] | None, stamps: tuple[tables.Stamp, ...]
) -> Factors:
    images = _open(path, stamps[0])
    values, told, labels = images.factors, images.names, tuple[bool, ...]()
    if sources_path is not None:
        told, values, labels = _table(sources_path, images)
    if values is None:
        require(names is None, "data.names names the factors", f"none in {path}", "leave it out")
        return Factors((), np.empty((images.n, 0)), ())
    values = values.astype(np.float64)
    told = names or told or tuple(f"factor {number}" for number in range(1, values.shape[1] + 1))
    rule, got = "data.names has a name for each factor of the file", f"{', '.join(told)} for {values.shape[1]} factors"
    require(len(set(told)) == len(told) == values.shape[1], rule, got, "name each one, differently")
    return Factors(told, values, labels or (False,) * len(told))


def _table(path: str, images: ImageFile) -> tuple[tuple[str, ...], NDArray[Any], tuple[bool, ...]]:
    """The columns of a table of factors, in the order of the images (by the names of their files if a column has them),
    and which of them are text.

    Text is replaced by numbers of labels. Columns that number the rows are left out.
    """
    key = "data.sources_path"
    table = tables.open_table(path, key)
    columns, at, rule = list(table.numeric), None, f"{key} has a row for each image"
    spelled = {Path(name).stem: name for name in images.files} | {name: name for name in images.files}
    for column in table.numeric if images.files else ():
        files = [spelled.get(Path(str(one)).name) for one in tables.column_of(table, column).to_pylist()]
        if not any(files) or (table.numeric[column] and sorted(filter(None, files)) != list(images.files)):
            continue  # no names, or numbers some of which could be
        row_of = {name: row for row, name in enumerate(files)}
        missing = [name for name in images.files if name not in row_of]
        got = f"none for {missing[0] if missing else ''} and {len(missing) - 1} others in {path}"
        require(not missing, rule, got, "add the rows, or move the images out of the folder")
        twice = len(set(filter(None, files))) < len([name for name in files if name])
        require(not twice, f"{key} has one row for an image", f"{column!r} twice", "drop the copies")
        at = [row_of[name] for name in images.files]
        columns = [name for name in columns if name != column]
        break
    else:
        by_number = sorted(images.files, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
        order, got = f"{key} names its images, unless their names and numbers have one order", f"other rows in {path}"
        require(by_number == list(images.files), order, got, "add a column with the files' names")
    found = {}
    for name in tables.without_numbers(table, columns) if columns else ():
        if table.numeric[name]:
            found[name] = np.concatenate(list(tables.blocks(table, [name])), 1)[0]
        else:
            labels = tables.labels(path, name, key=f"the column {name} of {key}").astype(float)
            if tables.ROWS_PER_LABEL * labels.max() < len(labels):  # else they are names of rows
                found[name] = labels
    require(bool(found), f"{key} has a column of a factor", f"none in {path}", "add one, or leave the table out")
    rows = len(next(iter(found.values())))
    got = f"{rows} in {path} for {images.n} images"
    require(rows == images.n or at is not None, rule, got, "give as many rows, in the order of the images' names")
    values = np.stack(list(found.values()), 1)[slice(None) if at is None else at]
    return tuple(found), values, tuple(not table.numeric[name] for name in found)


def resolved(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of images with what is null read from the file.

    Raises UserError for a file that can't be used, or settings that it contradicts.
    """
    filled = tables.absolute(data)
    lists = [filled.get(key) for key in ("names", "factors", "discrete")]
    if not all(one is None or (isinstance(one, (list, tuple)) and {*map(type, one)} <= {str}) for one in lists):
        return filled  # of the wrong type: the settings' own check says so
    images = open_images(filled["path"])
    factors = factors_of(images, filled.get("sources_path"), filled.get("names"))
    wanted = factors.names if filled.get("factors") is None else filled["factors"]
    for name in (name for name in wanted if name in factors.names):
        values = factors.of([name])[:, 0]
        for row in np.flatnonzero(~np.isfinite(values))[:1]:
            got, remedy = f"{values[row]} in {name}, row {row + 1}", "correct it, or list the others in data.factors"
            require(False, "factors are finite numbers", got, remedy)
    chosen = factors.vary if filled.get("factors") is None else tuple(filled["factors"])
    for name in chosen:
        require_choice(name, factors.names, "one of data.factors")
        require(name in factors.vary, "data.factors vary", f"{name}, which has one value", "leave it out")
    require(len(set(chosen)) == len(chosen), "data.factors has no factor twice", list(chosen), "drop the copy")
    found = {
        "available": images.n,
        "channels": images.channels,
        "side": images.side,
        "white": _white(images.path, tables.stamp(images.path)),
        "fingerprint": _fingerprint([filled[key] for key in ("path", "sources_path") if filled.get(key)]),
    }
    for key, value in found.items():
        remedy = f"leave data.{key} at null; if the file has changed since, put the old one back"
        require(filled.get(key) in (None, value), f"data.{key} is that of data.path", filled.get(key), remedy)
    limit = filled.get("n_obs")
    got = f"{limit} of {images.n} in {images.path}"
    fits = not isinstance(limit, int) or limit <= images.n
    require(fits, "data.n_obs <= the images of data.path", got, "set data.n_obs=null for all")
    given = bool(chosen) or filled.get("dim") is not None
    remedy = "set data.dim=6, or name their factors in data.sources_path"
    require(given, "data.dim, the number of latents, is given for images without factors", "null", remedy)
    read = {"n_obs": images.n, "dim": len(chosen), "discrete": factors.discrete(chosen), "factors": chosen}
    return filled | found | {key: value for key, value in read.items() if filled.get(key) is None}


def _fingerprint(files: Iterable[str]) -> str:
    return hashlib.sha256("".join(map(tables.digest_of, files)).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=2)
def _white(path: Path, stamp: tables.Stamp) -> int:
    """The value of white: 1 if no pixel is brighter. Most files are known by their first block."""
    return 1 if all(int(block.max()) <= 1 for block in _open(path, stamp).blocks()) else 255


def understood(data: ImagesData) -> list[str]:
    """What was read and decided, in one line."""
    images = open_images(data.path)
    factors = factors_of(images, data.sources_path, data.names)
    grey = "colour" if data.channels == 3 else "black and white" if data.white == 1 else "grey"
    parts = [f"{images.path.name}: {images.n:,} images of {data.side} x {data.side}, {grey}"]
    parts += [f"factors {', '.join(data.factors)}"] if data.factors else ["no factors"]
    parts += [f"discrete: {', '.join(data.discrete)}"] * bool(data.discrete)
    constant = [name for name in factors.names if name not in factors.vary]
    parts += [f"left out, as constant: {', '.join(constant)}"] * bool(constant)
    if data.sources_path is not None and data.names is None:
        others = [name for name in tables.open_table(data.sources_path).numeric if name not in factors.names]
        parts += [f"no factors: {', '.join(map(repr, others))}"] * bool(others)
    return ["; ".join(parts)]


READERS.register(Reader("images", resolved, understood))


def written(
    folder: Path, x: NDArray[Any], sources: Any = None, segments: Any = None, groups: Any = None
) -> dict[str, Any]:
    """Write images in memory, and their factors, to files of a folder; return the settings that read them.

    The files are named after their content. Raises UserError as :func:`open_images` does.
    """
    given = [name for name, labels in (("segments", segments), ("groups", groups)) if labels is not None]
    require(not given, "images have neither segments nor groups", f"{given} of images", "leave them out")
    square = x.ndim in (3, 4) and (x.shape[1] == x.shape[2] or x.shape[2:3] == x.shape[3:])
    rule, remedy = (
        "x has the shape (n, d), or (n, side, side[, channel]) of images",
        "reshape it: a row is an observation",
    )
    require(square, rule, f"shape {x.shape}", remedy)
    x = np.ascontiguousarray(x)
    path = folder.resolve() / f"images-{hashlib.sha256(repr(x.shape).encode() + x.data).hexdigest()[:16]}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            np.save(file, x)
    table = {} if sources is None else {"sources_path": tables.written(folder, sources, name="sources")["path"]}
    return {"kind": "images", "path": str(path), **table}


def check_unchanged(data: ImagesData) -> ImageFile:
    """The images of settings that were read from a file. Raises UserError if the files have changed since."""
    found, rule = _fingerprint(data.files), "the files of data.path and data.sources_path are those of data.fingerprint"
    remedy = "put the old ones back, or train with data.fingerprint=null"
    require(data.fingerprint in (None, found), rule, f"others in {data.path} ({found}, not {data.fingerprint})", remedy)
    return open_images(data.path)
