"""Jobs that train nothing: what each is asked to do, checked when it is scheduled and again when it is done.

What a job names is pinned to what it means when it is scheduled: no new version, alias that moves or new name
changes it. What a job that it waits for may still make is pinned when it is begun instead.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from affinery.errors import UnknownName
from affinery.merge_recipe import merges_of
from orchestration import queue
from orchestration.errors import JobInvalid, KeyTaken, NothingLearnt, OtherClasses
from orchestration.jobs import JobRecord, Order
from orchestration.scheduling import Scheduled
from orchestration.upgrades import changed_classes
from registry import adapters, backbones, compositions, datasets, names, refs, search, tasks, verification
from registry.errors import RefInvalid, Renamed
from registry.records import AdapterRecord, DatasetRecord
from registry.session import Sessions

Name = Annotated[str, Field(min_length=1)]
Samples = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**62)]
Steps = Annotated[int, Field(ge=1, le=100_000)]


def _spelt(asked: str) -> str:
    from trainers.evaluation.spelling import spelt

    try:
        spelt(asked)
    except UnknownName as error:
        raise PydanticCustomError("extractor", "{told}", {"told": str(error)}) from error
    return asked


def _written(asked: str) -> str:
    from orchestration.exports import formats

    if asked not in formats():
        told = UnknownName("export format", asked, formats())
        raise PydanticCustomError("format", "{told}", {"told": str(told)})
    return asked


Looks = Annotated[str, AfterValidator(_spelt)]
Format = Annotated[str, AfterValidator(_written)]


class Chore(BaseModel, ABC):
    """The payload of a job. KIND: of which kind that is; NAMES: what its references are to, by field."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    KIND: ClassVar[str]
    NAMES: ClassVar[Mapping[str, str | None]]

    @abstractmethod
    def check(self, session: Session) -> int | None:
        """Looks up what is named. → the node of the backbone whose limits hold for it. Raises NotFound …"""

    def pinned(self, session: Session) -> Self:
        """The same of what its names mean now, whatever is renamed or moved until it is done."""
        return self._with(lambda kind, ref: refs.fixed(_meant(session, kind, ref)))

    def told(self, session: Session) -> Self:
        """The same as people know it now: what was pinned, by its present name."""
        return self._with(lambda _, ref: _called(session, ref))

    def _with(self, change: Callable[[str | None, str], str]) -> Self:
        changed: dict[str, Any] = {}
        for field, kind in self.NAMES.items():
            named = getattr(self, field)
            if isinstance(named, list):
                changed[field] = [change(kind, ref) for ref in named]
            elif named is not None:
                changed[field] = change(kind, named)
        return self.model_copy(update=changed)


class Evaluation(Chore):
    """adapters: by name (the latest version), name@version, alias or digest.

    samples, steps, guidance, extractor: None for the usual. extractor: as trainers/evaluation/spelling.py
    reads it. condition_model: the folder of a model that draws the condition from samples. against: the
    dataset version whose images all are measured against; None for each one's own.
    """

    KIND = "evaluate"
    NAMES = {"adapters": "adapter", "against": "dataset"}
    adapters: Annotated[list[Name], Field(min_length=1)]
    against: Name | None = None
    samples: Samples | None = None
    seed: Seed = 0
    steps: Steps | None = None
    guidance: Annotated[float, Field(ge=0, lt=1e6)] | None = None
    extractor: Looks | None = None
    condition_model: Name | None = None

    def check(self, session: Session) -> int | None:
        named = [adapters.get(session, ref) for ref in self.adapters]
        for each in named:
            self.reference(session, each)
        found = {each.backbone_id for each in named}
        return found.pop() if len(found) == 1 else None

    def reference(self, session: Session, adapter: AdapterRecord) -> DatasetRecord:
        """What an adapter is to be measured against. Raises NotFound, or OtherClasses."""
        if self.against is None:
            return datasets.by_id(session, adapter.dataset_id)
        found = datasets.get(session, self.against)
        if changed := changed_classes(tasks.by_id(session, adapter.task_id).classes, found.classes):
            raise OtherClasses(adapter.ref, found.ref, changed)
        return found


class Retention(Chore):
    """Every task of a backbone, after every addition to it. The rest as `Evaluation` says."""

    KIND = "retention"
    NAMES = {"backbone": "backbone"}
    backbone: Name
    samples: Samples | None = None
    seed: Seed = 0
    steps: Steps | None = None
    extractor: Looks | None = None

    def check(self, session: Session) -> int | None:
        found = backbones.get(session, self.backbone)
        if not search.search(session, f"backbone={found.digest}", limit=1).adapters:
            raise NothingLearnt(found.ref)
        return found.node_id


