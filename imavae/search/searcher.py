"""The searcher through which Ray asks for trials.

Ray's own Optuna adapter knows one point and one score per trial. A trial here trains several points; this searcher
hands them out with their numbers in Optuna's study, which are their numbers everywhere, and reports each one's score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher as RaySearcher

from imavae.config.settings import SAMPLERS, StudyConfig
from imavae.runs.folder import LockedFolder, Numbered
from imavae.search.space import Parameter, Point, shared
from imavae.search.worker import read_stops


class Searcher(RaySearcher):
    """Gives Ray the points of each trial and reports their scores to Optuna."""

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        parameters: Sequence[Parameter],
        config: StudyConfig,
        waiting: Sequence[Sequence[int]],
        home: LockedFolder | None,
        exhausted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train the existing points ``waiting`` first, a list of numbers per trial; then propose new ones.

        ``home`` records the points of each trial; without it (in a dry run) no trial can end. No trial begins once the
        budget is ``exhausted``.
        """
        super().__init__()
        self.study, self._storage, self._home, self._exhausted = study, storage, home, exhausted
        self._parameters, self._settings, self._waiting = parameters, config.sampler, list(waiting)
        self._asked = len(study.get_trials(deepcopy=False))
        self._budget = 0 if self._settings.name == "grid" else config.budget.trials or 0
        self._numbers: dict[str, list[int]] = {}  # of the points of each Ray trial
        self._ended: set[int] = set()  # points without a member in training
        self.n_trials = len(waiting) + math.ceil(max(0, self._budget - self._asked) / (self._settings.pack or 1))

    def __reduce__(self) -> tuple[Any, ...]:
        return RaySearcher, ()  # Ray saves its search algorithm; the copy is never used

    def suggest(self, trial_id: str) -> Any:
        """The next trial's ``points``, a list of (number, values), or FINISHED.

        The points of a pack share the first one's settings, except for per-member ones, which are proposed for each.
        """
        if self._exhausted():
            return RaySearcher.FINISHED
        if self._waiting:
            points = [self._existing(number) for number in self._waiting.pop(0)]
        elif self._asked < self._budget:
            count = min(self._settings.pack or 1, self._budget - self._asked)
            points = [self._ask({})]
            points += [self._ask(shared(points[0][1])) for _ in range(count - 1)]
            if self._home is not None:
                self._home.ask(points)
        else:
            return RaySearcher.FINISHED
        self._numbers[trial_id] = [number for number, _ in points]
        return {"points": points}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Store each point's score as an intermediate value, up to the epoch at which it stopped."""
        stopped = self._stopped(trial_id)
        for number, (score, *_), alive in zip(self._numbers[trial_id], result["scores"], result["alive"], strict=True):
            if number not in self._ended and result["epoch"] <= stopped.get(number, math.inf):
                self._storage.set_trial_intermediate_value(self._id(number), result["epoch"], score)
            if not alive:
                self._ended.add(number)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report each point to Optuna as complete, pruned or failed."""
        stopped, numbers = self._stopped(trial_id), self._numbers.pop(trial_id)
        trials = self.study.get_trials(deepcopy=False)
        for i, number in enumerate(numbers):
            if trials[number].state.is_finished():
                continue  # reported by an earlier driver, which died before it recorded the trial
            about = result["about"][i] if result and "about" in result else {}
            for name, value in {**about, "folder": str(self._home.path) if self._home else ""}.items():
                self._storage.set_trial_user_attr(self._id(number), name, value)
            if error or not result or "scores" not in result:
                self.study.tell(number, state=TrialState.FAIL)
            elif number in stopped and len(result["scores"][i]) == 1:  # Optuna prunes for a single objective only
                [score] = result["scores"][i]
                self._storage.set_trial_intermediate_value(self._id(number), stopped[number], score)
                self.study.tell(number, state=TrialState.PRUNED)  # its value is the last intermediate one
            else:
                self.study.tell(number, result["scores"][i])

    def save(self, checkpoint_path: str) -> None:  # the study's folder has everything
        pass

    def _stopped(self, trial_id: str) -> dict[int, int]:
        """Epochs at which points of a trial were stopped, by number."""
        return read_stops(self._home.names.stop_file(min(self._numbers[trial_id]))) if self._home else {}

    def _ask(self, fixed: Point) -> Numbered:
        """A new point; the sampler proposes what is not fixed."""
        self._use_sampler(self._asked)
        if fixed:
            self.study.enqueue_trial(fixed)
        trial = self.study.ask()
        self._asked += 1
        return [trial.number, self._suggested(trial)]

    def _existing(self, number: int) -> Numbered:
        """A point that Optuna's study has already, enqueued or left by an earlier driver."""
        found = self.study.get_trials(deepcopy=False)[number]
        if found.state.is_finished():
            self._ended.add(number)
            return [number, dict(found.params)]
        if found.state == TrialState.WAITING:
            self._storage.set_trial_state_values(self._id(number), state=TrialState.RUNNING)
        self._use_sampler(number)
        return [number, self._suggested(optuna.trial.Trial(self.study, self._id(number)))]

    def _id(self, number: int) -> int:
        """The storage's identifier of a point."""
        study_id = self._storage.get_study_id_from_name(self.study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def _use_sampler(self, number: int) -> None:
        """Propose the point of this number by a sampler whose seed follows from ``sampler.seed`` and the number.

        A resumed study therefore proposes the same points as an uninterrupted one.
        """
        seed = int(np.random.SeedSequence([self._settings.seed, number]).generate_state(1)[0])
        distributions = {parameter.key: parameter.distribution() for parameter in self._parameters}
        kind, conditional = SAMPLERS[self._settings.name], any(parameter.when for parameter in self._parameters)
        build = kind.conditional if conditional and kind.conditional else kind.build
        self.study.sampler = build(self._settings, distributions, seed)

    def _suggested(self, trial: optuna.Trial) -> Point:
        point: Point = {}
        for parameter in self._parameters:
            point |= {parameter.key: parameter.suggest(trial)} if parameter.active(point) else {}
        return point
