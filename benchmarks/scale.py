"""Measure how the cost of a trial depends on their number, and how many slots one driver feeds.

``trials`` runs a study of trials that cost nothing: each copies the checkpoint of an ensemble of ``members`` that was
trained before, and reports a score. The driver, the searcher, the records and MLflow are the real ones, with two
workers of Ray.

``slots`` runs the real driver against a simulated cluster. Ray's manager of actors is replaced by one in this process,
whose trials last ``seconds`` and report ``reports`` times. It shows the share of the time for which slots are busy.

Examples:
  python benchmarks/scale.py trials=2000 members=8
  python benchmarks/scale.py slots=256 seconds=60 reports=12
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import psutil  # type: ignore[import-untyped]
import torch
from ray import tune as ray_tune
from ray.air.execution._internal.tracked_actor import TrackedActor

from imavae.api import load_results, tune
from imavae.config.settings import Cluster, Objective, run_config
from imavae.runs.folder import RunFolder
from imavae.runs.session import Session
from imavae.search import cluster

MARKS = (100, 200)  # trials between which a further one is timed, from the start, and likewise before the end
BASE: dict[str, Any] = {"data": {"n_obs": 1000}, "training": {"max_epochs": 1, "validate_every": 1}}
STUDY: dict[str, Any] = BASE | {
    "search": {"model": {"gamma": {"type": "float", "low": 3.0, "high": 1000.0, "log": True}}},
    "scheduler": {"name": "none"},
    "cluster": {"cpus": 2},
}


def report_of(folder: str, points: list[tuple[int, Mapping[str, float]]], epoch: int, last: bool) -> dict[str, Any]:
    """A trial's report; the last one comes with a checkpoint."""
    names = RunFolder(Path(folder))
    if last:
        shutil.copy(names.output_dir / "template.pt", names.ensemble(min(number for number, _ in points)))
    work = {"member_steps": 1, "train_seconds": 0.0, "validate_seconds": 0.0, "seconds": 0.0}
    scores = [[-abs(math.log10(values["model.gamma"]) - 1.5)] for _, values in points]
    return {"scores": scores, "about": [{}] * len(points), "alive": [1 - last] * len(points), "epoch": epoch} | work


def nothing(config: dict[str, Any], folder: str, **_: Any) -> None:
    """Stand for the worker's function."""
    ray_tune.report(report_of(folder, config["points"], 1, last=True))


def make_template(output_dir: Path, members: Mapping[str, list[int]]) -> None:
    """Write the checkpoint of a trained ensemble."""
    session = Session.start([run_config({**BASE, "members": members})], torch.device("cpu"))
    for _ in session.train([Objective()]):
        pass
    session.finals = {0: session.final(0)}
    session.save(output_dir / "template.pt")


class Watch:
    """Seconds, CPU seconds, MB of memory and kB written to disk by the number of recorded trials, in a thread."""

    def __init__(self, output_dir: Path) -> None:
        self._folder, self._process, self.begun = output_dir, psutil.Process(), time.monotonic()
        self.found: dict[int, tuple[float, float, float, float]] = {0: (0.0,) * 4}
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            recorded = (
                len([n for f in self._folder.glob("studies/*/records") for n in os.listdir(f) if "json" in n]) // 2
            )
            if recorded not in self.found:
                family = [self._process, *self._process.children(recursive=True)]
                written = 0
                for one in family:
                    try:
                        written += one.io_counters().write_bytes
                    except psutil.Error:
                        continue
                now = time.monotonic() - self.begun
                self.found[recorded] = now, time.process_time(), self._process.memory_info().rss / 2**20, written / 1e3

    def at(self, trials: int) -> tuple[float, float, float, float]:
        return self.found[min(number for number in self.found if number >= trials)]

    def end(self) -> None:
        self._ended.set()


def measure_trials(output_dir: Path, members: Mapping[str, list[int]], trials: int) -> None:
    """Print the cost of a trial early and late in a study, and of its end and its resume."""
    settings = STUDY | {"output_dir": str(output_dir), "members": members, "budget": {"trials": trials}}
    watch = Watch(output_dir)
    with mock.patch("imavae.search.trials.trainable", nothing):
        start = time.monotonic()
        results = tune(**settings)
        end = time.monotonic() - start
        watch.end()
        first, last = MARKS, (trials - MARKS[1], trials - MARKS[0])
        for low, high in (first, last):
            before, after = watch.at(low), watch.at(high)
            wall, cpu, _, written = [(b - a) / (high - low) for a, b in zip(before, after, strict=True)]
            print(
                f"trials {low} to {high}: {1000 * wall:.0f} ms, {1000 * cpu:.0f} ms of the driver's CPU time and "
                f"{written:.0f} kB written each; {after[2]:.0f} MB of memory"
            )
        recorded, _, _, written = watch.at(trials - 1)
        print(
            f"{trials} trials recorded after {recorded:.0f} s, all done after {end:.0f} s; "
            f"{written / trials:.0f} kB written per trial on average"
        )
        start = time.monotonic()
        tune(**settings, name=results.folder.name, resume=True)
        print(f"resume of the finished study: {time.monotonic() - start:.1f} s")
    start = time.monotonic()
    loaded = load_results(results.folder)
    rows = len(loaded.members), len(loaded.history)
    print(f"load_results with tables of {rows} rows: {time.monotonic() - start:.1f} s")
    size = sum(file.stat().st_size for file in output_dir.rglob("*") if file.is_file())
    print(
        f"report: {results.names.report.stat().st_size / 1e6:.1f} MB; all files: {size / 1e3 / trials:.0f} kB per trial"
    )


