"""What the figures show of a member, each by the published estimator and by the one that replaces it."""

from __future__ import annotations

from typing import NamedTuple

from imavae.report.summary import AT_BEST_NEG_ELBO, BEST_NEG_ELBO

AT = AT_BEST_NEG_ELBO  # everything is read by the paper's protocol: at the smallest validation −ELBO


class Quantity(NamedTuple):
    """A quantity; its columns are those of ``members.csv``, and of the published tables."""

    label: str  # in tables
    axis: str  # in figures, with its unit
    column: str  # by the published estimator
    corrected: str | None = None  # by ours; None: it is the same
    log: bool = False  # whether its axis is
    limits: tuple[float, float] | None = None  # of its axis


MCC = Quantity("MCC", "MCC", f"val/mcc_batch {AT}", f"val/mcc {AT}", limits=(0.0, 1.02))
CONTRAST = Quantity("c_IMA", r"$c_{\mathrm{IMA}}$ (nats)", f"val/cima_batch {AT}", f"val/cima {AT}", log=True)
NEG_ELBO = Quantity("−ELBO", "−ELBO (nats)", BEST_NEG_ELBO)
ERROR = Quantity("x error", r"mean of $(g(\mu(x)) - x)^2$", f"val/mse_obs {AT}", log=True)
RATIO = Quantity(
    "σ² ratio",
    "posterior variance\nover its formula",
    f"val/self_consistency_published {AT}",
    f"val/self_consistency {AT}",
)
PUBLISHED_RATIO = f"posterior variance over its self-consistency formula {AT}"  # what the published table calls it
GAP = Quantity("ELBO gap", "$E[\\log p(x)] -$ ELBO\n(nats)", f"val/gap_log_px {AT}", log=True)
GAP_IMA = Quantity("IMA gap", r"$E[L_{\mathrm{IMA}}] -$ ELBO* (nats)", f"val/gap_ima {AT}")
