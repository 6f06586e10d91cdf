"""SIGINT and SIGTERM end a command with their exit codes, whatever it is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from imavae.cli.compose import ROOT

START = """
import os, sys, time
from imavae import errors
from imavae.cli.main import exit_code
errors.KILL_AFTER = float(sys.argv[1])
"""
KINDLY = """
def work():
    try:
        os.write(1, b"working\\n")
        time.sleep(600)
    finally:
        os.write(1, b"in order\\n")
"""
STUBBORN = """
def work():
    words = iter([b"working\\n"])
    while True:
        try:
            os.write(1, next(words, b""))
            time.sleep(600)
        except BaseException:
            os.write(1, b"swallowed\\n")
"""
TRANSLATED = """
def work():
    try:
        os.write(1, b"working\\n")
        time.sleep(600)
    except KeyboardInterrupt:
        raise KeyboardInterrupt  # as Ray does
"""


def ended(body: str, limit: float, *numbers: int) -> tuple[int, str]:
    """Exit code and output of a command that gets these signals, each once it has said something."""
    code = f"{START}\n{body}\nsys.exit(exit_code(work))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(limit)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell starts its background jobs
    )
    assert process.stdout is not None
    said = ""
    for number in numbers:
        said += process.stdout.readline()
        process.send_signal(number)
    said += process.stdout.read()
    return process.wait(), said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_ends_a_command_in_order_or_cuts_it_off(number: int, code: int) -> None:
    assert ended(KINDLY, 1000, number) == (code, "working\nin order\n")
    assert ended(STUBBORN, 1, number) == (code, "working\nswallowed\n")


def test_a_signal_is_remembered_where_a_library_raises_a_plain_interrupt() -> None:
    assert ended(TRANSLATED, 1000, signal.SIGTERM) == (143, "working\n")


def test_a_second_signal_cuts_off_at_once() -> None:
    assert ended(STUBBORN, 1000, signal.SIGTERM, signal.SIGINT) == (130, "working\nswallowed\n")
