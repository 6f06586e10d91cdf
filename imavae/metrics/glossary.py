"""What a metric is: its definition, equation, source, unit, direction and requirements, and the function that computes
it. The built-in metrics are in definitions.py; a plugin adds one with the same decorator, :class:`Metric`.

Importing this module or the definitions does not import torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from jaxtyping import Float, Float64
from numpy.typing import NDArray

from imavae.config.data import DrawnData, SpritesData, SyntheticData
from imavae.config.lazy import torch
from imavae.config.registry import Registry
from imavae.config.settings import WORST_SCORE, RunConfig, support
from imavae.data.sources import UniformSource
from imavae.errors import UserError, require_choice
from imavae.metrics import identifiability, ima
from imavae.model.priors import UniformPrior

Stage = Literal["validation", "final", "probes"]  # each stage has the metrics of those before it, too
Direction = Literal["max", "min", "one", "none"]  # "one": best at 1; "none": neither better nor worse
Compute = Callable[[Any], "torch.Tensor"]  # of an Evaluation (of AllMembers for a metric across members): (member,)

STAGES: tuple[Stage, ...] = ("validation", "final", "probes")
TOO_SLOW: dict[Stage, str] = {  # reason for the absence of a metric of a later stage
    "final": "slow: members.csv and evaluate.py have it, validations do not",
    "probes": "slow: evaluate.py has it, and members.csv with training.probes=true",
}


class Requirement(NamedTuple):
    """A condition on the setting without which a metric does not exist."""

    reason: str  # for the absence of the metric
    holds: Callable[[RunConfig, bool], bool]  # of the setting, and of whether the split has the mixing's truth


SOURCES = Requirement(
    "there are no sources to compare with (set data.sources_path)", lambda config, _: config.data.has_sources
)
OWN_SCALE = Requirement("the scale of the sources is unknown", lambda config, _: config.data.support is not None)
SHARED_SUPPORT = Requirement(
    "prior and source have different supports", lambda config, _: support(config) == config.data.support
)
UNIFORM_SOURCES = Requirement(
    "the prior's CDF maps onto the sources only if they are uniform and the prior is not",
    lambda config, _: (
        isinstance(config.data, DrawnData)
        and isinstance(config.data.source, UniformSource)
        and not isinstance(config.model.prior, UniformPrior)
    ),
)
SEVERAL_SEEDS = Requirement("a single seed has no others to agree with", lambda config, _: len(config.members.seed) > 1)
TRUTH = (
    Requirement(
        "images have no exact likelihood, and no known Jacobian of their rendering",
        lambda config, _: not isinstance(config.data, SpritesData),
    ),
    Requirement(
        "the mixing is unknown, and so are its likelihoods and Jacobians",
        lambda config, _: isinstance(config.data, SyntheticData),
    ),
    Requirement("likelihoods and Jacobians of the mixing are kept for val and test only", lambda _, truth: truth),
)


@dataclass
class Metric:
    """A metric; a decorator that registers the decorated function under its name, with its docstring as definition."""

    direction: Direction
    equation: str
    source: str = "here"  # publication that defines it
    unit: str = ""  # none for a pure number
    stage: Stage = "validation"  # of the first evaluation that includes it
    needs: Sequence[Requirement] = ()  # the first that fails is the reason of its absence
    floor: float = -WORST_SCORE  # value of a diverged member in an aggregate of a metric to maximise
    across_members: bool = False  # True for a function of AllMembers instead of an Evaluation
    name: str = field(init=False)
    definition: str = field(init=False)
    compute: Compute = field(init=False)

    def __call__(self, compute: Compute) -> Compute:
        """Register ``compute``, which returns a value per member."""
        self.name, self.compute = compute.__name__, compute
        self.definition = " ".join((inspect.getdoc(compute) or "").split()).removesuffix(".")
        METRICS.register(self)
        return compute


METRICS: Registry[Metric] = Registry("objective.metric", "imavae.metrics.definitions")


class MixingTruth(NamedTuple):
    """What the mixing says of each member's world, point by point."""

    log_px: Float64[torch.Tensor, "member n"]
    contrast: Float64[torch.Tensor, "member n"]  # c_IMA of the mixing at the source


class AllMembers(NamedTuple):
    """What metrics across members are computed from."""

    locations: Float[torch.Tensor, "member d n"]  # at the first 20,000 points at most
    groups: list[tuple[int, int]]  # point and world of each member


