"""How fast an ensemble trains, against two loops for one model: all on one core, in one run.

Everything of training counts (streams, gathers, optimizer), but no validation. The data are 60,000 observations, of
which 42,000 train in batches of 64; a hidden layer has 10 units per dimension. The idiomatic loop has a DataLoader, the
lean one indexes with one permutation per epoch; both train the same module with the same optimizer.

GFLOP/s counts the arithmetic of the linear maps alone, 2 in out per observation and product: forward, by weights, and
by inputs; the encoder's first map needs no product by its inputs. Activations, loss, noise and Adam are left out.
MiB per member is computed from sizes: the member's rows of the state, and its order of the observations in an epoch.
"""

from __future__ import annotations

import functools
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

from imavae.bench.study import measure_study, study_table
from imavae.config.settings import run_config
from imavae.errors import UserError, require
from imavae.runs.session import Session
from imavae.search.cluster import available_cpus
from imavae.training.ensemble import train_epoch

ENSEMBLES = (  # members, dimensions, linear maps
    *((members, 3, 2) for members in (1, 8, 20, 60, 120, 240, 480)),
    *((120, dim, 2) for dim in (2, 5, 10)),
    *((120, 3, maps) for maps in (3, 4)),
)
USUAL = (120, 3, 2)  # what validation and memory are measured of
GAMMAS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # of a pack, which is set beside an ensemble for each of them
SEEDS = 20  # of each gamma of the pack
KEY = ("loop", "members", "dim", "maps")  # what tells one row from another
MATRIX = 2048
MIB = 2**20
COLUMNS = (*KEY, "member-\nsteps/s", "ms/step", "x\nidiomatic", "x\nlean", "GFLOP/s", "MiB per\nmember")

Row = dict[str, Any]
Batches = Callable[[], Iterable[Tensor]]  # of one epoch


