"""What Hydra composes agrees with the settings tree, for every option of every group and every search."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from imavae.cli.compose import compose, compose_jobs, group_options, read_search, resumed, searches
from imavae.cli.main import ENCODE, EVALUATE, REPRODUCE, TRAIN, TUNE
from imavae.config.mapping import build, flatten, keys_of, to_mapping
from imavae.config.settings import (
    EncodeConfig,
    EvaluateConfig,
    ReproduceConfig,
    RunConfig,
    StudyConfig,
    is_distribution,
    run_config,
    study_config,
)
from imavae.errors import UserError
from imavae.runs.folder import create, essence
from tests.helpers import file_data, observations

COMMANDS: dict[str, Any] = {command.name: command for command in (TRAIN, TUNE, EVALUATE, ENCODE, REPRODUCE)}
OPTIONS = group_options(StudyConfig)


def composed(name: str, *overrides: str) -> dict[str, Any]:
    return compose(COMMANDS[name], list(overrides)).settings


def composed_of_each(name: str, group: str, options: list[str]) -> dict[str, dict[str, Any]]:
    """The settings with each option of a group; Hydra reads its files once for all of them."""
    jobs = compose_jobs(COMMANDS[name], [f"{group}={','.join(options)}"], multirun=True)
    return dict(zip(options, (job.settings for job in jobs), strict=True))


@functools.cache
def composed_searches() -> dict[str, dict[str, Any]]:
    """The settings of every search; the caller must not change them."""
    return composed_of_each("tune", "search", OPTIONS["search"])


def test_composed_defaults_are_those_of_the_settings() -> None:
    assert composed("train") == to_mapping(RunConfig())
    assert composed("tune") == to_mapping(StudyConfig())
    assert composed("evaluate", "checkpoint=x") == to_mapping(EvaluateConfig(checkpoint="x"))
    assert composed("reproduce") == to_mapping(ReproduceConfig())


def test_evaluate_states_every_setting() -> None:
    mapping = composed("evaluate", "checkpoint=x", "tracking=none")
    assert mapping == to_mapping(build(EvaluateConfig, mapping))


def variants(group: str) -> list[str]:
    """The options that are whole without a person's own file."""
    return [name for name in OPTIONS[group] if name not in ("own", "file", "images")]


def trios() -> list[tuple[str, str, str]]:
    """Each kind of data or mixing with two sources, and the priors in turn: all options, and no two trios alike."""
    pairs = itertools.cycle(itertools.product(variants("data/source"), variants("model/prior")))
    every_fifth = itertools.islice(pairs, 0, None, 5)  # another source and another prior than the one before
    return [(data, *next(every_fifth)) for data in variants("data") for _ in range(2)]


@pytest.mark.parametrize(("data", "source", "prior"), trios())
def test_every_variant_is_stated_in_full_and_leaves_nothing_of_another(data: str, source: str, prior: str) -> None:
    if data == "sprites":  # they need sources on an interval
        source = {"gaussian": "uniform", "laplace": "beta"}.get(source, source)
    overrides = [f"data={data}", f"data/source={source}", f"model/prior={prior}"]
    if source in ("gaussian", "laplace") and prior in ("uniform", "beta"):
        overrides += ["data/source=uniform", "data.source.low=-2", "data.source.high=2"]  # that pair is refused
    mapping = composed("train", *overrides)
    assert mapping == to_mapping(run_config(mapping))


def test_a_file_is_stated_in_full_and_what_is_null_is_read_from_it(tmp_path: Path) -> None:
    mapping = composed("train", "data=file", f"data.path={observations(tmp_path / 'x.csv')}")
    config = run_config(mapping)
    read = {"columns": ["a", "b", "c", "d"], "dim": 4, "n_obs": 1000, "n_segments": 1}
    read["fingerprint"] = to_mapping(config)["data"]["fingerprint"]
    assert {key: mapping["data"][key] for key in read} == dict.fromkeys(read)
    assert to_mapping(config) == {**mapping, "data": {**mapping["data"], **read}}
    assert run_config(to_mapping(config)) == config


def test_encode_states_every_setting(tmp_path: Path) -> None:
    mapping = composed("encode", "checkpoint=x", "data.path=x.npy", f"out={tmp_path / 'z.csv'}")
    assert mapping == to_mapping(build(EncodeConfig, mapping))


@pytest.mark.parametrize("group", ["model", "training", "tracking", "experiment"])
def test_every_option_of_a_run_is_valid(group: str) -> None:
    mappings = composed_of_each("train", group, [name for name in OPTIONS[group] if name != "conv"])
    if group == "model":
        mappings["conv"] = composed("train", "model=conv", "data=sprites")  # it takes images alone
    for option, mapping in mappings.items():
        assert mapping == to_mapping(run_config(mapping)), option


