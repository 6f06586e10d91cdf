"""Figures over mixings: recovery against the contrast of the truth, the angle of its columns, prior and dimension."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from imavae.config.data import SyntheticData
from imavae.paper import style as paper
from imavae.paper.figure import Entry
from imavae.paper.gamma import estimators, read
from imavae.paper.judge import NOT_JUDGED, Row, beside, correlation_tolerance
from imavae.paper.published import Spread, table
from imavae.paper.quantities import AT, CONTRAST, MCC, NEG_ELBO
from imavae.paper.statistics import Summary, summarise
from imavae.paper.studies import Study
from imavae.paper.style import LOOKS, Look
from imavae.report.drawing import VERMILLION, floats
from imavae.report.summary import Floats

LINEAR = "c_IMA of the linear map"  # a column that is added to the members
TRUTH = f"val/cima_truth {AT}"
QUANTITIES = (MCC, CONTRAST, NEG_ELBO)


def with_linear_contrast(study: Study) -> Study:
    """With the contrast of the linear map that each member's mixing ends with, which the published table has."""
    from imavae.data import mixing
    from imavae.metrics.ima import contrast as local_contrast

    contrasts, data = {}, study.config.data
    if not isinstance(data, SyntheticData):
        raise TypeError(f"data of the kind {data.kind} have no mixing")
    for seed in study.members["data.seed"].unique():
        matrix = mixing.linear_part(mixing.build(dataclasses.replace(data, seed=int(seed))))
        if matrix is not None:
            contrasts[seed] = float(local_contrast(matrix[None, ..., None]).values[0, 0])
    return dataclasses.replace(
        study, members=study.members.assign(**{LINEAR: study.members["data.seed"].map(contrasts)})
    )


def correlation(members: pd.DataFrame, x: str, y: str) -> Summary:
    """Spearman's rank correlation over members, with its 95 % interval by Fisher's transformation; no quartiles."""
    first, second = floats(members[x]), floats(members[y])
    sound = np.isfinite(first) & np.isfinite(second)
    n = int(sound.sum())
    if n < 5:
        return Summary(n, *[np.nan] * 5)
    value = float(spearmanr(first[sound], second[sound]).statistic)
    away = 1.96 * np.sqrt(1.06 / (n - 3))
    low, high = (float(np.tanh(np.arctanh(value) + side * away)) for side in (-1, 1))
    return Summary(n, value, np.nan, np.nan, low, high)


def linear_map_rows(studies: Sequence[Study]) -> list[Row]:
    """Medians over mixings and rank correlations with the linear map's contrast; −ELBO is reported only."""
    study, known = with_linear_contrast(studies[0]), table("moebius_linear_map")
    names = {MCC: "mcc_batch_at_min_neg_elbo", CONTRAST: "cima_batch_at_min_neg_elbo", NEG_ELBO: "min_neg_elbo"}
    rows = []
    for quantity in QUANTITIES:
        row = beside(read(study, study.members, "all mixings", quantity), known.column(names[quantity]))
        if quantity is NEG_ELBO:  # its entropy depends on how far the poles are, which was not published
            row = dataclasses.replace(row, expected=None, tolerance=None, unjudged=NOT_JUDGED)
        rows.append(row)
    for quantity in (MCC, CONTRAST):
        ours = correlation(study.members, LINEAR, quantity.column)
        runs = known.rows["cima_of_linear_map"], known.rows[names[quantity]]
        value = float(spearmanr(*runs).statistic)
        rows.append(
            Row(
                study=study.name,
                point="with map's",
                quantity=f"{quantity.label}, ρ",
                ours=ours,
                published=Spread(len(runs[0]), value, np.nan, np.nan),
                corrected=correlation(study.members, LINEAR, quantity.corrected or quantity.column),
                expected=value,
                tolerance=correlation_tolerance(value, len(runs[0]), ours.n),
            )
        )
    return rows


def linear_map(studies: Sequence[Study], published: bool = True) -> Figure:
    """MCC and the decoder's contrast, a dot per mixing, over the contrast of the linear map."""
    study, known = with_linear_contrast(studies[0]), table("moebius_linear_map").rows
    figure, axes = paper.panels(1, 2, 2.3)
    for one, quantity, name in zip(
        axes, (MCC, CONTRAST), ("mcc_batch_at_min_neg_elbo", "cima_batch_at_min_neg_elbo"), strict=True
    ):
        if published:
            _dots(one, floats(known["cima_of_linear_map"]), floats(known[name]), paper.PUBLISHED)
        else:
            corrected = quantity.corrected or quantity.column
            _dots(one, floats(study.members[LINEAR]), floats(study.members[corrected]), paper.CORRECTED)
        _dots(one, floats(study.members[LINEAR]), floats(study.members[quantity.column]), paper.OURS)
        one.set_xlabel(r"$c_{\mathrm{IMA}}$ of the linear map (nats)")
        paper.quantity_axis(one, quantity)
    paper.legend(figure, axes)
    return figure


def unit_columns_rows(studies: Sequence[Study]) -> list[Row]:
    """Medians over mixings and rank correlations; nothing was published."""
    study = with_linear_contrast(studies[0])
    return _with_correlations(study, LINEAR, "with map's")


def flow_rows(studies: Sequence[Study]) -> list[Row]:
    """Medians over mixings and rank correlations with the mixing's own contrast; nothing was published."""
    return _with_correlations(studies[0], TRUTH, "with truth's")


def _with_correlations(study: Study, contrast: str, point: str) -> list[Row]:
    rows = [read(study, study.members, "all mixings", quantity) for quantity in QUANTITIES]
    for quantity in (MCC, CONTRAST):
        ours, corrected = (
            correlation(study.members, contrast, column)
            for column in (quantity.column, quantity.corrected or quantity.column)
        )
        rows.append(Row(study.name, point, f"{quantity.label}, ρ", ours, corrected=corrected))
    return rows


