"""The live display and its words: what changes is said, once, in a pipe and on a terminal."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys

import pytest
from rich.console import Console

from imavae.report.display import Display, clock, compact, point_text, short_names
from imavae.search.trials import RunningTrial, Snapshot
from tests.helpers import console, text_of


def snapshot(seconds: float, finished: int, best: float | None, **more: object) -> Snapshot:
    base = Snapshot(
        trials_total=32,
        finished=finished,
        running=[RunningTrial(n, {"model.gamma": 10.0 + n}, 15, 7, 0.25) for n in (20, 21)],
        stopped=31,
        members=8,
        best_score=best,
        best_point={"model.gamma": 98.21, "model.n_layers": 3},
        member_steps_per_s=31_234.0,
        seconds_left=130.0,
        seconds=seconds,
        metric="val/mcc",
    )
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


def test_in_a_pipe_a_line_is_printed_only_when_something_has_changed() -> None:
    output = console()
    with Display(output) as display:
        for seconds, finished, best in [
            (0.0, 0, None),
            (1.0, 0, 0.5),
            (3.0, 0, 0.5),
            (5.0, 1, 0.5),
            (7.0, 1, 0.5),
            (9.0, 1, 0.6),
        ]:
            display.snapshot(snapshot(seconds, finished, best))
    assert text_of(output).splitlines() == [
        "0:01 best val/mcc 0.500 at gamma=98.2 n_layers=3",
        "0:05 1/32 trials, 2 running, 31 stopped early, 31,234 member-steps/s, 2:10 left",
        "0:09 best val/mcc 0.600 at gamma=98.2 n_layers=3",
    ]


def test_in_a_pipe_there_is_no_more_than_a_line_a_second_and_the_last_news_is_said() -> None:
    output = console()
    with Display(output) as display:
        for n in range(100):
            display.snapshot(snapshot(n / 50, n // 4, n / 200))
    lines = text_of(output).splitlines()
    assert len(lines) <= 3 * 2  # at the start, after a second, and at the end
    assert lines[-2].startswith("0:02 24/32 trials")
    assert "0.495" in lines[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_holds_in_80_columns_and_without_colour(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    output = Console(file=io.StringIO(), width=80, force_terminal=terminal)
    point = {f"model.a_long_name_{n}": 1.0 / 3 for n in range(8)}
    with Display(output) as display:
        display.snapshot(snapshot(40_000.0, 31, 0.123456, best_point=point, seconds_left=None, trials_total=1000))
    text = text_of(output)
    assert "\x1b[3" not in text  # no colour; bold and the cursor's moves are not colours
    plain = [line for line in console().render_str(text).plain.splitlines() if "\x1b" not in line]
    assert max(map(len, plain), default=0) <= 80
    for part in ("31/1000", "0.123", "31,234", "11:06:40", "2 running", "left unknown", "a_long_name_7=0.333"):
        assert part in text
    if terminal:
        assert "967 left" in text
        assert "7/8" in text  # of a running trial's members
        assert "gamma=31" in text


def test_the_display_is_imported_without_the_slow_libraries() -> None:
    code = (
        "import sys, imavae.report.display; print([m for m in ('matplotlib', 'pandas', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9650.3, "9.65e3"),
        (1e4, "1e4"),
        (98.21, "98.2"),
        (3.58e-4, "3.58e-4"),
        (0.0, "0"),
        (3, "3"),
        (True, "True"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "inf"),
        ("relu", "relu"),
    ],
)
def test_compact_values(value: object, text: str) -> None:
    assert compact(value) == text


def test_names_are_as_short_as_they_can_be_told_apart() -> None:
    assert short_names(["model.gamma", "model.prior.name", "data.seed", "sampler.seed"]) == {
        "model.gamma": "gamma",
        "model.prior.name": "prior.name",
        "data.seed": "data.seed",
        "sampler.seed": "sampler.seed",
    }
    assert point_text({"model.gamma": 12.0, "model.slope": float("nan")}) == "gamma=12"


def test_clock() -> None:
    assert [clock(s) for s in (0.0, 59.6, 61.0, 3723.0)] == ["0:00", "1:00", "1:01", "1:02:03"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_shown_in_place_and_printed_once_in_a_pipe(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    output = console(terminal=terminal)
    with Display(output) as display:
        for done in (500, 1000, 1200):
            display.rendered(done, 1200)
        for epoch in (1, 2):
            display.epoch(epoch, 2, 3 - epoch, 3)
    text = text_of(output)
    assert "1,200/1,200" in text
    assert "2/2" in text
    if not terminal:
        assert len([line for line in text.splitlines() if line.strip()]) == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_before_the_first_update(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    output = console(terminal=terminal)
    with Display(output):
        pass
    assert text_of(output) == ""
