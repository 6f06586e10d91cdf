"""Secrets are never written, pages answer their own machine, and files from elsewhere can't reach out."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import imavae
from imavae.cli.compose import read_search
from imavae.config.settings import Tracking, run_config
from imavae.errors import UserError, without_password
from imavae.tracking import server, ui

SECRET = "marked-pass/wörd:9".replace("/", "%2F")
URIS = (
    f"http://user:{SECRET}@127.0.0.1:1",
    f"https://:{SECRET}@127.0.0.1:1/path",
    f"postgresql://user:{SECRET}@127.0.0.1:1/db",
    f"mysql+pymysql://user:{SECRET}@127.0.0.1:1/db?charset=utf8",
    f"postgresql://127.0.0.1:1/db?user=me&password={SECRET}",
    f"http://127.0.0.1:1/?access_token={SECRET}",
)
TINY: dict[str, Any] = {
    "data": {"n_obs": 640, "dim": 2},
    "model": {"hidden_factor": 2, "n_layers": 1},
    "members": {"seed": [1]},
    "training": {"max_epochs": 1, "validate_every": 1},
}


def written_under(folder: Path) -> Iterator[Path]:
    """Files that hold the secret."""
    for path in folder.rglob("*"):
        if path.is_file() and SECRET.encode() in path.read_bytes():
            yield path


@pytest.mark.parametrize("uri", URIS)
def test_a_password_in_an_address_is_neither_written_nor_shown(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the settings it is refused; in the environment it is used, and the message hides it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as refused:
        imavae.train(**TINY, output_dir=str(tmp_path), tracking={"uri": uri})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError) as unreachable:
        imavae.train(**TINY, output_dir=str(tmp_path), tracking={"name": "mlflow"})
    with pytest.raises(UserError) as mistyped:
        run_config({"tracking": {"url": uri}})
    imavae.train(**TINY, output_dir=str(tmp_path), tracking={"name": "none"})
    said = [str(error.value) for error in (refused, unreachable, mistyped)] + list(capsys.readouterr())
    assert [text for text in said if SECRET in text] == []
    assert list(written_under(tmp_path)) == []


def test_a_servers_password_is_passed_on_to_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://some%40one:a%2Fb@host:5000/at")
    assert server.tracking_uri(Tracking(), tmp_path) == "http://host:5000/at"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "some@one"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "a/b"  # noqa: S105


def test_addresses_without_a_password_are_left_as_they_are() -> None:
    for text in ("http://user@host:5000/a?b=c", "sqlite:////a/b@c.db", "models:/NAME@champion", "http://h:1/a:b@c"):
        assert without_password(text) == text


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"HTTP_HOST": "127.0.0.1:8080"}, True),
        ({"HTTP_HOST": "localhost:9090", "HTTP_ORIGIN": "http://localhost:9090"}, True),  # through a tunnel
        ({"HTTP_HOST": "[::1]:8080"}, True),
        ({"HTTP_HOST": "evil.example"}, False),
        ({"HTTP_HOST": "evil.example:8080"}, False),
        ({"HTTP_HOST": "127.0.0.1.evil.example:8080"}, False),
        ({}, False),
        ({"HTTP_HOST": "127.0.0.1:8080", "HTTP_ORIGIN": "http://evil.example"}, False),
        ({"HTTP_HOST": "127.0.0.1:8080", "HTTP_ORIGIN": "http://127.0.0.1:3000"}, False),
        ({"HTTP_HOST": "127.0.0.1:8080", "HTTP_ORIGIN": "null"}, False),
        ({"HTTP_HOST": "127.0.0.1:8080", "HTTP_SEC_FETCH_SITE": "cross-site"}, False),
    ],
)
def test_the_dashboard_answers_its_own_pages_only(headers: dict[str, str], allowed: bool) -> None:
    started: list[str] = []
    answer = ui.guarded(lambda _, start: start("200 OK", []) or [b""])
    answer({"REQUEST_METHOD": "DELETE", **headers}, lambda status, _: started.append(status))
    assert started == ["200 OK" if allowed else "403 Forbidden"]


def mlmodel(data: str) -> str:
    return f"flavors:\n  python_function:\n    data: {data}\n"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MLMODELS = {
    "absolute": mlmodel("/etc/passwd"),
    "above": mlmodel("../other.pt"),
    "inside above": mlmodel("x/../../other.pt"),
    "a folder": mlmodel("."),
    "two dots": mlmodel(".."),
    "nothing": mlmodel("''"),
    "a number": mlmodel("3"),
    "a link": mlmodel("link.pt"),
    "bomb": BOMB + mlmodel("*i"),
    "other content": "flavors: 3",
    "a list": "[1, 2]",
    "no YAML": "{",
    "a tag": mlmodel("!!python/object/apply:os.getcwd []"),
    "large": mlmodel("model.pt") + "#" * 2**17,
    "deep": "[" * 2000,
    "empty": "",
}


@pytest.mark.parametrize("name", MLMODELS)
def test_an_mlmodel_names_a_file_beside_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text(MLMODELS[name])
    (tmp_path / "link.pt").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="names a file beside it") as error:
        server._file_of(tmp_path / "MLmodel", "models:/m-1")
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


def test_a_proper_mlmodel_is_read(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text(mlmodel("champion.pt"))
    assert server._file_of(tmp_path / "MLmodel", "models:/m-1") == "champion.pt"


@pytest.mark.parametrize(
    "text", [BOMB, "a: &a [1, *a]", "a: &a {b: *a}", "[" * 2000], ids=["bomb", "list", "map", "deep"]
)
def test_a_search_space_that_explodes_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"space\.yaml") as error:
        read_search(path)
    assert len(str(error.value)) < 600


def test_a_search_space_may_have_aliases(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("a: &a [1, 2]\nb: *a\n")
    assert read_search(path) == {"a": [1, 2], "b": [1, 2]}


def test_a_broken_draft_blocks_no_other_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imavae.cli import compose, main

    for name, text in (("mine", "study: mine\nsearch: {model: {gamma: {type: choice, values: [1.0]}}}"), ("min", "[{")):
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(compose, "SEARCHES", tmp_path)
    monkeypatch.setattr(compose, "_stored", [])
    job = compose.compose(main.TUNE, ["search=mine", "name=min"])
    assert job.settings["search"]["model"]["gamma"]["values"] == [1.0]


LOCAL = """
import json, os, socket
from imavae.config.settings import Cluster
from imavae.search import cluster

