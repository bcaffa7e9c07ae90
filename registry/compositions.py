"""Compositions: adapter versions on one backbone, one a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from affinery.merge_recipe import merges_of
from registry import adapters, backbones, events, exports, names, nodes, refs, renaming, retirement
from registry.digests import digest_of, plain
from registry.errors import RecordInvalid
from registry.models import Adapter, Backbone, Composition, CompositionMember, Node, Task
from registry.records import AdapterRecord, BackboneRecord, CompositionRecord, ExportRecord

Mode = Literal["routed", "merged"]
MODES: tuple[Mode, ...] = ("routed", "merged")


def register(
    session: Session, *, name: str, backbone: str, mode: Mode, recipe: dict[str, Any], members: Sequence[str]
) -> CompositionRecord:
    """Record a composition of these adapters, in this order.

    The same name with the same members and recipe gives the record that stands; anything else under the name
    is its next version. RecordInvalid for adapters of another backbone or two versions of one task: the
    database would refuse them too.
    """
    name = names.checked("composition", name)
    if mode not in MODES:
        raise RecordInvalid("The composition", f"{mode!r} is not one of {', '.join(MODES)}")
    recipe = plain("The composition's recipe", recipe)
    base = backbones.get(session, backbone)
    chosen = [adapters.get(session, ref) for ref in members]
    _check_members(base, chosen)
    _check_recipe(mode, recipe, chosen)
    first = renaming.origins(session, "task")  # a task's new name makes no other composition
    identity = {
        "backbone": base.digest,
        "mode": mode,
        "recipe": recipe,
        # Identity of content alone would confuse two tasks whose adapters happen to be equal.
        "members": [[first.get(m.task, m.task), m.version, m.digest] for m in chosen],
    }
    digest = digest_of(identity)
    nodes.lock_series(session, "composition", name)
    same = session.scalar(
        select(Composition.node_id)
        .join(Node, Node.id == Composition.node_id)
        .where(Composition.name == name, Node.digest == digest)
        .order_by(Composition.version.desc())
        .limit(1)
    )
    if same is not None:
        return by_id(session, same)
    retirement.refuse(session, chosen)
    node_id = _insert(session, name, base, mode, recipe, chosen, digest)
    record = by_id(session, node_id)
    events.append(
        session, "composition.registered", node_id, {"ref": record.ref, "members": list(record.members)}
    )
    return record


def _check_members(backbone: BackboneRecord, members: list[AdapterRecord]) -> None:
    if not members:
        raise RecordInvalid("The composition", "it has no members; name at least one adapter")
    seen: dict[str, AdapterRecord] = {}
    for member in members:
        if member.backbone_id != backbone.node_id:
            raise RecordInvalid(
                "The composition",
                f"{member.ref} belongs to backbone {member.backbone}, not to {backbone.ref}",
            )
        other = seen.setdefault(member.task, member)
        if other is not member:
            raise RecordInvalid(
                "The composition", f"{other.ref} and {member.ref} are of one task; choose one of them"
            )


def _check_recipe(mode: Mode, recipe: dict[str, Any], members: list[AdapterRecord]) -> None:
    """A merged composition says of which members it is the sum, in a name that none of them has."""
    if mode != "merged":
        return
    try:
        merges = merges_of(recipe, len(members))
    except ValueError as error:
        raise RecordInvalid("The composition's recipe", str(error)) from error
    taken = {member.task for member in members}
    for merge in merges:
        if merge.name in taken:
            raise RecordInvalid("The composition's recipe", f"{merge.name!r} is the name of a member's task")


def _insert(
    session: Session,
    name: str,
    backbone: BackboneRecord,
    mode: Mode,
    recipe: dict[str, Any],
    members: list[AdapterRecord],
    digest: str,
) -> int:
    version = nodes.next_version(session, "composition", name)
    parents = [(backbone.node_id, "backbone"), *((member.node_id, "member") for member in members)]
    node = nodes.add(session, "composition", digest, parents)
    session.add(
        Composition(
            node_id=node.id,
            name=name,
            version=version,
            backbone_id=backbone.node_id,
            mode=mode,
            recipe=recipe,
            last_pos=len(members) - 1,
        )
    )
    session.flush()
    rows = [
        {
            "composition_id": node.id,
            "pos": pos,
            "adapter_id": member.node_id,
            "task_id": member.task_id,
            "backbone_id": member.backbone_id,
        }
        for pos, member in enumerate(members)
    ]
    session.execute(insert(CompositionMember), rows)
    return node.id


def get(session: Session, ref: str) -> CompositionRecord:
    """The composition that a reference means: a name (its latest version), name@version or a digest."""
    return by_id(session, refs.find(session, "composition", ref))


def by_id(session: Session, node_id: int) -> CompositionRecord:
    """The composition of a node."""
    (record,) = _load(session, node_id)
    return record


def list_all(session: Session) -> list[CompositionRecord]:
    """Every composition version, oldest first."""
    return _load(session, None)


def _load(session: Session, node_id: int | None) -> list[CompositionRecord]:
    query = (
        select(Composition, Node, Backbone.name, Backbone.version)
        .join(Node, Node.id == Composition.node_id)
        .join(Backbone, Backbone.node_id == Composition.backbone_id)
        .order_by(Composition.node_id)
    )
    members = (
        select(CompositionMember.composition_id, CompositionMember.adapter_id, Task.name, Adapter.version)
        .join(Adapter, Adapter.node_id == CompositionMember.adapter_id)
        .join(Task, Task.node_id == CompositionMember.task_id)
        .order_by(CompositionMember.composition_id, CompositionMember.pos)
    )
    if node_id is not None:
        query = query.where(Composition.node_id == node_id)
        members = members.where(CompositionMember.composition_id == node_id)
    held: dict[int, list[tuple[int, str]]] = {}
    for composition_id, adapter_id, task, version in session.execute(members):
        held.setdefault(composition_id, []).append((adapter_id, f"{task}@{version}"))
    return [
        CompositionRecord(
            node_id=node.id,
            digest=node.digest,
            created_at=node.created_at,
            name=composition.name,
            version=composition.version,
            backbone=f"{backbone}@{backbone_version}",
            backbone_id=composition.backbone_id,
            mode=composition.mode,
            recipe=composition.recipe,
            members=tuple(ref for _, ref in held.get(node.id, [])),
            member_ids=tuple(adapter_id for adapter_id, _ in held.get(node.id, [])),
        )
        for composition, node, backbone, backbone_version in session.execute(query)
    ]


def record_export(
    session: Session,
    *,
    composition: str,
    format: str,  # noqa: A002 - the word that people use
    digest: str,
    path: str,
    size_bytes: int,
) -> ExportRecord:
    """Record a bundle that was written: see exports.record."""
    made_of = get(session, composition)
    return exports.record(
        session, composition=made_of, format=format, digest=digest, path=path, size_bytes=size_bytes
    )
