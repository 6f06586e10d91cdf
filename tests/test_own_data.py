"""Training on a user's file: splits, scaling, selection without sources, and the metrics that are absent."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from imavae.config.mapping import to_mapping
from imavae.config.settings import EvaluateConfig, RunConfig, run_config, study_config
from imavae.data import dataset
from imavae.errors import UserError
from imavae.metrics import evaluate as evaluation
from imavae.metrics import identifiability
from imavae.metrics.evaluate import posterior_shapes
from imavae.metrics.glossary import METRICS, SOURCES, TRUTH, absent
from imavae.report.over_gamma import gamma_quantities
from imavae.report.run_figures import run_figures
from imavae.report.summary import chosen_numbers
from imavae.report.tables import best_trials, chosen_table, member_table
from imavae.runs.ledger import run_point
from imavae.runs.models import evaluate_checkpoint, load_model
from imavae.runs.session import Session
from imavae.search.space import check
from imavae.tracking.server import open_client, tracking_uri
from imavae.training import checkpoint
from imavae.training.step import train_epoch
from tests.helpers import console, file_data, normal, observations, plain_model, pointwise_jacobian, text_of, trained

CPU = torch.device("cpu")


def own(path: Path, training: dict[str, Any] | None = None, **data: Any) -> RunConfig:
    """Three latents of the four columns of a file, a few epochs."""
    return run_config(
        {
            "output_dir": str(path.parent / "outputs"),
            "data": file_data(path, **{"dim": 3, **data}),
            "model": {"gamma": 3.0},
            "members": {"seed": [1, 2, 3]},
            "training": {"max_epochs": 3, "validate_every": 1, "dtype": "float64", **(training or {})},
            "tracking": {"name": "none"},
        }
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return observations(tmp_path / "x.parquet")


def test_the_splits_hold_the_files_rows_standardised_by_the_training_rows(path: Path) -> None:
    config, raw = own(path), torch.from_numpy(pd.read_parquet(path).to_numpy().copy())
    made = dataset.make(config.data, (1, 2), torch.float64)
    for world, scaling in enumerate(made.scalings):
        train, *_ = parts = [split.observations[world] for split in (made.train, made.val, made.test)]
        assert tuple(map(len, parts)) == config.data.sizes
        torch.testing.assert_close(train.mean(0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(train.std(0, correction=0), torch.ones(4, dtype=torch.float64))
        rows = torch.cat(parts) * scaling.std + scaling.mean
        torch.testing.assert_close(rows.sort(0).values, raw.sort(0).values)
    assert not torch.equal(made.train.observations[0], made.train.observations[1])  # another seed, another split
    plain = dataset.make(own(path, standardise=False).data, (1,), torch.float64)
    assert plain.scalings == ()
    assert set(plain.test.observations[0, :, 0].tolist()) <= set(raw[:, 0].tolist())


def test_sources_and_segments_stay_with_their_rows(tmp_path: Path) -> None:
    s = normal(900, 2).numpy()
    np.save(tmp_path / "s.npy", s)
    frame = pd.DataFrame({"a": s[:, 0] + s[:, 1], "b": s[:, 0] - s[:, 1], "c": s[:, 0] ** 3})
    frame.assign(u=np.where(s[:, 0] > 0, "up", "down")).to_csv(tmp_path / "x.csv", index=False)
    config = own(tmp_path / "x.csv", dim=2, sources_path=str(tmp_path / "s.npy"), segment_column="u", standardise=False)
    made = dataset.make(config.data, (1,), torch.float64)
    scaling = made.sources_scaling
    assert scaling is not None
    for split in (made.train, made.val, made.test):
        assert split.segments is not None
        assert split.truth is None
        first, second = (split.sources[0] * scaling.std + scaling.mean).T
        torch.testing.assert_close(split.observations[0], torch.stack([first + second, first - second, first**3], 1))
        assert torch.equal(split.segments[0] == 1, first > 0)


def test_metrics_are_right_with_more_columns_than_latents(path: Path) -> None:
    session = Session.start([own(path)], CPU)
    train_epoch(session.ensemble, session.state, session.data.train)
    values = session.evaluate("val", session.state.weights, session.state.active)
    x = session.data.val.observations[0]
    for row, flat in enumerate(session.state.weights):
        model = plain_model(own(path), flat)  # without the scaling: these rows are standardised
        z = model.encode(x)
        jacobian = pointwise_jacobian(model.decode, z)
        assert jacobian.shape == (200, 4, 3)
        norms, gram = jacobian.norm(dim=1), jacobian.mT @ jacobian
        cima = norms.log().sum(1) - 0.5 * torch.logdet(gram)
        assert float(values["val/cima"][row]) == pytest.approx(float(cima.mean()), rel=1e-9)
        assert float(values["val/column_norm_max"][row]) == pytest.approx(float(norms.max()), rel=1e-9)
        assert float(values["val/mse_obs"][row]) == pytest.approx(float((model(x) - x).square().mean()), rel=1e-9)
    gap = values["val/log_px_z"] - 4 * (math.log(3.0) - 0.5 * math.log(2 * math.pi))  # of four dimensions
    assert (gap < 0).all()


@pytest.mark.parametrize("bound", [90, 200, 5000])
def test_agreement_is_of_the_first_points_and_no_others_are_kept(
    bound: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.start([own(path)], CPU)
    agreement, n = identifiability.agreement, min(bound, len(session.data.val))
    kept: list[float] = []

    def watched(locations: Tensor, groups: list[Any]) -> Tensor:
        every = [t for t in gc.get_objects() if type(t) is Tensor and t.shape[1:] == (3, n)]
        kept.extend(t.untyped_storage().nbytes() / (t.numel() * t.itemsize) for t in every)
        return agreement(locations, groups)

    monkeypatch.setattr(evaluation, "AGREEMENT_POINTS", bound)
    monkeypatch.setattr(identifiability, "agreement", watched)
    values = session.evaluate("val", session.state.weights, session.state.active)["val/agreement"]
    x = session.data.val.observations[0, :n]
    few = torch.stack([plain_model(own(path), row).encode(x).T for row in session.state.weights])
    torch.testing.assert_close(values, agreement(few, [0] * 3))
    assert set(kept) == {1.0}  # no view, which would keep all points


def test_a_member_with_more_columns_than_latents_does_not_depend_on_its_company(path: Path) -> None:
    together = trained([own(path)])
    mapping = own(path)
    alone = trained([run_config({**to_mapping(mapping), "members": {"seed": [2]}})])
    torch.testing.assert_close(alone.state.frozen[0], together.state.frozen[1], rtol=0, atol=1e-12)


def test_without_sources_what_needs_them_is_absent_with_a_reason(path: Path) -> None:
    reasons = absent(own(path), False, probes=True)
    assert set(reasons) == {metric.name for metric in METRICS if {SOURCES, *TRUTH} & set(metric.needs)}
    assert reasons["mcc"] == SOURCES.reason
    assert reasons["amari"] == TRUTH[1].reason
    for precision in ("learned", "mle"):
        session = trained([run_config({**to_mapping(own(path)), "model": {"precision": precision}})])
        assert set(session.criteria) == {"val/neg_elbo"}
        found = session.evaluate("test", session.state.frozen, torch.arange(3), probes=True)
        assert {name.removeprefix("test/") for name in found} == set(METRICS.names()) - reasons.keys()
        assert all(value.isfinite().all() for value in found.values())
    assert (
        posterior_shapes(session.ensemble, session.state.frozen, torch.arange(3), session.data.val).sources.shape[1]
        == 0
    )


def test_with_sources_only_the_mixing_is_missing(path: Path) -> None:
    config = own(path, sources_path=str(path), dim=None)  # the columns themselves
    reasons = absent(config, False, probes=True)
    truth = {metric.name for metric in METRICS if TRUTH[-1] in metric.needs}
    assert set(reasons) == {*truth, "mse_source", "mse_obs_interior", "mse_source_interior", "mcc_cdf"}
    session = trained([config])
    assert session.criteria == ("val/mcc", "val/neg_elbo")
    found = session.evaluate("val", session.state.frozen, torch.arange(3), probes=True)
    assert {name.removeprefix("val/") for name in found} == set(METRICS.names()) - reasons.keys()


def test_a_run_without_sources_chooses_by_neg_elbo_and_its_model_needs_no_file(path: Path) -> None:
    ledger, _ = run_point(own(path), lambda *_: None)
    members = ledger.results.members
    assert not [column for column in members if "mcc" in str(column)]
    assert ledger.results.objective.metric == "val/neg_elbo"
    model = load_model(ledger.folder)
    best = members.sort_values("min val/neg_elbo").iloc[0]
    assert (model.about["seed"], model.about["chosen by"]) == (best["seed"], "val/neg_elbo")
    found, _ = evaluate_checkpoint(EvaluateConfig(checkpoint=str(ledger.folder)))
    assert found["test/neg_elbo"][0] == pytest.approx(best["test/neg_elbo at min val/neg_elbo"], rel=1e-9)
    state = str(ledger.folder / "checkpoint.pt")
    assert len(evaluate_checkpoint(EvaluateConfig(checkpoint=state))[0]) == 3
    with pytest.raises(UserError, match=r"select is one of .* val/neg_elbo.*val/mcc without sources.*null"):
        evaluate_checkpoint(EvaluateConfig(checkpoint=state, select="val/mcc"))

    raw = pd.read_parquet(path)
    path.unlink()
    with pytest.raises(UserError, match=r"data\.path is a file"):
        evaluate_checkpoint(EvaluateConfig(checkpoint=str(ledger.folder), split="val"))
    model, x = load_model(ledger.folder).requires_grad_(False), torch.from_numpy(raw.to_numpy().copy())
    standard = (x - model.column_mean) / model.column_std
    q = model.architecture.posterior(model.weights, standard.T[None])
    torch.testing.assert_close(model.encode(x), model.architecture.prior.latent(q.mean)[0].T)
    error = ((model(x) - x) / model.column_std).square().mean()  # decoded into the file's own units
    direct = model.architecture.decoder(model.weights, model.encode(x).T[None])[0].T - standard
    assert float(error) == pytest.approx(float(direct.square().mean()), rel=1e-9)
    predictor = checkpoint._load_pyfunc(str(ledger.folder / "champion.pt"))
    for frame in (raw, raw[list("dcba")].assign(other="text"), raw.to_numpy()):
        np.testing.assert_allclose(predictor.predict(frame), model.encode(x).numpy())
    with pytest.raises(UserError, match="no b"):
        predictor.predict(raw.drop(columns="b"))


def test_a_tracked_run_without_sources_is_found_by_its_address(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = run_config({**to_mapping(own(path)), "tracking": {"name": "mlflow"}})
    ledger, _ = run_point(config, lambda *_: None)
    client = open_client(tracking_uri(config.tracking, Path(config.output_dir)))
    (experiment,) = client.search_experiments(filter_string="name = 'train'")
    best = ledger.results.members.sort_values("min val/neg_elbo").iloc[0]
    rules = ("tags.`imavae.kind` = 'study'", f"tags.`imavae.member` = '{best['seed']:.0f}'")
    for rule in rules:
        (run,) = client.search_runs([experiment.experiment_id], rule)
        model = load_model(f"runs:/{run.info.run_id}", config.output_dir)
        assert (model.about["seed"], model.about["chosen by"]) == (best["seed"], "val/neg_elbo")
    (logged,) = client.search_logged_models([experiment.experiment_id])
    values = {metric.key: metric.value for metric in logged.metrics or []}
    assert values["val/neg_elbo"] == pytest.approx(best["min val/neg_elbo"])
    assert "val/mcc" not in values


def test_reports_say_that_there_are_no_sources(path: Path) -> None:
    ledger, _ = run_point(own(path), lambda *_: None)
    members = ledger.results.members
    members.loc[0, "status"] = "diverged"
    for table in (member_table(members), best_trials(members, ledger.results.trials, [], "min"), chosen_table(members)):
        output = console()
        output.print(table)
        text = text_of(output)
        assert "no sources" in text
        assert "agreement" in text
        assert "MCC" not in text.replace("hence no MCC", "")
    numbers = chosen_numbers(members)
    sound = members[1:].sort_values("min val/neg_elbo").iloc[0]
    assert (
        numbers
        == {
            "chosen/neg_elbo": sorted(members["min val/neg_elbo"][1:])[1],  # the diverged one counts as infinite
            "chosen/agreement": sorted([0.0, *members["val/agreement at min val/neg_elbo"][1:]])[1],
            "chosen/test_of_chosen": sound["test/neg_elbo at min val/neg_elbo"],
        }
    )


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3]])
def test_figures_are_drawn_without_sources_and_with_a_single_seed(seeds: list[int], path: Path) -> None:
    ledger, session = run_point(run_config({**to_mapping(own(path)), "members": {"seed": seeds}}), lambda *_: None)
    names = [f"seed {seed}" for seed in seeds]
    points = posterior_shapes(session.ensemble, session.best_weights, torch.arange(len(seeds)), session.data.val)
    found = set(run_figures(points, names, [], ledger.results.history))
    assert {"learning_curves", "posterior_variance"} <= found
    assert "latents" not in found
    assert set(gamma_quantities(ledger.results)) == {"agreement_vs_gamma", "cima_vs_gamma"}
    output = console()
    output.print(
        member_table(ledger.results.members), best_trials(ledger.results.members, ledger.results.trials, [], "min")
    )
    assert "no sources" in text_of(output)


def test_mcc_is_no_objective_without_sources(path: Path) -> None:
    def study(**objective: str) -> dict[str, Any]:
        gamma = {"model": {"gamma": {"type": "float", "low": 1.0, "high": 9.0}}}
        return {**to_mapping(own(path)), "search": gamma, "budget": {"trials": 2}, "objective": objective}

    with pytest.raises(UserError, match=r"objective\.metric=val/mcc.*val/agreement"):
        check(study_config(study()))
    check(study_config(study(metric="val/agreement")))
    check(study_config(study(metric="val/neg_elbo", mode="min")))


@pytest.mark.parametrize(
    ("data", "model", "parts"),
    [
        ({"dim": 5}, {}, ["data.dim <= the number of data.columns", "5 of 4"]),
        ({"n_obs": 200}, {}, ["at least 64 observations"]),
        ({"n_segments": 3}, {}, ["data.segment_column names the labels", "n_segments=3"]),
        ({"source": {"name": "uniform"}}, {}, ["data.source"]),
        ({"mixing": {"name": "mlp"}}, {}, ["data.mixing"]),
        ({}, {"decoder": "mixing"}, ["model.decoder=mixing needs a known mixing", "learned"]),
        ({}, {"prior": {"name": "gaussian", "parameters": "conditional"}}, ["data.n_segments > 1"]),
    ],
)
def test_rules_of_a_file(data: dict[str, Any], model: dict[str, Any], parts: list[str], path: Path) -> None:
    with pytest.raises(UserError) as error:
        run_config({"data": file_data(path, **data), "model": model})
    assert [part for part in parts if part not in str(error.value)] == []


def test_a_bounded_prior_may_lie_anywhere_and_a_gaussian_one_everywhere(path: Path) -> None:
    for prior in ({"name": "uniform", "low": 0.0, "high": 2.0}, {"name": "gaussian"}, {"name": "beta"}):
        session = trained([run_config({**to_mapping(own(path)), "model": {"prior": prior, "posterior": "full"}})])
        latents: Tensor = session.evaluate("val", session.state.frozen, torch.arange(3))["val/neg_elbo"]
        assert latents.isfinite().all()


def test_an_interrupted_run_goes_on_to_the_same_numbers(path: Path, tmp_path: Path) -> None:
    whole = trained([own(path)])
    session = Session.start([own(path)], CPU)
    next(session.train())
    session.save(tmp_path / "state.pt")
    resumed = Session.load(tmp_path / "state.pt", CPU)
    for _ in resumed.train():
        pass
    assert torch.equal(resumed.state.frozen, whole.state.frozen)
