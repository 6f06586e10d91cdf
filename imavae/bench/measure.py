"""Measurements of `make bench`, on one core: the training speed of ensembles, and the time budget of a small study.

Training speed is compared with two loops for one model, in one process.

All of training counts (streams, gathers, optimizer), but no validation. The data are 60,000 observations, of which
42,000 train in batches of 64; a hidden layer has 10 units per dimension. The idiomatic loop uses a DataLoader, the lean
one indexes with one permutation per epoch; both train the same module with the same optimizer.

GFLOP/s counts the arithmetic of the linear maps only, 2 in out per observation and product: forward, by weights, and
by inputs; the encoder's first map needs no product by its inputs. Activations, loss, noise and Adam are left out.
MiB per member is computed from sizes: the member's rows of the state, and its order of the observations in an epoch.

The study trains one trial at a time and is timed from the call to its last figure. It runs as ``imavae.tune`` runs it,
with Ray and MLflow, in a temporary folder. The driver's calls are timed, and each report has the worker's seconds of
training and validation. The driver's second thread writes while workers train, so it counts only where the driver waits
for it. Checkpoints count as one, saved alone, times their number.
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import resource
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

from imavae.api import tune
from imavae.config.settings import base_of, run_config, study_config
from imavae.errors import require
from imavae.runs.session import Session
from imavae.search import study
from imavae.search.cluster import available_cpus
from imavae.search.trials import Recorder
from imavae.tracking.mlflow import MLflowTracker
from imavae.training.step import train_epoch

ENSEMBLES = (  # members, dimensions, linear maps
    *((members, 3, 2) for members in (1, 8, 20, 60, 120, 240, 480)),
    *((120, dim, 2) for dim in (2, 5, 10)),
    *((120, 3, maps) for maps in (3, 4)),
)
USUAL = (120, 3, 2)  # for validation and memory
GAMMAS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # of a pack, which is compared with an ensemble for each of them
SEEDS = 20  # of each gamma of the pack
KEY = ("loop", "members", "dim", "maps")  # identifies a row
MATRIX = 2048
MIB = 2**20
COLUMNS = {"member_steps_per_s": "{:,.0f}", "ms/step": "{:.2f}", "mib_per_member": "{:.2f}"}  # and their formats
COLUMNS |= dict.fromkeys(("over_idiomatic", "over_lean", "gflop_per_s"), "{:.1f}")

Row = dict[str, Any]


def main(output: Path, old: Path | None = None) -> None:
    """Print the tables and write their numbers to ``output``; compare them with those of the earlier file ``old``."""
    before = None if old is None else read_rows(old)
    torch.set_num_threads(1)

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        peak = fresh.submit(_peak).result()  # first: a process starts with the peak of its parent
    rows, validation = _training()
    a, b = torch.randn(2, MATRIX, MATRIX)
    matrix = 2 * MATRIX**3 / min(timeit.repeat(lambda: a @ b, repeat=3, number=1)) / 1e9
    print(training_table(rows))
    print(f"one product of two {MATRIX} x {MATRIX} float32 matrices: {matrix:.0f} GFLOP/s")
    print(
        f"one validation of {USUAL[0]} members: {validation['seconds']:.2f} s, after {validation['every']:.0f} epochs "
        f"of {validation['epoch_seconds']:.2f} s each: {100 * validation['share']:.0f} % of them"
    )
    print(f"peak of a process, one epoch and a validation of {USUAL[0]} members: {peak:,.0f} MiB")
    if before is not None:
        print(comparison_table(before, rows))
    study = measure_study()
    print(study_table(study))
    content = {"torch": torch.__version__, "cores": available_cpus(), "training": rows, "matrix_gflop_per_s": matrix}
    content |= {"validation": validation, "peak_mib": peak, "study": study}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written to {output}")


def read_rows(path: Path) -> list[Row]:
    """Training rows that an earlier run wrote. Raises UserError for a file that is missing or has other content."""
    try:
        rows: list[Row] = json.loads(path.read_text())["training"]
        valid = all(float(row["member_steps_per_s"]) > 0 for row in rows if [row[name] for name in KEY])
    except (OSError, ValueError, KeyError, TypeError):
        valid = False
    remedy = "give a copy of a bench.json that `make bench` wrote"
    require(valid, "compare is a file with the numbers of a bench", path, remedy)
    return rows


def training_table(rows: list[Row]) -> str:
    """A line per loop and size."""
    frame = pd.DataFrame(rows)
    frame["ms/step"] = 1e3 * frame["members"] / frame["member_steps_per_s"]
    rates = frame.set_index([*KEY])["member_steps_per_s"]
    share = rates["ensemble", SEEDS, *USUAL[1:]] / rates["pack", len(GAMMAS) * SEEDS, *USUAL[1:]]
    return f"""\
