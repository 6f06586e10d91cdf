"""The settings of every command: one typed tree with the type, rule, meaning and default of each setting on one line.

:func:`run_config`, :func:`study_config` and their like turn a plain mapping into the frozen dataclasses below, or raise
:class:`UserError`. ``--help``, docs/config.md and Hydra's defaults are made from the same classes. This module imports
neither torch nor Ray, so that a mistake is reported at once.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from imavae.config.data import (
    MIXINGS,
    SOURCES,
    AnyData,
    Automorphism,
    SpritesData,
    SyntheticData,
    column_names,
    missing_build,
    with_file,
)
from imavae.config.data import Data as Data
from imavae.config.mapping import Settings, build, flatten, nest, to_mapping
from imavae.config.registry import Chosen, Registry, load_plugins
from imavae.errors import require, require_choice, without_password


@dataclass(frozen=True)
class PriorSettings(Settings):
    """Base of the settings of a prior p(z). They have a method :meth:`build`.

    ``parameters`` may be a setting of theirs: fixed, learned, or conditional (given by a network of the segment).
    """

    name: str = ""
    bounded: ClassVar[bool] = False  # True if latents live on an interval
    analytic: ClassVar[bool] = False  # True if the divergence from a Gaussian posterior has a closed form

    def build(self, support: tuple[float, float]) -> Any:
        """Return the law, an :class:`imavae.model.priors.Prior`; a bounded one lives on the interval ``support``."""
        raise missing_build(self, "model.prior", "build(support)")


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """Base of the kinds of network, chosen by ``model.name``; their settings are those of the model."""

    name: str = ""
    invertible: ClassVar[bool] = False  # True for a flow: build returns an Invertible, trained by maximum likelihood

    def check(self, config: RunConfig) -> None:
        """Raise UserError if the network does not fit the data or other settings."""

    def build(self, prefix: str, inputs: int, outputs: int, shape: tuple[int, int], model: Model) -> Any:
        """Return the ``encoder`` or the ``decoder``, as ``prefix`` says: an :class:`imavae.model.networks.Network`.

        ``shape`` is the number of linear maps and the width between them.
        """
        raise missing_build(self, "model.name", "build(prefix, inputs, outputs, shape, model)")


PRIORS: Registry[type[PriorSettings]] = Registry("model.prior", "imavae.model.priors")
NETWORKS: Registry[type[NetworkSettings]] = Registry("model", "imavae.model.networks")
TAGS = {"data": "kind"} | {registry.setting: "name" for registry in (SOURCES, MIXINGS, PRIORS)}  # choose a variant
Prior = Annotated[PriorSettings, BeforeValidator(Chosen(PRIORS))]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Precision = Literal["fixed", "learned", "mle"]
Schedule = Literal["constant", "cosine"]
Divergence = Literal["sampled", "analytic"]
Decoder = Literal["learned", "mixing"]
Activation = Literal["leaky_relu", "tanh", "silu", "softplus"]


@dataclass(frozen=True)
class Encoder(Settings):
    """Settings of the encoder that differ from the decoder's."""

    n_layers: Annotated[Count | None, Field(description="linear maps; null: the decoder's")] = None
    hidden_factor: Annotated[Count | None, Field(description="hidden width over latents; null: the decoder's")] = None


