"""Connection to MLflow: its address, a quiet client, retries while it is unavailable, and the model files behind it."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import yaml
from filelock import FileLock

from imavae.config.settings import Tracking
from imavae.errors import UserError, is_full_disk, require
from imavae.tracking import OutageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

P = ParamSpec("P")
T = TypeVar("T")

CONNECT_TIMEOUT = 4.0  # seconds in which an address must answer
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
LONGEST_OUTAGE = 600.0  # seconds after which a study goes on untracked; a resume tracks what is missing
LARGEST_MLMODEL = 2**14  # bytes
PAGE = 2**9  # bytes in a page of a database: each metric in MLflow changes two pages, of whatever size
LOG_BYTES = 2**26  # size at which its write-ahead log is copied into it: most pages change many times before
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds between two attempts; the pause doubles
OUTAGE_CODES = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")
BEST_FIRST: list[dict[str, Any]] = [
    {"field_name": "metrics.val/mcc", "ascending": False},
    {"field_name": "metrics.val/neg_elbo", "ascending": True},  # decides if no model has val/mcc
]
ADDRESSES = (  # tables and columns in which MLflow keeps addresses of artifacts
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    # MLflow's own retries repeat a call that was carried out but not answered, which would duplicate a run.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


def tracking_uri(settings: Tracking, output_dir: Path) -> str:
    """Tracking address: the settings', else MLFLOW_TRACKING_URI, else OUTPUT_DIR/mlflow.db. File paths are absolute.

    The user and the password of a server's address in the environment are moved to the variables that MLflow has for
    them: addresses are shown and stored.
    """
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(output_dir.resolve() / "mlflow.db")
    parts, path = urlsplit(uri), database_file(uri)
    if is_server(uri) and parts.password is not None:
        variables = {"MLFLOW_TRACKING_USERNAME": parts.username, "MLFLOW_TRACKING_PASSWORD": parts.password}
        os.environ.update({name: unquote(value or "") for name, value in variables.items()})
        uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return uri if path is None else sqlite_uri(path)


def sqlite_uri(path: Path) -> str:
    """The address of an SQLite database, whose path may have any characters."""
    from sqlalchemy import URL

    return str(URL.create("sqlite", database=str(path)))


def database_file(uri: str) -> Path | None:
    """Absolute path of the file of an SQLite address; None for any other address."""
    if not uri.startswith("sqlite:///"):
        return None
    from sqlalchemy import make_url

    return Path(make_url(uri).database or "").expanduser().resolve()


def is_server(uri: str) -> bool:
    """Return whether the address is that of an MLflow server, which stores artifacts and has a page itself."""
    return urlsplit(uri).scheme in ("http", "https", "databricks")


def request(url: str, timeout: float = CONNECT_TIMEOUT) -> None:
    """Request a URL; raise OSError if nothing answers or the answer is a server error.

    Any other answer, a request for a password included, is left to MLflow.
    """
    try:
        urllib.request.urlopen(url, timeout=timeout).close()  # noqa: S310 - callers check the scheme
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise


def _connect(uri: str) -> None:
    """Try an address once; MLflow itself would try seven times, for over 100 seconds."""
    parts = urlsplit(uri)
    scheme = parts.scheme.split("+")[0]  # of postgresql+psycopg2
    known = ("http", "https", "databricks", "sqlite", *DATABASE_PORTS)  # the host of the third is in MLflow's profile
    require(scheme in known, f"tracking.uri begins with one of {', '.join(known)}", repr(uri), "correct the address")
    path = database_file(uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()  # the folder is writable
        if path.exists():
            with closing(sqlite3.connect(path, timeout=CONNECT_TIMEOUT)) as connection:
                connection.execute("BEGIN IMMEDIATE")
    elif scheme in ("http", "https"):
        request(f"{uri.rstrip('/')}/health")
    elif scheme in DATABASE_PORTS:
        location = (parts.hostname or "localhost", parts.port or DATABASE_PORTS[scheme])
        socket.create_connection(location, timeout=CONNECT_TIMEOUT).close()


def reach(uri: str) -> None:
    """Raise UserError, within 5 seconds, unless an address answers; a database file must be writable."""
    try:
        # In a thread, because a socket's timeout does not cover the look-up of its host name.
        pool = ThreadPoolExecutor(1)
        attempt = pool.submit(_connect, uri)
        pool.shutdown(wait=False)
        attempt.result(CONNECT_TIMEOUT + 1)
    except (sqlite3.Error, OSError, ValueError) as error:
        raise _unreachable(uri, error) from None


def _unreachable(uri: str, error: Exception) -> OutageError:
    reason = (str(error) or "no answer").splitlines()[0]
    path = database_file(uri)
    malformed = path is not None and path.is_file() and os.access(path, os.W_OK)
    fix = "start its server" if path is None else "move that file away, and track again by resume=true" * malformed
    fix = fix or "make its folder and file writable"
    return OutageError(
        f"the tracking address must be reachable, but {uri} is not ({reason}); {fix}, correct "
        "tracking.uri or MLFLOW_TRACKING_URI, or use tracking=none"
    )


def open_client(uri: str) -> MlflowClient:
    """MLflow client of an address; a missing SQLite database is created. MLflow prints nothing from here on.

    Raises:
        UserError: the address is of an unknown kind or not a compatible MLflow, a database's driver is missing, or,
            within 5 seconds, nothing answers or a database file is not writable.
    """
    reach(uri)
    os.environ.update(MLFLOW_ENVIRONMENT)
    try:
        import mlflow  # noqa: F401  -- sets up its loggers

        # MLflow may have been imported before the variables were set. The last logger prints errors that are raised.
        for name, level in {"mlflow": "ERROR", "alembic": "ERROR", "mlflow.store.db.utils": "CRITICAL"}.items():
            logging.getLogger(name).setLevel(level)
        path = database_file(uri)
        # Processes that create the same database at once would disturb each other.
        with nullcontext() if path is None else FileLock(path.with_name(f".{path.name}.lock")):
            if path is not None and not path.exists():
                _create_database(path)
            client = _checked_client(uri)
            if path is not None:
                _follow_move(path)
            return client
    except _connection_errors() as error:
        raise _unreachable(uri, error) from None


def lengthen_log(execute: Callable[[str], Any]) -> None:
    """Let the write-ahead log of a database grow to LOG_BYTES before it is synced and copied into the database.

    A killed process loses nothing. A power failure may cost the last trials; a resume tracks them again.
    """
    [page] = execute("PRAGMA page_size").fetchone()
    execute("PRAGMA synchronous = NORMAL")
    execute(f"PRAGMA wal_autocheckpoint = {LOG_BYTES // page}")


def _checked_client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    if (path := database_file(uri)) is not None:
        _seldom_written().add(path)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    return client


@functools.cache
def _seldom_written() -> set[Path]:
    """MLflow's database files, for which :func:`lengthen_log` is called at each connection."""
    from sqlalchemy import Engine, event

    files: set[Path] = set()

    def set_up(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            opened = {Path(file) for _, _, file in connection.execute("PRAGMA database_list")}
            if opened & files:
                lengthen_log(connection.execute)

    event.listen(Engine, "connect", set_up)
    return files


def _create_database(path: Path) -> None:
    """Create a database with MLflow's tables elsewhere, then move it to ``path``: a killed creation leaves nothing.

    A write-ahead log halves the time of MLflow's commits.
    """
    whole = path.with_name(f".{path.name}.new")
    with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(f"{folder}/new.db")) as source:
        source.execute(f"PRAGMA page_size = {PAGE}")
        source.execute("PRAGMA journal_mode = WAL")
        _checked_client(f"sqlite:///{folder}/new.db")
        with closing(sqlite3.connect(whole)) as target:  # MLflow keeps connections to the source, but not to the copy
            source.backup(target)
            target.execute("PRAGMA journal_mode = WAL")
    whole.replace(path)


