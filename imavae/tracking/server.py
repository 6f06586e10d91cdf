"""Where MLflow is: its address, whether anything answers there, a quiet client of it, and the models behind it."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml
from filelock import FileLock

from imavae.config.settings import Tracking
from imavae.errors import UserError
from imavae.tracking.retry import NO_RETRIES

if TYPE_CHECKING:
    from mlflow import MlflowClient

TIMEOUT = 4.0  # seconds that an address may take to answer
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
POOL = "MLFLOW_SQLALCHEMYSTORE_POOLCLASS"  # MLflow's variable for how it keeps connections to a database
QUIET = {  # no calls home, and nothing on the terminal
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


def tracking_uri(settings: Tracking, output_dir: Path) -> str:
    """The settings' address, or else MLFLOW_TRACKING_URI, or else OUTPUT_DIR/mlflow.db; file paths are absolute."""
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output_dir.resolve() / 'mlflow.db'}"
    path = database_file(uri)
    return uri if path is None else f"sqlite:///{path}"


def database_file(uri: str) -> Path | None:
    """The absolute path of the file behind an SQLite address; None for an address of another kind."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def is_server(uri: str) -> bool:
    """Whether an MLflow server lies behind the address; it has its own place for artifacts and its own page."""
    return urlsplit(uri).scheme in ("http", "https", "databricks")


def check_reachable(uri: str) -> None:
    """Try an address once; MLflow itself would try seven times, for over 100 seconds.

    Raises:
        UserError: within 5 seconds, where nothing answers, a database file can't be written to, or MLflow knows no such
            kind of address.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.split("+")[0]  # of postgresql+psycopg2
    path = database_file(uri)
    try:
        if path is not None:
            _open_sqlite(path)
        elif scheme in ("http", "https"):
            _within(TIMEOUT, lambda: _get(f"{uri.rstrip('/')}/health"))
        elif scheme in PORTS:
            place = (parts.hostname or "localhost", parts.port or PORTS[scheme])
            _within(TIMEOUT, lambda: socket.create_connection(place, timeout=TIMEOUT).close())
        elif scheme != "databricks":  # its place is in a profile that MLflow reads
            raise UserError(
                f"tracking.uri must be an address that MLflow can write to, but got {uri!r}; say one that "
                "begins with http://, https://, postgresql://, mysql://, mssql:// or sqlite:///"
            )
    except (OSError, ValueError, sqlite3.Error) as error:
        raise _unreachable(uri, error) from None


def _unreachable(uri: str, error: Exception) -> UserError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(
        f"the tracking address must be reachable, but {uri} is not ({reason}); start its server, correct tracking.uri "
        "or MLFLOW_TRACKING_URI, or say tracking=none"
    )


def _open_sqlite(path: Path) -> None:
    """Open a database file for writing, which is where a wrong file or folder shows. A new one is not made yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        tempfile.TemporaryFile(dir=path.parent).close()
        return
    with closing(sqlite3.connect(path, timeout=TIMEOUT)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()


def _make_sqlite(path: Path) -> None:
    """Make a new database with MLflow's tables, which takes seconds: aside, so that one whose making was broken off is
    never taken for whole.

    It gets a write-ahead log, which it keeps: MLflow commits five times per run, and that halves their time.
    """
    aside = path.with_name(f".{path.name}.new")
    for rest in path.parent.glob(f"{aside.name}*"):
        rest.unlink()
    with closing(sqlite3.connect(aside)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    before = os.environ.get(POOL)
    os.environ[POOL] = "NullPool"  # no connection stays open to a file that is about to be renamed
    try:
        _answering_client(f"sqlite:///{aside}")
    finally:
        del os.environ[POOL]
        if before is not None:  # it was a person's, for other databases
            os.environ[POOL] = before
    aside.replace(path)


def _get(url: str) -> None:
    try:
        urllib.request.urlopen(url, timeout=TIMEOUT).close()  # noqa: S310 - the caller has checked the scheme
    except urllib.error.HTTPError as error:
        if error.code >= 500:  # any other answer, a demand for a password too, is for MLflow to deal with
            raise


def _within(seconds: float, action: Callable[[], None]) -> None:
    """Run an action for so long at most, in a thread: a socket's timeout does not cover the look-up of its name."""
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            action()
        except Exception as error:  # raised again below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:g} s")
    if errors:
        raise errors[0]


