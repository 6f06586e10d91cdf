"""An epoch on each device there is: on a GPU without waiting for the host, and to what the CPU makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imavae.config.settings import RunConfig, run_config
from imavae.runs.session import Session
from imavae.training.step import ByAutograd, train_epoch

CPU = torch.device("cpu")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
]
MODELS = {
    "fixed": {"gamma": 30.0},
    "learned": {"gamma": 30.0, "precision": "learned", "posterior": "full"},
    "mle": {"gamma": 3.0, "precision": "mle"},
}


def point(seeds: list[int], **model: Any) -> RunConfig:
    training = {"max_epochs": 2, "validate_every": 1}
    return run_config({"data": {"n_obs": 2000}, "model": model, "members": {"seed": seeds}, "training": training})


@contextmanager
def never_waiting(device: torch.device) -> Iterator[None]:
    """Within it, an operation that would make the host wait for a GPU raises."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def trained(points: list[RunConfig], device: torch.device) -> Session:
    session = Session.start(points, device)
    for _ in session.train():
        pass
    return session


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_an_epoch_makes_the_host_wait_for_nothing(model: dict[str, Any], device: str) -> None:
    session = Session.start([point([1, 2, 3], **model)], torch.device(device))
    train_epoch(session.ensemble, session.state, session.data.train)  # what is made once is made here
    before = session.state.weights.clone()
    with never_waiting(session.ensemble.device):
        train_epoch(session.ensemble, session.state, session.data.train)
    assert session.state.weights.device.type == device
    assert (session.state.weights != before).any(1).all()
    assert bool(session.state.finite.all())


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_is_the_cpu_s(device: str) -> None:
    def gradient(on: torch.device) -> Tensor:
        session = Session.start([point([1, 2, 3], gamma=30.0)], on)
        weights, beta = session.state.weights, torch.ones(3, device=on)
        x = session.data.train.observations[0, :64].T.expand(3, -1, -1).contiguous()
        noise = torch.randn(3, 3, 64, generator=torch.Generator().manual_seed(0)).to(on)
        into = torch.zeros_like(weights)
        ByAutograd(session.ensemble.model, weights, into, beta, True)(x, noise, None)
        return into.cpu()

    expected = gradient(CPU)
    assert (gradient(torch.device(device)) - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_what_needs_no_noise_is_evaluated_to_the_cpu_s_values(device: str) -> None:
    def values(on: torch.device) -> dict[str, Tensor]:
        session = Session.start([point([1, 2, 3], gamma=30.0)], on)
        return session.evaluate("val", session.state.weights, session.state.active)

    got, expected = values(torch.device(device)), values(CPU)
    for name in ("mse_obs", "mcc_mean", "r2_linear", "cima", "column_norm", "self_consistency", "agreement"):
        torch.testing.assert_close(got[f"val/{name}"], expected[f"val/{name}"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_member_depends_on_no_company_and_a_checkpoint_goes_on(device: str, tmp_path: Path) -> None:
    on = torch.device(device)
    alone, company = trained([point([2], gamma=30.0)], on), trained([point([1, 2, 3], gamma=30.0)], on)
    assert (company.state.frozen[1] - alone.state.frozen[0]).abs().max() < 1e-4
    interrupted = Session.start([point([2], gamma=30.0)], on)
    next(interrupted.train())
    interrupted.save(tmp_path / "state.pt")
    resumed = Session.load(tmp_path / "state.pt", on)
    for _ in resumed.train():
        pass
    assert (resumed.state.frozen - alone.state.frozen).abs().max() < 1e-4
