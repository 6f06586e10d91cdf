"""Sprites from the command line to the champion: rendered once, trained, drawn, tracked, read back, encoded."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from imavae.cli.compose import Command
from imavae.cli.main import ENCODE, EVALUATE, TRAIN, TUNE, launch
from imavae.config.data import SpritesData
from imavae.data import sprites as drawing
from imavae.metrics.figure_data import image_panels
from imavae.runs.models import load_model
from imavae.runs.session import Session
from tests.helpers import sprites

SMALL = ["data=sprites", "model=conv", "data.side=16", "data.n_obs=640", "members.seed=[1,2]"]
QUICK = [*SMALL, "model.n_layers=2", "model.hidden_factor=4", "training.max_epochs=2", "training.validate_every=1"]
COMMANDS: dict[str, Command[Any]] = {
    "train": TRAIN,
    "tune": TUNE,
    "evaluate": EVALUATE,
    "encode": ENCODE,
}

Call = Callable[..., str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a script in an empty folder, in this process; returns what it prints, of both streams."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def called(name: str, *arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        got = launch(COMMANDS[name])
        out, err = capsys.readouterr()
        assert got == code, err
        return out + err

    return called


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of images at each rendering."""
    counts: list[int] = []
    honest = drawing.render

    def counted(scenes: drawing.Scenes, settings: SpritesData) -> NDArray[np.uint8]:
        counts.append(len(scenes.half))
        return honest(scenes, settings)

    monkeypatch.setattr(drawing, "render", counted)
    return counts


def images_of(folder: Path) -> NDArray[np.float64]:
    """Rows of pixels in [0, 1], of the only file in a cache."""
    [path] = (folder / "cache").iterdir()
    pixels: NDArray[np.float64] = np.load(path) / 255
    return pixels


def test_sprites_are_trained_tracked_evaluated_and_read_back(call: Call, rendered: list[int], tmp_path: Path) -> None:
    output = call("train", *QUICK, "training.probes=true")
    assert sum(rendered) == 640
    assert "rendered 640/640 images" in output
    folder = tmp_path / "outputs" / "runs" / "train"
    members = pd.read_csv(folder / "members.csv")
    for name in ("mcc", "cima", "dci_disentanglement", "sap", "mig", "mse_source", "conformal_contrast"):
        assert members[f"test/{name} at max val/mcc"].notna().all(), name
    assert not [column for column in map(str, members) if "log_px at" in column or "amari" in column]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "train"]
    [parent] = [
        run for run in client.search_runs([experiment.experiment_id]) if "mlflow.parentRunId" not in run.data.tags
    ]
    logged = {Path(item.path).name for item in client.list_artifacts(parent.info.run_id, "figures")}
    for name in ("reconstructions", "traversals", "latents"):
        assert {f"{name}.png", f"{name}.pdf"} <= logged
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
    model = load_model(folder)
    x = torch.from_numpy(images_of(tmp_path / "outputs")[:5]).float()
    with torch.no_grad():
        z = model.encode(x)
        assert z.shape == (5, 4)
        assert model.decode(z).shape == (5, 3 * 16 * 16)
        assert (z.abs() < 0.5).all()  # on the sources' support
    told = call("evaluate", f"checkpoint={folder}", "tracking=none")
    assert sum(rendered) == 640  # the cache had them
    assert "no likelihood" in " ".join(told.split())
    np.save("x.npy", x.numpy())
    call("encode", f"checkpoint={folder}", "data.path=x.npy", "out=z.csv")
    table = pd.read_csv("z.csv")
    np.testing.assert_allclose(table[["z0", "z1", "z2", "z3"]], z, atol=1e-5)
    np.save("bytes.npy", (x.numpy() * 255).astype(np.uint8))
    said = call("encode", f"checkpoint={folder}", "data.path=bytes.npy", "out=b.csv", code=2)
    assert "images are numbers in [0, 1]" in said
    assert "divide bytes by 255" in said
    assert not Path("b.csv").exists()