with cluster.running(Cluster(cpus=1)):
    import ray
    import psutil  # Ray brings it
    own = psutil.Process()
    found = [c for p in (own, *own.children(True)) for c in p.net_connections("inet") if c.status == "LISTEN"]
    session = ray._private.worker._global_node.get_session_dir_path()
    private = os.path.dirname(os.path.dirname(session))
    print(json.dumps([sorted({c.laddr.ip for c in found}), private, oct(os.stat(private).st_mode)]))
    @ray.remote
    def f(): return os.environ["RAY_AUTH_MODE"]
    print(ray.get(f.remote()))
"""


@pytest.mark.slow
def test_a_local_study_is_reached_by_this_user_alone(tmp_path: Path) -> None:
    """Whatever the environment says, with a home that can't be written, and a long temporary folder."""
    long = tmp_path / ("long" * 25)
    long.mkdir()
    environment = {
        "HOME": "/proc/none",
        "TMPDIR": str(long),
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": "10.0.0.1:6379",
    }
    environment |= {"RAY_ADDRESS": "10.0.0.1:6379"}
    environment = {**os.environ, **environment, "PYTHONPATH": str(Path(ui.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", LOCAL], env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith('[["127.0.0.1", "::ffff:127.0.0.1"]')
    assert lines[0].endswith(f'"{oct(stat.S_IFDIR | 0o700)}"]')
    assert lines[1:] == ["token"]
    assert not Path(json.loads(lines[0])[1]).exists()
