"""A file that is whole is used; any other is made again; nobody sees half of one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray

from imavae.data.images import _whole, cached
from imavae.errors import UserError

SHAPE = (1201, 7)  # three blocks


NUMBERS = (np.arange(SHAPE[0] * SHAPE[1]) % 251).astype(np.uint8).reshape(SHAPE)


def numbers() -> Iterator[ndarray]:
    """What the array should hold, in blocks."""
    yield from (NUMBERS[start : start + 500] for start in range(0, SHAPE[0], 500))


def refused() -> Iterator[ndarray]:
    """For a file that is there already."""
    raise AssertionError("it is there already")


def test_the_array_is_made_once_and_cannot_be_written_to(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.npy"
    made = cached(path, SHAPE, numbers)
    again = cached(path, SHAPE, refused)
    for rows in (made, again, np.load(path)):  # anybody can read the file
        np.testing.assert_array_equal(rows, NUMBERS)
    assert isinstance(again, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 1
    assert list(path.parent.iterdir()) == [path]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: whole[:0],
    "the header alone": lambda whole: whole[:128],
    "half": lambda whole: whole[: len(whole) // 2],
    "a byte short": lambda whole: whole[:-1],
    "a bit": lambda whole: whole[:4000] + bytes([whole[4000] ^ 1]) + whole[4001:],
    "the digest": lambda whole: whole[:-1] + b"?",
    "without a digest": lambda whole: whole[:-64],
    "the header": lambda whole: b"?" + whole[1:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    cached(path, SHAPE, numbers)
    whole = path.read_bytes()
    assert DAMAGES[damage](whole) != whole
    path.write_bytes(DAMAGES[damage](whole))
    _whole.cache_clear()
    np.testing.assert_array_equal(cached(path, SHAPE, numbers), NUMBERS)
    assert path.read_bytes() == whole


def test_a_file_of_another_shape_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    cached(path, (SHAPE[1], SHAPE[0]), lambda: iter([np.zeros((SHAPE[1], SHAPE[0]), np.uint8)]))
    np.testing.assert_array_equal(cached(path, SHAPE, numbers), NUMBERS)


def test_what_breaks_off_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken() -> Iterator[ndarray]:
        yield NUMBERS[:500]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "a.npy", SHAPE, broken)
    assert list(tmp_path.iterdir()) == []


def test_a_map_outlives_the_file_that_it_was_made_of(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    rows = cached(path, SHAPE, numbers)
    path.unlink()
    cached(path, SHAPE, lambda: iter([NUMBERS + np.uint8(1)]))
    np.testing.assert_array_equal(rows, NUMBERS)


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"the cache can be written.*a\.npy"):
        cached(tmp_path / "file" / "a.npy", SHAPE, numbers)


def test_two_processes_at_once_both_get_the_array(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for rows in pool.starmap(cached, [(path, SHAPE, numbers)] * 2, chunksize=1):
            np.testing.assert_array_equal(rows, NUMBERS)
    np.testing.assert_array_equal(cached(path, SHAPE, refused), NUMBERS)
    assert list(tmp_path.iterdir()) == [path]
