"""What all figures of a page have in common, as drawing.py has it of those on paper: Plotly's form of them."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from imavae.report.drawing import INK

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


class Section(NamedTuple):
    """A figure of a page."""

    heading: str
    reading: str  # how to read it
    figure: Figure
    room: int = 0  # pixels below which it does not shrink: it scrolls then


def new_plot(height: int, traces: list[Any]) -> Figure:
    """A figure of these traces, so many pixels high and as wide as the page."""
    from plotly.graph_objects import Figure

    legend = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0}
    font = {"family": FONT, "size": 13, "color": INK}
    figure = Figure(traces).update_layout(template="simple_white", height=height, font=font, legend=legend)
    figure.update_layout(margin={"l": 10, "r": 10, "t": 30, "b": 10}, hovermode="closest")
    return figure.update_xaxes(automargin=True).update_yaxes(automargin=True)


def broken(label: str) -> str:
    """A label in two lines, the second one in brackets."""
    return escape(label).replace(" (", "<br>(")
