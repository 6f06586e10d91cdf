"""The built-in metrics, in the order of the columns of history.csv and members.csv.

Each function computes one metric of a block of members; its docstring is the definition in docs/metrics.md.
"""

from __future__ import annotations

from imavae.config.lazy import torch
from imavae.metrics import identifiability, ima
from imavae.metrics.glossary import (
    OWN_SCALE,
    SEVERAL_SEEDS,
    SHARED_SUPPORT,
    SOURCES,
    TRUTH,
    UNIFORM_SOURCES,
    AllMembers,
    Evaluation,
    Metric,
    MixingTruth,
)

VAE = "[Kingma and Welling 2014](https://arxiv.org/abs/1312.6114)"
TCL = "[Hyvärinen and Morioka 2016](https://arxiv.org/abs/1605.06336)"
DCI = "[Eastwood and Williams 2018](https://openreview.net/forum?id=By-7dz-AZ)"
SAP = "[Kumar et al. 2018](https://arxiv.org/abs/1711.00848)"
MIG = "[Chen et al. 2018](https://arxiv.org/abs/1802.04942)"
IMA = "[Gresele et al. 2021](https://arxiv.org/abs/2106.05200)"
GAP = "[Reizinger et al. 2022](https://arxiv.org/abs/2206.02416)"
AGREEMENT = "after [Duan et al. 2020](https://arxiv.org/abs/1905.12614)"
ACTIVE = "[Burda et al. 2016](https://arxiv.org/abs/1509.00519)"


@Metric("min", "kl − log_px_z", VAE, "nats")
def neg_elbo(at: Evaluation) -> torch.Tensor:
    """Negative ELBO with β = 1, from one posterior sample per point."""
    return at.averages["neg_elbo"]


@Metric("none", "KL(q(z|x) ‖ p(z))", VAE, "nats")
def kl(at: Evaluation) -> torch.Tensor:
    """KL divergence of the posterior from the prior."""
    return at.averages["kl"]


@Metric("max", "E_q[log N(x; g(z), γ⁻² I)]", VAE, "nats")
def log_px_z(at: Evaluation) -> torch.Tensor:
    """Reconstruction term of the ELBO."""
    return at.averages["log_px_z"]


@Metric("max", "max_π (1/d) Σ_k |corr(s_k, z_π(k))|", TCL, needs=[SOURCES], floor=0.0)
def mcc(at: Evaluation) -> torch.Tensor:
    """Mean absolute Pearson correlation of sources and posterior samples, matched one to one; chance is near 0. A
    discrete source is compared by the correlation ratio √(Var E[z|s] / Var z).
    """
    return identifiability.matched_mean(at.correlation(identifiability.standardised(at.samples)))


@Metric("max", "max_π (1/d) Σ_k |ρ(s_k, z_π(k))|", TCL + ", with ranks", needs=[SOURCES], floor=0.0)
def mcc_spearman(at: Evaluation) -> torch.Tensor:
    """As mcc, with rank correlations."""
    return identifiability.mcc_spearman(at.sources, at.samples, at.discrete)


@Metric("max", "max_π (1/d) Σ_k |corr(s_k, μ_π(k)(x))|", TCL, needs=[SOURCES], floor=0.0)
def mcc_mean(at: Evaluation) -> torch.Tensor:
    """As mcc, with the posterior's location instead of samples."""
    return identifiability.matched_mean(at.correlation(at.standardised_locations))


@Metric("max", "max_π (1/d) Σ_k |corr(s_k, F_p(z_π(k)))|", TCL, needs=[SOURCES, UNIFORM_SOURCES], floor=0.0)
def mcc_cdf(at: Evaluation) -> torch.Tensor:
    """As mcc, with samples mapped through the prior's CDF; for uniform sources under another prior."""
    assert at.cdf is not None  # noqa: S101  -- the forward pass keeps it for this metric
    return identifiability.matched_mean(at.correlation(identifiability.standardised(at.cdf)))


@Metric("max", "mean over batches of mcc", GAP, needs=[SOURCES], floor=0.0)
def mcc_batch(at: Evaluation) -> torch.Tensor:
    """Published estimator: mcc averaged over batches of 64 points; chance is 0.15 for d = 3."""
    return identifiability.mcc_batch(at.sources, at.samples, at.discrete)


@Metric("max", "mean_k 1 − Σ(s_k − ŝ_k)² / Σ(s_k − s̄_k)²", needs=[SOURCES], floor=0.0)
def r2_linear(at: Evaluation) -> torch.Tensor:
    """R² of the best linear map from locations to sources, fitted on the first half of the points and scored on the
    second.
    """
    return identifiability.standardised_r2_linear(at.standardised_sources, at.standardised_locations)


