"""Measurements of ``make bench``: training, validation, a study's phases and memory, beside their bars.

Ratios are what counts. What a ratio compares is measured in turn, round after round, in one process with one thread,
and the median over rounds is taken. Seconds of training and validation are CPU time, so they are per core.

The data are 60,000 observations, of which 42,000 train in batches of 64; a hidden layer has 10 units per dimension
unless a width is given. Two loops for one model stand for other code: the idiomatic one uses a DataLoader, the lean
one indexes with one permutation per epoch. All of an epoch counts: order, noise, gathers and Adam.

GFLOP/s counts the arithmetic of the linear maps only, 2 in out per observation and product: forward, by weights, and
by inputs; the encoder's first map needs no product by its inputs.

The study trains one trial at a time, as ``imavae.tune`` runs it, with Ray and MLflow, in a temporary folder. Its
phases follow from the times of its reports, which have the worker's seconds of training and validation.

Images are in one .h5 file, compressed in chunks that h5py chooses. The time to the first step has the start of the
process, the copy into an empty cache and a step of three members.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

from imavae.api import tune
from imavae.config.settings import EncodeConfig, EncodeData, run_config, study_config
from imavae.model import vae
from imavae.rng import stream
from imavae.runs.models import encode_file
from imavae.runs.session import Session
from imavae.search.trials import Recorder
from imavae.training.checkpoint import save_member
from imavae.training.step import train_epoch

ROUNDS = 7
SECONDS = 0.3  # of a measurement within a round
MATRIX = 2048  # rows of the square matrices whose product is the machine's speed
LOOPS = ("idiomatic", "lean")
# Settings of training, by a step's name in the table.
STEPS: dict[str, dict[str, Any]] = {"compiled": {"step": "compiled"}, "autograd": {"step": "autograd"}}
FAST = "compiled"  # the step that has bars
MEMBERS = (1, 8, 120)
FLOWS = {"flow": 0.0, "flow with its contrast": 1.0}  # weights of the contrast, in ensembles of so many flows:
FLOW_MEMBERS, OVER_ONE = 20, 10  # and the bar of their rate over that of one
WIDE = ((3, 60), (4, 120))  # linear maps and width of the networks whose GFLOP/s are measured, with 8 members
TRIALS, EPOCHS, OBSERVATIONS = 4, 10, 20_000  # of the study, with 8 members

OVER_IDIOMATIC = {1: 150, 8: 220, 120: 230}  # bars of the fast step
OVER_MATRIX = {(3, 60): 0.65, (4, 120): 0.72}
SHARE, START, MEMORY = 20, 5, 700  # per cent, seconds, MB
IMAGES, FIRST_STEP, IMAGES_MEMORY = 100_000, 15, 2000  # in a file, s, MB
ROWS, ENCODED, ENCODING_MEMORY = 1_000_000, 500_000, 1000  # in a file, rows/s, MB

R = TypeVar("R")


class Line(NamedTuple):
    """A line of the table."""

    what: str
    value: float
    unit: str
    bar: str = ""


class Training:
    """Epochs of an ensemble, on so many of its batches that a measurement is short."""

    def __init__(self, members: int, step: str = FAST, maps: int = 2, width: int = 30, **network: Any) -> None:
        model = {"n_layers": maps, "hidden_factor": width // 3, "gamma": 100.0, **network}
        mapping = {"model": model, "training": STEPS[step], "members": {"seed": list(range(members))}}
        self.session = Session.start([run_config(mapping)], torch.device("cpu"))
        self.members, self.size = members, self.session.points[0].training.batch_size
        self._data = self.session.data.train
        self.batches = math.ceil(len(self._data) / self.size)
        self._seconds(8)  # compiles, and allocates
        self._part = min(self.batches, max(8, round(8 * SECONDS / self._seconds(8))))

    def __call__(self) -> float:
        """Member-steps per second."""
        return self.members * self._part / self._seconds(self._part)

    def validate(self) -> float:
        """CPU seconds of a validation."""
        state, start = self.session.state, time.process_time()
        self.session.validate(state.weights, state.active)
        return time.process_time() - start

    @property
    def gflop(self) -> float:
        """Arithmetic of the linear maps in a member's step, in GFLOP."""
        shapes = self.session.ensemble.model.layout.shapes
        weights = {name: math.prod(shape) for name, shape in shapes.items() if name.endswith(".weight")}
        return 2 * self.size * (3 * sum(weights.values()) - weights["encoder.0.weight"]) / 1e9

    def _seconds(self, batches: int) -> float:
        start = time.process_time()
        train_epoch(self.session.ensemble, self.session.state, self._data.first(batches * self.size))
        return time.process_time() - start