@dataclass(frozen=True)
class Model(Settings):
    """A VAE: networks, posterior, decoder precision, prior."""

    name: Annotated[str, Field(description="network: mlp, conv (for images), flow (no VAE), or your own")] = "mlp"
    dim: Annotated[Count | None, Field(description="number of latents; null: data.dim")] = None
    gamma: Annotated[float, Field(gt=0, lt=1e9, description="gamma squared is the decoder's precision")] = 100.0
    precision: Annotated[Precision, Field(description="learned: by gradient, mle: per epoch, from gamma on")] = "fixed"
    beta: Annotated[float, Field(gt=0, description="weight of the KL divergence in the loss; ELBOs use 1")] = 1.0
    ima_weight: Annotated[
        float, Field(ge=0, description="weight of the decoder's IMA contrast in the loss; above 0 by autograd")
    ] = 0.0
    kl: Annotated[Divergence, Field(description="analytic: Gaussian and Laplace priors")] = "sampled"
    posterior: Annotated[Literal["diagonal", "full"], Field(description="the posterior's covariance")] = "diagonal"
    decoder: Annotated[Decoder, Field(description="mixing: the true f; trains the encoder")] = "learned"
    n_layers: Annotated[Count, Field(description="linear maps in the encoder and in the decoder")] = 2
    hidden_factor: Annotated[Count, Field(description="width of a hidden layer, over the number of latents")] = 10
    activation: Annotated[Activation, Field(description="activation between two linear maps")] = "leaky_relu"
    slope: Annotated[float, Field(ge=0, le=1, description="slope of the leaky ReLU below zero")] = 0.2
    couplings: Annotated[Count, Field(description="coupling layers of a flow, each with such a network")] = 6
    encoder: Encoder = field(default_factory=Encoder)
    automorphism: Automorphism = field(default_factory=Automorphism)  # a of the true decoder, f ∘ a instead of f
    prior: Prior = field(default_factory=lambda: PRIORS["uniform"]())

    def __post_init__(self) -> None:
        _ = NETWORKS[self.name]  # raises UserError for an unknown name
        rule, got = "model.kl is analytic only where there is a closed form", f"a {self.prior.name} prior"
        known = self.kl == "sampled" or self.prior.analytic
        require(known, rule, got, "set model.kl=sampled, or model/prior=gaussian")

    @property
    def is_flow(self) -> bool:
        """True if it is trained by maximum likelihood: it has neither gamma nor posterior."""
        return NETWORKS[self.name].invertible


@dataclass(frozen=True)
class WarmUp(Settings):
    """Share of a setting's value that an epoch trains with: from ``start`` to 1, between epochs."""

    shape: Annotated[
        Literal["constant", "linear", "geometric", "cosine"], Field(description="constant: the whole value, always")
    ] = "constant"
    start: Annotated[float, Field(ge=0, description="share of the value in the first epoch")] = 0.1
    until: Annotated[int, Field(ge=2, description="epoch from which on the value is whole")] = 20

    def share(self, epoch: int) -> float:
        """The share after ``epoch`` epochs."""
        way = 1.0 if self.shape == "constant" else min(1.0, epoch / (self.until - 1))
        if way == 1.0:
            return 1.0
        if self.shape == "geometric":
            return float(self.start ** (1 - way))
        return self.start + (1 - self.start) * (way if self.shape == "linear" else 0.5 - 0.5 * math.cos(math.pi * way))


