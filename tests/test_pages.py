"""Every command line that the README and its pages show runs, in a copy of the checkout, and nothing foreign is said.

All of them get a tiny budget, through ``ARGS`` where it is make's. A few lines go through make itself; for the others
make says what it would run (``make -n``), and one Python runs many lines, which saves it the imports.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers import free_port
from tests.pages import PAGES, README, ROOT, blocks, foreign, shell_lines

NOT_HERE = {
    "own_data.md": "test_own_data_page.py runs it, with the Python between its commands",
    "cluster.md": "a test of its own, below; test_cluster.py has two nodes, and test_readme.py the job script",
}
TRAIN = ["data.n_obs=1000", "training.max_epochs=1", "training.validate_every=1", "members.seed=[1,2]"]
STUDY = [*TRAIN, "cluster.cpus=1"]
TINY: dict[str, list[str]] = {
    "train": TRAIN,
    "evaluate": [],
    "tune": [*STUDY, "budget.trials=2"],
    "reproduce": STUDY,
}
IMAGES = ["data.side=16", "model.n_layers=2", "model.hidden_factor=4"]
LARGER = "budget.trials=64"  # a study that goes on gets one trial more
BY_MAKE = {"make tune SEARCH=gamma_uniform", "make reproduce"}
SERVED = {"make ui": "/health", "make dashboard": "/api/studies"}
TOO_LONG = "members.data.seed=${range:1,6}"  # a figure of so many members is composed, checked and timed
PROCESSES = [("train",), ("evaluate",), ("tune", "reproduce")]  # what quietens Ray may not quieten the others
RUN_ALL = """
import json, runpy, sys
sys.path.insert(0, "scripts")
for number, (script, *arguments) in enumerate(json.load(sys.stdin)):
    sys.argv = [script, *arguments]
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        code = error.code
    sys.stderr.flush()
    print(f"\\n<{number}: {code}>", flush=True)