def _follow_move(path: Path) -> None:
    """Correct the addresses in a database that was moved or copied together with the artifacts beside it.

    MLflow stores absolute ones: a copy would read, and write, where the original was.
    """
    artifacts = path.parent / "mlartifacts"
    with closing(sqlite3.connect(path, timeout=CONNECT_TIMEOUT)) as connection, connection:
        known = connection.execute("SELECT artifact_location FROM experiments").fetchall()
        parts = [location.rpartition("/mlartifacts/") for (location,) in known if location.startswith("file://")]
        now = path.parent.as_uri()
        moved = {old for old, _, name in parts if old != now and (artifacts / unquote(name)).is_dir()}
        for old in moved:
            changes = [(table, column, "1", old, now) for table, column in ADDRESSES]
            changes.append(("tags", "value", "key = 'imavae.folder'", unquote(urlsplit(old).path), str(path.parent)))
            for table, column, which, before, after in changes:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - all of it is ours
                    f"WHERE {which} AND substr({column}, 1, ?) = ?",
                    (after, len(before) + 1, len(before) + 1, f"{before}/"),
                )


def _connection_errors() -> tuple[type[Exception], ...]:
    """Errors of the network, MLflow, its database, a malformed address or a missing driver."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, sqlite3.Error, ImportError, OSError, ValueError


def retried(action: Callable[P, T]) -> Callable[P, T]:
    """Decorate an action to be repeated while MLflow is unavailable: a locked database, a server that restarts.

    A failed attempt may have been carried out in part, so the action must be safe to repeat. Raises OutageError after
    :data:`LONGEST_OUTAGE` or on a full disk, and MlflowException for other errors.
    """

    @functools.wraps(action)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        end, pause = time.monotonic() + LONGEST_OUTAGE, FIRST_PAUSE
        while True:
            try:
                with ignoring(*OUTAGE_CODES):
                    return action(*args, **kwargs)
            except OutageError as error:
                if is_full_disk(error):
                    raise
            if time.monotonic() >= end:
                raise OutageError(f"the tracking address did not answer for {LONGEST_OUTAGE:g} s")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    return call


@contextmanager
def ignoring(*codes: str) -> Iterator[None]:
    """End the block silently at an error of MLflow with one of these codes, unless the disk is full."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes or is_full_disk(error):
            raise


