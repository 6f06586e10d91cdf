"""The HTML report of a run or study: one self-contained file with the answer, tables, figures, settings and cost.

The answer is a sentence or two that follow from the numbers. Nothing is called recovered that could be chance: a median
over best validations counts as chance unless it exceeds twice the level of latents that are independent of the sources.
"""

from __future__ import annotations

import base64
import shlex
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imavae.config.settings import RunConfig, StudyConfig, base_of, with_values
from imavae.data.storage import write_text
from imavae.report.study_figures import FONT, Section, TrialPlot, gamma_sections, trial_plots_of, trial_sections
from imavae.report.summary import (
    chance_mcc,
    chosen_numbers,
    counted,
    diverged,
    has_sources,
    member_steps,
    quartiles,
)
from imavae.report.tables import Table, fixed, member_table, point_tables, space_table, study_tables
from imavae.report.text import clock, compact, point_text, short_names
from imavae.runs.records import BEST_MCC, BEST_NEG_ELBO
from imavae.runs.results import Results
from imavae.search.space import parse
from imavae.tracking.base import Value, provenance

if TYPE_CHECKING:
    import pandas as pd

RECOVERED, PARTLY = 0.95, 0.8  # thresholds of a median MCC or agreement
BEST = 10  # rows of the table of best trials
MAX_SEEDS = 10  # more seeds are abbreviated
PIXELS_PER_INCH, DPI = 100, 150  # of a picture on the page, and in its file
REMEDY = "A smaller training.learning_rate or model.gamma may help."


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
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("imavae.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sections: list[Section] = []
    if isinstance(results.config, StudyConfig) and results.ranked():
        points = {record.number: record.values for record in results.records}
        sections += gamma_sections(results.members, points)
        sections += trial_sections(trial_plots_of(results) if plots is None else plots)
    page = environment.get_template("report.html.j2").render(
        title=results.folder.name,
        font=FONT,
        question=getattr(results.config, "question", ""),
        answer=[*_progress(results), *answer(results)],
        tables=list(_tables(results)),
        figures=_interactive(sections),
        pictures=[_picture(path) for path in _static(results.folder, bool(sections))],
        asked=_asked(results),
        space=space_table(parse(results.config)) if isinstance(results.config, StudyConfig) else None,
        ends=_ends(results),
        failures=_failures(results),
        cost=_cost(results),
        go_on=shlex.join(go_on) if results.interrupted else "",
        repeat=shlex.join(word for word in command if not word.startswith("resume=")),
        versions=_versions(),
        champion=results.champion_address,
        folder=str(results.folder),
        mlflow=results.config.tracking.name == "mlflow",
    )
    path = results.names.report
    write_text(path, page)
    return path


# ---- the answer


def answer(results: Results) -> list[str]:
    """The answer of a run or study in sentences: its best point, and how well it does."""
    records, ranked, members = results.records, results.ranked(), results.members
    if not records:
        return ["No trial has ended yet."]
    if not ranked:
        reason = next((record.failure for record in records if record.failure), "unknown")
        return [f"No result: all {len(records)} trials failed.", f"First reason: {reason}"]
    if diverged(members).all():
        return [f"No result: all {len(members)} members diverged.", REMEDY]
    best, config = ranked[0], results.config
    rows = members[members["trial"] == best.number]
    base = base_of(config) if isinstance(config, StudyConfig) else config
    where = _point_in_words(best.values, rows)
    if not has_sources(members):
        return list(_answer_without_sources(rows, where))
    sentences = list(_answer_with_sources(rows, where, with_values(base, best.values), len(records) > 1))
    if results.objective.metric != "val/mcc" and best.score is not None:
        objective = results.objective
        score = compact(best.score, 4)
        sentences.append(f"The trial was chosen by its {objective.aggregate} {objective.metric}, {score}.")
    return sentences


def _answer_with_sources(members: pd.DataFrame, where: str, config: RunConfig, several: bool) -> Iterator[str]:
    spread = quartiles(counted(members, BEST_MCC))
    numbers = _spread("val/mcc", map(fixed, spread), len(members))
    best = f"The best trial ({where})" if several else f"The point ({where})"
    chance = chance_mcc(config.data)
    if spread.median >= RECOVERED:
        yield f"{best} recovers the sources: {numbers}."
    elif spread.median >= PARTLY:
        yield f"{best} recovers the sources in part: {numbers}."
    else:
        verdict = "is no better than chance" if spread.median <= 2 * chance else "does not recover the sources"
        yield f"{best} {verdict}: {numbers}."
        yield f"Latents that are independent of the sources reach {chance:.3f} here."
    if lost := int(diverged(members).sum()):
        yield f"{lost} of its {len(members)} members diverged; they count as 0 in the median and quartiles."
    numbers_of = chosen_numbers(members)
    blind, test = numbers_of["mcc/at_best_neg_elbo"], numbers_of["mcc/test_of_chosen"]
    yield (
        "This MCC is read where each member's val/mcc is best, which requires the sources. At the smallest "
        f"val/neg_elbo, which does not, the median is {blind:.3f}."
        + ("" if np.isnan(test) else f" The chosen model has {test:.3f} on the test split.")
    )


def _answer_without_sources(members: pd.DataFrame, where: str) -> Iterator[str]:
    numbers = _spread("val/neg_elbo", map(fixed, quartiles(counted(members, BEST_NEG_ELBO))), len(members))
    yield f"The best fit of the observations ({where}): {numbers}."
    agreement = chosen_numbers(members)["chosen/agreement"]
    if np.isnan(agreement):
        yield "With a single seed, stability of the latents is unknown: set members.seed to several."
        return
    verdict = "agree on the latents" if agreement >= RECOVERED else "agree on the latents in part"
    verdict = verdict if agreement >= PARTLY else "do not agree on the latents"
    yield f"Its seeds {verdict}: median agreement {agreement:.3f}."
    yield "Without sources to compare with, agreement of seeds does not prove that they found them."


def _point_in_words(values: Mapping[str, Value], members: pd.DataFrame) -> str:
    """A point as text; gamma squared comes from its members if gamma was not searched."""
    names = short_names(values)
    squares = np.array(members["gamma_sq"], dtype=np.float64)
    gamma = f"{'' if np.ptp(squares) == 0 else 'median '}γ² = {compact(float(np.median(squares)))}"
    return ", ".join(
        [gamma, *(f"{names[key]} = {compact(value)}" for key, value in values.items() if key != "model.gamma")]
    )


def _spread(name: str, values: Iterable[str], count: int) -> str:
    low, median, high = values
    if count == 1:
        return f"{name} {median} of one member"
    return f"median {name} {median} over {count} members (quartiles {low} to {high})"


def _progress(results: Results) -> list[str]:
    done = sum(record.status != "failed" for record in results.records)
    return [f"Interrupted: {done} of {results.points} trials have ended."] if results.interrupted else []


# ---- tables and figures


def _tables(results: Results) -> Iterator[Table]:
    if isinstance(results.config, StudyConfig):
        yield from study_tables(results, BEST)
    elif results.ranked():
        yield member_table(results.members)
        yield from point_tables(results, results.members)


def _interactive(sections: Iterable[Section]) -> list[dict[str, str]]:
    """Figures as HTML. The first one brings Plotly's library."""
    import plotly.io

    config = {  # sendChartToCloud would upload the data
        "responsive": True,
        "displaylogo": False,
        "modeBarButtonsToRemove": ["lasso2d", "select2d", "sendChartToCloud"],
    }
    parts = []
    for number, (heading, reading, figure) in enumerate(sections):
        options = {"config": config, "include_plotlyjs": number == 0, "full_html": False}
        html = plotly.io.to_html(figure, **options, div_id=f"figure-{number}")
        parts.append({"heading": heading, "reading": reading, "html": html})
    return parts


def _static(folder: Path, interactive: bool) -> list[Path]:
    """Pictures of the folder that the page shows: of a study those that have no interactive form."""
    paths = sorted((folder / "figures").glob("*.png"))
    shown = {"reconstructions", "traversals"}
    return [path for path in paths if path.stem in shown or not interactive]


def _picture(path: Path) -> dict[str, Any]:
    """A PNG file as part of the page."""
    content = path.read_bytes()
    (width,) = struct.unpack(">I", content[16:20])  # of the image's header
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {"name": path.stem.replace("_", " "), "width": width * PIXELS_PER_INCH // DPI, "source": source}


# ---- settings, ends and cost


def _asked(results: Results) -> dict[str, str]:
    config, facts = results.config, {}
    if isinstance(config, StudyConfig):
        scheduler = config.scheduler
        scores = [f"{o.aggregate} {o.metric} of a trial's members ({o.mode})" for o in config.objectives]
        facts = {
            "Score": "; ".join(scores),
            "Budget": f"{results.points} trials of {config.members.count} members",
            "Sampler": config.sampler.name,
            "Scheduler": scheduler.name
            if scheduler.name == "none"
            else f"{scheduler.name}, from epoch {scheduler.grace}",
        }
    data, model, training, members = config.data, config.model, config.training, config.members
    return facts | {
        "Data": f"{data.summary}; data.seed {_listed(members.data.seed or (data.seed,))}",
        "Members": f"{members.count}; seeds {_listed(members.seed)}",
        "Model": f"{model.name}, {model.prior.name} prior, {model.posterior} posterior, {model.precision} precision",
        "Training": f"at most {training.max_epochs} epochs in batches of {training.batch_size}; a member stops after "
        f"{training.patience} validations without a lower val/neg_elbo, one every {training.validate_every} epochs",
        "All settings": "config.yaml in this folder",
    }


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) <= MAX_SEEDS:
        return ", ".join(map(str, numbers))
    return f"{numbers[0]}, {numbers[1]}, …, {numbers[-1]} ({len(numbers)} in all)"


def _ends(results: Results) -> dict[str, str]:
    """Number of trials and members by status."""
    counts = {"Trials": Counter(str(record.status) for record in results.records)}
    counts["Members"] = Counter(str(row["status"]) for record in results.records for row in record.members)
    return {name: ", ".join(f"{n} {status}" for status, n in sorted(c.items())) for name, c in counts.items() if c}


def _failures(results: Results) -> Table:
    """The trials that failed or lost members, and why."""
    rows = []
    for record in results.records:
        lost = sum(row["status"] == "diverged" for row in record.members)
        if record.status == "failed" or lost:
            reason = record.failure or f"{lost} of {len(record.members)} members diverged"
            rows.append((str(record.number), point_text(record.values), reason))
    columns = ["trial", "point", "reason"]
    caption = "A failed trial has no result; resuming the study repeats it."
    return Table("Failed and diverged", caption, columns, rows, columns[1:])


def _cost(results: Results) -> dict[str, str]:
    steps = member_steps(results.records, results.config)
    costs, seconds = {}, results.seconds
    if seconds > 0:
        costs["Time"] = clock(seconds)
        if results.earlier:
            costs["Time"] += f" the last time; {results.earlier} trials had ended before"
        if results.work_seconds > 0:
            costs["Training and validation"] = f"{results.work_seconds / seconds:.0%} of the time"
        if (trained := len(results.records) - results.earlier) > 1:
            costs["Time per trial"] = f"{seconds / trained:.1f} s"
    costs["Member-steps"] = f"{sum(steps.values()):,}"
    each = [count for count in steps.values() if count]
    if len(each) > 1:
        costs["Member-steps per trial"] = f"{min(each):,} to {max(each):,}"
    return costs


def _versions() -> dict[str, str]:
    tags, prefix = provenance(), "imavae.version."
    packages = [f"{name.removeprefix(prefix)} {tag}" for name, tag in tags.items() if name.startswith(prefix)]
    facts = {"Packages": ", ".join(packages)}
    if commit := tags.get("mlflow.source.git.commit"):
        modified = " with uncommitted changes" if tags.get("imavae.git.modified") == "true" else ""
        facts["Commit"] = commit + modified
    return facts
