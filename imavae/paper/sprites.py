"""Figures of images: a sprite's factors found over γ², with the most likely γ², and under an affine map of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from imavae.paper import likelihood
from imavae.paper import style as paper
from imavae.paper.figure import Entry
from imavae.paper.gamma import estimators, read, recovery, rows_over_gamma
from imavae.paper.judge import NOT_JUDGED, Row
from imavae.paper.quantities import CONTRAST, MCC, NEG_ELBO, Quantity
from imavae.paper.statistics import summarise
from imavae.paper.studies import Study

PUBLISHED = "sprites_gamma"
QUANTITIES = (MCC, CONTRAST, NEG_ELBO)
TRANSFORM = "data.transform"


def gamma_rows(studies: Sequence[Study]) -> list[Row]:
    """A row per γ² and quantity; −ELBO is reported only, since how the published images were drawn was not."""
    rows = rows_over_gamma(studies[0], QUANTITIES, PUBLISHED)
    return [_unjudged(row) if row.quantity == NEG_ELBO.label else row for row in rows]


def small_rows(studies: Sequence[Study]) -> list[Row]:
    """The same of members that have seen under a hundredth of the published images: beside those, not judged."""
    return [_unjudged(row) for row in gamma_rows(studies)]


def _unjudged(row: Row) -> Row:
    if row.published is None:
        return row
    return dataclasses.replace(row, expected=None, tolerance=None, unjudged=NOT_JUDGED)


def affine_rows(studies: Sequence[Study]) -> list[Row]:
    """A row per map of the factors and quantity; nothing was published."""
    [study] = studies
    return [
        read(study, members, str(transform), quantity)
        for transform, members in study.members.groupby(TRANSFORM, sort=False)
        for quantity in QUANTITIES
    ]


def affine(studies: Sequence[Study]) -> Figure:
    """MCC and c_IMA without and with an affine map of the factors, by both estimators."""
    groups = dict(list(studies[0].members.groupby(TRANSFORM, sort=False)))
    figure, axes = paper.panels(1, 2, 2.3)
    x = np.arange(len(groups), dtype=np.float64)
    for one, quantity in zip(axes, (MCC, CONTRAST), strict=True):
        paper.quantity_axis(one, quantity)
        one.set_xlabel("map of the factors")
        one.set_xticks(x, [str(name) for name in groups])
        one.set_xlim(-0.5, len(groups) - 0.5)
        for (look, column), aside in zip(_columns(quantity), (-0.05, 0.05), strict=True):
            summaries = [summarise(members, column) for members in groups.values()]
            paper.line(one, look, x + aside, summaries, quantity, joined=False)
    paper.legend(figure, axes)
    return figure


def _columns(quantity: Quantity) -> list[tuple[paper.Look, str]]:
    return [(paper.OURS, quantity.column), (paper.CORRECTED, quantity.corrected or quantity.column)]


ESTIMATORS = estimators(4).removesuffix(".")
ENTRIES = (
    Entry(
        name="sprites",
        shows="MCC and c_IMA over γ² on images of sprites, beta prior (under a hundredth of the published training)",
        searches=("paper/sprites_gamma_small",),
        minutes=22,
        rows=small_rows,
        draw=lambda studies: recovery(studies, PUBLISHED),
        differs=f"{ESTIMATORS}; nothing is judged, since these members have seen 0.17 million images each, and the "
        "published ones up to 29 million.",
    ),
    Entry(
        name="sprites_full",
        shows="the same with all of the published training: for a GPU",
        searches=("paper/sprites_gamma",),
        minutes=29000,
        rows=gamma_rows,
        draw=lambda studies: recovery(studies, PUBLISHED),
        differs=f"{ESTIMATORS}; the −ELBO is not judged, since how the images were drawn was not published.",
    ),
    Entry(
        name="sprites_learned_gamma",
        shows="γ² of images set to its most likely value after each epoch, and MCC and c_IMA on the way",
        searches=("paper/sprites_learned_gamma_small",),
        minutes=32,
        rows=likelihood.rows,
        draw=likelihood.draw,
        differs=estimators(4),
    ),
    Entry(
        name="sprites_affine",
        shows="MCC and c_IMA on sprites without and with an affine map of their factors",
        searches=("paper/sprites_affine_small",),
        minutes=21,
        rows=affine_rows,
        draw=affine,
        differs=estimators(4),
    ),
)
