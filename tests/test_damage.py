"""No single file of a study, lost, damaged, exchanged or copied, changes a result: it is the same, or one message."""

from __future__ import annotations

import io
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from optuna.storages import InMemoryStorage
from ray.tune.experiment import Trial

from imavae.config.mapping import to_mapping
from imavae.config.settings import StudyConfig, base_of, study_config
from imavae.data.storage import Lock
from imavae.errors import UserError
from imavae.runs.folder import create, reopen
from imavae.runs.ledger import Ledger
from imavae.runs.models import load_model
from imavae.runs.results import load_results
from imavae.runs.session import Session
from imavae.search import cluster, stored, study, trials, worker
from imavae.training import checkpoint

FINISHED, BROKEN_OFF = "finished", "broken off"
STOP_AFTER = 2  # trials of the study that is broken off


def config(folder: Path, **other: Any) -> StudyConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "study": "tiny",
        "data": {"n_obs": 640, "dim": 2},
        "members": {"seed": [1, 2]},
        "training": {"max_epochs": 2, "validate_every": 1, "probes": False},
        "model": {"hidden_factor": 2, "n_layers": 1},
        "search": {"model": {"gamma": {"type": "choice", "values": [3.0, 30.0, 100.0]}}},
        "sampler": {"name": "grid", "pack": 1},
        "cluster": {"cpus": 1},
        "tracking": {"name": "none"},
    }
    return study_config(settings | other)


class InProcess:
    """Stands for Ray's tuner: trains one trial after the other in this process."""

    def __init__(self, settings: StudyConfig, searcher: Any, ledger: Ledger, recorder: Any, stopping: Any) -> None:
        self._all = settings, searcher, ledger, recorder, stopping

    def fit(self) -> None:
        settings, searcher, ledger, recorder, stopping = self._all
        base, goals = to_mapping(base_of(settings)), [vars(goal) for goal in settings.objectives]
        for number in range(searcher.n_trials):
            trial = Mock(spec=Trial, trial_id=str(number), config=searcher.suggest(str(number)), run_metadata=Mock())
            recorder.on_trial_start(0, [], trial)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("ray.get_gpu_ids", list)
                patch.setattr("ray.tune.report", lambda result: reported(trial, result))  # noqa: B023

                def reported(trial: Any, result: dict[str, Any]) -> None:
                    stopping.on_trial_result(None, trial, result)
                    recorder.on_trial_result(0, [], trial, result)

                worker.trainable(trial.config, base, goals, str(ledger.folder))
            result = recorder._trials[trial.trial_id].result
            searcher.on_trial_complete(trial.trial_id, result)
            recorder.on_trial_complete(0, [], trial)
            if not settings.resume and number + 1 == STOP_AFTER and settings.name == "broken-off":
                for write in recorder._writes:
                    write.result()
                raise KeyboardInterrupt


@contextmanager
def without_ray() -> Iterator[None]:
    @contextmanager
    def running(_: object) -> Iterator[int]:
        yield 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "running", running)
        patch.setattr(stored, "open_storage", lambda _: InMemoryStorage())  # it is rebuilt from the records
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(
            trials,
            "_tuner",
            lambda settings, searcher, stopping, _slots, ledger, recorder: InProcess(
                settings, searcher, ledger, recorder, stopping
            ),
        )
        yield


def run(settings: StudyConfig) -> list[str]:
    """Run or resume a study to its end, or to where it is broken off; return what it says."""
    said: list[str] = []
    with without_ray():
        ledger = study.run_study(settings, lambda _: None, said.append)
    if ledger.interrupted is None:
        if not settings.resume:
            ledger.crown()
        ledger.write_summary({"seconds": 1.0})
        ledger.names.latents.write_text("latent,kl\n0,1.5\n")
    ledger.finish([])
    return said


