"""From a configuration to trained, evaluated, tracked and saved members: what a trial and a solo run have in common.

A :class:`Session` is an ensemble in its world, which trains, scores itself and is saved and restored whole.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from imavae.config.mapping import to_mapping
from imavae.config.settings import WORST_SCORE, EncodeConfig, EvaluateConfig, Members, Objective, RunConfig
from imavae.config.variants import SpritesMixing, load_plugins
from imavae.data import dataset
from imavae.data.cache import Cache
from imavae.data.cache import Progress as Rendering
from imavae.errors import UserError, require, resumable
from imavae.metrics.evaluate import evaluate, shortened
from imavae.metrics.figure_data import ImagePanels, PosteriorShapes, image_panels, posterior_shapes
from imavae.metrics.glossary import FINAL, PROBES, Stage, absent, worst
from imavae.model.export import Model
from imavae.model.vae import GAMMA, torch_dtype
from imavae.runs.folder import create, reopen
from imavae.runs.ledger import COLUMNS, Ledger, best_member, chosen_by, tracker_of
from imavae.tracking.base import Row, TrialRecord, Value, member_name
from imavae.tracking.server import fetch_model
from imavae.training import checkpoint
from imavae.training.ensemble import Ensemble, State, ensemble, from_plain, initial_state, to_plain
from imavae.training.loop import Progress, freeze, train

_Parts = tuple[RunConfig, dict[str, torch.Tensor], dict[str, Any], dataset.Scaling | None]  # of a model


def resolve_device(name: str) -> torch.device:
    """The device that ``training.device`` asks for; auto takes cuda where there is one. Raises UserError if cuda is
    asked for and not there.
    """
    if name == "cuda":
        require(torch.cuda.is_available(), "training.device is there", name, "say training.device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def cache_of(output_dir: str | Path, progress: Rendering | None = None) -> Cache:
    """Where the images of an output folder lie; ``progress`` is told while some are rendered."""
    return Cache(Path(output_dir).resolve() / "cache", progress)


@dataclass
class Session:
    """An ensemble of one or several points (which share all but gamma, learning rate and seeds) in its world."""

    points: list[RunConfig]
    ensemble: Ensemble
    state: State
    cache: Cache  # where its images lie, if its observations are images
    stopped: set[int] = field(default_factory=set)  # points that a study's scheduler has stopped

    @classmethod
    def start(cls, points: list[RunConfig], device: torch.device, cache: Cache | None = None) -> Session:
        """A session whose members stand at their random starts. Images are in ``cache``; by default in that of the
        points' own output.
        """
        members = ensemble(points, device)
        return cls(points, members, initial_state(members), cache or cache_of(points[0].output_dir))

    @classmethod
    def load(cls, path: Path, device: torch.device, cache: Cache | None = None) -> Session:
        """The session that :meth:`save` wrote; it goes on to the same numbers. Raises UserError for a bad file."""
        content = checkpoint.load(path)
        if content["kind"] != "ensemble":
            raise UserError(
                f"`checkpoint holds an ensemble` must hold, but got a {content['kind']} in {path}; "
                "load it by imavae.load_model"
            )
        session = cls.start([checkpoint.stored_config(point, RunConfig) for point in content["points"]], device, cache)
        session.state = from_plain(content["state"], device)
        session.stopped = set(content.get("stopped", ()))
        return session

    @classmethod
    def resume(
        cls, path: Path, points: list[RunConfig], device: torch.device, cache: Cache | None = None
    ) -> Session | None:
        """The session that was saved last at ``path``, or before it where that file is damaged; None without any, or
        where it is of other points.
        """
        newest = checkpoint.SEAL.newest(path)
        if newest is None:
            return None
        session = cls.load(newest, device, cache)
        same = [_trains(point) for point in session.points] == [_trains(point) for point in points]
        return session if same else None

    @functools.cached_property
    def data(self) -> dataset.Dataset:
        """Its world; made when it is first asked for, since curves and best states need none."""
        points, members = self.points, self.ensemble
        return dataset.make(points[0].data, members.worlds, members.dtype, members.device, self.cache)

    def save(self, path: Path, keep: bool = False) -> None:
        """Write all that is needed to go on, and both best states of every member; see :func:`checkpoint.save`."""
        points = [to_mapping(point) for point in self.points]
        content = {"points": points, "state": to_plain(self.state), "stopped": sorted(self.stopped)}
        checkpoint.save(path, "ensemble", content, keep)

    def train(self) -> Iterator[Progress]:
        """Train until every member has stopped; yields after each epoch."""

        def validate(weights: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            return self.evaluate("val", weights, rows)

        return train(self.ensemble, self.state, self.data.train, self.points[0].training, validate)

    def evaluate(
        self, split: str, weights: torch.Tensor, rows: torch.Tensor, stage: Stage = "validation"
    ) -> dict[str, torch.Tensor]:
        """``SPLIT/METRIC``, each (member,), of the members in ``rows``, (member,), at the given weights, (member,
        parameter); the later the stage, the more.
        """
        points = getattr(self.data, split)
        if split == "val":
            points = shortened(points, self.points[0].data.observed)
        values = evaluate(self.ensemble, weights, rows, points, stage)
        return {f"{split}/{name}": value for name, value in values.items()}

    @property
    def criteria(self) -> tuple[str, ...]:
        """What members have a best state by: the first of them chooses among members, too."""
        return tuple(self.state.best)

    def members_of(self, point: int) -> list[int]:
        """Rows of one point's members."""
        return [row for row, member in enumerate(self.ensemble.members) if member.point == point]

    def alive(self, point: int) -> list[int]:
        """Rows of one point's members that are still training."""
        return [row for row in self.state.active.tolist() if self.ensemble.members[row].point == point]

    def stop(self, point: int) -> None:
        """Freeze those of a point's members that are still training: a study's scheduler has stopped the point."""
        self.stopped.add(point)
        mine = [self.ensemble.members[row].point == point for row in self.state.active.tolist()]
        freeze(self.state, torch.tensor(mine, dtype=torch.bool), "stopped")

    def scores(self, objectives: Sequence[Objective]) -> list[list[float]]:
        """Each point's scores: the aggregate, over its members, of each objective at each member's best state so far.

        Best is by the first objective: a point's scores are those of one set of models. A diverged member has the
        worst.
        """
        signs = [1 if objective.mode == "max" else -1 for objective in objectives]
        best = np.full((len(objectives), len(self.ensemble)), -np.inf)  # the larger the better
        for validation in self.state.history:
            rows = validation.rows.cpu().numpy()
            values = [sign * validation.values[o.metric].numpy() for sign, o in zip(signs, objectives, strict=True)]
            better = values[0] > best[0, rows]
            best[:, rows[better]] = np.stack(values)[:, better]
        floors = [
            worst(objective.metric.removeprefix("val/")) if sign > 0 else -WORST_SCORE
            for sign, objective in zip(signs, objectives, strict=True)
        ]
        floor = np.array(floors, dtype=np.float64)[:, None]
        diverged = np.array([status == "diverged" for status in self.state.status])
        counted = np.where(diverged | ~np.isfinite(best), floor, np.maximum(best, floor)) * np.array(signs)[:, None]
        return [
            [float(getattr(np, o.aggregate)(row[members])) for o, row in zip(objectives, counted, strict=True)]
            for members in map(self.members_of, range(len(self.points)))
        ]

    def axes(self, row: int) -> dict[str, Value]:
        """What tells a member from the others of its point: its seed, and its world's where there are several."""
        member = self.ensemble.members[row]
        worlds: dict[str, Value] = {"data.seed": member.world} if len(self.ensemble.worlds) > 1 else {}
        return {"seed": member.seed, **worlds}

    def history_rows(self, point: int, trial: int) -> list[dict[str, Value]]:
        """A row per member and validation of one point."""
        mine = set(self.members_of(point))
        return [
            {"trial": trial, **self.axes(row), "epoch": validation.epoch}
            | {name: float(value[i]) for name, value in validation.values.items()}
            for validation in self.state.history
            for i, row in enumerate(validation.rows.tolist())
            if row in mine
        ]

    def member_rows(self, point: int, trial: int) -> list[dict[str, Value]]:
        """A row per member of one point, as ``members.csv`` has it.

        The validation values are those of the history. What is evaluated here, once, is the test split, the probes, and
        the agreement between the members' best states: in the history it is that of states of one epoch.
        """
        rows = torch.tensor(self.members_of(point), device=self.ensemble.device)
        stage: Stage = "probes" if self.points[point].training.probes else "final"
        final = {}
        for name in self.criteria:
            weights = self.state.best[name].weights[rows]
            val = self.evaluate("val", weights, rows, stage)
            final[name] = {k: v for k, v in val.items() if k.removeprefix("val/") in ("agreement", *FINAL, *PROBES)}
            final[name] |= self.evaluate("test", weights, rows, stage)
        table = []
        for i, row in enumerate(rows.tolist()):
            status = self.state.status[row]
            gamma = self._gamma(row)
            entry: dict[str, Value] = {"trial": trial, **self.axes(row), "gamma": gamma, "gamma_sq": gamma**2}
            entry["status"] = "stopped" if status == "running" else status
            entry["epochs"] = int(self.state.epochs[row])
            entry |= {COLUMNS[name]: self._best_value(name, row) for name in sorted(self.criteria, reverse=True)}
            for name in sorted(self.criteria, reverse=True):
                column = COLUMNS[name]
                best = self._at_epoch(row, int(self.state.best[name].epoch[row]))
                trained = bool(best)  # a member that diverged before its first validation has no best state
                best |= {k: float(v[i]) if trained else math.nan for k, v in final[name].items()}
                entry |= {f"{metric} at {column}": value for metric, value in best.items()}
            table.append(entry)
        return table

    def _gamma(self, row: int) -> float:
        """A member's gamma: the given one, or what it has become in the end."""
        if self.points[0].model.precision == "fixed":
            return self.ensemble.members[row].gamma
        return float(self.ensemble.model.layout.views(self.state.frozen[row : row + 1])[GAMMA].exp())

    def _best_value(self, name: str, row: int) -> float:
        best = self.state.best[name]
        return float(best.value[row]) if best.epoch[row] >= 0 else math.nan

    def _at_epoch(self, row: int, epoch: int) -> dict[str, float]:
        for validation in self.state.history:
            if validation.epoch == epoch:
                i = validation.rows.tolist().index(row)
                return {name: float(value[i]) for name, value in validation.values.items()}
        return {}

    def record(self, point: int, trial: int, values: Row, objectives: Sequence[Objective]) -> TrialRecord:
        """All that is known of one point at the end of its training."""
        partial = self.partial_record(point, trial, values, objectives)
        stopped = point in self.stopped or len(self.alive(point)) > 0
        status: Literal["finished", "stopped"] = "stopped" if stopped else "finished"
        return dataclasses.replace(partial, status=status, members=self.member_rows(point, trial))

    def portrait(self) -> tuple[list[str], PosteriorShapes]:
        """The members' names, and what they make of the validation split at their best states (first criterion)."""
        rows = torch.arange(len(self.ensemble), device=self.ensemble.device)
        names = [member_name(self.axes(row)) for row in rows.tolist()]
        weights = self.state.best[self.criteria[0]].weights
        return [f"seed {name}" for name in names], posterior_shapes(self.ensemble, weights, rows, self.data.val)

    def gallery(self, best: int, flat: torch.Tensor | None = None) -> ImagePanels:
        """Images of the validation split under the members, and traversals of the ``best``-th one's latents; at the
        weights ``flat``, (member, parameter), by default their best states (first criterion). Only where observations
        are images.
        """
        rows = torch.arange(len(self.ensemble), device=self.ensemble.device)
        weights = self.state.best[self.criteria[0]].weights if flat is None else flat
        return image_panels(self.ensemble, weights, rows, self.data.val, best)

    def partial_record(self, point: int, trial: int, values: Row, objectives: Sequence[Objective]) -> TrialRecord:
        """What is known of one point while it trains: no members yet."""
        rows, (score, *others) = self.history_rows(point, trial), self.scores(objectives)[point]
        further = {o.metric: value for o, value in zip(objectives[1:], others, strict=True)}
        return TrialRecord(trial, values, "stopped", score, rows, [], further)

    def best(self, row: int, criterion: str, about: dict[str, Any]) -> Model:
        """One member, at its best state by ``criterion``, as a plain module; ``about`` is plain provenance."""
        return Model(*self._best(row, criterion, about)).eval()

    def save_best(self, path: Path, row: int, criterion: str, about: dict[str, Any]) -> None:
        """Write it as a model file."""
        checkpoint.save_member(path, *self._best(row, criterion, about))

    def _best(self, row: int, criterion: str, about: dict[str, Any]) -> _Parts:
        member = self.ensemble.members[row]
        config = self.points[member.point]
        config = dataclasses.replace(
            config,
            members=Members(seed=(member.seed,)),
            data=dataclasses.replace(config.data, seed=member.world),
        )
        weights = self.ensemble.model.layout.views(self.state.best[criterion].weights[row : row + 1])
        weights = {name: weight[0] for name, weight in weights.items()}
        scaling = self.data.scalings[self.ensemble.worlds.index(member.world)] if self.data.scalings else None
        return config, weights, {**self.axes(row), "chosen by": criterion, **about}, scaling


