"""The metrics: what defines each of them, what it needs, and the function that computes it.

:class:`Evaluation` has the built-in metrics, in the order of the columns of history.csv and members.csv. A plugin adds
one with the same decorator, :class:`Metric`. Importing this module does not import torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from jaxtyping import Float, Float64

from imavae.config.data import DrawnData, SpritesData, SyntheticData
from imavae.config.registry import Registry, torch
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
        return METRICS.register(self).compute

    def read(self, name: str, definition: str, group: str = "averages") -> None:
        """Register a value that an Evaluation has under this name, in the mapping ``group``."""
        self.name, self.definition, self.compute = name, definition, lambda at: getattr(at, group)[name]
        METRICS.register(self)

    @property
    def reasons(self) -> list[str]:
        """All reasons for which the metric can be absent."""
        slow = [TOO_SLOW[self.stage]] if self.stage in TOO_SLOW else []
        return [requirement.reason for requirement in self.needs] + slow


METRICS: Registry[Metric] = Registry("objective.metric", __name__)


class MixingTruth(NamedTuple):
    """Values of the mixing for each member's world, point by point; without points if the mixing is unknown."""

    log_px: Float64[torch.Tensor, "member n"]
    contrast: Float64[torch.Tensor, "member n"]  # c_IMA of the mixing at the source


class AllMembers(NamedTuple):
    """Input of the metrics across members."""

    locations: Float[torch.Tensor, "member d n"]  # at the first 20,000 points at most
    groups: list[tuple[int, int]]  # point and world of each member


VAE = "[Kingma and Welling 2014](https://arxiv.org/abs/1312.6114)"
TCL = "[Hyvärinen and Morioka 2016](https://arxiv.org/abs/1605.06336)"
DCI = "[Eastwood and Williams 2018](https://openreview.net/forum?id=By-7dz-AZ)"
SAP = "[Kumar et al. 2018](https://arxiv.org/abs/1711.00848)"
MIG = "[Chen et al. 2018](https://arxiv.org/abs/1802.04942)"
IMA = "[Gresele et al. 2021](https://arxiv.org/abs/2106.05200)"
GAP = "[Reizinger et al. 2022](https://arxiv.org/abs/2206.02416)"
AGREEMENT = "after [Duan et al. 2020](https://arxiv.org/abs/1905.12614)"
ACTIVE = "[Burda et al. 2016](https://arxiv.org/abs/1509.00519)"
MATCHED: dict[str, Any] = {"needs": [SOURCES], "floor": 0.0}
PROBED: dict[str, Any] = {"stage": "probes", **MATCHED}


