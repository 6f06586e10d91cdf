"""The estimate of cima_truth for a file with sources, against the exact value of the world that wrote the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imavae.config.settings import EvaluateConfig, RunConfig, run_config
from imavae.data import dataset
from imavae.metrics import ima, regression
from imavae.metrics.glossary import absent
from imavae.runs.ledger import run_point
from imavae.runs.models import evaluate_checkpoint
from tests.helpers import file_data, normal


def file_of(folder: Path, x: Any, sources: Any, **other: Any) -> RunConfig:
    np.save(folder / "x.npy", x)
    np.save(folder / "s.npy", sources)
    data = file_data(folder / "x.npy", sources_path=str(folder / "s.npy"), **other)
    training = {"max_epochs": 1, "validate_every": 1}
    rest = {"members": {"seed": [1]}, "tracking": {"name": "none"}, "output_dir": str(folder)}
    return run_config({"data": data, "training": training, **rest})


@pytest.mark.parametrize(
    ("mixing", "observed"),
    [
        ({"name": "moebius"}, None),
        ({"name": "moebius", "linear": "unit_columns"}, 5),
        ({"name": "mlp", "n_layers": 3, "gain": 5.0}, None),
    ],
)
def test_the_estimate_is_near_the_exact_contrast(mixing: dict[str, Any], observed: int | None, tmp_path: Path) -> None:
    """As measured on eight worlds: within 0.01 nats, or 9 % of the contrast."""
    synthetic: Any = run_config({"data": {"n_obs": 4000, "mixing": mixing, "observed": observed}}).data
    world = dataset.world(synthetic)
    exact = float(ima.pointwise_contrast(world.mixing.jacobian(world.sources).permute(1, 2, 0)).mean())
    config = file_of(tmp_path, world.observations.numpy(), world.sources.numpy(), standardise=False)
    made = dataset.make(config.data, (1,), torch.float32)
    [fit] = regression.fits(made.train, made.val, tmp_path)
    found = regression.contrast(fit, made.test, 0)
    assert found.cima == pytest.approx(exact, rel=0.07, abs=0.01)
    assert found.r2 > 0.99


def test_a_fit_is_made_once_and_a_bad_one_gives_no_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = file_of(tmp_path, normal(700, 4).numpy(), normal(700, 2, seed=1).numpy())
    assert absent(config, False, probes=True).keys() >= {"cima_truth", "amari"}
    assert "cima_truth_estimate" not in absent(config, False, probes=True)
    assert "cima_truth_estimate" in absent(config, False)
    ledger, session = run_point(config, lambda *_: None)
    first = session.mixing_fits
    monkeypatch.setattr(regression, "_fit", lambda *_: pytest.fail("it is fitted again"))
    assert torch.equal(regression.fits(session.data.train, session.data.val, session.cache.folder), first)
    settings = EvaluateConfig(checkpoint=str(ledger.folder), output_dir=str(tmp_path))
    values, missing = evaluate_checkpoint(settings)
    assert values["test/cima_truth_estimate_r2"].max() < regression.SUFFICIENT
    assert "test/cima_truth_estimate" not in values
    assert "R²" in missing["cima_truth_estimate"]
