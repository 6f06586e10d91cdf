"""How a study looks on MLflow's page: the columns of its table of runs, the note on its run, and where the page opens.

By itself that table shows no score and no setting, and the page opens on language models. So an experiment holds a
view, in a tag that MLflow reads, and the address that ``make ui`` prints asks for it.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from imavae.config.mapping import build
from imavae.config.settings import Members

TRAINING = "workflowType=machine_learning"  # the half of the page that is not about language models
NOTE = "mlflow.note.content"  # the tag of a run that holds its description
NAME = "trials"  # of the view
VIEW = f"mlflow.sharedViewState.{NAME}"  # the tag of an experiment that holds it
TIMEOUT = 10.0  # seconds that the server may take to say which study is the newest


def view(config: Mapping[str, Any]) -> str:
    """The view's value, JSON: scores of trials, best values of members, what is searched, how each has ended."""
    metrics = ["score", "max val/mcc"]
    params = list(_searched(config.get("search", {}))) or ["gamma"]  # of the only point
    columns = [f"metrics.`{name}`" for name in metrics] + [f"params.`{name}`" for name in params]
    return json.dumps({"selectedColumns": [*columns, "tags.`imavae.status`"]})


def note(config: Mapping[str, Any], model: str) -> str:
    """The description of a run's or study's run, in Markdown: what was asked, and what lies where.

    Args:
        config: the resolved settings, nested.
        model: the registered model's name.
    """
    members = build(Members, config["members"]).count
    searched = list(_searched(config.get("search", {})))
    asked = f"One point, trained with {members} members."
    if searched:
        goal = config["objective"]
        best = "largest" if goal["mode"] == "max" else "smallest"
        asked = f"Searched: {', '.join(searched)}. The score of a trial is the {goal['aggregate']}, over its {members} "
        asked += f"members, of each one's {best} {goal['metric']}."
    return f"""{asked}

- **Trials** are the child runs, **members** (seeds) are theirs. *Model metrics* of a trial has its curves: medians and
  quartiles over members.
- **Artifacts** has the figures, every value (`members.csv`, `history.csv`) and the settings (`config.yaml`).
- **Champion**: the registered model [{model}](#/models/{model}), alias `champion`.
"""


def opens(address: str) -> str:
    """The path to look at, on a server that answers at ``address``: the newest study's runs, or the list there is."""
    try:
        experiments = _ask(f"{address}/ajax-api/2.0/mlflow/experiments/search?max_results=1000", "experiments")
        tags = {e["experiment_id"]: {tag["key"] for tag in e.get("tags", [])} for e in experiments}
        question = {"experiment_ids": list(tags), "filter": "tags.`imavae.kind` = 'study'", "max_results": 1}
        question["order_by"] = ["attributes.start_time DESC"]
        newest = _ask(f"{address}/ajax-api/2.0/mlflow/runs/search", "runs", question)[0]["info"]["experiment_id"]
    except (OSError, ValueError, LookupError):  # nothing is tracked yet, or the server is slow
        return f"/#/experiments?{TRAINING}"
    shown = f"&viewStateShareKey={NAME}" if VIEW in tags[newest] else ""  # one that is not there is an error message
    return f"/#/experiments/{newest}/runs?{TRAINING}{shown}"


def _ask(url: str, key: str, question: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """A list in the server's answer."""
    data = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - the scheme is ours
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
        found: list[dict[str, Any]] = json.load(answer).get(key, [])
    return found


def _searched(search: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of what is searched; a plain value is every point's."""
    for key, leaf in search.items():
        if isinstance(leaf, Mapping):
            if isinstance(leaf.get("type"), str):
                yield f"{prefix}{key}"
            else:
                yield from _searched(leaf, f"{prefix}{key}.")
