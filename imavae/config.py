"""The typed configuration tree and every rule about a value in it.

Hydra composes YAML into a plain mapping; :func:`run_config` and :func:`study_config` turn that mapping into the frozen
dataclasses below, or raise :class:`UserError` with the value, the rule and the remedy. Nothing below ``scripts/`` sees
a Hydra object. This module imports neither torch nor Ray, so that a mistake is reported at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Discriminator, TypeAdapter, ValidationError


class UserError(Exception):
    """A person's mistake: its text names the value, the rule and the remedy; scripts print it and exit with code 2."""


def require(holds: bool, rule: str, got: object, remedy: str) -> None:
    """Raise :class:`UserError` unless ``holds``, in the one form that all messages about a value have."""
    if not holds:
        raise UserError(f"`{rule}` must hold, but got {got}; {remedy}")


class Settings:
    """Base of every node of the tree: an unknown key is refused, never ignored."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


T = TypeVar("T", bound=Settings)


@dataclass(frozen=True)
class UniformSource(Settings):
    """Independent sources, each uniform on [low, high]."""

    name: Literal["uniform"] = "uniform"
    low: float = -0.5
    high: float = 0.5

    def __post_init__(self) -> None:
        require(
            -math.inf < self.low < self.high < math.inf,
            "data.source.low < data.source.high",
            f"low={self.low}, high={self.high}",
            "a uniform source needs a finite interval",
        )


@dataclass(frozen=True)
class GaussianSource(Settings):
    """Independent Gaussian sources."""

    name: Literal["gaussian"] = "gaussian"
    mean: float = 0.0
    std: float = 1.0  # a standard deviation, not a variance

    def __post_init__(self) -> None:
        require(0 < self.std < math.inf, "data.source.std > 0", f"std={self.std}", "it is a standard deviation")


@dataclass(frozen=True)
class MoebiusMixing(Settings):
    """x = A (s - a) / |s - a|^2, conformal: its IMA contrast is zero. Unless given, ``data.seed`` draws A and a."""

    name: Literal["moebius"] = "moebius"
    matrix: tuple[tuple[float, ...], ...] | None = None  # A, orthogonal, dim x dim
    centre: tuple[float, ...] | None = None  # a, the pole, outside the sources' support
    distance: float = 2.5  # of a random pole from the sources' mean, in half-diagonals of their support

    def __post_init__(self) -> None:
        require(
            1 < self.distance < math.inf,
            "data.mixing.distance > 1",
            f"distance={self.distance}",
            "the pole must lie outside the sources' support",
        )


@dataclass(frozen=True)
class MLPMixing(Settings):
    """x = W_L a(... a(W_1 s)), with a(h) = slope h + (1 - slope) log(1 + e^h), the smooth leaky ReLU."""

    name: Literal["mlp"] = "mlp"
    n_layers: int = 2  # linear maps; an activation stands between two of them
    weights: Literal["orthogonal", "uniform"] = "orthogonal"
    slope: float = 0.2  # of the smooth leaky ReLU at minus infinity; 1 makes the mixing linear

    def __post_init__(self) -> None:
        require(self.n_layers >= 1, "data.mixing.n_layers >= 1", self.n_layers, "it counts the linear maps")
        require(0 < self.slope <= 1, "0 < data.mixing.slope <= 1", self.slope, "other slopes have no inverse")


Source = Annotated[UniformSource | GaussianSource, Discriminator("name")]
Mixing = Annotated[MoebiusMixing | MLPMixing, Discriminator("name")]


@dataclass(frozen=True)
class Data(Settings):
    """A synthetic world: sources, the mixing that makes observations of them, and the split."""

    dim: int = 3  # number of sources, of latents and of observed dimensions
    n_obs: int = 60_000  # observations, over all splits
    seed: int = 1  # of the mixing, the sources and the split; all members share them
    train: float = 0.7  # share of the observations to train on
    val: float = 0.2  # share that stops and selects; the rest is the test split
    source: Source = field(default_factory=UniformSource)
    mixing: Mixing = field(default_factory=MoebiusMixing)

    def __post_init__(self) -> None:
        require(self.dim >= 2, "data.dim >= 2", self.dim, "one source alone is not mixed with anything")
        require(
            self.train > 0 and self.val > 0 and self.train + self.val < 1,
            "data.train + data.val < 1, both above 0",
            f"train={self.train}, val={self.val}",
            "what they leave is the test split",
        )
        require(
            min(self.sizes) >= 64,
            "each split has at least 64 observations",
            f"train, val, test of {self.sizes}",
            "raise data.n_obs or change data.train and data.val",
        )
        if isinstance(self.mixing, MoebiusMixing):
            self._check_moebius(self.mixing)

    def _check_moebius(self, mixing: MoebiusMixing) -> None:
        matrix, centre = mixing.matrix, mixing.centre
        if matrix is not None:
            gram = [[sum(a * b for a, b in zip(r, s, strict=False)) for s in matrix] for r in matrix]
            orthogonal = all(abs(g - (i == j)) < 1e-4 for i, row in enumerate(gram) for j, g in enumerate(row))
            square = len(matrix) == self.dim and all(len(row) == self.dim for row in matrix)
            require(
                square and orthogonal,
                f"data.mixing.matrix is orthogonal, {self.dim} x {self.dim}",
                matrix,
                "only an orthogonal matrix keeps the map conformal; leave it null to draw one",
            )
        if centre is not None:
            require(
                len(centre) == self.dim,
                f"data.mixing.centre has {self.dim} numbers",
                centre,
                "it has one for each source; leave it null to draw it",
            )
            low, high = self._box()
            beyond = math.hypot(*(max(low - a, a - high, 0) for a in centre))
            require(
                beyond > 0.05 * (high - low),
                f"data.mixing.centre lies outside the sources' box [{low:g}, {high:g}], by 5 % of its width",
                centre,
                "the map has its pole there",
            )

    def _box(self) -> tuple[float, float]:
        """The interval that holds each source: its support, or three standard deviations."""
        if isinstance(self.source, UniformSource):
            return self.source.low, self.source.high
        return self.source.mean - 3 * self.source.std, self.source.mean + 3 * self.source.std

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Observations in the training, validation and test split."""
        train, val = round(self.n_obs * self.train), round(self.n_obs * self.val)
        return train, val, self.n_obs - train - val