@dataclass(frozen=True)
class Training(Settings):
    """Optimisation: how long, with what step, on which device."""

    max_epochs: Annotated[Count, Field(description="passes over the training split, at most; ASHA's horizon")] = 400
    batch_size: Annotated[Count, Field(description="observations per step")] = 64
    learning_rate: Annotated[float, Field(gt=0, lt=1, description="learning rate of Adam")] = 1e-3
    schedule: Annotated[Schedule, Field(description="cosine: falls to 0 over max_epochs")] = "constant"
    clip: Annotated[
        float | None, Field(gt=0, description="largest norm of a member's gradient, by autograd; null: any")
    ] = None
    gamma_schedule: WarmUp = field(default_factory=WarmUp)  # of model.gamma
    beta_schedule: WarmUp = field(default_factory=WarmUp)  # of model.beta
    ima_schedule: WarmUp = field(default_factory=WarmUp)  # of model.ima_weight
    init: Annotated[
        str | None, Field(description="champion.pt of a model, whose weights, but gamma, members start from")
    ] = None
    validate_every: Annotated[Count, Field(description="epochs between two validations")] = 5
    patience: Annotated[Count, Field(description="validations without a lower val/neg_elbo before a member stops")] = 5
    dtype: Annotated[Literal["float32", "float64"], Field(description="of weights, data and arithmetic")] = "float32"
    conv_dtype: Annotated[
        Literal["bfloat16"] | None,
        Field(description="of model=conv's convolutions in training steps, faster on some processors; null: dtype"),
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: cuda if there is one")] = "auto"
    step: Annotated[
        Literal["auto", "compiled", "autograd"],
        Field(description="compiled: C++, float32 MLPs on a CPU; auto: where it can be had, else autograd"),
    ] = "auto"
    threads: Annotated[Count, Field(description="torch threads per ensemble; more rarely help small models")] = 1
    probes: Annotated[bool, Field(description="also the slow metrics (nonlinear R², DCI, SAP, MIG) at the end")] = False

    def __post_init__(self) -> None:
        for name, schedule in self.schedules.items():
            key, positive = f"training.{name}", name == "gamma_schedule" or schedule.shape == "geometric"
            rule, remedy = f"{key}.start > 0 for a schedule of gamma, or a geometric one", f"set {key}.start=0.1"
            require(schedule.start > 0 or not positive, rule, schedule.start, remedy)
            rule, got = f"{key}.until <= training.max_epochs", f"{schedule.until} of {self.max_epochs}"
            require(schedule.until <= self.max_epochs, rule, got, "the value must become whole: shorten the schedule")

    @property
    def schedules(self) -> dict[str, WarmUp]:
        """Schedules that are not constant, by the name of their setting."""
        names = ("gamma_schedule", "beta_schedule", "ima_schedule")
        return {name: one for name in names if (one := getattr(self, name)).shape != "constant"}

    @property
    def settled(self) -> int:
        """Epoch from which on all schedules are over: the best state is sought from then on; 0 without schedules."""
        return max((schedule.until for schedule in self.schedules.values()), default=0)


@dataclass(frozen=True)
class MembersData(Settings):
    """Worlds of the members."""

    seed: Annotated[tuple[Seed, ...] | None, Field(min_length=1, description="worlds; null: that of data.seed")] = None


@dataclass(frozen=True)
class Members(Settings):
    """Members of every point: the product of these seeds."""

    seed: Annotated[
        tuple[Seed, ...], Field(min_length=1, description="seeds of initialisation, batches and posterior noise")
    ] = (1, 2, 3, 4, 5, 6, 7, 8)
    data: MembersData = field(default_factory=MembersData)

    def __post_init__(self) -> None:
        for key, seeds in (("members.seed", self.seed), ("members.data.seed", self.data.seed)):
            unique = len(set(seeds or ())) == len(seeds or ())
            require(unique, f"{key} has no seed twice", list(seeds or ()), "drop the copy")

    @property
    def count(self) -> int:
        """Number of members of a point."""
        return len(self.seed) * (1 if self.data.seed is None else len(self.data.seed))


@dataclass(frozen=True)
class Tracking(Settings):
    """Tracker of the results, besides the run's own folder."""

    name: Annotated[Literal["mlflow", "none"], Field(description="tracker")] = "mlflow"
    uri: Annotated[str | None, Field(description="of MLflow; null: MLFLOW_TRACKING_URI or OUTPUT_DIR/mlflow.db")] = None
    members: Annotated[bool, Field(description="make a run of each member of a study, too")] = False
    metrics: Annotated[
        Literal["main", "all"], Field(description="metrics of a study's trials there; members.csv has all")
    ] = "main"
    note: Annotated[str, Field(description="text that begins the description of the tracked run")] = ""
    tags: Annotated[
        Mapping[str, str | float] | None, Field(description="tags of the tracked run, such as {project: pilot}")
    ] = None

    def __post_init__(self) -> None:
        """Refuse a password, which would be written into each folder, checkpoint and report."""
        rule, remedy = "tracking.uri has no password", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        remedy += ", or MLFLOW_TRACKING_URI with the address of a database"
        require(without_password(self.uri or "") == (self.uri or ""), rule, "one, which is not shown", remedy)


HomePath = Annotated[str, AfterValidator(os.path.expanduser)]  # ~ is the user's home
OutputDir = Annotated[HomePath, Field(description="all output lies under it; relative to the current directory")]
Plugins = Annotated[tuple[str, ...], Field(description="Python files that register your own variants")]


@dataclass(frozen=True)
class RunConfig(Settings):
    """Settings of ``scripts/train.py``: one point with its members."""

    name: Annotated[str | None, Field(description="name of the run's folder; null: a default name")] = None
    output_dir: OutputDir = "outputs"
    resume: Annotated[bool, Field(description="continue the newest unfinished run, or the one called name")] = False
    plugins: Plugins = ()
    pdf: Annotated[bool, Field(description="write each figure as PDF, too, besides PNG")] = False
    data: AnyData = field(default_factory=SyntheticData)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    members: Members = field(default_factory=Members)
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        if self.name is not None:
            got = repr(self.name)
            require(is_folder_name(self.name), "name is a plain folder name", got, f"use {PLAIN}")
        prior, (low, high), inner = self.model.prior, support(self), self.data.support
        covers = inner is None or (low <= inner[0] and inner[1] <= high)
        finite = not prior.bounded or high - low < math.inf
        got = f"a {prior.name} prior on [{low:g}, {high:g}] for sources on {list(inner or ())}"
        remedy = "widen model.prior.low and .high, or choose model/prior=gaussian"
        require(covers and finite, "the prior's support covers the source's", got, remedy)
        segments, fixed = self.data.n_segments, getattr(prior, "parameters", "fixed") != "conditional"
        remedy = "its parameters depend on the segment: set data.n_segments=5, or model.prior.parameters=fixed"
        require(fixed or segments > 1, "data.n_segments > 1 for a conditional prior", segments, remedy)
        NETWORKS[self.model.name]().check(self)
        rule, remedy = "model.couplings is left alone but for a flow", "drop it, or set model=flow"
        require(self.model.is_flow or self.model.couplings == Model.couplings, rule, self.model.couplings, remedy)
        fixed = self.model.precision == "fixed" or "gamma_schedule" not in self.training.schedules
        rule, remedy = "training.gamma_schedule is constant unless model.precision=fixed", "set its shape=constant"
        require(fixed, rule, f"model.precision={self.model.precision}", remedy)
        full, got = self.latents <= self.data.features, f"{self.latents} latents of {self.data.features} numbers"
        rule, remedy = "model.ima_weight is 0 for more latents than observed numbers", "their contrast is infinite"
        require(full or self.model.ima_weight == 0, rule, got, remedy)
        rule, remedy = "training.conv_dtype is null unless model.name=conv", "only convolutions use it: leave it out"
        require(self.training.conv_dtype is None or self.model.name == "conv", rule, self.training.conv_dtype, remedy)
        self.model.automorphism.check(self.data, "model.automorphism")
        rule, angle = "model.automorphism.angle is 0 unless model.decoder=mixing", self.model.automorphism.angle
        require(
            angle == 0 or self.model.decoder == "mixing", rule, angle, "it turns the true f: set model.decoder=mixing"
        )
        if self.model.decoder == "mixing":
            rule, weight = "model.ima_weight is 0 for model.decoder=mixing", self.model.ima_weight
            require(weight == 0, rule, weight, "the true decoder is not trained: set model.decoder=learned")
            rule, remedy = "model.decoder=mixing needs a known mixing", "set model.decoder=learned"
            require(isinstance(self.data, SyntheticData), rule, f"data.kind={self.data.kind}", remedy)
            rule, remedy = "model.decoder=mixing has data.dim latents", "leave model.dim at null"
            require(self.latents == self.data.dim, rule, f"{self.latents} of {self.data.dim}", remedy)
            rule, remedy = "model.decoder=mixing needs a prior on the source's support", "set model.decoder=learned"
            got, remedy = f"{[low, high]} for sources on {list(inner or ())}", f"leave its ends at null, or {remedy}"
            require((low, high) == inner, rule, got, remedy)
            rule, worlds = "model.decoder=mixing needs one world", self.members.data.seed
            require(worlds is None, rule, f"members.data.seed={worlds}", "set data.seed instead")

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.model.dim or self.data.dim


PLAIN = "letters, digits, -, _ and ., up to 100 bytes"
LONGEST_NAME = 100  # bytes, so that a number and the names of its files fit


def is_folder_name(name: str) -> bool:
    """True if a folder of this name lies directly where it is made and can be typed without quotes."""
    short = len(os.fsencode(name)) <= LONGEST_NAME
    return short and all(c.isalnum() or c in "-_." for c in name) and name[:1] not in ("", ".", "-")


UNKNOWN_SUPPORT = (-0.5, 0.5)  # of a bounded prior for sources of unknown law


def support(config: RunConfig) -> tuple[float, float]:
    """Return the interval of the latents: the ends of a bounded prior, or else the source's, or the convention's."""
    prior = config.model.prior
    if not prior.bounded:
        return -math.inf, math.inf
    low, high = getattr(prior, "low", None), getattr(prior, "high", None)
    lower, upper = config.data.support or UNKNOWN_SUPPORT
    return lower if low is None else low, upper if high is None else high


WORST_SCORE = 1e12  # stands for an infinite score, which samplers refuse


@dataclass(frozen=True)
class Objective(Settings):
    """A trial's score: the aggregate, over members, of each member's best value so far of one validation metric."""

    metric: Annotated[str, Field(description="a validation metric with a direction (docs/metrics.md)")] = "val/mcc"
    mode: Annotated[Literal["max", "min"], Field(description="the metric's better direction")] = "max"
    aggregate: Annotated[Literal["median", "mean", "min", "max"], Field(description="over members")] = "median"


# (Sampler, Optuna's distributions by key, seed) -> Optuna's sampler
BuildSampler = Callable[[Any, Mapping[str, Any], int], Any]


@dataclasses.dataclass(frozen=True)
class SamplerKind:
    """A way to propose points. :mod:`imavae.search.space` and plugins register them in ``SAMPLERS``."""

    name: str
    build: BuildSampler
    numbers_only: bool = False  # proposes neither choices nor conditional settings
    several_objectives: bool = True
    conditional: BuildSampler | None = None  # builds it for spaces with conditional settings; None: ``build`` does


Points = str | tuple[dict[str, Any], ...] | None
SAMPLERS: Registry[SamplerKind] = Registry("sampler", "imavae.search.space")


@dataclass(frozen=True)
class Sampler(Settings):
    """Proposal of points."""

    name: Annotated[str, Field(description="tpe, cmaes (numbers only), qmc (quasi-random), random, or grid")] = "tpe"
    seed: Annotated[Seed, Field(description="seed of the proposals")] = 0
    startup: Annotated[Count, Field(description="random points before TPE begins to model the objective")] = 10
    pack: Annotated[
        Count | None, Field(description="most points in one ensemble; null: 1, in a grid all of an architecture")
    ] = None
    start_from: Annotated[
        Points, Field(description="to train first: a list, nested like search; or a study's folder, for its best five")
    ] = None

    def __post_init__(self) -> None:
        require_choice(self.name, SAMPLERS.names(), "sampler.name")


@dataclass(frozen=True)
class Scheduler(Settings):
    """Early stopping of whole points; ``training.patience`` stops single members, with any scheduler."""

    name: Annotated[Literal["asha", "median", "none"], Field(description="rule that stops points early")] = "none"
    grace: Annotated[Count, Field(description="epochs that every point gets")] = 10
    reduction: Annotated[int, Field(ge=2, description="ASHA keeps one of this many points at each rung")] = 3
    samples: Annotated[Count, Field(description="points that the median rule must know before it stops one")] = 3


@dataclass(frozen=True)
class Budget(Settings):
    """Size of a study; a trial's epochs are training.max_epochs.

    When the hours are over or the target is reached, the study proposes no more points, stops each trial at its next
    validation, and ends with its results. With a larger budget, a resume trains the points that are left.
    """

    trials: Annotated[Count | None, Field(description="points to train; null: all points of a grid")] = None
    hours: Annotated[float | None, Field(gt=0, description="that a study may train; each resume counts anew")] = None
    trial_minutes: Annotated[
        float | None, Field(gt=0, description="of training and validation, after which a trial stops at a validation")
    ] = None
    target: Annotated[float | None, Field(description="score of a point at which the study ends")] = None


Resources = dict[str, Annotated[float, Field(gt=0)]] | None


@dataclass(frozen=True)
class Cluster(Settings):
    """Place of the trials, and the resources of each."""

    name: Annotated[Literal["local", "ray"], Field(description="ray: join the running cluster at address")] = "local"
    address: Annotated[str | None, Field(description="of a running Ray cluster, or auto")] = None
    cpus: Annotated[Count | None, Field(description="of this machine, for cluster=local; null: all")] = None
    gpus: Annotated[int | None, Field(ge=0, description="of this machine, for cluster=local; null: all")] = None
    cpus_per_trial: Annotated[float, Field(gt=0, description="cores reserved for a trial")] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0, description="share of a GPU, or whole GPUs; 0: the CPU")] = 0.0
    resources: Annotated[Resources, Field(description="custom ones that a trial asks for, such as {a100: 1}")] = None
    stuck_after: Annotated[
        float | None,
        Field(gt=0, description="minutes without a validation after which a trial restarts, once; null: never"),
    ] = 120.0

    def __post_init__(self) -> None:
        joined, share, named = self.name == "ray", self.gpus_per_trial, self.resources or {}
        rule, got = "cluster.address is set exactly when cluster=ray", f"cluster={self.name}, address={self.address}"
        remedy = "set cluster=ray cluster.address=auto to join a running cluster"
        require(joined == (self.address is not None), rule, got, remedy)
        rule = "cluster.gpus_per_trial is a share of one GPU or a whole number"
        require(share <= 1 or share == int(share), rule, share, "set 0.25 for four trials per GPU")
        remedy = "only a running cluster has custom resources: drop them, or set cluster=ray cluster.address=auto"
        require(joined or not named, "cluster.resources is null unless cluster=ray", named, remedy)
        other = not {"cpu", "gpu"} & {name.lower() for name in named}
        remedy = "set cluster.cpus_per_trial and cluster.gpus_per_trial"
        require(other, "cluster.resources names neither CPU nor GPU", named, remedy)


