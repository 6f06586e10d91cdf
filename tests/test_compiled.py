"""The compiled step against autograd's, alone and in company, on any number of threads, and under sanitizers."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from imavae.config.settings import RunConfig, run_config, study_config
from imavae.data import dataset
from imavae.errors import UserError
from imavae.runs.session import training_step
from imavae.training import compiled
from imavae.training.ensemble import State, ensemble, initial_state
from imavae.training.step import train_epoch
from tests.helpers import BETA, GAUSSIAN, LAPLACE, UNIFORM

CPU = torch.device("cpu")
PRIORS = [UNIFORM, *({**prior, "parameters": p} for prior in (BETA, GAUSSIAN, LAPLACE) for p in ("fixed", "learned"))]
SHAPES: list[dict[str, Any]] = [
    {"n_layers": 1},
    {"n_layers": 2, "hidden_factor": 10},
    {"n_layers": 4, "hidden_factor": 5, "slope": 0.0},
    {"n_layers": 2, "hidden_factor": 31, "encoder": {"n_layers": 3, "hidden_factor": 7}},
]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAVAE_STEP_THREADS", "1")


def config(step: str, model: dict[str, Any], **other: Any) -> RunConfig:
    data, training = {"n_obs": 1000, **other.pop("data", {})}, other.pop("training", {})
    members = {"seed": [1, 2, 3], **other.pop("members", {})}
    return run_config({"data": data, "model": model, "members": members, "training": {"step": step, **training}})


def trained(points: list[RunConfig], epochs: int = 3, spoil: int | None = None) -> State:
    """The state after some epochs; the weights of member ``spoil`` overflow at once."""
    members = ensemble(points, CPU)
    state, data = initial_state(members), dataset.make(points[0].data, members.worlds, members.dtype, CPU, None)
    if spoil is not None:
        state.weights[spoil] = 1e30
    for _ in range(epochs):
        train_epoch(members, state, data.train)
    return state


def same_draws(one: State, other: State) -> bool:
    pairs = [*zip(one.batches, other.batches, strict=True), *zip(one.noise, other.noise, strict=True)]
    return all(torch.equal(a.get_state(), b.get_state()) for a, b in pairs)


@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: f"{p['name']}-{p.get('parameters', 'fixed')}")
@pytest.mark.parametrize("activation", compiled.ACTIVATIONS)
def test_weights_are_those_of_autograd(prior: dict[str, Any], activation: str) -> None:
    for precision, shape in zip(("fixed", "learned", "mle"), SHAPES[1:], strict=True):
        model = {"prior": prior, "activation": activation, "precision": precision, **shape}
        fast, obvious = (trained([config(step, model)]) for step in ("compiled", "autograd"))
        torch.testing.assert_close(fast.weights, obvious.weights, rtol=2e-5, atol=2e-5)
        assert same_draws(fast, obvious)
        assert fast.steps.tolist() == obvious.steps.tolist()


def test_the_first_rows_of_several_worlds_train_by_either_step() -> None:
    """A dry run times them."""
    weights = []
    for step in ("compiled", "autograd"):
        members = ensemble([config(step, {}, members={"data": {"seed": [1, 2]}})], CPU)
        data = dataset.make(members.config.data, members.worlds, members.dtype, CPU, None).train.first(200)
        state = initial_state(members)
        train_epoch(members, state, data)
        weights.append(state.weights)
    torch.testing.assert_close(*weights, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("batch", [3, 7, 64, 100, 701])
def test_any_size_of_batches_and_of_data(batch: int) -> None:
    training = {"batch_size": batch, "schedule": "cosine", "max_epochs": 5}
    for shape, dim, observed in zip(SHAPES, (2, 3, 5, 7), (5, None, 19, None), strict=True):
        data = {"dim": dim, "observed": observed, "n_obs": 1100}
        model = {
            "dim": {2: 7, 3: 1}.get(dim),  # more latents than observed numbers, and one
            "beta": 0.3,
            "prior": GAUSSIAN,
            **shape,
            "activation": "tanh",
        }  # no kink, where rounding chooses a side
        fast, obvious = (
            trained([config(step, model, data=data, training=training)], 2) for step in ("compiled", "autograd")
        )
        torch.testing.assert_close(fast.weights, obvious.weights, rtol=2e-5, atol=2e-5)
        assert same_draws(fast, obvious)


def grid(**other: Any) -> list[RunConfig]:
    """Points of several gammas, rates and betas in two worlds."""
    points = [{"gamma": 3.0, "beta": 1.0}, {"gamma": 30.0, "beta": 2.0}, {"gamma": 300.0, "beta": 0.5}]
    members = {"data": {"seed": [1, 2]}}
    return [
        config("compiled", model, members=members, training={"learning_rate": 1e-3 * (i + 1)}, **other)
        for i, model in enumerate(points)
    ]


def test_neither_company_nor_threads_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    company = trained(grid())
    [alone] = [trained([point]).weights for point in grid()[1:2]]
    assert torch.equal(company.weights[6:12], alone)
    for threads in ("2", "5", "64"):
        monkeypatch.setenv("IMAVAE_STEP_THREADS", threads)
        spread = trained(grid())
        assert torch.equal(spread.weights, company.weights)
        assert same_draws(spread, company)


def test_a_member_that_overflows_stays_as_it_is_and_disturbs_none() -> None:
    company, spoilt = trained(grid()), trained(grid(), spoil=4)
    assert spoilt.finite.tolist() == [row != 4 for row in range(18)]
    assert bool((spoilt.weights[4] == 1e30).all())
    others = [row for row in range(18) if row != 4]
    assert torch.equal(spoilt.weights[others], company.weights[others])
    assert same_draws(spoilt, company)


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"prior": {**GAUSSIAN, "parameters": "conditional"}}, "data": {"n_segments": 4}},
        {"model": {"posterior": "full"}},
        {"model": {"prior": GAUSSIAN, "kl": "analytic"}},
        {"model": {"decoder": "mixing"}},
        {"model": {"ima_weight": 0.1}},
        {"training": {"clip": 1.0}},
        {"training": {"dtype": "float64"}},
        {"data": {"kind": "sprites"}, "model": {"name": "conv"}},
    ],
    ids=str,
)
def test_all_else_is_left_to_autograd(other: dict[str, Any]) -> None:
    for step in ("auto", "compiled"):
        at = run_config({**other, "training": {**other.get("training", {}), "step": step}})
        if step == "auto":
            assert compiled.chosen(at, CPU)[0] == "autograd"
        else:
            with pytest.raises(UserError, match=r"training\.step=compiled"):
                compiled.chosen(at, CPU)
    assert compiled.chosen(run_config({}), torch.device("cuda"))[0] == "autograd"


@pytest.mark.parametrize(("node", "name"), [("model", "ima_weight"), ("training", "clip")])
def test_a_study_of_both_steps_trains_by_both_unless_one_is_asked_for(node: str, name: str) -> None:
    search = {node: {name: {"type": "choice", "values": [0.5, 1.0]}}}
    assert name in training_step(study_config({"search": search}))[1]
    with pytest.raises(UserError, match=rf"{node}\.{name}=1.* needs autograd"):
        training_step(study_config({"search": search, "training": {"step": "compiled"}}))


def test_without_a_compiler_autograd_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    compiled.library.cache_clear()
    try:
        assert compiled.chosen(run_config({}), CPU)[0] == "autograd"
        with pytest.raises(UserError, match="compiler"):
            compiled.chosen(run_config({"training": {"step": "compiled"}}), CPU)
    finally:
        compiled.library.cache_clear()


@pytest.mark.parametrize("home", ["missing", "file"])
def test_a_home_that_can_not_be_written(home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" if home == "file" else "/proc/none"))
    compiled.library.cache_clear()
    try:
        assert compiled.chosen(run_config({}), CPU)[0] == "compiled"
    finally:
        compiled.library.cache_clear()


def test_under_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "sanitized"
    command = [compiler, "-O1", "-g", "-std=gnu++17", "-march=native", "-fsanitize=address,undefined"]
    source = Path(__file__).with_name("sanitize_step.cpp")
    built = subprocess.run([*command, str(source), "-o", str(program)], capture_output=True, text=True, check=False)
    if (built.returncode and "sanitize" in built.stderr + built.stdout) or "lasan" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([str(program)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_parts_cover_all_members_and_share_draws_by_seed() -> None:
    for seeds, threads in itertools.product(([1], [1, 1, 1], [1, 2, 1, 2, 3]), (1, 2, 8)):
        parts = compiled._parts(seeds, threads)
        assert sorted(row for part in parts for row in part) == list(range(len(seeds)))
        assert all(len({seeds[row] for row in part}) == 1 for part in parts)
        assert len(parts) >= min(threads, len(seeds))