@functools.cache
def clusters() -> list[dict[str, Any]]:
    """What each option of the cluster changes."""
    options = composed_of_each("tune", "cluster", OPTIONS["cluster"])
    default = options["local"]["cluster"].items()
    return [dict(option["cluster"].items() - default) for option in options.values()]


@pytest.mark.parametrize("search", OPTIONS["search"])
def test_every_search_is_valid_on_every_cluster(search: str, tmp_path: Path) -> None:
    mapping = copy.deepcopy(composed_searches()[search])
    if search == "own_data":  # a file completes it
        mapping["data"] |= file_data(observations(tmp_path / "x.npy"))
        mapping = to_mapping(study_config(mapping))
    for changes in clusters():
        mapping["cluster"] |= changes
        assert mapping == to_mapping(study_config(mapping))
    assert mapping["cluster"]["name"] == "ray"
    assert mapping["study"] == search
    assert set(flatten(mapping["search"], is_distribution)) <= set(keys_of(RunConfig))


def test_a_command_line_goes_over_a_search_and_a_search_over_an_experiment() -> None:
    config = study_config(composed("tune", "search=gamma_uniform", "experiment=quick", "budget.trials=4"))
    assert config.budget.trials == 4
    assert config.data.n_obs == composed_searches()["gamma_uniform"]["data"]["n_obs"]


def test_what_a_value_is_computed_by() -> None:
    mapping = composed("train", "members.seed=${range:1,4}", "+model.gamma_list=${gammas:10,1e4}")
    assert mapping["members"]["seed"] == [1, 2, 3]
    assert mapping["model"]["gamma_list"] == [math.sqrt(10), 100.0]


def test_the_published_grid_is_even_in_log_gamma_squared() -> None:
    mapping = composed_searches()["paper/moebius_gamma_uniform"]
    squares = [gamma**2 for gamma in mapping["search"]["model"]["gamma"]["values"]]
    assert squares == pytest.approx([10.0**k for k in range(1, 7)], rel=1e-14)
    assert len(mapping["members"]["seed"]) == 20


def test_every_search_asks_a_question() -> None:
    assert [name for name, path in searches().items() if not read_search(path).get("question", "").endswith("?")] == []


def test_a_plugins_variants_are_options(tmp_path: Path) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from imavae.config.data import SOURCES, SourceSettings\n"
        "@SOURCES.register\n@dataclass(frozen=True)\n"
        "class Student(SourceSettings):\n    name: str = 'student'\n    scale: float = 1.0\n"
    )
    settings = composed("train", f"plugins=[{plugin}]", "data/source=student", "data.source.scale=2")
    assert settings["data"]["source"] == {"name": "student", "scale": 2}
    study = composed("tune", "search=gamma_uniform", f"plugins=[{plugin}]")
    assert study["search"] == composed("tune", "search=gamma_uniform")["search"] != {}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("search: !!python/object/apply:os.getcwd []", "no YAML tags"),
        ("name: !!python/object/apply:pathlib.Path [x]", "no YAML tags"),
        ("name: !!str 3", "no YAML tags"),
        ("- 1\n- 2", "must hold a mapping"),
        ("search: [1, 2", "must be YAML"),
        ("name: a\nname: b", "duplicate key"),
    ],
)
def test_a_search_space_is_plain_data(text: str, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rule):
        read_search(path)


def test_a_search_space_may_write_numbers_as_powers_of_ten(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("values: [1e3, 1e-3]")
    assert read_search(path) == {"values": [1000.0, 0.001]}


@pytest.mark.parametrize("name", ["gamma_uniform", "paper/moebius_gamma_uniform", "own_data"])
def test_a_resume_remembers_the_study_and_takes_what_is_said(name: str, tmp_path: Path) -> None:
    own = [f"data.path={observations(tmp_path / 'x.parquet')}"] * (name == "own_data")
    place = [f"search={name}", f"output_dir={tmp_path}"]
    first = composed("tune", *place, *own, "training.max_epochs=7", "budget.trials=3", "tracking=none", "name=mine")
    create(study_config(first), "studies", "mine").lock.release()

    def settings(*said: str) -> StudyConfig:
        again = compose(TUNE, [*place, "resume=true", *said])
        return study_config(resumed(TUNE, again).settings)

    before = dataclasses.replace(study_config(first), resume=True)
    assert settings() == before
    more = settings("budget.trials=5", "cluster.cpus=1", "training.threads=2")
    assert (more.budget.trials, more.cluster.cpus, more.training.threads) == (5, 1, 2)
    assert essence(more) == essence(before)
    default = settings(f"training.max_epochs={study_config(composed('tune', *place, *own)).training.max_epochs}")
    assert default.training.max_epochs != 7  # it was said, so that the resume refuses it
    with pytest.raises(UserError, match="other"):
        settings("name=other")