def main(output: Path, old: Path | None = None) -> None:
    """Print the tables, and write their numbers to ``output``; compare them with those of an earlier file.

    Raises:
        UserError: ``old`` holds no numbers of an earlier run.
    """
    before = None if old is None else read_rows(old)
    torch.set_num_threads(1)
    console = Console()
    peak = _peak_in_a_process()  # first: a process starts with the peak of the one that started it
    rows, validation = _training()
    matrix = _matrix_rate()
    console.print(training_table(rows))
    console.print(f"one product of two {MATRIX} x {MATRIX} float32 matrices: {matrix:.0f} GFLOP/s", highlight=False)
    console.print(_validation_line(validation), highlight=False)
    console.print(
        f"peak of a process, one epoch and a validation of {USUAL[0]} members: {peak:,.0f} MiB", highlight=False
    )
    if before is not None:
        console.print(comparison_table(before, rows))
    study = measure_study()
    console.print(study_table(study))
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
        UserError: the file is missing, or something else.
    """
    remedy = "name a bench.json that `make bench` wrote, copied aside before this run"
    try:
        rows = json.loads(path.read_text())["training"]
        numbers = [float(row["member_steps_per_s"]) for row in rows if [row[name] for name in KEY]]
    except OSError as error:
        raise UserError(f"`compare is a file` must hold, but got {path} ({error.strerror}); {remedy}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"`compare holds the numbers of a bench` must hold, but got {path}; {remedy}") from None
    require(all(number > 0 for number in numbers), "compare holds rates above 0", path, remedy)
    return list(rows)


def training_table(rows: list[Row]) -> Table:
    """A row per loop and size."""
    table = _table("Training on one core", COLUMNS)
    table.caption = (
        "The best of 3 epochs, of 2 from 240 members up.\n"
        "GFLOP/s: of the linear maps alone. MiB: of a member's rows of the state and its order of an epoch.\n"
        f"{_pack_line(rows)}"
    )
    for row in rows:
        rate = row["member_steps_per_s"]
        ratios = [_shown(row.get(name), "{:.1f}") for name in ("over_idiomatic", "over_lean")]
        memory = _shown(row.get("mib_per_member"), "{:.2f}")
        speed = (f"{rate:,.0f}", f"{1e3 * row['members'] / rate:.2f}", *ratios, f"{row['gflop_per_s']:.1f}")
        table.add_row(*_name(row), *speed, memory)
    return table


def _pack_line(rows: list[Row]) -> str:
    rates = {
        (row["loop"], row["members"]): row["member_steps_per_s"]
        for row in rows
        if (row["dim"], row["maps"]) == USUAL[1:]
    }
    share = rates["ensemble", SEEDS] / rates["pack", len(GAMMAS) * SEEDS]
    alone = f"{len(GAMMAS)} ensembles of {SEEDS}"
    return f"The pack is of {len(GAMMAS)} gammas x {SEEDS} seeds: {share:.2f} of what {alone} take."


def comparison_table(old: list[Row], new: list[Row]) -> Table:
    """Old and new member-steps/s of each row, and the change; a row that the old file lacks has a new rate alone."""
    table = _table("Against the earlier run", (*KEY, "old", "new", "change in %"))
    table.caption = "member-steps/s"
    rates = {_name(row): row["member_steps_per_s"] for row in old}
    for row in new:
        before, now = rates.get(_name(row)), row["member_steps_per_s"]
        change = None if before is None else 100 * (now / before - 1)
        table.add_row(*_name(row), _shown(before, "{:,.0f}"), f"{now:,.0f}", _shown(change, "{:+.1f}"))
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)  # so that all columns fit into 80 characters
    for column in columns:
        table.add_column(column, justify="left" if column == "loop" else "right")
    return table


def _name(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _validation_line(validation: dict[str, float]) -> str:
    return (
        f"one validation of {USUAL[0]} members: {validation['seconds']:.2f} s, after {validation['every']:.0f} epochs "
        f"of {validation['epoch_seconds']:.2f} s each: {100 * validation['share']:.0f} % of them"
    )


def _training() -> tuple[list[Row], dict[str, float]]:
    """A row per loop and size; and what a validation takes, against the epochs between two of them."""
    alone = _session(1, 3, 2)
    rows: list[Row] = []
    for loop, batches in (("idiomatic", _loader), ("lean", _indexed)):
        seconds = _best(_plain_epoch(alone, batches), 3)
        rows.append(_row((loop, 1, 3, 2), seconds, alone))
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
            validation = _validation(session, seconds)
    return rows, validation


def _session(seeds: int, dim: int, maps: int, gammas: Sequence[float] = (100.0,)) -> Session:
    mapping = {"members": {"seed": list(range(seeds))}, "data": {"dim": dim}}
    points = [run_config(mapping | {"model": {"n_layers": maps, "gamma": gamma}}) for gamma in gammas]
    return Session.start(points, torch.device("cpu"))


def _row(key: tuple[str, int, int, int], seconds: float, session: Session) -> Row:
    """The rates of one epoch of so many seconds."""
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


def _validation(session: Session, epoch_seconds: float) -> dict[str, float]:
    """Seconds of a validation of all members, and its ratio to the training between two validations."""
    rows, every = torch.arange(len(session.ensemble)), session.points[0].training.validate_every
    seconds = _best(lambda: session.evaluate("val", session.state.weights, rows), 2)
    share = seconds / (every * epoch_seconds)
    return {"seconds": seconds, "epoch_seconds": epoch_seconds, "every": every, "share": share}


def _matrix_rate() -> float:
    """GFLOP/s of a product of two large matrices: what this machine's one core gives at most."""
    a, b = torch.randn(2, MATRIX, MATRIX)
    return 2 * MATRIX**3 / _best(lambda: a @ b, 3) / 1e9


def _peak_in_a_process() -> float:
    """MiB that a fresh process takes at its peak for :func:`print_peak`."""
    command = [sys.executable, "-c", "from imavae.bench.trainer import print_peak; print_peak()"]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def print_peak() -> None:
    """Train one epoch and validate, then print this process's peak resident memory in MiB."""
    torch.set_num_threads(1)
    session = _session(*USUAL)
    train_epoch(session.ensemble, session.state, session.data.train)
    session.evaluate("val", session.state.weights, torch.arange(len(session.ensemble)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, but on macOS in bytes
    print(peak / MIB if sys.platform == "darwin" else peak / 1024)


class PlainVAE(nn.Module):
    """The same model as one would write it alone: nn.Linear layers, batches first."""

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


def _loader(observations: Tensor, size: int) -> Batches:
    loader = DataLoader(TensorDataset(observations), batch_size=size, shuffle=True)
    return lambda: (x for (x,) in loader)


def _indexed(observations: Tensor, size: int) -> Batches:
    return lambda: (observations[rows] for rows in torch.split(torch.randperm(len(observations)), size))


def _plain_epoch(session: Session, batches_of: Callable[[Tensor, int], Batches]) -> Callable[[], None]:
    """An epoch of a loop that one would write for a single model."""
    config = session.points[0]
    model = PlainVAE(config.data.dim, config.model.hidden_factor * config.data.dim, config.model.gamma)
    batches = batches_of(session.data.train.observations[0], config.training.batch_size)
    optimizer = torch.optim.Adam(model.parameters())

    def epoch() -> None:
        for x in batches():
            optimizer.zero_grad()
            loss = model(x)
            loss.backward()
            optimizer.step()

    return epoch


def _best(action: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of so many calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
