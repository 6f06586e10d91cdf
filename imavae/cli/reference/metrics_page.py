"""``docs/metrics.md``: the glossary as a page."""

from __future__ import annotations

from imavae.cli.reference.markdown import code, table
from imavae.metrics.glossary import ABSENCES, GLOSSARY

ARROWS = {"max": "↑", "min": "↓", "one": "→ 1", "none": ""}
SOURCES = {  # of the glossary's sources
    "Amari et al. 1996": "A New Learning Algorithm for Blind Signal Separation, NIPS 1995",
    "Burda et al. 2016": "Importance Weighted Autoencoders, ICLR 2016, "
    "[arXiv 1509.00519](https://arxiv.org/abs/1509.00519)",
    "Chen et al. 2018": "Isolating Sources of Disentanglement in Variational Autoencoders, NeurIPS 2018, "
    "[arXiv 1802.04942](https://arxiv.org/abs/1802.04942)",
    "Duan et al. 2020": "Unsupervised Model Selection for Variational Disentangled Representation Learning, ICLR 2020, "
    "[arXiv 1905.12614](https://arxiv.org/abs/1905.12614)",
    "Eastwood and Williams 2018": "A Framework for the Quantitative Evaluation of Disentangled Representations, "
    "ICLR 2018",
    "Gresele et al. 2021": "Independent mechanism analysis, a new concept?, NeurIPS 2021, "
    "[arXiv 2106.05200](https://arxiv.org/abs/2106.05200)",
    "Hyvärinen and Morioka 2016": "Unsupervised Feature Extraction by Time-Contrastive Learning and Nonlinear ICA, "
    "NIPS 2016, [arXiv 1605.06336](https://arxiv.org/abs/1605.06336)",
    "Kingma and Welling 2014": "Auto-Encoding Variational Bayes, ICLR 2014, "
    "[arXiv 1312.6114](https://arxiv.org/abs/1312.6114)",
    "Kumar et al. 2018": "Variational Inference of Disentangled Latent Concepts from Unlabeled Observations, "
    "ICLR 2018, [arXiv 1711.00848](https://arxiv.org/abs/1711.00848)",
    "Reizinger et al. 2022": "Embrace the Gap: VAEs Perform Independent Mechanism Analysis, NeurIPS 2022, "
    "[arXiv 2206.02416](https://arxiv.org/abs/2206.02416)",
}
HEAD = """\
# Metrics

Made by `make docs` from the glossary in the code, `imavae/metrics/glossary.py`; a name that is logged is one of
these.

- `val/NAME` is logged at every validation (curves, `history.csv`, objectives of a study); `SPLIT/NAME at max val/mcc`
  and `SPLIT/NAME at min val/neg_elbo` at the end (`members.csv`), at a member's two best states; the split is val or
  test.
- A metric is of a whole split, never an average over batches, but for the published estimators (`_batch`), which are
  there for comparison. Of images fewer points are taken.
- MCC needs the true sources: to choose by `val/mcc` is an oracle's choice. Every report gives MCC at the best
  `val/mcc`, at the best `val/neg_elbo`, and the chosen checkpoint's MCC on the test split.
- A member that diverged counts as the worst value in an aggregate.

Letters: s sources, x = f(s) observations, z ~ q(z|x) a posterior sample, μ(x) the posterior's location mapped onto
the prior's support, g the decoder, J = ∂g/∂z at μ(x), γ² the decoder's precision, d latents, π a one-to-one matching
of latents with sources, n points. Units are those of the observations as the networks see them (of a file:
standardised) and of the latents.

## What each is

↑ more is better, ↓ less, → 1 best at one; without an arrow neither. A number under *absent* is one of the
[reasons](#when-one-is-absent).
"""


def metrics_page() -> str:
    """The page."""
    numbered = [*enumerate(ABSENCES, start=1)]
    what = [
        [
            code(name),
            metric.definition,
            ARROWS[metric.direction],
            metric.unit,
            ", ".join(str(number) for number, absence in numbered if name in absence.metrics),
        ]
        for name, metric in GLOSSARY.items()
    ]
    equations = [[code(name), metric.equation, metric.source] for name, metric in GLOSSARY.items()]
    lines = [
        HEAD,
        *table(["name", "what it is", "better", "unit", "absent"], what),
        "## Equations and sources",
        "",
        "*here*: first written down in this project, or too plain to have a source.",
        "",
        *table(["name", "equation", "source"], equations),
        "## When one is absent",
        "",
        "What a setting can't have is neither logged nor an objective; `evaluate.py` says which and why. The reasons:",
        "",
        *(f"{number}. {absence.reason}" for number, absence in numbered),
        "",
        "## Sources",
        "",
        *(f"- {name}: {title}" for name, title in SOURCES.items()),
    ]
    return "\n".join(lines) + "\n"
