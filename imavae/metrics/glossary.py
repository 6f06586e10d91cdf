"""The metrics: what defines each of them, what it needs, and the function that computes it.

:class:`Evaluation` has the built-in metrics, in the order of the columns of history.csv and members.csv. A plugin adds
one with the same decorator, :class:`Metric`. Importing this module does not import torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jaxtyping import Float

from imavae.config.data import DrawnData, SpritesData
from imavae.config.registry import Registry, torch
from imavae.config.settings import WORST_SCORE, RunConfig, support
from imavae.data.sources import UniformSource
from imavae.errors import UserError, require_choice
from imavae.metrics import identifiability, ima
from imavae.model.priors import UniformPrior

if TYPE_CHECKING:
    from imavae.metrics.forward import Evaluation

Curve = Literal["all", "first", "none"]  # points of the validation split
Direction = Literal["max", "min", "one", "none"]  # "one": best at 1; "none": neither better nor worse
Compute = Callable[[Any], "torch.Tensor"]  # of an Evaluation (of AllMembers for a metric across members): (member,)

CURVE_POINTS = 512  # of the validation split, for a metric whose curve is over the first points
NEARLY_LINEAR = 0.95  # a world in which linear ICA has a larger MCC is called nearly linear
OF_WORLDS = ("mcc_linear_ica", "mcc_pca", "r2_linear_world")  # metrics that do not depend on the member
TOO_SLOW = "slow: evaluate.py has it, and members.csv with training.probes=true"  # reason for a probe's absence


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
    "the sources are not drawn from a uniform distribution, onto which a prior's CDF maps",
    lambda config, _: isinstance(config.data, DrawnData) and isinstance(config.data.source, UniformSource),
)
OTHER_PRIOR = Requirement(
    "the prior is uniform: its CDF is linear and changes no correlation",
    lambda config, _: not isinstance(config.model.prior, UniformPrior),
)
BOUNDED = Requirement(
    "the sources have no bounded support",
    lambda config, _: config.data.support is not None and all(map(math.isfinite, config.data.support)),
)
FEWER_NUMBERS = Requirement(
    "images have more numbers than the rows on which a map would be fitted",
    lambda config, _: not config.data.has_images,
)
FULL_RANK = Requirement(
    "there are more latents than observed numbers: the decoder's columns depend on one another",
    lambda config, _: config.latents <= config.data.features,
)
ONE_EACH = Requirement(
    "the numbers of latents and sources differ (model.dim)", lambda config, _: config.latents == config.data.dim
)
POSTERIOR = Requirement(
    "a flow has no posterior and no decoder's noise: it is inverted exactly",
    lambda config, _: not config.model.is_flow,
)
SEVERAL_SEEDS = Requirement("a single seed has no others to agree with", lambda config, _: len(config.members.seed) > 1)
TRUTH = (
    Requirement(
        "images have no exact likelihood, and no Jacobian of their rendering is kept",
        lambda config, _: not config.data.has_images,
    ),
    Requirement(
        "the mixing is unknown, and so are its likelihoods and Jacobians",
        lambda config, _: isinstance(config.data, DrawnData),
    ),
    Requirement(
        "likelihoods and Jacobians of the mixing are kept for val and test only",
        lambda config, truth: truth or isinstance(config.data, SpritesData),
    ),
)
DIFFERENTIABLE = Requirement(
    "images have no derivative by a discrete factor",
    lambda config, _: not any(factor.discrete for factor in config.data.source_factors),
)
UNKNOWN_MIXING = (
    SOURCES,
    Requirement(
        "the mixing is known: cima_truth has the exact value",
        lambda config, _: not isinstance(config.data, DrawnData),
    ),
    FEWER_NUMBERS,
)
DENSITY = (
    *TRUTH,
    Requirement(
        "observations lie on a surface, on which a density has another unit than a model's (data.observed)",
        lambda config, _: config.data.features == config.data.dim,
    ),
)


@dataclass
class Metric:
    """A metric; a decorator that registers the decorated function under its name, with its docstring as definition."""

    direction: Direction
    equation: str
    source: str = "here"  # publication that defines it
    unit: str = ""  # none for a pure number
    curve: Curve = "none"  # points at which validations compute it; all of them if it is an objective
    probe: bool = False  # True: slow, so it is computed on request only
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

    def read(self, name: str, definition: str, attribute: str = "") -> None:
        """Register an attribute of an Evaluation, by default that of the metric's name."""
        self.name, self.definition, self.compute = name, definition, attrgetter(attribute or name)
        METRICS.register(self)

    @property
    def reasons(self) -> list[str]:
        """All reasons for which the metric can be absent."""
        return [requirement.reason for requirement in self.needs] + [TOO_SLOW] * self.probe


