"""Compositions recorded: adapters whose tasks are drawn side by side, or summed into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from affinery.errors import ConfigInvalid
from affinery.merge_recipe import Merge, Weight, recipe_of
from registry import adapters, compositions, tasks
from registry import names as naming
from registry.records import AdapterRecord, CompositionRecord
from registry.session import Sessions


@dataclass(frozen=True)
class Sum:
    """A task that is the weighted sum of others. weights: by adapter; name: None joins theirs."""

    weights: Mapping[str, Weight]
    name: str | None = None


def compose_tasks(
    sessions: Sessions, name: str, members: Sequence[str], sums: Sequence[Sum] = ()
) -> CompositionRecord:
    """Records a composition: each sample names its task, a member's or a sum's. The same is one version.

    Raises ConfigInvalid where members cannot be summed, and what the registry refuses.
    """
    with sessions.begin() as session:
        named = [*members, *(ref for one in sums for ref in one.weights)]
        records = [adapters.get(session, ref) for ref in named]
        found = list({record.node_id: record for record in records}.values())
        if not found:
            raise ConfigInvalid("members", "there is none; name one adapter or more.")
        merges = [_merge(session, one, found) for one in sums]
        return compositions.register(
            session,
            name=name,
            backbone=found[0].backbone,
            mode="merged" if merges else "routed",
            recipe=recipe_of(merges) if merges else {},
            members=[record.ref for record in found],
        )


def _merge(session: Session, asked: Sum, members: Sequence[AdapterRecord]) -> Merge:
    """A sum by its members' places. Raises ConfigInvalid where their kind or their pictures know no sum."""
    from affinery.adapters import kind as kind_named

    chosen = [adapters.get(session, ref) for ref in asked.weights]
    kinds = sorted({member.kind for member in chosen})
    if len(kinds) > 1:
        raise ConfigInvalid("merge", f"the tasks are of several kinds: {', '.join(kinds)}.")
    kind = kind_named(kinds[0])
    kind.merged_config([kind.config(member.config) for member in chosen])
    for member in chosen:
        task = tasks.by_id(session, member.task_id)
        if task.condition is not None or task.image_size is not None:
            raise ConfigInvalid("merge", f"{task.name!r} has a condition or a size of its own.")
    places = [members.index(member) for member in chosen]
    if len(set(places)) < len(places):
        raise ConfigInvalid("merge", "it names one task twice; give each one weight.")
    name = naming.checked("task", asked.name or "+".join(member.task for member in chosen))
    return Merge(name, tuple(zip(places, asked.weights.values(), strict=True)))