@dataclass(frozen=True)
class StudyConfig(RunConfig):
    """Settings of ``scripts/tune.py``: the base that all points share, the space to search and how."""

    dry_run: Annotated[bool, Field(description="print the points and their estimated cost, and train none")] = False
    study: Annotated[str, Field(description="name of search, MLflow experiment and registered model")] = "study"
    question: Annotated[str, Field(description="what the study asks, in one sentence, for the report")] = ""
    search: Annotated[
        dict[str, Any], Field(description="nested like the settings; a leaf: a mapping with type, or a value for all")
    ] = field(default_factory=dict)
    objective: Objective = field(default_factory=Objective)
    further_objectives: Annotated[tuple[Objective, ...], Field(description="reported at objective's best")] = ()
    sampler: Sampler = field(default_factory=Sampler)
    scheduler: Scheduler = field(default_factory=Scheduler)
    budget: Budget = field(default_factory=Budget)
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        super().__post_init__()
        proper = all(is_folder_name(part) for part in self.study.split("/"))
        require(proper, "study is plain names between slashes", repr(self.study), "leave it to search=")
        both = self.dry_run and self.resume
        require(not both, "dry_run is not for a study that is resumed", "both", "drop one of them")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """All objectives, the first one first."""
        return self.objective, *self.further_objectives


