"""Users' images: each file kind gives the same images with their own factors; broken files are one message."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

import imavae
from imavae.config.data import ImagesData
from imavae.config.settings import EncodeConfig, EncodeData, EvaluateConfig, run_config
from imavae.data import dataset, image_files
from imavae.data.dataset import Split
from imavae.data.images import Cache
from imavae.errors import UserError
from imavae.runs.models import encode_file, evaluate_checkpoint
from tests.pages import ROOT, blocks

N, SIDE = 700, 20
Bytes = NDArray[np.uint8]
rng = np.random.default_rng(0)
SOURCES = np.column_stack([rng.random((N, 2)), np.arange(N) % 3, np.full(N, 7.0)])
NAMES = ("x", "y", "kind", "still")


def pictures(channels: int = 3, side: int = SIDE) -> Bytes:
    """Blobs at (x, y) whose colour is their kind; (n, row, column, channel)."""
    at = np.arange(side) / side
    rows, columns = (np.exp(-(((at - 0.2 - 0.6 * s[:, None]) / 0.15) ** 2)) for s in SOURCES.T[:2])
    colours = np.eye(3)[SOURCES[:, 2].astype(int)] * 0.8 + 0.2
    levels = rows[:, :, None, None] * columns[:, None, :, None] * colours[:, None, None, :channels]
    return np.asarray(np.round(255 * levels), np.uint8)


def save_folder(path: Path, x: Bytes) -> Path:
    path.mkdir()
    for number, image in enumerate(x):
        Image.fromarray(image.squeeze()).save(path / f"{number:04}.png")
    pd.DataFrame(SOURCES, columns=NAMES).to_csv(path.with_suffix(".csv"), index=False)
    return path


def save_npz(path: Path, x: Bytes, save: Callable[..., None] = np.savez_compressed, **others: Any) -> Path:
    arrays = {"imgs": x, "latents_values": SOURCES, "latents_names": np.array(NAMES), **others}
    save(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def save_h5(path: Path, x: Bytes, factors: Any = SOURCES, **how: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=x, **how)
        if factors is not None:
            file["labels"], file["names"] = factors, list(NAMES)
    return path


def save_npy(path: Path, x: NDArray[Any]) -> Path:
    np.save(path, x)
    pd.DataFrame(SOURCES, columns=NAMES).to_parquet(path.with_suffix(".parquet"))
    return path


def settings(path: Path, **other: Any) -> ImagesData:
    """Of a file, as a run reads them; factors lie beside a file that can't have any."""
    beside = [file for file in map(path.with_suffix, (".csv", ".parquet")) if file.is_file()]
    table = {"sources_path": str(beside[0])} if beside else {}
    data = run_config({"data": {"kind": "images", "path": str(path), **table, **other}}).data
    assert isinstance(data, ImagesData)
    return data


def made(data: ImagesData, folder: Path) -> list[Split]:
    found = dataset.make(data, (data.seed,), torch.float64, "cpu", Cache(folder / "cache"))
    return [found.train, found.val, found.test]


def rows_of(x: Bytes) -> NDArray[np.float64]:
    return x.reshape(N, SIDE, SIDE, -1).transpose(0, 3, 1, 2).reshape(N, -1) / 255


