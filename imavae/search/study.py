"""Run a study: Optuna proposes points, Ray trains them, and each trial's score is the objective over its members."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from imavae.config.settings import StudyConfig, base_of
from imavae.data.images import Progress as Rendering
from imavae.errors import Interrupted, UserError
from imavae.runs.folder import create, reopen
from imavae.runs.ledger import Ledger, tracker_of
from imavae.runs.session import render
from imavae.search import cluster
from imavae.search.space import check

if TYPE_CHECKING:
    from imavae.search.trials import Snapshot


class NoResultError(UserError):
    """All trials of the study in ``ledger`` have failed. Its tracked run and its folder are closed."""

    def __init__(self, message: str, ledger: Ledger) -> None:
        super().__init__(message)
        self.ledger = ledger


def run_study(
    config: StudyConfig,
    notify: Callable[[Snapshot], None],
    say: Callable[[str], None] = print,
    rendering: Rendering | None = None,
) -> Ledger:
    """Run a study until its end or an interrupt; with ``config.resume``, continue an earlier one.

    Calls ``notify`` about once a second with the progress, ``say`` with each phase and with notices about damage that
    was found on resuming, and ``rendering`` while images that are not in the cache are rendered. Raises NoResultError
    if all trials failed.
    """
    parameters, points = check(config)
    name = config.study.replace("/", "-")
    home = reopen(config, "studies", name) if config.resume else None
    tracker = tracker_of(config, config.study, later=True)
    try:
        with cluster.running(config.cluster) as slots:
            from imavae.search.trials import train  # it imports Ray, for which the environment is set now

            if not any(parameter.key.startswith("data.") for parameter in parameters):
                render(base_of(config), rendering)  # once, here: otherwise every worker would
            home = home or create(config, "studies", config.name or name)
            ledger = Ledger.start(config, home, tracker)
            train(config, parameters, points, ledger, slots, notify, say)
            ledger.write_tables()
            if ledger.results.ranked() or ledger.interrupted:
                return ledger
            ledger.close("failed")
    except Interrupted as error:  # Ray's end, too
        error.folder = None if home is None else home.path.name
        raise
    reason = next((record.failure for record in ledger.records if record.failure), "nothing was trained")
    raise NoResultError(f"no trial of {ledger.folder.name} has a result: {reason}; see {ledger.names.ray}", ledger)