@dataclass(frozen=True)
class ReproduceConfig(StudyConfig):
    """Settings of ``scripts/reproduce.py``: what all studies of a figure share; each has its own search space."""

    figure: Annotated[str | None, Field(description="figure of the paper; null: list them")] = None
    plot_only: Annotated[bool, Field(description="read finished studies and never run one")] = False


Selection = Literal["val/mcc", "val/neg_elbo"] | None
ColumnNames = Annotated[tuple[str, ...] | None, BeforeValidator(column_names)]
Checkpoint = Annotated[str, Field(description="a path, or an MLflow model address such as models:/NAME@champion")]


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """Settings of ``scripts/evaluate.py``: a stored model and the split to evaluate it on."""

    checkpoint: Checkpoint
    split: Annotated[Literal["train", "val", "test"], Field(description="split to evaluate on")] = "test"
    select: Annotated[Selection, Field(description="which best state; null: by val/mcc (oracle) if known")] = None
    output_dir: OutputDir = "outputs"
    plugins: Plugins = ()
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        _require_given("checkpoint", self.checkpoint, "checkpoint=PATH, or checkpoint=models:/NAME@champion")


@dataclass(frozen=True)
class EncodeData(Settings):
    """The rows to encode."""

    path: Annotated[
        HomePath,
        Field(description=".npy, .csv, .tsv (also .gz) or .parquet in the data's units, or images as for data=images"),
    ]
    columns: Annotated[ColumnNames, Field(description="in the model's order; null: by the model's names")] = None


