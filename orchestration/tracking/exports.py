"""What MLflow is told of an exported MLflow model: the model whole, a version of a registered one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestration.tracking.runs import Tracking
from orchestration.tracking.trainings import EXPERIMENT

MODEL = "affinery-model"


def tell(tracking: Tracking, composition: str, digest: str, facts: Mapping[str, Any], folder: Path) -> None:
    """Spools an export's run and model; it is sent with the next flush. Told already, nothing happens.

    digest: of the exported folder. facts: whence it came, by tag: affinery.ref and affinery.digest too.
    """
    key = hashlib.sha256(f"export/{digest}/{composition}".encode()).hexdigest()[:32]
    if tracking.kept.knows(key):
        return
    said = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    tracking.start_run(EXPERIMENT, f"{composition} as an MLflow model", {"digest": digest}, said, key=key)
    name = composition.partition("@")[0]
    tracking.log_model(key, name, MODEL, f"model.{name}", said, {}, folder)
    tracking.finish(key)
