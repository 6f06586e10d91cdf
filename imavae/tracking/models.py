"""Winners in MLflow: a file as a logged model, the champion's as a registered one. Each call can be repeated."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

LOADER_MODULE = "imavae.training.checkpoint"  # has `_load_pyfunc(path)`, which MLflow's generic loader calls
CHAMPION = "champion"  # the alias of the best model


def complete(client: MlflowClient, model: LoggedModel, source: str, file: Path) -> None:
    """Store the file of a logged model of the run ``source`` and link the two, as far as that is not done yet."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    if model.status == LoggedModelStatus.READY:
        return
    _upload(client, model.model_id, file)
    outputs = client.get_run(source).outputs
    if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(source, [LoggedModelOutput(model.model_id, step=0)])  # the link on the run's page
    client.finalize_logged_model(model.model_id, "READY")


def crown(client: MlflowClient, name: str, model_id: str, run_id: str) -> str:
    """Register a logged model under a name, once, and give it the alias by which it is loaded; its address."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not "models:/ID": MLflow would look that up in its global address, not in this client's.
    place = client.get_logged_model(model_id).artifact_location
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((v for v in versions if v.source == place), None)
    if version is None:
        version = client.create_model_version(name, place, run_id, model_id=model_id)
    try:
        client.set_registered_model_alias(name, CHAMPION, version.version)
    except MlflowException as error:  # another study has made the alias in the same moment: now it can be moved
        if error.error_code != "BAD_REQUEST":
            raise
        client.set_registered_model_alias(name, CHAMPION, version.version)
    return f"models:/{name}@{CHAMPION}"


def _upload(client: MlflowClient, model_id: str, file: Path) -> None:
    """Store a model's file and the description by which MLflow's generic loader reads it; no code is pickled."""
    from mlflow import pyfunc
    from mlflow.models import Model

    description = Model(model_id=model_id)
    pyfunc.add_to_model(description, loader_module=LOADER_MODULE, data=file.name)
    with tempfile.TemporaryDirectory() as folder:
        description.save(f"{folder}/MLmodel")
        client.log_model_artifact(model_id, f"{folder}/MLmodel")
    client.log_model_artifact(model_id, str(file))
