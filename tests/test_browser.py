"""MLflow's page in a real browser: a study, its trials and members, a curve, the figures and the champion are there.

The browser is the system's Chromium. Every address but the loopback's is closed to it: the page needs no network.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
QUIET = (  # without these it looks for its makers' servers
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)
PATIENCE = 60_000  # milliseconds that anything may take to show
STUDY = (
    "search=gamma_uniform",
    "budget.trials=2",
    "data.n_obs=2000",
    "members.seed=[1,2]",
    "training.max_epochs=4",
    "training.validate_every=1",
    "scheduler.name=none",
    "cluster.cpus=2",
)


@dataclass(frozen=True)
class Shown:
    """A study that is shown."""

    address: str  # that ``make ui`` prints
    members: pd.DataFrame  # members.csv
    history: pd.DataFrame  # history.csv


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser's path."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing = f"no browser is installed: none of {', '.join(NAMES)} is on the path (Debian's package is chromium)"
        if os.environ.get("IMAVAE_BROWSER") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@pytest.fixture(scope="module")
def shown(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A tiny study, run and shown by the scripts as a person would."""
    assert chromium  # else nothing needs to run
    output = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        environment.setenv("PYTHONPATH", str(ROOT))
        tune = [sys.executable, str(ROOT / "scripts/tune.py"), *STUDY, f"output_dir={output}"]
        done = subprocess.run(tune, cwd=output, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        folder = output / "studies/gamma_uniform"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ui = [sys.executable, str(ROOT / "scripts/ui.py"), "--port", str(port), "--output-dir", str(output)]
        server = subprocess.Popen(ui, cwd=output, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert server.stdout is not None
            said = "".join(server.stdout.readline() for _ in range(2))
            [address] = re.findall(r"http://127\.0\.0\.1:\S+", said)
            yield Shown(address, pd.read_csv(folder / "members.csv"), pd.read_csv(folder / "history.csv"))
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=30)


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """One that runs as any user, root too."""
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=chromium, chromium_sandbox=False, args=["--disable-gpu", *QUIET], timeout=PATIENCE
        )


@pytest.fixture
def page(browser: Browser, shown: Shown) -> Iterator[Page]:
    """The page that the printed address opens, in a browser that was never there before; it asks nothing outside."""
    outside: list[str] = []

    def closed(route: Route) -> None:
        outside.append(route.request.url)
        route.abort()

    context = browser.new_context(viewport={"width": 2000, "height": 1200})  # what is out of sight is not in the page
    context.set_default_timeout(PATIENCE)
    context.route(lambda url: urlsplit(url).hostname != "127.0.0.1", closed)
    page = context.new_page()
    page.goto(shown.address)
    yield page
    context.close()
    assert outside == []


@pytest.fixture(autouse=True)
def patience() -> None:
    """Also what is expected may take its time."""
    expect.set_options(timeout=PATIENCE)


def run_link(page: Page, name: str) -> Locator:
    """The link to a run, in the table of runs."""
    return page.get_by_role("gridcell").get_by_role("link", name=name, exact=True)


def unfold(page: Page, name: str) -> None:
    """Show a run's children in the table of runs."""
    cell = page.get_by_role("gridcell").filter(has=page.get_by_role("link", name=name, exact=True))
    cell.get_by_role("button").click()


def in_table(page: Page, run: str, column: str) -> str:
    """The value in a run's row of the table of runs. A row is there twice: the names stand still beside the rest."""
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=run, exact=True)).get_attribute("row-id")
    cell = page.locator(f'[row-id="{row}"] [col-id*="{column}"]')
    expect(cell).not_to_be_empty()
    return cell.inner_text()


def on_overview(page: Page, metric: str) -> float:
    """A metric's value on a run's own page."""
    page.get_by_placeholder("Search metrics").fill(metric)
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=metric, exact=True))
    return float(row.get_by_role("cell").nth(1).inner_text())


