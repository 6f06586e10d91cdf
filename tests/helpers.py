"""What several tests share: configurations, the published world, random members, and Jacobians by autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imavae.config import Data, RunConfig, run_config
from imavae.data import sources
from imavae.data.dataset import Dataset, Split
from imavae.families import MoebiusMixing
from imavae.model import vae
from imavae.model.export import Model
from imavae.streams import stream

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


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def config(data: dict[str, Any], model: dict[str, Any], **rest: Any) -> RunConfig:
    """A float64 point, unless told otherwise."""
    return run_config({"data": data, "model": model, "training": {"dtype": "float64"}, **rest})


def point(dim: int, prior: dict[str, Any], **model: Any) -> RunConfig:
    """A float64 point whose sources are distributed like its prior, small enough to compare with obvious code."""
    data = {"dim": dim, "n_obs": 2000, "train": 0.2, "val": 0.7, "source": prior}
    return config(data, {"prior": prior, "gamma": 3.0, "hidden_factor": 4, **model})


def random_members(point: RunConfig, seeds: list[int]) -> Tensor:
    """Flat weights (member, parameter) at each seed's start."""
    layout = vae.build(point).layout
    rows = [layout.initial(stream(seed, "init")) for seed in seeds]
    return torch.stack(rows).to(vae.torch_dtype(point))


def plain_model(point: RunConfig, row: Tensor) -> Model:
    """One member's flat weights as a plain module of ``nn.Linear`` layers."""
    model = Model(point)
    weights = vae.build(point).layout.views(row[None])
    model.load_state_dict({name: weight[0] for name, weight in weights.items()})
    return model.requires_grad_(False)


def pointwise_jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """J[n, i, k] of a function of rows, by reverse-mode autograd; each row is put in alone."""
    jacobian: Tensor = torch.func.vmap(torch.func.jacrev(lambda row: function(row[None])[0]))(at)
    return jacobian


def per_point(jacobian: Tensor) -> Tensor:
    """J[n, i, k] as the metrics take it: (member, i, k, n), of one member."""
    return jacobian.permute(1, 2, 0)[None]


def exact_neg_log_px(data: Data, world: Dataset, split: Split) -> Tensor:
    """−log p(x) of each observation of a split, in closed form, from its own sources."""
    s = split.sources[0].double()
    return world.mixings[0].log_det(s) - sources.build(data.source).log_prob(s)


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Fail if the block draws from, or seeds, a global generator."""
    before = _states()
    yield
    assert _states() == before


def _states() -> tuple[object, object]:
    # Python's own is left out: beartype, which checks the shapes in these tests, draws from it
    return torch.get_rng_state().tolist(), repr(np.random.get_state(legacy=False))  # noqa: NPY002