@dataclass(frozen=True)
class UniformPrior(Settings):
    """Latents uniform on [low, high]; null takes the source's support."""

    name: Literal["uniform"] = "uniform"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class GaussianPrior(Settings):
    """Independent Gaussian latents."""

    name: Literal["gaussian"] = "gaussian"
    mean: float = 0.0
    std: float = 1.0  # a standard deviation, not a variance

    def __post_init__(self) -> None:
        require(0 < self.std < math.inf, "model.prior.std > 0", f"std={self.std}", "it is a standard deviation")


Prior = Annotated[UniformPrior | GaussianPrior, Discriminator("name")]


@dataclass(frozen=True)
class Model(Settings):
    """A VAE with a diagonal Gaussian posterior; encoder and decoder are multi-layer perceptrons."""

    name: Literal["mlp"] = "mlp"
    gamma: float = 100.0  # the decoder's precision is gamma squared
    n_layers: int = 2  # linear maps in the encoder and in the decoder; an activation stands between two of them
    hidden_factor: int = 10  # width of a hidden layer, in multiples of data.dim
    slope: float = 0.2  # of the leaky ReLU below zero
    prior: Prior = field(default_factory=UniformPrior)

    def __post_init__(self) -> None:
        precision = "gamma² is the decoder's precision"
        require(0 < self.gamma < 1e9, "0 < model.gamma < 1e9", f"gamma={self.gamma}", precision)
        require(self.n_layers >= 1, "model.n_layers >= 1", self.n_layers, "it counts the linear maps")
        require(self.hidden_factor >= 1, "model.hidden_factor >= 1", self.hidden_factor, "width = factor x data.dim")
        require(0 <= self.slope <= 1, "0 <= model.slope <= 1", self.slope, "it is the leaky ReLU's, below zero")


