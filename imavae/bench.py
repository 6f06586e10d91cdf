"""How fast an ensemble trains, against the idiomatic loop for one model: both on one core, in one run.

Everything of training counts (streams, gathers, optimizer), but no validation. The model is the paper's: d = 3, two
linear maps around 30 hidden units, batches of 64 from 42,000 observations.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

from imavae.config import RunConfig, run_config
from imavae.run import Session
from imavae.training.ensemble import train_epoch

MEMBERS = (1, 8, 20, 60, 120, 240)
REPEATS = 3  # epochs of which the best counts


def main(output: Path) -> None:
    """Print the table, and write its numbers to ``output``."""
    torch.set_num_threads(1)
    console = Console()
    config = run_config({})
    steps = math.ceil(config.data.sizes[0] / config.training.batch_size)
    idiomatic = steps / _best(_idiomatic_epochs(config))
    rows: list[dict[str, Any]] = [{"loop": "idiomatic", "members": 1, "member_steps_per_s": idiomatic, "ratio": 1.0}]
    for members in MEMBERS:
        rate = members * steps / _best(_ensemble_epochs(members))
        rows.append({"loop": "ensemble", "members": members, "member_steps_per_s": rate, "ratio": rate / idiomatic})
    table = Table(title="Training on one core", caption="ratio: over the idiomatic loop; best of 3 epochs each")
    for column in ("loop", "members", "member-steps/s", "ms/step", "ratio"):
        table.add_column(column, justify="left" if column == "loop" else "right")
    for row in rows:
        rate, members = row["member_steps_per_s"], row["members"]
        table.add_row(row["loop"], str(members), f"{rate:,.0f}", f"{1e3 * members / rate:.2f}", f"{row['ratio']:.1f}")
    console.print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"training": rows}, indent=2) + "\n")
    console.print(f"written to {output}", soft_wrap=True)


def _best(epochs: list[float]) -> float:
    return min(epochs)


def _ensemble_epochs(members: int) -> list[float]:
    """Seconds of each epoch, after one to warm up."""
    config = run_config({"members": {"seed": list(range(members))}})
    session = Session.start([config], torch.device("cpu"))
    return [_timed(lambda: train_epoch(session.ensemble, session.state, session.data.train))
            for _ in range(REPEATS + 1)][1:]  # fmt: skip


class _PlainVAE(nn.Module):
    """The same model as one would write it alone: nn.Linear layers, batches first."""

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


def _idiomatic_epochs(config: RunConfig) -> list[float]:
    """Seconds of each epoch of the loop that one would write for a single model."""
    model = _PlainVAE(config.data.dim, config.model.hidden_factor * config.data.dim, config.model.gamma)
    observations = Session.start([config], torch.device("cpu")).data.train.observations[0]
    loader = DataLoader(TensorDataset(observations), batch_size=config.training.batch_size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters())

    def epoch() -> None:
        for (x,) in loader:
            optimizer.zero_grad()
            loss = model(x)
            loss.backward()
            optimizer.step()

    return [_timed(epoch) for _ in range(REPEATS + 1)][1:]


def _timed(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
