"""The public metrics: each equals what is logged of a member, on plain arrays; and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from imavae import metrics
from imavae.errors import UserError
from imavae.metrics.glossary import METRICS, OF_WORLDS
from imavae.rng import stream
from imavae.runs.session import Session
from tests.helpers import GAUSSIAN, UNIFORM, config, normal, plain_model, theta_of, trained

OWN = {"neg_elbo", "kl", "log_px_z", "gamma", "prior_variance"}  # a model's, no functions of arrays
OWN |= {*OF_WORLDS, "nonlinear_gain"}  # a world's, from its training split: see test_linear.py


def session_of(prior: dict[str, Any]) -> Session:
    """Three members that have trained a little, in one world of uniform sources."""
    data = {"n_obs": 1000, "val": 0.2, "source": UNIFORM}
    return trained(
        [
            config(
                data,
                {"prior": prior, "gamma": 30.0},
                training={"dtype": "float64", "max_epochs": 2, "validate_every": 2},
                members={"seed": [1, 2, 3]},
            )
        ]
    )


@torch.no_grad()
def by_hand(session: Session, row: int, neg_elbo: float) -> dict[str, float]:
    """A member's metrics on the validation split, from arrays whose rows are observations."""
    split, members = session.data.val, session.ensemble.members
    models = [plain_model(session.points[0], flat) for flat in session.state.frozen]
    model, x, s = models[row], split.observations[0], split.sources[0].numpy()
    architecture, theta = model.architecture, theta_of(model)
    q = architecture.posterior(model.weights, x.T[None])
    noise = torch.randn(q.mean.shape[1:], generator=stream(members[row].seed, "evaluation"), dtype=torch.float64)
    z = architecture.prior.latent(q.sample(noise[None]))[0].T
    location, variance, y = model.encode(x), q.variance()[0].T.numpy(), q.mean[0].T
    jacobian = model.jacobian(location)
    local = jacobian * architecture.prior.slope(y)[:, None]  # in the coordinate of the posterior
    curvature = architecture.prior.curvature(y, theta)
    assert split.truth is not None
    truth = split.truth.jacobian[0].permute(2, 0, 1)
    norms, inside = metrics.column_norms(jacobian), (np.abs(s) < 0.8 * 0.5).all(1)
    dci = metrics.dci(s, location)
    exact = metrics.likelihoods(split.truth.log_px[0], metrics.cima_pointwise(truth), neg_elbo)
    return {
        "mcc": metrics.mcc(s, z),
        "mcc_spearman": metrics.mcc_spearman(s, z),
        "mcc_mean": metrics.mcc(s, location),
        "mcc_cdf": metrics.mcc(s, architecture.prior.cdf(z, theta)),
        "mcc_batch": metrics.mcc_batch(s, z),
        "r2_linear": metrics.r2_linear(s, location),
        "r2_nonlinear": metrics.r2_nonlinear(s, location),
        "agreement": metrics.agreement([one.encode(x) for one in models])[row],
        "active_units": metrics.active_units(location, architecture.prior.variance(theta)),
        **{f"dci_{name}": value for name, value in dci._asdict().items()},
        "sap": metrics.sap(s, location),
        "mig": metrics.mig(s, location),
        "cima": metrics.cima(jacobian),
        "cima_batch": metrics.cima_batch(model.jacobian(z)),
        "cima_truth": metrics.cima(truth),
        "rank_deficient": metrics.rank_deficient(jacobian),
        "conformal_contrast": metrics.conformal_contrast(jacobian),
        "amari": metrics.amari(jacobian, truth),
        "column_norm": norms.mean,
        "column_norm_max": norms.maximum,
        "column_norm_var_columns": norms.variance_over_columns,
        "column_norm_var_points": norms.variance_over_points,
        "self_consistency": metrics.self_consistency(variance, local, model.gamma, curvature),
        "self_consistency_batch": metrics.self_consistency_batch(variance, local, model.gamma, curvature),
        **exact._asdict(),
        "mse_obs": metrics.mse(model(x), x),
        "mse_source": metrics.mse(model.encode(model.decode(split.sources[0])), s),
        "mse_obs_interior": metrics.mse(model(x)[inside], x[inside]),
        "mse_source_interior": metrics.mse(model.encode(model.decode(split.sources[0]))[inside], s[inside]),
        "latent_correlation": metrics.latent_correlation(location),
    }


