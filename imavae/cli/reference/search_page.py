"""The part of ``docs/config.md`` on the files of ``search_spaces/``: an example, and what a leaf of ``search`` says."""

from __future__ import annotations

from pathlib import Path

from imavae.cli.reference.comments import summary
from imavae.cli.reference.markdown import code, listed, table
from imavae.search.space import PER_MEMBER

LEAF = {  # what stands in a leaf: its type, and what it means
    "type": ("`float`, `int` or `choice`", "what the setting is drawn from: an interval, or a list"),
    "low": ("number", "lower end of the interval, which it includes"),
    "high": ("number", "upper end, included"),
    "log": ("true or false; false unless given", "draw magnitudes: uniform in the logarithm"),
    "values": ("list", "the choices: numbers, texts, true, false"),
    "when": ("mapping", "conditions, nested like the settings; a point has the setting only where all of them hold"),
    "at_least": ("number", "in `when`: the other setting's value is this or more"),
    "at_most": ("number", "in `when`: it is this or less"),
    "one_of": ("list", "in `when`: it is one of these; a plain value must be equal"),
}
EXAMPLE = """\
# Does a wider range of gamma need more layers?
defaults:
  - override /data: mlp          # options of groups
training:
  max_epochs: 60                 # any setting, for all points
search:
  model:
    activation: silu             # a plain value: every point has it
    gamma: {type: float, low: 3.0, high: 1000.0, log: true}
    n_layers: {type: int, low: 2, high: 4}
    prior:
      name: {type: choice, values: [uniform, beta]}
    hidden_factor: {type: int, low: 5, high: 20, when: {model: {n_layers: {at_least: 3}}}}
members:
  seed: [1, 2, 3, 4]             # nothing but seeds
objective: {metric: val/mcc, mode: max, aggregate: median}
further_objectives: [{metric: val/cima, mode: min}]
sampler:
  name: tpe
  pack: 6
  start_from: [{model: {gamma: 100.0, n_layers: 2}}]
scheduler: {name: none}
budget: {trials: 18}
"""


HEAD = """\
## Files of search_spaces/

`search=NAME` reads `search_spaces/NAME.yaml`: plain data, whose first line is the question that the study answers. It
goes over the defaults; the command line goes over it. Besides `defaults` it may have any setting of a study. Keys are
nested, never dotted. For instance:
"""
LEAVES = """\
`defaults` chooses options of groups, each as `override /GROUP: OPTION`. `${range:1,101}` stands for the list 1, ...,
100, and `${gammas:1e3,1e4}` for the gammas of these squares.

Below `search` a leaf is a plain value, or a mapping with `type`:
"""


def search_section(root: Path) -> list[str]:
    """Lines of Markdown: what such a file holds, its leaves, and the files that there are."""
    folder = root / "search_spaces"
    files = sorted(folder.rglob("*.yaml"))
    rows = [[code(path.relative_to(folder).with_suffix("").as_posix()), summary(path)] for path in files]
    return [
        HEAD,
        "```yaml",
        *EXAMPLE.splitlines(),
        "```",
        "",
        LEAVES,
        *table(["in a leaf", "type", "meaning"], ([code(name), *told] for name, told in LEAF.items())),
        "A leaf can be any setting of `data`, `model` and `training`. Between points of one ensemble (`sampler.pack`)",
        f"{listed([code(key) for key in PER_MEMBER], 'and')} may differ; all members share the others.",
        "",
        "These files are there:",
        "",
        *table(["search=", "what it asks"], rows),
    ]
