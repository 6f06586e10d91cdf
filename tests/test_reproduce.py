"""Figures of the paper from studies on disk: what is read, judged, drawn and said, and with which exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml

import reproduce
from _launch import composed, searches
from imavae.config.mapping import to_mapping
from imavae.config.settings import StudyConfig, study_of
from imavae.metrics.glossary import METRICS
from imavae.paper import command
from imavae.paper.figure import Entry
from imavae.paper.figures import FIGURES
from imavae.paper.gap import law_tolerance
from imavae.paper.judge import FAIL, NOT_JUDGED, NOT_PUBLISHED, PASS
from imavae.paper.mixings import LINEAR, with_linear_contrast
from imavae.paper.published import table
from imavae.paper.studies import Study, find, unlike
from imavae.paper.tables import frame, markdown_table, terminal_table
from imavae.runs.folder import RunFolder
from imavae.search.space import grid, parse
from imavae.search.study import check
from tests.helpers import console, text_of

JUDGED = {"moebius_gamma", "self_consistency", "moebius_linear_map", "elbo_gap", "sprites_full"}
BESIDE = {"moebius_linear_map", "sprites", "sprites_full"}  # figures with published numbers that can't be compared
STATES = ("min val/neg_elbo", "max val/mcc")
PAPER = [name for name in searches() if name.startswith("paper/")]


def wanted(search: str, *overrides: str) -> StudyConfig:
    return study_of(composed(reproduce.COMMAND, [*overrides, f"search={search}"]))


def members_of(config: StudyConfig) -> pd.DataFrame:
    """Members of every point, with a plausible number for every metric of the glossary."""
    rng = np.random.default_rng(0)
    worlds = config.members.data.seed or (config.data.seed,)
    rows = []
    for trial, point in enumerate(grid(parse(config))):
        gamma = float(point["model.gamma"])
        for world in worlds:
            for seed in config.members.seed:
                row: dict[str, Any] = {"trial": trial, "seed": seed, "gamma": gamma, "gamma_sq": gamma**2}
                row |= {"data.seed": world} if len(worlds) > 1 else {}
                row |= {"status": "finished", "epochs": 10}
                row |= {
                    f"{split}/{metric} at {state}": float(rng.uniform(0.2, 0.9))
                    for split in ("val", "test")
                    for metric in METRICS.names()
                    for state in STATES
                }
                row |= {STATES[0]: row[f"val/neg_elbo at {STATES[0]}"], STATES[1]: row[f"val/mcc at {STATES[1]}"]}
                rows.append(row)
    return pd.DataFrame(rows)


def history_of(members: pd.DataFrame) -> pd.DataFrame:
    curves = [members.assign(epoch=epoch) for epoch in (5, 10)]
    columns = {f"val/{name} at {STATES[0]}": f"val/{name}" for name in METRICS.names()}
    return pd.concat(curves)[["trial", "seed", "epoch", *columns]].rename(columns=columns)


def store(config: StudyConfig, members: pd.DataFrame, output_dir: Path, name: str = "") -> Path:
    """A study's folder with these members."""
    folder = output_dir / "studies" / (name or config.study.replace("/", "-"))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_mapping(config)))
    members.to_csv(folder / "members.csv", index=False)
    history_of(members).to_csv(folder / "history.csv", index=False)
    (folder / "summary.json").write_text(json.dumps({"seconds": 75.0}))
    return folder


def like_published(config: StudyConfig) -> pd.DataFrame:
    """Members of the Möbius grid whose medians are the published ones; at 1e6, where nothing was, as before."""
    members, known = members_of(config), table("moebius_gamma_uniform")
    for _, group in members.groupby("trial"):
        for quantity in known.rows["quantity"].unique():
            found = known.spread(group["gamma_sq"].iloc[0], quantity)
            if found is not None:
                members.loc[group.index, quantity] = found.median + np.linspace(-1e-4, 1e-4, len(group))
    return members


