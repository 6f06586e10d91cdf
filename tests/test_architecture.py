"""The package's import graph: no cycles, and every module imports only from its own layer and those below it."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "imavae"
LAYERS = (  # low to high; packages in one entry do not import each other
    ("errors", "rng"), ("config",), ("data",), ("model",), ("training",), ("metrics",), ("tracking",), ("runs",),
    ("search",), ("report",), ("paper",), ("api", "estimator"), ("__init__",), ("cli",), ("__main__",),
)  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """The package's modules that a file imports, at its top, in functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & MODULES.keys() or {node.module}
    return found & MODULES.keys()


GRAPH = {name: imported(path) - {name} for name, path in MODULES.items()}


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_imports_have_no_cycle() -> None:
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises CycleError, which names the modules


def test_a_module_imports_only_from_layers_below() -> None:
    upward = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if LEVEL[layer(other)] > LEVEL[layer(name)]
        or (LEVEL[layer(other)] == LEVEL[layer(name)] and layer(other) != layer(name))
    ]
    assert upward == []


def test_the_root_holds_few_modules() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} <= {"__init__", "__main__", "api", "errors", "estimator", "rng"}
