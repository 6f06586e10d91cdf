"""Every public name of the package says what it means, which shapes its arrays have, and which errors it raises."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import imavae
from imavae import metrics

MODULES = [info.name for info in pkgutil.walk_packages(imavae.__path__, "imavae.")]
BARE = re.compile(
    r"\b(Tensor|ndarray|NDArray|Array|ArrayLike|Floats|Values|Theta)\b"
)  # an array whose shape is not said
SHAPED = re.compile(r"\b(Float|Float64|Int|Bool|Shaped)\[[^]]*\]")
SHAPE = re.compile(r"\((?:[a-z0-9*.]+,\s?)+[a-z*.]*\)|0-dim")  # (n, d), (n,), (member, ..., n)


def public(module: ModuleType) -> Iterator[tuple[str, Any, type[Any] | None]]:
    """The public functions, classes and methods that a module defines: name, object, and a method's class."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            yield name, value, None
            for inner, member in vars(value).items():
                function = getattr(member, "__func__", getattr(member, "fget", getattr(member, "func", member)))
                if not inner.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{inner}", function, value
        elif inspect.isfunction(value):
            yield name, value, None


def documentation(value: Any, within: type[Any] | None) -> str:
    """The docstring of a name; a method's may be that of the method of its base which it fills in."""
    doc = inspect.getdoc(value if within is None else getattr(within, value.__name__))
    generated = inspect.isclass(value) and (doc or "").startswith(f"{value.__name__}(")  # a dataclass makes one up
    return "" if generated else doc or ""


def body(function: Callable[..., object]) -> ast.FunctionDef:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    return tree


def refuses(function: Callable[..., object]) -> bool:
    """Whether its own body raises UserError."""
    calls = [node for node in ast.walk(body(function)) if isinstance(node, ast.Call)]
    return any(isinstance(c.func, ast.Name) and c.func.id in ("require", "known", "UserError") for c in calls)


def bare(function: Callable[..., object]) -> bool:
    """Whether it takes or gives an array whose shape its annotations don't say."""
    arguments = body(function).args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    hints = [argument.annotation for argument in every] + [body(function).returns]
    return any(BARE.search(SHAPED.sub("", ast.unparse(hint))) for hint in hints if hint is not None)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_its_docstring(name: str) -> None:
    module = importlib.import_module(name)
    conventions = module.__doc__ or ""
    assert conventions
    missing = []
    for what, value, within in public(module):
        doc = documentation(value, within)
        around = " ".join([doc, conventions, "" if within is None else inspect.getdoc(within) or ""])
        if not doc:
            missing.append(f"{what} has no docstring")
        elif inspect.isfunction(value):
            missing += [f"{what} does not say its arrays' shapes"] * (bare(value) and not SHAPE.search(around))
            missing += [f"{what} does not say that it raises UserError"] * (refuses(value) and "UserError" not in doc)
    assert missing == []


SURFACE = {
    **{f"imavae.{name}": getattr(imavae, name) for name in imavae.__all__ if name != "metrics"},
    **{f"imavae.metrics.{name}": getattr(metrics, name) for name in metrics.__all__},
}


@pytest.mark.parametrize("name", SURFACE)
def test_the_surface_says_meaning_shapes_and_errors_in_each_docstring(name: str) -> None:
    value = SURFACE[name]
    names = [("", value)] if inspect.isfunction(value) else [n[:2] for n in public_of(value)]
    assert documentation(value, None)
    for inner, function in names:
        doc = inspect.getdoc(function) or ""
        assert not bare(function) or SHAPE.search(doc), f"{name}{inner} does not say its arrays' shapes"
        assert not refuses(function) or "Raises:\n    UserError:" in doc, f"{name}{inner} has no section Raises"
        if name.startswith("imavae.metrics."):
            assert "Raises:\n    UserError:" in doc, f"{name} has no section Raises"
            for argument in inspect.signature(function).parameters:
                assert argument in doc, f"{name} does not say what {argument} is"


def public_of(kind: type[Any]) -> Iterator[tuple[str, Callable[..., object]]]:
    """The public methods and properties of a class of the surface."""
    for name, member in vars(kind).items():
        function = getattr(member, "fget", member)
        if not name.startswith("_") and inspect.isfunction(function):
            yield f".{name}", function
