"""Fixtures and the order of the tests."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from imavae.config.data import MIXINGS, SOURCES
from imavae.config.registry import Registry
from imavae.config.settings import NETWORKS, PRIORS, SAMPLERS
from imavae.metrics.glossary import METRICS
from imavae.tracking import server

# The longest files start first, so that no worker process is left with one at the end.
LONGEST = ("test_kill", "test_study", "test_pages", "test_resume", "test_cluster", "test_terminal")

torch.set_num_threads(1)  # the models are tiny, and the other worker process needs its core

_SHARED_RAY = ExitStack()


def pytest_sessionfinish() -> None:
    """End the shared Ray."""
    _SHARED_RAY.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, then other slow tests, then the rest."""
    order = {name: place for place, name in enumerate(LONGEST)}
    slow = {item.path.stem for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: order.get(item.path.stem, len(order) + (item.path.stem not in slow)))


@pytest.fixture(scope="module")
def shared_ray() -> None:
    """Ray on two cores, started once per worker process; the studies of a module that uses it start none."""
    import ray

    from imavae.config.settings import Cluster
    from imavae.search import cluster

    if not ray.is_initialized():
        _SHARED_RAY.enter_context(cluster.running(Cluster(cpus=2)))


@pytest.fixture
def no_ray() -> None:
    """End the shared Ray, for a test that needs to start or join another one."""
    import ray

    ray.shutdown()


@pytest.fixture(autouse=True, scope="session")
def databases_of_a_template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make MLflow's empty database once: its creation takes a second of a core."""
    template, create = tmp_path_factory.mktemp("mlflow") / "mlflow.db", server._create_database

    def copy(path: Path) -> None:
        if not template.exists():
            create(template)
        shutil.copy(template, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_create_database", copy)
        yield


@contextmanager
def plugins_forgotten() -> Iterator[None]:
    """Forget what the block registers, and the plugins that it loads."""
    registries: tuple[Registry[Any], ...] = (SOURCES, MIXINGS, PRIORS, NETWORKS, SAMPLERS, METRICS)
    before = [dict(registry.entries) for registry in registries]
    yield
    for registry, variants in zip(registries, before, strict=True):
        registry.entries.clear()
        registry.entries.update(variants)
    for name in [name for name in sys.modules if name.startswith("imavae_plugin_")]:
        del sys.modules[name]


@pytest.fixture(autouse=True, scope="module")
def forget_a_files_plugins() -> Iterator[None]:
    """Files of tests run in any order."""
    with plugins_forgotten():
        yield


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    """Tests run in any order."""
    with plugins_forgotten():
        yield