@dataclass(frozen=True)
class Training(Settings):
    """How long, with what step, on which device."""

    max_epochs: int = 400
    batch_size: int = 64
    learning_rate: float = 1e-3  # of Adam
    validate_every: int = 5  # epochs
    patience: int = 5  # validations without a lower val/neg_elbo after which a member stops
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    threads: int = 1  # of torch, per ensemble; these models are too small for more to help

    def __post_init__(self) -> None:
        for name in ("max_epochs", "batch_size", "validate_every", "patience", "threads"):
            value = getattr(self, name)
            require(value >= 1, f"training.{name} >= 1", value, "it is a count")
        rate = self.learning_rate
        require(0 < rate < 1, "0 < training.learning_rate < 1", rate, "Adam's default is 1e-3")


@dataclass(frozen=True)
class Members(Settings):
    """The members of every point: nothing but seeds."""

    seed: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)  # of initialisation, batches and posterior noise

    def __post_init__(self) -> None:
        seeds = list(self.seed)
        require(len(seeds) >= 1, "members.seed has at least one seed", seeds, "say members.seed=[1,2,3]")
        require(len(set(seeds)) == len(seeds), "members.seed has no seed twice", seeds, "drop the copy")
        require(min(seeds) >= 0, "members.seed >= 0", seeds, "a seed is a whole number from 0 up")


@dataclass(frozen=True)
class Tracking(Settings):
    """Where results are tracked, besides the run's own folder."""

    name: Literal["mlflow", "none"] = "mlflow"
    uri: str | None = None  # of MLflow; null: MLFLOW_TRACKING_URI, or else OUTPUT_DIR/mlflow.db


@dataclass(frozen=True)
class RunConfig(Settings):
    """One point with its members: all that ``scripts/train.py`` needs."""

    name: str | None = None  # of the run's folder; null: the default name, numbered when taken
    output_dir: str = "outputs"  # all output lies under it
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    members: Members = field(default_factory=Members)
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        if self.name is not None:
            plain = all(c.isalnum() or c in "-_." for c in self.name) and self.name[:1] not in ("", ".", "-")
            require(plain, "name is a plain folder name", repr(self.name), "use letters, digits, '-', '_' and '.'")
        source, prior = self.data.source, self.model.prior
        if isinstance(prior, UniformPrior):
            low, high = support(self)
            require(
                isinstance(source, UniformSource) and low <= source.low and source.high <= high,
                "the prior's support covers the source's",
                f"a uniform prior on [{low:g}, {high:g}] for {source}",
                "widen model.prior.low and .high, or choose model/prior=gaussian",
            )


def support(config: RunConfig) -> tuple[float, float]:
    """The interval of the latents: the bounded prior's own, or else its source's; the whole line for others."""
    prior, source = config.model.prior, config.data.source
    if isinstance(prior, GaussianPrior):
        return -math.inf, math.inf
    bounds = (source.low, source.high) if isinstance(source, UniformSource) else (-math.inf, math.inf)
    return (
        bounds[0] if prior.low is None else prior.low,
        bounds[1] if prior.high is None else prior.high,
    )


AGGREGATES = ("median", "mean", "min", "max")
WORST_SCORE = 1e12  # stands for an infinite score, which samplers refuse


@dataclass(frozen=True)
class Objective(Settings):
    """A trial's score: the aggregate, over members, of each member's best value so far of one validation metric."""

    metric: str = "val/mcc"
    mode: Literal["max", "min"] = "max"
    aggregate: str = "median"

    def __post_init__(self) -> None:
        known(self.aggregate, AGGREGATES, "objective.aggregate")


@dataclass(frozen=True)
class Sampler(Settings):
    """How points are proposed."""

    name: str = "tpe"  # tpe and random (Optuna), or grid: every combination of the listed choices
    seed: int = 0  # of the proposals
    startup: int = 10  # random points before TPE begins to model the objective

    def __post_init__(self) -> None:
        known(self.name, ("tpe", "random", "grid"), "sampler.name")
        require(self.startup >= 1, "sampler.startup >= 1", self.startup, "TPE needs points to model")