def render(config: RunConfig, rendering: Rendering | None) -> None:
    """Put the images of a point's worlds into the cache; ``rendering`` is told of those that are not there yet."""
    if isinstance(config.data.mixing, SpritesMixing):
        worlds = config.members.data.seed or (config.data.seed,)
        dataset.make(config.data, worlds, torch_dtype(config), "cpu", cache_of(config.output_dir, rendering))


def _trains(point: RunConfig) -> tuple[object, ...]:
    """What decides a point's numbers; where it runs does not."""
    training = dataclasses.replace(point.training, threads=1, device="auto")
    return point.data, point.model, training, point.members


def run_point(
    config: RunConfig, notify: Callable[[Session, Progress], None], rendering: Rendering | None = None
) -> tuple[Ledger, Session]:
    """Train one point's members here, without Ray; ``notify`` is told of each epoch, and ``rendering`` of images that
    are not in the cache. The folder has a checkpoint after each validation, the tables and the champion; the tracker
    has the run with one trial.

    Raises:
        UserError: a mistake in the configuration, or nothing can be resumed.
        Interrupted: the run can be resumed from its last validation.
    """
    device = resolve_device(config.training.device)
    torch.set_num_threads(config.training.threads)
    home = reopen(config, "runs", "train") if config.resume else None
    tracker = tracker_of(config, "train")
    render(config, rendering)  # before the folder is made: there may be no room for it
    home = home or create(config, "runs", config.name or "train")
    with resumable(home.path.name):
        state, cache = home.path / "checkpoint.pt", cache_of(config.output_dir)
        session = Session.resume(state, [config], device, cache) or Session.start([config], device, cache)
        objective = Objective() if config.data.has_sources else Objective(metric="val/neg_elbo", mode="min")
        ledger = Ledger.start(config, home, tracker, objective)
        try:
            for progress in session.train():
                if progress.validated:
                    session.save(state, keep=True)
                    ledger.tracker.progress(session.partial_record(0, 0, {}, [ledger.objective]))
                notify(session, progress)
        except BaseException:
            ledger.tracker.finish("stopped", {}, [])  # else the page would show it as running for ever
            ledger.close(finished=False)
            raise
        if not ledger.has(0):
            session.save(state, keep=True)
            ledger.add(session.record(0, 0, {}, [ledger.objective]), state, 0)
        ledger.write_tables()
        crown(ledger)
        return ledger, session


