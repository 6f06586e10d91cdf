"""What a report says: the numbers of the tables, words that follow from them, and nothing that a page must not do."""

from __future__ import annotations

import dataclasses
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

import train
import tune
from _launch import Command, compose_jobs, launch, question_of
from imavae.api import resuming
from imavae.cli import commands
from imavae.config.data import SyntheticData
from imavae.config.settings import RunConfig, StudyConfig, run_config, study_config
from imavae.errors import Interrupted, UserError
from imavae.metrics.identifiability import mcc
from imavae.report.answer import run_answer, study_answer
from imavae.report.over_gamma import MCC, read
from imavae.report.over_gamma_interactive import gamma_sections
from imavae.report.report import Ending, run_report, study_report
from imavae.report.summary import chance_mcc
from imavae.runs.folder import Stored, create
from imavae.runs.ledger import Ledger
from imavae.runs.records import failed_record
from imavae.search import study as searching
from imavae.search.recorder import _reason
from imavae.search.study import NoResultError
from imavae.tracking.base import Tracker, TrialRecord
from tests.test_report import results

HOSTILE = "<script>alert('x')</script>"
ENDING = Ending(["python", "scripts/tune.py", "search=x"], ["python", "scripts/tune.py", "resume=true"], 90.0, 4)


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


def ledger(config: RunConfig, tables: list[pd.DataFrame]) -> Ledger:
    """A study that has these members, a table for each trial."""
    home = create(config, "studies", "a-study")
    found = Ledger(config, home, Tracker())
    for n, table in enumerate(tables):
        score = float(np.where(table["status"] == "diverged", 0.0, table["max val/mcc"]).mean())
        values = {"model.gamma": float(table["gamma"][0]), "model.n_layers": 2 + n % 3}
        rows: Any = table.assign(trial=n).to_dict("records")
        found.stored.append(Stored(TrialRecord(n, values, "finished", score, [], rows), None, 0))
    return found


def four(folder: Path, **other: Any) -> tuple[Ledger, StudyConfig]:
    """A study of four trials of 20 members, the last of which recover the sources."""
    config = settings(folder, **other)
    return ledger(config, [results(n, gamma, 20, 1.05) for n, gamma in enumerate([3.0, 30.0, 100.0, 1000.0])]), config


def sources(mcc: float, count: int = 8) -> pd.DataFrame:
    """Members that all have this MCC."""
    return results(0, 100.0, count).assign(**{"max val/mcc": mcc, "val/mcc at min val/neg_elbo": mcc})


class Reader(HTMLParser):
    """What a browser would make of a page: the text that is seen, the code blocks, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.styles, self.loads, self.codes = "", "", list[str](), list[str]()
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag opens."""
        self.tags.append(tag)
        self._open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
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
    found, config = four(tmp_path)
    found.members.to_csv(tmp_path / "members.csv", index=False)
    members = pd.read_csv(tmp_path / "members.csv")
    first, *more = study_answer(found, config)
    pattern = (
        r"γ² = 1e6, n_layers = 2 recovers the sources: median val/mcc ([\d.]+) over 20 members "
        r"\(quartiles ([\d.]+) to ([\d.]+)\)\."
    )
    said = re.fullmatch(pattern, first)
    assert said, first
    mine = members[members["trial"] == 3]
    expected = mine["max val/mcc"].quantile([0.5, 0.25, 0.75])
    assert [float(number) for number in said.groups()] == pytest.approx(expected.tolist(), abs=5e-4)
    blind = mine["val/mcc at min val/neg_elbo"].median()
    test = mine.sort_values("max val/mcc")["test/mcc at max val/mcc"].iloc[-1]
    assert f"without them, the median is {blind:.3f}. The chosen model has {test:.3f} on the test split." in more[-1]