@Metric("max", "as r2_linear, ŝ a function of all of μ(x)", stage="probes", needs=[SOURCES], floor=0.0)
def r2_nonlinear(at: Evaluation) -> torch.Tensor:
    """As r2_linear, with a nonlinear map (kernel ridge regression) and at most 2,000 points in each half."""
    return identifiability.r2_nonlinear(at.sources, at.locations)


@Metric(
    "max",
    "median over others of max_π (1/d) Σ_k |corr(μ_k, μ'_π(k))|",
    AGREEMENT,
    needs=[SEVERAL_SEEDS],
    floor=0.0,
    across_members=True,
)
def agreement(at: AllMembers) -> torch.Tensor:
    """Median MCC between a member's locations and those of the other seeds of its point, on at most 20,000 points;
    needs no sources.
    """
    return identifiability.agreement(at.locations, at.groups)


@Metric("max", "Σ_l ρ_l (1 − H(P_l·))", DCI, stage="probes", needs=[SOURCES], floor=0.0)
def dci_disentanglement(at: Evaluation) -> torch.Tensor:
    """Degree to which each latent codes at most one source (random forests)."""
    return at.dci[0]


@Metric("max", "mean_k (1 − H(P_·k))", DCI, stage="probes", needs=[SOURCES], floor=0.0)
def dci_completeness(at: Evaluation) -> torch.Tensor:
    """Degree to which each source is coded by one latent."""
    return at.dci[1]


@Metric("max", "R², balanced accuracy if discrete", DCI, stage="probes", needs=[SOURCES], floor=0.0)
def dci_informativeness(at: Evaluation) -> torch.Tensor:
    """Accuracy with which the latents predict the sources."""
    return at.dci[2]


@Metric("max", "mean_k (score_1 − score_2)", SAP, stage="probes", needs=[SOURCES], floor=0.0)
def sap(at: Evaluation) -> torch.Tensor:
    """Separated attribute predictability: lead of the latent that predicts a source best over the second best."""
    from imavae.metrics import disentanglement

    return at.probe(disentanglement.sap)


@Metric("max", "mean_k (I_1 − I_2) / H(s_k)", MIG, stage="probes", needs=[SOURCES], floor=0.0)
def mig(at: Evaluation) -> torch.Tensor:
    """Mutual information gap: lead of the latent with the most information on a source over the second."""
    from imavae.metrics import disentanglement

    return at.probe(disentanglement.mig)


@Metric("min", "Σ_k log‖J_:k‖ − ½ log det(JᵀJ)", IMA, "nats")
def cima(at: Evaluation) -> torch.Tensor:
    """Local IMA contrast of the decoder at μ(x), averaged over the points of full rank."""
    return ima.mean_where(at.local.contrast, at.local.full)


@Metric("min", "mean over batches of c_IMA(mean J)", GAP, "nats")
def cima_batch(at: Evaluation) -> torch.Tensor:
    """Published estimator: the contrast of the mean Jacobian of 64 points."""
    batch = ima.contrast(at.local.batch_jacobian)
    return ima.mean_where(batch.values, batch.full)


@Metric("min", "#{rank J < d} / n")
def rank_deficient(at: Evaluation) -> torch.Tensor:
    """Share of the points that cima leaves out because their Jacobian lacks full rank."""
    return 1 - at.local.full.double().mean(1)


@Metric("none", "mean c_IMA(f, s)", IMA, "nats", needs=TRUTH)
def cima_truth(at: Evaluation) -> torch.Tensor:
    """Local IMA contrast of the mixing."""
    return _truth(at).contrast.mean(1)


@Metric(
    "min",
    "of R = J_g⁻¹ J_f, over points of full rank",
    "Amari et al., NIPS 1995",
    stage="final",
    needs=TRUTH,
)
def amari(at: Evaluation) -> torch.Tensor:
    """Amari distance between the decoder's Jacobian at μ(x) and the mixing's at s; 0 for a scaled permutation."""
    assert at.local.amari is not None  # noqa: S101  -- the forward pass computes it for this metric
    return ima.mean_where(at.local.amari, ~at.local.amari.isnan())


@Metric("min", "(d/2) log(tr(JᵀJ)/d) − ½ log det(JᵀJ)", unit="nats", stage="final")
def conformal_contrast(at: Evaluation) -> torch.Tensor:
    """Distance of the decoder from a conformal map; at least cima."""
    return ima.conformal_contrast(ima.Contrast(at.local.contrast, at.local.full, at.local.norms))


