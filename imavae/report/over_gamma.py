"""Figures of a study over gamma squared: each trial's median over members with its quartiles, by either protocol.

Colour and shape show up to two other searched parameters. A hollow marker is a trial that its scheduler has stopped
early. Lines connect trials that differ in gamma alone, if gamma was searched on a grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from plotly.graph_objects import Figure as PlotlyFigure

from imavae.config.settings import StudyConfig
from imavae.report import drawing, summary
from imavae.report.display import compact, point_text, short_names
from imavae.report.drawing import FAINT, GREY, INK, NEAR_ONE, SEED_COLOURS, floats
from imavae.runs.records import BEST_MCC, at_best
from imavae.runs.results import Results
from imavae.search.space import Parameter, parse
from imavae.tracking import Value, member_name

GAMMA = "model.gamma"
CONTRAST_FLOOR = 1e-8  # lower end of the log axis of c_IMA: smaller values are rounding errors
MANY = 4  # a number with more values than this is shown by its third of them
SHAPES = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down"}  # Matplotlib, Plotly
SPREAD = ["low", "median", "high"]
DRAWN = [*SPREAD, "paper"]
FAILED = "diverged, counted as worst"
MARKERS: dict[str, dict[str, Any]] = {  # of Plotly, by the kind of a member
    "member": {"color": GREY, "opacity": 0.5, "size": 5},
    FAILED: {"color": INK, "symbol": "x-thin", "size": 7, "line": {"color": INK, "width": 2}},
}
READING = (
    "Each marker is a trial: the median over its members, with quartiles{note}. Each dot is a member. Hover to see "
    "what it is; click a name in the legend to hide it."
)


class Section(NamedTuple):
    """An interactive figure of the HTML report, under its heading."""

    heading: str
    reading: str  # how to read the figure
    figure: PlotlyFigure
    width: int = 0  # pixels, at least; the page scrolls a figure that is wider than the screen


class Quantity(NamedTuple):
    """A metric that is drawn over gamma: columns at the best val/mcc, and at the smallest val/neg_elbo."""

    name: str
    title: str
    chosen: str
    paper: str
    log: bool = False


MCC = Quantity("MCC", "Recovery of the sources over γ²", BEST_MCC, at_best("val/mcc", "val/neg_elbo"))
SEEDS = Quantity("agreement of seeds", "Agreement of seeds over γ²", summary.AGREEMENT, summary.AGREEMENT)
CIMA = [at_best("val/cima", criterion) for criterion in ("val/mcc", "val/neg_elbo")]
CONTRAST = Quantity("c_IMA (nats)", "Local IMA contrast over γ²", CIMA[0], CIMA[1], log=True)


@dataclass(frozen=True)
class OverGamma:
    """A quantity of the trials and members of a study that have a finite gamma, over gamma squared."""

    quantity: Quantity  # its name is that of the axis: 1 − MCC if all values are near 1
    flipped: bool  # whether it is this distance from 1, so that the smallest is at the top
    members: pd.DataFrame  # a row per member: trial, seeds, status, epochs, x, y (NaN without a value) and lost
    trials: pd.DataFrame  # a row per trial: x, low, median, high, paper (the other protocol's median), lost (members
    # that diverged), early, colour and shape (texts), and line (a number that connected trials share)
    colours: Sequence[str]  # what each colour stands for; one empty text if colours show nothing
    shapes: Sequence[str]
    floored: int  # number of values below CONTRAST_FLOOR, which are drawn there
    linear_ica: float  # the same quantity of linear ICA, median over worlds; NaN without any

    @classmethod
    def of(
        cls, members: pd.DataFrame, trials: pd.DataFrame, quantity: Quantity, parameters: Sequence[Parameter] = ()
    ) -> OverGamma:
        """Collect a quantity from rows of ``members.csv`` and a row per trial with its searched ``parameters``.

        The medians are at the best val/mcc or, without sources, at the smallest −ELBO.
        """
        members = members[np.isfinite(floats(members["gamma_sq"]))]
        floor = CONTRAST_FLOOR if quantity.log else -np.inf
        columns = (quantity.chosen if summary.has_sources(members) else quantity.paper, quantity.paper)
        raw, paper = (summary.counted(members, column) for column in columns)
        lost = summary.diverged(members)
        about = [key for key in ("trial", "seed", "data.seed", "status", "epochs") if key in members]
        each = members[about].assign(x=floats(members["gamma_sq"]), y=np.maximum(raw, floor), lost=lost)
        rows = []
        for number, group in each.assign(paper=np.maximum(paper, floor)).groupby("trial"):
            spread, other = (summary.quartiles(floats(group[name])) for name in ("y", "paper"))
            rows.append((number, floats(group["x"]).mean(), *spread, other.median, group["lost"].sum()))
        found = pd.DataFrame(rows, columns=["trial", "x", *SPREAD, "paper", "lost"]).merge(trials, on="trial")
        others = [p.key for p in parameters if p.key != GAMMA and p.key in found]
        colour, shape = _channels(found, others)
        grid = any(p.key == GAMMA and p.type == "choice" for p in parameters)
        line = found["trial"] if not grid else found.groupby(others, dropna=False).ngroup() if others else 0
        found = found.assign(early=found["status"] == "stopped", colour=colour, shape=shape, line=line)
        each["y"] = drawing.finite_or_nan(np.where(lost, np.nan, floats(each["y"])))
        found[DRAWN] = drawing.finite_or_nan(found[DRAWN].to_numpy(dtype=np.float64))
        linear_ica = summary.median(members, summary.LINEAR_ICA) if quantity is MCC else np.nan
        flipped = not quantity.log and bool(min(each["y"].min(), found[DRAWN].min(axis=None)) > NEAR_ONE)
        if flipped:
            quantity = quantity._replace(name=f"1 − {quantity.name}", log=True)
            each["y"], found[DRAWN], linear_ica = 1 - each["y"], 1 - found[DRAWN], 1 - linear_ica
        colours, shapes = list(colour.cat.categories), list(shape.cat.categories)
        return cls(quantity, flipped, each, found, colours, shapes, int((raw < floor).sum()), linear_ica)

    @property
    def note(self) -> str:
        """What the figure moves, as the end of a sentence."""
        return f"; {self.floored} values below {compact(CONTRAST_FLOOR)} are drawn there" if self.floored else ""

    @property
    def limits(self) -> tuple[float, float] | None:
        """The axis, where it is not logarithmic: where the data are; None without any."""
        trials = self.trials[DRAWN].to_numpy(dtype=np.float64).ravel()
        values = np.concatenate([floats(self.members["y"]), trials, [self.linear_ica]])
        values = values[np.isfinite(values)]
        if self.quantity.log or not values.size:
            return None
        pad = max(0.06 * float(np.ptp(values)), 0.01)
        return float(values.min()) - pad, float(values.max()) + pad


def gamma_quantities(results: Results) -> dict[str, OverGamma]:
    """The quantities that a study shows over gamma, by the names of their files."""
    members, trials = results.members, results.trials
    if results.config.model.is_flow:
        return {}
    parameters = parse(results.config) if isinstance(results.config, StudyConfig) else []
    file, quantity = ("mcc_vs_gamma", MCC) if summary.has_sources(members) else ("agreement_vs_gamma", SEEDS)
    both = {file: quantity, "cima_vs_gamma": CONTRAST}
    return {file: OverGamma.of(members, trials, quantity, parameters) for file, quantity in both.items()}


def draw_over_gamma(shown: OverGamma) -> Figure:
    """Draw the trials by Matplotlib; diverged members at the worst end of the axis."""
    figure, quantity = drawing.new_figure(shown.quantity.title, 7.4, 5.0), shown.quantity
    axes, members, trials = figure.subplots(), shown.members, shown.trials
    sound, failed = members[np.isfinite(members["y"])], members[members["lost"]]
    if not len(sound):
        drawing.write_on(axes, "no finite value")
    if len(members):
        axes.set(xscale="log", yscale="log" if quantity.log else "linear")
        axes.set_xlim(members["x"].min() / 2, members["x"].max() * 2)
        axes.margins(y=0.08)
        handles = axes.plot(sound["x"], sound["y"], ".", color=GREY, alpha=0.5, markeredgewidth=0, label="member")
        for line in (group.sort_values("x") for _, group in trials.groupby("line") if len(group) > 1):
            colour = SEED_COLOURS[shown.colours.index(line["colour"].iloc[0])]
            axes.plot(line["x"], line["median"], color=colour, linewidth=1, alpha=0.7)
        for (text, shape, early), alike in trials.groupby(["colour", "shape", "early"], sort=False, observed=True):
            colour, marker = SEED_COLOURS[shown.colours.index(text)], [*SHAPES][shown.shapes.index(shape)]
            axes.vlines(alike["x"], alike["low"], alike["high"], color=colour, linewidth=1.4)
            face = "white" if early else colour
            axes.plot(alike["x"], alike["median"], marker, color=colour, markerfacecolor=face, markersize=6)
        handles += axes.plot(
            trials["x"], trials["paper"], "_", color=INK, markersize=9, zorder=1.5, label="at smallest −ELBO"
        )
        for n, text in enumerate(shown.colours):
            handles += axes.plot([], [], "o", color=SEED_COLOURS[n], label=text or "median of a trial, quartiles")
        if len(shown.shapes) > 1:
            for marker, text in zip(SHAPES, shown.shapes, strict=False):
                handles += axes.plot([], [], marker, color=FAINT, label=text)
        if trials["early"].any():
            handles += axes.plot([], [], "o", color=FAINT, markerfacecolor="white", label="trial stopped early")
        if len(failed):
            place = axes.get_xaxis_transform()
            worst = np.full(len(failed), 0.98 if quantity.log and not shown.flipped else 0.02)
            label = f"{FAILED} ({len(failed)})"
            handles += axes.plot(failed["x"], worst, "x", color=INK, markersize=5, transform=place, label=label)
        if np.isfinite(shown.linear_ica):
            handles += [axes.axhline(shown.linear_ica, color=INK, linewidth=1, linestyle="-.", label="linear ICA")]
        if shown.limits:
            axes.set_ylim(*shown.limits)
        if shown.flipped:
            axes.invert_yaxis()
        drawing.legend(figure, handles, [str(handle.get_label()) for handle in handles])
    drawing.dress(
        axes, "γ² (decoder precision)", f"{quantity.name}, validation split", f"medians and quartiles. {shown.note}"
    )
    return figure


def gamma_sections(results: Results) -> Iterator[Section]:
    """Draw the quantities over gamma by Plotly, as far as members have values."""
    points = {record.number: record.values for record in results.records}
    for shown in gamma_quantities(results).values():
        if np.isfinite(shown.members["y"]).any():
            reading = READING.format(note=shown.note)
            yield Section(f"{shown.quantity.name} over γ²", reading, _plot_over_gamma(shown, points))


def dressed(figure: PlotlyFigure) -> PlotlyFigure:
    """Give a figure of Plotly the common look."""
    legend = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "font": {"size": 11}}
    font, margin = {"family": drawing.FONT, "size": 13, "color": INK}, {"l": 10, "r": 10, "t": 30, "b": 10}
    figure.update_layout(template="simple_white", height=460, width=None, title=None, hovermode="closest")
    figure.update_layout(font=font, legend=legend, margin=margin)
    return figure.update_xaxes(automargin=True).update_yaxes(automargin=True)


def _plot_over_gamma(shown: OverGamma, points: Mapping[int, Mapping[str, Value]]) -> PlotlyFigure:
    name, log, trials = shown.quantity.name, shown.quantity.log, shown.trials
    figure, dots = dressed(PlotlyFigure()), dict[str, list[tuple[float, float, str]]]()
    worst = float(2 * shown.members["y"].max()) if log else 0.0
    members: list[Any] = shown.members.to_dict("records")
    for member in members:
        value = [] if np.isnan(member["y"]) else [f"{name} {compact(member['y'])}"]
        text = [f"trial {member['trial']}, seed {member_name(member)}", *value, f"γ² {compact(member['x'])}"]
        text += [f"{member['status']} after {member['epochs']} epochs"]
        if member["lost"] or value:
            y = worst if member["lost"] else member["y"]
            dots.setdefault(FAILED if member["lost"] else "member", []).append((member["x"], y, _lines(text)))
    for kind, marker in MARKERS.items():
        if kind in dots:
            x, y, hover = zip(*dots[kind], strict=True)
            name_of = f"{kind} ({len(x)})" if kind == FAILED else kind
            figure.add_scatter(x=x, y=y, text=hover, hoverinfo="text", mode="markers", marker=marker, name=name_of)
    for _, line in trials.groupby("line"):
        if len(line) > 1:
            line = line.sort_values("x")
            colour = SEED_COLOURS[shown.colours.index(line["colour"].iloc[0])]
            where = {"x": line["x"].tolist(), "y": line["median"].tolist(), "hoverinfo": "skip"}
            figure.add_scatter(**where, mode="lines", showlegend=False, line={"color": colour, "width": 1})
    where = {"x": trials["x"].tolist(), "y": trials["paper"].tolist(), "hoverinfo": "skip"}
    marker = {"symbol": "line-ew", "size": 10, "line": {"color": INK, "width": 2}}
    figure.add_scatter(**where, mode="markers", name="at smallest −ELBO", marker=marker)
    for n, colour in enumerate(shown.colours):
        mine = trials[trials["colour"] == colour]
        texts, symbols = [], []
        for row in mine.to_dict("records"):
            spread = "–".join(compact(value) for value in sorted((row["low"], row["high"])))
            lines = [f"trial {row['trial']}", f"median {name} {compact(row['median'])} ({spread})"]
            lines += [f"at the smallest −ELBO {compact(row['paper'])}", f"γ² {compact(row['x'])}"]
            lines += [f"{row['lost']} members diverged"] * bool(row["lost"])
            lines += [f"{row['status']} after {row['epochs']} epochs"]
            texts.append(
                _lines(lines + point_text({k: v for k, v in points[row["trial"]].items() if k != GAMMA}).split(" "))
            )
            symbols.append([*SHAPES.values()][shown.shapes.index(row["shape"])] + "-open" * bool(row["early"]))
        middle, ends = floats(mine["median"]), mine[["low", "high"]].to_numpy(dtype=np.float64)
        bars = {"type": "data", "symmetric": False, "width": 0, "thickness": 1.4}
        bars |= {"array": ends.max(axis=1) - middle, "arrayminus": middle - ends.min(axis=1)}
        where = {"x": mine["x"].tolist(), "y": middle.tolist(), "text": texts, "hoverinfo": "text"}
        marker = {"size": 9, "color": SEED_COLOURS[n], "symbol": symbols}
        group = {"legendgroup": colour, "showlegend": False}
        figure.add_scatter(**where, **group, error_y=bars, mode="markers", marker=marker)
    keys = [(text, SEED_COLOURS[n], "circle") for n, text in enumerate(shown.colours)]
    if len(shown.shapes) > 1:
        keys += [(text, FAINT, symbol) for text, symbol in zip(shown.shapes, SHAPES.values(), strict=False)]
    if trials["early"].any():
        keys.append(("trial stopped early", FAINT, "circle-open"))
    for key, colour, symbol in keys:  # an explanation without points
        marker = {"size": 9, "color": colour, "symbol": symbol}
        name = key or "median of a trial"
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, legendgroup=key, marker=marker)
    if np.isfinite(shown.linear_ica):
        stroke: dict[str, Any] = {"color": INK, "width": 1.5, "dash": "dashdot"}
        figure.add_hline(shown.linear_ica, line=stroke, name="linear ICA", showlegend=True)
    figure.update_layout(height=600)  # on a phone, the legend takes half of it
    figure.update_xaxes(title="γ² (decoder precision)", type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(title=f"{shown.quantity.name}, validation split", exponentformat="power")
    if log:
        figure.update_yaxes(type="log", dtick=1, autorange="reversed" if shown.flipped else True)
    return figure if log else figure.update_yaxes(range=shown.limits)


def _lines(texts: Sequence[str]) -> str:
    return "<br>".join(escape(text) for text in texts if text)


def _channels(trials: pd.DataFrame, keys: Sequence[str]) -> list[pd.Series[str]]:
    """What colour and shape say of each trial: the values of up to two searched parameters that differ, as texts.

    Parameters of the model come first. One with too many values is left out, unless it is a number.
    """
    names, found = short_names(keys), list[Any]()
    for key in sorted(keys, key=lambda key: not key.startswith("model.")):
        texts = _texts(trials[key], names[key].replace("_", " "))
        room = len(SHAPES) if found else len(SEED_COLOURS)
        if len(found) < 2 and 1 < len(texts.cat.categories) <= room:
            found.append(texts)
    nothing = pd.Series(pd.Categorical([""] * len(trials), [""]), trials.index)
    return [*found, nothing, nothing][:2]


def _texts(values: pd.Series[Any], name: str) -> pd.Series[str]:
    """Name and value of a parameter in each trial, in the order of its values; many numbers by thirds of the values."""
    known: list[Any] = sorted(values.dropna().unique(), key=lambda value: (isinstance(value, str), value))
    parts = [[value] for value in known]
    if len(known) > MANY and not any(isinstance(value, str) for value in known):
        parts = [list(part) for part in np.array_split(known, 3)]
    texts = {
        value: f"{name} {'–'.join(dict.fromkeys(map(compact, (part[0], part[-1]))))}"
        for part in parts
        for value in part
    }
    missing = f"no {name}"
    levels = [*dict.fromkeys(texts.values()), *[missing] * bool(values.isna().any())]
    return pd.Series(pd.Categorical([texts.get(value, missing) for value in values], levels), values.index)
