"""Reproduction of a figure: finds or runs its studies, judges and draws them, writes and tracks the result."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from imavae.config.mapping import to_mapping
from imavae.config.settings import ReproduceConfig, StudyConfig
from imavae.data.storage import write_text
from imavae.errors import UserError, require
from imavae.paper import draw
from imavae.paper.figures import PaperFigure, paper_figure
from imavae.paper.judge import FAIL, PASS, Row, frame, markdown_table
from imavae.paper.studies import Study, difference, find, find_unfinished
from imavae.report.display import clock
from imavae.report.drawing import write
from imavae.runs.ledger import tracker_of

DPI = 300  # for print


@dataclass(frozen=True)
class Reproduction:
    """A reproduced figure.

    Attributes:
        figure: the figure.
        studies: its studies.
        rows: the rows of its table.
        notes: what differs from the published figure, and what each study's intervals refer to.
        folder: holds ``NAME.pdf``, ``NAME.png``, ``table.md`` and ``table.csv``.
    """

    figure: PaperFigure
    studies: list[Study]
    rows: list[Row]
    notes: list[str]
    folder: Path

    @property
    def verdicts(self) -> Counter[str]:
        """Number of rows by verdict."""
        return Counter(row.verdict for row in self.rows)

    @property
    def passed(self) -> bool:
        """Whether no row fails."""
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
    rows = figure.kind.rows(studies)
    notes = [figure.differs, *(f"{study.name}: {_intervals(study)}." for study in studies)]
    found = Reproduction(figure, studies, rows, notes, Path(config.output_dir).resolve() / "reproduce" / figure.name)
    with matplotlib.rc_context(fname=draw.STYLE):
        files = write({figure.name: figure.kind.draw(studies)}, found.folder, DPI)
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


def _study(
    wanted: StudyConfig, plot_only: bool, run: Callable[[StudyConfig], object], report: Callable[[str], None]
) -> Study:
    """Return the finished study with these settings: a stored one, or one that is resumed or run now."""
    found = find(wanted)
    if found is not None:
        report(f"{wanted.study}: read from {found.folder}")
        return found
    rule = f"{wanted.study} is finished, with these settings"
    require(not plot_only, rule, difference(wanted), "drop plot_only to run it")
    unfinished = find_unfinished(wanted)
    report(f"{wanted.study}: {f'resuming {unfinished}' if unfinished else 'running'}")
    run(wanted if unfinished is None else dataclasses.replace(wanted, resume=True, name=unfinished))
    found = find(wanted)
    if found is None:
        raise UserError(
            f"`{wanted.study} is finished` must hold, but some of its trials failed; see {wanted.output_dir}"
        )
    return found


def _intervals(study: Study) -> str:
    """Return what the intervals of a study refer to, and its running time."""
    also = ""
    if study.config.members.data.seed is None:
        fixed = study.config.model.decoder == "mixing"  # which allows one mixing only
        also = f" and one draw of its data; {'data.seed=2' if fixed else 'members.data.seed=[1,2,3]'} varies both"
    took = "" if math.isnan(study.seconds) else f"; took {clock(study.seconds)}"
    return f"intervals are over {study.population}{also}; {len(study.members)} members{took}"


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
