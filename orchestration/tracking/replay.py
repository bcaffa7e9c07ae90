"""One operation of the spool, told to MLflow. Told again, it changes nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from affinery.tensor_files import sha256_file

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)
KEY_TAG, REF_TAG, DIGEST_TAG = "affinery.key", "affinery.ref", "affinery.digest"
PARENT_TAG = "mlflow.parentRunId"
MISSING_TAG = "affinery.missing_artifact"
REFUSALS = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS")
"""Not BAD_REQUEST: so MLflow also names a database that is damaged for a while."""
GONE = "RESOURCE_DOES_NOT_EXIST"
LONGEST_PARAM, LONGEST_TAG, AT_ONCE, POINTS_AT_ONCE = 6000, 5000, 90, 900
LONGEST_DIGEST = 36
"""Of a dataset, in MLflow; the whole one stands in its profile."""


def refused(error: BaseException) -> bool:
    """Whether MLflow answered, and will answer so for ever; other operations may still be replayed."""
    return getattr(error, "error_code", None) in REFUSALS


def gone(error: BaseException) -> bool:
    """Whether MLflow does not know what it was told of: its database is another than it was."""
    return getattr(error, "error_code", None) == GONE


def parts(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An operation of several values as one for each: where one is refused, the others are not."""
    if operation["op"] in ("params", "tags"):
        for name, value in operation["values"].items():
            yield operation | {"values": {name: value}}
    elif operation["op"] == "metrics":
        for point in operation["points"]:
            yield operation | {"points": [point]}
    else:
        yield operation


def experiment_id(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """Of an experiment, made where there is none. artifacts: an absolute place for its files."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(client.get_experiment_by_name(name).experiment_id)  # another was quicker


def create(
    client: MlflowClient, key: str, operation: Mapping[str, Any], experiment: str, parent: str | None
) -> str:
    """The MLflow run of a key: found by its tag where an earlier replay was cut off right after making it."""
    if (known := run_of(client, key, experiment)) is not None:
        return known
    tags = {KEY_TAG: key, "mlflow.source.name": "affinery"}
    if parent is not None:
        tags[PARENT_TAG] = parent
    made = client.create_run(experiment, operation["time"], tags=tags, run_name=operation["name"])
    return str(made.info.run_id)


def run_of(client: MlflowClient, key: str, experiment: str) -> str | None:
    """The MLflow run that has a key."""
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def tell(client: MlflowClient, run_id: str, key: str, operation: dict[str, Any]) -> None:
    """Every operation but `create`. Raises what MLflow raises, and ValueError for one that is unknown."""
    match operation["op"]:
        case "params":
            _params(client, run_id, operation["values"])
        case "tags":
            _tags(client, run_id, operation["values"])
        case "metrics":
            _metrics(client, run_id, operation["points"])
        case "artifact":
            _artifact(client, run_id, operation)
        case "text":
            client.log_text(run_id, operation["text"], operation["file"])
        case "dataset":
            _dataset(client, run_id, operation)
        case "register":
            source = f"{client.get_run(run_id).info.artifact_uri}/{operation['path']}"
            _register(client, run_id, operation["name"], source, operation["tags"], None)
        case "model":
            _model(client, run_id, key, operation)
        case "finish":
            client.set_terminated(run_id, operation["status"], operation["time"])
        case unknown:
            raise ValueError(f"The spool of run {key} holds an unknown operation {unknown!r}")


def _params(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    listed = [Param(name, value[:LONGEST_PARAM]) for name, value in values.items()]
    for start in range(0, len(listed), AT_ONCE):
        client.log_batch(run_id, params=listed[start : start + AT_ONCE])


def _tags(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    listed = [RunTag(name, value[:LONGEST_TAG]) for name, value in values.items()]
    for start in range(0, len(listed), AT_ONCE):
        client.log_batch(run_id, tags=listed[start : start + AT_ONCE])


def _metrics(client: MlflowClient, run_id: str, points: list[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    listed = [Metric(name, value, at, step) for name, value, step, at in points]
    for start in range(0, len(listed), POINTS_AT_ONCE):
        client.log_batch(run_id, metrics=listed[start : start + POINTS_AT_ONCE])


def _artifact(client: MlflowClient, run_id: str, operation: Mapping[str, Any]) -> None:
    """From the spool's copy, under the name of the original; from the original where there is no copy."""
    kept, original = Path(operation["path"]), Path(operation["from"])
    if not kept.exists() and original.is_file() and sha256_file(original) == operation["sha256"]:
        kept = original  # which may have become another file since
    if not kept.exists():
        there = {Path(file.path).name for file in client.list_artifacts(run_id, operation["to"])}
        if original.name not in there:
            client.set_tag(run_id, MISSING_TAG, str(original))
        return
    if kept.name == original.name:
        client.log_artifact(run_id, str(kept), operation["to"])
        return
    with TemporaryDirectory(prefix="affinery-") as scratch:
        named = Path(scratch) / original.name
        named.symlink_to(kept.absolute())
        client.log_artifact(run_id, str(named), operation["to"])


def _dataset(client: MlflowClient, run_id: str, operation: Mapping[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(
        name=operation["name"],
        digest=operation["digest"][:LONGEST_DIGEST],
        source_type="dvc",
        source=json.dumps(operation["source"]),
        profile=json.dumps(operation["profile"]),
    )
    context = InputTag("mlflow.data.context", operation["context"])
    client.log_inputs(run_id, [DatasetInput(entity, [context])])


def _register(
    client: MlflowClient,
    run_id: str,
    name: str,
    source: str,
    tags: Mapping[str, str],
    model_id: str | None,
) -> None:
    """A version of a registered model, unless one with these tags is there."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, tags={"affinery": "true"})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    quote = '"' if "'" in name else "'"
    for known in client.search_model_versions(f"name={quote}{name}{quote}"):
        if all(known.tags.get(tag) == tags[tag] for tag in (REF_TAG, DIGEST_TAG)):
            return
    client.create_model_version(
        name, source, run_id=run_id, tags=dict(tags), await_creation_for=0, model_id=model_id
    )


def _model(client: MlflowClient, run_id: str, key: str, operation: Mapping[str, Any]) -> None:
    """A logged model of files that are text, and of a folder's; registered. None, if the folder is gone."""
    folder = operation.get("folder")
    if folder is not None and not Path(folder).is_dir():
        log.warning("%s is gone before MLflow could be told of it.", folder)
        return
    experiment = client.get_run(run_id).info.experiment_id
    known = client.search_logged_models([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    if known:
        model = known[0]
    else:
        tags = {KEY_TAG: key, **operation["tags"]}
        model = client.create_logged_model(
            experiment, operation["title"], run_id, tags=tags, model_type=operation["type"]
        )
    with TemporaryDirectory(prefix="affinery-") as scratch:
        for name, text in operation["files"].items():
            (Path(scratch) / name).write_text(text, encoding="utf-8")
        for each in (scratch, folder) if folder is not None else (scratch,):
            client.log_model_artifacts(model.model_id, each)
    client.finalize_logged_model(model.model_id, "READY")
    # By its place: `models:/…` would be looked up in whatever MLflow this process has as its default.
    place = str(model.artifact_location)
    _register(client, run_id, operation["name"], place, operation["tags"], model.model_id)