@Metric("none", "mean over points and k of ‖J_:k‖", unit="observation / latent")
def column_norm(at: Evaluation) -> torch.Tensor:
    """Mean norm of the columns of the decoder's Jacobian."""
    return at.column_norms.mean


@Metric("none", "max over points and k of ‖J_:k‖", unit="observation / latent")
def column_norm_max(at: Evaluation) -> torch.Tensor:
    """Largest of these norms."""
    return at.column_norms.maximum


@Metric("none", "Var_k of mean over points of ‖J_:k‖", unit="(observation / latent)²")
def column_norm_var_columns(at: Evaluation) -> torch.Tensor:
    """Variance of these norms between columns."""
    return at.column_norms.variance_over_columns


@Metric("none", "mean_k of Var over points of ‖J_:k‖", unit="(observation / latent)²")
def column_norm_var_points(at: Evaluation) -> torch.Tensor:
    """Variance of these norms between points."""
    return at.column_norms.variance_over_points


@Metric("one", "exp mean log(var_k / σ_k²), σ_k⁻² = −(log p)″(μ_k) + γ²‖J_:k‖²", GAP)
def self_consistency(at: Evaluation) -> torch.Tensor:
    """Geometric mean of the posterior's variance over its formula, both in the unconstrained coordinate."""
    return at.local.log_ratio.mean(1).exp()


@Metric("one", "mean over batches and k of mean(var_k) · (mean −(log p)″ + γ²‖mean J_:k‖²)", GAP)
def self_consistency_batch(at: Evaluation) -> torch.Tensor:
    """Published estimator: the formula with the mean Jacobian of 64 points."""
    return at.local.batch_ratio.mean((1, 2))


@Metric("none", "E[log p(s) − log|det J_f(s)|]", "change of variables", "nats", needs=TRUTH)
def log_px(at: Evaluation) -> torch.Tensor:
    """Exact log-likelihood of the observations."""
    return _truth(at).log_px.mean(1)


@Metric("none", "E[log p(x) − c_IMA(f, s)]", IMA, "nats", needs=TRUTH)
def l_ima(at: Evaluation) -> torch.Tensor:
    """IMA-regularised log-likelihood."""
    return (_truth(at).log_px - _truth(at).contrast).mean(1)


@Metric("min", "E[log p(x)] − ELBO", GAP, "nats", needs=TRUTH)
def gap_log_px(at: Evaluation) -> torch.Tensor:
    """Log-likelihood minus ELBO; not negative, except for the sampling of x and of the posterior."""
    return log_px(at) + at.averages["neg_elbo"]


@Metric("none", "E[L_IMA] − ELBO", GAP, "nats", needs=TRUTH)
def gap_ima(at: Evaluation) -> torch.Tensor:
    """IMA-regularised log-likelihood minus ELBO; tends to 0 for the true decoder as γ grows."""
    return l_ima(at) + at.averages["neg_elbo"]


@Metric("min", "mean (g(μ(x)) − x)²", GAP, "observation²")
def mse_obs(at: Evaluation) -> torch.Tensor:
    """Squared error per dimension of the reconstruction from the posterior's location."""
    return at.averages["mse_obs"]


@Metric("min", "mean (μ(g(s)) − s)²", GAP, "source²", stage="final", needs=[SOURCES, OWN_SCALE, SHARED_SUPPORT])
def mse_source(at: Evaluation) -> torch.Tensor:
    """Squared error per dimension of the sources, decoded and encoded again; if prior and source share their
    support.
    """
    return at.averages["mse_source"]


@Metric("none", "γ", unit="1 / observation")
def gamma(at: Evaluation) -> torch.Tensor:
    """Square root of the decoder's precision; changes if model.precision is learned or mle."""
    return at.gamma


@Metric("none", "mean_k Var p(z_k)", unit="latent²")
def prior_variance(at: Evaluation) -> torch.Tensor:
    """Variance of a latent under the prior; changes if model.prior.parameters is learned."""
    return at.averages["prior_variance"].mean(1)


@Metric("none", "#{k : Var μ_k(x) > 0.01 Var p(z_k)}", ACTIVE, "latents")
def active_units(at: Evaluation) -> torch.Tensor:
    """Number of latents in use."""
    return identifiability.active_units(at.locations, at.averages["prior_variance"])


def _truth(at: Evaluation) -> MixingTruth:
    assert at.truth is not None  # noqa: S101  -- all of TRUTH holds
    return at.truth