class PlainVAE(nn.Module):
    """The same model for one member: nn.Linear layers, batches first."""

    def __init__(self, dim: int, width: int, gamma: float) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(dim, width), nn.LeakyReLU(0.2), nn.Linear(width, 2 * dim))
        self.decoder = nn.Sequential(nn.Linear(dim, width), nn.LeakyReLU(0.2), nn.Linear(width, dim))
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        """The negative ELBO of a batch, with a uniform prior on [-1/2, 1/2]."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        y = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        entropy = 0.5 * log_variance + 0.5 * (1 + math.log(2 * math.pi))
        kl = -(entropy + y - 2 * softplus(y)).sum(1)
        error = (x - self.decoder(torch.sigmoid(y) - 0.5)).square().sum(1)
        log_px_z = -0.5 * self.gamma**2 * error + x.shape[1] * (math.log(self.gamma) - 0.5 * math.log(2 * math.pi))
        return torch.mean(kl - log_px_z)


def plain_loop(session: Session, loop: str) -> Callable[[], float]:
    """The usual loop for a single model, idiomatic or lean, on a part of an epoch; returns steps per second."""
    config = session.points[0]
    size = config.training.batch_size
    observations = session.data.train.observations[0, : 200 * size]
    model = PlainVAE(config.data.dim, config.model.hidden_factor * config.data.dim, config.model.gamma)
    loader = DataLoader(TensorDataset(observations), batch_size=size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters())

    def rate() -> float:
        start = time.process_time()
        lean = (observations[rows] for rows in torch.split(torch.randperm(len(observations)), size))
        for x in lean if loop == "lean" else (x for (x,) in loader):
            optimizer.zero_grad()
            model(x).backward()
            optimizer.step()
        return len(loader) / (time.process_time() - start)

    return rate


def matrix_product() -> float:
    """GFLOP/s of a product of two square float32 matrices."""
    a, b = torch.randn(2, MATRIX, MATRIX)
    start = time.process_time()
    a @ b
    return 2 * MATRIX**3 / (time.process_time() - start) / 1e9


def measure_training() -> list[Line]:
    """Rates of loops and steps, GFLOP/s of wide networks, and the price of a validation."""
    ensembles = {(step, members): Training(members, step) for step in STEPS for members in MEMBERS}
    wide = {shape: Training(8, FAST, *shape) for shape in WIDE}
    flows = {
        (name, members): Training(members, "autograd", width=15, name="flow", activation="silu", ima_weight=weight)
        for name, weight in FLOWS.items()
        for members in (1, FLOW_MEMBERS)
    }
    measured: dict[Any, Callable[[], float]] = {"matrix": matrix_product, **ensembles, **wide, **flows}
    measured |= {loop: plain_loop(ensembles[FAST, 1].session, loop) for loop in LOOPS}
    measured |= {("validation", members): ensembles[FAST, members].validate for members in MEMBERS[1:]}
    rounds = pd.DataFrame([{key: measure() for key, measure in measured.items()} for _ in range(ROUNDS)])
    value = {key: float(rounds[key].median()) for key in measured}

    lines = [Line(f"{loop} loop, one model", value[loop], "steps/s") for loop in LOOPS]
    for (step, members), rate in ((key, value[key]) for key in ensembles):
        name = f"{step} step, {members} members"
        lines.append(Line(name, rate, "member-steps/s"))
        bar = f"{OVER_IDIOMATIC[members]}" if step == FAST else ""
        lines.append(Line(f"{name}, over idiomatic", rate / value["idiomatic"], "×", bar))
        lines.append(Line(f"{name}, over lean", rate / value["lean"], "×"))
    lines.append(Line(f"a product of two {MATRIX} x {MATRIX} matrices", value["matrix"], "GFLOP/s"))
    for (maps, width), training in wide.items():
        speed, name = value[maps, width] * training.gflop, f"{maps} maps of width {width}, 8 members"
        lines.append(Line(name, speed, "GFLOP/s"))
        lines.append(Line(f"{name}, over the product", speed / value["matrix"], "×", f"{OVER_MATRIX[maps, width]}"))
    for name in FLOWS:
        lines += [
            Line(f"{name}, {members} members", value[name, members], "member-steps/s") for members in (1, FLOW_MEMBERS)
        ]
        ratio = value[name, FLOW_MEMBERS] / value[name, 1]
        lines.append(Line(f"{name}, {FLOW_MEMBERS} members over one", ratio, "×", f"{OVER_ONE}"))
    for members in MEMBERS[1:]:
        training = ensembles[FAST, members]
        epochs = training.session.points[0].training.validate_every
        between = epochs * training.batches * members / value[FAST, members]
        share, name = 100 * value["validation", members] / between, f"validation of {members} members"
        lines.append(Line(name, 1e3 * value["validation", members] / members, "ms/member"))
        lines.append(Line(f"{name}, over {epochs} epochs", share, "%", f"{SHARE}"))
    return lines


def in_fresh_process(function: Callable[..., R], *arguments: object) -> R:
    """The result of a function in a process of its own, whose peak memory is that of the function."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(function, *arguments).result()


