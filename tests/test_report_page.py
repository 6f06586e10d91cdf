"""The HTML report: numbers of the tables, everything escaped, nothing loaded from elsewhere."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from imavae import api
from imavae.api import resuming
from imavae.cli import commands
from imavae.cli.compose import Command, compose
from imavae.cli.main import TRAIN, TUNE, command_line, launch
from imavae.config.settings import RunConfig, StudyConfig, run_config, study_config
from imavae.errors import Interrupted, UserError
from imavae.metrics.identifiability import mcc
from imavae.report.display import compact
from imavae.report.html import answer, write_report
from imavae.report.over_gamma import MCC, OverGamma, gamma_sections
from imavae.report.run_figures import draw_champion
from imavae.report.summary import chance_mcc
from imavae.runs.folder import Stored, create
from imavae.runs.ledger import Ledger
from imavae.runs.results import Results
from imavae.search import study as searching
from imavae.search.study import NoResultError
from imavae.search.trials import failure_reason
from imavae.tracking import Tracker, TrialRecord
from tests.test_report import results

HOSTILE = "<script>alert('x')</script>"


def settings(folder: Path, **other: Any) -> StudyConfig:
    gamma = {"type": "float", "low": 3.0, "high": 1000.0, "log": True}
    layers = {"type": "int", "low": 2, "high": 4}
    base: dict[str, Any] = {
        "search": {"model": {"gamma": gamma, "n_layers": layers}},
        "budget": {"trials": 4},
        "output_dir": str(folder),
        "data": {"n_obs": 6000},
    }
    return study_config({**base, **other})


def results_of(config: RunConfig, records: list[TrialRecord], **other: Any) -> Results:
    """Results that only exist in memory, but for the folder."""
    folder = Path(config.output_dir) / "studies" / "a-study"
    folder.mkdir(parents=True, exist_ok=True)
    return Results(folder, config, tuple(Stored(record, None, 0) for record in records), points=4, **other)


def failed(number: int, values: dict[str, Any], reason: str) -> TrialRecord:
    return TrialRecord(number, values, "failed", None, [], [], failure=reason)


def ledger(config: RunConfig, records: list[TrialRecord]) -> Ledger:
    """A study in progress."""
    stored = {record.number: Stored(record, None, 0) for record in records}
    return Ledger(config, create(config, "studies", "a-study"), Tracker(), stored)


def records_of(tables: list[pd.DataFrame]) -> list[TrialRecord]:
    """A trial for each table of members."""
    records = []
    for n, table in enumerate(tables):
        score = float(np.where(table["status"] == "diverged", 0.0, table.get("max val/mcc", 0.5)).mean())
        values = {"model.gamma": float(table["gamma"][0]), "model.n_layers": 2 + n % 3}
        rows: Any = table.assign(trial=n).to_dict("records")
        records.append(TrialRecord(n, values, "finished", score, [], rows))
    return records


def four() -> list[TrialRecord]:
    """Four trials of 20 members, the last of which recover the sources."""
    return records_of([results(n, gamma, 20, 1.05) for n, gamma in enumerate([3.0, 30.0, 100.0, 1000.0])])


def sources(mcc: float, count: int = 8) -> pd.DataFrame:
    """Members that all have this MCC."""
    return results(0, 100.0, count).assign(**{"max val/mcc": mcc, "val/mcc at min val/neg_elbo": mcc})


def page(found: Results, **other: Any) -> str:
    return write_report(found, **other).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """What a browser would make of a page: the text that is seen, the code blocks, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.styles, self.loads, self.codes = "", "", list[str](), list[str]()
        self.ids, self.links = list[str](), list[str]()
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag opens."""
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self._open.append(tag)
        addresses = [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag == "a":  # loads nothing until a click
            self.links += addresses
        else:
            self.loads += addresses
        if tag == "code":
            self.codes.append("")

    def handle_endtag(self, tag: str) -> None:
        """A tag ends."""
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        """What stands between tags."""
        inside = self._open[-1] if self._open else ""
        if inside == "style":
            self.styles += data
        elif inside == "code":
            self.codes[-1] += data
        elif inside != "script":
            self.text += data


# ---- the answer


def test_the_answer_has_the_numbers_of_the_members_table(tmp_path: Path) -> None:
    found = results_of(settings(tmp_path), four())
    said = " ".join(answer(found))
    best = found.members[found.members["trial"] == 3]
    numbers = [
        *best["max val/mcc"].quantile([0.25, 0.5, 0.75]),
        best["val/mcc at min val/neg_elbo"].median(),
        best.sort_values("max val/mcc")["test/mcc at max val/mcc"].iloc[-1],
    ]
    assert all(f"{number:.3f}" in said for number in numbers)


@pytest.mark.parametrize("several", [True, False])
def test_the_verdict_follows_from_the_median(several: bool, tmp_path: Path) -> None:
    config: RunConfig = settings(tmp_path) if several else run_config({"data": {"n_obs": 6000}})
    first = []
    for level in (0.97, 0.85, 0.5, 0.07):
        tables = [sources(level), sources(level / 2)] if several else [sources(level)]
        first.append(answer(results_of(config, records_of(tables)))[0].split(f"{level:.3f}")[0])
    assert len(set(first)) == 4
    assert ["chance" in sentence for sentence in first] == [False, False, False, True]


def test_chance_is_what_independent_latents_reach() -> None:
    for latents in (2, 4, 6):
        config = run_config({"data": {"n_obs": 1500, "dim": 4}, "model": {"dim": latents}})
        generator = torch.Generator().manual_seed(1)
        s, z = (torch.randn(400, d, 300, generator=generator, dtype=torch.float64) for d in (4, latents))
        drawn = mcc(s, z).quantile(0.95)
        assert chance_mcc(config) == pytest.approx(float(drawn), rel=0.05)


def test_without_sources_the_answer_has_the_agreement_and_no_mcc(tmp_path: Path) -> None:
    config = settings(tmp_path, objective={"metric": "val/neg_elbo", "mode": "min"})
    blind = sources(0.5).drop(columns=[column for column in sources(0.5) if "mcc" in str(column)])
    said = []
    for level in (0.99, 0.9, 0.3):
        agreed = blind.assign(**{"val/agreement at min val/neg_elbo": level})
        said.append(" ".join(answer(results_of(config, records_of([agreed])))))
        assert f"{level:.3f}" in said[-1]
        assert "MCC" not in said[-1]
    assert len({sentence.split("median agreement")[0] for sentence in said}) == 3
    assert len(answer(results_of(config, records_of([blind.head(1)])))) == 2


# ---- what failed


def with_status(record: TrialRecord, status: str, count: int) -> TrialRecord:
    """The record with this status of its first members."""
    rows = [{**row, "status": status} if i < count else row for i, row in enumerate(record.members)]
    return dataclasses.replace(record, members=rows)


def test_diverged_members_and_failed_trials_are_counted_and_named(tmp_path: Path) -> None:
    records = four()
    records[1:3] = with_status(records[1], "diverged", 7), with_status(records[2], "stopped", 5)
    records.append(failed(4, {"model.gamma": 5.0, "model.n_layers": 3}, "RuntimeError: no luck"))
    text = Reader(page(results_of(settings(tmp_path), records))).text
    assert "1 failed, 4 finished" in text
    assert "7 diverged, 68 finished, 5 stopped" in text
    assert re.search(r"1gamma=30 n_layers=3\s*7 of 20", text)
    assert re.search(r"4gamma=5 n_layers=3\s*RuntimeError: no luck", text)


def test_why_a_trial_has_failed_is_its_errors_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import RayTaskError
    from ray.train._internal.storage import StorageContext
    from ray.tune.experiment import Trial

    monkeypatch.setattr(StorageContext, "_get_session_path", lambda _: str(tmp_path))  # no Ray is running
    storage = StorageContext(storage_path=str(tmp_path), experiment_dir_name="ray", trial_dir_name="trial-0")
    trial = Trial("no trainable", stub=True, storage=storage)
    assert "no luck" not in failure_reason(trial, tmp_path)  # nothing is known
    Path(str(trial.local_path)).mkdir(parents=True)
    error: Any = RayTaskError  # Ray has not typed it
    trial.handle_error(error("train", "Traceback\n  a line\nRuntimeError: no luck\n", RuntimeError("no luck")))
    assert failure_reason(trial, tmp_path) == "RuntimeError: no luck"


def test_a_report_is_written_without_any_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(tmp_path)
    lost = results_of(config, records_of([sources(0.9).assign(status="diverged")] * 2))
    assert "all 16 members diverged" in Reader(page(lost)).text
    with pytest.raises(UserError, match=r"all 16 of .* diverged; lower training\.learning_rate"):
        api._check_converged(lost)
    monkeypatch.setattr(Results, "history", pd.DataFrame())  # no member reached a validation
    assert draw_champion(lost) == []
    all_failed = [failed(n, {"model.gamma": 5.0}, f"RuntimeError: {HOSTILE}") for n in range(3)]
    assert f"RuntimeError: {HOSTILE}" in Reader(page(results_of(config, all_failed))).text
    reader = Reader(page(results_of(config, [], interrupted=True), go_on=["python", "scripts/tune.py", "resume=true"]))
    assert "0 of 4 trials" in reader.text
    assert "python scripts/tune.py resume=true" in reader.codes


def test_a_study_of_which_all_failed_leaves_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tmp_path, tracking={"name": "none"})
    lost = ledger(config, [failed(0, {"model.gamma": 5.0}, "RuntimeError: no luck")])

    def run_study(*_: object) -> Ledger:
        raise NoResultError("no trial has a result; see its log", lost)

    monkeypatch.setattr(searching, "run_study", run_study)
    with pytest.raises(UserError, match="no trial has a result"):
        commands.tune(config)
    assert f"report    {lost.folder / 'report.html'}" in capsys.readouterr().out
    assert "RuntimeError: no luck" in (lost.folder / "report.html").read_text(encoding="utf-8")


# ---- the page


def test_a_page_loads_nothing_and_what_users_wrote_is_text(tmp_path: Path) -> None:
    records = [*four(), failed(4, {"model.gamma": 5.0, "model.n_layers": 3}, HOSTILE)]
    found = results_of(settings(tmp_path, question=f"Is {HOSTILE} a question?"), records)
    picture = found.folder / "figures" / "traversals.png"
    picture.parent.mkdir()
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\3\x20\0\0\2\0")
    command = ["python", "scripts/tune.py", f"data.path={HOSTILE}"]
    written = page(found, command=command)
    reader = Reader(written)
    assert [load[:22] for load in reader.loads] == ["data:image/png;base64,"]
    assert {link.removeprefix("#") for link in reader.links if link.startswith("#")} <= set(reader.ids)
    assert {link for link in reader.links if not link.startswith("#")} == {"config.yaml", "members.csv", "history.csv"}
    assert {"link", "iframe", "object", "base"}.isdisjoint(reader.tags)
    assert not re.search(r"@import|url\(", reader.styles)
    assert "width=device-width" in written
    assert written.count("* plotly.js v") == 1
    assert written.count('"modeBarButtonsToRemove": ["lasso2d", "select2d", "sendChartToCloud"]') > 1  # no upload
    assert HOSTILE not in written
    assert reader.text.count(HOSTILE) == 2
    assert shlex.join(command) in reader.codes


def test_a_page_has_every_trial_and_what_is_known_of_the_study(tmp_path: Path) -> None:
    summary = {"seconds": 90.0, "seconds/training": 45.0}
    config = settings(tmp_path, question="Which gamma?")
    found = results_of(config, four(), champion_address="models:/study@champion")
    found.names.summary.write_text(json.dumps(summary))
    written = page(found)
    reader = Reader(written)
    for part in ("Which gamma?", "1:30", "50%", "python 3", "4 trials of 8 members"):
        assert part in reader.text
    for trial in range(4):
        assert f"trial {trial}, seed 20" in written
    assert "make ui" in reader.codes
    assert f'imavae.load_model("{found.folder}")' in "".join(reader.codes)
    assert "models:/study@champion" in reader.text + "".join(reader.codes)
    assert "python" not in "".join(code for code in reader.codes if "scripts" in code)  # no command was passed
    alone = run_config({"tracking": {"name": "none"}, "output_dir": str(tmp_path)})
    reader = Reader(page(results_of(alone, records_of([sources(0.97)]))))
    assert "0.970" in reader.text
    assert "make ui" not in reader.codes


def test_every_member_and_every_trial_tells_what_it_is(tmp_path: Path) -> None:
    records = four()
    records[0] = with_status(records[0], "diverged", 3)
    records[1] = dataclasses.replace(records[1], status="stopped")
    found = results_of(settings(tmp_path), records)
    section, _ = gamma_sections(found)
    texts = [text for trace in section.figure.data if trace.hoverinfo == "text" for text in trace.text]
    assert len(texts) == 4 * 20 + 4
    for member in found.members.to_dict("records"):
        mine = f"trial {member['trial']}, seed {member['seed']}<br>"
        [text] = [text for text in texts if text.startswith(mine)]
        assert f"{member['status']} after {member['epochs']} epochs" in text
        assert ("MCC" in text) == (member["status"] != "diverged")
    shown = OverGamma.of(found.members, found.trials, MCC)
    for trial in shown.trials.to_dict("records"):
        [text] = [text for text in texts if text.startswith(f"trial {trial['trial']}<br>")]
        parts = (compact(trial["median"]), compact(trial["low"]), f"{trial['status']} after", "n_layers=")
        assert all(part in text for part in parts)
    trials = [trace for trace in section.figure.data if trace.error_y.array is not None]
    symbols = {symbol for trace in trials for symbol in trace.marker.symbol if "open" in symbol}
    assert len(symbols) == 1  # of the trial that was stopped


# ---- the command


@pytest.fixture
def argv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.chdir(tmp_path)
    return monkeypatch


LINES = [
    (TRAIN, ["data=mlp", "members.seed=[1,2,3]", "model.gamma=30", "name=x", "resume=true"]),
    (TRAIN, ["-m", "model.gamma=10,100", "members.data.seed=${range:1,4}"]),
    (TUNE, ["search=gamma_uniform", "search.model.n_layers={type: int, low: 2, high: 3}", "budget.trials=4"]),
    (TUNE, ["search=gamma_uniform", "question='is it <b>this</b> & that?'"]),
]


@pytest.mark.parametrize(("command", "arguments"), LINES, ids=[" ".join(line[:2]) for _, line in LINES])
def test_the_command_in_a_report_composes_to_the_same_again(
    command: Command[Any], arguments: list[str], argv: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["python", f"scripts/{command.name}.py"]

    reports: list[tuple[Any, Reader]] = []

    def report(config: Any, overrides: list[str]) -> None:
        line = command_line(overrides)
        found = ledger(dataclasses.replace(config, output_dir=str(tmp_path)), records_of([sources(0.97)]))
        found.interrupted = Interrupted(2)
        written = page(found.results, command=line, go_on=resuming(line, found.folder.name))
        reports.append((config, Reader(written)))

    if "resume=true" in arguments:  # there must be something to resume
        created = command.check(compose(command, [word for word in arguments if word != "resume=true"]).settings)
        create(created, "runs", created.name).lock.release()
    argv.setattr(sys, "argv", [words[1], *arguments])
    argv.setattr(sys, "orig_argv", [*words, *arguments])
    assert launch(dataclasses.replace(command, run=report)) == 0
    assert len(reports) == (2 if "-m" in arguments else 1)
    for config, reader in reports:
        go_on, again = reader.codes[:2]
        mapping = compose(command, shlex.split(again)[2:]).settings
        assert command.check(mapping) == dataclasses.replace(config, resume=False)
        mapping = compose(command, shlex.split(go_on)[2:]).settings
        name = next(path.name for path in (tmp_path / "studies").iterdir() if path.name == mapping["name"])
        assert command.check(mapping) == dataclasses.replace(config, resume=True, name=name)
