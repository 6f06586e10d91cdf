"""Figures of the paper from fabricated studies: what is read, judged, drawn, written and tracked, and exit codes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from imavae.cli import commands
from imavae.cli.compose import compose, searches
from imavae.cli.main import REPRODUCE, launch
from imavae.config.data import SyntheticData
from imavae.config.mapping import build
from imavae.config.settings import ReproduceConfig, StudyConfig, base_of, study_of, with_values
from imavae.data.dataset import world
from imavae.errors import UserError
from imavae.metrics.glossary import METRICS
from imavae.paper import reproduce as library
from imavae.paper.figures import (
    FIGURES,
    PaperFigure,
    law_tolerance,
    with_last_validation,
    with_law,
    with_linear_contrast,
    with_mixing_contrast,
    with_published_ratio,
)
from imavae.paper.quantities import (
    EXACT,
    FAIL,
    LAST,
    LIKELIHOOD,
    LINEAR,
    MCC,
    MIXING,
    NOT_JUDGED,
    OVER_PRIOR,
    PASS,
    RATIO,
    TRUTH,
    Study,
    frame,
    markdown_table,
    table,
    terminal_table,
)
from imavae.paper.reproduce import difference, find
from imavae.runs import folder
from imavae.runs.ledger import Ledger
from imavae.search.space import check, grid, parse
from imavae.tracking import Tracker, TrialRecord
from tests.helpers import console, text_of

JUDGED = {
    "ar_flow",
    "elbo_gap",
    "moebius_gamma",
    "moebius_gamma_gaussian",
    "moebius_linear_map",
    "priors_dimensions",
    "self_consistency",
    "spurious",
    "sprites_epochs",
    "sprites_full",
}
BESIDE = {
    "moebius_linear_map",
    "spurious",
    "sprites",
    "sprites_full",
}  # their numbers can't all be compared
STATES = ("min val/neg_elbo", "max val/mcc")
PAPER = [name for name in searches() if name.startswith("paper/")]
AT = f"at {STATES[0]}"


def wanted(search: str, *overrides: str) -> StudyConfig:
    return study_of(compose(REPRODUCE, [*overrides, f"search={search}"]).settings)


def few_members(search: str, tmp_path: Path) -> StudyConfig:
    """A study with five seeds and five worlds at most: the fewest that have a rank correlation."""
    config = wanted(search, f"output_dir={tmp_path}")
    members = config.members
    worlds = dataclasses.replace(members.data, seed=members.data.seed and members.data.seed[:5])
    return dataclasses.replace(config, members=dataclasses.replace(members, seed=members.seed[:5], data=worlds))


def members_of(config: StudyConfig) -> pd.DataFrame:
    """Members of every point, with a plausible number for every metric of the glossary."""
    worlds = config.members.data.seed or (config.data.seed,)
    gammas = [float(point.get("model.gamma", np.nan)) for point in grid(parse(config))]  # a flow has none
    index = itertools.product(range(len(gammas)), worlds, config.members.seed)
    members = pd.DataFrame(index, columns=["trial", "data.seed", "seed"])
    if len(worlds) == 1:
        del members["data.seed"]
    members["gamma"] = np.array(gammas)[members["trial"]]
    members = members.assign(gamma_sq=members["gamma"] ** 2, status="finished", epochs=10)
    columns = [
        f"{split}/{name} at {state}" for split in ("val", "test") for name in METRICS.names() for state in STATES
    ]
    values = np.random.default_rng(0).uniform(0.2, 0.9, (len(members), len(columns)))
    members = pd.concat([members, pd.DataFrame(values, columns=columns)], axis=1)
    best = {state: members[f"{state.split()[1]} at {state}"] for state in STATES}
    return members.assign(**best)


def history_of(members: pd.DataFrame) -> pd.DataFrame:
    curves = [members.assign(epoch=epoch) for epoch in (25, 50)]
    columns = {f"val/{name} {AT}": f"val/{name}" for name in METRICS.names()}
    return pd.concat(curves)[["trial", "seed", "epoch", *columns]].rename(columns=columns)


def by_trial(rows: pd.DataFrame) -> dict[int, list[Any]]:
    """The rows of each trial as mappings."""
    found: dict[int, list[Any]] = {}
    for row in rows.to_dict("records"):  # at once: slow for each trial of a table with hundreds of columns
        found.setdefault(row["trial"], []).append(row)
    return found


def store(config: StudyConfig, members: pd.DataFrame, name: str = "") -> Path:
    """Write a finished study with these members into ``config.output_dir``, as a run does."""
    home = folder.create(config, "studies", name or config.study.replace("/", "-"))
    ledger = Ledger.start(config, home, Tracker())
    rows, history = by_trial(members), by_trial(history_of(members))
    for number, values in enumerate(grid(parse(config))):
        if number in rows:
            ledger.add(TrialRecord(number, values, "finished", 0.5, history[number], rows[number]), None, 0)
    ledger.write_tables()
    ledger.close("finished")
    ledger.names.summary.write_text(json.dumps({"seconds": 75.0}))
    return ledger.folder


def stored(config: StudyConfig, members: pd.DataFrame | None = None) -> Study:
    """The study as it is read back."""
    store(config, members_of(config) if members is None else members)
    study = find(config)
    assert study is not None
    return study


def like_published(config: StudyConfig) -> pd.DataFrame:
    """Members of the Möbius grid whose medians are the published ones; at 1e6, where nothing was, as before."""
    members, known = members_of(config), table("moebius_gamma_uniform")
    for _, group in members.groupby("trial"):
        for quantity in known.rows["quantity"].unique():
            found = known.spread(quantity, {"gamma_sq": group["gamma_sq"].iloc[0]})
            if found is not None:
                members.loc[group.index, quantity] = found.median + np.linspace(-1e-4, 1e-4, len(group))
    return members


# ---- the studies


@pytest.mark.parametrize("search", PAPER)
def test_every_study_of_the_paper_is_a_grid_that_can_be_checked_before_it_runs(search: str) -> None:
    config = wanted(search)
    _, points = check(config)
    assert points
    assert config.sampler.name == "grid"


def test_every_study_of_the_paper_has_a_figure_or_a_small_form_that_has() -> None:
    drawn = {search for figure in FIGURES.values() for search in figure.searches}
    assert drawn <= set(PAPER)
    assert all(f"{name}_small" in drawn for name in PAPER if name not in drawn)


@pytest.mark.parametrize("dim", [2, 3, 5, 10])
def test_the_priors_of_a_study_are_those_of_the_published_sweep(dim: int) -> None:
    config = wanted(f"paper/moebius_priors_{dim}")
    priors = [with_values(base_of(config), point).model.prior for point in grid(parse(config))]
    assert config.data.dim == dim
    assert len(priors) == 9
    assert {(prior.name, getattr(prior, "parameters", "fixed")) for prior in priors} == {
        ("uniform", "fixed"),
        ("gaussian", "learned"),
        ("laplace", "fixed"),
    }


# ---- finding them


@pytest.fixture
def few(tmp_path: Path) -> StudyConfig:
    return wanted("paper/moebius_gamma_uniform", f"output_dir={tmp_path}", "tracking=none", "members.seed=[1,2,3]")


def test_a_study_is_found_by_the_settings_that_decide_its_numbers(few: StudyConfig, tmp_path: Path) -> None:
    store(few, members_of(few), "any-name")
    own = [f"output_dir={tmp_path}", "members.seed=[1,2,3]"]
    same = wanted("paper/moebius_gamma_uniform", *own, "name=other", "cluster.cpus=1", "training.threads=2")
    found = find(same)
    assert found is not None
    assert (found.folder.name, found.seconds) == ("any-name", 75.0)
    assert found.members["model.gamma"].tolist() == found.members["gamma"].tolist()
    training, data = dataclasses.replace(few.training, max_epochs=3), dataclasses.replace(few.data, n_obs=5000)
    for key, other in (
        ("training.max_epochs", dataclasses.replace(few, training=training)),
        ("data.n_obs", dataclasses.replace(few, data=data)),
    ):
        assert find(other) is None
        assert key in difference(other)


def test_an_unfinished_or_damaged_study_is_not_taken(few: StudyConfig) -> None:
    members = members_of(few)
    store(few, members[members["trial"] < 4], "half")
    store(few, members.iloc[:-1], "short")
    (store(few, members, "damaged") / "records" / "trial-002.json").write_text("study: [")
    assert find(few) is None


def test_of_several_studies_the_newest_is_read(few: StudyConfig) -> None:
    for age, name in enumerate(("a", "c", "b")):  # newer ones look older
        path = store(few, members_of(few), name)
        for file in (*path.iterdir(), path):
            os.utime(file, (1e9 - age, 1e9 - age))
    found = find(few)
    assert found is not None
    assert found.folder.name == "b"


# ---- figures


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES.keys())
def test_every_figure_is_read_judged_and_drawn(figure: PaperFigure, tmp_path: Path) -> None:
    studies = [figure.kind.derive(stored(few_members(search, tmp_path))) for search in figure.searches]
    rows = figure.kind.rows(studies)
    assert {row.study for row in rows} == {study.name for study in studies}
    assert all(np.isfinite(row.ours.median) for row in rows)
    drawing = figure.kind.draw(studies)
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
    assert len(frame(rows)) == markdown_table(rows).count("\n") - 2 == len(rows)
    verdicts = {row.verdict for row in rows}
    assert bool(verdicts & {PASS, FAIL}) == (figure.name in JUDGED)  # what was published, or is a law
    assert figure.name not in BESIDE or NOT_JUDGED in verdicts
    assert figure.name in JUDGED | BESIDE or verdicts == {NOT_JUDGED}


def test_the_published_ratio_takes_the_priors_curvature_as_one(tmp_path: Path) -> None:
    """For a linear VAE, at its optimum: v‖J‖² = 1 − γ⁻², so that the published ratio is v / γ² + 1 − γ⁻²."""
    config = wanted("paper/rotation_gamma_gaussian", f"output_dir={tmp_path}")
    members, variance = members_of(config), 1.8
    gamma_sq = members["gamma_sq"]
    members[f"val/prior_variance {AT}"], members[f"val/self_consistency_batch {AT}"] = variance, 1.0
    members[f"val/column_norm {AT}"] = ((1 - 1 / gamma_sq) / variance) ** 0.5
    found = with_published_ratio(stored(config, members)).members[RATIO.column]
    np.testing.assert_allclose(found, variance / gamma_sq + 1 - 1 / gamma_sq, rtol=1e-9)


def test_the_last_validation_is_each_members_own(tmp_path: Path) -> None:
    config = wanted("paper/moebius_priors_3", f"output_dir={tmp_path}")
    study = stored(config)
    history = study.history.assign(**{"val/mcc_batch": study.history["epoch"] / 100 + study.history["seed"]})
    ended = (history["trial"] == 2) & (history["seed"] == 4) & (history["epoch"] == 50)
    found = with_last_validation(dataclasses.replace(study, history=history[~ended].sample(frac=1, random_state=0)))
    early = (found.members["trial"] == 2) & (found.members["seed"] == 4)
    expected = found.members["seed"] + np.where(early, 0.25, 0.5)
    np.testing.assert_allclose(found.members[MCC.at(LAST).column], expected)
    assert (found.members["data.dim"] == 3).all()


def test_a_published_cell_is_judged_at_its_own_prior_dimension_and_gamma(tmp_path: Path) -> None:
    figure = FIGURES["priors_dimensions"]
    studies = [figure.kind.derive(stored(few_members(name, tmp_path))) for name in figure.searches]
    judged = [row for row in figure.kind.rows(studies) if row.published is not None]
    known = table("moebius_priors_dimensions").rows
    cells = known[["dim", "prior", "gamma_sq"]].to_numpy().tolist()
    names = {OVER_PRIOR.label(dim, prior, gamma_sq**0.5) for dim, prior, gamma_sq in cells}
    assert {row.point for row in judged} == names
    assert sorted(row.published.median for row in judged if row.published) == sorted(known["median"])
    for row in judged:
        assert row.published is not None
        assert (row.verdict == NOT_JUDGED) == (row.published.n < 5)


def test_a_mixings_contrast_is_that_of_its_mean_jacobian(tmp_path: Path) -> None:
    config = wanted("paper/ar_flow", f"output_dir={tmp_path}", "members.data.seed=[3,4]")
    found = with_mixing_contrast(stored(config)).members
    for seed, contrast in zip(found["data.seed"], found[MIXING], strict=True):
        assert isinstance(config.data, SyntheticData)
        drawn = world(dataclasses.replace(config.data, seed=seed))
        mean = drawn.mixing.jacobian(drawn.sources[:64]).mean(0)
        gram = mean.T @ mean
        expected = 0.5 * float(gram.diagonal().log().sum() - gram.logdet())
        assert contrast == pytest.approx(expected, rel=1e-9)


def test_the_linear_maps_are_spread_like_the_published_ones(tmp_path: Path) -> None:
    ours = with_linear_contrast(stored(wanted("paper/moebius_linear_map", f"output_dir={tmp_path}"))).members[LINEAR]
    assert ks_2samp(ours, table("moebius_linear_map").rows[LINEAR]).pvalue > 0.05


@pytest.mark.parametrize("search", FIGURES["spurious"].searches)
def test_a_true_decoder_after_an_automorphism_has_one_likelihood_and_another_contrast(
    search: str, tmp_path: Path
) -> None:
    config = wanted(search, f"output_dir={tmp_path}", "data.n_obs=5000")
    figure, members = FIGURES["spurious"], members_of(config)
    truth = with_law(stored(config, members)).members.groupby("model.automorphism.angle")
    likelihood, contrast = (truth[name].median() for name in (LIKELIHOOD.column, EXACT.column))
    np.testing.assert_allclose(likelihood, likelihood[0], rtol=0, atol=1e-9)
    assert contrast[90] == pytest.approx(contrast[0], abs=1e-9)  # a quarter turn swaps two sources
    assert contrast[[15, 30, 45, 60, 75]].min() > contrast[0] + 0.05
    exact = with_law(stored(config, members)).members
    for away, verdict in ((0.1, PASS), (-0.1, PASS), (0.2, FAIL), (-0.2, FAIL)):
        members["min val/neg_elbo"] = exact[EXACT.column] - exact[LIKELIHOOD.column] + away
        rows = figure.kind.rows([with_law(stored(config, members))])
        assert {row.verdict for row in rows if row.expected is not None} == {verdict}


def test_a_curve_is_judged_where_it_was_published(tmp_path: Path) -> None:
    study = stored(wanted("paper/sprites_epochs", f"output_dir={tmp_path}"))
    history = study.history[study.history["epoch"] == 25].assign(**{"val/mcc_batch": 0.604, "val/cima_batch": 2.0})
    later = history.assign(epoch=30)
    rows = FIGURES["sprites_epochs"].kind.rows([dataclasses.replace(study, history=pd.concat([history, later]))])
    assert [(row.point, row.verdict) for row in rows] == [("epoch 25", PASS), ("epoch 25", FAIL)]
    # Student's t of 9 degrees of freedom, times the published deviation of 0.0899 and sqrt(1 + 1/10)
    assert rows[0].tolerance == pytest.approx(4.09 * 0.0899 * 1.1**0.5, rel=0.01)


def test_the_law_of_the_gap_allows_a_tenth_of_what_it_tells_apart() -> None:
    members = pd.DataFrame({TRUTH: [2.0, 2.0]})
    assert law_tolerance(members, 3) == pytest.approx(0.2)
    assert law_tolerance(0 * members, 3) == pytest.approx(0.3)  # a conformal mixing


# ---- reproducing


def asked(tmp_path: Path, *overrides: str) -> tuple[ReproduceConfig, list[StudyConfig]]:
    """The Möbius figure and its study."""
    line = [f"output_dir={tmp_path}", *overrides]
    config = build(ReproduceConfig, compose(REPRODUCE, [*line, "figure=moebius_gamma"]).settings)
    return config, [wanted("paper/moebius_gamma_uniform", *line)]


def never(config: StudyConfig) -> None:
    raise AssertionError(f"{config.study} is run")


def test_a_figure_is_judged_written_and_tracked(tmp_path: Path) -> None:
    config, [study] = asked(tmp_path, "plot_only=true")
    members = like_published(study)
    members.loc[members["trial"] == 3, f"val/mcc_batch {AT}"] -= 0.2  # γ² = 1e4
    said: list[str] = []
    home = store(study, members)
    found = library.reproduce_figure(config, [study], never, said.append)
    assert not found.passed
    assert found.verdicts == {PASS: 14, FAIL: 1, NOT_JUDGED: 4}
    assert found.folder == tmp_path / "reproduce" / "moebius_gamma"
    names = {"moebius_gamma.png", "table.md", "table.csv"}
    assert {path.name for path in found.folder.iterdir()} == names
    assert (pd.read_csv(found.folder / "table.csv")["verdict"] == PASS).sum() == 14
    assert all(note in (found.folder / "table.md").read_text(encoding="utf-8") for note in found.notes)
    assert len(said) == 1
    assert str(home) in said[0]

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("reproduce")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert (run.data.metrics["rows/PASS"], run.data.metrics["rows/FAIL"]) == (14, 1)
    name = "moebius_gamma_uniform/MCC/gamma_sq 1e"
    assert run.data.metrics[f"{name}4/ours"] == pytest.approx(0.960455 - 0.2, abs=1e-6)
    assert (run.data.metrics[f"{name}4/passes"], run.data.metrics[f"{name}5/passes"]) == (0, 1)
    logged = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "figures", "table.md", "table.csv"} <= logged


def test_a_study_that_is_not_there_is_run_and_an_unfinished_one_resumed(tmp_path: Path) -> None:
    config, [study] = asked(tmp_path, "tracking=none", "members.seed=[1,2]")
    members = members_of(study)
    config_of: list[StudyConfig] = []

    def run(wanted: StudyConfig) -> None:
        config_of.append(wanted)
        store(study, members, "whole")

    with pytest.raises(UserError, match="paper/moebius_gamma_uniform"):
        library.reproduce_figure(dataclasses.replace(config, plot_only=True), [study], never, print)
    library.reproduce_figure(config, [study], run, print)
    store(study, members[members["trial"] < 4], "half")
    library.reproduce_figure(config, [study], never, print)  # the whole one is there
    (tmp_path / "studies" / "whole").rename(tmp_path / "whole")
    with pytest.raises(UserError, match="paper/moebius_gamma_uniform"):  # it is not finished afterwards
        library.reproduce_figure(config, [study], config_of.append, print)
    library.reproduce_figure(config, [study], run, print)
    assert [(one.resume, one.name) for one in config_of] == [(False, None), (True, "half"), (True, "half")]


# ---- the command


class Outcome(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Launch the command in this process."""

    def launched(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
        code = launch(REPRODUCE)
        return Outcome(code, *capsys.readouterr())

    return launched


def test_without_a_figure_they_are_listed(call: Callable[..., Outcome]) -> None:
    outcome = call()
    assert (outcome.code, outcome.err) == (0, "")
    assert all(name in outcome.out for name in FIGURES)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["figure=moebius"], ["'moebius'", "moebius_gamma"]),
        (["figure=moebius_gamma", "search=gamma_uniform"], ["search=gamma_uniform"]),
        (["--odd", "figure=moebius_gamma"], ["--odd"]),
        (["figure=moebius_gamma", "training.epochs=3"], ["`training.epochs`", "max_epochs"]),
        (["figure=moebius_gamma", "plot_only=true"], ["paper/moebius_gamma_uniform"]),
    ],
)
def test_bad_input(
    arguments: list[str],
    parts: list[str],
    call: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commands, "tune", never)
    monkeypatch.chdir(tmp_path)
    outcome = call(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert [part for part in parts if part not in outcome.err] == []
    assert list(tmp_path.iterdir()) == []


def test_the_exit_code_says_whether_all_rows_agree(call: Callable[..., Outcome], tmp_path: Path) -> None:
    own = [f"output_dir={tmp_path}", "tracking=none", "members.seed=[1,2,3]"]
    config, line = wanted("paper/moebius_gamma_uniform", *own), ["figure=moebius_gamma", "plot_only=true", *own]
    store(config, members_of(config))
    assert call(*line).code == 1
    home = store(config, like_published(config))
    outcome = call(*line, "pdf=true")
    assert (outcome.code, outcome.err) == (0, "")
    assert "15 PASS, 4 not judged" in outcome.out
    assert str(home) in outcome.out
    figure = tmp_path / "reproduce" / "moebius_gamma" / "moebius_gamma.pdf"
    assert figure.is_file()
    assert str(figure) in outcome.out


def test_a_dry_run_tells_the_cost_of_every_study(call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[StudyConfig] = []
    monkeypatch.setattr(commands, "tune", told.append)
    assert call("figure=elbo_gap", "dry_run=true").code == 0
    assert [(one.study, one.dry_run) for one in told] == [(search, True) for search in FIGURES["elbo_gap"].searches]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_study_is_trained_and_read_back(call: Callable[..., Outcome], tmp_path: Path) -> None:
    """With the real parts, tiny."""
    line = ["figure=moebius_gamma", f"output_dir={tmp_path}", "tracking=none", "members.seed=[1,2]"]
    line += ["data.n_obs=1000", "training.max_epochs=1", "budget.trials=1"]
    assert call(*line).code == 1  # its numbers disagree
    again = call(*line, "plot_only=true")
    assert again.code == 1
    assert str(tmp_path / "studies" / "paper-moebius_gamma_uniform") in again.out
