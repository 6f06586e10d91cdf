"""The commands: help, composition, exit codes, and one message for each mistake."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from imavae.cli import main
from imavae.cli.compose import ROOT, Command, searches
from imavae.cli.main import ENCODE, EVALUATE, REPRODUCE, TRAIN, TUNE, exit_code, launch
from imavae.config.registry import load_plugins
from imavae.errors import Interrupted, resumable

COMMANDS: dict[str, Command[Any]] = {c.name: c for c in (TRAIN, TUNE, EVALUATE, ENCODE, REPRODUCE)}


class Ledger(NamedTuple):
    """What came of a command line."""

    code: int
    out: str
    err: str
    configs: list[Any]  # the configurations that would have run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ledger]:
    """Launch a command in an empty folder, in this process; what it would run is only recorded."""
    monkeypatch.chdir(tmp_path)

    def launched(name: str, *arguments: str) -> Ledger:
        configs: list[Any] = []
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        code = launch(dataclasses.replace(COMMANDS[name], run=lambda config, _: configs.append(config)))
        assert list(tmp_path.iterdir()) == []  # whatever happens, Hydra leaves nothing behind
        return Ledger(code, *capsys.readouterr(), configs)

    return launched


def script(name: str, *arguments: str, cwd: Path, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *python, str(ROOT / f"scripts/{name}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


# Script, command line, and what the message must hold: the key or rule, the value, the nearest names.
BAD_INPUT = [
    ("train", "modell=mlp", ["`modell`", "model?"]),
    ("train", "model/priro=gaussian", ["`model/priro`", "model/prior"]),
    ("train", "nets/encoder=big", ["`nets/encoder`", "data/source"]),
    ("train", "model=transformer", ["`model=transformer`", "conv, flow, mlp"]),
    ("train", "data/source=cauchy", ["`data/source=cauchy`", "gaussian"]),
    ("train", "model.gama=3", ["`model.gama`", "model.gamma"]),
    ("train", "gamma=3", ["`gamma`", "model.gamma"]),
    ("train", "+model.gama=3", ["`model.gama`", "model.gamma"]),
    ("train", "sampler.seed=3", ["`sampler.seed`", "members.seed"]),
    ("train", "data.source.std=2", ["`data.source.std`", "another variant of `data.source`"]),
    ("train", "model.prior=gaussian", ["model.prior", "'gaussian'", "model/prior=NAME"]),
    ("train", "model.gamma", ["`model.gamma`", "SETTING=VALUE"]),
    ("train", "members.seed=[1,2", ["`members.seed=[1,2`", "in quotes"]),
    ("train", "model.gamma=10,100", ["model.gamma=10,100", "--multirun"]),
    ("train", "model.gamma=${model.gama}", ["model.gama", "--help"]),
    ("train", "model.gamma=abc", ["`model.gamma`", "'abc'", "model.gamma=100.0"]),
    ("train", "training.max_epochs=1.5", ["`training.max_epochs`", "1.5"]),
    ("train", "training.device=tpu", ["`training.device`", "'tpu'", "'auto', 'cpu' or 'cuda'"]),
    ("train", "members.seed=[]", ["members.seed", "[]"]),
    ("train", "model.gamma=0", ["model.gamma > 0", "0", "precision"]),
    ("train", "model.gamma=-3", ["model.gamma > 0", "-3"]),
    ("train", "model.gamma=nan", ["model.gamma", "finite number", "nan"]),
    ("train", "data.dim=1", ["data.dim >= 2", "1"]),
    ("train", "data/source=gaussian", ["covers the source's", "model/prior=gaussian"]),
    ("train", "model.prior.low=0 model.prior.high=1", ["[0, 1]", "covers the source's", "model.prior.low"]),
    ("train", "data.train=0.8 data.val=0.3", ["train=0.8, val=0.3", "data.train + data.val < 1"]),
    ("train", "-m model.gamma=10,-3", ["model.gamma > 0", "-3"]),
    ("train", "-m model=mlp,transformer", ["`model=transformer`", "conv, flow, mlp"]),
    ("train", "--config-name=trian", ["trian", "--help"]),
    ("train", "data=file", ["data.path"]),
    ("train", "data=file data.path=x.txt", ["data.path", ".npy, .csv, .tsv, .parquet", "'.txt'"]),
    ("train", "data=file data.path=x.npy", ["data.path", "x.npy"]),
    ("train", "data.path=x.npy", ["`data.path`", "another variant of `data`"]),
    ("tune", "", ["search is one of gamma_annealing, gamma_uniform", "none"]),
    ("tune", "search=gama_uniform", ["`search=gama_uniform`", "paper/moebius_gamma_uniform"]),
    ("tune", "search=paper/moebius_uniform", ["`search=paper/moebius_uniform`", "paper/moebius_gamma_uniform"]),
    ("tune", "search=gamma_uniform sampler.name=tpee", ["sampler.name", "'tpee'", "mean tpe?"]),
    ("tune", "search=gamma_uniform scheduler.name=ashaa", ["scheduler.name", "'ashaa'", "mean asha?"]),
    ("tune", "search=gamma_uniform objective.aggregate=mode", ["objective.aggregate", "'mode'", "median"]),
    ("tune", "search=gamma_uniform objective.mode=up", ["objective.mode", "'up'", "'max' or 'min'"]),
    ("tune", "search=gamma_uniform budget.trials=0", ["budget.trials >= 1", "0"]),
    ("tune", "search=gamma_uniform cluster=slurm", ["`cluster=slurm`", "local, ray"]),
    ("tune", "search=gamma_uniform cluster.address=auto", ["address=auto", "cluster=ray"]),
    ("tune", "search=own_data", ["data.path"]),
    ("evaluate", "", ["`checkpoint`"]),
    ("evaluate", "checkpoint=''", ["checkpoint is not empty"]),
    ("evaluate", "chekpoint=x", ["`chekpoint`", "checkpoint?"]),
    ("evaluate", "checkpoint=x split=tset", ["`split`", "'tset'", "mean test?"]),
    ("encode", "data.path=x.npy out=z.csv", ["`checkpoint`"]),
    ("encode", "checkpoint=x data.path=x.npy", ["`out`"]),
    ("encode", "checkpoint=x data.path=x.npy out=z.txt", ["the ending of out", ".parquet, .csv", "'.txt'"]),
    ("encode", "checkpoint=x data.path=x.csv out=x.csv", ["out is another file than data.path", "x.csv"]),
    ("encode", "checkpoint=x data.path=x.csv out=no/z.csv", ["the folder of out", "/no"]),
]


@pytest.mark.parametrize(("name", "line", "parts"), BAD_INPUT, ids=[f"{name} {line}" for name, line, _ in BAD_INPUT])
def test_bad_input(name: str, line: str, parts: list[str], call: Callable[..., Ledger]) -> None:
    ledger = call(name, *line.split())
    assert ledger.code == 2
    assert ledger.configs == []
    assert ledger.out == ""
    assert ledger.err.startswith("error: ")
    assert ledger.err.count("\n") == 1  # one message
    assert [part for part in parts if part not in ledger.err] == []


def test_bad_input_of_a_script(tmp_path: Path) -> None:
    done = script("tune", "search=nope", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    done = script("train", "--help", cwd=tmp_path, python=("-X", "importtime"))
    assert done.returncode == 0
    assert "usage: python scripts/train.py" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert imported & {"torch", "ray", "mlflow", "pandas", "scipy", "matplotlib", "optuna"} == set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_groups_and_every_setting_in_80_columns(
    name: str, call: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = ["search=paper/moebius_gamma_uniform"] if name == "tune" else []  # of twenty seeds, too
    ledger = call(name, *long, "--help")
    assert (ledger.code, ledger.err, ledger.configs) == (0, "", [])
    usage, _, rest = ledger.out.partition("Groups")
    groups, _, settings = rest.partition("Settings:\n")
    assert f"python scripts/{name}.py" in usage
    assert "*mlflow, none" in groups
    assert ("\n  search " in groups) == (name == "tune")  # reproduce refuses it
    shown = {line.split(":")[0].strip() for line in settings.partition("\n\n")[0].splitlines()}
    assert {field.name for field in dataclasses.fields(COMMANDS[name].kind)} <= shown
    lines = [line for line in ledger.out.splitlines() if not line.startswith("  python scripts/")]  # can't be broken
    assert [line for line in lines if len(line) > 80 and (" # " in line or ":" not in line)] == []


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        (main.ui, ["--port PORT", "5000", "--output-dir"]),
        (main.dashboard, ["--port PORT", "8080", "--output-dir"]),
        (main.docs, ["docs/config.md"]),
    ],
)
def test_help_of_the_other_scripts_says_what_they_take(
    entry: Callable[[], int], parts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["a_script.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        entry()
    said = capsys.readouterr().out
    assert [part for part in (f"usage: python scripts/{entry.__name__}.py", *parts) if part not in said] == []


def test_help_shows_what_the_overrides_make_of_it(call: Callable[..., Ledger]) -> None:
    settings = call("tune", "search=paper/moebius_gamma_uniform", "model/prior=gaussian", "--help").out
    assert "study: paper/moebius_gamma_uniform" in settings
    assert "std: 1.0" in settings
    assert all(name in settings for name in searches())
    assert call("train", "model=transformer", "--help").code == 2


def test_cfg_prints_the_settings_and_runs_nothing(call: Callable[..., Ledger]) -> None:
    ledger = call("train", "--cfg", "job", "model.gamma=30")
    assert (ledger.code, ledger.configs) == (0, [])
    assert "gamma: 30" in ledger.out


def test_a_run_gets_the_typed_configuration(call: Callable[..., Ledger]) -> None:
    line = "data=moebius model.gamma=100 members.seed=[1,2,3] training.max_epochs=20 tracking=none"
    (config,) = call("train", *line.split()).configs
    assert (config.model.gamma, config.members.seed, config.training.max_epochs) == (100.0, (1, 2, 3), 20)
    assert config.tracking.name == "none"


def test_an_address_of_a_model_needs_no_quotes(call: Callable[..., Ledger]) -> None:
    (config,) = call("evaluate", "checkpoint=models:/gamma_uniform@champion").configs
    assert config.checkpoint == "models:/gamma_uniform@champion"


def test_multirun_runs_every_combination(call: Callable[..., Ledger]) -> None:
    ledger = call("train", "-m", "model.gamma=10,100", "data=moebius,mlp")
    assert [(c.model.gamma, c.data.mixing.name) for c in ledger.configs] == [
        (10.0, "moebius"),
        (10.0, "mlp"),
        (100.0, "moebius"),
        (100.0, "mlp"),
    ]
    assert "job 4 of 4: model.gamma=100 data=mlp" in ledger.out


def test_a_bug_keeps_its_traceback_and_an_interruption_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(ZeroDivisionError):
        exit_code(bug)
    assert exit_code(interrupted) == 130
    assert capsys.readouterr().err.startswith("interrupted")

    def begun() -> None:
        with resumable("train-2"):
            raise Interrupted(signal.SIGTERM)

    assert exit_code(begun) == 143
    assert capsys.readouterr().err.startswith("interrupted")


def test_an_error_in_a_persons_own_file_is_told_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import math\n\ndef build(x):\n    return math.sqrt(x)\n")
    load_plugins([str(file)])
    (plugin,) = [module for name, module in sys.modules.items() if name.startswith("imavae_plugin_")]
    assert exit_code(lambda: plugin.build(-1)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"line 4 of {file} raises ValueError" in error


@pytest.mark.parametrize("arguments", [["--port", "abc"], ["port=3"], ["--port"], ["--output-dir", "nowhere"]])
def test_a_page_is_refused_in_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ui.py", *arguments])
    assert main.ui() == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize("name", COMMANDS)
def test_outside_the_environment_one_line_says_how_to_activate_it(name: str, tmp_path: Path) -> None:
    done = script(name, "--help", cwd=tmp_path, python=("-S", "-E"))  # without site-packages and PYTHONPATH
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"source {ROOT}/.venv/bin/activate" in done.stderr


def test_make_tune_without_a_search_names_them() -> None:
    done = subprocess.run(["make", "tune", "SEARCH="], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert all(name in done.stderr for name in searches())


@pytest.mark.parametrize("code", ["import imavae", "sys.path[0] = 'scripts'; import train"])
def test_windows_is_refused_in_one_line(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.platform = 'win32'; {code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Windows" in done.stderr.splitlines()[-1]
