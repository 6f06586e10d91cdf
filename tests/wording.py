"""What every message has: its last words say what to do next."""

from __future__ import annotations

import re

VERBS = (
    "add|bring|choose|correct|did you mean|divide|drop|evaluate|free|give|install|leave|list|load|look|lower|make|"
    "move|name|nest|put|raise|rename|remove|reshape|restore|resume|run|say|search|see|set|start|stay|swap|take|train|"
    "try|use|wait|widen|write"
)
ADVICE = re.compile(rf"(?:^|[:,] |\b(?:or|and|then|others) )(?:{VERBS})\b")
NOTHING_TO_DO = re.compile(r"\((?:done\b.*|nothing is left to do)\)$")


def advises(message: str) -> bool:
    """Whether a message ends with what to do: an instruction after its last semicolon, perhaps behind a reason."""
    head, semicolon, last = message.rpartition("; ")
    return bool(NOTHING_TO_DO.search(message) or (head and semicolon and ADVICE.search(last)))
