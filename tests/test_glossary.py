"""The glossary: directions, absent metrics with their reasons, objectives, and metrics of a user's own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from imavae.cli.reference import metrics_page
from imavae.config.settings import RunConfig, run_config
from imavae.errors import UserError
from imavae.metrics import identifiability
from imavae.metrics.forward import Evaluation
from imavae.metrics.glossary import CURVE_POINTS, METRICS, SOURCES, Metric, absent, check_metric
from tests.helpers import UNIFORM, config, trained

SETTINGS = [
    run_config({}),
    run_config({"members": {"seed": [1]}, "model": {"prior": {"name": "gaussian"}}}),
    config({"source": {"name": "gaussian"}}, {"prior": {"name": "gaussian"}}),
    config({"source": UNIFORM}, {"prior": {"name": "beta"}}),
]


def test_every_metric_is_defined_and_objectives_are_checked_against_its_direction() -> None:
    at = SETTINGS[3]
    reasons = absent(at, True)
    assert set(reasons) == {metric.name for metric in METRICS if metric.probe}
    for entry in METRICS:
        assert entry.definition, entry.name
        assert entry.equation, entry.name
        if entry.direction in ("max", "min") and entry.name not in reasons:
            check_metric(at, f"val/{entry.name}", entry.direction)
            with pytest.raises(UserError, match=r"objective\.mode"):
                check_metric(at, f"val/{entry.name}", "max" if entry.direction == "min" else "min")
    for bad in ("val/mc", "test/mcc", "mcc", "val/kl", "val/self_consistency"):
        with pytest.raises(UserError, match=r"objective\.metric"):
            check_metric(at, bad, "max")


@pytest.mark.parametrize("name", ["agreement", "mcc_cdf", "mse_source", "sap"])
def test_a_metric_that_a_setting_lacks_is_no_objective(name: str) -> None:
    at = config({"source": UNIFORM}, {"prior": {"name": "uniform", "low": -1.0, "high": 1.0}}, members={"seed": [1]})
    reason = absent(at, True)[name]
    with pytest.raises(UserError, match=re.escape(f"objective.metric=val/{name}") + f".*{re.escape(reason)}"):
        check_metric(at, f"val/{name}", METRICS[name].direction)


@pytest.mark.parametrize("at", SETTINGS, ids=str)
def test_the_page_has_every_metric_and_every_reason(at: RunConfig) -> None:
    page = metrics_page()
    reasons = dict(re.findall(r"^(\d+)\. (.+)$", page, re.MULTILINE))
    numbers = dict(re.findall(r"^\| `(\w+)` .*\| ([\d, ]*) \|$", page, re.MULTILINE))
    assert list(numbers) == METRICS.names()
    for probes in (True, False):
        for truth in (True, False):
            for name, reason in absent(at, truth, probes).items():
                assert reason in [reasons[number] for number in numbers[name].split(", ")], name


def test_bounds_of_points_are_what_the_definitions_say() -> None:
    assert f"{identifiability.AGREEMENT_POINTS:,} points" in METRICS["agreement"].definition
    assert f"{identifiability.PROBE_POINTS:,} points" in METRICS["r2_nonlinear"].definition
    assert f"{CURVE_POINTS:,}" in metrics_page()


@pytest.fixture
def own_metric() -> Iterator[str]:
    @Metric("max", "max_k |corr(s_1, z_k)|", curve="first", needs=[SOURCES], floor=0.0)
    def first_source(at: Evaluation) -> torch.Tensor:
        """Greatest correlation of the first source."""
        return at.correlation(at.standardised_locations)[:, 0].abs().amax(1)

    yield "first_source"
    del METRICS._entries["first_source"]


def test_a_metric_of_ones_own_is_logged_after_the_built_in_ones_and_can_be_an_objective(own_metric: str) -> None:
    at = config({"n_obs": 1000}, {}, members={"seed": [1, 2]}, training={"max_epochs": 1, "validate_every": 1})
    check_metric(at, f"val/{own_metric}", "max")
    values = trained([at]).state.history[-1].values
    assert [name for name in values if name.startswith("val/")][-1] == f"val/{own_metric}"
    assert ((values[f"val/{own_metric}"] >= 0) & (values[f"val/{own_metric}"] <= 1)).all()
    with pytest.raises(UserError, match=own_metric):
        Metric("max", "0")(METRICS[own_metric].compute)


def test_checking_an_objective_imports_no_torch() -> None:
    code = (
        "import sys; from imavae.config.settings import run_config; from imavae.metrics.glossary import check_metric\n"
        "check_metric(run_config({}), 'val/mcc', 'max'); print({'torch', 'scipy', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