class Simulated:
    """Stands for Ray's manager of actors: trials last for ``seconds`` and report ``reports`` times."""

    seconds, reports, folder = 60.0, 12, ""
    begun, ended = math.inf, 0.0  # times of the first trial's start and of the last one's end
    cpu = math.inf  # seconds of this process at the first one

    def __init__(self, **_: Any) -> None:
        self._live_actors_to_ray_actors_resources: dict[TrackedActor, tuple[None, None]] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._tasks: dict[TrackedActor, int] = {}
        self._number = itertools.count()
        self._points: dict[TrackedActor, Any] = {}
        self._actor_task_events = mock.Mock()

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time.monotonic() + seconds, next(self._number), act))

    def next(self, timeout: float) -> bool:
        due = self._events[0][0] if self._events else math.inf
        time.sleep(max(0.0, min(timeout, due - time.monotonic())))
        if due > time.monotonic():
            return False
        heapq.heappop(self._events)[-1]()
        return True

    def add_actor(self, cls: Any, kwargs: dict[str, Any], on_start: Any, on_stop: Any, on_error: Any, **_: Any) -> Any:
        actor = TrackedActor(next(self._number), on_start=on_start, on_stop=on_stop, on_error=on_error)
        self._points[actor], self._tasks[actor] = kwargs["config"]["points"], 0

        def start() -> None:
            Simulated.begun, Simulated.cpu = min(self.begun, time.monotonic()), min(self.cpu, time.process_time())
            self._live_actors_to_ray_actors_resources[actor] = None, None
            on_start(actor)

        self._after(0.0, start)
        return actor

    def schedule_actor_task(
        self, tracked_actor: TrackedActor, method_name: str, args: Any = (), on_result: Any = None, **_: Any
    ) -> None:
        actor = tracked_actor
        if method_name == "reset":
            self._points[actor], self._tasks[actor] = args[0]["points"], 0
            self._after(0.0, lambda: on_result(actor, True))
        if method_name == "train":
            self._tasks[actor] += 1
            count, pause = self._tasks[actor], self.seconds / self.reports

            def report() -> None:
                last = count == self.reports
                Simulated.ended = time.monotonic()
                result = report_of(self.folder, self._points[actor], count, last)
                on_result(actor, result | {"training_iteration": count, "done": last, "time_total_s": 0.0, "pid": 0})

            self._after(pause, report)

    def remove_actor(self, tracked_actor: TrackedActor, **_: Any) -> bool:
        self._live_actors_to_ray_actors_resources.pop(tracked_actor, None)
        return False

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:
        return False

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        pass

    def cleanup(self) -> None:
        pass

    def get_live_actors_resources(self) -> dict[str, float]:
        return {}

    num_pending_actors = num_total_actors = 0
    num_actor_tasks = 0

    @property
    def num_live_actors(self) -> int:
        return len(self._live_actors_to_ray_actors_resources)


def measure_slots(output_dir: Path, members: Mapping[str, list[int]], slots: int, seconds: float, reports: int) -> None:
    """Print the share of the time for which the slots of a simulated cluster are busy, over four trials per slot."""
    Simulated.seconds, Simulated.reports, Simulated.folder = seconds, reports, str(output_dir / "studies" / "study")
    trials = 4 * slots
    with (
        mock.patch("imavae.search.trials.trainable", nothing),
        mock.patch("ray.tune.execution.tune_controller.RayActorManager", Simulated),
        mock.patch.object(cluster, "slots", return_value=slots),
    ):
        watch = Watch(output_dir)
        tune(**STUDY, members=members, output_dir=str(output_dir), budget={"trials": trials})
        watch.end()
    took, recorded = Simulated.ended - Simulated.begun, watch.begun + watch.at(trials - 1)[0] - Simulated.begun
    cpu = (watch.at(trials - 1)[1] - Simulated.cpu) / trials
    print(
        f"{slots} slots, trials of {seconds:g} s with {reports} reports: slots are busy for "
        f"{trials * seconds / slots / took:.0%} of {took:.0f} s; recorded after {recorded:.0f} s; the driver needs "
        f"{1000 * cpu:.0f} ms of CPU time a trial, so one core feeds {seconds / cpu:.0f} such slots"
    )


def main() -> None:
    """Measure as the command line says."""
    settings = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder, cluster.running(Cluster(cpus=2)):
        members = {"seed": list(range(1, 1 + int(settings.get("members", 2))))}
        make_template(Path(folder), members)
        if "slots" in settings:
            slots, seconds, reports = int(settings["slots"]), float(settings["seconds"]), int(settings["reports"])
            measure_slots(Path(folder), members, slots, seconds, reports)
        else:
            measure_trials(Path(folder), members, int(settings.get("trials", 2000)))


if __name__ == "__main__":
    main()