@dataclass(frozen=True)
class EncodeConfig(Settings):
    """Settings of ``scripts/encode.py``: a stored model, a file of observations and one for their latents."""

    checkpoint: Checkpoint
    data: EncodeData
    out: Annotated[HomePath, Field(description=".parquet or .csv: latents, standard deviations, reconstruction error")]
    output_dir: OutputDir = "outputs"
    plugins: Plugins = ()
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        _require_given("checkpoint", self.checkpoint, "checkpoint=PATH, or checkpoint=models:/NAME@champion")
        _require_given("data.path", self.data.path, "data.path=FILE.parquet")
        out = Path(self.out).resolve()
        require_choice(out.suffix, (".parquet", ".csv"), "the ending of out")
        require(out.parent.is_dir(), "the folder of out exists", out.parent, "create it, or set another out=")
        other = out != Path(self.data.path).resolve()
        require(other, "out is another file than data.path", self.out, "it would be overwritten: set another out=")


def _require_given(key: str, value: str, example: str) -> None:
    require(value.strip() != "", f"{key} is not empty", repr(value), f"set {example}")


def run_config(mapping: Mapping[str, Any]) -> RunConfig:
    """The checked settings of a run from a plain mapping. Raises UserError for an unknown key or a wrong value."""
    config = build(RunConfig, with_file(_with_plugins(mapping)))
    _check_size(config)
    config.data.check_sizes()
    return config


