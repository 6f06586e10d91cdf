"""The glossary: every metric that is logged, what it is, which way is better, and where it can't be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from imavae.config.data import DrawnData, SpritesData, SyntheticData
from imavae.config.settings import WORST_SCORE, RunConfig, support
from imavae.config.variants import UniformPrior, UniformSource
from imavae.errors import UserError, require_choice

Stage = Literal["validation", "final", "probes"]  # while training; at the end; at the end, if they are asked for


class Metric(NamedTuple):
    """An entry of the glossary; ``direction`` is max, min, one (best at 1) or none (no better or worse)."""

    definition: str
    direction: str
    equation: str
    source: str  # where it was defined; "here" for what has no other
    unit: str = ""  # none: a pure number


VAE = "Kingma and Welling 2014"
TCL = "Hyvärinen and Morioka 2016"
DCI = "Eastwood and Williams 2018"
IMA = "Gresele et al. 2021"
GAP = "Reizinger et al. 2022"

GLOSSARY = {
    "neg_elbo": Metric(
        "negative ELBO, with one posterior sample a point",
        "min", "kl − log_px_z", VAE, "nats"),
    "kl": Metric(
        "divergence of the posterior from the prior",
        "none", "KL(q(z|x) ‖ p(z))", VAE, "nats"),
    "log_px_z": Metric(
        "reconstruction term",
        "max", "E_q[log N(x; g(z), γ⁻² I)]", VAE, "nats"),
    "mcc": Metric(
        "mean absolute Pearson correlation of sources and posterior samples, matched one to one; "
        "chance ≈ 0; of a discrete source the correlation ratio counts, √(Var E[z|s] / Var z)",
        "max", "max_π (1/d) Σ_k |corr(s_k, z_π(k))|", TCL),
    "mcc_spearman": Metric(
        "the same with rank correlations",
        "max", "max_π (1/d) Σ_k |ρ(s_k, z_π(k))|", TCL + ", with ranks"),
    "mcc_mean": Metric(
        "the same with the posterior's location",
        "max", "max_π (1/d) Σ_k |corr(s_k, μ_π(k)(x))|", TCL),
    "mcc_cdf": Metric(
        "the same with samples put through the prior's CDF; uniform sources under another prior",
        "max", "max_π (1/d) Σ_k |corr(s_k, F_p(z_π(k)))|", TCL),
    "mcc_batch": Metric(
        "published estimator: mcc averaged over 64-sample batches; chance is 0.15 for d = 3",
        "max", "mean over batches of mcc", GAP),
    "r2_linear": Metric(
        "R² of the best linear map from locations to sources, fitted on the first half of the points,"
        " scored on the second",
        "max", "mean_k 1 − Σ(s_k − ŝ_k)² / Σ(s_k − s̄_k)²", "here"),
    "r2_nonlinear": Metric(
        "the same of a nonlinear map (kernel ridge regression), on a few thousand points",
        "max", "as r2_linear, ŝ a function of all of μ(x)", "here"),
    "agreement": Metric(
        "median MCC between a member's locations and those of the other seeds of its point, on 20,000"
        " points at the most; needs no sources",
        "max", "median over others of max_π (1/d) Σ_k |corr(μ_k, μ'_π(k))|", "after Duan et al. 2020"),
    "dci_disentanglement": Metric(
        "each latent codes one factor at the most (random forests)",
        "max", "Σ_l ρ_l (1 − H(P_l·))", DCI),
    "dci_completeness": Metric(
        "each factor lies in one latent",
        "max", "mean_k (1 − H(P_·k))", DCI),
    "dci_informativeness": Metric(
        "factors can be predicted from latents",
        "max", "R², balanced accuracy if discrete", DCI),
    "sap": Metric(
        "how far the best latent of a factor is ahead of the second",
        "max", "mean_k (score_1 − score_2)", "Kumar et al. 2018"),
    "mig": Metric(
        "gap of mutual information between the best two latents of a factor",
        "max", "mean_k (I_1 − I_2) / H(s_k)", "Chen et al. 2018"),
    "cima": Metric(
        "local IMA contrast of the decoder at μ(x), averaged over the points of full rank",
        "min", "Σ_k log‖J_:k‖ − ½ log det(JᵀJ)", IMA, "nats"),
    "cima_batch": Metric(
        "published estimator: the contrast of the mean Jacobian of 64 samples",
        "min", "mean over batches of c_IMA(mean J)", GAP, "nats"),
    "rank_deficient": Metric(
        "share of the points that cima leaves out: a Jacobian without full rank",
        "min", "#{rank J < d} / n", "here"),
    "cima_truth": Metric(
        "local IMA contrast of the mixing itself",
        "none", "mean c_IMA(f, s)", IMA, "nats"),
    "amari": Metric(
        "Amari distance of the decoder's Jacobian at μ(x) to the mixing's at s; 0 for a scaled "
        "permutation",
        "min", "of R = J_g⁻¹ J_f, over points of full rank", "Amari et al. 1996"),
    "conformal_contrast": Metric(
        "how far the decoder is from conformal; at least cima",
        "min", "(d/2) log(tr(JᵀJ)/d) − ½ log det(JᵀJ)", "here", "nats"),
    "column_norm": Metric(
        "norm of the Jacobian's columns",
        "none", "mean over points and k of ‖J_:k‖", "here", "observation / latent"),
    "column_norm_max": Metric(
        "the largest of them",
        "none", "max over points and k of ‖J_:k‖", "here", "observation / latent"),
    "column_norm_var_columns": Metric(
        "how they differ between columns",
        "none", "Var_k of mean over points of ‖J_:k‖", "here", "(observation / latent)²"),
    "column_norm_var_points": Metric(
        "how they differ between points",
        "none", "mean_k of Var over points of ‖J_:k‖", "here", "(observation / latent)²"),
    "self_consistency": Metric(
        "posterior variance over its formula, geometric mean, in the unconstrained coordinate",
        "one", "exp mean log(var_k / σ_k²), σ_k⁻² = −(log p)″(μ_k) + γ²‖J_:k‖²", GAP),
    "self_consistency_batch": Metric(
        "published estimator: norms of the mean Jacobian of 64 samples",
        "one", "mean over batches and k of mean(var_k) · (mean −(log p)″ + γ²‖mean J_:k‖²)", GAP),
    "log_px": Metric(
        "exact log-likelihood of the observations",
        "none", "E[log p(s) − log|det J_f(s)|]", "change of variables", "nats"),
    "l_ima": Metric(
        "IMA-regularised log-likelihood",
        "none", "E[log p(x) − c_IMA(f, s)]", IMA, "nats"),
    "gap_log_px": Metric(
        "how far the ELBO lies below the log-likelihood",
        "min", "E[log p(x)] − ELBO", GAP, "nats"),
    "gap_ima": Metric(
        "how far it lies below the IMA-regularised one",
        "none", "E[L_IMA] − ELBO", GAP, "nats"),
    "mse_obs": Metric(
        "squared error of the reconstruction from the posterior's location, per dimension",
        "min", "mean (g(μ(x)) − x)²", GAP, "observation²"),
    "mse_source": Metric(
        "squared error of the encoded decoding of the sources, per dimension; only where prior and "
        "source share their support",
        "min", "mean (μ(g(s)) − s)²", GAP, "source²"),
    "gamma": Metric(
        "root of the decoder's precision; moves where model.precision is learned or mle",
        "none", "γ", "here", "1 / observation"),
    "prior_variance": Metric(
        "variance of a latent under the prior; moves where model.prior.parameters is learned",
        "none", "mean_k Var p(z_k)", "here", "latent²"),
    "active_units": Metric(
        "latents in use",
        "none", "#{k : Var μ_k(x) > 0.01 Var p(z_k)}", "Burda et al. 2016", "latents"),
}  # fmt: skip
FINAL = ("amari", "conformal_contrast", "mse_source")  # at best states alone: each costs a validation a tenth or more
PROBES = ("r2_nonlinear", "dci_disentanglement", "dci_completeness", "dci_informativeness", "sap", "mig")  # slow
TRUTH = ("cima_truth", "amari", "log_px", "l_ima", "gap_log_px", "gap_ima")  # need the mixing

SOURCES = ("mcc", "mcc_spearman", "mcc_mean", "mcc_cdf", "mcc_batch", "r2_linear", "mse_source", *PROBES)  # need them
SLOW = "slow: members.csv and evaluate.py have it, no validation does"


class Absence(NamedTuple):
    """Why a setting can't have some metrics."""

    metrics: tuple[str, ...]
    reason: str
    holds: Callable[[RunConfig, bool, Stage], bool]  # of the arguments of :func:`absent`


