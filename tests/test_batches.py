"""Batches and noise: a member's do not depend on who else is of its seed, though a seed's are drawn but once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from imavae.config.settings import RunConfig, run_config
from imavae.runs.session import Session
from imavae.training.batches import batches
from tests.helpers import sprites

CPU = torch.device("cpu")
SIZE = 50  # 448 observations train: the last batch is smaller


def points(folder: Path, gamma: float, seeds: list[int], worlds: list[int]) -> RunConfig:
    """Observations in three segments."""
    data = {"n_obs": 640, "n_segments": 3, "variances": [0.05, 1.0]}
    members = {"seed": seeds, "data": {"seed": worlds}}
    mapping = {"data": data, "model": {"gamma": gamma}, "members": members, "training": {"batch_size": SIZE}}
    return run_config(mapping | {"output_dir": str(folder)})


def images(folder: Path, gamma: float, seeds: list[int], worlds: list[int]) -> RunConfig:
    members = {"seed": seeds, "data": {"seed": worlds}}
    return sprites(folder, {"gamma": gamma}, members=members, training={"batch_size": SIZE})


def epoch(session: Session) -> list[list[Tensor]]:
    """What a member sees, batch by batch: copies, since the arrays are used again."""
    parts = batches(session.ensemble, session.state, session.data.train)
    return [[array.clone() for array in step if array is not None] for step in parts]


@pytest.mark.parametrize("config", [points, images])
def test_a_member_sees_what_it_sees_alone(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    company = Session.start([config(tmp_path, gamma, [1, 2], [3, 8]) for gamma in (3.0, 30.0)], CPU)
    assert len(company.ensemble) == 8
    epochs = [epoch(company), epoch(company)]
    assert len(epochs[0]) == 9
    for row, member in enumerate(company.ensemble.members):
        alone = Session.start([config(tmp_path, member.gamma, [member.seed], [member.world])], CPU)
        for seen in epochs:
            for together, single in zip(seen, epoch(alone), strict=True):
                assert all(torch.equal(a[row], b[0]) for a, b in zip(together, single, strict=True))
        for ours, its in ((company.state.batches, alone.state.batches), (company.state.noise, alone.state.noise)):
            assert torch.equal(ours[row].get_state(), its[0].get_state())


def test_a_seed_draws_once_whatever_else_its_members_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    company = Session.start([points(tmp_path, gamma, [1, 2], [3, 8]) for gamma in (3.0, 30.0)], CPU)
    assert len(company.data.train) == 448  # made before the draws are counted
    permuted: list[torch.Generator] = []
    shuffle = torch.randperm

    def counted(n: int, *, generator: torch.Generator, out: Tensor) -> Tensor:
        permuted.append(generator)
        return shuffle(n, generator=generator, out=out)

    monkeypatch.setattr(torch, "randperm", counted)
    epoch(company)
    assert permuted == company.state.batches[:2]
