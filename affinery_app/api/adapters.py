"""/v1/adapters: what was learnt. Searched by filter, read by any reference, brought in from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy.orm import Session

from affinery_app.api.access import Who
from affinery_app.api.calls import After, Caller, IfMatch, Limit, Once, Posting, Ref, Space, answer, paged
from affinery_app.api.etags import etag_of, held
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Digest, Facts, Sent, Tags, Word, pages, shape
from affinery_app.wiring import Workspace
from orchestration import arrivals
from registry import about, adapters, blobs, nodes, retirement, search, tags
from registry.records import AdapterRecord, CertificateRecord, EvaluationRecord

router = nouns("/v1/adapters", "adapters")
Certificate = shape(CertificateRecord)
Evaluation = shape(EvaluationRecord)


class Retired(Sent):
    """Since when a version is not to be used any more, and why."""

    since: str
    reason: str


Adapter = shape(AdapterRecord, tags=dict[str, str], retired=Retired | None)


class AboutAdapter(Adapter):  # type: ignore[misc, valid-type]
    """A version with what was proved and found of it, and what hangs on it."""

    certificates: list[Certificate]  # type: ignore[valid-type]
    evaluations: list[Evaluation]  # type: ignore[valid-type]
    aliases: list[str]
    note: str | None


class NewAdapter(Sent):
    """An adapter that was trained elsewhere, for a task that is registered here."""

    task: Word
    blob: Digest = Field(description="Its file, sent to /v1/blobs before.")
    upload: Word | None = Field(default=None, description="The upload that kept the file until now.")
    metrics: Facts = Field(default={})
    provenance: Facts = Field(default={})
    mlflow_run_id: Word | None = None
    warm_start: Word | None = Field(default=None, description="The adapter that it was trained from.")
    tags: Tags = Field(default={})


@router.get("", response_model=pages(Adapter))
def list_adapters(
    space: Space,
    after: After = 0,
    limit: Limit = 50,
    filter: Annotated[  # noqa: A002 - the word that people use
        str,
        Query(
            max_length=2000,
            description="As `affinery adapter search` takes it.",
            examples=["tag.owner=ann and metric.kid<0.02"],
        ),
    ] = "",
) -> JSONResponse:
    """The adapter versions for which the filter holds, the newest first."""
    with space.sessions.read() as session:
        return found(session, filter, after, limit)


@router.get("/{ref}", response_model=AboutAdapter)
def get_adapter(space: Space, ref: Ref) -> JSONResponse:
    """One version: the latest of a task, a version, an alias, or a digest; with all that is known of it.

    Its ETag is for If-Match.
    """
    with space.sessions.read() as session:
        told = about.adapter(session, ref).to_json()
    return answer(told, etag=etag_of(told))


class Reason(Sent):
    """Why a version is not to be used any more."""

    reason: str = Field(min_length=1, max_length=2000)


@router.post("/{ref}/retire", response_model=AboutAdapter)
def retire_adapter(
    space: Space, who: Caller, ref: Ref, why: Reason, posting: Posting, if_match: IfMatch = None
) -> JSONResponse:
    """Let no new composition take this version. It stays in the record; retired again, nothing changes."""
    change = _Change(ref, posting, if_match, why.reason)
    return change.do(space, who, lambda session: retirement.retire(session, ref, why.reason))


@router.post("/{ref}/restore", response_model=AboutAdapter)
def restore_adapter(
    space: Space, who: Caller, ref: Ref, posting: Posting, if_match: IfMatch = None
) -> JSONResponse:
    """Let a retired version be used again."""
    change = _Change(ref, posting, if_match)
    return change.do(space, who, lambda session: retirement.restore(session, ref))


@router.post("", status_code=201, response_model=AboutAdapter)
def create_adapter(space: Space, who: Caller, new: NewAdapter, posting: Posting) -> JSONResponse:
    """Record an adapter that was trained elsewhere as its task's next version.

    The file must say that it is of this task on this backbone. The same file again gives the same record.
    """
    with space.sessions.read() as session:
        who.check_tasks(session, new.task)
    arrival = arrivals.checked(space.sessions, space.store, new.task, new.blob)

    def write(session: Session) -> dict[str, Any]:
        record = arrivals.record(
            session,
            arrival,
            provenance=new.provenance,
            metrics=new.metrics,
            mlflow_run_id=new.mlflow_run_id,
            warm_start=new.warm_start,
        )
        if new.tags:
            tags.put(session, record, new.tags)
        if new.upload is not None:
            blobs.end_upload(session, new.upload)
        return about.adapter(session, record.ref).to_json()

    return posting.do(space, new.model_dump(), "/v1/adapters/{ref}", write, etag=etag_of)


@dataclass(frozen=True)
class _Change:
    """Of a version, if it is still as it was read. why: what else was asked."""

    ref: str
    posting: Once
    if_match: str | None
    why: str | None = None

    def do(self, space: Workspace, who: Who, change: Callable[[Session], AdapterRecord]) -> JSONResponse:
        """Raises PreconditionFailed, and what the change raises."""

        def write(session: Session) -> dict[str, Any]:
            record = adapters.get(session, self.ref)
            who.check_tasks(session, record.task)
            if self.if_match is not None:
                nodes.hold(session, record.node_id)
                there = about.adapter(session, record.ref).to_json()
                held(f"adapter {record.ref}", etag_of(there), self.if_match)
            return about.adapter(session, change(session).ref).to_json()

        return self.posting.do(space, [self.if_match, self.why], "", write, etag=etag_of)


def found(session: Session, text: str, after: int, limit: int) -> JSONResponse:
    """A page of a search."""
    page = search.search(session, text, before=after or None, limit=limit)
    return paged(told(session, page.adapters), page.next)


def told(session: Session, records: Any) -> list[dict[str, Any]]:
    """Records with what people say of them."""
    ids = [record.node_id for record in records]
    labels, retired = tags.of_each(session, ids), retirement.of(session, ids)
    return [
        record.to_json()
        | {
            "tags": labels.get(record.node_id, {}),
            "retired": retired[record.node_id].to_json() if record.node_id in retired else None,
        }
        for record in records
    ]
