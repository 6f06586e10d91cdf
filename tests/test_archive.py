"""A run as one file: what comes out is what went in, or one message."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import imavae
from imavae.runs.archive import MANIFEST

SETTINGS: dict[str, Any] = {
    "name": "mine",
    "tracking": {"name": "none"},
    "data": {"n_obs": 640},
    "model": {"hidden_factor": 2},
    "members": {"seed": [1, 2]},
    "training": {"max_epochs": 2, "validate_every": 1, "probes": False},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> imavae.Results:
    return imavae.train(SETTINGS, output_dir=str(tmp_path_factory.mktemp("original")))


@pytest.fixture(scope="module")
def archive(finished: imavae.Results) -> Path:
    return imavae.export(finished, finished.folder.parents[1] / "mine.zip")


def files(folder: Path) -> dict[str, bytes]:
    """The files of a folder but for locks."""
    paths = [path for path in folder.rglob("[!.]*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def repacked(archive: Path, target: Path, change: dict[str, bytes | None], listed: dict[str, str]) -> Path:
    """A copy of an archive with other files, None for none, and with these digests in its manifest, too."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as copy:
        content: dict[str, bytes | None] = {name: source.read(name) for name in source.namelist()}
        content |= change
        manifest = json.loads(source.read(MANIFEST))
        manifest["sha256"] |= listed
        content[MANIFEST] = json.dumps(manifest).encode() if MANIFEST not in change else change[MANIFEST]
        for name, body in content.items():
            if body is not None:
                copy.writestr(name, body)
    return target


def test_an_imported_study_is_the_one_that_was_exported(
    finished: imavae.Results, archive: Path, tmp_path: Path
) -> None:
    found = imavae.import_study(archive, tmp_path)
    assert found.folder == tmp_path / "runs" / "mine"
    assert files(found.folder) == files(finished.folder)
    assert found.members.equals(finished.members)
    x = torch.randn(5, 3)
    assert torch.equal(imavae.load_model(found.folder).encode(x), finished.model().encode(x))
    imavae.train(SETTINGS, output_dir=str(tmp_path), resume=True)  # nothing is left to train


def test_a_copy_elsewhere_is_exported_as_what_it_is(finished: imavae.Results, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "mine"
    shutil.copytree(finished.folder, copy)
    found = imavae.import_study(imavae.export(copy, tmp_path / "copy.zip"), tmp_path)
    assert found.folder == tmp_path / "runs" / "mine"


def test_an_existing_study_is_not_replaced(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(imavae.UserError, match="folder is new"):
        imavae.import_study(archive, tmp_path)


def test_a_damaged_archive_is_one_message_and_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    bad = tmp_path / "bad.zip"
    for part in range(1, 20):
        position = len(whole) * part // 20
        flipped = bytes([whole[position] ^ 0xFF])
        for content in (whole[:position], whole[:position] + flipped + whole[position + 1 :]):
            bad.write_bytes(content)
            with pytest.raises(imavae.UserError):
                imavae.import_study(bad, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("change", "listed"),
    [
        ({"members.csv": b"trial,seed\n0,1\n"}, {}),
        ({"members.csv": None}, {}),
        ({MANIFEST: None}, {}),
        ({MANIFEST: b"[]"}, {}),
        ({MANIFEST: b'{"format": 1, "kind": "..", "name": "x", "sha256": {}}'}, {}),
        ({"../evil.txt": b"evil"}, {"../evil.txt": "4" * 64}),
        ({"/evil/evil.txt": b"evil"}, {"/evil/evil.txt": "4" * 64}),
        ({"a/../../evil.txt": b"evil"}, {"a/../../evil.txt": "4" * 64}),
        ({"bomb.txt": bytes(10**8)}, {"bomb.txt": "4" * 64}),
    ],
)
def test_a_forged_archive_is_refused(
    archive: Path, tmp_path: Path, change: dict[str, bytes | None], listed: dict[str, str]
) -> None:
    forged = repacked(archive, tmp_path / "forged.zip", change, listed)
    with pytest.raises(imavae.UserError, match="must hold"):
        imavae.import_study(forged, tmp_path / "out")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != forged]


def test_a_study_whose_files_were_exchanged_is_not_exported(finished: imavae.Results, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    shutil.copytree(finished.folder, folder)
    (folder / "champion.pt").write_bytes((folder / "checkpoint.pt").read_bytes())
    with pytest.raises(imavae.UserError, match="study's files are those that it has written"):
        imavae.export(folder, tmp_path / "mine.zip")
    assert not (tmp_path / "mine.zip").exists()


def test_what_can_not_be_written_is_one_message(finished: imavae.Results, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(imavae.UserError, match="the archive can be written"):
        imavae.export(finished, tmp_path / f"{'x' * 300}.zip")
    (tmp_path / "file").touch()
    with pytest.raises(imavae.UserError, match="output_dir can be written"):
        imavae.import_study(archive, tmp_path / "file")


@pytest.mark.parametrize("name", ["missing/mine.zip", "original/runs/mine/mine.zip", ""])
def test_an_archive_has_a_place_of_its_own(finished: imavae.Results, tmp_path: Path, name: str) -> None:
    target = finished.folder / "mine.zip" if name.startswith("original") else tmp_path / name
    with pytest.raises(imavae.UserError, match="path is"):
        imavae.export(finished, target)
