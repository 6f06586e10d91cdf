"""Training speed of an ensemble, against two loops for one model: all on one core, in one process.

All of training counts (streams, gathers, optimizer), but no validation. The data are 60,000 observations, of which
42,000 train in batches of 64; a hidden layer has 10 units per dimension. The idiomatic loop uses a DataLoader, the lean
one indexes with one permutation per epoch; both train the same module with the same optimizer.

GFLOP/s counts the arithmetic of the linear maps only, 2 in out per observation and product: forward, by weights, and
by inputs; the encoder's first map needs no product by its inputs. Activations, loss, noise and Adam are left out.
MiB per member is computed from sizes: the member's rows of the state, and its order of the observations in an epoch.
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

from imavae.bench.study import measure_study, study_table
from imavae.config.settings import run_config
from imavae.errors import require
from imavae.runs.session import Session
from imavae.search.cluster import available_cpus
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
COLUMNS = {  # and their formats
    "member_steps_per_s": "{:,.0f}",
    "ms/step": "{:.2f}",
    "over_idiomatic": "{:.1f}",
    "over_lean": "{:.1f}",
    "gflop_per_s": "{:.1f}",
    "mib_per_member": "{:.2f}",
}

Row = dict[str, Any]


def main(output: Path, old: Path | None = None) -> None:
    """Print the tables and write their numbers to ``output``; compare them with those of an earlier file.

    Raises:
        UserError: ``old`` holds no numbers of an earlier run.
    """
    before = None if old is None else read_rows(old)
    torch.set_num_threads(1)
    console = Console(highlight=False)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        peak = fresh.submit(_peak).result()  # first: a process starts with the peak of its parent
    rows, validation = _training()
    matrix = _matrix_rate()
    console.print(training_table(rows), soft_wrap=True)
    console.print(f"one product of two {MATRIX} x {MATRIX} float32 matrices: {matrix:.0f} GFLOP/s")
    console.print(
        f"one validation of {USUAL[0]} members: {validation['seconds']:.2f} s, after {validation['every']:.0f} epochs "
        f"of {validation['epoch_seconds']:.2f} s each: {100 * validation['share']:.0f} % of them"
    )
    console.print(f"peak of a process, one epoch and a validation of {USUAL[0]} members: {peak:,.0f} MiB")
    if before is not None:
        console.print(comparison_table(before, rows), soft_wrap=True)
    study = measure_study()
    console.print(study_table(study), soft_wrap=True)
    content = {
        "torch": torch.__version__,
        "cores": available_cpus(),
        "training": rows,
        "matrix_gflop_per_s": matrix,
        "validation": validation,
        "peak_mib": peak,
        "study": study,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(content, indent=2) + "\n")
    console.print(f"written to {output}", soft_wrap=True)


def read_rows(path: Path) -> list[Row]:
    """The training rows that an earlier run has written.

    Raises:
        UserError: the file is missing, or has different content.
    """
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
    usual = frame[(frame["dim"] == USUAL[1]) & (frame["maps"] == USUAL[2])].set_index(["loop", "members"])
    rates = usual["member_steps_per_s"]
    share = rates["ensemble", SEEDS] / rates["pack", len(GAMMAS) * SEEDS]
    return (
        f"Training on one core: the best of 3 epochs, of 2 from 240 members up\n{_text(frame, COLUMNS)}"
        "\nGFLOP/s: linear maps only. MiB: a member's rows of the state and its order of an epoch.\n"
        f"The pack of {len(GAMMAS)} gammas x {SEEDS} seeds takes {share:.2f} of the time of {len(GAMMAS)} ensembles of "
        f"{SEEDS}.\n"
    )


def comparison_table(old: list[Row], new: list[Row]) -> str:
    """Old and new member-steps/s of each row, and the change; a row that the old file lacks shows the new rate only."""
    rates = [pd.DataFrame(rows)[[*KEY, "member_steps_per_s"]] for rows in (old, new)]
    frame = rates[1].merge(rates[0], "left", [*KEY], suffixes=(" new", " old"))
    frame = frame.rename(columns={"member_steps_per_s new": "new", "member_steps_per_s old": "old"})
    frame["change in %"] = 100 * (frame["new"] / frame["old"] - 1)
    text = _text(frame, {"old": "{:,.0f}", "new": "{:,.0f}", "change in %": "{:+.1f}"})
    return f"member-steps/s against the earlier run\n{text}\n"


def _text(frame: pd.DataFrame, formats: dict[str, str]) -> str:
    shown = {name: frame[name].map(form.format, na_action="ignore").fillna("") for name, form in formats.items()}
    return frame.assign(**shown)[[*KEY, *formats]].to_string(index=False)


def _training() -> tuple[list[Row], dict[str, float]]:
    """A row per loop and size; and the seconds of a validation and of an epoch of the usual ensemble."""
    alone = _session(1, *USUAL[1:])
    plain = ("idiomatic", "lean")
    rows = [_row((loop, 1, *USUAL[1:]), _best(_plain_epoch(alone, loop), 3), alone) for loop in plain]
    idiomatic, lean = (row["member_steps_per_s"] for row in rows)
    validation: dict[str, float] = {}
    packed = ("pack", len(GAMMAS) * SEEDS, *USUAL[1:])
    for loop, members, dim, maps in (*(("ensemble", *size) for size in ENSEMBLES), packed):
        session = _session(members, dim, maps) if loop == "ensemble" else _session(SEEDS, dim, maps, GAMMAS)
        epoch = functools.partial(train_epoch, session.ensemble, session.state, session.data.train)
        seconds = _best(epoch, 2 if members >= 240 else 3)
        row = _row((loop, members, dim, maps), seconds, session)
        row["mib_per_member"] = _bytes_per_member(session) / MIB
        if (dim, maps) == USUAL[1:]:
            row["over_idiomatic"] = row["member_steps_per_s"] / idiomatic
            row["over_lean"] = row["member_steps_per_s"] / lean
        rows.append(row)
        if (loop, members, dim, maps) == ("ensemble", *USUAL):
            every, everyone = session.points[0].training.validate_every, torch.arange(members)
            validated = _best(functools.partial(session.evaluate, "val", session.state.weights, everyone), 2)
            validation = {"seconds": validated, "epoch_seconds": seconds, "every": every}
            validation["share"] = validated / (every * seconds)
    return rows, validation


def _session(seeds: int, dim: int, maps: int, gammas: Sequence[float] = (100.0,)) -> Session:
    mapping = {"members": {"seed": list(range(seeds))}, "data": {"dim": dim}}
    points = [run_config(mapping | {"model": {"n_layers": maps, "gamma": gamma}}) for gamma in gammas]
    return Session.start(points, torch.device("cpu"))


def _row(key: tuple[str, int, int, int], seconds: float, session: Session) -> Row:
    """Rates of an epoch that took so many seconds."""
    n, members = len(session.data.train), key[1]
    steps = math.ceil(n / session.points[0].training.batch_size)
    return {
        **dict(zip(KEY, key, strict=True)),
        "member_steps_per_s": members * steps / seconds,
        "gflop_per_s": members * n * _operations(session) / seconds / 1e9,
    }


def _operations(session: Session) -> int:
    """Floating-point operations of the linear maps for one observation: forward, by weights, and by inputs."""
    shapes = session.ensemble.model.layout.shapes
    sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items() if name.endswith(".weight")}
    return 3 * sum(sizes.values()) - sizes["encoder.0.weight"]


def _bytes_per_member(session: Session) -> int:
    state, best = session.state, session.state.best.values()
    tensors = (state.weights, state.first, state.second, state.frozen, *(kept.weights for kept in best))
    rows = sum(tensor.shape[1] * tensor.element_size() for tensor in tensors)
    orders = len(session.data.train) * torch.int32.itemsize * len({member.seed for member in session.ensemble.members})
    return rows + orders // len(session.ensemble)


def _matrix_rate() -> float:
    """GFLOP/s of a product of two large matrices: the most that one core of this machine gives."""
    a, b = torch.randn(2, MATRIX, MATRIX)
    return 2 * MATRIX**3 / _best(lambda: a @ b, 3) / 1e9


def _peak() -> float:
    """Train one epoch and validate; return this process's peak resident memory in MiB."""
    torch.set_num_threads(1)
    session = _session(*USUAL)
    train_epoch(session.ensemble, session.state, session.data.train)
    session.evaluate("val", session.state.weights, torch.arange(len(session.ensemble)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, but on macOS in bytes
    return peak / MIB if sys.platform == "darwin" else peak / 1024


class PlainVAE(nn.Module):
    """The same model written for itself: nn.Linear layers, batches first."""

    def __init__(self, dim: int, width: int, gamma: float) -> None:
        """Two linear maps in the encoder and in the decoder, with ``width`` units between them."""
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
    """An epoch of a loop that one would write for a single model: idiomatic or lean."""
    config = session.points[0]
    size, observations = config.training.batch_size, session.data.train.observations[0]
    model = PlainVAE(config.data.dim, config.model.hidden_factor * config.data.dim, config.model.gamma)
    loader = DataLoader(TensorDataset(observations), batch_size=size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters())

    def batches() -> Iterable[Tensor]:
        if loop == "idiomatic":
            return (x for (x,) in loader)
        return (observations[rows] for rows in torch.split(torch.randperm(len(observations)), size))

    def epoch() -> None:
        for x in batches():
            optimizer.zero_grad()
            loss = model(x)
            loss.backward()
            optimizer.step()

    return epoch


def _best(action: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of ``repeats`` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
