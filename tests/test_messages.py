"""Every message says what to do next, wherever in the code it stands: read from the source, and from what is raised.

(tests/conftest.py looks at each message that any test makes, in the same way.)
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from imavae.errors import UserError, require, require_choice
from imavae.runs.folder import PACKS, RECORDS, STATES
from imavae.search.stopping import NOTES
from imavae.training.checkpoint import SEAL
from tests.wording import advises

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = "…"  # stands for what only a run can tell
Function = ast.FunctionDef
# What the messages are made of: their own tests are below.
WORDS_OF_OTHERS = {"imavae/errors.py", "imavae/files.py"}


@cache
def trees() -> dict[str, ast.Module]:
    files = sorted(path for folder in ("imavae", "scripts", "docs") for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files}


@cache
def functions() -> dict[str, list[Function]]:
    found: dict[str, list[Function]] = {}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, []).append(node)
    return found


def texts(node: ast.expr | None, scope: ast.AST, depth: int = 0) -> list[str]:
    """What an expression may say; what a name stands for is looked up in its function, what a function returns, too."""
    if depth > 8:
        return [UNKNOWN]
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=values):
            parts = [texts(v.value if isinstance(v, ast.FormattedValue) else v, scope, depth + 1) for v in values]
            return ["".join(chosen) for chosen in itertools.product(*parts)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [a + b for a in texts(left, scope, depth + 1) for b in texts(right, scope, depth + 1)]
        case ast.IfExp(body=body, orelse=orelse):
            return texts(body, scope, depth + 1) + texts(orelse, scope, depth + 1)
        case ast.Attribute(attr="missing" | "damaged" | "other"):  # a seal's: see below
            return ["use another"]
        case ast.Call(func=ast.Attribute(attr="join"), args=[ast.GeneratorExp(elt=ast.Call() as each)]):
            return texts(each, scope, depth + 1)
        case ast.Name(id=name) if quoted(name, scope):
            return ["…; see what it quotes"]
        case ast.Name(id=name):
            return [text for value in assigned(name, scope) for text in texts(value, scope, depth + 1)] or [UNKNOWN]
        case ast.Call(func=ast.Name(id=name)) if name in functions():
            return [text for function in functions()[name] for text in returned(function, depth)] or [UNKNOWN]
    return [UNKNOWN]


def quoted(name: str, scope: ast.AST) -> bool:
    """Whether a name is a message that was caught, which has its own last words."""
    handlers = [node for node in ast.walk(scope) if isinstance(node, ast.ExceptHandler) and node.name == name]
    return any(isinstance(handler.type, ast.Name) and handler.type.id == "UserError" for handler in handlers)


def assigned(name: str, scope: ast.AST) -> Iterator[ast.expr]:
    """The expressions that a name is given, where they can be told apart."""
    for node in ast.walk(scope):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id == name:
                yield node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=True)
                yield from (value for place, value in pairs if isinstance(place, ast.Name) and place.id == name)


def returned(function: Function, depth: int) -> list[str]:
    values = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    return [text for value in values for text in texts(value, function, depth + 1)]


def messages() -> Iterator[tuple[str, str]]:
    """Where a message is made, and each way in which it may read."""
    for path, tree in trees().items():
        if path in WORDS_OF_OTHERS:
            continue
        scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for scope in scopes:
            for node in ast.walk(scope):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                    continue
                if node.func.id == "UserError":
                    yield from ((f"{path}:{node.lineno}", text) for text in texts(node.args[0], scope))
                elif node.func.id == "require":
                    yield from ((f"{path}:{node.lineno}", f"…; {text}") for text in texts(node.args[3], scope))


def test_every_message_in_the_source_ends_with_what_to_do() -> None:
    found = sorted(set(messages()))
    assert len(found) > 150  # they were found, at all
    assert [message for message in found if not advises(message[1])] == []


def test_what_all_messages_are_made_of_says_what_to_do() -> None:
    for seal in (SEAL, STATES, RECORDS, PACKS, NOTES):
        for remedy in (seal.missing, seal.damaged, seal.other):
            assert advises(f"…; {remedy}"), remedy
    for value in ("gamm", "something else"):
        with pytest.raises(UserError) as caught:
            require_choice(value, ["gamma", "beta"], "name")
        assert advises(str(caught.value))
    with pytest.raises(UserError) as caught:
        require(False, "gamma > 0", -3, "say model.gamma=30")
    assert str(caught.value) == "`gamma > 0` must hold, but got -3; say model.gamma=30"


@pytest.mark.parametrize(
    ("message", "enough"),
    [
        ("`gamma > 0` must hold, but got -3; say model.gamma=30", True),
        ("`gamma > 0` must hold, but got -3; it is a precision: say model.gamma=30", True),
        ("`name` must be one of a, b, but got 'aa'; did you mean a?", True),
        ("Optuna had not all of x: it was told again (nothing is left to do)", True),
        ("`gamma > 0` must hold, but got -3; it is a precision", False),
        ("say model.gamma=30", False),  # without the value and the rule
        ("`gamma > 0` must hold: say model.gamma=30, but got -3; it is essential", False),
    ],
)
def test_what_counts_as_advice(message: str, enough: bool) -> None:
    assert advises(message) is enough
