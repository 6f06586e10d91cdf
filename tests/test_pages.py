"""Commands and code on the README and its pages, and MLflow's page in a browser, in a copy of the checkout.

One study is run by make, every other command line by one process that imports everything once: a run with a tiny
budget, a dry run with few data, and the rest with ``--help``, which composes and checks its settings: studies, figures,
and what test_own_models.py and test_sprites_runs.py run. The browser is the system's Chromium; only this machine's
addresses are open to it, as the page must need no network.
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.helpers import free_port
from tests.pages import PAGES, README, ROOT, blocks, foreign, shell_lines

pytestmark = pytest.mark.slow

NOT_HERE = ("own_data.md", "cluster.md")  # test_own_data_page.py runs the first; the other one's need a cluster
TRAIN = ["data.n_obs=1000", "training.max_epochs=1", "training.validate_every=1", "members.seed=[1,2]"]
TINY = {"train": TRAIN, "evaluate": [], "tune": ["--help"], "reproduce": ["--help"]}
RUN_ELSEWHERE = ("plugins=", "sprites", "data=images")
STUDY_LINE = "make tune SEARCH=gamma_uniform"  # the one that is run
STUDY = "budget.trials=2 data.n_obs=2000 members.seed=[1,2] training.max_epochs=4 training.validate_every=1"
STUDY += " scheduler.name=none cluster.cpus=2"
PAGES_SERVED = ("make ui", "make dashboard")  # the first by a fixture, the other by test_ui.py
RUN_ALL = """
import json, runpy, sys, traceback
sys.path.insert(0, "scripts")
for number, (script, *arguments) in enumerate(json.load(sys.stdin)):
    sys.argv = [script, *arguments]
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        code = error.code
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    print(f"\\n<{number}: {code}>", flush=True)
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
QUIET_BROWSER = ("background-networking", "component-update", "sync", "quic")  # parts that call their makers' servers
BROWSER_TIMEOUT = 60_000  # milliseconds


class Output(NamedTuple):
    """Exit code of a command, and its two streams as a terminal shows them."""

    code: int
    text: str


LINES = list(dict.fromkeys(line for page in PAGES if page.name not in NOT_HERE for line in shell_lines(page)))
LINES = [line for line in LINES if line not in ("source .venv/bin/activate", *PAGES_SERVED)]


@pytest.fixture(scope="module")
def checkout() -> Iterator[Path]:
    """A copy of the checkout with the environment of this one."""
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
    """Variables of a shell in which the copy's environment is active."""
    removed = ("PYTEST", "MLFLOW", "COLUMNS", "MAKE", "MFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    return kept | {"PYTHONPATH": str(checkout), "PATH": f"{checkout}/.venv/bin:{os.environ['PATH']}"}


def _run(words: list[str], checkout: Path, environment: dict[str, str], stdin: str = "") -> Output:
    done = subprocess.run(
        words, cwd=checkout, env=environment, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    return Output(done.returncode, done.stdout)


def _script_and_arguments(line: str, checkout: Path, environment: dict[str, str]) -> list[str]:
    """Return what Python runs for a command line, with a tiny budget at its end; ``make -n`` shows what make runs."""
    words = shlex.split(line)
    if words[0] == "make":
        asked = _run(["make", "-n", *words[1:]], checkout, environment)
        [words] = [shlex.split(shown) for shown in asked.text.splitlines() if shown.startswith(".venv/bin/python ")]
    if line == "make reproduce":
        return words[1:]
    elsewhere = any(word in line for word in RUN_ELSEWHERE)
    tiny = TRAIN if "dry_run=true" in words else TINY[Path(words[1]).stem]
    short = [f"training.{name}.until=2" for name in ("gamma_schedule", "ima_schedule") if name in line]
    short += ["training.max_epochs=2"] * bool(short)
    return [*words[1:], *(["--help"] if elsewhere else [*tiny, *short])]


@pytest.fixture(scope="module")
def outputs(checkout: Path, environment: dict[str, str]) -> dict[str, Output]:
    """Output of every command line."""
    assert _run(["make", "-q", "setup"], checkout, environment).code == 0  # nothing would be installed
    lines = [line for line in LINES if line != STUDY_LINE]
    calls = [_script_and_arguments(line, checkout, environment) for line in lines]
    # The study has MLflow's database for itself, as MLflow's page opens on the newest study.
    apart = environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{checkout}/commands.db"}
    with ThreadPoolExecutor(1) as pool:
        study = pool.submit(_run, [*shlex.split(STUDY_LINE), f"ARGS={STUDY}"], checkout, environment)
        everything = _run(["python", "-c", RUN_ALL], checkout, apart, json.dumps(calls))
    texts = re.split(r"\n<\d+: (-?\d+)>\n", everything.text)
    assert len(texts) == 2 * len(lines) + 1, everything.text
    found = {line: Output(int(texts[2 * i + 1]), texts[2 * i]) for i, line in enumerate(lines)}
    return found | {STUDY_LINE: study.result()}


@pytest.mark.parametrize("line", LINES)
def test_a_command_runs_and_prints_nothing_foreign(line: str, outputs: dict[str, Output]) -> None:
    code, text = outputs[line]
    assert code == 0, text
    assert foreign(text) == []
    assert text.strip()


@pytest.mark.usefixtures("outputs")
def test_the_champion_is_loaded_as_the_readme_shows(checkout: Path, environment: dict[str, str]) -> None:
    code, _ = blocks(README, "python")  # the second one is the estimator's: see test_estimator.py
    use = "\nimport torch\nprint(model.decode(model.encode(torch.zeros(2, 3))).shape)"
    assert _run(["python", "-c", code + use], checkout, environment) == (0, "torch.Size([2, 3])\n")


@pytest.fixture(scope="module")
def study(checkout: Path, outputs: dict[str, Output]) -> Path:
    """Folder of the finished study."""
    assert outputs[STUDY_LINE].code == 0
    return checkout / "outputs/studies/gamma_uniform"


@pytest.fixture(scope="module")
def address(checkout: Path, environment: dict[str, str], study: Path) -> Iterator[str]:
    """Address that ``make ui`` prints."""
    assert study.is_dir()
    server: subprocess.Popen[Any] = subprocess.Popen(
        ["make", "ui", f"PORT={free_port()}"], cwd=checkout, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert server.stdout is not None
    printed = "".join(server.stdout.readline() for _ in range(2))
    try:
        [address] = re.findall(r"http://127\.0\.0\.1:\S+", printed)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGINT)  # as Ctrl-C does
        rest, _ = server.communicate(timeout=120)
    assert foreign(printed + rest) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; a test is skipped without one, unless IMAVAE_BROWSER=required."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        missing = (
            f"no browser is installed: none of {', '.join(BROWSERS)} is on the path (Debian's package is chromium)"
        )
        (pytest.fail if os.environ.get("IMAVAE_BROWSER") == "required" else pytest.skip)(missing)
    options = ["--disable-gpu", "--no-first-run", *(f"--disable-{part}" for part in QUIET_BROWSER)]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=path, chromium_sandbox=False, args=options, timeout=BROWSER_TIMEOUT
        )


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """MLflow's page at the printed address, in a browser without history; it asks nothing outside this machine."""
    outside: list[str] = []

    def refuse(route: Route) -> None:
        outside.append(route.request.url)
        route.abort()

    context = browser.new_context(viewport={"width": 2000, "height": 1200})  # what is out of sight is not in the page
    context.set_default_timeout(BROWSER_TIMEOUT)
    expect.set_options(timeout=BROWSER_TIMEOUT)
    context.route(lambda url: urlsplit(url).hostname != "127.0.0.1", refuse)
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()
    assert outside == []


