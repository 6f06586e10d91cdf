"""What stands on a screen of 80 columns, or goes into a pipe, when commands run: read as a terminal draws it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import NamedTuple

import pyte
import pytest
from rich.console import Console, RenderableType
from rich.live import Live

from imavae.config.settings import Objective
from imavae.report.display import Display, new_console
from imavae.report.tables import best_trials, chosen_table, front_table, member_table, metric_table
from imavae.tracking import TrialRecord
from tests.helpers import text_of
from tests.pages import foreign
from tests.test_display import snapshot
from tests.test_report import hand_made, study

pytestmark = pytest.mark.slow  # commands in processes of their own; one starts Ray
ROOT = Path(__file__).resolve().parent.parent
ADDRESSES = ("results ", "report ", "figures ", "champion ", "resume ")  # are copied, hence never broken
STYLE = re.compile(r"\x1b\[[0-9;]*m")
TINY = ["data.n_obs=700", "training.max_epochs=2", "members.seed=[1,2]"]
LONG = [f"training.a_rather_long_name_{n}" for n in range(6)]


class Run(NamedTuple):
    """What a command has left on a terminal."""

    code: int
    raw: str
    lines: list[str]  # of the screen and of what has scrolled off it, without those that are empty


def screen_of(raw: str, columns: int = 80, rows: int = 24) -> list[str]:
    """What stands on such a screen once all is printed, scrolled lines first."""
    screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=1)
    pyte.Stream(screen).feed(raw.replace("\r\n", "\n").replace("\n", "\r\n"))
    scrolled = ["".join(line[x].data for x in range(columns)) for line in screen.history.top]
    return [line.rstrip() for line in [*scrolled, *screen.display] if line.strip()]


def on_a_terminal(command: list[str], cwd: Path, columns: int = 80, **variables: str) -> Run:
    """Run a script on a terminal of its own."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", **variables}
    line = [sys.executable, str(ROOT / "scripts" / command[0]), *command[1:]]
    process = subprocess.Popen(line, cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = bytearray()
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # all who could write have ended
            break
        if not part:
            break
        said += part
    os.close(ours)
    raw = said.decode()
    return Run(process.wait(), raw, screen_of(raw, columns))


def sound(lines: list[str], columns: int = 80) -> None:
    """No line is broken by the terminal, and none is somebody else's."""
    assert foreign("\n".join(lines)) == []
    assert [line for line in lines if len(line) > columns and not line.startswith(ADDRESSES)] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a folder ü")  # blanks and umlauts must do no harm


@pytest.fixture(scope="module")
def tuned(folder: Path) -> Run:
    """A study on a terminal without colour, in a language without umlauts."""
    line = ["tune.py", "search=gamma_uniform", "budget.trials=2", *TINY]
    return on_a_terminal(line, folder, NO_COLOR="1", LC_ALL="C", LANG="C")


def test_a_study_leaves_one_panel_and_its_tables_on_the_screen(tuned: Run) -> None:
    assert tuned.code == 0, tuned.raw
    sound(tuned.lines)
    [panel] = [line for line in tuned.lines if line.startswith("trials ")]  # no frame is left behind
    assert "2/2" in panel
    assert any(line.startswith("MCC, three ways") for line in tuned.lines)
    assert tuned.lines[-1].startswith("took ")
    assert STYLE.findall(tuned.raw) == []


def test_a_run_leaves_its_bar_and_its_tables_on_a_narrow_screen(folder: Path) -> None:
    run = on_a_terminal(["train.py", *TINY, "tracking=none"], folder, columns=60)
    assert run.code == 0, run.raw
    sound(run.lines, columns=60)
    assert len([line for line in run.lines if line.startswith("epoch")]) == 1
    assert STYLE.findall(run.raw)  # colours are there unless they are refused


def test_a_dumb_terminal_gets_plain_lines(folder: Path) -> None:
    run = on_a_terminal(["train.py", *TINY, "tracking=none"], folder, TERM="dumb")
    assert run.code == 0, run.raw
    sound(run.lines)
    assert "\x1b" not in run.raw
    assert run.raw.count("epoch ") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_pipe_gets_text_alone_in_whatever_encoding(encoding: str, folder: Path) -> None:
    """A study's test split, hence MLflow too, is read on the way."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "COLUMNS": "80"}
    line = [sys.executable, str(ROOT / "scripts/train.py"), *TINY, "name=piped"]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, check=False)
    text = done.stdout.decode(encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not [character for character in text if ord(character) < 32 and character != "\n"]
    sound(text.splitlines())
    assert text.count("epoch ") == 1
    assert "ELBO" in text


def shown(renderable: RenderableType, columns: int = 80) -> list[str]:
    output = Console(file=io.StringIO(), width=columns, color_system=None)
    output.print(renderable)
    return text_of(output).splitlines()


def renderables() -> dict[str, RenderableType]:
    members, trials = study([3.0, 31.6, 1000.0], 8)
    members.loc[::3, "status"] = "diverged"
    members["min val/neg_elbo"] *= 1e7
    trials = trials.assign(**dict.fromkeys(LONG, "a-rather-long-value"))
    keys = ["model.gamma", *LONG]
    plain = members.drop(columns=[c for c in members if "mcc" in str(c)])
    plain["val/agreement at min val/neg_elbo"] = 0.5
    objectives = [Objective(), *(Objective(metric=f"val/{m}", mode="min") for m in ("cima", "neg_elbo"))]
    point = dict.fromkeys(LONG, 1234567.0)
    front = [TrialRecord(n, point, "finished", 0.9, [], [], {"val/cima": 1e-9, "val/neg_elbo": 1e9}) for n in (7, 123)]
    values = members[["seed", "gamma"]].assign(
        **{f"test/{name}": -1234.5 for name in ("self_consistency_batch", "mcc")}
    )
    return {
        "best trials": best_trials(members, trials, keys, "max"),
        "best trials without sources": best_trials(plain, trials, keys, "min"),
        "front of three objectives": front_table(front, objectives, LONG),
        "members": member_table(hand_made()),
        "members without sources": member_table(plain[plain["trial"] == 1]),
        "three numbers": chosen_table(members),
        "three numbers without sources": chosen_table(plain),
        "metrics": metric_table(values, f"outputs/studies/{'long-' * 20}name/champion.pt"),
    }


@pytest.mark.parametrize("name", renderables())
def test_each_table_holds_in_80_columns_whatever_it_is_of(name: str) -> None:
    lines = shown(renderables()[name])
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)  # nothing is cut


@pytest.mark.parametrize("columns", [60, 80])
def test_the_panel_is_redrawn_in_its_place(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    output = Console(file=io.StringIO(), width=columns, height=24, force_terminal=True)
    with Display(output) as display:
        for n in range(30):
            point = {f"model.a_long_name_{k}": n / 3 for k in range(n % 7)}  # the panel grows and shrinks
            display.snapshot(snapshot(1.0 * n, n, n / 30, best_point=point))
            assert isinstance(display._live, Live)
            display._live.refresh()
        display.notice("a notice")
    lines = screen_of(text_of(output), columns)
    assert [line.startswith("trials") for line in lines].count(True) == 1
    assert "a notice" in lines
    assert max(map(len, lines)) <= columns


def test_without_colour_there_is_no_style_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for refused in ("1", ""):
        monkeypatch.setenv("NO_COLOR", refused)
        monkeypatch.setenv("FORCE_COLOR", "1")
        output = new_console()
        output.file = io.StringIO()
        output.print(member_table(hand_made()))
        assert bool(STYLE.findall(output.file.getvalue())) is not bool(refused)
