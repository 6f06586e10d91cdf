"""Between Ray Tune, which asks for trials, and Optuna, which proposes points and is told their scores.

Ray's own adapter can't serve a trial of several points: it asks for one and tells one score. This one hands out points
with their numbers in Optuna's study, which are their numbers everywhere, and tells each its own score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher as RaySearcher

from imavae.config.settings import StudyConfig
from imavae.runs.folder import LockedFolder, Numbered
from imavae.search.samplers import sampler_for
from imavae.search.space import Parameter, Point, shared
from imavae.search.stopping import read_note

if TYPE_CHECKING:
    from optuna.study import Study


class Searcher(RaySearcher):
    """Gives Ray a trial's points, and tells Optuna how they ended. All that must survive is in Optuna's storage."""

    def __init__(
        self,
        study: Study,
        parameters: Sequence[Parameter],
        config: StudyConfig,
        waiting: Sequence[Sequence[int]],
        home: LockedFolder | None,
    ) -> None:
        """Args:
        study: Optuna's.
        parameters: those of the space.
        config: its sampler and its budget.
        waiting: numbers of points that the study has already and that must be trained: a trial for each list,
            before any point is proposed.
        home: the study's folder, which remembers the points of each trial, and which of them the scheduler has stopped.
            None: nothing is remembered, and no trial can end.
        """
        super().__init__()
        self._study, self._parameters, self._home = study, list(parameters), home
        self._settings, self._budget = config.sampler, config.budget.trials or 0
        self._waiting = [list(numbers) for numbers in waiting]
        self._asked = len(study.get_trials(deepcopy=False))
        self._numbers: dict[str, list[int]] = {}  # of the points of each of Ray's trials

    def suggest(self, trial_id: str) -> Any:
        """The next trial's ``points``: a list of (number, values); or FINISHED.

        The points of a pack share the first one's settings, but for those that may differ within an ensemble: these are
        proposed for each.
        """
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

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell each point's score: pruned, where it was stopped, failed, where there is none."""
        numbers = self._numbers.pop(trial_id)
        stopped = read_note(self._home.names.note(min(numbers))) if self._home else {}
        told = {trial.number for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()}
        for i, number in enumerate(numbers):
            if number in told:
                continue  # by a driver that was broken off before it could record the trial
            if error or not result or "scores" not in result:
                self._study.tell(number, state=TrialState.FAIL)
            elif number in stopped:
                # Optuna takes a pruned point's value from what was reported last.
                [score] = result["scores"][i]
                self._study._storage.set_trial_intermediate_value(self._id(number), stopped[number], score)
                self._study.tell(number, state=TrialState.PRUNED)
            else:
                self._study.tell(number, result["scores"][i])

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: Optuna's storage has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def _ask(self, fixed: Mapping[str, Any]) -> Numbered:
        """A new point, as the sampler proposes it, but for what is fixed."""
        self._study.sampler = sampler_for(self._settings, self._parameters, self._asked)
        if fixed:
            self._study.enqueue_trial(dict(fixed))
        trial = self._study.ask()
        self._asked += 1
        return [trial.number, self._suggested(trial)]

    def _existing(self, number: int) -> Numbered:
        """A point that the study has: a waiting one begins to run, one that an earlier driver has left goes on."""
        found = self._study.get_trials(deepcopy=False)[number]
        if found.state.is_finished():
            return [number, dict(found.params)]
        if found.state == TrialState.WAITING:
            self._study._storage.set_trial_state_values(self._id(number), state=TrialState.RUNNING)
        self._study.sampler = sampler_for(self._settings, self._parameters, number)
        return [number, self._suggested(optuna.trial.Trial(self._study, self._id(number)))]

    def _id(self, number: int) -> int:
        """What the storage calls a point."""
        storage = self._study._storage
        study_id = storage.get_study_id_from_name(self._study.study_name)
        return storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def _suggested(self, trial: optuna.Trial) -> Point:
        point: Point = {}
        for parameter in self._parameters:
            if parameter.active(point):
                point[parameter.key] = parameter.suggest(trial)
        return point
