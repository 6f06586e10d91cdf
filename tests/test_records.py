"""A written file is whole or absent; a damaged one is noticed, and never read as good."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from imavae.config.settings import RunConfig, StudyConfig, run_config, study_config
from imavae.data.storage import Lock, OtherFormatError, Seal, previous_of, write_text
from imavae.errors import UserError
from imavae.runs.folder import STATES, LockedFolder, RunFolder, Stored, create, reopen
from imavae.runs.ledger import Ledger
from imavae.runs.records import CompactRow, history_rows
from imavae.runs.results import load_results
from imavae.runs.session import Session
from imavae.tracking import Tracker, TrialRecord, Value
from imavae.training import checkpoint

GAMMA = {"type": "choice", "values": [3.0, 30.0]}
SEAL = Seal(b"a test", 1, "test file", "make one", "restore it", "use another version")


def config(tmp_path: Path, **other: Any) -> StudyConfig:
    base: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "study": "paper/tiny",
        "search": {"model": {"gamma": GAMMA}},
        "budget": {"trials": 3},
        "tracking": {"name": "none"},
    }
    return study_config(base | other)


def again(settings: StudyConfig, **other: Any) -> LockedFolder:
    return reopen(dataclasses.replace(settings, resume=True, **other), "studies", "paper-tiny")


def started(settings: StudyConfig, finished: bool = False) -> LockedFolder:
    """A folder that an earlier process has left."""
    folder = create(settings, "studies", "paper-tiny")
    if finished:
        folder.state.finished = True
        folder.save_state()
    folder.lock.release()
    return folder


# A file is whole or absent.


WRITER = """
import sys
from pathlib import Path
from imavae.data.storage import Seal
SEAL = Seal(b"a test", 1, "test file", "make one", "restore it", "use another version")
path, number = Path(sys.argv[1]), 0
while True:
    number += 1
    SEAL.write(path, (b"%d " % number) * 20_000, keep=True)
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_good_file(tmp_path: Path) -> None:
    """Of a process that does nothing but write, the last file or the one before it is there, however it was killed."""
    path = tmp_path / "state.pt"
    for moment in (0.0, 0.003, 0.011, 0.017):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        reported = [int(line) for line in process.stdout.read().split()]
        process.wait()
        newest = SEAL.newest(path)
        assert newest is not None
        words = set(SEAL.read(newest).split())
        assert len(words) == 1
        assert int(words.pop()) >= max(reported, default=1) - 1


