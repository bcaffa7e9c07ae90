"""What the registry hands out: frozen records. Rows of the database stay inside."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Anything recorded: its place in the lineage, its digest, and when."""

    HERE: ClassVar[frozenset[str]] = frozenset()
    """The fields that name places of this machine, and are told on it only."""

    node_id: int
    digest: str
    created_at: datetime

    @property
    def ref(self) -> str:
        """How a person names it."""
        return self.digest

    def to_json(self, *, here: bool = False) -> dict[str, Any]:
        """The fields as plain JSON, with ref; instants in ISO 8601. here: with the places of this machine."""
        names = [field.name for field in fields(self) if here or field.name not in self.HERE]
        return {"ref": self.ref} | {name: _plain(getattr(self, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Versioned(Record):
    """A name with versions 1, 2, …"""

    name: str
    version: int

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord(Record):
    """A node of the lineage, whatever its kind. version is None where the kind has none."""

    kind: str
    name: str
    version: int | None = None

    @property
    def ref(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"

    @property
    def full_ref(self) -> str:
        """The reference with its kind: never ambiguous."""
        return f"{self.kind}:{self.ref}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneRecord(Versioned):
    """digest is the fingerprint; the class table has rows [0, null_index + 1) of its own."""

    blob_digest: str
    size_bytes: int
    num_classes: int
    null_index: int
    spec: dict[str, Any]
    parent: str | None

    @property
    def fingerprint(self) -> str:
        """The same as digest."""
        return self.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecord(Versioned):
    """A version of a dataset, pinned by digest and by DVC."""

    dvc_md5: str
    dvc_path: str
    size_bytes: int
    image_count: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    licence: str
    source: str
    parent: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord(Record):
    """block is [lo, hi), the task's rows in the class table; state is registered, scheduled, learning, learnt
    or failed, derived from its jobs and adapters. latest_version is 0 before the first adapter. condition is
    the spatial condition that it is told, image_size that of its images where it is not the backbone's.
    dataset is the version that it is on now; predecessor the task of an older backbone that it follows."""

    name: str
    backbone: str
    backbone_id: int
    dataset: str
    dataset_id: int
    kind: str
    config: dict[str, Any]
    condition: dict[str, Any] | None
    image_size: int | None
    block: tuple[int, int]
    classes: tuple[str, ...]
    state: str
    latest_version: int
    predecessor: str | None

    @property
    def ref(self) -> str:
        return self.name

    def to_json(self, *, here: bool = False) -> dict[str, Any]:
        """The same; where this machine keeps the model that draws a condition is told on it only."""
        told = Record.to_json(self, here=here)
        if self.condition is not None and not here:
            told["condition"] = {name: value for name, value in self.condition.items() if name != "folder"}
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord(Record):
    """One training of one task."""

    job_id: str | None
    task: str
    task_id: int
    mlflow_run_id: str | None
    mlflow_experiment: str | None
    config: dict[str, Any]
    seed: int
    code_version: str
    environment: dict[str, Any]
    started_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord(Versioned):
    """A version of a task's adapter set; name is the task's name."""

    task_id: int
    backbone: str
    backbone_id: int
    dataset: str
    dataset_id: int
    block: tuple[int, int]
    kind: str
    blob_digest: str
    size_bytes: int
    parameters: int
    config: dict[str, Any]
    provenance: dict[str, Any]
    metrics: dict[str, Any]
    mlflow_run_id: str | None
    golden_blob: str | None
    run_id: int | None
    warm_start: str | None
    job_id: str | None
    fence: int | None

    @property
    def task(self) -> str:
        """The task's name."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRecord(Record):
    """What was proved about everything older when adapter was added."""

    adapter: str
    adapter_id: int
    level: str
    results: dict[str, Any]

    @property
    def proves(self) -> bool:
        """Whether anything was proved here: of what was learnt elsewhere nothing was."""
        return self.level != "unverified"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord(Record):
    """What was measured of adapter against the dataset version reference, under one protocol."""

    adapter: str
    adapter_id: int
    reference: str
    reference_id: int
    protocol: dict[str, Any]
    protocol_digest: str
    results: dict[str, Any]
    job_id: str | None
    fence: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompositionRecord(Versioned):
    """Adapter versions on one backbone, in the order in which they were given."""

    backbone: str
    backbone_id: int
    mode: str
    recipe: dict[str, Any]
    members: tuple[str, ...]
    member_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord(Versioned):
    """A bundle that was written; named after its composition and counted by itself."""

    HERE: ClassVar[frozenset[str]] = frozenset({"path"})

    composition: str
    composition_id: int
    format: str
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRecord:
    """A move of an alias: what task@name means since then; adapter is None where it was taken away.

    gate: what was required of the adapter's metrics, and what they said.
    """

    task: str
    name: str
    number: int
    adapter: str | None
    adapter_id: int | None
    gate: tuple[dict[str, Any], ...]
    at: datetime

    @property
    def ref(self) -> str:
        """How a person writes the alias."""
        return f"{self.task}@{self.name}"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON, with ref."""
        return {"ref": self.ref} | {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RenamingRecord:
    """A name that was changed; origin is the first that its bearer had. at is None where nothing changed."""

    kind: str
    origin: str
    was: str
    name: str
    at: datetime | None

    @property
    def ref(self) -> str:
        """What it is called now."""
        return f"{self.kind}:{self.name}"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON, with ref."""
        return {"ref": self.ref} | {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteRecord:
    """What is said about a thing; text is None where nothing is."""

    ref: str
    text: str | None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON."""
        return {"ref": self.ref, "text": self.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """What happened to which node (or to none), and when."""

    id: int
    at: datetime
    kind: str
    subject: int | None
    payload: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    """A lease on bytes that are on their way into the store."""

    id: str
    owner: str
    started_at: datetime
    expires_at: datetime
