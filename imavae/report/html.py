"""The HTML report of a run or study: one self-contained file with the answer, tables, figures, settings and cost.

The answer is a sentence or two that follow from the numbers. Nothing is called recovered that could be chance: a median
over best validations counts as chance unless it exceeds twice the level of latents that are independent of the sources.
"""

from __future__ import annotations

import base64
import shlex
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from imavae.config.settings import RunConfig, StudyConfig, base_of, with_values
from imavae.data.storage import write_text
from imavae.report import summary, tables
from imavae.report.display import clock, compact, short_names
from imavae.report.drawing import FONT
from imavae.runs.records import BEST_MCC, BEST_NEG_ELBO
from imavae.runs.results import Results
from imavae.runs.session import training_step
from imavae.search.space import parse
from imavae.tracking import Value, provenance

if TYPE_CHECKING:
    import pandas as pd

    from imavae.report.over_gamma import Section
    from imavae.report.study_figures import TrialPlot

RECOVERED, PARTLY = 0.95, 0.8  # thresholds of a median MCC or agreement
BEST = 10  # rows of the table of best trials
PICTURES = (  # of a study
    "champion_latents",
    "champion_correlations",
    "solution_plane",
    "best_trials",
    "reconstructions",
    "traversals",
)
PIXELS_PER_INCH, DPI = 100, 150  # of a picture on the page, and in its file
PLOTLY = {  # sendChartToCloud would upload the data
    "responsive": True,
    "displaylogo": False,
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "sendChartToCloud"],
}


