"""Reproduction of a figure: finds or runs its studies, judges and draws them, writes and tracks the result."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd

from imavae.config.mapping import to_mapping
from imavae.config.settings import Budget, ReproduceConfig, StudyConfig, study_config
from imavae.data.storage import write_text
from imavae.errors import UserError, require
from imavae.paper import draw
from imavae.paper.figures import PaperFigure, paper_figure
from imavae.paper.quantities import FAIL, PASS, Row, Study, frame, linear_rows, markdown_table
from imavae.report.display import clock
from imavae.report.drawing import write
from imavae.runs.folder import RunFolder, essence, states
from imavae.runs.ledger import tracker_of
from imavae.runs.results import load_results
from imavae.search.space import grid, parse

DPI = 300  # for print


@dataclass(frozen=True)
class Reproduction:
    """A reproduced figure."""

    figure: PaperFigure
    studies: list[Study]
    rows: list[Row]  # of its table
    notes: list[str]  # differences from the published figure, and what each study's intervals refer to
    folder: Path  # holds NAME.png (and NAME.pdf), table.md and table.csv

    @property
    def verdicts(self) -> Counter[str]:
        """Number of rows by verdict."""
        return Counter(row.verdict for row in self.rows)

    @property
    def passed(self) -> bool:
        """True if no row fails."""
        return self.verdicts[FAIL] == 0


def reproduce_figure(
    config: ReproduceConfig,
    wanted: Sequence[StudyConfig],
    run: Callable[[StudyConfig], object],
    report: Callable[[str], None],
) -> Reproduction:
    """Reproduce the figure ``config.figure`` from its studies, in ``config.output_dir``.

    Args:
        config: the figure, and where and how its result is kept.
        wanted: the figure's studies. Finished ones are read; others are resumed or started unless ``plot_only``.
        run: runs a study; only called without ``plot_only``.
        report: receives a line about each study before it is read or run.

    Raises:
        UserError: there is no such figure, a study is missing with ``plot_only``, or one has not finished.
        Interrupted: a study was interrupted; the same call continues it.
    """
    figure = paper_figure(config.figure or "")
    wanted = [dataclasses.replace(one, resume=False, name=None if one.resume else one.name) for one in wanted]
    studies = [figure.kind.derive(_study(one, config.plot_only, run, report)) for one in wanted]
    rows = figure.kind.rows(studies) + [row for study in studies for row in linear_rows(study)]
    notes = [figure.differs, *(f"{study.name}: {_intervals(study)}." for study in studies)]
    found = Reproduction(figure, studies, rows, notes, Path(config.output_dir).resolve() / "reproduce" / figure.name)
    with matplotlib.rc_context(fname=draw.STYLE):
        files = write({figure.name: figure.kind.draw(studies)}, found.folder, config.pdf, DPI)
    tables = {
        "table.md": "\n".join([markdown_table(rows), "\n\n".join(notes), ""]),
        "table.csv": frame(rows).to_csv(index=False),
    }
    for name, text in tables.items():
        write_text(found.folder / name, text)
    tracker = tracker_of(config, "reproduce")
    tracker.start(figure.name, to_mapping(config), {"imavae.figure": figure.name})
    tracker.finish("finished", _metrics(found), [*files, *(found.folder / name for name in tables)])
    return found


def find(wanted: StudyConfig) -> Study | None:
    """Return the newest finished study in ``wanted.output_dir`` with the same settings, or None."""
    studies = (_read(folder, stored) for folder, stored, other in _stored(wanted) if not other)
    return next((study for study in studies if study is not None), None)


def difference(wanted: StudyConfig) -> str:
    """Return the reason why :func:`find` finds nothing: other settings of the newest study of the same search."""
    for folder, stored, other in _stored(wanted):
        if stored.study == wanted.study:
            return f"{folder} has {', '.join(other)}" if other else f"{folder} is not finished"
    return f"none in {Path(wanted.output_dir).resolve() / 'studies'}"


def _study(
    wanted: StudyConfig, plot_only: bool, run: Callable[[StudyConfig], object], report: Callable[[str], None]
) -> Study:
    """Return the finished study with these settings: a stored one, or one that is resumed or run now."""
    whole, rule = dataclasses.replace(wanted.budget, trials=None) == Budget(), "a figure's studies are trained whole"
    require(whole, rule, wanted.budget, "drop budget.hours, budget.trial_minutes and budget.target")
    found = find(wanted)
    if found is not None:
        report(f"{wanted.study}: read from {found.folder}")
        return found
    rule = f"{wanted.study} is finished, with these settings"
    require(not plot_only, rule, difference(wanted), "drop plot_only to run it")
    alike = [folder for folder, _, other in _stored(wanted) if not other]
    name = next((folder.name for folder in alike if RunFolder(folder).state.is_file()), None)
    report(f"{wanted.study}: {f'resuming {name}' if name else 'running'}")
    run(dataclasses.replace(wanted, resume=True, name=name) if name else wanted)
    found = find(wanted)
    if found is None:
        raise UserError(f"`{rule}` must hold, but some of its trials failed; see {wanted.output_dir}")
    return found


def _stored(wanted: StudyConfig) -> Iterator[tuple[Path, StudyConfig, list[str]]]:
    """Yield the studies in ``wanted.output_dir``, newest first, with their settings that differ from ``wanted``.

    Only settings that decide a study's results are compared; fewer trials are another grid.
    """
    ours = essence(wanted) | {"budget.trials": wanted.budget.trials}
    found = states(Path(wanted.output_dir).resolve() / "studies")
    for path, state in sorted(found, key=lambda item: (item[1].number, item[1].created), reverse=True):
        try:
            config = study_config(state.config)
        except (OSError, UserError, TypeError):
            continue  # this version can't read it
        if dataclasses.replace(config.budget, trials=None) != Budget():
            continue  # some of its trials may have been stopped
        theirs = essence(config) | {"budget.trials": config.budget.trials}
        other = [f"{key}={theirs.get(key)}" for key in ours | theirs if ours.get(key) != theirs.get(key)]
        yield path, config, other


def _read(folder: Path, config: StudyConfig) -> Study | None:
    """Return the study in a folder, or None unless every point of its grid has all its members."""
    if config.sampler.name != "grid":
        return None
    points = pd.DataFrame(grid(parse(config))[: config.budget.trials])
    try:
        results = load_results(folder)
        members, history = results.members, results.history
    except (OSError, UserError):
        return None
    counts = members["trial"].value_counts() if len(members) else pd.Series()
    if len(counts) != len(points) or (counts != config.members.count).any():
        return None
    new = [key for key in points if key not in members]
    members = members.join(points[new], on="trial").copy()  # defragmented: columns are added to it
    return Study(config, folder, members, history, results.seconds)


def _intervals(study: Study) -> str:
    """Return what the intervals of a study refer to, and its running time."""
    config, members = study.config, study.config.members
    draws = len(members.data.seed or [1])
    over = f"{members.count} initialisations that share one mixing"
    if draws > 1:
        seeds = len(members.seed)
        over = f"{draws} mixings, {seeds} initialisation{'s' * (seeds > 1)} of each"
    if members.data.seed is None:
        fixed = config.model.decoder == "mixing"  # which allows one mixing only
        over += f" and one draw of its data; {'data.seed=2' if fixed else 'members.data.seed=[1,2,3]'} varies both"
    took = "" if math.isnan(study.seconds) else f"; took {clock(study.seconds)}"
    return f"intervals are over {over}; {len(study.members)} members{took}"


def _metrics(found: Reproduction) -> dict[str, float]:
    """Return the numbers of all rows under names that MLflow accepts."""
    metrics = {f"rows/{verdict}": float(n) for verdict, n in found.verdicts.items()}
    for row in found.rows:
        name = f"{row.study}/{row.quantity}/{row.point}"
        for sign, word in {"γ²=": "gamma_sq ", "−": "neg ", "θ": "theta", "ρ": "rho", "=": " "}.items():
            name = name.replace(sign, word)
        name = "".join(c for c in name if c.isascii() and (c.isalnum() or c in "_-. /"))
        numbers = {"ours": row.ours.median, "expected": row.expected, "tolerance": row.tolerance}
        metrics |= {f"{name}/{key}": value for key, value in numbers.items() if value is not None}
        if row.verdict in (PASS, FAIL):
            metrics[f"{name}/passes"] = float(row.verdict == PASS)
    return metrics
