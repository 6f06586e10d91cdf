"""The estimator keeps scikit-learn's conventions, recovers sources, and writes nothing."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import imavae
from imavae import IMAVAE, metrics
from tests.pages import README, blocks

RNG = np.random.default_rng(0)
SOURCES = RNG.uniform(-0.5, 0.5, (1500, 2))
X = np.tanh(SOURCES @ np.array([[1.0, -0.5, 0.3], [0.4, 1.2, -0.8]])) * [1.0, 20.0, 300.0] + [0.0, 2.0, 5000.0]
SHORT: dict[str, Any] = {"max_iter": 200, "n_seeds": 2, "random_state": 0}


def test_it_passes_scikit_learns_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = check_estimator(IMAVAE(**SHORT), on_skip=None)  # no failure is expected
    skipped = {result["check_name"] for result in results if result["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}  # needs an environment variable; arrays of torch are no input
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def fitted() -> IMAVAE:
    return IMAVAE(2, gamma="search", max_iter=3000, n_seeds=2, random_state=0).fit(X)


def test_it_recovers_the_sources_of_a_weakly_nonlinear_mixing(fitted: IMAVAE) -> None:
    assert metrics.mcc(SOURCES, fitted.transform(X)) > 0.9
    restored = fitted.inverse_transform(fitted.transform(X))
    assert (np.abs(restored - X).mean(0) < 0.2 * X.std(0)).all()
    assert fitted.gamma_ in fitted.search_["gamma"]
    assert fitted.search_["neg_elbo"].min() == pytest.approx(np.median(fitted.neg_elbo_))
    assert fitted.agreement_.shape == (2,)


def test_the_search_chooses_by_agreement_if_asked(fitted: IMAVAE) -> None:
    other = clone(fitted).set_params(selection="agreement").fit(X)
    assert other.search_["agreement"].max() == pytest.approx(np.median(other.agreement_))
    np.testing.assert_array_equal(other.search_["neg_elbo"], fitted.search_["neg_elbo"])


def test_agreement_is_that_of_the_metric() -> None:
    model = IMAVAE(2, **SHORT).fit(X)
    single = IMAVAE(2, **{**SHORT, "n_seeds": 1}).fit(X)
    assert np.isnan(single.agreement_).all()
    np.testing.assert_allclose(single.neg_elbo_, model.neg_elbo_[:1], rtol=1e-4)  # a seed's company changes nothing
    if model.neg_elbo_[0] < model.neg_elbo_[1]:
        np.testing.assert_allclose(single.transform(X), model.transform(X), atol=1e-4)


def test_the_score_is_a_lower_bound_in_the_units_of_x() -> None:
    gaussian = np.random.default_rng(1).normal(size=(4000, 3)) @ np.diag([1.0, 10.0, 100.0])
    model = IMAVAE(3, prior="gaussian", random_state=0).fit(gaussian)
    exact = -0.5 * 3 * np.log(2 * np.pi * np.e) - np.log([1.0, 10.0, 100.0]).sum()
    assert exact - 2.0 < model.score(gaussian) < exact + 0.05
    scaled = clone(model).fit(gaussian * 10)
    assert scaled.score(gaussian * 10) == pytest.approx(model.score(gaussian) - 3 * np.log(10), abs=0.05)


def test_it_works_in_a_pipeline_and_in_a_search_and_is_pickled() -> None:
    y = SOURCES[:, 0]
    pipeline = make_pipeline(StandardScaler(), IMAVAE(2, **SHORT), LinearRegression())
    search = GridSearchCV(pipeline, {"imavae__gamma": np.array([2.0, 5.0]), "imavae__n_layers": [np.int64(2)]}, cv=2)
    assert search.fit(X, y).best_score_ > 0.3
    unsupervised = GridSearchCV(IMAVAE(2, **{**SHORT, "max_iter": 2000}), {"gamma": [0.5, 5.0]}, cv=2).fit(X)
    assert unsupervised.best_params_ == {"gamma": 5.0}
    loaded = pickle.loads(pickle.dumps(search.best_estimator_))  # noqa: S301  -- our own bytes
    np.testing.assert_array_equal(loaded.predict(X), search.predict(X))


def test_frames_give_frames() -> None:
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = IMAVAE(2, **SHORT).set_output(transform="pandas")
    z = model.fit_transform(frame)
    assert list(z) == list(model.get_feature_names_out()) == ["imavae0", "imavae1"]
    assert model.model_.columns == ("a", "b", "c")
    np.testing.assert_array_equal(clone(model).fit(frame).transform(frame), z)  # the same random state


@pytest.mark.parametrize(
    "params",
    [
        {"gamma": -1.0},
        {"gamma": "serch"},
        {"n_components": 4},
        {"prior": "unifrom"},
        {"n_seeds": 0},
        {"selection": "mcc"},
        {"validation_fraction": 1.0},
        {"max_iter": 0},
        {"batch_size": 0},
    ],
)
def test_a_wrong_parameter_is_a_value_error(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        IMAVAE(**{**SHORT, **params}).fit(X)


def test_global_generators_and_threads_stay() -> None:
    before = torch.get_rng_state(), torch.get_num_threads()
    IMAVAE(2, **SHORT).fit(X)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == torch.get_num_threads()


def test_the_readmes_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(imavae, "IMAVAE", functools.partial(IMAVAE, max_iter=200))
    [example] = [block for block in blocks(README, "python") if "IMAVAE" in block]
    exec(compile(example, str(README), "exec"), {})  # noqa: S102  -- our own page
    assert "imavae1" in capsys.readouterr().out