def open_client(uri: str) -> MlflowClient:
    """MLflow's client of an address. Neither MLflow nor its libraries say anything on the terminal from here on.

    Raises:
        UserError: what answers there is no MLflow that this version can talk to, or a database's driver is missing.
    """
    os.environ.update(QUIET | NO_RETRIES)
    import mlflow  # noqa: F401  -- it sets its loggers up when it is imported

    for name in ("mlflow", "alembic"):  # MLflow may have been imported before the variables were set
        logging.getLogger(name).setLevel(logging.ERROR)
    # It prints the traceback of a database's error, which it then raises: that is told, or tried again, by its caller.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    path = database_file(uri)
    # A new database's tables are made by whoever opens it first; two at a time would get in each other's way.
    alone = nullcontext() if path is None else FileLock(path.with_name(f".{path.name}.lock"))
    with alone, mlflow_errors(lambda error: _unreachable(uri, error)):
        if path is not None and not path.exists():
            _make_sqlite(path)
        return _answering_client(uri)


def _answering_client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    return client


@contextmanager
def mlflow_errors(explain: Callable[[Exception], UserError]) -> Iterator[None]:
    """Raise an explanation instead of whatever MLflow, its database or its missing driver raise."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        raise explain(error) from None


def where(tags: Mapping[str, str]) -> str:
    """MLflow's filter for all of these tags. It knows no escapes: a quote in a value decides which enclose it."""
    quoted = ((key, f'"{value}"' if "'" in value else f"'{value}'") for key, value in tags.items())
    return " AND ".join(f"tags.`{key}` = {value}" for key, value in quoted)


def fetch_model(address: str, settings: Tracking, output_dir: Path) -> Path:
    """The local path of the model file behind ``models:/NAME@ALIAS``, ``models:/m-ID`` or ``runs:/ID``.

    A member's run stands for its own model, a study's run for the best ``val/mcc`` among its models or,
    without sources, the lowest ``val/neg_elbo``.

    Raises:
        UserError: there is no such model, or the tracking address can't be reached.
    """
    uri = tracking_uri(settings, output_dir)
    database = database_file(uri)
    if database is not None and not database.is_file():
        raise UserError(f"an MLflow database must hold {address}, but {database} does not exist; run `make tune` first")
    check_reachable(uri)
    client = open_client(uri)
    from mlflow import artifacts

    def explain(error: Exception) -> UserError:
        return UserError(f"a model must lie behind {address}, but none does ({error}); see those in {uri} by `make ui`")

    with mlflow_errors(explain):
        place = _place_of(client, address)
        folder = Path(artifacts.download_artifacts(artifact_uri=place, tracking_uri=uri, registry_uri=uri))
        description = yaml.safe_load((folder / "MLmodel").read_text())
    return folder / str(description["flavors"]["python_function"]["data"])


def _place_of(client: MlflowClient, address: str) -> str:
    """Where a model's files lie. MLflow's own look-up of ``models:/…`` asks its global address, not this client's."""
    kind, _, rest = address.partition(":/")
    if kind == "runs":
        return _place_of_run(client, rest)
    name, alias = rest.split("@", 1) if "@" in rest else (rest, "")
    if alias:
        version = client.get_model_version_by_alias(name, alias).version
        return str(client.get_model_version_download_uri(name, version))
    if "/" in rest:
        return str(client.get_model_version_download_uri(*rest.split("/", 1)))
    return str(client.get_logged_model(rest).artifact_location)


def _place_of_run(client: MlflowClient, run_id: str) -> str:
    experiments = [client.get_run(run_id).info.experiment_id]
    best: list[dict[str, Any]] = [
        {"field_name": "metrics.val/mcc", "ascending": False},
        {"field_name": "metrics.val/neg_elbo", "ascending": True},  # decides where no model has the first
    ]
    for rule in (f"source_run_id = '{run_id}'", where({"imavae.study": run_id})):
        models = client.search_logged_models(experiments, rule, order_by=best, max_results=1)
        if models:
            return str(models[0].artifact_location)
    raise UserError(f"a run must have a logged model to be loaded, but {run_id} has none; name its study's run instead")