@dataclass(frozen=True)
class Scheduler(Settings):
    """Which trials are stopped before their members stop."""

    name: str = "none"  # asha, or none
    grace: int = 10  # epochs that every trial gets
    reduction: int = 3  # ASHA keeps one of so many trials at each rung

    def __post_init__(self) -> None:
        known(self.name, ("asha", "none"), "scheduler.name")
        require(self.grace >= 1, "scheduler.grace >= 1", self.grace, "it is a number of epochs")
        require(self.reduction >= 2, "scheduler.reduction >= 2", self.reduction, "one of so many trials is kept")


@dataclass(frozen=True)
class Budget(Settings):
    """How much a study may spend; a trial's epochs are training.max_epochs."""

    trials: int | None = None  # null: all points of a grid

    def __post_init__(self) -> None:
        trials = self.trials
        require(trials is None or trials >= 1, "budget.trials >= 1", trials, "it counts the points to train")


@dataclass(frozen=True)
class Cluster(Settings):
    """Where trials run and what each may use."""

    name: Literal["local", "ray"] = "local"  # ray: join the running cluster at address
    address: str | None = None  # of a running Ray cluster, or auto
    cpus: int | None = None  # of this machine, for a local cluster; null: all
    gpus: int | None = None  # of this machine, for a local cluster; null: all
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0  # a share of one GPU, or whole GPUs; above 0 a trial trains on cuda

    def __post_init__(self) -> None:
        require(
            (self.name == "ray") == (self.address is not None),
            "cluster.address is set exactly when cluster=ray",
            f"cluster={self.name}, address={self.address}",
            "say cluster=ray cluster.address=auto to join a running cluster",
        )
        require(self.cpus is None or self.cpus >= 1, "cluster.cpus >= 1", self.cpus, "null takes all")
        require(self.gpus is None or self.gpus >= 0, "cluster.gpus >= 0", self.gpus, "null takes all")
        cpus = self.cpus_per_trial
        require(cpus > 0, "cluster.cpus_per_trial > 0", cpus, "it is a number of cores, or a share of one")
        share = self.gpus_per_trial
        require(
            0 <= share <= 1 or share == int(share),
            "cluster.gpus_per_trial is a share of one GPU or a whole number",
            share,
            "say 0.25 for four trials per GPU",
        )


@dataclass(frozen=True)
class StudyConfig(RunConfig):
    """A study: the base that all points share, the space to search and how."""

    study: str = "study"  # what the search is called; so are its MLflow experiment and registered model
    search: dict[str, Any] = field(default_factory=dict)  # nested like this tree; each leaf a mapping with `type`
    objective: Objective = field(default_factory=Objective)
    sampler: Sampler = field(default_factory=Sampler)
    scheduler: Scheduler = field(default_factory=Scheduler)
    budget: Budget = field(default_factory=Budget)
    cluster: Cluster = field(default_factory=Cluster)


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """A stored model and the split to evaluate it on: all that ``scripts/evaluate.py`` needs."""

    checkpoint: str  # a path, or an MLflow model address
    split: Literal["train", "val", "test"] = "test"
    select: Literal["val/mcc", "val/neg_elbo"] = "val/mcc"  # which of a member's two best states
    output_dir: str = "outputs"  # all output lies under it
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        remedy = "say checkpoint=PATH, or checkpoint=models:/NAME@champion"
        require(self.checkpoint.strip() != "", "checkpoint is not empty", repr(self.checkpoint), remedy)


def known(value: str, valid: typing.Iterable[str], what: str) -> None:
    """Raise :class:`UserError` unless ``value`` is among the ``valid`` names of ``what``; name the nearest ones."""
    valid = list(valid)
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(valid)}"
        raise UserError(f"`{what}` must be one of {', '.join(valid)}, but got {value!r}; {hint}")


