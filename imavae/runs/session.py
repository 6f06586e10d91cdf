"""A session: one ensemble with its data, trained, evaluated, scored, saved and restored."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from imavae.config.data import SpritesData
from imavae.config.mapping import flatten, to_mapping
from imavae.config.settings import WORST_SCORE, Objective, RunConfig, StudyConfig
from imavae.data import dataset
from imavae.data.images import Cache
from imavae.data.images import Progress as Rendering
from imavae.errors import require
from imavae.metrics import linear, regression, rendering
from imavae.metrics.evaluate import evaluate
from imavae.metrics.forward import shortened
from imavae.metrics.glossary import METRICS
from imavae.model import vae
from imavae.model.vae import torch_dtype
from imavae.tracking import Value
from imavae.training import checkpoint
from imavae.training.compiled import chosen
from imavae.training.ensemble import Ensemble, State, columns, ensemble, from_plain, initial_state, table, to_plain
from imavae.training.loop import Progress, freeze, train


def resolve_device(name: str) -> torch.device:
    """Return the device for ``training.device``; ``auto`` is cuda if available. Raises UserError for missing cuda."""
    if name == "cuda":
        require(torch.cuda.is_available(), "training.device is available", name, "set training.device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def training_step(config: RunConfig) -> tuple[str, str]:
    """Return the step that trains a run or study, compiled or autograd, and why; see :func:`compiled.chosen`."""
    if isinstance(config, StudyConfig):  # workers may have a GPU that this process has not
        device = torch.device("cuda" if config.cluster.gpus_per_trial else "cpu")
        step, reason = chosen(config, device)
        for node, name in (("model", "ima_weight"), ("training", "clip")):
            if step == "compiled" and name in config.search.get(node, {}):
                changed = dataclasses.replace(getattr(config, node), **{name: 1.0})
                chosen(dataclasses.replace(config, **{node: changed}), device)
                reason += f"; autograd where {node}.{name} > 0"
        return step, reason
    return chosen(config, resolve_device(config.training.device))


def initial_weights(config: RunConfig) -> dict[str, torch.Tensor]:
    """Weights that members start from, by name; empty without ``training.init``.

    Raises UserError for weights that are not those of such a model.
    """
    init = config.training.init
    if init is None:
        return {}
    content = checkpoint.load(Path(init))
    require(content["kind"] == "model", "training.init is of one model", init, "use the champion.pt beside it")
    weights: dict[str, torch.Tensor] = content["state_dict"]
    if {name: tuple(weight.shape) for name, weight in weights.items()} != vae.build(config).layout.shapes:
        there, here = (
            flatten({name: of[name] for name in ("data", "model")}) for of in (content["config"], to_mapping(config))
        )
        shaping = [key for key in there if key in SHAPING and there[key] != here.get(key)]
        got = ", ".join(f"{key}={there[key]} there and {here.get(key)} here" for key in shaping) or "others"
        remedy = f"set {' '.join(f'{key}={there[key]}' for key in shaping)}" if shaping else "train one of this kind"
        require(False, "training.init has the weights of this architecture", f"{got} ({init})", remedy)
    return weights


def cache_of(output_dir: str | Path, progress: Rendering | None = None) -> Cache:
    """Return the cache of an output folder; ``progress`` is called while images are written into it."""
    return Cache(Path(output_dir).resolve() / "cache", progress)


def render(config: RunConfig, rendering: Rendering | None) -> None:
    """Put the images of a point's worlds into the cache; ``rendering`` is called while some are written."""
    if config.data.has_images:
        worlds = config.members.data.seed or (config.data.seed,)
        dataset.make(config.data, worlds, torch_dtype(config), "cpu", cache_of(config.output_dir, rendering))


SHAPING = (  # settings that decide the shapes of weights, besides the number of observed columns
    "data.dim",
    "data.n_segments",
    "model.dim",
    "model.name",
    "model.decoder",
    "model.posterior",
    "model.n_layers",
    "model.hidden_factor",
    "model.couplings",
    "model.encoder.n_layers",
    "model.encoder.hidden_factor",
    "model.prior.name",
    "model.prior.parameters",
)
TRAIN_CURVES = ("neg_elbo", "mcc")  # metrics that validations compute on the training split, too
# Metrics at the best states by each criterion: criterion -> SPLIT/METRIC -> (member,)
Finals = dict[str, dict[str, torch.Tensor]]


