"""Samples of a stored model, and what a latent does to each column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import imavae
from imavae.config.settings import RunConfig
from imavae.model.export import ENDS, Model
from imavae.report.run_figures import column_traversals
from imavae.training.ensemble import ensemble, initial_state
from tests.helpers import config, plain_model
from tests.test_tables import FRAME, QUICK

UNIFORM = {"name": "uniform", "low": -1.0, "high": 3.0}
BETA = {"name": "beta", "alpha": 2.5, "beta": 1.5, "low": -1.0, "high": 2.0}
LAWS: dict[str, tuple[dict[str, Any], Any]] = {
    "uniform": (UNIFORM, stats.uniform(-1, 4)),
    "beta": (BETA, stats.beta(2.5, 1.5, -1, 3)),
    "gaussian": ({"name": "gaussian", "std": 0.5}, stats.norm(0, 0.5)),
    "laplace": ({"name": "laplace", "scale": 3.0}, stats.laplace(0, 3)),
}


def model_of(point: RunConfig) -> Model:
    return plain_model(point, initial_state(ensemble([point], "cpu")).weights[0])


@pytest.mark.parametrize("name", LAWS)
def test_samples_are_decoded_latents_of_the_prior_with_the_decoders_noise(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, law = LAWS[name]
    source = {"name": "uniform", "low": -0.5, "high": 0.5}
    model = model_of(config({"dim": 2, "source": source}, {"prior": prior, "gamma": 50.0}))
    seen: list[torch.Tensor] = []
    decode = model.decode

    def spy(z: torch.Tensor) -> torch.Tensor:
        seen.append(z)
        return decode(z)

    monkeypatch.setattr(model, "decode", spy)
    x = model.sample(4000, seed=3)
    [z] = seen
    for column in z.T.numpy():
        assert stats.kstest(column, law.cdf).pvalue > 1e-3
    noise = (x - decode(z)).detach().numpy() * model.gamma
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert torch.equal(x, model.sample(4000, seed=3))
    assert not torch.equal(x, model.sample(4000, seed=4))
    with pytest.raises(imavae.UserError, match="segment is given exactly where"):
        model.sample(3, segment=0)


def test_a_flow_has_samples_without_noise() -> None:
    model = model_of(config({"dim": 2}, {"name": "flow"}))
    assert model.gamma == np.inf
    back = model.encode(model.sample(200))
    assert bool(((back >= -0.5) & (back <= 0.5)).all())  # on the prior's support


def test_samples_of_a_conditional_prior_are_those_of_a_segment() -> None:
    prior = {"name": "gaussian", "parameters": "conditional"}
    data = {"dim": 2, "n_segments": 3, "source": {"name": "gaussian"}}
    model = model_of(config(data, {"prior": prior, "gamma": 1e6}))
    assert not torch.equal(model.sample(50, segment=0), model.sample(50, segment=2))
    for segment in (None, 3, -1):
        with pytest.raises(imavae.UserError, match="segment"):
            model.sample(50, segment=segment)


def test_a_traversal_moves_one_latent_between_its_quantiles() -> None:
    model = model_of(config({"dim": 3}, {"gamma": 50.0}))
    x = 0.1 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = model.encode(x).detach()
    values, observations = model.traverse(x, steps=5)
    assert observations.shape == (3, 5, 3)
    for k in range(3):
        low, high = np.quantile(z[:, k].numpy(), ENDS)
        expected = np.linspace(float(low), float(high), 5)
        np.testing.assert_allclose(values[k], expected, rtol=1e-9)
        for step in range(5):
            at = z.median(0).values.clone()
            at[k] = expected[step]
            torch.testing.assert_close(observations[k, step], model.decode(at[None])[0].detach())


def test_a_table_has_a_figure_of_how_its_columns_move(tmp_path: Path) -> None:
    run = imavae.train(FRAME, output_dir=str(tmp_path), **QUICK)
    assert (run.folder / "figures/traversals.png").stat().st_size > 5000
    model, x = run.champion, torch.from_numpy(FRAME.to_numpy().copy())
    traversal = model.traverse(x)
    figure = column_traversals(traversal, x, list("abc"))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 3
    lines = panels[1].get_lines()
    assert [line.get_label() for line in lines] == ["a", "b", "c"]
    moved = (traversal.observations[1, :, 2] - x[:, 2].mean()) / x[:, 2].std()
    np.testing.assert_allclose(np.array(lines[2].get_ydata(), dtype=float), moved.detach().numpy(), rtol=1e-6)