METRICS: Registry[Metric] = Registry("objective.metric", __name__)


class AllMembers(NamedTuple):
    """Input of the metrics across members."""

    locations: Float[torch.Tensor, "member d n"]  # at the first 20,000 points at most
    groups: list[tuple[int, int]]  # point and world of each member


ICA = "[Hyvärinen 1999](https://doi.org/10.1109/72.761722), [scikit-learn](https://scikit-learn.org)"
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
PROBED: dict[str, Any] = {"probe": True, **MATCHED}


Metric("min", "kl − log_px_z", VAE, "nats", curve="all").read(
    "neg_elbo",
    "Negative ELBO with β = 1, from one posterior sample per point; of a flow, the exact −log p(x)",
    "elbo.neg_elbo",
)
Metric("none", "KL(q(z|x) ‖ p(z))", VAE, "nats", curve="all", needs=[POSTERIOR]).read(
    "kl", "KL divergence of the posterior from the prior", "elbo.kl"
)
Metric("max", "E_q[log N(x; g(z), γ⁻² I)]", VAE, "nats", curve="all", needs=[POSTERIOR]).read(
    "log_px_z", "Reconstruction term of the ELBO", "elbo.log_px_z"
)


@Metric("max", "max_π (1/d) Σ_k |corr(s_k, z_π(k))|", TCL, **MATCHED, curve="all")
def mcc(at: Evaluation) -> torch.Tensor:
    """Mean over the sources of the absolute Pearson correlation with posterior samples, matched one to one; chance is
    near 0. Latents in excess are left out; a source without a latent counts 0. A discrete source is compared by the
    correlation ratio √(Var E[z|s] / Var z).
    """
    return identifiability.matched_mean(at.correlation(identifiability.standardised(at.samples)))


@Metric("max", "max_π (1/d) Σ_k |ρ(s_k, z_π(k))|", TCL + ", with ranks", **MATCHED)
def mcc_spearman(at: Evaluation) -> torch.Tensor:
    """As mcc, with rank correlations."""
    return identifiability.mcc(identifiability.ranks(at.sources), identifiability.ranks(at.samples), at.discrete)


@Metric("max", "max_π (1/d) Σ_k |corr(s_k, μ_π(k)(x))|", TCL, **MATCHED)
def mcc_mean(at: Evaluation) -> torch.Tensor:
    """As mcc, with the posterior's location instead of samples."""
    return identifiability.matched_mean(at.correlation(at.standardised_locations))


@Metric(
    "max", "max_π (1/d) Σ_k |corr(s_k, F_p(z_π(k)))|", TCL, needs=[SOURCES, UNIFORM_SOURCES, OTHER_PRIOR], floor=0.0
)
def mcc_cdf(at: Evaluation) -> torch.Tensor:
    """As mcc, with samples mapped through the prior's CDF; for uniform sources under another prior."""
    return identifiability.matched_mean(at.correlation(identifiability.standardised(at.cdf)))


@Metric("max", "mean over batches of mcc", GAP, **MATCHED)
def mcc_batch(at: Evaluation) -> torch.Tensor:
    """Published estimator: mcc averaged over batches of training.batch_size points (in multiples of 64); chance is 0.15
    for d = 3 and 64 points.
    """
    size = at.batch(len(at.split))
    sources, samples = identifiability.batches(at.sources, size), identifiability.batches(at.samples, size)
    return identifiability.mcc(sources, samples, at.discrete).mean(1)


