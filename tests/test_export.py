"""A member as a plain module: it computes what the ensemble's member does, and survives a file; bad files are told."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from imavae.config.settings import RunConfig
from imavae.errors import UserError
from imavae.model import vae
from imavae.runs.models import load_model
from imavae.runs.session import Session
from imavae.training import checkpoint
from imavae.training.checkpoint import load_member, save_member
from tests.helpers import GAUSSIAN, UNIFORM, config, normal, plain_model, point, random_members

POINTS = [
    point(3, UNIFORM),
    point(2, {"name": "uniform", "low": 1.0, "high": 4.0}, n_layers=4, slope=0.0),
    point(5, GAUSSIAN, n_layers=1),
    config({}, {}, training={"dtype": "float32"}),
]
each_point = pytest.mark.parametrize("at", POINTS, ids=lambda p: f"{p.data.dim}-{p.model.prior}-{p.training.dtype}")
ABOUT = {"seed": 3, "score": 0.5, "chosen by": "val/mcc"}


def rows(at: RunConfig, n: int = 20) -> Tensor:
    return normal(n, at.data.dim).to(vae.torch_dtype(at))


def saved(at: RunConfig, path: Path) -> Path:
    weights = vae.build(at).layout.views(random_members(at, [3]))
    save_member(path, at, {name: weight[0] for name, weight in weights.items()}, ABOUT)
    return path


@each_point
def test_the_module_computes_what_the_ensembles_member_does(at: RunConfig) -> None:
    model, flat, x = vae.build(at), random_members(at, [0, 1, 2]), rows(at)
    weights, stacked = model.layout.views(flat), x.T.expand(3, -1, -1)
    posterior = model.posterior(weights, stacked)
    location = model.prior.latent(posterior.mean)
    reconstruction = model.decoder(weights, location)
    for m in range(3):
        plain = plain_model(at, flat[m])
        assert next(plain.parameters()).dtype == vae.torch_dtype(at)
        mean, std = plain.posterior(x)
        torch.testing.assert_close(mean, posterior.mean[m].T)
        torch.testing.assert_close(std, posterior.variance()[m].sqrt().T)
        torch.testing.assert_close(plain.encode(x), location[m].T)
        torch.testing.assert_close(plain.decode(location[m].T), reconstruction[m].T)
        torch.testing.assert_close(plain(x), reconstruction[m].T)


@each_point
def test_a_saved_member_is_loaded_as_it_was(at: RunConfig, tmp_path: Path) -> None:
    path, x = saved(at, tmp_path / "model.pt"), rows(at)
    model, expected = load_member(path), plain_model(at, random_members(at, [3])[0])
    assert model.config == at
    assert model.about == ABOUT
    assert model.gamma == pytest.approx(at.model.gamma, rel=1e-6)
    assert not model.training
    assert torch.equal(model.encode(x), expected.encode(x))
    assert torch.equal(model.decode(x), expected.decode(x))
    assert os.listdir(tmp_path) == ["model.pt"]  # nothing is left beside it
    assert torch.equal(load_model(path).encode(x), expected.encode(x))


@each_point
def test_mlflows_loader_predicts_latents_of_arrays_and_frames(at: RunConfig, tmp_path: Path) -> None:
    predictor, x = checkpoint._load_pyfunc(str(saved(at, tmp_path / "model.pt"))), rows(at)
    expected = plain_model(at, random_members(at, [3])[0]).encode(x).numpy()
    for data in (x.numpy(), pd.DataFrame(x.numpy()), x.double().numpy(), x.tolist()):
        predicted = predictor.predict(data)
        assert isinstance(predicted, np.ndarray)
        np.testing.assert_allclose(predicted, expected, rtol=1e-6)


class Bomb:
    """Runs code when an unwary reader unpickles it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.target),)


def test_loading_runs_no_code(tmp_path: Path) -> None:
    path, target = tmp_path / "bomb.pt", tmp_path / "exploded"
    checkpoint.save(path, "model", {"config": {}, "state_dict": {}, "about": Bomb(target)})
    with pytest.raises(UserError, match="only tensors and plain values"):
        load_member(path)
    assert not target.exists()
    torch.load(io.BytesIO(path.read_bytes().partition(b"\n")[2]), weights_only=False)
    assert target.exists()  # the fuse was live


def _changed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        saved(POINTS[0], path)
        path.write_bytes(change(path.read_bytes()))

    return damage


def _truncated(share: float) -> Callable[[Path], None]:
    return _changed(lambda content: content[: int(share * len(content))])


def _ensemble(path: Path) -> None:
    Session.start([POINTS[3]], torch.device("cpu")).save(path)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.with_name("other").touch(), "is a file"),
    "folder": (lambda path: path.mkdir(), "is a file"),
    "empty": (_truncated(0), "truncated or damaged"),
    "half a header": (lambda path: path.write_bytes(b"imavae checkpoint 2 d0"), "truncated or damaged"),
    "a tenth": (_truncated(0.1), "truncated or damaged"),
    "a half": (_truncated(0.5), "truncated or damaged"),
    "nearly all": (_truncated(0.99), "truncated or damaged"),
    "a changed byte": (_changed(lambda content: content[:-999] + b"?" + content[-998:]), "checksum"),
    "other version": (
        _changed(lambda content: content.replace(b"checkpoint 2 ", b"checkpoint 99 ", 1)),
        "format = 2.* got 99",
    ),
    "text": (lambda path: path.write_text("no checkpoint at all\n"), "was written by imavae"),
    "torch's own": (lambda path: torch.save(torch.zeros(3), path), "was written by imavae"),
    "ensemble": (_ensemble, "holds one model.* got an ensemble"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_told_by_its_path_and_what_is_wrong(name: str, tmp_path: Path) -> None:
    write, message = BAD[name]
    path = tmp_path / "model.pt"
    write(path)
    with pytest.raises(UserError, match=message) as error:
        load_member(path)
    assert str(path) in str(error.value)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = saved(POINTS[0], tmp_path / "model.pt")
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"pickle|local object"):
        checkpoint.save(path, "model", {"about": lambda: None})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pt"]