def test_the_page_opens_on_the_study_whose_trials_and_members_unfold(page: Page, shown: Shown) -> None:
    unfold(page, "gamma_uniform")
    for number, rows in shown.members.groupby("trial"):
        unfold(page, f"trial {number}")
        best = "max val/mcc"
        assert float(in_table(page, f"trial {number}", "`score`")) == pytest.approx(rows[best].median(), rel=1e-12)
        for row in rows.to_dict("records"):
            member = f"seed {row['seed']} of trial {number}"
            assert float(in_table(page, member, f"`{best}`")) == pytest.approx(row[best], rel=1e-12)
            assert in_table(page, member, "imavae.status") == row["status"]
    expect(page.get_by_role("link", name=re.compile("^seed . of trial .$"))).to_have_count(len(shown.members))


def test_a_trial_has_a_curve_of_val_mcc_over_its_members(page: Page, shown: Shown) -> None:
    unfold(page, "gamma_uniform")
    run_link(page, "trial 1").click()
    curve = shown.history[shown.history["trial"] == 1].groupby("epoch")["val/mcc"].median()
    assert on_overview(page, "val/mcc") == pytest.approx(curve.iloc[-1], rel=1e-12)

    page.get_by_role("tab", name="Model metrics").click()
    page.get_by_role("searchbox", name="Search metric charts").fill("^val/mcc$")
    expect(page.get_by_role("heading", name="mcc", exact=True)).to_be_visible()
    expect(page.get_by_text("trial 1 (val/mcc)", exact=True)).to_be_visible()
    expect(page.locator(".js-plotly-plot .scatterlayer .point")).to_have_count(len(curve))


def test_a_member_has_its_values(page: Page, shown: Shown) -> None:
    unfold(page, "gamma_uniform")
    unfold(page, "trial 0")
    run_link(page, "seed 2 of trial 0").click()
    [row] = shown.members.query("trial == 0 and seed == 2").to_dict("records")
    for metric in ("max val/mcc", "test/mcc at max val/mcc", "min val/neg_elbo"):
        assert on_overview(page, metric) == pytest.approx(row[metric], rel=1e-12)


def test_the_study_says_what_was_asked_and_has_the_figures(page: Page) -> None:
    run_link(page, "gamma_uniform").click()
    expect(page.get_by_text("Searched: model.gamma, model.hidden_factor, model.n_layers.")).to_be_visible()
    page.get_by_role("tab", name="Artifacts").click()
    files = page.get_by_role("listitem")
    for name in ("config.yaml", "search_space.yaml", "members.csv", "history.csv"):
        expect(files.get_by_text(name)).to_be_visible()
    files.get_by_text("figures").click()
    files.get_by_text("mcc_vs_gamma.png").click()
    picture = page.get_by_role("img", name="mcc_vs_gamma.png")
    expect(picture).to_be_visible()
    assert picture.evaluate("picture => picture.naturalWidth") > 500


def test_the_study_has_its_report(page: Page) -> None:
    run_link(page, "gamma_uniform").click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_role("listitem").get_by_text("report.html").click()
    expect(page.frame_locator("iframe").get_by_text("gamma_uniform").first).to_be_visible()


def test_the_champion_is_the_best_member(page: Page, shown: Shown) -> None:
    run_link(page, "gamma_uniform").click()
    with page.expect_popup() as opened:
        page.locator("a[href='#/models/gamma_uniform']").click()  # in the study's note
    page = opened.value
    welcome = page.get_by_role("button", name="Try it now")  # covers the first look at a model
    page.add_locator_handler(welcome, lambda button: button.click())
    expect(page.get_by_role("status", name="champion")).to_be_visible()
    page.get_by_role("link", name="Version 1").click()
    scored = shown.members[["trial", "seed", "max val/mcc"]]
    scored = scored.assign(score=scored.groupby("trial")["max val/mcc"].transform("median"))
    best = scored.sort_values(["score", "max val/mcc"]).to_dict("records")[-1]
    expect(page.get_by_role("link", name=f"seed {best['seed']} of trial {best['trial']}")).to_be_visible()