def test_a_damaged_cache_is_made_again_and_the_run_repeats(call: Call, rendered: list[int], tmp_path: Path) -> None:
    first = [*QUICK, "tracking=none", "training.max_epochs=1", "name=first"]
    call("train", *first)
    [path] = (tmp_path / "outputs" / "cache").iterdir()
    whole = path.read_bytes()
    call("train", *first[:-1], "name=second")
    assert sum(rendered) == 640
    path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 255]) + whole[1001:])
    from imavae.data import dataset

    dataset._make.cache_clear()  # as in another process
    call("train", *first[:-1], "name=third")
    assert sum(rendered) == 1280
    assert path.read_bytes() == whole
    folder = tmp_path / "outputs" / "runs"
    tables = [(folder / name / "members.csv").read_bytes() for name in ("first", "second", "third")]
    assert tables[0] == tables[1] == tables[2]


def test_a_study_renders_before_its_trials_share_the_file(call: Call, rendered: list[int], tmp_path: Path) -> None:
    few = ["training.max_epochs=1", "budget.trials=2", "cluster.cpus=1", "tracking=none"]
    output = call("tune", "search=gamma_uniform", *QUICK, "model/prior=beta", *few)
    assert sum(rendered) == 640
    assert "rendered 640/640 images" in output
    assert len(list((tmp_path / "outputs" / "cache").iterdir())) == 1
    assert len(list(tmp_path.rglob("sprites-*.npy"))) == 1  # no worker has one of its own
    [study] = (tmp_path / "outputs" / "studies").iterdir()
    assert {"reconstructions.png", "traversals.png"} <= {path.name for path in (study / "figures").iterdir()}
    assert f"report    {study / 'report.html'}" in output
    report = (study / "report.html").read_text(encoding="utf-8")
    assert "Which gamma and which architecture recover uniform sources that an MLP has mixed?" in report
    assert 'alt="reconstructions"' in report


def test_the_mlp_takes_images_too(call: Call, tmp_path: Path) -> None:
    call("train", *QUICK, "model=mlp", "model.gamma=1", "model/prior=beta", "tracking=none")
    assert load_model(tmp_path / "outputs" / "runs" / "train").encode(torch.zeros(1, 768)).shape == (1, 4)


BAD = {
    "conv of vectors": (["model=conv"], ["3 x side x side", "got 3 numbers", "data=sprites"]),
    "conv of an odd side": ([*SMALL, "data.side=24"], ["a side that 16 divides", "1728 numbers", "model=mlp"]),
    "true decoder": ([*SMALL, "model.decoder=mixing"], ["needs a known mixing", "sprites", "learned"]),
    "a factor too many": ([*SMALL, "data.dim=5"], ["data.dim is the number of data.factors", "5 for 4"]),
    "unbounded sources": (
        [*SMALL, "data/source=gaussian", "model/prior=gaussian"],
        ["lives on an interval", "data/source=beta"],
    ),
    "one shape": ([*SMALL, "data.factors=[x,y,size,shape]"], ["shapes are as many as the factors need"]),
    "a factor that is none": ([*SMALL, "data.factors=[x,y,size,colour]"], ["data.factors", "'colour'"]),
    "jitter": ([*SMALL, "data.jitter=[0,-1,0]"], ["data.jitter >= 0", "standard deviations"]),
    "network": ([*SMALL, "model.name=cnn"], ["model.name", "conv, mlp", "'cnn'"]),
    "option": (["model=cnn"], ["an option of model", "choose one of conv, mlp"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_told_before_anything_is_rendered(
    name: str, call: Call, rendered: list[int], tmp_path: Path
) -> None:
    arguments, parts = BAD[name]
    said = call("train", *arguments, code=2)
    assert [part for part in parts if part not in said] == []
    assert rendered == []
    assert list(tmp_path.iterdir()) == []


def test_a_gallery_shows_what_the_model_makes(tmp_path: Path) -> None:
    from tests.helpers import plain_model, trained

    config = sprites(tmp_path, members={"seed": [1, 2], "data": {"seed": [3, 8]}}, training={"dtype": "float64"})
    session = trained([config])
    shown = image_panels(session.ensemble, session.best_weights, torch.arange(4), session.data.val, 2)
    assert shown.worlds == [0, 0, 1, 1]
    weights = session.state.best["val/mcc"].weights
    for member in range(4):
        model = plain_model(dataclasses.replace(config), weights[member])
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
    assert isinstance(session, Session)