Metric("none", "as mcc_mean, of FastICA's components of x", ICA, needs=[SOURCES]).read(
    "mcc_linear_ica",
    "Linear reference: MCC of linear ICA, fitted on at most 20,000 points of the training split; "
    "of 5 starts, the one with the largest negentropy",
    "linear.mcc_linear_ica",
)
Metric("none", "as mcc_mean, of the principal components of x", needs=[SOURCES]).read(
    "mcc_pca", "MCC of the first d principal components, fitted on the same points", "linear.mcc_pca"
)
Metric("none", "as r2_linear, ŝ an affine function of x", needs=[SOURCES, FEWER_NUMBERS]).read(
    "r2_linear_world",
    "R² of the best linear map from observations to sources, fitted on the same points: how linear the world is",
    "linear.r2_linear_world",
)


@Metric("max", "mcc − mcc_linear_ica", needs=[SOURCES], floor=-1.0)
def nonlinear_gain(at: Evaluation) -> torch.Tensor:
    """Lead of mcc over linear ICA on the same points; without it, mcc is no evidence of nonlinear recovery."""
    return mcc(at) - at.linear.mcc_linear_ica


@Metric("max", "mean_k 1 − Σ(s_k − ŝ_k)² / Σ(s_k − s̄_k)²", **MATCHED)
def r2_linear(at: Evaluation) -> torch.Tensor:
    """R² of the best linear map from locations to sources, fitted on half of the points, scored on the rest."""
    return identifiability.r2_linear(at.standardised_sources, at.standardised_locations)


@Metric("max", "as r2_linear, ŝ a function of all of μ(x)", **PROBED)
def r2_nonlinear(at: Evaluation) -> torch.Tensor:
    """As r2_linear, with a nonlinear map (kernel ridge regression) and at most 2,000 points in each half."""
    return identifiability.r2_nonlinear(at.sources, at.locations)


AMONG_SEEDS: dict[str, Any] = {"needs": [SEVERAL_SEEDS], "floor": 0.0, "across_members": True}


@Metric("max", "median over others of mcc(μ, μ')", AGREEMENT, curve="first", **AMONG_SEEDS)
def agreement(at: AllMembers) -> torch.Tensor:
    """Median MCC between a member's locations and those of its point's other seeds, on at most 20,000 points."""
    return identifiability.agreement(at.locations, at.groups)


@Metric("min", "mean over k < l of |corr(μ_k(x), μ_l(x))|")
def latent_correlation(at: Evaluation) -> torch.Tensor:
    """Mean absolute correlation of two latents' locations."""
    return identifiability.latent_correlation(at.standardised_locations)


Metric("max", "Σ_l ρ_l (1 − H(P_l·))", DCI, **PROBED).read(
    "dci_disentanglement",
    "Degree to which each latent codes at most one source (random forests)",
    "dci.disentanglement",
)
Metric("max", "mean_k (1 − H(P_·k))", DCI, **PROBED).read(
    "dci_completeness", "Degree to which each source is coded by one latent", "dci.completeness"
)
Metric("max", "R², balanced accuracy if discrete", DCI, **PROBED).read(
    "dci_informativeness", "Accuracy with which the latents predict the sources", "dci.informativeness"
)


@Metric("max", "mean_k (score_1 − score_2)", SAP, **PROBED)
def sap(at: Evaluation) -> torch.Tensor:
    """Separated attribute predictability: lead of the latent that predicts a source best over the second best."""
    return at.probe("sap")


@Metric("max", "mean_k (I_1 − I_2) / H(s_k)", MIG, **PROBED)
def mig(at: Evaluation) -> torch.Tensor:
    """Mutual information gap: lead of the latent with the most information on a source over the second."""
    return at.probe("mig")


@Metric("min", "Σ_k log‖J_:k‖ − ½ log det(JᵀJ)", IMA, "nats", curve="first", needs=[FULL_RANK])
def cima(at: Evaluation) -> torch.Tensor:
    """Local IMA contrast of the decoder at μ(x), averaged over the points of full rank."""
    return ima.mean_where(at.local.contrast.values, at.local.contrast.full)


@Metric("min", "mean over batches of c_IMA(mean J)", GAP, "nats", needs=[FULL_RANK])
def cima_batch(at: Evaluation) -> torch.Tensor:
    """Published estimator: the contrast of the mean Jacobian at the posterior samples of a batch, as for mcc_batch."""
    batch = ima.contrast(at.batch_jacobian)
    return ima.mean_where(batch.values, batch.full)


