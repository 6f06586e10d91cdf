"""The report of a study or a run: one file that says what was asked, what came of it, and how to do it again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imavae.config.settings import RunConfig, StudyConfig
from imavae.report import page
from imavae.report.answer import run_answer, study_answer
from imavae.report.insight import Insight
from imavae.report.interactive import Section
from imavae.report.over_gamma_interactive import gamma_sections
from imavae.report.summary import choices, diverged, member_steps
from imavae.report.tables import (
    Table,
    best_trials,
    chosen_table,
    front_table,
    member_table,
    selection_table,
    space_table,
)
from imavae.report.text import clock, point_text
from imavae.runs.ledger import Ledger
from imavae.search.space import parse
from imavae.tracking.base import TrialRecord
from imavae.tracking.provenance import provenance

if TYPE_CHECKING:
    import pandas as pd

BEST = 10  # trials that are shown
FEW_SEEDS = 10  # so many are all named
EXPLORED = (  # figures that the page has in a form to explore
    "mcc_vs_gamma",
    "agreement_vs_gamma",
    "cima_vs_gamma",
    "importances",
    "parallel_coordinates",
    "contour",
    "score_vs_cost",
    "pareto_front",
)


@dataclass(frozen=True)
class Ending:
    """What the command that ends knows besides the results."""

    again: Sequence[str]  # the words of the command that does it again
    go_on: Sequence[str]  # of the one that goes on where it was
    seconds: float  # that it took, this time
    points: int = 1  # how many there are to be trained in all
    figures: Sequence[Path] = ()  # all that were drawn
    insight: Insight | None = None


def study_report(ledger: Ledger, config: StudyConfig, ending: Ending) -> str:
    """The page of a study: finished, broken off, or without any result."""
    return page.document(ledger.folder.name, _study_parts(ledger, config, ending))


def run_report(ledger: Ledger, config: RunConfig, ending: Ending) -> str:
    """The page of a run that has finished."""
    return page.document(ledger.folder.name, _run_parts(ledger, config, ending))


def _study_parts(ledger: Ledger, config: StudyConfig, ending: Ending) -> Iterator[str]:
    if config.question:
        yield page.paragraph(config.question)
    yield page.answer([*_how_far(ledger, ending), *study_answer(ledger, config)])
    trials, members = ledger.trials, ledger.members
    keys = [parameter.key for parameter in parse(config) if parameter.key in trials]
    ranked = ledger.ranked()
    if ranked:
        yield page.table(best_trials(members, trials, keys, config.objective.mode, top=BEST))
        if config.further_objectives:
            yield page.table(front_table(ledger.front(), config.objectives, keys))
        yield page.table(chosen_table(members[members["trial"] == ranked[0].number]))
        chosen = choices(members, trials, keys)
        if len(chosen):
            yield page.table(selection_table(chosen))
        yield page.figures(_sections(ledger, ending.insight))
    yield from _pictures([path for path in ending.figures if path.stem not in EXPLORED])
    yield page.heading("What was asked")
    yield page.facts(_searched(config, ending) | _asked(config))
    yield page.table(space_table(parse(config)))
    yield from _ends(ledger.sorted(), members)
    yield page.heading("Cost")
    yield page.facts(_study_cost(ledger, config, ending))
    yield from _again(ledger, config, ending)


def _run_parts(ledger: Ledger, config: RunConfig, ending: Ending) -> Iterator[str]:
    yield page.answer(run_answer(ledger, config))
    members = ledger.members
    yield page.table(member_table(members))
    yield page.table(chosen_table(members))
    chosen = choices(members, ledger.trials, [])
    if len(chosen):
        yield page.table(selection_table(chosen))
    yield from _pictures(ending.figures)
    yield page.heading("What was asked")
    yield page.facts(_asked(config))
    yield from _ends(ledger.sorted(), members)
    yield page.heading("Cost")
    steps = sum(member_steps(ledger.records, config).values())
    yield page.facts({"Time": clock(ending.seconds), "Member-steps": f"{steps:,}"})
    yield from _again(ledger, config, ending)


def _how_far(ledger: Ledger, ending: Ending) -> list[str]:
    done = sum(record.status != "failed" for record in ledger.records)
    if ledger.interrupted is None:
        return []
    return [f"Broken off: {done} of {ending.points} points have ended, and this is what they say."]


def _sections(ledger: Ledger, insight: Insight | None) -> Iterator[Section]:
    yield from gamma_sections(ledger.members, {record.number: record.values for record in ledger.records})
    if insight is not None:
        from imavae.report.insight_interactive import sections

        yield from sections(insight)


def _pictures(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        if path.suffix == ".png":
            yield page.picture(path)


def _searched(config: StudyConfig, ending: Ending) -> dict[str, str]:
    scores = [f"{o.aggregate} {o.metric} of a point's members ({o.mode})" for o in config.objectives]
    scheduler = config.scheduler
    stopping = "none" if scheduler.name == "none" else f"{scheduler.name}, from epoch {scheduler.grace} on"
    return {
        "Score": "; ".join(scores),
        "Budget": f"{ending.points} points of {config.members.count} members",
        "Proposed by": config.sampler.name,
        "Points stopped early by": stopping,
    }


def _asked(config: RunConfig) -> dict[str, str]:
    data, model, training, members = config.data, config.model, config.training, config.members
    seeds = _listed(members.seed)
    worlds = members.data.seed or (data.seed,)
    return {
        "Data": f"{data.summary}; data.seed {_listed(worlds)}",
        "Members": f"{members.count}; seeds {seeds}",
        "Model": f"{model.name}, {model.prior.name} prior, {model.posterior} posterior, {model.precision} precision",
        "Training": f"at most {training.max_epochs} epochs in batches of {training.batch_size}; a member stops after "
        f"{training.patience} validations without a lower val/neg_elbo, one every {training.validate_every} epochs",
        "Every setting": "config.yaml in this folder",
    }


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) <= FEW_SEEDS:
        return ", ".join(map(str, numbers))
    return f"{numbers[0]}, {numbers[1]}, …, {numbers[-1]} ({len(numbers)} of them)"


def _ends(records: Sequence[TrialRecord], members: pd.DataFrame) -> Iterator[str]:
    """How trials and members have ended, and of those that failed or lost members which they were."""
    if not records:
        return
    counts = {"Trials": Counter(record.status for record in records)}
    if len(members):
        counts["Members"] = Counter(members["status"])
    yield page.heading("Finished, stopped, diverged")
    yield page.facts(
        {name: ", ".join(f"{n} {status}" for status, n in sorted(c.items())) for name, c in counts.items()}
    )
    yield page.paragraph(
        "A trial is stopped by the scheduler; a member is stopped with it, or by training.patience.", faint=True
    )
    lost = Counter(members[diverged(members)]["trial"]) if len(members) else Counter()
    rows = []
    for record in records:
        if record.status == "failed" or record.number in lost:
            what = record.failure or f"{lost[record.number]} of {len(record.members)} members diverged"
            rows.append((str(record.number), point_text(record.values), what))
    if rows:
        columns = ["trial", "point", "what happened"]
        about = "A trial that failed has no result; a resume tries it again."
        yield page.table(Table("Failed and diverged", about, columns, rows, columns[1:]))


def _study_cost(ledger: Ledger, config: StudyConfig, ending: Ending) -> dict[str, str]:
    steps = member_steps(ledger.records, config)
    earlier = len(ledger.home.stored)
    now = len(ledger.records) - earlier
    costs = {"Time": clock(ending.seconds)}
    if earlier:
        costs["Time"] += f" the last time; {earlier} points had ended before"
    if ending.seconds > 0 and now:
        costs["In training and validation"] = f"{ledger.work_seconds / ending.seconds:.0%} of it"
        costs["Time a point"] = f"{ending.seconds / now:.1f} s"
    costs["Member-steps"] = f"{sum(steps.values()):,}"
    trained = [count for count in steps.values() if count]
    if trained:
        costs["Member-steps a point"] = f"{min(trained):,} to {max(trained):,}"
    return costs


def _again(ledger: Ledger, config: RunConfig, ending: Ending) -> Iterator[str]:
    """The commands, the versions, and where to go next."""
    if ledger.interrupted is not None:
        yield page.heading("Go on")
        yield page.code(shlex.join(ending.go_on) or "resume=True")
    if ending.again:
        yield page.heading("Do it again")
        yield page.code(shlex.join(ending.again))
        yield page.paragraph(f"In {Path.cwd()}. Same seeds, versions and machine give the same numbers.", faint=True)
    yield page.heading("Made by")
    tags = provenance()
    modified = " with uncommitted changes" if tags.get("imavae.git.modified") == "true" else ""
    commit = tags.get("mlflow.source.git.commit")
    prefix = "imavae.version."
    versions = [f"{name.removeprefix(prefix)} {tag}" for name, tag in tags.items() if name.startswith(prefix)]
    yield page.facts(({"Commit": commit + modified} if commit else {}) | {"Versions": ", ".join(versions)})
    yield page.heading("Where to go next")
    if ledger.champion:
        yield page.paragraph("The best model, in Python:")
        load = f'model = imavae.load_model("{ledger.champion}")'
        yield page.code(f"import imavae\n\n{load}\nz = model.encode(x)  # rows of observations")
    if config.tracking.name == "mlflow":
        yield page.paragraph("All curves and members, in MLflow's page:")
        yield page.code("make ui")
    yield page.paragraph(
        f"{ledger.folder} has members.csv (a row per member), history.csv (a row per member and validation) and "
        "figures/, for print."
    )