Training on one core: the best of 3 epochs, of 2 from 240 members up
{_text(frame, COLUMNS)}
GFLOP/s: linear maps only. MiB: a member's rows of the state and its order of an epoch.
The pack of {len(GAMMAS)} gammas x {SEEDS} seeds takes {share:.2f} of the time of {len(GAMMAS)} ensembles of {SEEDS}.
"""


def comparison_table(old: list[Row], new: list[Row]) -> str:
    """Old and new member-steps/s of each row, and the change; a row that the old file lacks shows the new rate only."""
    rates = [pd.DataFrame(rows).set_index([*KEY])["member_steps_per_s"] for rows in (old, new)]
    frame = pd.DataFrame({"old": rates[0].reindex(rates[1].index), "new": rates[1]}).reset_index()
    frame["change in %"] = 100 * (frame["new"] / frame["old"] - 1)
    text = _text(frame, {"old": "{:,.0f}", "new": "{:,.0f}", "change in %": "{:+.1f}"})
    return f"member-steps/s against the earlier run\n{text}\n"


def _text(frame: pd.DataFrame, formats: dict[str, str]) -> str:
    shown = {name: frame[name].map(form.format, na_action="ignore").fillna("") for name, form in formats.items()}
    return frame.assign(**shown)[[*KEY, *formats]].to_string(index=False)


def _training() -> tuple[list[Row], dict[str, float]]:
    """A row per loop and size; and the seconds of a validation and of an epoch of the usual ensemble."""
    rows: list[Row] = []
    validation: dict[str, float] = {}
    plain = ("idiomatic", "lean")
    keys = [(loop, 1, *USUAL[1:]) for loop in plain] + [("ensemble", *size) for size in ENSEMBLES]
    for key in (*keys, ("pack", len(GAMMAS) * SEEDS, *USUAL[1:])):
        loop, members, dim, maps = key
        session = _session(SEEDS, dim, maps, GAMMAS) if loop == "pack" else _session(members, dim, maps)
        n, shapes = len(session.data.train), session.ensemble.model.layout.shapes
        if loop in plain:
            epoch = _plain_epoch(session, loop)
        else:
            epoch = functools.partial(train_epoch, session.ensemble, session.state, session.data.train)
        seconds = min(timeit.repeat(epoch, repeat=2 if members >= 240 else 3, number=1))
        rate = members * math.ceil(n / session.points[0].training.batch_size) / seconds
        row = {**dict(zip(KEY, key, strict=True)), "member_steps_per_s": rate}
        weights = {name: math.prod(shape) for name, shape in shapes.items() if name.endswith(".weight")}
        products = 3 * sum(weights.values()) - weights["encoder.0.weight"]  # forward, by weights, and by inputs
        row["gflop_per_s"] = 2 * members * n * products / seconds / 1e9
        rows.append(row)
        if loop in plain:
            continue
        row["mib_per_member"] = _bytes_per_member(session) / MIB
        if (dim, maps) == USUAL[1:]:
            row |= {f"over_{other['loop']}": rate / other["member_steps_per_s"] for other in rows[:2]}
        if key == ("ensemble", *USUAL):
            validate = functools.partial(session.evaluate, "val", session.state.weights, torch.arange(members))
            validation = {"seconds": min(timeit.repeat(validate, repeat=2, number=1)), "epoch_seconds": seconds}
            validation["every"] = session.points[0].training.validate_every
            validation["share"] = validation["seconds"] / (validation["every"] * seconds)
    return rows, validation


def _session(seeds: int, dim: int, maps: int, gammas: Sequence[float] = (100.0,)) -> Session:
    mapping = {"members": {"seed": list(range(seeds))}, "data": {"dim": dim}}
    points = [run_config(mapping | {"model": {"n_layers": maps, "gamma": gamma}}) for gamma in gammas]
    return Session.start(points, torch.device("cpu"))


def _bytes_per_member(session: Session) -> int:
    state, best = session.state, session.state.best.values()
    tensors = (state.weights, state.first, state.second, state.frozen, *(kept.weights for kept in best))
    rows = sum(tensor.shape[1] * tensor.element_size() for tensor in tensors)
    orders = len(session.data.train) * torch.int32.itemsize * len({member.seed for member in session.ensemble.members})
    return rows + orders // len(session.ensemble)


def _peak() -> float:
    """Train one epoch and validate; return this process's peak resident memory in MiB."""
    torch.set_num_threads(1)
    session = _session(*USUAL)
    train_epoch(session.ensemble, session.state, session.data.train)
    session.evaluate("val", session.state.weights, torch.arange(len(session.ensemble)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, but on macOS in bytes
    return peak / MIB if sys.platform == "darwin" else peak / 1024


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


def _plain_epoch(session: Session, loop: str) -> Callable[[], None]:
    """An epoch of the usual loop for a single model: idiomatic or lean."""
    config, observations = session.points[0], session.data.train.observations[0]
    size = config.training.batch_size
    model = PlainVAE(config.data.dim, config.model.hidden_factor * config.data.dim, config.model.gamma)
    loader = DataLoader(TensorDataset(observations), batch_size=size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters())

    def epoch() -> None:
        lean = (observations[rows] for rows in torch.split(torch.randperm(len(observations)), size))
        for x in lean if loop == "lean" else (x for (x,) in loader):
            optimizer.zero_grad()
            model(x).backward()
            optimizer.step()

    return epoch


TRIALS, MEMBERS, EPOCHS, OBSERVATIONS = 4, 20, 10, 20_000
PARTS = {  # of the wall time, in the order in which they happen
    "set-up": "until the first training step: imports, Ray, tracked run, first worker",
    "training": "in the workers",
    "validation": "in the workers",
    "checkpoints": "in the workers: their number times one saved alone",
    "last trial": "evaluated, written and tracked after all have ended",
    "tracking": "of the winners, the study's end and its files",
    "reports": "tables, figures and model files",
    "other": "the rest: Ray between reports and at its end, its copies of checkpoints",
    "wall": "from the call to its end",
}
TIMED = {
    "run_study": study,
    "on_trial_result": Recorder,
    "close": Recorder,
    **dict.fromkeys(("progress", "finish_trial", "log_model", "finish"), MLflowTracker),
}


def measure_study() -> dict[str, float]:
    """Seconds of each of :data:`PARTS`, and of tracking ``beside`` the workers."""
    with tempfile.TemporaryDirectory() as folder, _timed() as calls:
        config = study_config(
            {
                "output_dir": folder,
                "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
                "data": {"n_obs": OBSERVATIONS},
                "members": {"seed": list(range(1, MEMBERS + 1))},
                "training": {"max_epochs": EPOCHS},
                "search": {"model": {"gamma": {"type": "float", "low": 3.0, "high": 1000.0, "log": True}}},
                "budget": {"trials": TRIALS},
                "cluster": {"cpus": 1},  # one trial after the other: their times add up
            }
        )
        session = Session.start([base_of(config)], torch.device("cpu"))
        start = time.perf_counter()
        session.save(Path(folder) / "state.pt")
        save = time.perf_counter() - start
        start = time.perf_counter()
        tune(config)
        end = time.perf_counter()
    spent = {name: sum(ended - started for started, ended, *_ in calls[name]) for name in TIMED}
    reported, _, recorder, result = calls["on_trial_result"][0]
    seconds = {
        "set-up": reported - start - result["train_seconds"] - result["validate_seconds"] - save,
        "training": recorder.total("train_seconds"),
        "validation": recorder.total("validate_seconds"),
        "checkpoints": save * len(calls["on_trial_result"]),
        "last trial": spent["close"],
        "tracking": spent["log_model"] + spent["finish"],
    }
    seconds["reports"] = end - calls["run_study"][0][1] - seconds["tracking"]
    seconds["other"] = end - start - sum(seconds.values())
    beside = spent["progress"] + spent["finish_trial"]
    return {**seconds, "wall": end - start, "beside": beside, "one checkpoint": save}


def study_table(seconds: dict[str, float]) -> str:
    """A line per part, with its share of the wall time."""
    size = f"{TRIALS} trials of {MEMBERS} members, {EPOCHS} epochs of {OBSERVATIONS:,} observations"
    lines = [
        f"{seconds[part]:8.2f} s {100 * seconds[part] / seconds['wall']:4.0f} %  {part}: {content}"
        for part, content in PARTS.items()
    ]
    beside = f"The driver's second thread tracked trials for {seconds['beside']:.1f} s."
    return "\n".join([f"One study: {size}", *lines, beside])


@contextmanager
def _timed() -> Iterator[dict[str, list[tuple[Any, ...]]]]:
    """Record start, end, first argument and ``result`` of the calls of :data:`TIMED` within the block."""
    calls: dict[str, list[tuple[Any, ...]]] = {name: [] for name in TIMED}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                calls[name].append((start, time.perf_counter(), arguments[0], keywords.get("result")))

        return call

    with ExitStack() as stack:
        for name, owner in TIMED.items():
            stack.enter_context(mock.patch.object(owner, name, timed(name, getattr(owner, name))))
        yield calls