def write_report(
    results: Results,
    command: Sequence[str] = (),
    go_on: Sequence[str] = (),
    plots: Sequence[TrialPlot] | None = None,
) -> Path:
    """Write ``report.html`` into the folder of a run or study, and return the file.

    Args:
        results: of a finished, interrupted or failed run or study.
        command: words of the command that repeats it, if there is one.
        go_on: words of the command that continues it after an interruption.
        plots: the figures over trials, if they are known already.
    """
    loader = PackageLoader("imavae.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"clock": clock, "numbers": _numbers, "picture": _picture}
    sections: list[Section] = []
    if isinstance(results.config, StudyConfig) and results.ranked():
        from imavae.report import over_gamma, study_figures  # a run does without Optuna, Plotly and scikit-learn

        sections += over_gamma.gamma_sections(results)
        sections += study_figures.trial_sections(study_figures.trial_plots_of(results) if plots is None else plots)
    pictures = sorted(results.names.figures.glob("*.png"))
    if sections:  # the other pictures have an interactive form
        pictures = [path for name in PICTURES for path in pictures if path.stem == name]
    page = environment.get_template("report.html.j2").render(
        results=results,
        config=results.config,
        font=FONT,
        plotly=PLOTLY,
        answer=answer(results),
        tables=list(tables.result_tables(results, BEST)),
        sections=sections,
        pictures=pictures,
        space=tables.space_table(parse(results.config)) if isinstance(results.config, StudyConfig) else None,
        failures=tables.failure_table(results.records),
        steps=list(summary.member_steps(results.records, results.config).values()),
        go_on=shlex.join(go_on) if results.interrupted else "",
        repeat=shlex.join(word for word in command if not word.startswith("resume=")),
        tags=provenance(),
        date=time.strftime("%Y-%m-%d %H:%M %Z"),
        step=" – ".join(training_step(results.config)),
    )
    write_text(results.names.report, page)
    return results.names.report


def _numbers(numbers: Sequence[int]) -> str:
    """List seeds, up to ten of them in full."""
    if len(numbers) <= 10:
        return ", ".join(map(str, numbers))
    return f"{numbers[0]}, {numbers[1]}, …, {numbers[-1]} ({len(numbers)} in all)"


def _picture(path: Path) -> dict[str, Any]:
    """A PNG file as part of the page."""
    content = path.read_bytes()
    (width,) = struct.unpack(">I", content[16:20])  # of the image's header
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {"width": width * PIXELS_PER_INCH // DPI, "source": source}


def answer(results: Results) -> list[str]:
    """The answer of a run or study in sentences: its best point, and how well it does."""
    records, ranked, members = results.records, results.ranked(), results.members
    if not records:
        return ["No trial has ended yet."]
    if not ranked:
        reason = next((record.failure for record in records if record.failure), "unknown")
        return [f"No result: all {len(records)} trials failed.", f"First reason: {reason}"]
    if summary.diverged(members).all():
        other = " or model.gamma" * (not results.config.model.is_flow)
        remedy = f"A smaller training.learning_rate{other} may help."
        return [f"No result: all {len(members)} members diverged.", remedy]
    best, config, objective = ranked[0], results.config, results.objective
    rows = members[members["trial"] == best.number]
    where = _point_in_words(best.values, rows)
    if not summary.has_sources(members):
        return list(_answer_without_sources(rows, where))
    base = base_of(config) if isinstance(config, StudyConfig) else config
    where = f"The best trial ({where})" if len(records) > 1 else f"The point ({where})"
    sentences = list(_answer_with_sources(rows, where, with_values(base, best.values)))
    if objective.metric != "val/mcc" and best.score is not None:
        score = f"{objective.aggregate} {objective.metric}, {compact(best.score, 4)}"
        sentences.append(f"The trial was chosen by its {score}.")
    return sentences


def _answer_with_sources(members: pd.DataFrame, best: str, config: RunConfig) -> Iterator[str]:
    median = summary.median_of(members, BEST_MCC)
    chance = summary.chance_mcc(config)
    chances = "is no better than chance" if median <= 2 * chance else "does not recover the sources"
    verdict = _graded(median, "recovers the sources", "recovers the sources in part", chances)
    yield f"{best} {verdict}: {_spread('val/mcc', members, BEST_MCC)}."
    if linear := summary.linear_sentence(members):
        yield linear
    if median < PARTLY:
        yield f"Latents that are independent of the sources reach {chance:.3f} here."
    if lost := int(summary.diverged(members).sum()):
        yield f"{lost} of its {len(members)} members diverged; they count as 0 in the median and quartiles."
    numbers = summary.chosen_numbers(members)
    blind, test = numbers["mcc/at_best_neg_elbo"], numbers["mcc/test_of_chosen"]
    yield (
        "This MCC is read where each member's val/mcc is best, which requires the sources. At the smallest "
        f"val/neg_elbo, which does not, the median is {blind:.3f}."
        + ("" if np.isnan(test) else f" The chosen model has {test:.3f} on the test split.")
    )


def _answer_without_sources(members: pd.DataFrame, where: str) -> Iterator[str]:
    yield f"The best fit of the observations ({where}): {_spread('val/neg_elbo', members, BEST_NEG_ELBO)}."
    agreement = summary.median_of(members, summary.AGREEMENT)
    if np.isnan(agreement):
        yield "With a single seed, stability of the latents is unknown: set members.seed to several."
        return
    verdict = _graded(agreement, "agree on the latents", "agree on the latents in part", "do not agree on the latents")
    yield f"Its seeds {verdict}: median agreement {agreement:.3f}."
    yield "Without sources to compare with, agreement of seeds does not prove that they found them."


def _graded(value: float, good: str, fair: str, poor: str) -> str:
    return good if value >= RECOVERED else fair if value >= PARTLY else poor


def _point_in_words(values: Mapping[str, Value], members: pd.DataFrame) -> str:
    """A point as text; gamma comes from its members if it was not searched. A flow has none."""
    names, gammas = short_names(values), members["gamma"].astype(float).dropna()
    middle, median = float(gammas.median()), "" if gammas.nunique() == 1 else "median "
    words = [f"{median}gamma = {compact(middle)}", f"γ² = {compact(middle**2)}"] if len(gammas) else ["flow"]
    return ", ".join(
        words + [f"{names[key]} = {compact(value)}" for key, value in values.items() if key != "model.gamma"]
    )


def _spread(name: str, members: pd.DataFrame, column: str) -> str:
    low, median, high = map(tables.fixed, summary.quartiles(summary.counted(members, column)))
    if len(members) == 1:
        return f"{name} {median} of one member"
    return f"median {name} {median} over {len(members)} members (quartiles {low} to {high})"
