"""Sprites by the library, to the champion: rendered once, trained, drawn, tracked, read back, encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

import imavae
from imavae.config.data import SpritesData
from imavae.config.mapping import to_mapping
from imavae.config.settings import EncodeConfig, EncodeData, EvaluateConfig
from imavae.data import dataset
from imavae.data import sprites as drawing
from imavae.errors import UserError
from imavae.metrics.evaluate import image_panels
from imavae.runs.models import encode_file, evaluate_checkpoint
from imavae.runs.session import cache_of
from tests.helpers import plain_model, sprites, trained

UNTRACKED = {"name": "none"}


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of images at each rendering into bytes; those in float64 are for derivatives."""
    counts: list[int] = []
    honest = drawing.render

    def counted(scenes: drawing.Scenes, settings: SpritesData) -> NDArray[Any]:
        if scenes.half.dtype == np.float32:
            counts.append(len(scenes.half))
        return honest(scenes, settings)

    monkeypatch.setattr(drawing, "render", counted)
    return counts


def test_sprites_are_trained_tracked_evaluated_and_read_back(rendered: list[int], tmp_path: Path) -> None:
    training = {"probes": True, "max_epochs": 2}
    run = imavae.train(sprites(tmp_path, training=training, tracking={"name": "mlflow"}))
    assert sum(rendered) == 640
    members = run.members
    for name in ("mcc", "cima", "dci_disentanglement", "sap", "mig", "mse_source", "conformal_contrast"):
        assert members[f"test/{name} at max val/mcc"].notna().all(), name
    assert not [column for column in map(str, members) if "log_px at" in column or "amari" in column]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "train"]
    [parent] = [
        run for run in client.search_runs([experiment.experiment_id]) if "mlflow.parentRunId" not in run.data.tags
    ]
    logged = {Path(item.path).name for item in client.list_artifacts(parent.info.run_id, "figures")}
    for name in ("reconstructions", "traversals", "latents"):
        assert f"{name}.png" in logged
        assert (run.folder / "figures" / f"{name}.png").stat().st_size > 5000

    model = run.champion
    [pixels] = (tmp_path / "cache").glob("sprites-*.npy")
    x = torch.from_numpy(np.load(pixels)[:5] / 255).float()
    with torch.no_grad():
        z = model.encode(x)
        assert z.shape == (5, 4)
        assert model.decode(z).shape == (5, 3 * 16 * 16)
        assert (z.abs() < 0.5).all()  # on the sources' support
    _, absent = evaluate_checkpoint(EvaluateConfig(checkpoint=str(run.folder), output_dir=str(tmp_path)))
    assert {"log_px", "amari"} <= set(absent)
    np.save(tmp_path / "x.npy", x.numpy())
    data, out = EncodeData(path=str(tmp_path / "x.npy")), tmp_path / "z.csv"
    encode_file(EncodeConfig(checkpoint=str(run.folder), data=data, out=str(out)), print)
    np.testing.assert_allclose(pd.read_csv(out)[["z0", "z1", "z2", "z3"]], z, atol=1e-5)
    assert sum(rendered) == 640  # the cache had them


def test_a_truncated_cache_is_rendered_again(rendered: list[int], tmp_path: Path) -> None:
    config = sprites(tmp_path)

    def world() -> bytes:
        dataset._make.cache_clear()  # as in another process
        data = dataset.make(config.data, (1,), torch.float32, "cpu", cache_of(config.output_dir))
        return bytes(data.val.block(torch.tensor([0]), slice(None)).numpy())

    first = world()
    [path] = (tmp_path / "cache").glob("sprites-*.npy")
    whole = path.read_bytes()
    assert world() == first
    assert sum(rendered) == 640
    path.write_bytes(whole[:-1])
    assert world() == first
    assert sum(rendered) == 1280
    assert path.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_study_renders_before_its_trials_share_the_file(rendered: list[int], tmp_path: Path) -> None:
    gamma = {"type": "choice", "values": [1.0, 3.0]}
    study = imavae.tune(
        sprites(tmp_path), search={"model": {"gamma": gamma}}, sampler={"name": "grid"}, tracking=UNTRACKED
    )
    assert len(study.trials) == 2
    assert sum(rendered) == 640
    assert len(list(tmp_path.rglob("sprites-*.npy"))) == 1  # no worker has one of its own
    assert {"reconstructions.png", "traversals.png"} <= {path.name for path in (study.folder / "figures").iterdir()}
    assert 'alt="reconstructions"' in (study.folder / "report.html").read_text(encoding="utf-8")


def test_the_mlp_takes_images_too(tmp_path: Path) -> None:
    run = imavae.train(sprites(tmp_path, {"name": "mlp"}, tracking=UNTRACKED))
    assert run.champion.encode(torch.zeros(1, 768)).shape == (1, 4)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"data": {"kind": "synthetic"}}, "model"),
        ({"data": {"side": 15}}, "data.side"),
        ({"model": {"decoder": "mixing"}}, "model.decoder"),
        ({"data": {"dim": 5}}, "data.dim"),
        ({"data": {"source": {"name": "gaussian"}}, "model": {"prior": {"name": "gaussian"}}}, "data.source"),
        ({"data": {"factors": ["x", "y", "size", "shape"]}}, "shapes"),
        ({"data": {"factors": ["x", "y", "size", "colour"]}}, "data.factors"),
        ({"data": {"jitter": [0.0, -1.0, 0.0]}}, "data.jitter"),
        ({"model": {"name": "cnn"}}, "model.name"),
    ],
    ids=[
        "vectors",
        "small side",
        "true decoder",
        "dim",
        "unbounded sources",
        "one shape",
        "factor",
        "jitter",
        "network",
    ],
)
def test_a_mistake_is_refused_before_anything_is_rendered(
    settings: dict[str, Any], key: str, rendered: list[int], tmp_path: Path
) -> None:
    base = to_mapping(sprites(tmp_path, tracking=UNTRACKED))
    if settings.get("data", {}).get("kind"):
        del base["data"]
    if settings.get("data", {}).get("source"):
        del base["data"]["source"], base["model"]["prior"]
    with pytest.raises(UserError, match=key):
        imavae.train(base, **settings)
    assert rendered == []
    assert list(tmp_path.iterdir()) == []


def test_a_gallery_shows_what_the_model_makes(tmp_path: Path) -> None:
    config = sprites(tmp_path, members={"seed": [1, 2], "data": {"seed": [3, 8]}}, training={"dtype": "float64"})
    session = trained([config])
    shown = image_panels(session.ensemble, session.best_weights, torch.arange(4), session.data.val, 2)
    assert shown.worlds == [0, 0, 1, 1]
    weights = session.state.best["val/mcc"].weights
    for member in range(4):
        model = plain_model(config, weights[member])
        torch.testing.assert_close(shown.reconstructions[member], model(shown.observations[member]).clamp(0, 1))
    assert torch.equal(shown.observations[0], shown.observations[1])
    model = plain_model(config, weights[2])
    x = session.data.val.block(torch.tensor([1]), slice(None))[0].T
    location = model.encode(x)
    low, high = location.quantile(0.01, 0), location.quantile(0.99, 0)
    torch.testing.assert_close(shown.values[:, 0], low)
    torch.testing.assert_close(shown.values[:, -1], high)
    z = location.median(0).values.clone()
    z[1] = high[1]
    torch.testing.assert_close(shown.traversals[1, -1], model.decode(z[None])[0].clamp(0, 1))
    assert sorted(filter(None, shown.factors)) == ["hue", "size", "x", "y"]