KINDS: dict[str, tuple[int, Callable[[Path, Bytes], Path]]] = {
    "npz": (1, lambda folder, x: save_npz(folder / "a.npz", x[..., 0])),
    "npz, not compressed": (3, lambda folder, x: save_npz(folder / "a.npz", x, np.savez)),
    "h5 in chunks of images": (3, lambda folder, x: save_h5(folder / "a.h5", x, chunks=(3, SIDE, SIDE, 3))),
    "h5 in chunks of pixels": (3, lambda folder, x: save_h5(folder / "a.h5", x, chunks=(300, 7, 9, 1), compression=4)),
    "h5, grey, in chunks of pixels": (1, lambda folder, x: save_h5(folder / "a.hdf5", x[..., 0], chunks=(300, 7, 9))),
    "h5, channels first": (3, lambda folder, x: save_h5(folder / "a.h5", x.transpose(0, 3, 1, 2))),
    "npy": (1, lambda folder, x: save_npy(folder / "a.npy", x[..., 0])),
    "npy, channels last": (3, lambda folder, x: save_npy(folder / "a.npy", x)),
    "npy, channels first": (3, lambda folder, x: save_npy(folder / "a.npy", x.transpose(0, 3, 1, 2).copy())),
    "npy, Fortran": (1, lambda folder, x: save_npy(folder / "a.npy", np.asfortranarray(x[..., 0]))),
    "folder": (3, lambda folder, x: save_folder(folder / "a", x)),
    "folder, grey": (1, lambda folder, x: save_folder(folder / "a", x)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_the_images_with_their_own_factors(kind: str, tmp_path: Path) -> None:
    channels, save = KINDS[kind]
    x = pictures(channels)
    data = settings(save(tmp_path, x))
    assert (data.channels, data.side, data.n_obs, data.white, data.dim) == (channels, SIDE, N, 255, 3)
    assert [(factor.name, factor.discrete) for factor in data.source_factors] == [
        ("x", False), ("y", False), ("kind", True)]  # fmt: skip
    expected, seen = rows_of(x), set()
    varying = (SOURCES[:, :3] - SOURCES[:, :3].mean(0)) / SOURCES[:, :3].std(0)
    for split in made(data, tmp_path):
        images, s = split.block(torch.tensor([0]), slice(None))[0].T.numpy(), split.sources[0].numpy()
        at = np.array([int(np.argmin(np.abs(varying - row).sum(1))) for row in s])
        np.testing.assert_allclose(s, varying[at], atol=1e-12)
        np.testing.assert_allclose(images, expected[at], atol=1e-12)
        picked = split.images
        assert picked is not None
        rows = torch.tensor([[5, 0, 3]])
        np.testing.assert_allclose(picked.batch(torch.tensor([0]), rows)[0].T, expected[at[[5, 0, 3]]], atol=1e-12)
        seen |= set(at.tolist())
    assert seen == set(range(N))  # each image is in one split
    mapped = kind in ("npy", "npy, channels first")
    assert len(list(tmp_path.glob("cache/images-*.npy"))) == (not mapped)


def test_black_and_white_is_0_and_1(tmp_path: Path) -> None:
    """As in dSprites; and 0 and 255 mean the same."""
    x = (pictures(1)[..., 0] > 100).astype(np.uint8)
    for number, (scale, dtype) in enumerate([(1, np.uint8), (1, bool), (255, np.uint8)]):
        data = settings(save_npz(tmp_path / f"{number}.npz", (scale * x).astype(dtype)))
        assert data.white == scale
        images = made(data, tmp_path)[0].block(torch.tensor([0]), slice(None))
        assert set(images.flatten().tolist()) == {0.0, 1.0}
    assert settings(save_npy(tmp_path / "b.npy", x)).white == 1


def test_part_of_a_file_is_a_random_one_and_worlds_share_its_copy(tmp_path: Path) -> None:
    """Published files are ordered by their factors."""
    path = save_npz(tmp_path / "a.npz", pictures(1)[..., 0], latents_values=np.sort(SOURCES, 0))
    data = settings(path, n_obs=400, train=0.6, val=0.2)
    found = dataset.make(data, (1, 2), torch.float64, "cpu", Cache(tmp_path / "cache"))
    one, two = (torch.cat([split.sources[world] for split in (found.train, found.val, found.test)]) for world in (0, 1))
    assert len(one) == 400
    assert not torch.equal(one.sort(0).values, two.sort(0).values)
    assert float(one.amin()) < -1.5
    assert float(one.amax()) > 1.5
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_factors_are_chosen_named_and_marked_by_settings(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz", pictures(1)[..., 0], latents_names=None, metadata=np.array({"a": 1}))
    assert settings(path).factors == ("factor 1", "factor 2", "factor 3")  # pickled names are never loaded
    named = settings(path, names=list(NAMES), factors=["kind", "x"], discrete=[])
    assert [(factor.name, factor.discrete) for factor in named.source_factors] == [("kind", False), ("x", False)]
    sources = made(named, tmp_path)[0].sources[0]
    assert len(set(sources[:, 0].tolist())) == 3
    assert settings(path, factors=[], dim=2).has_sources is False
    again = run_config({"data": {"kind": "images", **vars(named)}}).data  # as a worker, or resuming
    assert again == named
    [line] = image_files.understood(settings(path, names=list(NAMES)))
    for told in ("700 images of 20 x 20", "x, y, kind", "discrete: kind", "constant: still"):
        assert told in line


def test_a_table_finds_its_rows_by_the_names_of_files_and_text_is_a_discrete_factor(tmp_path: Path) -> None:
    path = save_folder(tmp_path / "a", pictures())
    words = np.array([f"word {number:02}" for number in range(12)])
    files = [f"data/{number:04}.png" for number in range(N)]
    table = pd.DataFrame({"id": range(N), "file": files, "x": SOURCES[:, 0], "word": words[np.arange(N) % 12]})
    table.sample(frac=1, random_state=0).to_csv(path.with_suffix(".csv"), index=False)
    data = settings(path, factors=["x", "word"])
    assert data.discrete == ("word",)
    assert "'file'" in image_files.understood(data)[0]
    values = image_files.factors_of(image_files.open_images(path), data.sources_path, data.names).of(data.factors)
    np.testing.assert_allclose(values, np.column_stack([SOURCES[:, 0], np.arange(N) % 12]))
    table.to_csv(tmp_path / "b.csv", index=False)  # without files, these are in the order of the images
    np.save(tmp_path / "b.npy", pictures())
    assert settings(tmp_path / "b.npy").factors == ("x", "word")


def test_rows_are_paired_with_numbered_images_by_name_or_refused(tmp_path: Path) -> None:
    """In the order of names, img10.png comes before img2.png."""
    path = save_folder(tmp_path / "a", pictures())
    for number in range(N):
        (path / f"{number:04}.png").rename(path / f"img{number}.png")
    table = pd.DataFrame({"name": [f"img{number}" for number in range(N)], "x": SOURCES[:, 0]})
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "a.csv", index=False)
    data = settings(path)
    images = image_files.open_images(path)
    order = [int(Path(name).stem[3:]) for name in images.files]
    values = image_files.factors_of(images, data.sources_path, data.names).of(["x"])
    np.testing.assert_allclose(values[:, 0], SOURCES[order, 0])
    (path / ".DS_Store").write_bytes(b"no image")
    assert settings(path).fingerprint == data.fingerprint
    table[["x"]].to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match=r"data\.sources_path names its images"):
        settings(path)


def test_a_factor_that_is_not_used_may_have_holes(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz", GREY, latents_values=HOLED)
    assert settings(path, factors=["x"]).factors == ("x",)


@pytest.mark.parametrize("factors", [True, False])
def test_images_are_trained_drawn_evaluated_and_encoded(factors: bool, tmp_path: Path) -> None:
    x = pictures(3 if factors else 1)
    path = save_h5(tmp_path / "a.h5", x, factors=SOURCES if factors else None)
    run = imavae.train(
        data={"kind": "images", "path": str(path), "dim": None if factors else 2},
        model={"name": "conv", "gamma": 3.0, "hidden_factor": 4},
        members={"seed": [1, 2]},
        training={"max_epochs": 2, "validate_every": 1, "probes": True},
        output_dir=str(tmp_path / "out"),
    )
    drawn = {figure.stem for figure in (run.folder / "figures").iterdir()}
    assert {"reconstructions", "traversals"} <= drawn
    assert ("test/mcc at max val/mcc" in run.members) is factors
    model = run.champion
    latents = imavae.encode(model, x)  # bytes, channels last
    for same in (x.transpose(0, 3, 1, 2), x / 255, rows_of(x)):
        np.testing.assert_allclose(imavae.encode(model, same).z, latents.z, atol=1e-5)
    np.save(tmp_path / "x.npy", x)
    for source in (path, tmp_path / "x.npy"):
        out = tmp_path / "z.parquet"
        encode_file(EncodeConfig(checkpoint=str(run.folder), data=EncodeData(path=str(source)), out=str(out)), print)
        z = pd.read_parquet(out).filter(regex="^z")
        np.testing.assert_allclose(z, latents.z, atol=1e-5)
    asked = EvaluateConfig(checkpoint=str(run.folder), output_dir=str(tmp_path / "out"))
    assert len(evaluate_checkpoint(asked)[0]) == 1
    with pytest.raises(UserError, match="resize them"):
        imavae.encode(model, x[:, :16, :16])
    save_h5(path, x[::-1], factors=SOURCES[::-1] if factors else None)  # other rows would be in each split
    dataset._make.cache_clear()
    with pytest.raises(UserError, match=r"data\.fingerprint"):
        evaluate_checkpoint(asked)


def test_images_in_memory_are_trained_on(tmp_path: Path) -> None:
    quick: dict[str, Any] = {
        "model": {"name": "conv", "hidden_factor": 4},
        "members": {"seed": [1]},
        "training": {"max_epochs": 1},
    }
    run = imavae.train(torch.from_numpy(pictures()), sources=SOURCES[:, :2], output_dir=str(tmp_path), **quick)
    assert run.config.data.dim == 2
    with pytest.raises(UserError, match="neither segments nor groups"):
        imavae.train(pictures(), segments=SOURCES[:, 2], output_dir=str(tmp_path), **quick)


def broken_png(path: Path, change: Callable[[Path], object]) -> Path:
    save_folder(path, pictures())
    change(path)
    return path


def bomb(path: Path) -> Path:
    """A member that says it is larger than what it holds."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 64, 64)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("imgs.npy", content.getvalue() + bytes(1000))
    return path


def half(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def torn(path: Path) -> Path:
    path.write_bytes(path.read_bytes().replace(b"}", b"(", 1))
    return path


GREY = pictures(1)[..., 0]
HOLED = np.where(np.arange(4 * N).reshape(N, 4) == 33, np.nan, SOURCES)
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "half an npz": (lambda folder: half(save_npz(folder / "a.npz", GREY)), "can be read"),
    "half an h5": (lambda folder: half(save_h5(folder / "a.h5", GREY)), "can be read"),
    "half an npy": (lambda folder: half(save_npy(folder / "a.npy", GREY)), "can be read"),
    "half a header": (lambda folder: torn(save_npy(folder / "a.npy", GREY)), "can be read"),
    "no file": (lambda folder: folder / "a.npz", "is a file or folder"),
    "another ending": (lambda folder: folder / "a.tfrecord", r"ending of data\.path"),
    "no images in it": (lambda folder: save_npz(folder / "a.npz", GREY, imgs=None, xs=GREY), "array called imgs"),
    "floats": (lambda folder: save_npy(folder / "a.npy", GREY / 255), r"bytes \(uint8\).*255 \* x"),
    "objects": (lambda folder: save_npz(folder / "a.npz", GREY.astype(object)), "uint8"),
    "not square": (lambda folder: save_npy(folder / "a.npy", GREY[:, :, :16]), "20 x 16.*crop"),
    "too small": (lambda folder: save_npy(folder / "a.npy", GREY[:, :8, :8]), "16 to 128"),
    "too large": (lambda folder: save_npy(folder / "a.npy", np.zeros((99, 129, 129), np.uint8)), "16 to 128"),
    "rows": (lambda folder: save_npy(folder / "a.npy", GREY.reshape(N, -1)), r"\(n, side, side\)"),
    "two channels": (lambda folder: save_npy(folder / "a.npy", pictures()[..., :2]), r"\(n, side, side\)"),
    "bomb": (lambda folder: bomb(folder / "a.npz"), "as long as its header says"),
    "Fortran in an npz": (lambda folder: save_npz(folder / "a.npz", np.asfortranarray(GREY)), "row by row"),
    "factors of fewer images": (
        lambda folder: save_npz(folder / "a.npz", GREY, latents_values=SOURCES[1:]), "a row of numbers for each"),
    "factors of objects": (
        lambda folder: save_npz(folder / "a.npz", GREY, latents_values=SOURCES.astype(object)), "a row of numbers"),
    "a factor that is missing": (
        lambda folder: save_npz(folder / "a.npz", GREY, latents_values=HOLED), "finite numbers.*nan in y, row 9"),
    "a table of fewer images": (
        lambda folder: broken_png(folder / "a", lambda path: (path / "0699.png").unlink()), "700 in .* for 699 images"),
    "sizes": (
        lambda folder: broken_png(folder / "a", lambda p: Image.new("RGB", (21, 21)).save(p / "0300.png")),
        "all 20 x 20 x 3.*0300"),
    "modes": (
        lambda folder: broken_png(folder / "a", lambda p: Image.new("L", (20, 20)).save(p / "0300.png")),
        "all 20 x 20 x 3.*0300"),
    "transparency": (
        lambda folder: broken_png(folder / "a", lambda p: Image.new("RGBA", (20, 20)).save(p / "0300.png")),
        r"RGBA.*0300.*convert\('RGB'\)"),
    "16 bits": (
        lambda folder: broken_png(folder / "a", lambda p: Image.new("I;16", (20, 20)).save(p / "0000.png")),
        "I;16.*convert"),
    "a palette": (
        lambda folder: broken_png(folder / "a", lambda p: Image.new("P", (20, 20)).save(p / "0000.png")), "mode P"),
    "half a png": (lambda folder: broken_png(folder / "a", lambda p: half(p / "0300.png")), "0300.png can't"),
    "text": (lambda folder: broken_png(folder / "a", lambda p: (p / "0000.png").write_text("a")), "0000.png can't"),
    "an empty folder": (lambda folder: folder, "PNG or JPEG"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_used_is_one_message(kind: str, tmp_path: Path) -> None:
    save, message = BROKEN[kind]
    with pytest.raises(UserError, match=message):
        made(settings(save(tmp_path)), tmp_path)
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"factors": ["x", "z"]}, "one of data.factors"),
        ({"factors": ["x", "still"]}, "data.factors vary"),
        ({"factors": ["x", "x"]}, "twice"),
        ({"factors": []}, r"data\.dim.*set data\.dim=6"),
        ({"names": ["a", "b"]}, "a name for each factor"),
        ({"discrete": ["still"]}, "some of data.factors"),
        ({"dim": 5}, "data.dim is the number of data.factors"),
        ({"n_obs": N + 1}, "data.n_obs <= the images"),
        ({"n_obs": 100}, "at least 64"),
        ({"side": 32}, "data.side is that of data.path"),
        ({"factors": "x"}, "data.factors"),
        ({"n_segments": 2}, "data.n_segments is 1"),
    ],
)
def test_settings_that_the_file_contradicts_are_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz", GREY)
    with pytest.raises(UserError, match=message):
        settings(path, **given)


def norb_file(path: Path, values: NDArray[Any]) -> None:
    """As SmallNORB's: magic number of the type, number of axes, at least three sizes, then the numbers."""
    magic = {"uint8": 0x1E3D4C55, "int32": 0x1E3D4C54}[values.dtype.name]
    sizes = (*values.shape, 1, 1)[: max(3, values.ndim)]
    path.write_bytes(np.array([magic, values.ndim, *sizes], "<i4").tobytes() + values.tobytes())


def test_recipes_read_the_layouts_of_published_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes of docs/images.md run, on small files in those layouts."""
    monkeypatch.chdir(tmp_path)
    _, mpi3d, cars3d, smallnorb = blocks(ROOT / "docs/images.md", "python")
    marks = np.random.default_rng(1).integers(0, 255, (5, 96, 16, 16, 3), np.uint8)

    exec(mpi3d.replace("40", "2"), {})  # noqa: S102  -- our own page
    save_npz(tmp_path / "a.npz", np.zeros((6 * 6 * 2 * 3 * 3 * 2 * 2, 16, 16, 3), np.uint8), latents_values=None)
    data = settings(tmp_path / "a.npz", sources_path="mpi3d_factors.parquet")
    assert data.factors == ("color", "shape", "size", "camera", "background", "horizontal", "vertical")
    values = image_files.factors_of(image_files.open_images(data.path), data.sources_path, None).values.tolist()
    assert values[1] == [0, 0, 0, 0, 0, 0, 1]
    assert values[4 + 12] == [0, 0, 0, 1, 1, 0, 0]
    assert values[-1] == [5, 5, 1, 2, 2, 1, 1]

    (tmp_path / "cars").mkdir()
    for number, car in enumerate(marks):
        savemat(f"cars/car_{number}.mat", {"im": car.reshape(24, 4, 16, 16, 3).transpose(2, 3, 4, 0, 1)})
    exec(cars3d, {})  # noqa: S102
    data = settings(Path("cars3d.npz"), train=0.6, val=0.2)
    images = image_files.open_images(data.path)
    assert data.factors == ("elevation", "azimuth", "car")
    elevation, azimuth, car = image_files.factors_of(images, None, None).values.astype(int).T
    expected = marks.reshape(5, 24, 4, 16, 16, 3)[car, azimuth, elevation]
    np.testing.assert_array_equal(next(images.blocks()), expected.transpose(0, 3, 1, 2))

    name, pairs = "smallnorb-5x46789x9x18x6x2x96x96-training", marks[..., 0].reshape(240, 2, 16, 16)
    info = np.random.default_rng(2).integers(0, 9, (240, 4), np.int32)
    norb_file(tmp_path / f"{name}-dat.mat", pairs)
    norb_file(tmp_path / f"{name}-cat.mat", np.arange(240, dtype=np.int32) % 5)
    norb_file(tmp_path / f"{name}-info.mat", info)
    exec(smallnorb, {})  # noqa: S102
    data = settings(Path("smallnorb.npz"), train=0.4, val=0.3)
    images = image_files.open_images(data.path)
    assert data.factors == ("category", "instance", "elevation", "azimuth", "lighting")
    np.testing.assert_array_equal(image_files.factors_of(images, None, None).values[:, 1:], info)
    np.testing.assert_array_equal(next(images.blocks())[:, 0], pairs[:, 0])