def measure_peak() -> Line:
    """Peak memory of a process that trains 120 members for an epoch, validates, and evaluates them."""
    return Line("peak memory, 120 members", in_fresh_process(_trained_peak), "MB", f"{MEMORY}")


def _trained_peak() -> float:
    torch.set_num_threads(1)
    training = Training(120)
    session, rows = training.session, training.session.state.active
    train_epoch(session.ensemble, session.state, session.data.train)
    session.validate(session.state.weights, rows)
    session.evaluate("val", session.state.weights, rows)
    return _peak()


def _peak() -> float:
    """Peak memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, but on macOS in bytes
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def measure_images() -> list[Line]:
    """Seconds from the start of a process to its first step on images of one .h5 file, and its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        path, rng = Path(folder) / "images.h5", np.random.default_rng(0)
        with h5py.File(path, "w") as file:
            images = file.create_dataset("images", (IMAGES, 64, 64, 3), np.uint8, chunks=True, compression="gzip")
            for at in range(0, IMAGES, images.chunks[0]):
                few = rng.integers(0, 256, (min(images.chunks[0], IMAGES - at), 8, 8, 3), np.uint8)
                images[at : at + len(few)] = few.repeat(8, 1).repeat(8, 2)
            file["labels"] = rng.random((IMAGES, 6))
        start = time.monotonic()
        first, peak = in_fresh_process(_trained_images, str(path), folder)
    name = f"{IMAGES:,} images of 64 x 64 x 3"
    return [
        Line(f"{name}: start to first step", first - start, "s", f"{FIRST_STEP}"),
        Line(f"{name}: peak memory", peak, "MB", f"{IMAGES_MEMORY}"),
    ]


def _trained_images(path: str, folder: str) -> tuple[float, float]:
    """The time of the first step of three members, by the monotonic clock; peak memory of 50 steps and a validation."""
    torch.set_num_threads(1)
    model = {"name": "conv", "gamma": 1.0, "n_layers": 3, "hidden_factor": 40}
    mapping = {"data": {"kind": "images", "path": path}, "model": model, "members": {"seed": [1, 2, 3]}}
    session = Session.start([run_config({**mapping, "output_dir": folder})], torch.device("cpu"))
    size = session.points[0].training.batch_size
    train_epoch(session.ensemble, session.state, session.data.train.first(size))
    first = time.monotonic()
    train_epoch(session.ensemble, session.state, session.data.train.first(50 * size))
    session.validate(session.state.weights, session.state.active)
    return first, _peak()