def test_a_cut_file_is_never_read_as_good(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    SEAL.write(path, b"old", keep=True)
    SEAL.write(path, b"new" * 100, keep=True)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            SEAL.read(path)
        assert SEAL.newest(path) == previous_of(path)
    path.write_bytes(bytes(len(whole)))  # as a file system may leave it after a power cut
    assert SEAL.newest(path) == previous_of(path)
    path.unlink()
    previous_of(path).write_bytes(b"")
    assert SEAL.newest(path) is None


def test_another_version_is_not_taken_for_damage(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    for number in (1, 2):
        dataclasses.replace(SEAL, format=number).write(path, b"content", keep=True)
    with pytest.raises(OtherFormatError):
        SEAL.newest(path)


def test_a_write_that_fails_leaves_nothing_aside(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_text(tmp_path / "folder", "new")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_folder_has_one_process_at_a_time(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    with pytest.raises(UserError, match=rf"one process at a time.*process {os.getpid()} does"):
        Lock(tmp_path)
    lock.release()
    Lock(tmp_path).release()


# A study's state.


def test_a_name_that_is_taken_is_numbered(tmp_path: Path) -> None:
    folders = [create(config(tmp_path), "studies", "paper-tiny").path.name for _ in range(3)]
    assert folders == ["paper-tiny", "paper-tiny-2", "paper-tiny-3"]
    assert sorted(os.listdir(tmp_path / "studies")) == folders


@pytest.mark.parametrize("name", ["../x", "..", "a/b", ".hidden", "", "a b", "-x"])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name is a plain folder name"):
        config(tmp_path, name=name)
    with pytest.raises(UserError, match="study is plain names"):
        config(tmp_path, study=f"../{name}")


def test_the_newest_unfinished_study_of_the_search_is_resumed(tmp_path: Path) -> None:
    settings = config(tmp_path)
    started(settings)
    newest = started(settings)
    started(settings, finished=True)
    started(config(tmp_path, study="paper/other"))
    assert again(settings).path == newest.path
    assert again(settings, name="paper-tiny").path.name == "paper-tiny"


def test_a_raised_budget_makes_a_study_unfinished(tmp_path: Path) -> None:
    settings = config(tmp_path)
    finished = started(settings, finished=True)
    folder = again(config(tmp_path, budget={"trials": 5}))
    assert folder.path == finished.path
    assert folder.state.config["budget"]["trials"] == 5
    assert not folder.state.finished


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is a paper-tiny to resume"):
        again(config(tmp_path))
    with pytest.raises(UserError, match=r"there is a .*/studies/mine"):
        again(config(tmp_path, name="mine"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"data": {"n_obs": 3000}}, "data.n_obs=60000, not 3000"),
        ({"search": {"model": {"gamma": {**GAMMA, "values": [3.0]}}}}, r"gamma.values=\[3.0, 30.0\], not \[3.0\]"),
        ({"search": {"training": {"learning_rate": GAMMA}}}, "search.model.gamma.*search.training.learning_rate"),
        ({"members": {"seed": [1]}}, "members.seed"),
        ({"sampler": {"seed": 4}}, "sampler.seed=0, not 4"),
        ({"training": {"max_epochs": 7}}, "training.max_epochs=400, not 7"),
    ],
)
def test_what_was_asked_may_not_change(other: dict[str, Any], said: str, tmp_path: Path) -> None:
    started(config(tmp_path))
    with pytest.raises(UserError, match=said):
        again(config(tmp_path, **other))


def test_where_it_runs_may_change(tmp_path: Path) -> None:
    started(config(tmp_path))
    other = {"cluster": {"cpus": 1}, "training": {"threads": 2, "device": "cpu"}, "budget": {"trials": 9}}
    assert again(config(tmp_path, **other, tracking={"name": "mlflow"})).path.name == "paper-tiny"


def test_a_plugin_that_has_changed_is_noticed(tmp_path: Path) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text("")
    started(config(tmp_path, plugins=[str(plugin)]))
    again(config(tmp_path, plugins=[str(plugin)])).lock.release()
    plugin.write_text("# changed")
    with pytest.raises(UserError, match=r"another own\.py"):
        again(config(tmp_path, plugins=[str(plugin)]))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a changed byte": lambda path: path.write_bytes(path.read_bytes().replace(b"tiny", b"tinY")),
    "something else": lambda path: path.write_text("{}"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_state_comes_from_its_backup_or_not_at_all(name: str, tmp_path: Path) -> None:
    path = started(config(tmp_path)).path
    DAMAGE[name](RunFolder(path).state)
    folder = again(config(tmp_path))
    assert folder.path == path
    assert "its backup was used" in folder.notices[0]
    assert STATES.newest(RunFolder(path).state) == RunFolder(path).state
    folder.lock.release()
    DAMAGE[name](RunFolder(path).state)
    DAMAGE[name](previous_of(RunFolder(path).state))
    missing = name == "missing"  # then there is no trace of a study, but by its name
    with pytest.raises(UserError, match="to resume" if missing else "is no better"):
        again(config(tmp_path))
    with pytest.raises(UserError, match="is no better"):
        again(config(tmp_path), name="paper-tiny")
    assert os.listdir(tmp_path / "studies") == ["paper-tiny"]


@pytest.mark.parametrize("number", [1, 3])
def test_state_of_another_version_is_refused(number: int, tmp_path: Path) -> None:
    """By one message that names the version, also where the settings of that version no longer exist."""
    names = started(config(tmp_path)).names
    for _ in range(2):  # its backup, too
        dataclasses.replace(STATES, format=number).write(names.state, b'{"config": {"gone": 1}}', keep=True)
    for read in (lambda: again(config(tmp_path)), lambda: load_results(names.path)):
        with pytest.raises(OtherFormatError, match=rf"got {number} in .*imavae 0\.1 wrote format 1") as error:
            read()
        assert len(str(error.value).splitlines()) == 1


# Its trials.


def a_record(number: int, epochs: int = 4, extra: str = "val/mcc") -> TrialRecord:
    history: list[dict[str, Any]] = [
        {"trial": number, "seed": seed, "epoch": epoch, extra: 1 / (1 + number + epoch + seed), "val/neg_elbo": math.pi}
        for epoch in range(epochs)
        for seed in (1, 2)
    ]
    members: list[dict[str, Any]] = [
        {"trial": number, "seed": seed, "status": "finished", "epochs": epochs, "max val/mcc": 0.1 * seed / 3}
        for seed in (1, 2)
    ]
    return TrialRecord(number, {"model.gamma": 0.1 + number}, "finished", 0.1 * number, history, members)


def a_ledger(settings: RunConfig, folder: LockedFolder | None = None) -> Ledger:
    return Ledger.start(settings, folder or create(settings, "studies", "paper-tiny"), Tracker())


def ensemble(folder: Path) -> Path:
    path = folder / "checkpoints" / "ensemble-000.pt"
    checkpoint.save(path, "ensemble", {})
    return path


def tables(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("members.csv", "history.csv")]


def test_recorded_trials_come_back_as_they_were(tmp_path: Path) -> None:
    settings = config(tmp_path)
    ledger = a_ledger(settings)
    place = ensemble(ledger.folder)
    for number in (2, 0):
        ledger.add(a_record(number), place, number)
    ledger.write_tables()
    before = tables(ledger.folder)
    ledger.home.lock.release()
    found = a_ledger(settings, again(settings))
    assert found.results.records == ledger.results.records
    assert found.results.stored == ledger.results.stored
    assert (found.has(0), found.has(1), found.has(2)) == (True, False, True)
    found.add(a_record(1), place, 1)
    found.write_tables()
    rows = [row for number in range(3) for row in a_record(number).history]
    pd.testing.assert_frame_equal(found.results.history, pd.DataFrame(rows))
    assert tables(found.folder)[1].splitlines()[0] == before[1].splitlines()[0]


def test_tables_have_every_column_of_every_trial(tmp_path: Path) -> None:
    settings = config(tmp_path)
    ledger = a_ledger(settings)
    place = ensemble(ledger.folder)
    records = [a_record(number, extra=name) for number, name in enumerate(["val/a", "val/b", "val/a"])]
    for record in records:
        ledger.add(record, place, 0)
    assert len(ledger.results.history) == 24  # also before they are put in order
    ledger.write_tables()
    rows = [row for record in records for row in record.history]
    pd.testing.assert_frame_equal(ledger.results.history, pd.DataFrame(rows))


RECORD_DAMAGE = {
    "record": lambda folder: DAMAGE["half"](folder / "records" / "trial-000.json"),
    "curves": lambda folder: DAMAGE["half"](folder / "records" / "trial-000.csv"),
    "no curves": lambda folder: DAMAGE["missing"](folder / "records" / "trial-000.csv"),
    "checkpoint": lambda folder: DAMAGE["half"](folder / "checkpoints" / "ensemble-000.pt"),
    "no checkpoint": lambda folder: DAMAGE["missing"](folder / "checkpoints" / "ensemble-000.pt"),
}


@pytest.mark.parametrize("name", RECORD_DAMAGE)
def test_a_damaged_trial_is_said_and_trained_again(name: str, tmp_path: Path) -> None:
    settings = config(tmp_path)
    ledger = a_ledger(settings)
    ledger.add(a_record(0), ensemble(ledger.folder), 0)
    ledger.home.lock.release()
    RECORD_DAMAGE[name](ledger.folder)
    folder = again(settings)
    assert folder.stored == []
    [notice] = folder.notices
    assert "must hold" in notice


def test_a_failed_trial_is_tried_again(tmp_path: Path) -> None:
    settings = config(tmp_path)
    ledger = a_ledger(settings)
    ledger.home.save(Stored(TrialRecord(0, {}, "failed", None, [], []), None, 0))
    ledger.home.lock.release()
    folder = again(settings)
    assert (folder.stored, folder.notices) == ([], [])


def test_a_folder_whose_end_fails_is_free_to_resume(tmp_path: Path) -> None:
    class Full(Tracker):
        def finish(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

    settings = config(tmp_path)
    ledger = Ledger.start(settings, create(settings, "studies", "paper-tiny"), Full())
    with pytest.raises(OSError, match="no space"):
        ledger.close("finished")
    assert not again(settings).state.finished


def test_the_ensembles_of_points_are_remembered(tmp_path: Path) -> None:
    settings = config(tmp_path)
    folder = create(settings, "studies", "paper-tiny")
    packs = [[[0, {"model.gamma": 0.1 + 0.2}], [2, {"model.gamma": 3.0}]], [[1, {"model.n_layers": 3}]]]
    for pack in packs:
        folder.ask(pack)
    folder.lock.release()
    assert again(settings).asked == packs


def test_a_trial_costs_the_same_whatever_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that are written for a trial, and the curves that are held in memory."""
    settings = config(tmp_path)
    ledger = a_ledger(settings)
    place = ensemble(ledger.folder)
    growing = [ledger.folder / name for name in ("members.csv", "history.csv")]
    sizes = []
    for number in range(40):
        before = sum(path.stat().st_size for path in growing if number)
        written: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda file, written=written: written.append(os.fstat(file).st_size))
        ledger.add(a_record(number), place, 0)
        sizes.append(sum(written) + sum(path.stat().st_size for path in growing) - before)
    assert max(sizes[20:]) < 1.1 * max(sizes[1:20])
    assert all(record.history == [] for record in ledger.records)


# An ensemble's checkpoint.


def point(**training: Any) -> RunConfig:
    settings = {"max_epochs": 6, "validate_every": 1, **training}
    return run_config({"data": {"n_obs": 2000}, "members": {"seed": [1, 2]}, "training": settings})


def test_an_ensemble_goes_on_from_its_last_good_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    path, cpu = tmp_path / "ensemble-000.pt", torch.device("cpu")
    whole = Session.start([point()], cpu)
    for _ in whole.train():
        pass
    session = Session.start([point()], cpu)
    for progress in session.train():
        session.save(path, keep=True)
        if progress.epoch == 4:
            break
    path.write_bytes(path.read_bytes()[:-1])
    resumed = Session.resume(path, [point(threads=2)], cpu)
    assert resumed is not None
    assert resumed.state.epoch == 3  # the last one is damaged
    for _ in resumed.train():
        pass
    assert torch.equal(resumed.state.frozen, whole.state.frozen)
    assert history_rows(resumed, 0, 0) == history_rows(whole, 0, 0)
    previous_of(path).unlink()
    assert Session.resume(path, [point()], cpu) is None


def test_a_checkpoint_of_other_points_is_left_alone(tmp_path: Path) -> None:
    path, cpu = tmp_path / "ensemble-000.pt", torch.device("cpu")
    Session.start([point()], cpu).save(path)
    assert Session.resume(path, [point()], cpu) is not None
    assert Session.resume(path, [point(learning_rate=0.01)], cpu) is None
    assert Session.resume(path, [point(), point()], cpu) is None


def test_a_compact_row_equals_the_row() -> None:
    row: dict[str, Value] = {
        "trial": 3,
        "seed": 1,
        "status": "finished",
        "gamma": 0.1 + 0.2,
        "max val/mcc": math.inf,
        "epochs": 10**9,
    }
    compact = CompactRow(row)
    assert compact == row
    assert list(compact.items()) == list(row.items())
    assert [type(value) for value in compact.values()] == [type(value) for value in row.values()]
    assert "val/mcc" not in compact
    assert math.isnan(float(CompactRow({"gamma": math.nan})["gamma"]))