@Metric("min", "#{rank J < d} / n", needs=[FULL_RANK])
def rank_deficient(at: Evaluation) -> torch.Tensor:
    """Share of the points that cima leaves out because their Jacobian lacks full rank."""
    return 1 - at.local.contrast.full.double().mean(1)


@Metric("none", "mean c_IMA(f, s)", IMA, "nats", needs=[*TRUTH[1:], DIFFERENTIABLE])
def cima_truth(at: Evaluation) -> torch.Tensor:
    """Local IMA contrast of the mixing; of sprites, by central differences of the renderer, at the points of cima."""
    return at.true_contrast.mean(1) if at.rendered is None else at.rendered()[at.world.cpu()]


Metric("none", "mean c_IMA(ĝ, s), ĝ = argmin E‖ĝ(s) − x‖²", IMA, "nats", probe=True, needs=UNKNOWN_MIXING).read(
    "cima_truth_estimate",
    "Estimate of cima_truth where sources are known and the mixing is not: the contrast of an MLP ĝ, fitted on the "
    "training split from the sources to the observations as the networks see them; NaN if its R² is below 0.9",
    "estimate.cima",
)
Metric("none", "mean over columns of 1 − Σ(x − ĝ(s))² / Σ(x − x̄)²", probe=True, needs=UNKNOWN_MIXING).read(
    "cima_truth_estimate_r2", "R² on the validation split of the fit behind cima_truth_estimate", "estimate.r2"
)


@Metric("min", "of R = J_g⁻¹ J_f, over points of full rank", "Amari et al., NIPS 1995", needs=[ONE_EACH, *TRUTH])
def amari(at: Evaluation) -> torch.Tensor:
    """Amari distance between the decoder's Jacobian at μ(x) and the mixing's at s; 0 for a scaled permutation."""
    distance = at.local.amari
    assert distance is not None  # noqa: S101  -- computed where the metric exists
    return ima.mean_where(distance, ~distance.isnan())


@Metric("min", "(d/2) log(tr(JᵀJ)/d) − ½ log det(JᵀJ)", unit="nats", needs=[FULL_RANK])
def conformal_contrast(at: Evaluation) -> torch.Tensor:
    """Distance of the decoder from a conformal map; at least cima."""
    return ima.conformal_contrast(at.local.contrast)


Metric("none", "mean over points and k of ‖J_:k‖", unit="observation / latent").read(
    "column_norm", "Mean norm of the columns of the decoder's Jacobian", "column_norms.mean"
)
Metric("none", "max over points and k of ‖J_:k‖", unit="observation / latent").read(
    "column_norm_max", "Largest of these norms", "column_norms.maximum"
)
Metric("none", "Var_k of mean over points of ‖J_:k‖", unit="(observation / latent)²").read(
    "column_norm_var_columns", "Variance of these norms between columns", "column_norms.variance_over_columns"
)
Metric("none", "mean_k of Var over points of ‖J_:k‖", unit="(observation / latent)²").read(
    "column_norm_var_points", "Variance of these norms between points", "column_norms.variance_over_points"
)


@Metric("one", "exp mean log(var_k / σ_k²), σ_k⁻² = −(log p)″(μ_k) + γ²‖J_:k‖²", GAP, curve="first", needs=[POSTERIOR])
def self_consistency(at: Evaluation) -> torch.Tensor:
    """Geometric mean of the posterior's variance over its formula, both in the unconstrained coordinate."""
    return (at.variances.posterior * at.variances.inverse_formula).log_().mean(1).mean(1).exp()


@Metric("one", "mean over batches and k of mean(var_k) · (mean −(log p)″ + γ²‖mean J_:k‖²)", GAP, needs=[POSTERIOR])
def self_consistency_batch(at: Evaluation) -> torch.Tensor:
    """Published estimator: the formula with the mean Jacobian of a batch, as for mcc_batch."""
    return at.variances.batch_ratio.mean((1, 2))


@Metric("none", "E[log p(s) − log|det J_f(s)|]", "change of variables", "nats", needs=DENSITY)
def log_px(at: Evaluation) -> torch.Tensor:
    """Exact log-likelihood of the observations."""
    return at.truth.log_px.mean(1)[at.world]