def test_every_metric_equals_what_is_logged_of_a_member() -> None:
    seen: set[str] = set()
    for prior in (UNIFORM, GAUSSIAN):  # mse_source is there with the first alone, mcc_cdf with the second
        session = session_of(prior)
        rows = torch.arange(3)
        logged = session.evaluate("val", session.state.frozen, rows, probes=True)
        seen |= {name.removeprefix("val/") for name in logged}
        for row in range(3):
            ours = by_hand(session, row, float(logged["val/neg_elbo"][row]))
            for name in (name.removeprefix("val/") for name in logged):
                if name not in OWN:
                    expected = float(logged[f"val/{name}"][row])
                    assert ours[name] == pytest.approx(expected, rel=1e-6, abs=1e-12), name
    of_files = {"cima_truth_estimate", "cima_truth_estimate_r2"}  # see test_regression.py
    assert seen == set(METRICS.names()) - of_files


S, Z = normal(200, 3).numpy(), normal(200, 3, seed=1).numpy()
J, F = normal(200, 4, 3).numpy(), normal(200, 4, 3, seed=1).numpy()
V = np.exp(Z)


def test_lists_frames_and_tensors_give_what_arrays_give() -> None:
    expected = metrics.mcc(S, Z)
    assert metrics.mcc(S.tolist(), Z.tolist()) == expected
    assert metrics.mcc(pd.DataFrame(S), pd.DataFrame(Z, columns=list("abc"))) == expected
    assert metrics.mcc(torch.from_numpy(S), torch.from_numpy(Z).requires_grad_()) == expected
    assert metrics.mcc(np.asfortranarray(S), Z[::-1][::-1]) == expected
    assert metrics.mcc(S.astype(np.float32), Z.astype(np.float32)) == pytest.approx(expected, abs=1e-6)
    assert metrics.cima(J.tolist()) == metrics.cima(torch.from_numpy(J)) == metrics.cima(J)


def test_arguments_are_not_written_into() -> None:
    before = [array.copy() for array in (S, Z, J, F, V)]
    metrics.mcc_spearman(S, Z)
    metrics.r2_nonlinear(S, Z)
    metrics.dci(S, Z)
    metrics.amari(J, F)
    metrics.self_consistency(V, J, 2.0)
    assert all(np.array_equal(a, b) for a, b in zip(before, (S, Z, J, F, V), strict=True))


def test_mcc_ignores_order_sign_and_scale_and_lets_models_have_more_latents() -> None:
    assert metrics.mcc(S, -7 * S[:, [2, 0, 1]]) == pytest.approx(1)
    assert metrics.mcc(S, np.hstack([Z, S])) == pytest.approx(1)
    assert metrics.mcc_spearman(S, np.exp(S)) == pytest.approx(1)
    assert metrics.mcc(S, np.full((200, 3), np.nan)) == 0


def test_the_values_of_a_discrete_source_are_names() -> None:
    classes = (np.arange(200) * 7) % 5
    s = np.column_stack([S[:, 0], classes])
    z = np.column_stack([S[:, 0], np.array([3.0, -1.0, 4.0, 1.5, -9.0])[classes]])
    assert metrics.mcc(s, z, [False, True]) == pytest.approx(1)
    assert metrics.mcc(s, z) < 0.95
    assert metrics.sap(s, z, [False, True]) > metrics.sap(s, z) + 0.1