@dataclass(frozen=True)
class Evaluation:
    """A block of members on one split: results of the forward pass, quantities that several metrics share (computed on
    first use), and the metrics. A metric's docstring is its definition in docs/metrics.md.
    """

    averages: dict[str, torch.Tensor]  # means over points, and gamma: (member,); prior_variance: (member, d)
    samples: Float[torch.Tensor, "member d n"]  # of the posterior, on the prior's support
    locations: Float[torch.Tensor, "member d n"]
    cdf: Float[torch.Tensor, "member d n"] | None  # of the prior at the samples, if mcc_cdf exists
    local: ima.LocalTerms
    truth: MixingTruth
    sources: Float[torch.Tensor, "*world s n"]  # of one world shared by all members, or of each member's
    discrete: list[bool]  # of each source

    @cached_property
    def standardised_sources(self) -> Float64[torch.Tensor, "*world s n"]:
        return identifiability.standardised(self.sources)

    @cached_property
    def standardised_locations(self) -> Float64[torch.Tensor, "member d n"]:
        return identifiability.standardised(self.locations)

    def correlation(self, z: Float64[torch.Tensor, "member d n"]) -> Float64[torch.Tensor, "member s d"]:
        """Correlation of each source with each standardised latent."""
        return identifiability.standardised_correlation(self.standardised_sources, z, self.sources, self.discrete)

    @cached_property
    def column_norms(self) -> dict[str, torch.Tensor]:
        kinds = ("", "_var_columns", "_max", "_var_points")
        return {
            f"column_norm{kind}": value for kind, value in zip(kinds, ima.column_norms(self.local.norms), strict=True)
        }

    def probe(self, score: str) -> Float64[torch.Tensor, "member ..."]:
        """A score of :mod:`imavae.metrics.disentanglement`, one member after the other."""
        from imavae.metrics import disentanglement

        function, s = getattr(disentanglement, score), self.sources.mT.expand(len(self.locations), -1, -1).cpu().numpy()
        scores = [function(*pair, self.discrete) for pair in zip(s, self.locations.mT.cpu().numpy(), strict=True)]
        return torch.tensor(scores, dtype=torch.float64)

    @cached_property
    def dci(self) -> dict[str, torch.Tensor]:
        names = ("dci_disentanglement", "dci_completeness", "dci_informativeness")
        return dict(zip(names, self.probe("dci").unbind(1), strict=True))

    Metric("min", "kl − log_px_z", VAE, "nats").read(
        "neg_elbo", "Negative ELBO with β = 1, from one posterior sample per point"
    )
    Metric("none", "KL(q(z|x) ‖ p(z))", VAE, "nats").read("kl", "KL divergence of the posterior from the prior")
    Metric("max", "E_q[log N(x; g(z), γ⁻² I)]", VAE, "nats").read("log_px_z", "Reconstruction term of the ELBO")

    @Metric("max", "max_π (1/d) Σ_k |corr(s_k, z_π(k))|", TCL, **MATCHED)
    def mcc(self) -> torch.Tensor:
        """Mean absolute Pearson correlation of sources and posterior samples, matched one to one; chance is near 0. A
        discrete source is compared by the correlation ratio √(Var E[z|s] / Var z).
        """
        return identifiability.matched_mean(self.correlation(identifiability.standardised(self.samples)))

    @Metric("max", "max_π (1/d) Σ_k |ρ(s_k, z_π(k))|", TCL + ", with ranks", **MATCHED)
    def mcc_spearman(self) -> torch.Tensor:
        """As mcc, with rank correlations."""
        return identifiability.mcc(
            identifiability.ranks(self.sources), identifiability.ranks(self.samples), self.discrete
        )

    @Metric("max", "max_π (1/d) Σ_k |corr(s_k, μ_π(k)(x))|", TCL, **MATCHED)
    def mcc_mean(self) -> torch.Tensor:
        """As mcc, with the posterior's location instead of samples."""
        return identifiability.matched_mean(self.correlation(self.standardised_locations))

    @Metric("max", "max_π (1/d) Σ_k |corr(s_k, F_p(z_π(k)))|", TCL, needs=[SOURCES, UNIFORM_SOURCES], floor=0.0)
    def mcc_cdf(self) -> torch.Tensor:
        """As mcc, with samples mapped through the prior's CDF; for uniform sources under another prior."""
        assert self.cdf is not None  # noqa: S101  -- the forward pass keeps it for this metric
        return identifiability.matched_mean(self.correlation(identifiability.standardised(self.cdf)))

    @Metric("max", "mean over batches of mcc", GAP, **MATCHED)
    def mcc_batch(self) -> torch.Tensor:
        """Published estimator: mcc averaged over batches of 64 points; chance is 0.15 for d = 3."""
        sources, samples = identifiability.batches(self.sources), identifiability.batches(self.samples)
        return identifiability.mcc(sources, samples, self.discrete).mean(1)

    @Metric("max", "mean_k 1 − Σ(s_k − ŝ_k)² / Σ(s_k − s̄_k)²", **MATCHED)
    def r2_linear(self) -> torch.Tensor:
        """R² of the best linear map from locations to sources, fitted on half of the points, scored on the rest."""
        return identifiability.r2_linear(self.standardised_sources, self.standardised_locations)

    @Metric("max", "as r2_linear, ŝ a function of all of μ(x)", **PROBED)
    def r2_nonlinear(self) -> torch.Tensor:
        """As r2_linear, with a nonlinear map (kernel ridge regression) and at most 2,000 points in each half."""
        return identifiability.r2_nonlinear(self.sources, self.locations)

    @Metric("max", "median over others of mcc(μ, μ')", AGREEMENT, needs=[SEVERAL_SEEDS], floor=0.0, across_members=True)
    @staticmethod
    def agreement(at: AllMembers) -> torch.Tensor:
        """Median MCC between a member's locations and those of its point's other seeds, on at most 20,000 points."""
        return identifiability.agreement(at.locations, at.groups)

    Metric("max", "Σ_l ρ_l (1 − H(P_l·))", DCI, **PROBED).read(
        "dci_disentanglement", "Degree to which each latent codes at most one source (random forests)", "dci"
    )
    Metric("max", "mean_k (1 − H(P_·k))", DCI, **PROBED).read(
        "dci_completeness", "Degree to which each source is coded by one latent", "dci"
    )
    Metric("max", "R², balanced accuracy if discrete", DCI, **PROBED).read(
        "dci_informativeness", "Accuracy with which the latents predict the sources", "dci"
    )

    @Metric("max", "mean_k (score_1 − score_2)", SAP, **PROBED)
    def sap(self) -> torch.Tensor:
        """Separated attribute predictability: lead of the latent that predicts a source best over the second best."""
        return self.probe("sap")

    @Metric("max", "mean_k (I_1 − I_2) / H(s_k)", MIG, **PROBED)
    def mig(self) -> torch.Tensor:
        """Mutual information gap: lead of the latent with the most information on a source over the second."""
        return self.probe("mig")

    @Metric("min", "Σ_k log‖J_:k‖ − ½ log det(JᵀJ)", IMA, "nats")
    def cima(self) -> torch.Tensor:
        """Local IMA contrast of the decoder at μ(x), averaged over the points of full rank."""
        return ima.mean_where(self.local.contrast, self.local.full)

    @Metric("min", "mean over batches of c_IMA(mean J)", GAP, "nats")
    def cima_batch(self) -> torch.Tensor:
        """Published estimator: the contrast of the mean Jacobian of 64 points."""
        batch = ima.contrast(self.local.batch_jacobian)
        return ima.mean_where(batch.values, batch.full)

    @Metric("min", "#{rank J < d} / n")
    def rank_deficient(self) -> torch.Tensor:
        """Share of the points that cima leaves out because their Jacobian lacks full rank."""
        return 1 - self.local.full.double().mean(1)

    @Metric("none", "mean c_IMA(f, s)", IMA, "nats", needs=TRUTH)
    def cima_truth(self) -> torch.Tensor:
        """Local IMA contrast of the mixing."""
        return self.truth.contrast.mean(1)

    @Metric("min", "of R = J_g⁻¹ J_f, over points of full rank", "Amari et al., NIPS 1995", stage="final", needs=TRUTH)
    def amari(self) -> torch.Tensor:
        """Amari distance between the decoder's Jacobian at μ(x) and the mixing's at s; 0 for a scaled permutation."""
        assert self.local.amari is not None  # noqa: S101  -- the forward pass computes it for this metric
        return ima.mean_where(self.local.amari, ~self.local.amari.isnan())

    @Metric("min", "(d/2) log(tr(JᵀJ)/d) − ½ log det(JᵀJ)", unit="nats", stage="final")
    def conformal_contrast(self) -> torch.Tensor:
        """Distance of the decoder from a conformal map; at least cima."""
        return ima.conformal_contrast(ima.Contrast(self.local.contrast, self.local.full, self.local.norms))

    Metric("none", "mean over points and k of ‖J_:k‖", unit="observation / latent").read(
        "column_norm", "Mean norm of the columns of the decoder's Jacobian", "column_norms"
    )
    Metric("none", "max over points and k of ‖J_:k‖", unit="observation / latent").read(
        "column_norm_max", "Largest of these norms", "column_norms"
    )
    Metric("none", "Var_k of mean over points of ‖J_:k‖", unit="(observation / latent)²").read(
        "column_norm_var_columns", "Variance of these norms between columns", "column_norms"
    )
    Metric("none", "mean_k of Var over points of ‖J_:k‖", unit="(observation / latent)²").read(
        "column_norm_var_points", "Variance of these norms between points", "column_norms"
    )

    @Metric("one", "exp mean log(var_k / σ_k²), σ_k⁻² = −(log p)″(μ_k) + γ²‖J_:k‖²", GAP)
    def self_consistency(self) -> torch.Tensor:
        """Geometric mean of the posterior's variance over its formula, both in the unconstrained coordinate."""
        return self.local.log_ratio.mean(1).exp()

    @Metric("one", "mean over batches and k of mean(var_k) · (mean −(log p)″ + γ²‖mean J_:k‖²)", GAP)
    def self_consistency_batch(self) -> torch.Tensor:
        """Published estimator: the formula with the mean Jacobian of 64 points."""
        return self.local.batch_ratio.mean((1, 2))

    @Metric("none", "E[log p(s) − log|det J_f(s)|]", "change of variables", "nats", needs=TRUTH)
    def log_px(self) -> torch.Tensor:
        """Exact log-likelihood of the observations."""
        return self.truth.log_px.mean(1)

    @Metric("none", "E[log p(x) − c_IMA(f, s)]", IMA, "nats", needs=TRUTH)
    def l_ima(self) -> torch.Tensor:
        """IMA-regularised log-likelihood."""
        return (self.truth.log_px - self.truth.contrast).mean(1)

    @Metric("min", "E[log p(x)] − ELBO", GAP, "nats", needs=TRUTH)
    def gap_log_px(self) -> torch.Tensor:
        """Log-likelihood minus ELBO; not negative, except for the sampling of x and of the posterior."""
        return self.log_px() + self.averages["neg_elbo"]

    @Metric("none", "E[L_IMA] − ELBO", GAP, "nats", needs=TRUTH)
    def gap_ima(self) -> torch.Tensor:
        """IMA-regularised log-likelihood minus ELBO; tends to 0 for the true decoder as γ grows."""
        return self.l_ima() + self.averages["neg_elbo"]

    Metric("min", "mean (g(μ(x)) − x)²", GAP, "observation²").read(
        "mse_obs", "Squared error per dimension of the reconstruction from the posterior's location"
    )
    Metric(
        "min", "mean (μ(g(s)) − s)²", GAP, "source²", stage="final", needs=[SOURCES, OWN_SCALE, SHARED_SUPPORT]
    ).read(
        "mse_source",
        "Squared error per dimension of the sources, decoded and encoded again; if prior and source share a support",
    )
    Metric("none", "γ", unit="1 / observation").read(
        "gamma", "Square root of the decoder's precision; changes if model.precision is learned or mle"
    )

    @Metric("none", "mean_k Var p(z_k)", unit="latent²")
    def prior_variance(self) -> torch.Tensor:
        """Variance of a latent under the prior; changes if model.prior.parameters is learned."""
        return self.averages["prior_variance"].mean(1)

    @Metric("none", "#{k : Var μ_k(x) > 0.01 Var p(z_k)}", ACTIVE, "latents")
    def active_units(self) -> torch.Tensor:
        """Number of latents in use."""
        return identifiability.active_units(self.locations, self.averages["prior_variance"])


def absent(config: RunConfig, truth: bool, stage: Stage) -> dict[str, str]:
    """Metrics that a setting does not have at this stage, each with the reason; ``truth`` is True for a split with the
    mixing's likelihoods and Jacobians.
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
