"""The rules about settings, in the words in which they are checked: the text of each ``require`` and ``known``.

They are read from the source, so that a rule can't be told otherwise than the message of its breach tells it. A part of
a text that is known only when it is checked stands in capitals: ``search.KEY.low <= search.KEY.high``.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

VERB = re.compile(r" (?:are|for|has|is|names|needs|rises|the|where) ")


class Rule(NamedTuple):
    """A rule, and the class or function that checks it."""

    owner: str
    text: str

    @property
    def subject(self) -> str:
        """What the rule is about: its words up to the verb, or all of them where no setting stands before that."""
        before = VERB.split(self.text, maxsplit=1)[0]
        return before if re.search(r"\w\.\w", before) else self.text

    def names(self, key: str) -> bool:
        """Whether the rule is about this dotted setting; one of a single word must be what the sentence is about."""
        before = r"(?<![\w.])" if "." in key else r"(?:^|\bof )"
        return re.search(rf"{before}{re.escape(key)}(?!\w|\.\w)", self.subject) is not None


def rules(module: ModuleType) -> list[Rule]:
    """All rules that a module checks, each once, in its order.

    Raises:
        TypeError: a rule whose text can't be read: it is to be a literal, or a name that one was given before.
    """
    found = [
        Rule(outer.name, text)
        for outer in ast.parse(inspect.getsource(module)).body
        if isinstance(outer, (ast.ClassDef, ast.FunctionDef))
        for function in ast.walk(outer)
        if isinstance(function, ast.FunctionDef)
        for text in _Reader(function, vars(module)).texts()
    ]
    return list(dict.fromkeys(found))


class _Reader:
    """The texts of one function's rules."""

    def __init__(self, function: ast.FunctionDef, namespace: dict[str, Any]) -> None:
        self._namespace = namespace  # of the module: constants
        self._calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        self._bound: list[tuple[int, str, list[ast.expr]]] = []  # line, name, its values
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                self._bind(node.targets[0], [node.value], node.lineno)
            elif isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
                self._bind(node.target, node.iter.elts, node.lineno)
        self._bound.sort(key=lambda binding: binding[0])

    def texts(self) -> Iterator[str]:
        """Each rule's, as often as a loop over literals checks it."""
        for call in sorted(self._calls, key=lambda node: node.lineno):
            match call.func:
                case ast.Name(id="require"):
                    yield from self._read(call.args[1], call.lineno)
                case ast.Name(id="known") if (valid := self._constant(call.args[1])) is not None:
                    yield from (
                        f"{what} is one of {', '.join(valid)}" for what in self._read(call.args[2], call.lineno)
                    )

    def _bind(self, target: ast.expr, values: list[ast.expr], line: int) -> None:
        if isinstance(target, ast.Name):
            self._bound.append((line, target.id, values))
        elif isinstance(target, ast.Tuple) and all(isinstance(value, ast.Tuple) for value in values):
            for position, name in enumerate(target.elts):
                self._bind(name, [value.elts[position] for value in values if isinstance(value, ast.Tuple)], line)

    def _read(self, node: ast.expr, line: int) -> list[str]:
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return ["".join(texts) for texts in itertools.product(*(self._part(part, line) for part in parts))]
            case ast.Name(id=name):
                before = [values for at, bound, values in self._bound if bound == name and at < line]
                if before:
                    return [text for value in before[-1] for text in self._read(value, line)]
        raise TypeError(f"the rule `{ast.unparse(node)}` in line {line} must be a text that can be read here")

    def _part(self, part: ast.expr, line: int) -> list[str]:
        if not isinstance(part, ast.FormattedValue):
            return self._read(part, line)
        if isinstance(part.value, ast.Name) and part.value.id.isupper():
            return [str(self._namespace[part.value.id])]
        try:
            return self._read(part.value, line)
        except TypeError:
            return [re.findall(r"\w+", ast.unparse(part.value))[-1].upper()]

    def _constant(self, node: ast.expr) -> list[str] | None:
        """The names that ``known`` allows, where they are the module's own or stand there."""
        match node:
            case ast.Name(id=name) if name.isupper():
                return list(self._namespace[name])
            case ast.Call(func=ast.Name(id="sorted"), args=[inner]):
                valid = self._constant(inner)
                return None if valid is None else sorted(valid)
            case ast.Tuple(elts=parts) if all(isinstance(part, ast.Constant) for part in parts):
                return [str(part.value) for part in parts if isinstance(part, ast.Constant)]
        return None
