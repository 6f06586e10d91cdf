"""The glossary: what is better, where a metric can't be had, and which of them a study can pursue."""

from __future__ import annotations

import pytest

from imavae.errors import UserError
from imavae.metrics.glossary import FINAL, GLOSSARY, PROBES, absent, check_metric
from imavae.metrics.identifiability import AGREEMENT_POINTS
from tests.helpers import UNIFORM, config


def test_the_glossary_says_what_is_better_and_objectives_are_checked_against_it() -> None:
    at = config({"source": UNIFORM}, {"prior": {"name": "beta"}})
    reasons = absent(at, True, "validation")
    for name, metric in GLOSSARY.items():
        assert metric.definition, name
        assert metric.equation, name
        assert metric.direction in ("max", "min", "one", "none")
        if metric.direction in ("max", "min") and name not in reasons:
            check_metric(at, f"val/{name}", metric.direction)
            with pytest.raises(UserError, match=r"objective\.mode"):
                check_metric(at, f"val/{name}", "max" if metric.direction == "min" else "min")
    assert set(reasons) == {*FINAL, *PROBES}
    for bad in ("val/mc", "test/mcc", "mcc", "val/kl", "val/self_consistency"):
        with pytest.raises(UserError, match=r"objective\.metric"):
            check_metric(at, bad, "max")


def test_the_bound_of_agreements_points_is_what_the_glossary_says() -> None:
    assert f"on {AGREEMENT_POINTS:,} points at the most" in GLOSSARY["agreement"].definition


@pytest.mark.parametrize(
    ("name", "mode", "reason"),
    [
        ("agreement", "max", "one seed has no other"),
        ("mcc_cdf", "max", "the prior is not"),
        ("mse_source", "min", "different supports"),
        ("amari", "min", "no validation does"),
        ("conformal_contrast", "min", "no validation does"),
        ("sap", "max", "training.probes=true"),
        ("r2_nonlinear", "max", "training.probes=true"),
    ],
)
def test_a_metric_that_no_validation_has_is_no_objective(name: str, mode: str, reason: str) -> None:
    at = config({"source": UNIFORM}, {"prior": {"name": "uniform", "low": -1.0, "high": 1.0}}, members={"seed": [1]})
    with pytest.raises(UserError, match=f"`val/{name}` must be there to be an objective.*{reason}.*choose another"):
        check_metric(at, f"val/{name}", mode)