def evaluate_checkpoint(
    config: EvaluateConfig, rendering: Rendering | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Every metric of a stored model, or of each member of a stored ensemble at its best state, on one split;
    ``rendering`` is told of images that are not in the cache.

    Returns:
        A row per member, with its axes and the gamma of its point; and the metrics that can't be had, with the reason.

    Raises:
        UserError: a bad checkpoint.
    """
    load_plugins(config.plugins)
    path = locate(config.checkpoint, config)
    cache = cache_of(config.output_dir, rendering)
    if checkpoint.load(path)["kind"] == "model":
        session, flat = model_session(path, cache)
    else:
        session = Session.load(path, torch.device("cpu"), cache)
        require(
            config.select is None or config.select in session.criteria,
            f"select is one of the best states' criteria, {', '.join(session.criteria)}",
            f"{config.select} without sources",
            "leave select at null",
        )
        flat = session.state.best[config.select or session.criteria[0]].weights
    values = session.evaluate(config.split, flat, torch.arange(len(flat)), "probes")
    axes = [{**session.axes(row), "gamma": member.gamma} for row, member in enumerate(session.ensemble.members)]
    frame = pd.concat([pd.DataFrame(axes), pd.DataFrame({k: v.numpy() for k, v in values.items()})], axis=1)
    return frame, absent(session.ensemble.config, getattr(session.data, config.split).truth is not None, "probes")


def model_session(path: Path, cache: Cache) -> tuple[Session, torch.Tensor]:
    """An ensemble of one in the world of a stored model, and that model's weights, (1, parameter), as its own are."""
    model = checkpoint.load_member(path)
    session = Session.start([model.config], torch.device("cpu"), cache)
    return session, torch.cat([weight.detach().flatten() for weight in model.weights.values()])[None]


def crown(ledger: Ledger, count: int = 5) -> None:
    """Store the best member of each of the ``count`` best trials as a model; the first of them is the champion."""
    for place, record in enumerate(ledger.ranked()[:count]):
        row = best_member(record)
        if row is None:
            continue
        path, point = ledger.checkpoints[record.number]
        criterion = chosen_by(row)
        model = ledger.folder / ("champion.pt" if place == 0 else f"checkpoints/winner-{place + 1}.pt")
        about = {"trial": record.number, "score": record.score, "folder": ledger.folder.name}
        session = Session.load(path, torch.device("cpu"), cache_of(ledger.folder.parent.parent))
        member = session.members_of(point)[record.members.index(row)]
        session.save_best(model, member, criterion, about)
        suffix = f" at {COLUMNS[criterion]}"
        metrics = {k.removesuffix(suffix): float(v) for k, v in row.items() if k.endswith(suffix)}
        address = ledger.tracker.log_model(model, record.number, member_name(row), metrics, champion=place == 0)
        if place == 0:
            ledger.champion = address


def load_model(address: str | Path, output_dir: str = "outputs") -> Model:
    """The model behind a file's path, a run's or study's folder (its champion), or an MLflow address.

    Args:
        address: ``outputs/studies/NAME``, ``….pt``, ``models:/NAME@champion`` or ``runs:/ID``.
        output_dir: where the tracking database lies, unless MLFLOW_TRACKING_URI says otherwise.

    Returns:
        A plain ``nn.Module`` with ``encode`` and ``decode`` for rows of observations.

    Raises:
        UserError: there is no such model, or its file is damaged or of another format version.
    """
    return checkpoint.load_member(locate(str(address), EvaluateConfig(checkpoint=str(address), output_dir=output_dir)))


def locate(address: str, config: EvaluateConfig | EncodeConfig) -> Path:
    """The local file of a checkpoint's address."""
    if address.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
        return fetch_model(address, config.tracking, Path(config.output_dir))
    path = Path(address)
    return path / "champion.pt" if path.is_dir() else path
