"""What several tests share: configurations, the published world, random members, and Jacobians by autograd."""

from __future__ import annotations

import io
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch import Tensor

from imavae.config.data import AnyData, SyntheticData
from imavae.config.settings import RunConfig, run_config
from imavae.data.dataset import Dataset, Split, build_source
from imavae.data.mixings.moebius import MoebiusMixing
from imavae.model import vae
from imavae.model.export import Model
from imavae.rng import stream
from imavae.runs.session import Session

PUBLISHED = MoebiusMixing(  # the Möbius sweep of the paper; recovered from its sweep table, DESIGN §10
    matrix=(
        (0.89529806, 0.07969353, 0.4382811),
        (-0.33718466, 0.76419597, 0.54982818),
        (-0.29111491, -0.64004176, 0.71105461),
    ),
    centre=(1.74481176, -0.7612069, 1.46210794),
)
UNIFORM: dict[str, Any] = {"name": "uniform", "low": -0.5, "high": 0.5}
GAUSSIAN: dict[str, Any] = {"name": "gaussian", "mean": 0.3, "std": 0.7}
LAPLACE: dict[str, Any] = {"name": "laplace", "mean": -0.4, "scale": 0.6}
BETA: dict[str, Any] = {"name": "beta", "alpha": 2.5, "beta": 1.5, "low": -1.0, "high": 2.0}


def observations(path: Path, n: int = 1000, columns: int = 4) -> Path:
    """A file of correlated columns a, b, c, ...: those of a .parquet or .csv have these names."""
    mixed = np.tanh(normal(n, columns).numpy() @ normal(columns, columns, seed=1).numpy()) * 5 + 100
    frame = pd.DataFrame(mixed, columns=list("abcdefgh")[:columns])
    match path.suffix:
        case ".npy":
            np.save(path, mixed)
        case ".csv":
            frame.to_csv(path, index=False)
        case _:
            frame.to_parquet(path)
    return path


def file_data(path: Path, **other: Any) -> dict[str, Any]:
    """The settings of ``data=file`` with that path."""
    return {"kind": "file", "path": str(path), **other}


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def config(data: dict[str, Any], model: dict[str, Any], **rest: Any) -> RunConfig:
    """A float64 point, unless told otherwise."""
    return run_config({"data": data, "model": model, "training": {"dtype": "float64"}, **rest})


def point(dim: int, prior: dict[str, Any], **model: Any) -> RunConfig:
    """A float64 point whose sources are distributed like its prior, small enough to compare with obvious code."""
    source = {key: value for key, value in prior.items() if key != "parameters"}
    data = {"dim": dim, "n_obs": 2000, "train": 0.2, "val": 0.7, "source": source, **model.pop("data", {})}
    return config(data, {"prior": prior, "gamma": 3.0, "hidden_factor": 4, **model})


def random_members(point: RunConfig, seeds: list[int]) -> Tensor:
    """Flat weights (member, parameter) at each seed's start, with the point's gamma."""
    layout = vae.build(point).layout
    rows = torch.stack([layout.initial(stream(seed, "init")) for seed in seeds])
    layout.views(rows)[vae.GAMMA][:] = math.log(point.model.gamma)
    return rows.to(vae.torch_dtype(point))


def trained(points: list[RunConfig]) -> Session:
    """A session on the CPU whose members have trained to their end."""
    session = Session.start(points, torch.device("cpu"))
    for _ in session.train():
        pass
    return session


def weight(session: Session, name: str) -> Tensor:
    """One named weight of every member, in the order of the members, once all of them have stopped."""
    return session.ensemble.model.layout.views(session.state.frozen)[name]


def plain_model(point: RunConfig, row: Tensor) -> Model:
    """One member's flat weights as a plain module."""
    views = vae.build(point).layout.views(row[None])
    return Model(point, {name: view[0] for name, view in views.items()}).requires_grad_(False)


def theta_of(model: Model, u: Tensor | None = None) -> tuple[Tensor, ...]:
    """The prior's parameters of one member as rows: they broadcast against latents (n, d)."""
    theta = model.architecture.theta(model.weights, None if u is None else u[None])
    return tuple(value[0].T if value.ndim else value for value in theta)


def pointwise_jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """J[n, i, k] of a function of rows, by reverse-mode autograd; each row is put in alone."""
    jacobian: Tensor = torch.func.vmap(torch.func.jacrev(lambda row: function(row[None])[0]))(at)
    return jacobian


def per_point(jacobian: Tensor) -> Tensor:
    """J[n, i, k] as the metrics take it: (member, i, k, n), of one member."""
    return jacobian.permute(1, 2, 0)[None]


def exact_neg_log_px(data: AnyData, world: Dataset, split: Split) -> Tensor:
    """−log p(x) of each observation of a split, in closed form, from its own sources."""
    assert isinstance(data, SyntheticData)
    s = split.sources[0].double()
    return world.mixings[0].log_det(s) - build_source(data.source).log_prob(s)


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Fail if the block draws from, or seeds, a global generator."""
    before = _states()
    yield
    assert _states() == before


def _states() -> tuple[object, object]:
    # Python's own is left out: beartype, which checks the shapes in these tests, draws from it
    return torch.get_rng_state().tolist(), repr(np.random.get_state(legacy=False))  # noqa: NPY002


def console(width: int = 80, terminal: bool = False) -> Console:
    """One that keeps what it prints."""
    return Console(file=io.StringIO(), width=width, color_system=None, force_terminal=terminal)


def text_of(output: Console) -> str:
    """What it has printed."""
    assert isinstance(output.file, io.StringIO)
    return output.file.getvalue()


def sprites(folder: Path, model: dict[str, Any] | None = None, **other: Any) -> RunConfig:
    """A point of 640 small images, whose cache lies in a folder; ``other`` may have data, members, training."""
    data = {"kind": "sprites", "n_obs": 640, "side": 16, **other.pop("data", {})}
    network = {"name": "conv", "gamma": 1.0, "n_layers": 2, "hidden_factor": 4, "prior": {"name": "beta"}}
    training = {"max_epochs": 1, "validate_every": 1, "learning_rate": 0.003, **other.pop("training", {})}
    rest = {"members": {"seed": [1, 2]}, "output_dir": str(folder), "training": training, **other}
    return run_config({"data": data, "model": {**network, **(model or {})}, **rest})


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
