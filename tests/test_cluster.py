"""Studies on a real cluster of two nodes, all on this machine, with GPUs that are none; and how many trials fit."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster
from ray.tune.experiment import Trial

from imavae.config.registry import load_plugins
from imavae.config.settings import Cluster, StudyConfig, base_of, study_config, with_values
from imavae.errors import UserError
from imavae.report.summary import member_steps
from imavae.runs.folder import create
from imavae.runs.ledger import Ledger
from imavae.runs.records import member_rows
from imavae.search import cluster
from imavae.search.study import run_study
from imavae.search.trials import Recorder, Snapshot
from imavae.tracking import Tracker
from tests.helpers import trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayCluster]:
    """A head with one core and one GPU, and a node with more of both and a resource of its own."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as folder:
        patch.setenv("RAY_TMPDIR", folder)  # short, for sockets lie in it; and no other Ray is told of this one
        for name, value in cluster.RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
        cluster._forget_token()
        ray.shutdown()
        both = RayCluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "num_gpus": 1, "resources": {"rare": 1}, "include_dashboard": False},
        )
        both.add_node(num_cpus=3, num_gpus=2, resources={"fast": 2})
        yield both
        both.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def spy(tmp_path: Path) -> ModuleType:
    """The watching plugin, in this test's folder."""
    file = shutil.copy(Path(__file__).with_name("spy_network.py"), tmp_path)
    before = set(sys.modules)
    load_plugins([str(file)])
    [name] = [name for name in set(sys.modules) - before if name.startswith("imavae_plugin_")]
    return sys.modules[name]


def test_a_joined_cluster_is_lost_when_its_raylet_or_for_long_its_gcs_does_not_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_silent", {})
    path = str(tmp_path / "raylet")
    with socket.create_server(("127.0.0.1", 0)) as gcs, socket.socket(socket.AF_UNIX) as raylet:
        raylet.bind(path)
        raylet.listen()
        port = gcs.getsockname()[1]
        node = Mock(all_processes={}, gcs_address=f"127.0.0.1:{port}", raylet_socket_name=path)
        node.dead_processes.return_value = []
        monkeypatch.setattr("ray._private.worker._global_node", node)
        cluster._knock()
        assert cluster.lost() is None
    monkeypatch.setitem(cluster.LONGEST_SILENCE, "raylet", 60.0)
    cluster._knock()
    assert cluster.lost() is None  # for now
    monkeypatch.setitem(cluster.LONGEST_SILENCE, "gcs_server", 0.0)
    assert "gcs_server" in str(cluster.lost())
    monkeypatch.setitem(cluster.LONGEST_SILENCE, "raylet", 0.0)
    assert "raylet and gcs_server" in str(cluster.lost())
    with socket.create_server(("127.0.0.1", port)):
        cluster._knock()  # the cluster has restarted its GCS
    assert "gcs_server" not in str(cluster.lost())


def test_a_gcs_that_does_not_answer_is_lost_like_one_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_silent", {})
    monkeypatch.setattr(cluster, "KNOCK_TIMEOUT", 0.2)
    monkeypatch.setitem(cluster.LONGEST_SILENCE, "gcs_server", 0.0)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as gcs, contextlib.ExitStack() as waiting:
        port = gcs.getsockname()[1]
        node = Mock(all_processes={}, gcs_address=f"127.0.0.1:{port}", raylet_socket_name="")
        node.dead_processes.return_value = []
        monkeypatch.setattr("ray._private.worker._global_node", node)
        with monkeypatch.context() as full:
            full.setattr(socket, "socket", Mock(side_effect=OSError(errno.EMFILE, "too many open files")))
            cluster._knock()  # this process is at fault
        assert cluster.lost() is None
        cluster._knock()
        assert cluster.lost() is None
        for _ in range(4):  # no room for more: the system drops what comes
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        cluster._knock()
        assert "gcs_server" in str(cluster.lost())


