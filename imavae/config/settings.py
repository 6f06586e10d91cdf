"""The typed configuration tree and every rule about a value in it.

Hydra composes YAML into a plain mapping; :func:`run_config` and :func:`study_config` turn that mapping into the frozen
dataclasses below, or raise :class:`UserError` with the value, the rule and the remedy. Nothing below ``scripts/`` sees
a Hydra object. This module imports neither torch nor Ray, so that a mistake is reported at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from imavae.config.data import Data as Data
from imavae.config.data import with_file
from imavae.config.mapping import build, chosen_from, merged, split_constants, to_mapping
from imavae.config.search import WORST_SCORE as WORST_SCORE
from imavae.config.search import Budget as Budget
from imavae.config.search import Objective as Objective
from imavae.config.search import Sampler as Sampler
from imavae.config.search import Scheduler as Scheduler
from imavae.config.variants import (
    MIXINGS,
    NETWORK_NAMES,
    PRIORS,
    SOURCES,
    PriorSettings,
    Settings,
    UniformPrior,
    image_side,
    load_plugins,
)
from imavae.errors import require, require_choice

VARIANT_NAMES = {f"{registry.what}.name" for registry in (SOURCES, MIXINGS, PRIORS)}  # settings that choose a variant
Prior = Annotated[PriorSettings, BeforeValidator(chosen_from(PRIORS))]


@dataclass(frozen=True)
class Encoder(Settings):
    """What the encoder has otherwise than the decoder; null: the same."""

    n_layers: int | None = None  # linear maps
    hidden_factor: int | None = None  # width of a hidden layer, in multiples of data.dim

    def __post_init__(self) -> None:
        for name in ("n_layers", "hidden_factor"):
            value = getattr(self, name)
            require(
                value is None or value >= 1,
                f"model.encoder.{name} >= 1",
                value,
                f"say model.encoder.{name}=null to take the decoder's",
            )


@dataclass(frozen=True)
class Model(Settings):
    """A VAE: networks, posterior, decoder precision, prior."""

    name: str = "mlp"  # of the network: mlp, conv (of images), or one of your own
    gamma: float = 100.0  # the decoder's precision is gamma squared
    precision: Literal["fixed", "learned", "mle"] = "fixed"  # learned: by gradient; mle: after each epoch; from gamma
    beta: float = 1.0  # weight of the KL divergence in the loss; reported ELBOs have 1
    kl: Literal["sampled", "analytic"] = "sampled"  # analytic: in closed form, for Gaussian and Laplace priors
    posterior: Literal["diagonal", "full"] = "diagonal"  # covariance of the Gaussian posterior
    decoder: Literal["learned", "mixing"] = "learned"  # mixing: the ground truth; only the encoder is trained
    n_layers: int = 2  # linear maps in the encoder and in the decoder; an activation stands between two of them
    hidden_factor: int = 10  # width of a hidden layer, in multiples of data.dim
    activation: Literal["leaky_relu", "tanh", "silu", "softplus"] = "leaky_relu"
    slope: float = 0.2  # of the leaky ReLU below zero
    encoder: Encoder = field(default_factory=Encoder)
    prior: Prior = field(default_factory=UniformPrior)

    def __post_init__(self) -> None:
        gamma, factor = self.gamma, self.hidden_factor
        require_choice(self.name, sorted(NETWORK_NAMES), "model.name")
        require(
            0 < gamma < 1e9,
            "0 < model.gamma < 1e9",
            f"gamma={gamma}",
            "gamma² is the decoder's precision: say model.gamma=30",
        )
        require(self.beta > 0, "model.beta > 0", self.beta, "it weighs the KL divergence: say model.beta=1")
        require(
            self.n_layers >= 1, "model.n_layers >= 1", self.n_layers, "it counts the linear maps: say model.n_layers=2"
        )
        require(
            factor >= 1, "model.hidden_factor >= 1", factor, "width = factor x data.dim: say model.hidden_factor=10"
        )
        require(
            0 <= self.slope <= 1,
            "0 <= model.slope <= 1",
            self.slope,
            "it is the leaky ReLU's, below zero: say model.slope=0.2",
        )
        require(
            self.kl == "sampled" or self.prior.analytic,
            "model.kl is analytic only where there is a closed form",
            f"a {self.prior.name} prior",
            "say model.kl=sampled, or model/prior=gaussian",
        )


@dataclass(frozen=True)
class Training(Settings):
    """How long, with what step, on which device."""

    max_epochs: int = 400
    batch_size: int = 64
    learning_rate: float = 1e-3  # of Adam
    schedule: Literal["constant", "cosine"] = "constant"  # cosine: the rate falls to 0 over max_epochs, epoch by epoch
    validate_every: int = 5  # epochs
    patience: int = 5  # validations without a lower val/neg_elbo after which a member stops
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    threads: int = 1  # of torch, per ensemble; these models are too small for more to help
    probes: bool = False  # whether the slow metrics (nonlinear R², DCI, SAP, MIG) are evaluated at the end, too

    def __post_init__(self) -> None:
        for name in ("max_epochs", "batch_size", "validate_every", "patience", "threads"):
            value = getattr(self, name)
            require(value >= 1, f"training.{name} >= 1", value, "it is a count: give 1 or more")
        rate = self.learning_rate
        require(
            0 < rate < 1,
            "0 < training.learning_rate < 1",
            rate,
            "Adam's default is 1e-3: say training.learning_rate=1e-3",
        )


@dataclass(frozen=True)
class MembersData(Settings):
    """The worlds that members train in."""

    seed: tuple[int, ...] | None = None  # a world for each; null: the one of data.seed


@dataclass(frozen=True)
class Members(Settings):
    """The members of every point: nothing but seeds, the product of these axes."""

    seed: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)  # of initialisation, batches and posterior noise
    data: MembersData = field(default_factory=MembersData)

    @property
    def count(self) -> int:
        """Members of a point."""
        return len(self.seed) * (1 if self.data.seed is None else len(self.data.seed))

    def __post_init__(self) -> None:
        for key, seeds in (("members.seed", self.seed), ("members.data.seed", self.data.seed)):
            if seeds is None:
                continue
            got = list(seeds)
            require(len(seeds) >= 1, f"{key} has at least one seed", got, f"say {key}=[1,2,3]")
            require(len(set(seeds)) == len(seeds), f"{key} has no seed twice", got, "drop the copy")
            require(min(seeds) >= 0, f"{key} >= 0", got, "give whole numbers from 0 up")


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
    resume: bool = False  # go on with what was broken off: the newest of this kind, or that of name
    plugins: tuple[str, ...] = ()  # Python files that register your own mixing, source, prior or network
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    members: Members = field(default_factory=Members)
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        if self.name is not None:
            got = repr(self.name)
            require(_plain(self.name), "name is a plain folder name", got, "use letters, digits, '-', '_' and '.'")
        source, prior, (low, high) = self.data.source, self.model.prior, support(self)
        covers = not source.known or (low <= source.support[0] and source.support[1] <= high)
        require(
            covers and (not prior.bounded or high - low < math.inf),
            "the prior's support covers the source's",
            f"a {prior.name} prior on [{low:g}, {high:g}] for {source.name} sources on {list(source.support)}",
            "widen model.prior.low and .high, or choose model/prior=gaussian",
        )
        conditional = getattr(prior, "parameters", "fixed") == "conditional"
        require(
            not conditional or self.data.n_segments > 1,
            "data.n_segments > 1 for a conditional prior",
            self.data.n_segments,
            "the prior's parameters depend on the segment: say data.n_segments=5, or model.prior.parameters=fixed",
        )
        if self.model.name == "conv":
            image_side(self.data.observed)
        if self.model.decoder == "mixing":
            rule, remedy = "model.decoder=mixing needs a known mixing", "say model.decoder=learned"
            require(self.data.mixing.known, rule, f"data.mixing.name={self.data.mixing.name}", remedy)
            require(
                (low, high) == source.support,
                "model.decoder=mixing needs a prior on the source's support",
                f"{[low, high]} for sources on {list(source.support)}",
                "the mixing takes latents for sources: leave the prior's ends at null, or say model.decoder=learned",
            )
            require(
                self.members.data.seed is None,
                "model.decoder=mixing needs one world",
                f"members.data.seed={self.members.data.seed}",
                "set data.seed instead",
            )


def _plain(name: str) -> bool:
    """Whether a folder can be called so, and lies where it seems to."""
    return all(c.isalnum() or c in "-_." for c in name) and name[:1] not in ("", ".", "-")


def support(config: RunConfig) -> tuple[float, float]:
    """The interval that the latents live on: a bounded prior's own, or else its source's; the whole line for others."""
    prior, source = config.model.prior, config.data.source
    if not prior.bounded:
        return -math.inf, math.inf
    low, high = getattr(prior, "low", None), getattr(prior, "high", None)
    return source.support[0] if low is None else low, source.support[1] if high is None else high


SEARCHED = ("data", "model", "training")  # where a search may vary settings


@dataclass(frozen=True)
class Cluster(Settings):
    """Where trials run and what each may use."""

    name: Literal["local", "ray"] = "local"  # ray: join the running cluster at address
    address: str | None = None  # of a running Ray cluster, or auto
    cpus: int | None = None  # of this machine, for a local cluster; null: all
    gpus: int | None = None  # of this machine, for a local cluster; null: all
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0  # a share of one GPU, or whole GPUs; above 0 a trial trains on cuda
    resources: dict[str, float] | None = None  # of the running cluster's own names, that a trial asks for

    def __post_init__(self) -> None:
        require(
            (self.name == "ray") == (self.address is not None),
            "cluster.address is set exactly when cluster=ray",
            f"cluster={self.name}, address={self.address}",
            "say cluster=ray cluster.address=auto to join a running cluster",
        )
        require(
            self.cpus is None or self.cpus >= 1, "cluster.cpus >= 1", self.cpus, "say cluster.cpus=null to take all"
        )
        require(
            self.gpus is None or self.gpus >= 0, "cluster.gpus >= 0", self.gpus, "say cluster.gpus=null to take all"
        )
        cpus = self.cpus_per_trial
        require(
            cpus > 0,
            "cluster.cpus_per_trial > 0",
            cpus,
            "it is a number of cores, or a share of one: say cluster.cpus_per_trial=1",
        )
        share = self.gpus_per_trial
        require(
            0 <= share <= 1 or share == int(share),
            "cluster.gpus_per_trial is a share of one GPU or a whole number",
            share,
            "say 0.25 for four trials per GPU",
        )
        named = self.resources or {}
        require(
            self.name == "ray" or not named,
            "cluster.resources is null unless cluster=ray",
            named,
            "only a running cluster has resources of its own names: drop them, or say cluster=ray cluster.address=auto",
        )
        require(
            not {"cpu", "gpu"} & {name.lower() for name in named},
            "cluster.resources names neither CPU nor GPU",
            named,
            "say cluster.cpus_per_trial and cluster.gpus_per_trial",
        )
        require(min(named.values(), default=1) > 0, "cluster.resources are above 0", named, "drop what is not needed")


@dataclass(frozen=True)
class StudyConfig(RunConfig):
    """A study: the base that all points share, the space to search and how."""

    dry_run: bool = False  # print the points and what they will cost here, and train none
    study: str = "study"  # what the search is called; so are its MLflow experiment and registered model
    question: str = ""  # what it asks, in one sentence, for the report
    search: dict[str, Any] = field(default_factory=dict)  # nested like this tree; each leaf a mapping with `type`
    objective: Objective = field(default_factory=Objective)
    further_objectives: tuple[Objective, ...] = ()  # objective ranks the points and names the champion; these do not
    sampler: Sampler = field(default_factory=Sampler)
    scheduler: Scheduler = field(default_factory=Scheduler)
    budget: Budget = field(default_factory=Budget)
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = all(_plain(part) for part in self.study.split("/"))
        require(plain, "study is plain names between slashes", repr(self.study), "leave it to search=")
        both = self.dry_run and self.resume
        require(not both, "dry_run is not for a study that is resumed", "both", "drop one of them")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """All of them, the first one first."""
        return self.objective, *self.further_objectives


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """A stored model and the split to evaluate it on: all that ``scripts/evaluate.py`` needs."""

    checkpoint: str  # a path, or an MLflow model address
    split: Literal["train", "val", "test"] = "test"
    select: Literal["val/mcc", "val/neg_elbo"] | None = None  # a member's best state; null: by val/mcc, if there is one
    output_dir: str = "outputs"  # all output lies under it
    plugins: tuple[str, ...] = ()  # Python files that register the variants of the model, where they are your own
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        remedy = "say checkpoint=PATH, or checkpoint=models:/NAME@champion"
        require(self.checkpoint.strip() != "", "checkpoint is not empty", repr(self.checkpoint), remedy)


def run_config(mapping: Mapping[str, Any]) -> RunConfig:
    """The checked run configuration of a plain mapping.

    Raises:
        UserError: a key that does not exist, a value of the wrong type, or one that breaks a rule; a file of
            observations that can't be used.
    """
    return build(RunConfig, with_file(_with_plugins(mapping)))


def study_config(mapping: Mapping[str, Any]) -> StudyConfig:
    """The checked study configuration of a plain mapping; the constants of its search are set where they belong.

    Raises:
        UserError: as :func:`run_config` does, or nothing is searched that can be.
    """
    space = mapping.get("search")
    if isinstance(space, Mapping):
        for name in space:
            rule = "search names settings of data, model or training"
            remedy = "members are seeds, which every point has: list them outside" if name == "members" else "nest it"
            require(name in SEARCHED, rule, f"search.{name}", remedy)
        search, constants = split_constants(space)
        mapping = {**merged(constants, mapping), "search": search}
    config = build(StudyConfig, with_file(_with_plugins(mapping)))
    require(
        bool(config.search),
        "search has a parameter",
        config.search,
        "list a setting to search, as search_spaces/gamma_uniform.yaml does",
    )
    return config


def evaluate_config(mapping: Mapping[str, Any]) -> EvaluateConfig:
    """The checked evaluation configuration of a plain mapping. Raises as :func:`run_config` does."""
    return build(EvaluateConfig, mapping)


def _with_plugins(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with its plugins imported and their paths made absolute: a worker's current directory is another."""
    paths = mapping.get("plugins") or ()
    proper = isinstance(paths, (list, tuple)) and all(isinstance(path, str) for path in paths)
    require(proper, "plugins is a list of paths", repr(paths), "say plugins=[FILE.py]")
    load_plugins(paths)
    return {**mapping, "plugins": [str(Path(path).resolve()) for path in paths]}


def base_of(config: StudyConfig) -> RunConfig:
    """The run configuration that all points of a study share, whether it is resumed or not."""
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(RunConfig)}
    return RunConfig(**{**shared, "resume": False})


def with_values(config: RunConfig, values: Mapping[str, object]) -> RunConfig:
    """A run configuration with some dotted keys (``model.gamma``) set to other values, all rules checked again.

    Another variant (``model.prior.name``) comes with its own defaults, as when it is chosen by its group.
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *path, leaf = key.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return run_config(overridden(to_mapping(config), nested))


def overridden(base: Mapping[str, Any], settings: Mapping[str, Any], node: str = "") -> dict[str, Any]:
    """The mapping ``base`` with some settings, nested like it, set to other values; ``node`` is where both stand.

    Another variant (``model.prior.name``) comes with its own defaults, and another search space replaces the one there.
    """
    both = dict(base)
    for name, value in settings.items():
        before, key = both.get(name), f"{node}{name}"
        if not isinstance(value, Mapping) or not isinstance(before, Mapping) or key == "search":
            both[name] = value
            continue
        other = f"{key}.name" in VARIANT_NAMES and value.get("name", before.get("name")) != before.get("name")
        both[name] = value if other else overridden(before, value, f"{key}.")
    return both