def _images(config: RunConfig) -> bool:
    return isinstance(config.data, SpritesData)


ABSENCES = (  # where several hold of a metric, the last one is told
    Absence(FINAL, SLOW, lambda _, __, stage: stage == "validation"),
    Absence(
        ("mse_source",),
        "prior and source have different supports",
        lambda config, *_: support(config) != config.data.support,
    ),
    Absence(("mse_source",), "the sources' own scale is unknown", lambda config, *_: config.data.support is None),
    Absence(
        ("mcc_cdf",),
        "a CDF maps onto the sources only if they are uniform, and the prior is not",
        lambda config, *_: (
            not (isinstance(config.data, DrawnData) and isinstance(config.data.source, UniformSource))
            or isinstance(config.model.prior, UniformPrior)
        ),
    ),
    Absence(("agreement",), "one seed has no other to agree with", lambda config, *_: len(config.members.seed) == 1),
    Absence(
        PROBES,
        "slow: evaluate.py has it, and members.csv with training.probes=true",
        lambda _, __, stage: stage != "probes",
    ),
    Absence(
        TRUTH,
        "likelihoods and Jacobians of the mixing are kept for val and test alone",
        lambda _, truth, __: not truth,
    ),
    Absence(
        TRUTH,
        "the mixing is unknown, and so are its likelihoods and Jacobians",
        lambda config, *_: not isinstance(config.data, SyntheticData),
    ),
    Absence(
        TRUTH,
        "images have no likelihood, and their rendering no Jacobian that is known",
        lambda config, *_: _images(config),
    ),
    Absence(
        SOURCES,
        "there are no sources to compare with (data.sources_path would name them)",
        lambda config, *_: not config.data.has_sources,
    ),
)