def measure_encoding() -> list[Line]:
    """Rows per CPU second of the encoding of a file with ten columns, and its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        x = np.random.default_rng(0).standard_normal((ROWS, 10))
        pd.DataFrame(x).rename(columns=str).to_parquet(f"{folder}/x.parquet")
        rate, peak = in_fresh_process(_encoded, folder)
    name = f"encoding {ROWS:,} rows of 10 columns"
    return [
        Line(name, rate, "rows/s", f"{ENCODED:,}"),
        Line(f"{name}: peak memory", peak, "MB", f"{ENCODING_MEMORY}"),
    ]


def _encoded(folder: str) -> tuple[float, float]:
    config = run_config({"data": {"dim": 10}, "model": {"gamma": 3.0}})
    layout = vae.build(config).layout
    weights = {name: w[0] for name, w in layout.views(layout.initial(stream(1, "init"))[None]).items()}
    save_member(Path(folder, "model.pt"), config, weights, {})
    data, out = EncodeData(path=f"{folder}/x.parquet"), f"{folder}/z.parquet"
    start = time.process_time()
    encode_file(EncodeConfig(checkpoint=f"{folder}/model.pt", data=data, out=out), lambda *_: None)
    return ROWS / (time.process_time() - start), _peak()


def measure_study() -> list[Line]:
    """Seconds of a study's phases."""
    reports: list[tuple[float, str, float, float]] = []  # time, trial, seconds of training and of validation
    noted = Recorder.on_trial_result

    def note(recorder: Recorder, **information: Any) -> None:
        result, trial = information["result"], information["trial"]
        reports.append((time.monotonic(), trial.trial_id, result["train_seconds"], result["validate_seconds"]))
        noted(recorder, **information)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Recorder, "on_trial_result", note):
        config = study_config(
            {
                "output_dir": folder,
                "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
                "data": {"n_obs": OBSERVATIONS},
                "members": {"seed": list(range(8))},
                "training": {"max_epochs": EPOCHS},
                "search": {"model": {"gamma": {"type": "float", "low": 3.0, "high": 1000.0, "log": True}}},
                "budget": {"trials": TRIALS},
                "cluster": {"cpus": 1},  # one trial after the other: their times add up
            }
        )
        start = time.monotonic()
        tune(config)
        end = time.monotonic()
    return study_phases(start, reports, end)


def study_phases(start: float, reports: Sequence[tuple[float, str, float, float]], end: float) -> list[Line]:
    """Split a study's time, given its reports in their order: (time, trial, seconds of training and of validation since
    the trial's start).
    """
    training, validation, waits = 0.0, 0.0, {"first": 0.0, "between": 0.0, "within": 0.0}
    before, trial, done = start, "", (0.0, 0.0)
    for at, current, trained, validated in reports:
        if current != trial:
            done = (0.0, 0.0)
        work = trained - done[0], validated - done[1]
        kind = "first" if not trial else "within" if current == trial else "between"
        waits[kind] += at - before - sum(work)
        training, validation = training + work[0], validation + work[1]
        before, trial, done = at, current, (trained, validated)
    return [
        Line("study: start to first step", waits["first"], "s", f"{START}"),
        Line("study: training", training, "s"),
        Line("study: validation", validation, "s"),
        Line("study: checkpoints and reports", waits["within"], "s"),
        Line("study: between trials", waits["between"], "s"),
        Line("study: last report to the end", end - before, "s"),
        Line("study: whole", end - start, "s"),
        Line("study: share of training", 100 * training / (end - start), "%"),
    ]


def main() -> None:
    """Print the table, and write it to outputs/bench.json."""
    peaks = [measure_peak(), *measure_images(), *measure_encoding()]  # first: a process has its parent's peak
    torch.set_num_threads(1)
    with mock.patch.dict("os.environ", IMAVAE_STEP_THREADS="1"):
        training = measure_training()
    lines = [*training, *peaks, *measure_study()]
    for what, value, unit, bar in lines:
        print(f"{what:56} {value:>11,.{0 if value >= 100 else 2}f} {unit:15} {bar and f'bar {bar}'}".rstrip())
    output = Path("outputs/bench.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"torch": torch.__version__, "lines": [line._asdict() for line in lines]}, indent=2))
    print(f"written to {output}")


if __name__ == "__main__":
    main()