@pytest.mark.parametrize(
    ("level", "words", "alone"),
    [
        (0.97, "γ² = 1e4, n_layers = 2 recovers the sources: ", "γ² = 1e4 recovers the sources: "),
        (
            0.85,
            "The best point, γ² = 1e4, n_layers = 2, recovers the sources in part: ",
            "recovers the sources in part",
        ),
        (0.5, "No point recovers the sources: the best point, γ² = 1e4, n_layers = 2, has", "does not recover the"),
        (0.07, "No point does better than chance: the best point, γ² = 1e4, n_layers", "does no better than chance: "),
    ],
)
def test_the_words_follow_from_the_median(level: float, words: str, alone: str, tmp_path: Path) -> None:
    config = settings(tmp_path)
    several = ledger(config, [sources(level), sources(level / 2)])
    assert study_answer(several, config)[0].startswith(words)
    assert alone in run_answer(ledger(config, [sources(level)]), run_config({"data": {"n_obs": 6000}}))[0]


def test_chance_is_what_independent_latents_reach() -> None:
    data = SyntheticData(n_obs=1500, dim=4)
    n = data.sizes[1]
    generator = torch.Generator().manual_seed(1)
    s, z = (torch.randn(400, 4, n, generator=generator, dtype=torch.float64) for _ in range(2))
    drawn = mcc(s, z).quantile(0.95)
    assert chance_mcc(data) == pytest.approx(float(drawn), rel=0.05)


def test_a_study_without_sources_says_what_may_be_said(tmp_path: Path) -> None:
    config = settings(tmp_path, objective={"metric": "val/neg_elbo", "mode": "min"})
    blind = sources(0.5).drop(columns=[column for column in sources(0.5) if "mcc" in str(column)])
    agreement = "val/agreement at min val/neg_elbo"
    for level, words in (
        (0.99, "find the same latents"),
        (0.9, "agree on their latents in part"),
        (0.3, "do not find"),
    ):
        found = run_answer(home_of(config, blind.assign(**{agreement: level})), config)
        assert "explains the observations: median val/neg_elbo -" in found[0]
        assert f"Its seeds {words}" in found[1]
        assert "no proof" in found[2]
    alone = run_answer(home_of(config, blind.head(1)), config)
    assert "of one member" in alone[0]
    assert "single seed" in alone[1]


def home_of(config: RunConfig, table: pd.DataFrame) -> Ledger:
    """A study of one trial without an MCC."""
    found = Ledger(config, create(config, "studies", "blind"), Tracker())
    rows: Any = table.to_dict("records")
    found.stored.append(Stored(TrialRecord(0, {"model.gamma": 100.0}, "finished", 0.0, [], rows), None, 0))
    return found


# ---- what failed


def test_diverged_members_and_failed_trials_are_counted_and_named(tmp_path: Path) -> None:
    found, config = four(tmp_path)
    for row in found.records[1].members[:7]:
        row["status"] = "diverged"
    for row in found.records[2].members[:5]:
        row["status"] = "stopped"
    found.stored.append(
        Stored(failed_record(4, {"model.gamma": 5.0, "model.n_layers": 3}, "RuntimeError: no luck"), None, 0)
    )
    text = Reader(study_report(found, config, ENDING)).text
    assert "Trials1 failed, 4 finished" in text
    assert "Members7 diverged, 68 finished, 5 stopped" in text
    assert re.search(r"1gamma=30 n_layers=3\s*7 of 20 members diverged", text)
    assert re.search(r"4gamma=5 n_layers=3\s*RuntimeError: no luck", text)


def test_why_a_trial_has_failed_is_its_errors_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import RayTaskError
    from ray.train._internal.storage import StorageContext
    from ray.tune.experiment import Trial

    monkeypatch.setattr(StorageContext, "_get_session_path", lambda _: str(tmp_path))  # no Ray is running
    storage = StorageContext(storage_path=str(tmp_path), experiment_dir_name="ray", trial_dir_name="trial-0")
    trial = Trial("no trainable", stub=True, storage=storage)
    assert _reason(trial, tmp_path) == "its worker has ended without a word"
    Path(str(trial.local_path)).mkdir(parents=True)
    failed: Any = RayTaskError  # Ray has not typed it
    trial.handle_error(failed("train", "Traceback\n  a line\nRuntimeError: no luck\n", RuntimeError("no luck")))
    assert _reason(trial, tmp_path) == "RuntimeError: no luck"