def filter_for_tags(tags: Mapping[str, str]) -> str:
    """MLflow filter for entities with all of these tags. MLflow has no escapes: values with a ' are put between "."""
    quoted = ((key, f'"{value}"' if "'" in value else f"'{value}'") for key, value in tags.items())
    return " AND ".join(f"tags.`{key}` = {value}" for key, value in quoted)


def fetch_model(address: str, settings: Tracking, output_dir: Path) -> Path:
    """Local path of a model's file: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``models:/m-ID`` or ``runs:/ID``.

    A run stands for its model; a study's for that with the highest ``val/mcc`` or, without sources, the lowest
    ``val/neg_elbo``. The best trials have a model each.

    Raises:
        UserError: there is no such model, or the tracking address is not reachable.
    """
    uri = tracking_uri(settings, output_dir)
    database = database_file(uri)
    exists = database is None or database.is_file()
    require(exists, f"the MLflow database of {address} exists", f"no {database}", "run `make tune` first")
    client = open_client(uri)
    from mlflow import artifacts

    try:
        location = _location_of(client, address)
        folder = Path(artifacts.download_artifacts(artifact_uri=location, tracking_uri=uri, registry_uri=uri))
        return folder / _file_of(folder / "MLmodel", address)
    except _connection_errors() as error:
        raise UserError(
            f"{address} must be a model at {uri}, but is not ({error}); see the models by `make ui`"
        ) from None


def _file_of(description: Path, address: str) -> str:
    """The name of a model's file, beside its ``MLmodel``, which anybody may have written."""
    rule, remedy = "the MLmodel of a model names a file beside it", "use another model, or train one again"
    try:
        small = description.stat().st_size <= LARGEST_MLMODEL
        text = description.read_text(encoding="utf-8") if small else ""
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("aliases")
        name = yaml.safe_load(text)["flavors"]["python_function"]["data"]
        if (
            not isinstance(name, str)
            or name in ("", "..")
            or Path(name).name != name
            or (description.parent / name).is_symlink()
        ):
            raise ValueError(repr(name))
    except (OSError, LookupError, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"`{rule}` must hold, but that of {address} does not ({reason}); {remedy}") from None
    return name


def _location_of(client: MlflowClient, address: str) -> str:
    """Artifact location of a model. MLflow's own look-up of ``models:/`` uses its global address, not the client's."""
    kind, _, rest = address.partition(":/")
    if kind == "runs":
        experiments = [client.get_run(rest).info.experiment_id]
        for rule in (f"source_run_id = '{rest}'", filter_for_tags({"imavae.study": rest})):
            models = client.search_logged_models(experiments, rule, order_by=BEST_FIRST, max_results=1)
            if models:
                return str(models[0].artifact_location)
        raise UserError(
            f"a run must have a logged model to be loaded, but {rest} has none; use its study's run instead"
        )
    if "@" in rest:
        name, alias = rest.split("@", 1)
        rest = f"{name}/{client.get_model_version_by_alias(name, alias).version}"
    if "/" in rest:
        return str(client.get_model_version_download_uri(*rest.split("/", 1)))
    return str(client.get_logged_model(rest).artifact_location)
