"""Fixtures, the order of the tests, and how often shapes are checked."""

import functools
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import jaxtyping
import pytest
import torch

CHECKED = 20  # calls of each function per test whose shapes are checked: a training makes thousands alike

_calls: Counter[FunctionType] = Counter()
_jaxtyped = jaxtyping.jaxtyped


def _checked_at_first(typechecker: Any) -> Callable[[Any], Any]:
    """Decorate as ``jaxtyped``, but check a function only in its first calls of a test."""

    def decorate(function: Any) -> Any:
        checked: Any = _jaxtyped(function, typechecker=typechecker)
        if not isinstance(function, FunctionType):
            return checked

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            _calls[function] += 1
            return (checked if _calls[function] <= CHECKED else function)(*args, **kwargs)

        return call

    return decorate


jaxtyping.jaxtyped = _checked_at_first  # type: ignore[assignment]  # the import hook puts it before each function

# The longest files start first, so that no worker process is left with one at the end.
LONGEST = ("test_kill", "test_study", "test_pages", "test_resume", "test_cluster", "test_terminal")

torch.set_num_threads(1)  # the models are tiny, and the other worker process needs its core

_SHARED_RAY = ExitStack()


def pytest_sessionfinish() -> None:
    """End the shared Ray."""
    _SHARED_RAY.close()


def pytest_runtest_setup() -> None:
    """Check shapes anew in each test."""
    _calls.clear()


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
    from imavae.tracking import server

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
    # Not at the top: packages are imported after the hook of the shape checks.
    from hydra.core.config_store import ConfigStore

    from imavae.cli import compose
    from imavae.config.data import MIXINGS, SOURCES
    from imavae.config.registry import Registry
    from imavae.config.settings import NETWORKS, PRIORS, SAMPLERS
    from imavae.metrics.glossary import METRICS

    registries: tuple[Registry[Any], ...] = (SOURCES, MIXINGS, PRIORS, NETWORKS, SAMPLERS, METRICS)
    before = [dict(registry.entries) for registry in registries]
    yield
    if before != [registry.entries for registry in registries]:
        for registry, variants in zip(registries, before, strict=True):
            registry.entries.clear()
            registry.entries.update(variants)
        for group in ("data", "model"):  # their options; the next composition stores those that are left
            ConfigStore.instance().repo.pop(group, None)
        compose._stored.clear()
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