def test_contrasts_of_known_jacobians() -> None:
    orthogonal = np.broadcast_to(np.diag([1.0, 2.0, 5.0]), (70, 3, 3))
    assert metrics.cima(orthogonal) == pytest.approx(0)
    assert metrics.conformal_contrast(orthogonal) > 0.1
    sheared = np.broadcast_to(np.array([[1.0, 1.0], [0.0, 1.0]]), (70, 2, 2)).copy()
    assert metrics.cima(sheared) == pytest.approx(np.log(2) / 2)
    sheared[:7] = 1.0
    assert metrics.rank_deficient(sheared) == pytest.approx(0.1)
    at = metrics.cima_pointwise(sheared)
    assert np.isnan(at).tolist() == [True] * 7 + [False] * 63
    assert metrics.amari(orthogonal, orthogonal[:, :, [1, 2, 0]] * 3) == pytest.approx(0)


def test_a_posterior_that_has_the_formulas_variance_is_self_consistent() -> None:
    square = (J**2).sum(1)
    assert metrics.self_consistency(1 / (1 + 9 * square), J, 3.0) == pytest.approx(1)
    assert metrics.self_consistency(2 / (0.25 + 9 * square), J, 3.0, 0.25) == pytest.approx(2)
    bent = np.array([0.5, 1.0, 2.0])
    assert metrics.self_consistency(1 / (bent + 9 * square), J, 3.0, bent) == pytest.approx(1)


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: metrics.mcc(S.T, Z.T), "s has the shape (n, d), with more rows than columns"),
    (lambda: metrics.mcc(S, Z[:, 0]), "z has the shape (n, d)"),
    (lambda: metrics.mcc(S, Z[:99]), "s and z have as many rows"),
    (lambda: metrics.mcc(np.where(S > 2, np.nan, S), Z), "s has finite numbers"),
    (lambda: metrics.mcc(S, Z, [True]), "discrete"),
    (lambda: metrics.mcc(S.astype(str), Z), "s is an array of numbers"),
    (lambda: metrics.mcc(S, torch.from_numpy(Z) * 1j), "z is an array of real numbers"),
    (lambda: metrics.mcc([], []), "s has the shape (n, d)"),
    (lambda: metrics.mcc_batch(S[:63], Z[:63]), "64"),
    (lambda: metrics.cima_batch(J[:63]), "64"),
    (lambda: metrics.agreement([Z]), "two models"),
    (lambda: metrics.agreement([Z, Z[:, :2]]), "one shape"),
    (lambda: metrics.active_units(Z, [1.0, 2.0]), "prior_variance"),
    (lambda: metrics.cima(J[0]), "jacobian has the shape (n, o, d)"),
    (lambda: metrics.cima(J.transpose(0, 2, 1)), "o >= d"),
    (lambda: metrics.amari(J, F[:7]), "jacobian and truth have one shape"),
    (lambda: metrics.self_consistency(V[:, :2], J, 1.0), "variance has the shape (n, d) = (200, 3)"),
    (lambda: metrics.self_consistency(Z, J, 1.0), "variance > 0"),
    (lambda: metrics.self_consistency(V, J, 0.0), "gamma > 0"),
    (lambda: metrics.self_consistency(V, J, 1.0, V[:5]), "curvature"),
    (lambda: metrics.likelihoods(V[:, 0], V[:5, 0], 1.0), "log_px and contrast have one shape"),
    (lambda: metrics.likelihoods(V, V, 1.0), "log_px has the shape (n,)"),
    (lambda: metrics.mse(S, Z[:5]), "a and b have one shape"),
]


@pytest.mark.parametrize(("call", "rule"), REFUSED)
def test_wrong_arrays_are_refused_with_the_rule(call: Callable[[], object], rule: str) -> None:
    with pytest.raises(UserError, match=re.escape(rule)):
        call()


def test_all_metrics_are_listed() -> None:
    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)
    assert set(metrics.__all__) <= set(dir(metrics))
    with pytest.raises(AttributeError, match="no attribute 'mccc'"):
        metrics.mccc  # noqa: B018