@dataclass(frozen=True)
class Evaluation:
    """A block of members on one split: results of the forward pass, and quantities that several metrics share, each
    computed on first use.
    """

    averages: dict[str, torch.Tensor]  # means over points, (member,); of prior_variance (member, d)
    gamma: Float[torch.Tensor, " member"]
    samples: Float[torch.Tensor, "member d n"]  # of the posterior, on the prior's support
    locations: Float[torch.Tensor, "member d n"]
    cdf: Float[torch.Tensor, "member d n"] | None  # of the prior at the samples, if mcc_cdf exists
    local: ima.LocalTerms
    truth: MixingTruth | None
    sources: Float[torch.Tensor, "*world s n"]  # of one world shared by all members, or of each member's
    discrete: list[bool]  # of each source

    @cached_property
    def standardised_sources(self) -> Float64[torch.Tensor, "*world s n"]:
        """Sources of zero mean and unit norm."""
        return identifiability.standardised(self.sources)

    @cached_property
    def standardised_locations(self) -> Float64[torch.Tensor, "member d n"]:
        """Locations of zero mean and unit norm."""
        return identifiability.standardised(self.locations)

    def correlation(self, z: Float64[torch.Tensor, "member d n"]) -> Float64[torch.Tensor, "member s d"]:
        """Correlation of each source with each standardised latent."""
        return identifiability.standardised_correlation(self.standardised_sources, z, self.sources, self.discrete)

    @cached_property
    def column_norms(self) -> ima.ColumnNorms:
        """Statistics of the norms of the decoder's Jacobian columns."""
        return ima.column_norms(self.local.norms)

    @cached_property
    def rows(self) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Sources (n, s) and locations (n, d) of each member, for scikit-learn."""
        sources = self.sources.expand(len(self.locations), -1, -1).cpu().numpy()
        return [(s.T, z.T) for s, z in zip(sources, self.locations.cpu().numpy(), strict=True)]

    def probe(self, score: Callable[..., float]) -> Float64[torch.Tensor, " member"]:
        """A slow score of sources and locations, one member after the other."""
        return torch.tensor([score(s, z, self.discrete) for s, z in self.rows], dtype=torch.float64)

    @cached_property
    def dci(self) -> Float64[torch.Tensor, "three member"]:
        """Disentanglement, completeness and informativeness."""
        from imavae.metrics import disentanglement

        return torch.tensor([disentanglement.dci(s, z, self.discrete) for s, z in self.rows], dtype=torch.float64).T


def worst(name: str) -> float:
    """Value of a diverged member in an aggregate of a metric to maximise."""
    return METRICS[name].floor


def absent(config: RunConfig, truth: bool, stage: Stage) -> dict[str, str]:
    """The metrics that a setting does not have, each with the reason.

    Args:
        config: the setting.
        truth: whether the split has the mixing's likelihoods and Jacobians, as validation and test have.
        stage: which metrics are asked for.
    """
    reasons = {}
    for entry in METRICS:
        unmet = [requirement.reason for requirement in entry.needs if not requirement.holds(config, truth)]
        if STAGES.index(entry.stage) > STAGES.index(stage):
            unmet.append(TOO_SLOW[entry.stage])
        if unmet:
            reasons[entry.name] = unmet[0]
    return reasons


def check_metric(config: RunConfig, name: str, mode: str) -> None:
    """Raise UserError unless ``name`` (``val/mcc``) is a validation metric of this setting, optimised in ``mode``."""
    objectives = [f"val/{entry.name}" for entry in METRICS if entry.direction in ("max", "min")]
    require_choice(name, objectives, "objective.metric")
    entry = METRICS[name.removeprefix("val/")]
    require_choice(mode, [entry.direction], f"objective.mode of {name}")
    reason = absent(config, True, "validation").get(entry.name)
    if reason:
        remedy = "choose another"
        if SOURCES in entry.needs and not config.data.has_sources:
            remedy = "use objective.metric=val/agreement, or objective.metric=val/neg_elbo objective.mode=min"
        raise UserError(f"`objective.metric={name}` must exist, but does not: {reason}; {remedy}")


ARROWS = {"max": "↑", "min": "↓", "one": "→ 1", "none": ""}
PAGE = """\
# Metrics

Generated by `make docs` from `imavae/metrics/definitions.py`.

- Every validation logs `val/NAME` (curves, `history.csv`, objectives of a study).
- `members.csv` has `SPLIT/NAME at max val/mcc` and `SPLIT/NAME at min val/neg_elbo`: the metrics of a
  member's two best states, on the validation and the test split.
- A metric is computed over a whole split. Only the published estimators (`_batch`) average over
  batches; they are there for comparison. For images, fewer points are used.
- MCC needs the true sources, so choosing a model by `val/mcc` is an oracle's choice. Every report
  therefore gives MCC at the best `val/mcc`, MCC at the best `val/neg_elbo`, and the chosen
  checkpoint's MCC on the test split.
- A diverged member counts as the worst value in an aggregate.

Symbols: s sources; x = f(s) observations; z ~ q(z|x) a posterior sample; μ(x) the posterior's location,
mapped onto the prior's support; g the decoder; J = ∂g/∂z at μ(x); γ² the decoder's precision;
d latents; π a one-to-one matching of sources and latents; n points. Units refer to the observations as
the networks see them (standardised, if they come from a file) and to the latents.

## Definitions

↑ larger is better, ↓ smaller is better, → 1 best at one. Numbers under *absent if* refer to the
[list below](#when-a-metric-is-absent).

| name | definition | better | unit | absent if |
|---|---|---|---|---|
{definitions}

## Equations and sources

*here*: defined in this project, or too simple to need a source.

| name | equation | source |
|---|---|---|
{equations}

## When a metric is absent

An absent metric is not logged and can't be an objective; `evaluate.py` prints the reason:

{reasons}
"""


def metrics_page() -> str:
    """Content of docs/metrics.md."""

    def reasons_of(entry: Metric) -> list[str]:
        slow = [TOO_SLOW[entry.stage]] if entry.stage in TOO_SLOW else []
        return [requirement.reason for requirement in entry.needs] + slow

    def row(*cells: str) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    reasons = list(dict.fromkeys(reason for entry in METRICS for reason in reasons_of(entry)))
    definitions = [
        row(
            f"`{entry.name}`",
            entry.definition,
            ARROWS[entry.direction],
            entry.unit,
            ", ".join(str(reasons.index(reason) + 1) for reason in reasons_of(entry)),
        )
        for entry in METRICS
    ]
    return PAGE.format(
        definitions="\n".join(definitions),
        equations="\n".join(row(f"`{entry.name}`", entry.equation, entry.source) for entry in METRICS),
        reasons="\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)),
    )