def test_folders_that_killed_processes_have_left_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cluster, "LONGEST_TEMPORARY", 200)
    code = "import os; from imavae.search import cluster; cluster.LONGEST_TEMPORARY = 200"
    code += "; print(cluster._private_folder(), flush=True); os.kill(os.getpid(), 9)"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    dead, mine = Path(killed.stdout.strip()).parent, Path(cluster._private_folder()).parent
    assert {dead, mine} == set(tmp_path.iterdir())
    others = tmp_path / "imavae.original"
    for folder, content in ((dead, "ray"), (mine, "ray"), (others, "results")):
        (folder / content).mkdir(parents=True)
        os.utime(folder, (0, 0))
    newest = Path(cluster._private_folder()).parent
    assert {mine, newest, others} == set(tmp_path.iterdir())


def test_ray_that_is_late_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [Exception("The current node timed out during startup."), RuntimeError("a part was not ready")]
    attempt = Mock(side_effect=[*late, None])
    monkeypatch.setattr(cluster, "_start_here", attempt)
    monkeypatch.setattr(ray, "shutdown", Mock())
    cluster._start(Cluster())
    assert attempt.call_count == 3
    attempt.side_effect = [*late, *late]
    with pytest.raises(UserError, match="timed out during startup"):
        cluster._start(Cluster())


def config(tmp_path: Path, settings: dict[str, Any], **other: Any) -> StudyConfig:
    base: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "plugins": [str(tmp_path / "spy_network.py")],
        "data": {"n_obs": 700},
        "model": {"name": "spied"},
        "members": {"seed": [1, 2]},
        "training": {"max_epochs": 3, "validate_every": 1},
        "search": {"model": {"gamma": {"type": "float", "low": 3.0, "high": 300.0, "log": True}}},
        "sampler": {"name": "random"},
        "tracking": {"name": "none"},
        "cluster": {"name": "ray", "address": "auto", **settings},
    }
    return study_config(base | other)


def ignore(snapshot: Snapshot) -> None:
    """Nobody watches."""


def run(config: StudyConfig, notify: Callable[[Snapshot], None] = ignore) -> Ledger:
    """The study's ledger, in which no trial has failed."""
    ledger = run_study(config, notify)
    assert [record.status for record in ledger.records] == ["finished"] * (config.budget.trials or 0)
    return ledger


def node_ids(nodes: RayCluster) -> set[str]:
    """Of all nodes."""
    return {node.node_id for node in nodes.list_all_nodes()}  # type: ignore[no-untyped-call]


def places(spy: ModuleType) -> dict[str, set[int]]:
    """For each pool of resources the places in it that were ever taken."""
    taken: dict[str, set[int]] = defaultdict(set)
    for start in spy.starts():
        taken[start["pool"]].add(start["place"])
    return taken


def test_trials_land_on_all_nodes_and_no_more_share_a_gpu_than_fit(
    nodes: RayCluster, spy: ModuleType, tmp_path: Path
) -> None:
    """Half a GPU and a core each: one trial fits on the head, for want of cores, and three on the other node."""
    spy.TOGETHER.write_text("4")
    run(config(tmp_path, {"gpus_per_trial": 0.5}, budget={"trials": 4}))
    taken = places(spy)
    assert {start["node"] for start in spy.starts()} == node_ids(nodes)
    assert all(there <= {0, 1} for there in taken.values())
    assert sorted(map(len, taken.values())) == [1, 1, 2]


def test_trials_that_ask_for_a_resource_land_where_it_is(nodes: RayCluster, spy: ModuleType, tmp_path: Path) -> None:
    spy.TOGETHER.write_text("2")
    run(config(tmp_path, {"resources": {"fast": 1}}, budget={"trials": 3}))
    [other] = nodes.worker_nodes
    assert places(spy) == {other.node_id: {0, 1}}


def test_a_node_that_is_taken_away_takes_nothing_with_it(nodes: RayCluster, spy: ModuleType, tmp_path: Path) -> None:
    """Its second trial is cut off after some checkpoints and goes on elsewhere, to what it would have come to here."""
    third = nodes.add_node(num_cpus=1, resources={"rare": 1})  # one trial at a time here, and one on the head
    spy.DOOMED.write_text(third.node_id)
    told: list[Snapshot] = []

    def take_away(snapshot: Snapshot) -> None:
        told.append(snapshot)
        if spy.HELD.exists() and third in nodes.worker_nodes:
            nodes.remove_node(third, allow_graceful=False)

    training = {"max_epochs": 6, "validate_every": 1}
    settings = config(tmp_path, {"resources": {"rare": 1}}, budget={"trials": 3}, training=training)
    ledger = run(settings, take_away)
    assert third not in nodes.worker_nodes
    first, second = [start["trial"] for start in spy.starts() if start["node"] == third.node_id]
    started = [start["trial"] for start in spy.starts()]
    assert (started.count(first), started.count(second)) == (1, 2)
    steps = told[-1].member_steps_per_s * told[-1].seconds
    assert steps == pytest.approx(sum(member_steps(ledger.records, settings).values()))  # none was done twice
    for record in ledger.records:
        alone = trained([with_values(base_of(settings), record.values)])
        assert member_rows(alone, 0, record.number) == record.members


