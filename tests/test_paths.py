"""Any path and name works, or one line says what to write; sizes are refused before anything is allocated."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import make_url

import imavae
from imavae.cli.compose import compose, quoted
from imavae.cli.main import TRAIN, TUNE
from imavae.config.settings import StudyConfig, run_config, study_config
from imavae.errors import UserError
from imavae.runs.folder import create, reopen
from imavae.runs.ledger import tracker_of
from imavae.search.stored import open_storage
from imavae.tracking.server import database_file, sqlite_uri
from tests.helpers import normal

ROOT = Path(__file__).parents[1]
PART = st.one_of(
    st.text("abü漢 ?{}%41~=,[]()'\"$&;#@!*+:|<>\\-._\n\t", min_size=1, max_size=12),
    st.sampled_from(
        ["{y}", "%41", "~", "~root", "x" * 300, "..", "a b", "a=b", "a,b", "[a]", "$HOME", "${x}", "-m", "ü" * 120]
    ),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=300),
)


def study(**other: Any) -> StudyConfig:
    search = {"model": {"gamma": {"type": "choice", "values": [3.0]}}}
    return study_config({"study": "tiny", "search": search, "tracking": {"name": "none"}, **other})


def attempt(output_dir: str, name: str | None) -> str:
    """Make a study's folder and open it again; return the message if that is refused."""
    try:
        config = study(output_dir=output_dir, name=name)
        tracker_of(config, "tiny")
        folder = create(config, "studies", name or "tiny")
        folder.lock.release()
        again = reopen(config, "studies", "tiny")
        again.lock.release()
    except UserError as error:
        return str(error)
    assert again.path == folder.path
    return ""


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(part=PART, name=st.none() | PART)
def test_any_folder_and_name_work_or_are_told_in_one_message(part: str, name: str | None) -> None:
    """From the command line's words to the folder and its resumption, with nothing outside the output folder."""
    with tempfile.TemporaryDirectory() as base:
        inside = Path(base) / "inside"
        inside.mkdir()
        part = f"x{part}" if part in (".", "..") else part
        [word] = shlex.split(quoted("output_dir", str(inside / part)))
        [parsed] = OverridesParser.create().parse_overrides([word])
        assert parsed.value() == str(inside / part)
        uri = sqlite_uri(inside / part / "x.db")
        assert make_url(uri.format(any=1)).database == str(inside / part / "x.db")
        assert database_file(uri) == (inside / part / "x.db").resolve()
        told = attempt(str(parsed.value()), name)
        assert len(told.splitlines()) == (1 if told else 0)
        assert os.listdir(base) == ["inside"]
        assert set(os.listdir(inside)) <= {part}


@pytest.mark.parametrize("part", ["?", "{y}", "%41", "a b", "ü", "a=b,c", "[x]", "#?&"])
def test_databases_lie_where_the_folder_is(part: str, tmp_path: Path) -> None:
    folder = tmp_path / part
    folder.mkdir()
    open_storage(folder).get_all_studies()
    assert (folder / "optuna.db").is_file()
    assert os.listdir(tmp_path) == [part]


def test_a_home_is_found_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "my file.npy", normal(640, 3))
    data = {"kind": "file", "path": "~/my file.npy"}
    config = run_config({"output_dir": "~/out", "data": data})
    assert config.output_dir == str(tmp_path / "out")
    assert config.data.files == (str(tmp_path / "my file.npy"),)


@pytest.mark.parametrize("name", ["a b", "a/b", "?", "~", "{y}", "x" * 300, "ü" * 60, ".."])
def test_a_name_is_told_how_to_be(name: str) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        study(name=name)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["name=2024"], "'name=\"2024\"'"),
        (["members.seed=3"], "'members.seed=[3]'"),
        (["data.path=a(b.csv"], "'data.path=\"a(b.csv\"'"),
        (["data=file", "data.path=a,b.csv"], "'data.path=\"a,b.csv\"'"),
        (["data=file", "file.csv"], "'data.path=\"my file.csv\"'"),
    ],
)
def test_a_value_that_is_misread_is_told_how_to_be_written(words: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        TRAIN.check(compose(TRAIN, words).settings)
    assert told in str(error.value)
    assert len(str(error.value).splitlines()) == 1


LARGE: list[dict[str, Any]] = [
    {"data": {"n_obs": 10**12}},
    {"model": {"hidden_factor": 10**8}},
    {"model": {"n_layers": 10**9, "hidden_factor": 1000}},
    {"data": {"n_obs": 10**6}, "members": {"data": {"seed": list(range(20_000))}}},
    {"data": {"kind": "sprites", "n_obs": 10**12}},
    {"data": {"kind": "sprites", "n_obs": 10**8, "side": 64}},
]


@pytest.mark.parametrize("large", LARGE, ids=str)
def test_a_size_beyond_memory_is_refused_with_the_memory(large: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fit .* GB of .* GB"):
        imavae.train(**large, output_dir=str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_search_that_reaches_beyond_memory_is_refused() -> None:
    from imavae.search.space import check

    search = {"model": {"hidden_factor": {"type": "int", "low": 1, "high": 10**8}}}
    with pytest.raises(UserError, match="fit into memory"):
        check(study(search=search))


def test_a_hundred_million_seeds_are_refused() -> None:
    with pytest.raises(UserError, match="range has at most"):
        compose(TUNE, ["search=gamma_uniform", "members.seed=${range:0,100000000}"])


def test_threads_train_at_once(tmp_path: Path) -> None:
    """Each gets a folder of its own, and the numbers of a run alone."""
    tiny: dict[str, Any] = {
        "model": {"hidden_factor": 2},
        "members": {"seed": [1]},
        "training": {"max_epochs": 1, "validate_every": 1},
    }

    def run(_: int) -> Any:
        return imavae.train(data={"n_obs": 640, "dim": 2}, output_dir=str(tmp_path), **tiny)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(4)))
    assert len({result.folder for result in results}) == 4
    assert len({result.members.to_csv() for result in results}) == 1


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--version"], 0, "imavae "),
        (["train", "--version"], 0, "imavae "),
        (["train", "model.gamma=1", "-m", "members.seed=[1],[2]", "--cfg", "job"], 0, "gamma: 1"),
        (["train", "--config-path", "outputs/runs/train"], 2, "resume=true"),
        (["tarin"], 2, "train"),
        ([], 0, "train"),
    ],
    ids=str,
)
def test_the_package_is_the_command_line(words: list[str], code: int, told: str) -> None:
    command = [sys.executable, "-m", "imavae", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, told in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr


@pytest.mark.slow
def test_a_checkout_with_a_space_without_a_home_and_with_a_long_folder_for_temporary_files(tmp_path: Path) -> None:
    checkout, temporary = tmp_path / "a checkout", tmp_path / ("x" * 100)
    temporary.mkdir()
    for part in ("imavae", "conf", "scripts", "search_spaces"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(checkout), "TMPDIR": str(temporary), "HOME": "/proc/none"}
    command = [sys.executable, "scripts/tune.py", "search=gamma_uniform", "budget.trials=1", "data.n_obs=1000"]
    command += ["training.max_epochs=1", "members.seed=[1]", "cluster.cpus=1", "tracking=none"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(checkout.glob("outputs/studies/gamma_uniform/champion.pt"))