def _check_size(config: RunConfig) -> None:
    """Raise UserError unless the least memory that the data and the members need is there."""
    data, model, size = config.data, config.model, 8 if config.training.dtype == "float64" else 4
    width, worlds = model.hidden_factor * config.latents, len(config.members.data.seed or (0,))
    numbers = worlds * data.n_obs * (data.dim + (SCENE if isinstance(data, SpritesData) else data.features))
    numbers = numbers if isinstance(data, SyntheticData | SpritesData) else 0
    weights = 0
    if model.name == "mlp" and model.n_layers > 1 and model.decoder == "learned":
        weights = width * (data.features + config.latents) + (model.n_layers - 2) * width**2
    needed = size * (numbers + COPIES * config.members.count * weights)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    got = f"at least {needed / 1e9:.3g} GB of {there / 1e9:.3g} GB for {data.n_obs:.3g} observations"
    got += f" and {config.members.count:.3g} members of {max(weights, 1):.3g} weights or more"
    remedy = "lower data.n_obs, model.hidden_factor, model.n_layers or the number of members"
    require(needed <= there, "data and members fit into memory", got, remedy)
    if isinstance(data, SpritesData):
        pixels, folder = worlds * data.n_obs * data.features, Path(config.output_dir).absolute()
        disk = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).total
        got = f"{pixels / 1e9:.3g} GB of a disk of {disk / 1e9:.3g} GB for {data.n_obs:.3g} images"
        require(pixels <= disk, "images fit onto the disk of output_dir", got, "lower data.n_obs or data.side")


