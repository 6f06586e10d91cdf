"""What all tests share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from imavae.config.registry import Registry
from imavae.config.variants import MIXINGS, NETWORK_NAMES, NETWORKS, PRIORS, SOURCES

LONGEST = ("kill", "pages", "study", "resume", "cluster", "terminal", "browser", "outage", "reproduce", "sprites_runs")

torch.set_num_threads(1)  # the models are tiny, and other processes want the machine's cores, too


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run whole studies come first: where several files are tested at once, none is left over to the end."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@contextmanager
def plugins_forgotten() -> Iterator[None]:
    """What is registered within is gone after it."""
    registries: tuple[Registry[Any], ...] = (SOURCES, MIXINGS, PRIORS)
    before = [dict(registry.variants) for registry in registries]
    builders, names = dict(NETWORKS), set(NETWORK_NAMES)
    yield
    for registry, variants in zip(registries, before, strict=True):
        registry.variants.clear()
        registry.variants.update(variants)
    for name in NETWORKS.keys() - builders.keys():
        del NETWORKS[name]
    NETWORK_NAMES.intersection_update(names)
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
