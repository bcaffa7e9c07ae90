"""Jobs that train nothing: what each is asked to do, checked when it is scheduled and again when it is done.

What a job names may be made by one that it waits for, so `schedule` looks names up only where there is none.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.orm import Session

from orchestration import queue
from orchestration.additions import Scheduled
from orchestration.errors import JobInvalid
from orchestration.jobs import Order
from registry import adapters, backbones, compositions, refs, tasks, verification
from registry.errors import AmbiguousRef
from registry.records import AdapterRecord
from registry.session import Sessions

Name = Annotated[str, Field(min_length=1)]


class Chore(BaseModel):
    """The payload of a job. KIND: of which kind that is."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    KIND: ClassVar[str]

    def check(self, session: Session) -> int | None:
        """Looks up what is named. → the node of the backbone whose limits hold for it. Raises NotFound …"""
        raise NotImplementedError

    def pinned(self, session: Session) -> Chore:
        """The same of what its names mean now, whatever is renamed or moved until it is done."""
        del session
        return self


class Evaluation(Chore):
    """adapters: by name (the latest version), name@version, alias or digest.

    samples, steps, guidance, extractor: None for the usual. extractor: as trainers/evaluation/extractors.py
    spells it. condition_model: the folder of a model that draws the condition from samples.
    """

    KIND = "evaluate"
    adapters: Annotated[list[Name], Field(min_length=1)]
    samples: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    steps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    guidance: Annotated[float, Field(ge=0, lt=1e6)] | None = None
    extractor: Name | None = None
    condition_model: Name | None = None

    def check(self, session: Session) -> int | None:
        found = {adapters.get(session, ref).backbone_id for ref in self.adapters}
        return found.pop() if len(found) == 1 else None

    def pinned(self, session: Session) -> Evaluation:
        meant = [_pinned(session, adapters.get(session, ref)) for ref in self.adapters]
        return self.model_copy(update={"adapters": meant})


class Export(Chore):
    """out: the folder, an absolute path; None for <workspace>/exports/…. The rest as `exports.Asked` says."""

    KIND = "export"
    composition: Name
    format: Name = "bundle"
    out: Name | None = None
    task: Name | None = None
    unverified: bool = False
    backbone: bool = True

    def check(self, session: Session) -> int | None:
        return compositions.get(session, self.composition).backbone_id


class Rebase(Chore):
    """only: the tasks that are meant, all where none is named; recipe: settings in place of those before."""

    KIND = "rebase"
    old: Name
    new: Name
    only: list[Name] = Field(default_factory=list)
    recipe: dict[str, Any] = Field(default_factory=dict)
    warm: bool = True

    def check(self, session: Session) -> int | None:
        backbones.get(session, self.old)
        for name in self.only:
            tasks.get(session, name)
        return backbones.get(session, self.new).node_id


class Verification(Chore):
    """ref: one thing and all that it was made from; None for everything."""

    KIND = "verify"
    ref: Name | None = None

    def check(self, session: Session) -> int | None:
        if self.ref is not None:
            refs.resolve(session, self.ref, prefer=verification.PREFERRED)
        return None


def _pinned(session: Session, adapter: AdapterRecord) -> str:
    """Its digest; its version where others have the same file: a name is never given to something else."""
    try:
        refs.find(session, "adapter", adapter.digest)
    except AmbiguousRef:
        return f"adapter:{adapter.ref}"
    return adapter.digest


Asked = TypeVar("Asked", bound=Chore)


def read(chore: type[Asked], payload: Mapping[str, Any]) -> Asked:
    """What a job is asked to do. Raises JobInvalid, which says every field that is wrong."""
    try:
        return chore.model_validate(dict(payload))
    except ValidationError as error:
        found = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise JobInvalid(chore.KIND, "; ".join(found)) from error


def schedule(
    sessions: Sessions, chore: Chore, *, after: Sequence[str] = (), key: str | None = None, **job: Any
) -> Scheduled:
    """Queues it. job: further fields of an Order. Raises what `check` raises; then nothing was written."""
    with sessions.begin() as session:
        known = queue.lock_keys(session, [] if key is None else [key])
        if key in known:
            return Scheduled(known[key], False)
        backbone = None if after else chore.check(session)
        # What its needs are still to make cannot be looked up yet: then it stays as it was written.
        payload = (chore if after else chore.pinned(session)).model_dump(exclude_defaults=True)
        order = Order(
            str(uuid.uuid4()), chore.KIND, (), payload, tuple(after), key, backbone_id=backbone, **job
        )
        return Scheduled(queue.enqueue_all(session, [order])[0], True)