def test_where_nothing_came_of_it_the_report_says_so(tmp_path: Path) -> None:
    config = settings(tmp_path)
    lost = ledger(config, [sources(0.9).assign(status="diverged")] * 2)
    assert (
        "There is no answer: every member of all 2 points diverged." in Reader(study_report(lost, config, ENDING)).text
    )
    assert run_answer(ledger(config, [sources(0.9).assign(status="diverged")]), config)[0].endswith("member diverged.")
    failed = ledger(config, [])
    failed.stored += [
        Stored(failed_record(n, {"model.gamma": 5.0}, f"RuntimeError: {HOSTILE}"), None, 0) for n in range(3)
    ]
    reader = Reader(study_report(failed, config, ENDING))
    assert "There is no answer: each of 3 points failed." in reader.text
    assert f"The first reason: RuntimeError: {HOSTILE}" in reader.text
    empty = ledger(config, [])
    empty.interrupted = Interrupted(2)
    reader = Reader(study_report(empty, config, ENDING))
    assert "Broken off: 0 of 4 points have ended" in reader.text
    assert "no point has ended" in reader.text
    assert shlex.join(ENDING.go_on) in reader.codes


def test_a_study_of_which_all_failed_leaves_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tmp_path, tracking={"name": "none"})
    failed = ledger(config, [])
    failed.stored.append(Stored(failed_record(0, {"model.gamma": 5.0}, "RuntimeError: no luck"), None, 0))

    def run_study(*_: object) -> Ledger:
        raise NoResultError("no trial has a result; see its log", failed)

    monkeypatch.setattr(searching, "run_study", run_study)
    with pytest.raises(UserError, match="no trial has a result"):
        commands.tune(config)
    assert f"report    {failed.folder / 'report.html'}" in capsys.readouterr().out
    assert "RuntimeError: no luck" in (failed.folder / "report.html").read_text(encoding="utf-8")


# ---- the page


def test_a_page_loads_nothing_and_what_people_wrote_is_text(tmp_path: Path) -> None:
    found, config = four(tmp_path, question=f"Is {HOSTILE} a question?")
    found.stored.append(Stored(failed_record(4, {"model.gamma": 5.0, "model.n_layers": 3}, HOSTILE), None, 0))
    picture = tmp_path / "drawn.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\3\x20\0\0\2\0")
    again = ["python", "scripts/tune.py", f"data.path={HOSTILE}"]
    page = study_report(found, config, dataclasses.replace(ENDING, again=again, figures=[picture]))
    reader = Reader(page)
    assert [load[:22] for load in reader.loads] == ["data:image/png;base64,"]
    assert {"link", "iframe", "object", "base"}.isdisjoint(reader.tags)
    assert not re.search(r"@import|url\(", reader.styles)
    assert "width=device-width" in page
    assert page.count("* plotly.js v") == 1
    assert page.count('"modeBarButtonsToRemove": ["lasso2d", "select2d", "sendChartToCloud"]') == 2  # no upload, either
    assert HOSTILE not in page
    assert reader.text.count(HOSTILE) == 2
    assert shlex.join(again) in reader.codes


def test_a_report_has_all_its_parts(tmp_path: Path) -> None:
    found, config = four(tmp_path, question="Which gamma?")
    found.home.state.champion = "models:/study@champion"
    reader = Reader(study_report(found, config, ENDING))
    for part in (
        "Which gamma?",
        "Best 4 of 4 trials",
        "MCC, three ways",
        "MCC over γ²",
        "c_IMA (nats) over γ²",
        "Budget4 points of 8 members",
        "Member-steps",
        "Time1:30",
        "Versionspython",
    ):
        assert part in reader.text
    assert shlex.join(ENDING.again) in reader.codes
    assert "make ui" in reader.codes
    assert 'model = imavae.load_model("models:/study@champion")' in "".join(reader.codes)
    alone = ledger(config, [sources(0.97)])
    text = Reader(run_report(alone, run_config({"tracking": {"name": "none"}}), ENDING)).text
    assert "8 members" in text
    assert "MCC, three ways" in text
    assert "make ui" not in text