def flow(studies: Sequence[Study]) -> Figure:
    """MCC and the decoder's contrast, a dot per mixing, over the contrast of the mixing itself."""
    members = studies[0].members
    figure, axes = paper.panels(1, 2, 2.3)
    for one, quantity in zip(axes, (MCC, CONTRAST), strict=True):
        for column, look in ((quantity.column, paper.OURS), (quantity.corrected, paper.CORRECTED)):
            if column is not None:
                _dots(one, floats(members[TRUTH]), floats(members[column]), look)
        one.set_xlabel(r"$c_{\mathrm{IMA}}$ of the mixing (nats)")
        paper.quantity_axis(one, quantity)
    paper.legend(figure, axes)
    return figure


def _dots(axes: Axes, x: Floats, y: Floats, look: Look) -> None:
    face = "none" if look.hollow else look.colour
    axes.plot(x, y, look.marker, color=look.colour, mfc=face, ms=3, mew=0.7, alpha=0.75, label=look.label)


def rows_over(study: Study, key: str, name: str) -> list[Row]:
    """A row per value of a searched setting and quantity; nothing was published."""
    return [
        read(study, members, f"{name}={value:g}", quantity)
        for value, members in study.members.groupby(key)
        for quantity in QUANTITIES
    ]


def cosine_rows(studies: Sequence[Study]) -> list[Row]:
    """A row per cosine and quantity."""
    return rows_over(studies[0], "data.mixing.cosine", "cos θ")


def cosine(studies: Sequence[Study]) -> Figure:
    """MCC and c_IMA over the cosine between the linear map's columns, and the contrast of the mixing itself."""
    members = studies[0].members
    figure, axes = paper.panels(1, 2, 2.3)
    x = np.array(sorted(members["data.mixing.cosine"].unique()))
    for one, quantity in zip(axes, (MCC, CONTRAST), strict=True):
        one.set_xlabel(r"$\cos\theta$ between the columns of the linear map")
        paper.quantity_axis(one, quantity)
        for column, look in ((quantity.column, paper.OURS), (quantity.corrected, paper.CORRECTED)):
            if column is not None:
                paper.line(one, look, x, _over(members, "data.mixing.cosine", column), quantity)
    truth = [s.median for s in _over(members, "data.mixing.cosine", TRUTH)]
    axes[1].plot(x[1:], truth[1:], "--", color=VERMILLION, linewidth=1, label="contrast of the mixing itself")
    paper.legend(figure, axes)
    return figure


def _over(members: pd.DataFrame, key: str, column: str) -> list[Summary]:
    return [summarise(group, column) for _, group in members.groupby(key)]


PRIOR, DIM = "model.prior.name", "data.dim"


def priors_rows(studies: Sequence[Study]) -> list[Row]:
    """A row per prior, dimension and quantity."""
    [study] = studies
    return [
        read(study, members, f"{prior}, d={dim}", quantity)
        for (prior, dim), members in study.members.groupby([PRIOR, DIM], sort=False)
        for quantity in QUANTITIES
    ]


def priors(studies: Sequence[Study]) -> Figure:
    """Corrected MCC and c_IMA over the dimension, a series for each prior."""
    members = studies[0].members
    figure, axes = paper.panels(1, 2, 2.3)
    for one, quantity in zip(axes, (MCC, CONTRAST), strict=True):
        dims = np.array(sorted(members[DIM].unique()), dtype=np.float64)
        one.set_xlabel("number of sources, d")
        one.set_xticks(dims)
        paper.quantity_axis(one, quantity)
        for n, (prior, group) in enumerate(members.groupby(PRIOR, sort=False)):
            look = dataclasses.replace(LOOKS[n], label=f"{prior} prior".replace("gaussian", "Gaussian"))
            paper.line(one, look, dims, _over(group, DIM, quantity.corrected or quantity.column), quantity)
    paper.legend(figure, axes)
    return figure


ENTRIES = (
    Entry(
        name="moebius_linear_map",
        shows="MCC and c_IMA on 100 Möbius maps with a linear map on top, over the linear map's contrast",
        searches=("paper/moebius_linear_map",),
        minutes=5,
        rows=linear_map_rows,
        draw=linear_map,
        differs=estimators().removesuffix(".")
        + "; the −ELBO is not judged, since the entropy depends on the maps' poles, whose law was not published.",
    ),
    Entry(
        name="moebius_unit_columns",
        shows="the same for 20 linear maps with columns of unit norm",
        searches=("paper/moebius_unit_columns",),
        minutes=2,
        rows=unit_columns_rows,
        draw=lambda studies: linear_map(studies, published=False),
        differs=estimators(),
    ),
    Entry(
        name="moebius_cos_theta",
        shows="MCC and c_IMA in two dimensions over the cosine between the columns of the linear map",
        searches=("paper/moebius_cos_theta",),
        minutes=6,
        rows=cosine_rows,
        draw=cosine,
        differs=estimators(2),
    ),
    Entry(
        name="priors_dimensions",
        shows="MCC and c_IMA under uniform, beta and Gaussian priors in 2, 3, 5 and 10 dimensions",
        searches=("paper/moebius_priors",),
        minutes=6,
        rows=priors_rows,
        draw=priors,
        differs=estimators(),
    ),
    Entry(
        name="ar_flow",
        shows="MCC and c_IMA on 100 random coupling flows, over the contrast of the flow",
        searches=("paper/ar_flow",),
        minutes=4,
        rows=flow_rows,
        draw=flow,
        differs=estimators(4),
    ),
)
