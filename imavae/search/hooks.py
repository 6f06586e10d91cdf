"""The hooks by which Ray Tune tells the driver's recorder what trials do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ray.tune import Callback
from ray.tune.experiment import Trial

if TYPE_CHECKING:
    from imavae.search.recorder import Recorder


class Hooks(Callback):
    """Passes everything on to the process's one recorder. Ray pickles its callbacks, and a recorder (a thread, a
    database connection) can't be: so the class refers to it, not the object.
    """

    recorder: ClassVar[Recorder]

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has got its worker."""
        self.recorder.started(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reported."""
        self.recorder.reported(trial, result)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has failed, and will be started again."""
        self.recorder.restarted(trial)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has ended by itself, or was stopped by the scheduler."""
        self.recorder.ended(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has failed for good."""
        self.recorder.ended(trial, failed=True)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ray's event loop has gone round once."""
        self.recorder.tell()