SCENE = 8  # numbers that describe an image
COPIES = 6  # of each member's weights: with Adam's moments, and the best and last states
SEARCHED = ("data", "model", "training")  # where a search may vary settings


def study_config(mapping: Mapping[str, Any]) -> StudyConfig:
    """The checked settings of a study from a plain mapping; plain values in its search are set where they belong."""
    space = mapping.get("search")
    if isinstance(space, Mapping):
        for name in space:
            rule = "search names settings of data, model or training"
            fix = "members are seeds, which every point has: list them outside" if name == "members" else "nest it"
            require(name in SEARCHED, rule, f"search.{name}", fix)
        leaves = flatten(space, is_leaf=is_distribution)
        constants = {key: value for key, value in leaves.items() if not isinstance(value, (Mapping, list, tuple))}
        search = nest({key: leaf for key, leaf in leaves.items() if key not in constants})
        mapping = {**overridden(mapping, nest(constants)), "search": search}
    config = build(StudyConfig, with_file(_with_plugins(mapping)))
    _check_size(config)
    config.data.check_sizes()
    fix = "list a setting to search, as search_spaces/gamma_uniform.yaml does"
    require(bool(config.search), "search has a parameter", config.search, fix)
    return config


def is_distribution(node: Mapping[str, Any]) -> bool:
    """True for a leaf of a search space: a mapping that names the ``type`` of what is drawn."""
    return isinstance(node.get("type"), str)


def study_of(mapping: Mapping[str, Any]) -> StudyConfig:
    """The checked settings of one of a figure's studies. Raises as :func:`study_config` does."""
    return study_config({key: value for key, value in mapping.items() if key not in ("figure", "plot_only")})


def _with_plugins(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with its plugins imported, and paths made absolute: a worker's current directory is another."""
    paths = mapping.get("plugins") or ()
    proper = isinstance(paths, (list, tuple)) and all(isinstance(path, str) for path in paths)
    require(proper, "plugins is a list of paths", repr(paths), "set plugins=[FILE.py]")
    load_plugins(paths)
    training = mapping.get("training")
    if isinstance(training, Mapping) and isinstance(init := training.get("init"), str):
        require(Path(init).is_file(), "training.init is a file", init, "set training.init=PATH of a champion.pt")
        mapping = {**mapping, "training": {**training, "init": str(Path(init).resolve())}}
    return {**mapping, "plugins": [str(Path(path).resolve()) for path in paths]}


def base_of(config: StudyConfig) -> RunConfig:
    """The run settings that all points of a study share, whether it is resumed or not."""
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(RunConfig)}
    return RunConfig(**{**shared, "resume": False})


def with_values(config: RunConfig, values: Mapping[str, object]) -> RunConfig:
    """Run settings with some dotted keys (``model.gamma``) set to other values, all rules checked again.

    Another variant (``model.prior.name``) comes with its own defaults, as when it is chosen by its group.
    """
    return run_config(overridden(to_mapping(config), nest(values)))


def overridden(base: Mapping[str, Any], settings: Mapping[str, Any], node: str = "") -> dict[str, Any]:
    """The mapping ``base`` with some settings, nested like it, set to other values; ``node`` is the key of both.

    Another variant (``model.prior.name``) comes with its own defaults, and another search space replaces the one there.
    """
    both = dict(base)
    for name, value in settings.items():
        before, key = both.get(name), f"{node}{name}"
        if not isinstance(value, Mapping) or not isinstance(before, Mapping) or key == "search":
            both[name] = value
            continue
        tag = TAGS.get(key, "")
        chosen = before.get(tag, SyntheticData.kind if key == "data" else None)
        both[name] = value if value.get(tag, chosen) != chosen else overridden(before, value, f"{key}.")
    return both