def test_every_member_says_which_it_is(tmp_path: Path) -> None:
    found, _ = four(tmp_path)
    for row in found.records[0].members[:3]:
        row["status"] = "diverged"
    for row in found.records[1].members[:2]:
        row["status"] = "stopped"
    points = {record.number: record.values for record in found.records}
    mcc_section, contrast = gamma_sections(found.members, points)
    assert (mcc_section.heading, contrast.heading) == ("MCC over γ²", "c_IMA (nats) over γ²")
    dots = [trace for trace in mcc_section.figure.data if trace.hoverinfo == "text"]
    assert [len(trace.x) for trace in dots] == [75, 2, 3]
    texts = [text for trace in dots for text in trace.text]
    for member in found.members.to_dict("records"):
        mine = f"trial {member['trial']}, seed {member['seed']}<br>"
        [text] = [text for text in texts if text.startswith(mine)]
        assert f"{member['status']} after {member['epochs']} epochs" in text
        assert ("MCC" in text) == (member["status"] != "diverged")
    medians = next(trace for trace in mcc_section.figure.data if trace.name == "median, best val/mcc")
    assert list(medians.y) == pytest.approx(list(read(found.members, MCC).lines()[1].median))


# ---- the command


@pytest.fixture
def argv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.chdir(tmp_path)
    return monkeypatch


LINES = [
    (train.COMMAND, ["data=mlp", "members.seed=[1,2,3]", "model.gamma=30", "name=x", "resume=true"]),
    (train.COMMAND, ["-m", "model.gamma=10,100", "members.data.seed=${range:1,4}"]),
    (tune.COMMAND, ["search=gamma_uniform", "search.model.n_layers={type: int, low: 2, high: 3}", "budget.trials=4"]),
    (tune.COMMAND, ["search=gamma_uniform", "question='is it <b>this</b> & that?'"]),
]


@pytest.mark.parametrize(("command", "arguments"), LINES, ids=[" ".join(line[:2]) for _, line in LINES])
def test_the_command_in_a_report_composes_to_the_same_again(
    command: Command[Any], arguments: list[str], argv: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["python", f"scripts/{command.name}.py"]

    def on(line: list[str]) -> None:
        argv.setattr(sys, "argv", line[1:])
        argv.setattr(sys, "orig_argv", line)

    reports: list[tuple[Any, Reader]] = []

    def report(config: Any) -> None:
        found = ledger(dataclasses.replace(config, output_dir=str(tmp_path)), [sources(0.97)])
        write: Any = study_report if isinstance(config, StudyConfig) else run_report
        found.interrupted = Interrupted(2)
        reports.append(
            (
                config,
                Reader(write(found, config, Ending(sys.orig_argv, resuming(sys.orig_argv, found.folder.name), 0.0))),
            )
        )

    on([*words, *arguments])
    assert launch(dataclasses.replace(command, run=report)) == 0
    assert len(reports) == (2 if "-m" in arguments else 1)
    for config, reader in reports:
        go_on, again = reader.codes[:2]
        on(shlex.split(again))
        [(_, mapping)] = compose_jobs(command)
        assert command.check(mapping) == dataclasses.replace(config, resume=False)
        on(shlex.split(go_on))
        [(_, mapping)] = compose_jobs(command)
        name = next(path.name for path in (tmp_path / "studies").iterdir() if path.name == mapping["name"])
        assert command.check(mapping) == dataclasses.replace(config, resume=True, name=name)


def test_what_a_search_asks_is_the_first_sentence_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    for text, question in (
        ("# Does it? As in the paper.\nsearch: {}", "Does it?"),
        ("# Does it go on\n# in a second line? Yes.\nsearch: {}  # no", "Does it go on in a second line?"),
        ("search: {}\n# Not this.", ""),
        ("# a title\n", "a title"),
    ):
        file.write_text(text)
        assert question_of(file) == question
