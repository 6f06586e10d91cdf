"""Runs whose latents, sources and observed numbers differ in number, from the command's settings to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import imavae
from imavae.config.settings import run_config
from imavae.errors import UserError
from imavae.metrics.evaluate import posterior_shapes
from imavae.report.drawing import write
from imavae.report.run_figures import champion_figures
from tests.helpers import file_data, normal, trained

TINY: dict[str, Any] = {
    "training": {"max_epochs": 2, "validate_every": 1},
    "members": {"seed": [1, 2]},
    "tracking": {"name": "none"},
}
SURFACE = {"n_obs": 700, "observed": 6, "mixing": {"name": "mlp"}}


@pytest.mark.parametrize(
    ("data", "model", "lacking"),
    [
        (SURFACE, {}, {"log_px", "l_ima", "gap_log_px", "gap_ima"}),
        (SURFACE, {"dim": 5}, {"log_px", "gap_log_px", "amari", "mse_source"}),
        (SURFACE, {"decoder": "mixing"}, {"log_px"}),
        ({"n_obs": 700}, {"dim": 5}, {"cima", "conformal_contrast", "amari"}),
        ({"n_obs": 700}, {"dim": 2}, {"amari", "mse_source"}),
    ],
)
def test_a_run_has_all_but_what_can_not_be(
    data: dict[str, Any], model: dict[str, Any], lacking: set[str], tmp_path: Path
) -> None:
    done = imavae.train(data=data, model=model, output_dir=str(tmp_path), **TINY)
    found = {str(column).split("/")[1].split(" at ")[0] for column in done.members if str(column).startswith("val/")}
    assert found & lacking == set()
    assert {"mcc", "mcc_linear_ica", "neg_elbo", "self_consistency", "column_norm"} <= found
    assert ("cima" in found) == (done.config.latents <= done.config.data.features)
    count = done.config.latents
    assert len(done.latents) == count
    assert done.latents["source"].notna().sum() == min(count, 3)
    chosen = imavae.load_model(done.folder)
    world = imavae.world(chosen)
    assert (world.observations.shape[1], world.sources.shape[1]) == (done.config.data.features, 3)
    assert len(world.log_px) == (0 if "observed" in data else len(world.sources))
    assert imavae.encode(chosen, world.observations).z.shape == (len(world.sources), count)
    page = (Path(done.folder) / "report.html").read_text(encoding="utf-8")
    assert ("Without a latent: " in page) == (count < 3)
    assert (Path(done.folder) / "figures/latents.png").is_file()
    assert (Path(done.folder) / "figures/solution_plane.png").is_file() == ("observed" not in data and count == 3)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_figures_of_a_champion(count: int, tmp_path: Path) -> None:
    point = run_config({**TINY, "data": {"n_obs": 700}, "model": {"dim": count}, "members": {"seed": [1]}})
    session = trained([point])
    shapes = posterior_shapes(session.ensemble, session.best_weights, torch.arange(1), session.data.val)
    factors = [factor.name for factor in point.data.source_factors]
    assert all(file.is_file() for file in write(champion_figures(shapes, factors), tmp_path))


def test_a_file_has_as_many_latents_as_sources_unless_told_otherwise(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", normal(700, 5).numpy())
    np.save(tmp_path / "s.npy", normal(700, 3, seed=1).numpy())
    path, sources = tmp_path / "x.npy", str(tmp_path / "s.npy")
    for settings, model, expected in (
        ({}, {}, (5, 5)),
        ({"dim": 2}, {}, (2, 2)),
        ({}, {"dim": 2}, (5, 2)),
        ({"sources_path": sources}, {}, (3, 3)),
        ({"sources_path": sources}, {"dim": 4}, (3, 4)),
        ({"sources_path": sources, "dim": 3}, {"dim": 2}, (3, 2)),
    ):
        config = run_config({"data": file_data(path, **settings), "model": model})
        assert (config.data.dim, config.latents) == expected
    with pytest.raises(UserError, match=r"data\.sources_path has data\.dim columns.*model\.dim"):
        run_config({"data": file_data(path, sources_path=sources, dim=2)})


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        ({"dim": 2, "decoder": "mixing"}, r"model\.decoder=mixing has data\.dim latents"),
        ({"dim": 2, "name": "flow"}, "as many latents as observed"),
        ({"dim": 4, "ima_weight": 1.0}, r"model\.ima_weight is 0 for more latents"),
    ],
)
def test_what_needs_other_numbers_of_latents_is_refused(model: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        run_config({"model": model})