class Export(Chore):
    """out: the folder, an absolute path; None for <workspace>/exports/…. The rest as `exports.Asked` says."""

    KIND = "export"
    NAMES = {"composition": "composition", "task": "task"}
    composition: Name
    format: Format = "bundle"
    out: Name | None = None
    task: Name | None = None
    unverified: bool = False
    backbone: bool = True

    def check(self, session: Session) -> int | None:
        return compositions.get(session, self.composition).backbone_id

    def pinned(self, session: Session) -> Export:
        if self.task is None or not self._is_sum(session):
            return super().pinned(session)
        return self.model_copy(update={"task": None}).pinned(session).model_copy(update={"task": self.task})

    def _is_sum(self, session: Session) -> bool:
        """Whether the task is one of the composition's own sums, whose names never change."""
        whole = compositions.by_id(session, _meant(session, "composition", self.composition))
        sums = merges_of(whole.recipe, len(whole.members)) if whole.mode == "merged" else ()
        return any(each.name == self.task for each in sums)


class Rebase(Chore):
    """only: the tasks that are meant, all where none is named; recipe: settings in place of those before."""

    KIND = "rebase"
    NAMES = {"old": "backbone", "new": "backbone", "only": "task"}
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
    NAMES = {"ref": None}
    ref: Name | None = None

    def check(self, session: Session) -> int | None:
        if self.ref is not None:
            refs.resolve(session, self.ref, prefer=verification.PREFERRED)
        return None


def _meant(session: Session, kind: str | None, ref: str) -> int:
    """The node that a reference means, also by a name of before: that is never given to anything else."""
    try:
        return refs.resolve(session, ref, verification.PREFERRED, kind).node_id
    except Renamed as changed:
        return refs.resolve(session, changed.args[2], verification.PREFERRED, kind).node_id


def _called(session: Session, ref: str) -> str:
    try:
        node_id = names.parse(ref).node_id
    except RefInvalid:  # the database takes any text from whoever writes rows
        return ref
    found = None if node_id is None else refs.describe(session, [node_id]).get(node_id)
    return ref if found is None else found.full_ref


Asked = TypeVar("Asked", bound=Chore)


def read(chore: type[Asked], payload: Mapping[str, Any]) -> Asked:
    """What a job is asked to do. Raises JobInvalid, which says every field that is wrong."""
    try:
        return chore.model_validate(dict(payload))
    except ValidationError as error:
        found = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise JobInvalid(chore.KIND, "; ".join(found)) from error


def kinds() -> dict[str, type[Chore]]:
    """What is asked of a job, by its kind."""
    return {each.KIND: each for each in Chore.__subclasses__()}


def begun(sessions: Sessions, chore: type[Asked], payload: Mapping[str, Any]) -> tuple[Asked, Asked]:
    """What a job is to do now that it is begun: pinned, and as people know it. Raises as read and check."""
    asked = read(chore, payload)
    with sessions.read() as session:
        pinned = asked.pinned(session)
        return pinned, pinned.told(session)


def told(session: Session, kind: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload of a job with the present names of what it is pinned to; of a training, as it is."""
    chore = kinds().get(kind)
    if chore is None:
        return dict(payload)
    try:
        return read(chore, payload).told(session).model_dump(exclude_defaults=True)
    except JobInvalid:
        return dict(payload)


def named(session: Session, kind: str, payload: Mapping[str, Any]) -> list[str]:
    """What a job that trains nothing is of, as people know it: kind:name, or as it was written."""
    chore, asked = kinds().get(kind), told(session, kind, payload)
    found = [asked.get(field) for field in chore.NAMES] if chore is not None else []
    return [ref for each in found if each for ref in (each if isinstance(each, list) else [each])]


def schedule(
    sessions: Sessions, chore: Chore, *, after: Sequence[str] = (), key: str | None = None, **job: Any
) -> Scheduled:
    """Queues it. job: further fields of an Order. Raises what `check` raises; then nothing was written."""
    with sessions.begin() as session:
        known = queue.lock_keys(session, [] if key is None else [key])
        if key is not None and key in known:
            _check_same(session, key, chore, known[key])
            return Scheduled(known[key], False)
        backbone = None if after else chore.check(session)
        # What its needs are still to make cannot be looked up yet: then it stays as it was written.
        payload = (chore if after else chore.pinned(session)).model_dump(exclude_defaults=True)
        order = Order(
            str(uuid.uuid4()), chore.KIND, (), payload, tuple(after), key, backbone_id=backbone, **job
        )
        return Scheduled(queue.enqueue_all(session, [order])[0], True)


def _check_same(session: Session, key: str, chore: Chore, there: JobRecord) -> None:
    """Raises KeyTaken where a key stands for another job: nothing would become of this one."""
    same = there.kind == chore.KIND
    if same:
        was = read(type(chore), there.payload)
        same = was == chore or was.told(session) == chore.told(session) or was == chore.pinned(session)
    if not same:
        raise KeyTaken(key, there.number, there.tasks or (there.kind,), (chore.KIND,))
