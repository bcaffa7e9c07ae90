"""What MLflow is told of a composition: a logged model that names its members, registered under its name."""

from __future__ import annotations

import hashlib
import json

from orchestration.tracking.replay import DIGEST_TAG, REF_TAG
from orchestration.tracking.runs import Tracking
from orchestration.tracking.trainings import EXPERIMENT
from registry import adapters
from registry.records import CompositionRecord
from registry.session import Sessions

MODEL = "affinery-composition"


def key_of(record: CompositionRecord) -> str:
    """The key of a composition's run."""
    return hashlib.sha256(f"composition/{record.digest}/{record.ref}".encode()).hexdigest()[:32]


def tell(tracking: Tracking, sessions: Sessions, record: CompositionRecord) -> None:
    """Spools a composition's run and model; it is sent with the next flush. Told already, nothing happens."""
    key = key_of(record)
    if tracking.kept.knows(key):
        return
    with sessions.read() as session:
        members = [adapters.by_id(session, node_id) for node_id in record.member_ids]
    tags = {REF_TAG: record.ref, DIGEST_TAG: record.digest, "affinery.backbone": record.backbone}
    described = {
        "composition": record.ref,
        "digest": record.digest,
        "backbone": record.backbone,
        "mode": record.mode,
        "recipe": record.recipe,
        "members": [
            {"adapter": member.ref, "digest": member.digest, "mlflow_run": member.mlflow_run_id}
            for member in members
        ],
    }
    params = {"mode": record.mode, "backbone": record.backbone, "members": ", ".join(record.members)}
    tracking.start_run(EXPERIMENT, record.ref, params, tags, key=key)
    text = json.dumps(described, indent=2, ensure_ascii=False, default=str)
    name = f"composition.{record.name}"
    tracking.log_model(key, record.name, MODEL, name, tags, {"composition.json": text})
    tracking.kept.append(key, {"op": "finish", "status": "FINISHED", "time": _milliseconds(record)})


def _milliseconds(record: CompositionRecord) -> int:
    return int(record.created_at.timestamp() * 1000)