def open_run(page: Page, name: str) -> None:
    """Open a run from the table of runs."""
    page.get_by_role("gridcell").get_by_role("link", name=name, exact=True).click()


@pytest.mark.browser
def test_the_study_has_its_description_figures_and_report(page: Page) -> None:
    open_run(page, "gamma_uniform")
    expect(page.get_by_text("model.gamma, model.hidden_factor, model.n_layers").first).to_be_visible()
    expect(page.locator("a[href='#/models/gamma_uniform']").first).to_be_visible()  # the champion, in the description
    page.get_by_role("tab", name="Artifacts").click()
    files = page.get_by_role("listitem")
    files.get_by_text("figures").click()
    files.get_by_text("mcc_vs_gamma.png").click()
    picture = page.get_by_role("img", name="mcc_vs_gamma.png")
    expect(picture).to_be_visible()
    assert picture.evaluate("picture => picture.naturalWidth") > 500
    files.get_by_text("report.html").click()
    expect(page.frame_locator("iframe").get_by_text("gamma_uniform").first).to_be_visible()


@pytest.mark.browser
def test_the_study_has_the_best_trials_score_and_parameters(page: Page, study: Path) -> None:
    members = pd.read_csv(study / "members.csv")
    best = members[members["trial"] == members.groupby("trial")["max val/mcc"].median().idxmax()]
    page.set_viewport_size({"width": 1400, "height": 900})
    shown = rf"gamma_uniform: trial {best['trial'].iloc[0]} · γ={best['gamma'].iloc[0]:.3g} .*"
    score = re.escape(f"val/mcc {best['max val/mcc'].median():.4g}")
    expect(page.get_by_text(re.compile(shown + score))).to_be_visible()  # without a click
    rows = page.get_by_role("gridcell").get_by_role("link")  # the study and its trials, sorted by score
    expect(rows.first).to_have_text(re.compile(rf"^trial {best['trial'].iloc[0]} ·|^gamma_uniform$"))


@pytest.mark.browser
def test_a_trial_has_its_score_and_a_curve_of_val_mcc(page: Page, study: Path) -> None:
    members = pd.read_csv(study / "members.csv").query("trial == 1")
    history = pd.read_csv(study / "history.csv").query("trial == 1")
    page.get_by_role("gridcell").get_by_role("link", name=re.compile("^trial 1 · γ=.* · gamma_uniform$")).click()
    score = members["max val/mcc"].median()
    expect(
        page.get_by_role("row").filter(has_text="val/mcc").filter(has_text=f"{score:.10f}"[:10]).first
    ).to_be_visible()
    page.get_by_role("tab", name="Model metrics").click()
    page.get_by_role("searchbox", name="Search metric charts").fill("^curves/mcc$")
    expect(page.get_by_text(re.compile("^trial 1 .*\\(curves/mcc\\)$"))).to_be_visible()
    expect(page.locator(".js-plotly-plot .scatterlayer .point")).to_have_count(history["epoch"].nunique())
