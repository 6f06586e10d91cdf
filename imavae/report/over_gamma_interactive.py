"""The figures of :mod:`imavae.report.over_gamma` for a page to explore, by Plotly: each member says which it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from imavae.report.drawing import BLUE, INK, VERMILLION, finite_or_nan
from imavae.report.interactive import Section, new_plot
from imavae.report.over_gamma import AT_CHOSEN, AT_PAPER, CONTRAST, FEW_GAMMAS, MCC, SEEDS, Reading, lost, read
from imavae.report.summary import Floats, has_sources
from imavae.report.text import compact, point_text
from imavae.tracking.base import Value, member_name

FINISHED, EARLY = "member", "member that stopped early"


def gamma_sections(members: pd.DataFrame, points: Mapping[int, Mapping[str, Value]]) -> Iterator[Section]:
    """MCC (without sources, the agreement of seeds) and c_IMA over gamma squared, as far as members have values.

    Args:
        members: rows of ``members.csv``.
        points: of each trial, by its number: dotted key to value.
    """
    reading = "Each dot is a member; hover over it, or tap it, to see which. Click a name in the legend to hide it."
    for quantity in (MCC if has_sources(members) else SEEDS, CONTRAST):
        found = read(members, quantity)
        if found.healthy.any():
            yield Section(f"{quantity.name} over γ²", reading, _figure(found, points))


def _figure(reading: Reading, points: Mapping[int, Mapping[str, Value]]) -> Any:
    from plotly.graph_objects import Scatter

    quantity, at_worst = reading.quantity, _worst(reading)
    texts = np.array([_text(reading, row, points) for row in range(len(reading.x))], dtype=object)
    x, y = _aside(reading), np.where(reading.failed, at_worst, reading.chosen)

    def dots(shown: NDArray[np.bool_], name: str, **marker: Any) -> Scatter:
        look = {"mode": "markers", "hoverinfo": "text", "name": name, "marker": {"size": 7, **marker}}
        return Scatter(x=x[shown], y=y[shown], text=texts[shown], **look)

    early = (reading.members["status"] == "stopped").to_numpy()
    groups = [
        dots(reading.healthy & ~early, FINISHED, color=BLUE, opacity=0.5),
        dots(reading.healthy & early, EARLY, color=BLUE, opacity=0.6, symbol="triangle-down-open"),
        dots(reading.failed, lost(reading.failed), color=INK, symbol="x-thin", line={"color": INK, "width": 2}),
    ]
    at, middle, dashed = reading.lines()
    sources = has_sources(reading.members)
    mode = "lines+markers" if len(at) <= FEW_GAMMAS else "lines"

    def line(values: Floats, name: str, colour: str, dash: str, symbol: str) -> Scatter:
        look: dict[str, Any] = {"line": {"color": colour, "width": 2, "dash": dash}, "hoverinfo": "skip"}
        look["marker"] = {"symbol": symbol, "size": 8}
        return Scatter(x=at, y=finite_or_nan(values), mode=mode, name=name, **look)

    lines = [line(middle.median, AT_CHOSEN if sources else AT_PAPER, BLUE, "solid", "circle")]
    if sources:
        lines.append(line(dashed.median, AT_PAPER, VERMILLION, "dash", "diamond-open"))
    figure = new_plot(470, [*(group for group in groups if len(group.x)), *lines])
    figure.update_xaxes(title="γ² (decoder precision)", type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(title=f"{quantity.name}, validation split", exponentformat="power")
    if quantity.log:
        return figure.update_yaxes(type="log")
    return figure.update_yaxes(range=[-0.03, 1.03])


def _worst(reading: Reading) -> float:
    """Where diverged members are drawn: a contrast, which is the worse the higher, above all others."""
    return 2 * float(reading.chosen[reading.healthy].max()) if reading.quantity.log else 0.0


def _aside(reading: Reading) -> Floats:
    """Where members stand: beside their gamma, if it has a column of its own, so that they hide each other less."""
    if not reading.few:
        return reading.x
    half = min(0.28, 0.42 * reading.gap) * 0.4
    return reading.x * 10 ** np.random.default_rng(0).uniform(-half, half, len(reading.x))


def _text(reading: Reading, row: int, points: Mapping[int, Mapping[str, Value]]) -> str:
    """What a member is, a line for each of its facts."""
    member: Any = reading.members.iloc[row].to_dict()
    trial, name = int(member["trial"]), reading.quantity.name
    chosen, paper = compact(float(reading.chosen[row])), compact(float(reading.paper[row]))
    value = f"{name} {chosen}" if chosen == paper else f"{name} {chosen}, at the smallest −ELBO {paper}"
    lines = [
        f"trial {trial}, seed {member_name(member)}",
        "" if reading.failed[row] else value,
        f"γ² {compact(float(member['gamma_sq']))}",
        f"{member['status']} after {int(member['epochs'])} epochs",
        *point_text({k: v for k, v in points[trial].items() if k != "model.gamma"}).split(" "),
    ]
    return "<br>".join(escape(line) for line in lines if line)