"""


class Said(NamedTuple):
    """What came of a command line: its exit code, and its two streams as they meet on a terminal."""

    code: int
    text: str


def _lines() -> list[str]:
    found = [line for page in PAGES if page.name not in NOT_HERE for line in shell_lines(page)]
    return [line for line in dict.fromkeys(found) if line != "source .venv/bin/activate"]


LINES = _lines()


@pytest.fixture(scope="module")
def checkout() -> Iterator[Path]:
    """A copy of the checkout, whose environment is this one's, ready."""
    with tempfile.TemporaryDirectory(prefix="imavae") as folder:
        copy = Path(folder) / "checkout"
        for name in ("conf", "docs", "imavae", "scripts", "search_spaces"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy2(ROOT / name, copy)
        (copy / ".venv").mkdir()
        for part in Path(sys.prefix).iterdir():
            if part.name != ".ready":
                (copy / ".venv" / part.name).symlink_to(part)
        (copy / ".venv/.ready").touch()
        yield copy


@pytest.fixture(scope="module")
def environment(checkout: Path) -> dict[str, str]:
    """Of a shell in which that environment is active, and which no make has called."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "MLFLOW", "COLUMNS", "MAKE", "MFLAGS"))
    }
    return kept | {"PYTHONPATH": str(checkout), "PATH": f"{checkout}/.venv/bin:{os.environ['PATH']}"}


def _small(line: str) -> list[str]:
    """The words of a command line with a tiny budget, which stands last and so holds."""
    words = shlex.split(line)
    if words == ["make", "reproduce"]:
        return words
    script = Path(words[1]).stem  # or make's target, which is called like it
    tiny = TINY[script] + (IMAGES if "sprites" in line else []) + (["budget.trials=3"] if LARGER in line else [])
    tiny = [*tiny, "dry_run=true"] if TOO_LONG in words else tiny
    if words[0] == "python":
        return words + tiny
    given = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
    kept = [word for word in words if not word.startswith("ARGS=")]
    return [*kept, "ARGS=" + " ".join([*given, shlex.join(tiny)])]


def _run(words: list[str], checkout: Path, environment: dict[str, str], said: str = "") -> Said:
    done = subprocess.run(
        words, cwd=checkout, env=environment, input=said, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    return Said(done.returncode, done.stdout)


def _by_python(words: list[str], checkout: Path, environment: dict[str, str]) -> list[str]:
    """The script and its arguments; make is asked which."""
    if words[0] == "make":
        asked = _run(["make", "-n", *words[1:]], checkout, environment)
        [words] = [shlex.split(line) for line in asked.text.splitlines() if line.startswith(".venv/bin/python ")]
    return words[1:]


@pytest.fixture(scope="module")
def said(checkout: Path, environment: dict[str, str]) -> dict[str, Said]:
    """What came of every line but those that serve a page."""
    assert _run(["make", "-q", "setup"], checkout, environment).code == 0  # nothing would be installed
    came = {line: _run(_small(line), checkout, environment) for line in LINES if line in BY_MAKE}
    for scripts in PROCESSES:
        starts = tuple(start for script in scripts for start in (f"python scripts/{script}.py", f"make {script}"))
        lines = [line for line in LINES if line not in BY_MAKE and line.startswith(starts)]
        calls = [_by_python(_small(line), checkout, environment) for line in lines]
        all_of_it = _run(["python", "-c", RUN_ALL], checkout, environment, json.dumps(calls))
        parts = re.split(r"\n<\d+: (-?\d+)>\n", all_of_it.text)
        assert len(parts) == 2 * len(lines) + 1, all_of_it.text
        came |= {line: Said(int(parts[2 * i + 1]), parts[2 * i]) for i, line in enumerate(lines)}
    assert set(came) | set(SERVED) == set(LINES)  # of any other command the test must be told
    return came


@pytest.mark.parametrize("line", [line for line in LINES if line not in SERVED])
def test_a_command_runs_and_says_nothing_that_is_not_ours(line: str, said: dict[str, Said]) -> None:
    code, text = said[line]
    disagrees = "FIGURE=" in line or "figure=" in line  # a figure of next to no training does, and says so
    assert code == int(disagrees and re.search(r"^\d+ FAIL", text, flags=re.MULTILINE) is not None), text
    assert foreign(text) == []
    assert text.strip()


@pytest.mark.usefixtures("said")  # there must be something to show
@pytest.mark.parametrize(("line", "question"), SERVED.items())
def test_a_page_answers_and_says_nothing_that_is_not_ours(
    line: str, question: str, checkout: Path, environment: dict[str, str]
) -> None:
    assert line in LINES
    port = free_port()
    made: subprocess.Popen[Any] = subprocess.Popen(
        [*shlex.split(line), f"PORT={port}"], cwd=checkout, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert made.stdout is not None
    heard = [made.stdout.readline(), made.stdout.readline()]
    try:
        assert f"http://127.0.0.1:{port}" in heard[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{question}", timeout=120) as answer:
            assert answer.status == 200
    finally:
        os.killpg(made.pid, signal.SIGINT)  # Ctrl-C is everybody's
        rest, _ = made.communicate(timeout=120)
    assert foreign("".join(heard) + rest) == []


@pytest.mark.usefixtures("said")
def test_the_champion_is_loaded_as_the_readme_says(checkout: Path, environment: dict[str, str]) -> None:
    [block] = blocks(README, "python")
    ask = (
        "\nimport torch\nprint(isinstance(model, torch.nn.Module), model.decode(model.encode(torch.zeros(2, 3))).shape)"
    )
    assert _run(["python", "-c", block + ask], checkout, environment) == (0, "True torch.Size([2, 3])\n")


def test_a_study_on_a_cluster_that_was_started_by_hand(checkout: Path, environment: dict[str, str]) -> None:
    """With `--block`, so that it ends with its process: `ray stop` would end what else runs on this machine."""
    lines = shell_lines(ROOT / "docs/cluster.md")
    [head] = [line for line in lines if line.startswith("ray start --head")]
    [study] = {line for line in lines if line.startswith("python scripts/tune.py") and line.endswith("=auto")}
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        own = environment | {"HOME": folder, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token"}
        assert _run(["ray", "get-auth-token", "--generate"], checkout, own).code == 0
        words = [*shlex.split(head.replace("6379", str(port))), "--block", "--num-cpus=2", "--include-dashboard=false"]
        started = subprocess.Popen(words, cwd=checkout, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(100):
                if list(Path(folder).glob("ray/ray_current_cluster")):
                    break
                time.sleep(0.3)
            code, text = _run([*_small(study), "name=by-hand"], checkout, own)
        finally:
            started.terminate()
            started.wait(120)
    assert code == 0, text
    assert foreign(text) == []
