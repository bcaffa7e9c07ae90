"""/v1/adapters: what was learnt. Searched by filter, read by any reference, brought in from elsewhere."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from affinery_app.api.calls import After, Caller, Limit, Posting, Ref, Space, answer, paged
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Digest, Facts, Tags, Word, pages, shape
from orchestration import arrivals
from registry import adapters, blobs, retirement, search, tags
from registry.records import AdapterRecord

router = nouns("/v1/adapters", "adapters")
Adapter = shape(AdapterRecord, tags=dict[str, str], retired=str | None)


class NewAdapter(BaseModel):
    """An adapter that was trained elsewhere, for a task that is registered here."""

    model_config = ConfigDict(extra="forbid")

    task: Word
    blob: Digest = Field(description="Its file, sent to /v1/blobs before.")
    upload: Word | None = Field(default=None, description="The upload that kept the file until now.")
    metrics: Facts = {}
    provenance: Facts = {}
    mlflow_run_id: Word | None = None
    warm_start: Word | None = Field(default=None, description="The adapter that it was trained from.")
    tags: Tags = {}


@router.get("", response_model=pages(Adapter))
def list_adapters(
    space: Space,
    after: After = 0,
    limit: Limit = 50,
    filter: Annotated[  # noqa: A002 - the word that people use
        str, Query(max_length=2000, examples=["tag.owner=ann and metric.kid<0.02"])
    ] = "",
) -> JSONResponse:
    """The adapter versions for which the filter holds, the newest first."""
    with space.sessions.read() as session:
        return found(session, filter, after, limit)


@router.get("/{ref}", response_model=Adapter)
def get_adapter(space: Space, ref: Ref) -> JSONResponse:
    """One version: the latest of a task, a version, an alias, or a digest."""
    with space.sessions.read() as session:
        return answer(told(session, [adapters.get(session, ref)])[0])


@router.post("", status_code=201, response_model=Adapter)
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
        return told(session, [record])[0]

    return posting.do(space, new.model_dump(), "/v1/adapters/{ref}", write)


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
            "retired": retired[record.node_id].reason if record.node_id in retired else None,
        }
        for record in records
    ]
