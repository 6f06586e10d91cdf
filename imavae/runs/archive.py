"""A study or run as one file: its folder in a zip archive, with a manifest of the SHA-256 of each file.

The archive holds all that loads the results and the models, and all that continues the study. Ray's logs and locks
stay behind; so do a user's data and plugins, whose digests the study's state has.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from imavae.config.settings import StudyConfig, is_folder_name
from imavae.data.storage import Lock, temporary, written_whole
from imavae.errors import require
from imavae.runs.folder import RunFolder, check_recorded
from imavae.runs.results import Results, load_results

MANIFEST = "manifest.json"
FORMAT = 1
LARGEST_MANIFEST = 2**26  # bytes; a file has about 150
DAMAGED = "get the archive again"


def export(study: Results | str | Path, path: str | Path) -> Path:
    """Write a run or study into a zip archive and return its path; ``imavae.import_study`` reads it.

    Args:
        study: results of ``train``, ``tune`` or ``load_results``, or the folder.
        path: of the archive, such as ``"study.zip"``; its folder exists.

    Raises:
        UserError: there is no such study, its files are damaged, a process works in it, or the archive can't be
            written.
    """
    results, target = load_results(study.folder if isinstance(study, Results) else study), Path(path).expanduser()
    folder = results.folder
    rule, remedy = "path is a file's in a folder that exists", "choose another"
    require(target.parent.is_dir() and not os.path.isdir(target), rule, target, remedy)
    outside = not target.resolve().is_relative_to(folder)
    require(outside, "path is outside the study's folder", target, remedy)
    lock = Lock(folder)  # nobody writes meanwhile
    try:
        digests = {}
        with (
            written_whole(target) as file,
            zipfile.ZipFile(cast("IO[bytes]", file), "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for own in _files(RunFolder(folder)):
                check_recorded(own)
                content, name = own.read_bytes(), own.relative_to(folder).as_posix()
                digests[name] = hashlib.sha256(content).hexdigest()
                archive.writestr(name, content)
            kind = "studies" if isinstance(results.config, StudyConfig) else "runs"
            manifest = {"format": FORMAT, "kind": kind, "name": folder.name, "sha256": digests}
            archive.writestr(MANIFEST, json.dumps(manifest, indent=1))
    except OSError as error:
        require(False, "the archive can be written", f"{target} ({error.strerror})", remedy)
    finally:
        lock.release()
    return target


def unpack(path: str | Path, output_dir: str | Path) -> Path:
    """Unpack an archive of :func:`export` into ``output_dir`` and return the study's folder.

    Each file is compared with the manifest before it is written. The study appears whole or not at all. Raises
    UserError if the file is no such archive, or a damaged one, or the folder exists.
    """
    source = Path(path).expanduser()
    require(source.is_file(), "path is an archive of imavae.export", source, "write one by imavae.export")
    try:
        with zipfile.ZipFile(source) as archive:
            manifest = _manifest(archive, source)
            target: Path = Path(output_dir).expanduser().resolve() / manifest["kind"] / manifest["name"]
            require(not target.exists(), "the study's folder is new", target, "move that one, or set output_dir")
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = temporary(target.parent)
            try:
                _unpack(archive, manifest["sha256"], aside)
                aside.rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        require(False, "path is an archive of imavae.export", f"{source} ({error})", DAMAGED)
    except OSError as error:
        require(False, "output_dir can be written", f"{output_dir} ({error.strerror})", "choose another")
    return target


def _unpack(archive: zipfile.ZipFile, digests: dict[str, str], folder: Path) -> None:
    for name, digest in digests.items():
        content = archive.read(name)
        same = hashlib.sha256(content).hexdigest() == digest
        require(same, "each file matches the manifest", f"another {name} in {archive.filename}", DAMAGED)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _files(names: RunFolder) -> list[Path]:
    """The files of a run or study, without logs, locks and strangers."""
    inner = [file for folder in names.inner for file in names.written(folder, "*") if file.suffix != ".lock"]
    tops = [file for file in names.path.glob("[!.]*") if file.is_file()]
    figures = [file for file in names.figures.glob("[!.]*") if file.is_file()]
    return sorted([*tops, *figures, *inner])


def _manifest(archive: zipfile.ZipFile, source: Path) -> dict[str, Any]:
    """The manifest of an archive, whose names stay inside the folder and whose sizes are those of real files."""
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    small = sizes.get(MANIFEST, 0) <= LARGEST_MANIFEST
    require(MANIFEST in sizes and small, "archive has a manifest", f"none in {source}", "write one by imavae.export")
    try:
        manifest: dict[str, Any] = json.loads(archive.read(MANIFEST))
        names, kind, name = list(manifest["sha256"]), manifest["kind"], manifest["name"]
        good = manifest["format"] == FORMAT and kind in ("runs", "studies") and is_folder_name(name)
    except (ValueError, KeyError, TypeError, AttributeError):
        good, names = False, []
    require(good, f"manifest has format {FORMAT}", f"another in {source}", "use the version of imavae that wrote it")
    inside = all(name in sizes and _is_inside(name) for name in names)
    require(inside, "manifest names files of a study", f"others in {source}", "do not trust it: get it again")
    # A deflated file is at most 1032 times smaller; ours, of numbers, some ten times.
    bounded = sum(sizes[name] for name in names) <= 200 * source.stat().st_size
    require(bounded, "archive's content is as large as its size lets expect", source, "do not trust it")
    return manifest


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    usual = 1 <= len(parts) <= 2 and not any(part.startswith(".") or "\\" in part or ":" in part for part in parts)
    return usual and PurePosixPath(name).as_posix() == name and not name.startswith("/")