@Metric("none", "E[log p(x) − c_IMA(f, s)]", IMA, "nats", needs=DENSITY)
def l_ima(at: Evaluation) -> torch.Tensor:
    """IMA-regularised log-likelihood."""
    return (at.truth.log_px[at.world] - at.true_contrast).mean(1)


@Metric("min", "E[log p(x)] − ELBO", GAP, "nats", needs=DENSITY, curve="all")
def gap_log_px(at: Evaluation) -> torch.Tensor:
    """Log-likelihood minus ELBO; not negative, except for the sampling of x and of the posterior. Of a flow, the KL
    divergence of its density from the true one.
    """
    return log_px(at) + at.elbo.neg_elbo


@Metric("none", "E[L_IMA] − ELBO", GAP, "nats", needs=[POSTERIOR, *DENSITY])
def gap_ima(at: Evaluation) -> torch.Tensor:
    """IMA-regularised log-likelihood minus ELBO; tends to 0 for the true decoder as γ grows."""
    return l_ima(at) + at.elbo.neg_elbo


Metric("min", "mean (g(μ(x)) − x)²", GAP, "observation²", curve="first", needs=[POSTERIOR]).read(
    "mse_obs", "Squared error per dimension of the reconstruction from the posterior's location"
)
Metric("min", "mean (g(μ(x)) − x)², |s| < 0.8 w/2", GAP, "observation²", needs=[POSTERIOR, SOURCES, BOUNDED]).read(
    "mse_obs_interior", "As mse_obs, without points that have a source near an end of its support, of width w"
)
ENCODED_AGAIN = [POSTERIOR, SOURCES, ONE_EACH, OWN_SCALE, SHARED_SUPPORT]
Metric("min", "mean (μ(g(s)) − s)²", GAP, "source²", needs=ENCODED_AGAIN).read(
    "mse_source",
    "Squared error per dimension of the sources, decoded and encoded again; if prior and source share a support",
)
Metric("min", "mean (μ(g(s)) − s)², |s| < 0.8 w/2", GAP, "source²", needs=[*ENCODED_AGAIN, BOUNDED]).read(
    "mse_source_interior", "As mse_source, without points that have a source near an end of its support"
)
Metric("none", "γ", unit="1 / observation", curve="all", needs=[POSTERIOR]).read(
    "gamma", "Square root of the decoder's precision; changes if model.precision is learned or mle"
)


@Metric("none", "mean_k Var p(z_k)", unit="latent²", curve="all")
def prior_variance(at: Evaluation) -> torch.Tensor:
    """Variance of a latent under the prior; changes if model.prior.parameters is learned."""
    return at.prior_variance_of_latents.mean(1)


@Metric("none", "#{k : Var μ_k(x) > 0.01 Var p(z_k)}", ACTIVE, "latents", curve="first")
def active_units(at: Evaluation) -> torch.Tensor:
    """Number of latents in use."""
    return identifiability.active(at.locations, at.prior_variance_of_latents).sum(1)


def absent(config: RunConfig, truth: bool, probes: bool = False) -> dict[str, str]:
    """Metrics that a setting does not have, each with the reason; ``truth`` is True for a split with the mixing's
    likelihoods and Jacobians, ``probes`` for an evaluation with the slow metrics.
    """
    unmet = {entry.name: [need.reason for need in entry.needs if not need.holds(config, truth)] for entry in METRICS}
    for entry in METRICS:
        if entry.probe and not probes:
            unmet[entry.name].append(TOO_SLOW)
    return {name: reasons[0] for name, reasons in unmet.items() if reasons}


def check_metric(config: RunConfig, name: str, mode: str) -> None:
    """Raise UserError unless ``name`` (``val/mcc``) exists at this setting, and is to optimise in ``mode``."""
    objectives = [f"val/{entry.name}" for entry in METRICS if entry.direction in ("max", "min")]
    require_choice(name, objectives, "objective.metric")
    entry = METRICS[name.removeprefix("val/")]
    require_choice(mode, [entry.direction], f"objective.mode of {name}")
    reason = absent(config, True).get(entry.name)
    if reason:
        remedy = "choose another"
        if SOURCES in entry.needs and not config.data.has_sources:
            remedy = "use objective.metric=val/agreement, or objective.metric=val/neg_elbo objective.mode=min"
        raise UserError(f"`objective.metric={name}` must exist, but does not: {reason}; {remedy}")