def worst(name: str) -> float:
    """What a diverged member counts in an aggregate of a metric to be maximised: 0 where nothing is below it."""
    return 0.0 if name.startswith(("mcc", "r2", "agreement")) else -WORST_SCORE


def absent(config: RunConfig, truth: bool, stage: Stage) -> dict[str, str]:
    """The metrics that a setting can't have, each with the reason.

    Args:
        config: the setting.
        truth: whether the split has the mixing's likelihoods and Jacobians (validation and test have).
        stage: of which stage the metrics are: each has those of the stages before it, too.
    """
    holding = [absence for absence in ABSENCES if absence.holds(config, truth, stage)]
    return {name: absence.reason for absence in holding for name in absence.metrics}


def check_metric(config: RunConfig, name: str, mode: str) -> None:
    """Raise UserError unless ``name`` (``val/mcc``) is a validation metric of this setting, pursued in ``mode``."""
    require_choice(
        name, [f"val/{m}" for m, metric in GLOSSARY.items() if metric.direction in ("max", "min")], "objective.metric"
    )
    metric = name.removeprefix("val/")
    require_choice(mode, [GLOSSARY[metric].direction], f"objective.mode of {name}")
    reasons = absent(config, True, "validation")
    if metric in reasons:
        without = metric in SOURCES and not config.data.has_sources
        remedy = "choose another"
        if without:
            remedy = "say objective.metric=val/agreement, or objective.metric=val/neg_elbo objective.mode=min"
        raise UserError(f"`{name}` must be there to be an objective, but it is not: {reasons[metric]}; {remedy}")