def test_a_trial_that_has_failed_before_it_got_a_worker_is_recorded(tmp_path: Path) -> None:
    settings = config(tmp_path, {}, plugins=[], model={}, budget={"trials": 1})
    ledger = Ledger.start(settings, create(settings, "studies", "study"), Tracker())
    recorder = Recorder(settings, ledger, ignore)
    trial = Trial("trainable", config={"points": [[0, {"model.gamma": 9.0}]]}, stub=True)
    recorder.on_trial_error(0, [trial], trial)
    recorder.close()
    assert [record.status for record in ledger.records] == ["failed"]


def test_a_cluster_that_does_not_know_this_machines_token_is_refused(tmp_path: Path) -> None:
    """Ray's cluster utility starts a cluster without tokens, and a driver that finds one at home wants them."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    code = """
from ray.cluster_utils import Cluster
from imavae.config.settings import Cluster as Settings
from imavae.errors import UserError
from imavae.search import cluster

there = Cluster(initialize_head=True)
try:
    with cluster.running(Settings(name="ray", address="auto")):
        print("joined")
except UserError as error:
    print(error)
there.shutdown()
"""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
        environment |= {
            "HOME": str(tmp_path),
            "RAY_TMPDIR": folder,
            "PYTHONPATH": str(Path(cluster.__file__).parents[2]),
        }
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "RAY_AUTH_MODE" in done.stdout
    assert "joined" not in done.stdout


NONE: dict[str, float] = {}


@pytest.mark.parametrize(
    ("cpus", "gpus", "resources", "nodes", "expected"),
    [
        (1.0, 0.0, NONE, [{"CPU": 2.0}, {"CPU": 1.0}], 3),
        (2.0, 0.0, NONE, [{"CPU": 3.0}, {"CPU": 3.0}], 2),  # what two nodes have left over makes none
        (0.1, 0.0, NONE, [{"CPU": 0.3}], 3),
        (1.0, 0.4, NONE, [{"CPU": 8.0, "GPU": 2.0}], 4),  # nor does what two GPUs have
        (1.0, 0.25, NONE, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 8.0}], 7),
        (1.0, 2.0, NONE, [{"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0, "GPU": 2.0}], 2),
        (1.0, 0.0, {"fast": 2.0}, [{"CPU": 8.0, "fast": 5.0}, {"CPU": 8.0}], 2),
    ],
)
def test_a_trial_fits_as_a_whole_into_one_node(
    cpus: float, gpus: float, resources: dict[str, float], nodes: list[dict[str, float]], expected: int
) -> None:
    asked = Cluster(name="ray", address="auto", cpus_per_trial=cpus, gpus_per_trial=gpus, resources=resources)
    assert cluster.slots(asked, nodes) == expected


def test_what_fits_nowhere_is_refused_with_what_there_is() -> None:
    asked = Cluster(name="ray", address="auto", cpus_per_trial=2.0, resources={"fast": 1.0})
    with pytest.raises(UserError, match=r"2 CPU, 0 GPU, 1 fast .* 8 CPU, 0 GPU, 0 fast \| 1 CPU, 0 GPU, 1 fast"):
        cluster.slots(asked, [{"CPU": 8.0}, {"CPU": 1.0, "fast": 1.0}])


@pytest.mark.usefixtures("nodes")
def test_a_local_study_does_not_join_the_cluster_that_runs_on_its_machine() -> None:
    with cluster.running(Cluster(cpus=1)) as slots:
        assert slots == 1
        assert len(ray.nodes()) == 1  # type: ignore[no-untyped-call]