class Ledger(NamedTuple):
    """What came of a command line."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ledger]:
    """Launch the command in this process."""

    def launched(*arguments: str) -> Ledger:
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
        code = reproduce.main()
        return Ledger(code, *capsys.readouterr())

    return launched


# ---- the studies


@pytest.mark.parametrize("search", PAPER)
def test_every_study_of_the_paper_is_a_grid_that_can_be_checked_before_it_runs(search: str) -> None:
    config = wanted(search)
    _, points = check(config)
    assert config.sampler.name == "grid"
    assert len(points) * config.members.count >= (3 if search.endswith("_small") else 10)


def test_every_study_of_the_paper_has_a_figure_or_a_small_form_that_has() -> None:
    drawn = {search for figure in FIGURES.values() for search in figure.searches}
    assert drawn <= set(PAPER)
    assert all(f"{name}_small" in drawn for name in PAPER if name not in drawn)


def test_the_small_form_differs_in_network_and_steps_alone() -> None:
    large, small = (to_mapping(wanted(f"paper/moebius_gamma_gaussian{end}")) for end in ("", "_small"))
    other = {
        f"{part}.{key}"
        for part in ("data", "model", "training", "members", "search")
        for key in large[part]
        if large[part][key] != small[part][key]
    }
    assert other == {"model.n_layers", "model.hidden_factor", "training.batch_size", "training.learning_rate"}
    assert (small["model"]["n_layers"], small["model"]["prior"]["name"]) == (2, "gaussian")


def test_a_study_with_several_priors_gives_each_its_own_settings() -> None:
    from imavae.config.settings import base_of, with_values

    config = wanted("paper/moebius_priors")
    points = grid(parse(config))
    assert len(points) == 12
    found = {with_values(base_of(config), point).model.prior.name for point in points}
    assert found == {"uniform", "beta", "gaussian"}


# ---- finding them


@pytest.fixture
def few(tmp_path: Path) -> StudyConfig:
    return wanted("paper/moebius_gamma_uniform", f"output_dir={tmp_path}", "tracking=none", "members.seed=[1,2,3]")


def test_a_study_is_found_by_what_it_ran_not_by_its_name_or_place(few: StudyConfig, tmp_path: Path) -> None:
    store(few, members_of(few), tmp_path, "any-name")
    for override in ("name=other", "cluster.cpus=1", "training.threads=2", "tracking=mlflow"):
        overrides = [f"output_dir={tmp_path}", "members.seed=[1,2,3]", override]
        found = find(wanted("paper/moebius_gamma_uniform", *overrides))
        assert found is not None
        assert found.folder.name == "any-name"
        assert found.seconds == 75.0
        assert found.members["model.gamma"].tolist() == pytest.approx(found.members["gamma"].tolist())


@pytest.mark.parametrize(
    "override", ["members.seed=[1,2]", "training.max_epochs=3", "data.n_obs=5000", "model.n_layers=3"]
)
def test_a_study_of_other_settings_is_not_taken_for_it(override: str, few: StudyConfig, tmp_path: Path) -> None:
    store(few, members_of(few), tmp_path)
    own = [f"output_dir={tmp_path}", *([] if override.startswith("members") else ["members.seed=[1,2,3]"]), override]
    other = wanted("paper/moebius_gamma_uniform", *own)
    assert find(other) is None
    assert override.split("=")[0] in unlike(other)


def test_an_unfinished_or_damaged_study_is_not_taken(few: StudyConfig, tmp_path: Path) -> None:
    members = members_of(few)
    folder = store(few, members[members["trial"] < 4], tmp_path)
    assert find(few) is None
    assert "not finished" in unlike(few)
    members.iloc[:-1].to_csv(folder / "members.csv", index=False)
    assert find(few) is None
    (folder / "members.csv").write_text("")
    assert find(few) is None
    (folder / "config.yaml").write_text("study: [")
    assert find(few) is None
    assert "none in" in unlike(few)


def test_of_several_studies_the_newest_is_read(few: StudyConfig, tmp_path: Path) -> None:
    import os

    for age, name in ((300, "a"), (100, "b"), (200, "c")):
        folder = store(few, members_of(few), tmp_path, name)
        moment = (folder / "config.yaml").stat().st_mtime - age
        os.utime(folder / "config.yaml", (moment, moment))
    found = find(few)
    assert found is not None
    assert found.folder.name == "b"


@pytest.mark.parametrize("begun", [True, False])
def test_what_was_broken_off_is_gone_on_with(
    begun: bool, call: Callable[..., Ledger], few: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members, asked = members_of(few), []
    folder = store(few, members[members["trial"] < 4], tmp_path, "half")
    if begun:  # else it is of a version that could not be resumed
        RunFolder(folder).state.write_text("")

    def finish(config: StudyConfig) -> None:
        asked.append(config)
        members.to_csv(folder / "members.csv", index=False)

    monkeypatch.setattr(command, "tune", finish)
    ledger = call("figure=moebius_gamma", f"output_dir={tmp_path}", "tracking=none", "members.seed=[1,2,3]")
    assert ledger.code == 1  # invented numbers
    assert [(config.resume, config.name) for config in asked] == [(begun, "half" if begun else None)]
    assert ("going on with half" in ledger.out) == begun


def test_a_dry_run_tells_the_cost_of_every_study(call: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[StudyConfig] = []
    monkeypatch.setattr(command, "tune", asked.append)
    assert call("figure=elbo_gap", "dry_run=true").code == 0
    assert [(config.study, config.dry_run) for config in asked] == [
        ("paper/elbo_gap_triangular", True),
        ("paper/elbo_gap_moebius", True),
    ]


# ---- figures


def studies_of(figure: Entry, tmp_path: Path) -> list[Study]:
    found = []
    for search in figure.searches:
        config = wanted(search, f"output_dir={tmp_path}")
        store(config, members_of(config), tmp_path)
        study = find(config)
        assert study is not None
        found.append(study)
    return found


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES.keys())
def test_every_figure_is_read_drawn_and_told(figure: Entry, tmp_path: Path) -> None:
    studies = studies_of(figure, tmp_path)
    rows = figure.rows(studies)
    assert {row.study for row in rows} == {study.name for study in studies}
    assert all(np.isfinite(row.ours.median) for row in rows)
    drawing = figure.draw(studies)
    assert all(axes.get_xlabel() for axes in drawing.axes)
    assert all(len(axes.lines) + len(axes.containers) > 0 for axes in drawing.axes)
    labels = [text.get_text() for legend in drawing.legends for text in legend.get_texts()]
    assert len(labels) == len(set(labels)) >= 2
    output = console()
    output.print(terminal_table(rows, figure.name))
    text = text_of(output)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert all(row.verdict.split()[-1] in text for row in rows)  # nothing is cut off at the right
    assert " verdict" in text
    assert len(frame(rows)) == markdown_table(rows).count("\n") - 2 == len(rows)
    assert figure.differs.count(". ") == 1  # two sentences
    assert figure.differs.endswith(".")
    verdicts = {row.verdict for row in rows}
    assert bool(verdicts & {PASS, FAIL}) == (figure.name in JUDGED)  # what was published, or is a law
    assert figure.name not in BESIDE or NOT_JUDGED in verdicts
    assert figure.name in JUDGED | BESIDE or verdicts == {NOT_PUBLISHED}


def test_the_published_ratio_takes_the_priors_curvature_as_one(tmp_path: Path) -> None:
    """For a linear VAE, at its optimum: v‖J‖² = 1 − γ⁻², so that the published ratio is v / γ² + 1 − γ⁻²."""
    from imavae.paper.gamma import with_published_ratio
    from imavae.paper.quantities import RATIO

    config = wanted("paper/rotation_gamma_gaussian", f"output_dir={tmp_path}")
    members, variance = members_of(config), 1.8
    at = "at min val/neg_elbo"
    gamma_sq = members["gamma_sq"]
    members[f"val/prior_variance {at}"], members[f"val/self_consistency_batch {at}"] = variance, 1.0
    members[f"val/column_norm {at}"] = ((1 - 1 / gamma_sq) / variance) ** 0.5
    store(config, members, tmp_path)
    study = find(config)
    assert study is not None
    np.testing.assert_allclose(
        with_published_ratio(study).members[RATIO.column], variance / gamma_sq + 1 - 1 / gamma_sq, rtol=1e-9
    )


def test_the_linear_maps_are_spread_like_the_published_ones(tmp_path: Path) -> None:
    from scipy.stats import ks_2samp

    config = wanted("paper/moebius_linear_map", f"output_dir={tmp_path}")
    store(config, members_of(config), tmp_path)
    study = find(config)
    assert study is not None
    ours = with_linear_contrast(study).members[LINEAR]
    assert ks_2samp(ours, table("moebius_linear_map").rows["cima_of_linear_map"]).pvalue > 0.05


def test_the_law_of_the_gap_allows_a_tenth_of_what_it_tells_apart() -> None:
    members = pd.DataFrame({"val/cima_truth at min val/neg_elbo": [2.0, 2.0]})
    assert law_tolerance(members, 3) == pytest.approx(0.2)
    assert law_tolerance(0 * members, 3) == pytest.approx(0.3)  # a conformal mixing


# ---- the command


def test_without_a_figure_they_are_listed(call: Callable[..., Ledger]) -> None:
    ledger = call()
    assert (ledger.code, ledger.err) == (0, "")
    assert all(name in ledger.out for name in FIGURES)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["figure=moebius"], ["'moebius'", "must be one of", "moebius_gamma"]),
        (["figure=moebius_gamma", "search=gamma_uniform"], ["search=gamma_uniform", "SETTING=VALUE"]),
        (["-m", "figure=moebius_gamma"], ["-m", "SETTING=VALUE"]),
        (["figure=moebius_gamma", "training.epochs=3"], ["`training.epochs`", "not a setting", "max_epochs"]),
        (["figure=moebius_gamma", "plot_only=true"], ["paper/moebius_gamma_uniform", "none in"]),
    ],
)
def test_bad_input(
    arguments: list[str],
    parts: list[str],
    call: Callable[..., Ledger],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = call(*arguments)
    assert ledger.code == 2
    assert ledger.out == ""
    assert [part for part in parts if part not in ledger.err] == []
    assert list(tmp_path.iterdir()) == []


def test_what_agrees_exits_with_0_and_one_wrong_row_with_1(call: Callable[..., Ledger], tmp_path: Path) -> None:
    line = ["figure=moebius_gamma", "plot_only=true", f"output_dir={tmp_path}", "tracking=none"]
    config = wanted("paper/moebius_gamma_uniform", f"output_dir={tmp_path}")
    members = like_published(config)
    folder = store(config, members, tmp_path)
    ledger = call(*line)
    assert (ledger.code, ledger.err) == (0, "")
    assert "15 PASS, 3 not published" in ledger.out
    assert "Choosing without ground truth" in ledger.out
    assert "A FAIL is" not in ledger.out
    assert "20 initialisations that share one mixing" in " ".join(ledger.out.split())
    assert "took 1:15" in " ".join(ledger.out.split())
    results = tmp_path / "reproduce" / "moebius_gamma"
    assert {path.name for path in results.iterdir()} == {
        "moebius_gamma.png",
        "moebius_gamma.pdf",
        "table.md",
        "table.csv",
    }
    assert (pd.read_csv(results / "table.csv")["verdict"] == PASS).sum() == 15

    members.loc[members["trial"] == 3, "val/mcc_batch at min val/neg_elbo"] -= 0.2
    members.to_csv(folder / "members.csv", index=False)
    ledger = call(*line)
    assert ledger.code == 1
    assert "1 FAIL, 14 PASS" in ledger.out
    assert "A FAIL is further from the published number than chance allows" in " ".join(ledger.out.split())


def test_a_figure_is_tracked(call: Callable[..., Ledger], tmp_path: Path) -> None:
    import mlflow

    config = wanted("paper/moebius_gamma_uniform", f"output_dir={tmp_path}")
    store(config, like_published(config), tmp_path)
    assert call("figure=moebius_gamma", "plot_only=true", f"output_dir={tmp_path}").code == 0
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("reproduce")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["rows/PASS"] == 15
    name = "moebius_gamma_uniform/MCC/gamma_sq 1e4"
    assert run.data.metrics[f"{name}/ours"] == pytest.approx(0.960455, abs=1e-6)
    assert run.data.metrics[f"{name}/passes"] == 1
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "config.yaml",
        "search_space.yaml",
        "figures",
        "table.md",
        "table.csv",
    } - ({"search_space.yaml"} if not run.data.params.get("search") else set())


def test_a_study_that_is_not_there_is_run(call: Callable[..., Ledger], tmp_path: Path) -> None:
    """With the real parts, tiny: Ray trains it, and the figure is judged to fail."""
    line = ["figure=moebius_gamma", f"output_dir={tmp_path}", "tracking=none", "members.seed=[1,2]"]
    line += ["data.n_obs=1000", "training.max_epochs=2"]
    ledger = call(*line)
    assert ledger.code == 1
    assert "paper/moebius_gamma_uniform: running" in ledger.out
    folder = tmp_path / "studies" / "paper-moebius_gamma_uniform"
    assert {"summary.json", "selection.csv"} <= {path.name for path in folder.iterdir()}
    again = call(*line, "plot_only=true")
    assert again.code == 1
    assert f"read from {folder}" in again.out