@dataclass
class Session:
    """An ensemble of one or several points, which share all settings but gamma, learning rate and seeds."""

    points: list[RunConfig]
    ensemble: Ensemble
    state: State
    cache: Cache  # of its images, if its observations are images, and of its worlds' linear maps
    stopped: set[int] = field(default_factory=set)  # points that the study's scheduler has stopped
    finals: dict[int, Finals] = field(default_factory=dict)  # what a worker has evaluated of points that have ended
    seconds: float = 0.0  # of training and validation so far

    @classmethod
    def start(cls, points: list[RunConfig], device: torch.device, cache: Cache | None = None) -> Session:
        """Initialise the members. The default ``cache`` is that of the points' output folder.

        Raises UserError for weights of ``training.init`` that are not those of such a model.
        """
        session = cls._new(points, device, cache)
        if weights := initial_weights(points[0]):
            session.state = initial_state(session.ensemble, weights)
        return session

    @classmethod
    def _new(cls, points: list[RunConfig], device: torch.device, cache: Cache | None = None) -> Session:
        members = ensemble(points, device)
        return cls(points, members, initial_state(members), cache or cache_of(points[0].output_dir))

    @classmethod
    def load(cls, path: Path, device: torch.device, cache: Cache | None = None, recorded: str | None = None) -> Session:
        """Load the session that :meth:`save` wrote, to continue to the same numbers.

        Raises UserError for a bad file, or one whose digest is not the ``recorded`` one.
        """
        content = checkpoint.load(path, recorded)
        with checkpoint.fitting(path):
            rule, remedy = "checkpoint holds an ensemble", "load it by imavae.load_model"
            require(content["kind"] == "ensemble", rule, f"a {content['kind']} in {path}", remedy)
            points = [checkpoint.stored_config(point, RunConfig) for point in content["points"]]
            session = cls._new(points, device, cache)
            session.state = from_plain(content["state"], session.state, device)
            session.stopped = set(content["stopped"])
            session.finals = {
                point: {criterion: columns(values) for criterion, values in finals.items()}
                for point, finals in content["finals"].items()
            }
            session.seconds = content["seconds"]
        return session

    @classmethod
    def resume(
        cls, path: Path, points: list[RunConfig], device: torch.device, cache: Cache | None = None
    ) -> Session | None:
        """Load the newest good session at ``path``, the file or its backup; None without any or for other points."""
        newest = checkpoint.SEAL.newest(path)
        if newest is None:
            return None
        session = cls.load(newest, device, cache)
        same = [_numeric_settings(point) for point in session.points] == [_numeric_settings(point) for point in points]
        return session if same else None

    def save(self, path: Path, keep: bool = False) -> None:
        """Write the state to continue from and both best states of every member; see :func:`checkpoint.save`."""
        points = [to_mapping(point) for point in self.points]
        finals = {point: {name: table(values) for name, values in of.items()} for point, of in self.finals.items()}
        content = {"points": points, "state": to_plain(self.state), "stopped": sorted(self.stopped)}
        checkpoint.save(path, "ensemble", {**content, "finals": finals, "seconds": self.seconds}, keep)

    @functools.cached_property
    def data(self) -> dataset.Dataset:  # histories and best states need none
        members = self.ensemble
        return dataset.make(self.points[0].data, members.worlds, members.dtype, members.device, self.cache)

    @functools.cached_property
    def linear_maps(self) -> linear.Maps:
        """The maps that the linear reference of each world rests on."""
        return linear.maps(self.data.train, self.cache.folder)

    @functools.cached_property
    def mixing_fits(self) -> regression.Fits:
        """The estimates of each world's mixing, for files with sources."""
        return regression.fits(self.data.train, self.data.val, self.cache.folder)

    def train(self, objectives: Sequence[Objective] = ()) -> Iterator[Progress]:
        """Train until every member has stopped; yields after each epoch. Validations compute ``objectives``, too."""
        validate = functools.partial(self.validate, objectives=objectives)
        for progress in train(self.ensemble, self.state, self.data.train, self.points[0].training, validate):
            self.seconds += progress.train_seconds + progress.validate_seconds
            yield progress

    def validate(
        self, weights: torch.Tensor, rows: torch.Tensor, objectives: Sequence[Objective] = ()
    ) -> dict[str, torch.Tensor]:
        """Evaluate members on the validation split as during training: criteria, objectives and curves only; and
        :data:`TRAIN_CURVES` on a quarter as many points of the training split.
        """
        values = self.evaluate("val", weights, rows, objectives=objectives)
        few = self.data.train.first(len(shortened(self.data.val, self.points[0].data.features)) // 4)
        train = evaluate(self.ensemble, weights, rows, few, lambda: self.linear_maps, objectives=(), only=TRAIN_CURVES)
        return values | {f"train/{name}": value for name, value in train.items()}

    def evaluate(
        self,
        split: str,
        weights: torch.Tensor,
        rows: torch.Tensor,
        probes: bool = False,
        objectives: Sequence[Objective] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Evaluate the members in ``rows``, (member,), at the given weights, (member, parameter).

        Returns ``SPLIT/METRIC``, each (member,): see :func:`imavae.metrics.evaluate.evaluate`.
        """
        points = getattr(self.data, split)
        if split == "val":
            points = shortened(points, self.points[0].data.features)
        names = None if objectives is None else {objective.metric.removeprefix("val/") for objective in objectives}
        maps, fits = (lambda: self.linear_maps), (lambda: self.mixing_fits)
        rendered = None
        if isinstance(data := self.points[0].data, SpritesData):
            whole, worlds, folder = getattr(self.data, split), self.ensemble.worlds, self.cache.folder
            rendered = functools.partial(rendering.contrasts, data, worlds, split, whole, folder)
        values = evaluate(self.ensemble, weights, rows, points, maps, probes, names, fits=fits, rendered=rendered)
        return {f"{split}/{name}": value for name, value in values.items()}

    def final(self, point: int) -> Finals:
        """Every metric of a point's members on both splits, at their best states by each criterion.

        States that several criteria share, as after a single validation, are evaluated once.
        """
        rows = torch.tensor(self.members_of(point), device=self.ensemble.device)
        weights = {criterion: self.state.best[criterion].weights[rows] for criterion in self.criteria}
        probes, finals = self.points[point].training.probes, Finals()
        for criterion in self.criteria:
            known = [finals[name] for name in finals if torch.equal(weights[name], weights[criterion])]
            if known:
                finals[criterion] = known[0]
            else:
                val, test = (self.evaluate(split, weights[criterion], rows, probes) for split in ("val", "test"))
                finals[criterion] = val | test
        return finals

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criteria of members' best states; the first one also chooses among members."""
        return tuple(self.state.best)

    @property
    def best_weights(self) -> torch.Tensor:
        """The members' best states by the first criterion, (member, parameter)."""
        return self.state.best[self.criteria[0]].weights

    def members_of(self, point: int) -> list[int]:
        return [row for row, member in enumerate(self.ensemble.members) if member.point == point]

    def alive(self, point: int) -> list[int]:
        """Rows of one point's members that are still training."""
        return [row for row in self.state.active.tolist() if self.ensemble.members[row].point == point]

    def axes(self, row: int) -> dict[str, Value]:
        """The seeds of a member within its point: ``seed`` and, where there are several worlds, ``data.seed``."""
        member = self.ensemble.members[row]
        worlds: dict[str, Value] = {"data.seed": member.world} if len(self.ensemble.worlds) > 1 else {}
        return {"seed": member.seed, **worlds}

    def stop(self, point: int) -> None:
        """Freeze the point's members that are still training: the study's scheduler has stopped it."""
        self.stopped.add(point)
        mine = [self.ensemble.members[row].point == point for row in self.state.active.tolist()]
        freeze(self.state, torch.tensor(mine, dtype=torch.bool), "stopped")

    def scores(self, objectives: Sequence[Objective]) -> list[list[float]]:
        """Scores of each point: each objective, aggregated over its members at each one's best state so far."""
        counted = self._counted(objectives)
        return [
            [float(getattr(np, o.aggregate)(row[members])) for o, row in zip(objectives, counted, strict=True)]
            for members in map(self.members_of, range(len(self.points)))
        ]

    def described(self, objective: Objective) -> list[dict[str, float]]:
        """Quartiles over each point's members of the objective, and medians of c_IMA and −ELBO, at the same states."""
        known = self.state.history[-1].values if self.state.history else {}
        others = [name for name in ("val/cima", "val/neg_elbo") if name in known and name != objective.metric]
        counted = self._counted([objective, *(Objective(metric=name, mode="min") for name in others)])
        names = [f"{objective.metric}/q25", f"{objective.metric}/q75", *others]
        return [
            dict(zip(names, [*np.quantile(own[0], [0.25, 0.75]), *np.median(own[1:], axis=1)], strict=True))
            for own in (counted[:, self.members_of(point)] for point in range(len(self.points)))
        ]

    def _counted(self, objectives: Sequence[Objective]) -> NDArray[np.float64]:
        """Each member's values at its best state so far, (objective, member).

        Best is by the first objective, so all values of a member belong to one model. A diverged member counts as the
        worst. Until the schedules are over, the newest state counts.
        """
        signs = np.array([[1 if objective.mode == "max" else -1] for objective in objectives])
        best = np.full((len(objectives), len(self.ensemble)), -np.inf)  # larger is better
        settled, history = self.points[0].training.settled, self.state.history
        for validation in [one for one in history if one.epoch >= settled] or history[-1:]:
            rows = validation.rows.cpu().numpy()
            values = signs * np.stack([validation.values[objective.metric].numpy() for objective in objectives])
            better = values[0] > best[0, rows]
            best[:, rows[better]] = values[:, better]
        floors = [METRICS[o.metric.removeprefix("val/")].floor if o.mode == "max" else -WORST_SCORE for o in objectives]
        floor = np.array(floors, dtype=np.float64)[:, None]
        diverged = np.array([status == "diverged" for status in self.state.status])
        counted: NDArray[np.float64] = signs * np.where(diverged | ~np.isfinite(best), floor, np.maximum(best, floor))
        return counted


def _numeric_settings(point: RunConfig) -> tuple[object, ...]:
    """The settings that decide a point's numbers, whatever machine it runs on."""
    training = dataclasses.replace(point.training, threads=1, device="auto")
    return point.data, point.model, training, point.members
