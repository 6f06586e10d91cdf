"""Between Ray Tune, which asks for trials, and Optuna, which proposes points and is told their scores.

Ray's own adapter can't serve a trial of several points: it asks for one and tells one score. This one hands out points
with their numbers in Optuna's study, which are their numbers everywhere, and tells each its own score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher as RaySearcher

from imavae.config import Sampler
from imavae.search.samplers import sampler_for
from imavae.search.space import Parameter, Point

if TYPE_CHECKING:
    from optuna.study import Study

Numbered = list[Any]  # [number, values]: a point as Ray carries it


class Searcher(RaySearcher):
    """Gives Ray a trial's points, and tells Optuna how they ended. All that must survive is in Optuna's storage."""

    def __init__(
        self,
        study: Study,
        parameters: Sequence[Parameter],
        settings: Sampler,
        budget: int,
        waiting: Sequence[Sequence[int]] = (),
    ) -> None:
        """Of ``budget`` points in all.

        ``waiting`` are the numbers of points that the study has already and that must be trained: a trial for each
        list, before any point is proposed.
        """
        super().__init__()
        self._study, self._parameters, self._settings, self._budget = study, list(parameters), settings, budget
        self._waiting = [list(numbers) for numbers in waiting]
        self._asked = len(study.get_trials(deepcopy=False))
        self._numbers: dict[str, list[int]] = {}  # of the points of each of Ray's trials

    def suggest(self, trial_id: str) -> Any:
        """The next trial's ``points``: a list of (number, values); or FINISHED."""
        if self._waiting:
            points = [self._existing(number) for number in self._waiting.pop(0)]
        elif self._asked < self._budget:
            points = [self._ask()]
        else:
            return RaySearcher.FINISHED
        self._numbers[trial_id] = [number for number, _ in points]
        return {"points": points}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell each point's score: pruned where members were still training, failed where there is none."""
        numbers = self._numbers.pop(trial_id, [])
        for i, number in enumerate(numbers):
            if error or not result or "scores" not in result:
                self._study.tell(number, state=TrialState.FAIL)
            else:
                self._study.tell(number, result["scores"][i])

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: Optuna's storage has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def _ask(self) -> Numbered:
        """A new point, as the sampler proposes it."""
        self._study.sampler = sampler_for(self._settings, self._asked)
        trial = self._study.ask()
        self._asked += 1
        return [trial.number, self._suggested(trial)]

    def _existing(self, number: int) -> Numbered:
        """A point that the study has: a waiting one begins to run, one that an earlier driver has left goes on."""
        found = self._study.get_trials(deepcopy=False)[number]
        if found.state != TrialState.WAITING:
            return [number, dict(found.params)]
        storage, name = self._study._storage, self._study.study_name
        trial_id = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(name), number)
        storage.set_trial_state_values(trial_id, state=TrialState.RUNNING)
        self._study.sampler = sampler_for(self._settings, number)
        return [number, self._suggested(optuna.trial.Trial(self._study, trial_id))]

    def _suggested(self, trial: optuna.Trial) -> Point:
        return {parameter.key: parameter.suggest(trial) for parameter in self._parameters}