def run_config(mapping: Mapping[str, Any]) -> RunConfig:
    """The checked run configuration of a plain mapping.

    Raises:
        UserError: a key that does not exist, a value of the wrong type, or one that breaks a rule.
    """
    return _build(RunConfig, mapping)


def study_config(mapping: Mapping[str, Any]) -> StudyConfig:
    """The checked study configuration of a plain mapping. Raises as :func:`run_config` does."""
    config = _build(StudyConfig, mapping)
    require(bool(config.search), "search has a parameter", config.search, "a study needs something to search")
    return config


def evaluate_config(mapping: Mapping[str, Any]) -> EvaluateConfig:
    """The checked evaluation configuration of a plain mapping. Raises as :func:`run_config` does."""
    return _build(EvaluateConfig, mapping)


def base_of(config: StudyConfig) -> RunConfig:
    """The run configuration that all points of a study share."""
    return RunConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(RunConfig)})


def with_values(config: RunConfig, values: Mapping[str, object]) -> RunConfig:
    """A run configuration with some dotted keys (``model.gamma``) set to other values, all rules checked again."""
    mapping = to_mapping(config)
    for key, value in values.items():
        *path, leaf = key.split(".")
        node = mapping
        for part in path:
            node = node[part]
        node[leaf] = value
    return run_config(mapping)


def to_mapping(config: Settings) -> dict[str, Any]:
    """Plain containers (dict, list, scalars) that :func:`run_config` and its kin turn back into the same."""
    plain: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return plain


def keys_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of all values that a tree of this type can hold, those of every variant of a union included."""
    for name, hint in typing.get_type_hints(kind).items():
        if name.startswith("__"):
            continue
        nodes = [t for t in (typing.get_args(hint) if _is_union(hint) else [hint]) if dataclasses.is_dataclass(t)]
        if not nodes:
            yield prefix + name
        for node in nodes:
            yield from keys_of(node, f"{prefix}{name}.")


def nearest(key: str, kind: type[Settings] = StudyConfig) -> str:
    """A hint that names the valid dotted keys most like ``key``."""
    keys = sorted(set(keys_of(kind)))
    if key in keys:
        node = key.rpartition(".")[0]
        return f"another variant of `{node}` has it: choose that one by its group (`--help` lists them)"
    leaf = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.6) or [k for k in keys if k.rsplit(".", 1)[-1] == leaf]
    return f"the nearest settings are {', '.join(near)}" if near else "`--help` lists the settings"


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _build(kind: type[T], mapping: Mapping[str, Any]) -> T:
    try:
        return TypeAdapter(kind).validate_python(dict(mapping))
    except ValidationError as error:
        raise UserError("\n".join(_explain(e, mapping, kind) for e in error.errors())) from None


def _explain(error: Any, mapping: Mapping[str, Any], kind: type[Settings]) -> str:
    """One validation error as value, rule and remedy; the union's tag in its path is dropped."""
    path: list[str] = []
    node: Any = mapping
    for part in error["loc"]:
        if (isinstance(node, Mapping) and part in node) or (isinstance(node, (list, tuple)) and isinstance(part, int)):
            path.append(str(part))
            node = node[part]
    key = ".".join(path)
    if error["type"] == "unexpected_keyword_argument":
        return f"`{key}` is not a setting (got {node!r}); {nearest(key, kind)}"
    if error["type"] == "union_tag_invalid":
        valid = error["ctx"]["expected_tags"].replace("'", "")
        return f"`{key}.name` must be one of {valid}, but got {error['ctx']['tag']!r}; choose one of them"
    if error["type"] in ("dataclass_type", "model_attributes_type"):
        group = key.replace(".", "/")
        return f"`{key}` must be a mapping, but got {node!r}; a variant is chosen by its group, as in {group}=NAME"
    rule = error["msg"][0].lower() + error["msg"][1:]
    if error["type"] == "missing":
        return f"`{'.'.join(map(str, error['loc']))}` must be given, but is missing; `--help` shows every setting"
    return f"`{key}` has the wrong type or value: {rule}, but got {node!r}; `--help` shows each setting's meaning"