def results_of(folder: Path, shown: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """What the library tells of a study, with the models of the trials ``shown``, as plain values."""
    results = load_results(folder)
    models = {trial: results.model(trial) for trial in shown}
    champion = [load_model(folder)] if results.names.champion.is_file() or folder.name == FINISHED else []
    tables = [results.members, results.history, results.trials, results.latents]
    return {
        "tables": [table.to_csv() for table in tables],
        "state": (results.interrupted, results.points, dict(results.summary)),
        "models": {trial: [w.detach().tolist() for w in model.weights.values()] for trial, model in models.items()},
        "champion": [(model.about, *(w.detach().tolist() for w in model.weights.values())) for model in champion],
    }


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The output folders of a finished study and of one that was broken off."""
    folders = {}
    for name in (FINISHED, BROKEN_OFF):
        folders[name] = tmp_path_factory.mktemp("damage")
        run(config(folders[name], name=name.replace(" ", "-")))
    return folders


def files_of(output: Path) -> list[Path]:
    [folder] = (output / "studies").iterdir()
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[int(0.6 * len(content))] ^= 4
    path.write_bytes(content)


def swap(path: Path) -> None:
    """Exchange a file with the next one of its folder and kind."""
    alike = sorted(other for other in path.parent.glob(f"*{path.suffix}") if other.name[:5] == path.name[:5])
    if other := alike[(alike.index(path) + 1) % len(alike)]:
        aside = path.with_name("aside")
        path.rename(aside)
        other.rename(path) if other != path else None
        aside.rename(other)


def replace(path: Path) -> None:
    """Put the next file of its kind in its place."""
    alike = sorted(other for other in path.parent.glob(f"*{path.suffix}") if other.name[:5] == path.name[:5])
    if (other := alike[(alike.index(path) + 1) % len(alike)]) != path:
        shutil.copy(other, path)


def copy_beside(path: Path) -> None:
    for name in (f"{path.stem} (conflicted copy){path.suffix}", f"{path.stem}0{path.suffix}"):
        shutil.copy(path, path.with_name(name))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "cut": cut,
    "flipped": flip,
    "swapped": swap,
    "replaced": replace,
    "copied": copy_beside,
}
EXPECTED: dict[str, Any] = {}


@pytest.mark.filterwarnings("ignore:files in")
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", [FINISHED, BROKEN_OFF])
def test_a_damaged_file_changes_no_result(name: str, kind: str, originals: dict[str, Path], tmp_path: Path) -> None:
    """The study is read, where it is finished, then resumed and read."""
    if not EXPECTED:
        shutil.copytree(originals[FINISHED], tmp_path / "expected")
        EXPECTED.update(results_of(tmp_path / "expected/studies/finished"))
    output, wrong = tmp_path / "out", []
    for file in files_of(originals[name]):
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(originals[name], output)
        damaged = output / file.relative_to(originals[name])
        [folder] = (output / "studies").iterdir()
        DAMAGE[kind](damaged)
        reads: list[Callable[[Path, Sequence[int]], dict[str, Any]]] = [results_of] if name == FINISHED else []
        reads += [resumed] if name == BROKEN_OFF or damaged.parent != folder or "study" in file.name else []
        wrong += [f"{file.name}: {answer}" for read in reads if (answer := attempt(read, damaged, folder))]
    assert wrong == []


def test_the_cases_are_enough(originals: dict[str, Path]) -> None:
    assert sum(len(files_of(output)) for output in originals.values()) * len(DAMAGE) >= 200


def resumed(folder: Path, shown: Sequence[int]) -> dict[str, Any]:
    run(config(folder.parent.parent, name=folder.name, resume=True))
    return results_of(folder, shown)


def attempt(read: Callable[[Path, Sequence[int]], dict[str, Any]], damaged: Path, folder: Path) -> str:
    """What is wrong with an answer: it must be the undisturbed study's, or one message."""
    numbers = re.findall(r"\d{3}", damaged.name)  # its own trial's model is looked at
    try:
        found = read(folder, [int(numbers[0])] if numbers else [0])
    except UserError as error:
        return "" if len(str(error).splitlines()) == 1 else f"several lines: {error}"
    found["models"] = EXPECTED["models"] | found["models"]
    if not found["champion"]:  # it is chosen at the end of a study
        found["champion"] = EXPECTED["champion"]
    different = [key for key in EXPECTED if repr(found[key]) != repr(EXPECTED[key])]
    return f"other {', '.join(different)}" if different else ""


def test_a_stranger_is_named_once_and_left_alone(originals: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(originals[BROKEN_OFF], tmp_path, dirs_exist_ok=True)
    [folder] = (tmp_path / "studies").iterdir()
    record = folder / "records/trial-001.json"
    strange = [record.with_name(name) for name in ("trial-001 (conflicted copy).json", "trial-0001.json", ".x.123")]
    for file in strange:
        shutil.copy(record, file)
    with pytest.warns(UserWarning, match=r"trial-0001\.json.*conflicted copy"):
        assert len(load_results(folder).records) == STOP_AFTER
    said = run(config(tmp_path, name=folder.name, resume=True))
    assert [notice for notice in said if "conflicted copy" in notice] == said[:1]
    assert all(file.is_file() for file in strange)


# A file whose seal is right, and whose content is not.

CONTENT: dict[str, Callable[[dict[str, Any]], object]] = {
    "another dtype": lambda c: c["state_dict"].update({k: v.double() for k, v in c["state_dict"].items()}),
    "NaN": lambda c: next(iter(c["state_dict"].values())).fill_(torch.nan),
    "another shape": lambda c: c["state_dict"].update({k: v[None] for k, v in c["state_dict"].items()}),
    "a weight less": lambda c: c["state_dict"].popitem(),
    "a weight more": lambda c: c["state_dict"].update(more=torch.zeros(1)),
    "settings of another model": lambda c: c["config"]["model"].update(n_layers=4),
    "no settings": lambda c: c.pop("config"),
    "no weights": lambda c: c.update(state_dict=None),
    "no provenance": lambda c: c.pop("about"),
    "another kind": lambda c: c.update(kind="else"),
    "no kind": lambda c: c.pop("kind"),
    "a scaling": lambda c: c.update(scaling={"mean": torch.zeros(9), "std": torch.ones(9)}),
}
STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another dtype": lambda c: c["state"].update(frozen=c["state"]["frozen"].double()),
    "NaN": lambda c: c["state"]["best"]["val/mcc"]["weights"].fill_(torch.nan),
    "another shape": lambda c: c["state"].update(frozen=c["state"]["frozen"][:, 1:]),
    "a member less": lambda c: c["state"].update(frozen=c["state"]["frozen"][1:]),
    "a point less": lambda c: c["points"].pop(),
    "settings of another model": lambda c: [point["model"].update(n_layers=4) for point in c["points"]],
    "no best state": lambda c: c["state"]["best"].pop("val/mcc"),
    "no state": lambda c: c.pop("state"),
    "members that do not exist": lambda c: c["state"].update(active=torch.tensor([0, 7])),
    "another kind": lambda c: c.update(kind="model"),
}


def altered(path: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    content = checkpoint.load(path)
    alter(content)
    kind = content.pop("kind", None)
    checkpoint.save(path, kind, content) if kind else checkpoint.SEAL.write(path, b"no archive")


@pytest.mark.parametrize("name", CONTENT)
def test_a_model_that_contradicts_itself_is_refused(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    shutil.copy(originals[FINISHED] / "studies/finished/champion.pt", path)
    altered(path, CONTENT[name])
    with pytest.raises(UserError, match="checkpoint") as error:
        load_model(path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", STATES)
def test_an_ensemble_that_contradicts_itself_is_refused(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "ensemble.pt"
    shutil.copy(originals[FINISHED] / "studies/finished/checkpoints/ensemble-000.pt", path)
    altered(path, STATES[name])
    with pytest.raises(UserError, match="checkpoint") as error:
        Session.load(path, torch.device("cpu"))
    assert len(str(error.value).splitlines()) == 1


def test_a_checkpoint_that_grows_when_it_is_unpacked_is_refused(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**20))
    path = tmp_path / "bomb.pt"
    checkpoint.SEAL.write(path, packed.getvalue())
    with pytest.raises(UserError, match="grows"):
        load_model(path)


def test_a_lock_survives_that_its_file_is_unlinked(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    (tmp_path / ".lock").unlink()
    with pytest.raises(UserError, match="one process at a time"):
        Lock(tmp_path)
    lock.release()
    Lock(tmp_path).release()


def test_the_newest_study_is_told_by_its_number_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path)
    for seconds in (1e9, 1e8):  # the clock is set back
        monkeypatch.setattr(time, "time", lambda seconds=seconds: seconds)
        created = create(settings, "studies", "tiny")
        created.lock.release()
    assert reopen(settings, "studies", "tiny").path == created.path


def test_processes_with_the_same_number_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers that share an output folder: each writes under a name that no other one has."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    (tmp_path / "studies").mkdir()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create(config(tmp_path), "studies", "tiny").path.name, range(24)))
    assert sorted(made) == sorted(os.listdir(tmp_path / "studies"))
    assert len(set(made)) == 24
    assert all((tmp_path / "studies" / name / "study.json").is_file() for name in made)
