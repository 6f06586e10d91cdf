"""Interactive figures of the HTML report: Plotly with the common look."""

from __future__ import annotations

from typing import NamedTuple

from plotly.graph_objects import Figure

from imavae.report import drawing
from imavae.report.drawing import INK


class Section(NamedTuple):
    """An interactive figure under its heading."""

    heading: str
    reading: str  # how to read the figure
    figure: Figure
    width: int = 0  # pixels, at least; the page scrolls a figure that is wider than the screen


def dressed(figure: Figure) -> Figure:
    """Give a figure the common look."""
    legend = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "font": {"size": 11}}
    font, margin = {"family": drawing.FONT, "size": 13, "color": INK}, {"l": 10, "r": 10, "t": 30, "b": 10}
    figure.update_layout(template="simple_white", height=460, width=None, title=None, hovermode="closest")
    figure.update_layout(font=font, legend=legend, margin=margin)
    return figure.update_xaxes(automargin=True).update_yaxes(automargin=True)
