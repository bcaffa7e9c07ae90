"""What travels with an archive's things and is no part of them: names, tags, notes, aliases, retirements.

What hangs on a thing that is new here comes with it. What stands here already keeps what it has: its tags and
its note; of a history (an alias, a retirement, a name) that begins as the archive's does, the rest is
appended, and one that went another way here stays as it is. So bringing an archive in twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import names, renaming
from registry.digests import plain
from registry.models import Adapter, AliasMove, Event, Note, Renaming, Tag, Task
from registry.refs import CHUNK, RESTORED, RETIRED

KEYS = {"renamings", "tags", "notes", "aliases", "retirements"}
_SINCE_EVER = {"tag": ("tag.set", "tag.changed", "tag.removed"), "note": ("note.set", "note.removed")}


@dataclass(slots=True)
class Carried:
    """What became of it, in words: what was hung here, and what stays here as it was."""

    new: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


# --- out -------------------------------------------------------------------------------------------


def gathered(session: Session, ids: Sequence[int], named: set[tuple[str, str]]) -> dict[str, list[Any]]:
    """What hangs on these nodes, which an archive lists in this order, and how these names came about.

    An alias is carried whole or not at all: one that ever meant a version that is not among them stays
    behind.
    """
    place = {node_id: number for number, node_id in enumerate(ids)}
    found: dict[str, list[Any]] = {key: [] for key in sorted(KEYS)}
    for kind, name in sorted(named):
        for row in renaming.history(session, kind, name):
            assert row.at is not None
            found["renamings"].append([kind, row.origin, row.was, row.name, row.at.isoformat()])
    for start in range(0, len(ids), CHUNK):
        chunk = list(ids[start : start + CHUNK])
        tags = select(Tag).where(Tag.node_id.in_(chunk)).order_by(Tag.node_id, Tag.key)
        found["tags"] += [
            [place[tag.node_id], tag.key, tag.value, tag.changed_at.isoformat()]
            for tag in session.scalars(tags)
        ]
        notes = select(Note).where(Note.node_id.in_(chunk)).order_by(Note.node_id)
        found["notes"] += [
            [place[note.node_id], note.text, note.changed_at.isoformat()] for note in session.scalars(notes)
        ]
        events = select(Event).where(Event.subject.in_(chunk), Event.kind.in_((RETIRED, RESTORED)))
        found["retirements"] += [
            [place[event.subject], event.kind, event.payload.get("reason"), event.at.isoformat()]
            for event in session.scalars(events.order_by(Event.subject, Event.id))
            if event.subject is not None
        ]
        found["aliases"] += _aliases(session, chunk, place)
    return found


def _aliases(session: Session, task_ids: Sequence[int], place: Mapping[int, int]) -> Iterator[list[Any]]:
    moves: dict[tuple[int, str], list[AliasMove]] = {}
    query = select(AliasMove).where(AliasMove.task_id.in_(task_ids))
    for move in session.scalars(query.order_by(AliasMove.task_id, AliasMove.name, AliasMove.number)):
        moves.setdefault((move.task_id, move.name), []).append(move)
    for (task_id, name), history in moves.items():
        if all(move.adapter_id is None or move.adapter_id in place for move in history):
            for move in history:
                meant = None if move.adapter_id is None else place[move.adapter_id]
                yield [place[task_id], name, meant, move.gate, move.at.isoformat()]


# --- in: checked ------------------------------------------------------------------------------------


def checked(record: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, list[tuple[Any, ...]]]:
    """An archive's lists, each value as it must be. kinds: of the archive's nodes. Raises ValueError."""
    found: dict[str, list[tuple[Any, ...]]] = {key: [] for key in KEYS}
    for kind, origin, was, name, at in record["renamings"]:
        if kind not in renaming.KINDS or any(
            names.checked(kind, each) != each for each in (origin, was, name)
        ):
            raise ValueError(f"{name!r:.60} is no name of a {kind!r:.40}")
        found["renamings"].append((kind, origin, was, name, _instant(at)))
    subjects = ("backbone", "dataset", "task", "adapter", "composition", "export")
    for place, key, value, at in record["tags"]:
        _of(kinds, place, subjects)
        found["tags"].append((place, _text(key, 64), _text(value, 500), _instant(at)))
    for place, text, at in record["notes"]:
        _of(kinds, place, subjects)
        found["notes"].append((place, _text(text, 10_000, lines=True), _instant(at)))
    for place, event, reason, at in record["retirements"]:
        _of(kinds, place, ("adapter",))
        if event not in (RETIRED, RESTORED) or (event == RETIRED) != isinstance(reason, str):
            raise ValueError(f"{event!r:.40} is neither a retirement nor a restoration")
        found["retirements"].append((place, event, plain("A reason", reason), _instant(at)))
    for place, name, meant, gate, at in record["aliases"]:
        _of(kinds, place, ("task",))
        if meant is not None:
            _of(kinds, meant, ("adapter",))
        if gate is not None and not isinstance(gate, list):
            raise ValueError("the gate of an alias is no list")
        found["aliases"].append(
            (place, names.checked_alias(name), meant, plain("A gate", gate), _instant(at))
        )
    return found


def _of(kinds: Sequence[str], place: Any, allowed: Sequence[str]) -> None:
    if type(place) is not int or not 0 <= place < len(kinds) or kinds[place] not in allowed:
        raise ValueError(f"{place!r:.40} is the place of no {' or '.join(allowed)}")


def _text(value: Any, most: int, *, lines: bool = False) -> str:
    if not isinstance(value, str) or names.checked_text("A label", value, most, lines=lines) != value:
        raise ValueError(f"{value!r:.60} is no label")
    return value


def _instant(value: Any) -> datetime:
    return datetime.fromisoformat(value).astimezone(UTC)


# --- in: against a registry ---------------------------------------------------------------------------


def name_here(session: Session, kind: str, origin: str) -> str:
    """What that of this kind whose first name was origin is called here; origin where nothing is."""
    return renaming.called_now(session, kind, origin) or origin


def hang(
    session: Session,
    lists: Mapping[str, Sequence[tuple[Any, ...]]],
    here: Mapping[int, int],
    called: Mapping[int, str],
    *,
    write: bool,
) -> Carried:
    """Hangs on what is here what was carried. here: place → node, of a dry run without what is new; called:
    place → reference. write: False only says what would be done.
    """
    done = Carried()
    _rename(session, lists["renamings"], done, write)
    _tag(session, lists["tags"], here, called, done, write)
    _note(session, lists["notes"], here, called, done, write)
    _retire(session, lists["retirements"], here, called, done, write)
    _alias(session, lists["aliases"], here, called, done, write)
    if write:
        session.flush()
    return done


def _rename(session: Session, rows: Sequence[tuple[Any, ...]], done: Carried, write: bool) -> None:
    histories: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    for row in rows:
        histories.setdefault((row[0], row[1]), []).append(row)
    for (kind, origin), coming in histories.items():
        now = name_here(session, kind, origin)
        there = [(each.was, each.name) for each in renaming.history(session, kind, now)]
        rest = _rest(there, [(was, name) for _, _, was, name, _ in coming])
        if rest is None:
            done.kept.append(f"the name of {kind}:{now}")
        for _, _, was, name, at in coming[len(coming) - len(rest or ()) :]:
            done.new.append(f"{kind}:{was} is named {name}")
            if write:
                session.add(Renaming(kind=kind, origin=origin, was=was, name=name, at=at))
                session.flush()


def _tag(
    session: Session,
    rows: Sequence[tuple[Any, ...]],
    here: Mapping[int, int],
    called: Mapping[int, str],
    done: Carried,
    write: bool,
) -> None:
    for place, key, value, at in rows:
        node_id, what = here.get(place), f"tag {key} of {called[place]}"
        held = None if node_id is None else session.get(Tag, (node_id, key))
        if held is not None or (node_id is not None and _was_there(session, "tag", node_id, key)):
            if held is None or held.value != value:
                done.kept.append(what)
            continue
        done.new.append(what)
        if write:
            session.add(Tag(node_id=node_id, key=key, value=value, changed_at=at))


def _note(
    session: Session,
    rows: Sequence[tuple[Any, ...]],
    here: Mapping[int, int],
    called: Mapping[int, str],
    done: Carried,
    write: bool,
) -> None:
    for place, text, at in rows:
        node_id, what = here.get(place), f"note on {called[place]}"
        held = None if node_id is None else session.get(Note, node_id)
        if held is not None or (node_id is not None and _was_there(session, "note", node_id)):
            if held is None or held.text != text:
                done.kept.append(what)
            continue
        done.new.append(what)
        if write:
            session.add(Note(node_id=node_id, text=text, changed_at=at))


def _was_there(session: Session, what: str, node_id: int, key: str | None = None) -> bool:
    """Whether somebody here took it away: then it is not brought back."""
    query = select(Event.payload).where(Event.subject == node_id, Event.kind.in_(_SINCE_EVER[what]))
    return any(key is None or payload.get("key") == key for payload in session.scalars(query))


def _retire(
    session: Session,
    rows: Sequence[tuple[Any, ...]],
    here: Mapping[int, int],
    called: Mapping[int, str],
    done: Carried,
    write: bool,
) -> None:
    histories: dict[int, list[tuple[str, str | None, datetime]]] = {}
    for place, event, reason, at in rows:
        histories.setdefault(place, []).append((event, reason, at))
    for place, coming in histories.items():
        node_id = here.get(place)
        query = select(Event).where(Event.subject == node_id, Event.kind.in_((RETIRED, RESTORED)))
        there = [] if node_id is None else list(session.scalars(query.order_by(Event.id)))
        rest = _rest(
            [(event.kind, event.payload.get("reason")) for event in there],
            [(kind, why) for kind, why, _ in coming],
        )
        if rest is None:
            done.kept.append(f"retirement of {called[place]}")
        for kind, reason, at in coming[len(coming) - len(rest or ()) :]:
            done.new.append(f"{kind.removeprefix('adapter.')} {called[place]}")
            payload = {"ref": called[place].partition(":")[2]} | (
                {} if reason is None else {"reason": reason}
            )
            if write:
                session.add(Event(at=at, kind=kind, subject=node_id, payload=payload))


def _alias(
    session: Session,
    rows: Sequence[tuple[Any, ...]],
    here: Mapping[int, int],
    called: Mapping[int, str],
    done: Carried,
    write: bool,
) -> None:
    histories: dict[tuple[int, str], list[tuple[int | None, Any, datetime]]] = {}
    for place, name, meant, gate, at in rows:
        histories.setdefault((place, name), []).append((meant, gate, at))
    for (place, name), coming in histories.items():
        task_id = here.get(place)
        what = f"alias {called[place].partition(':')[2]}@{name}"
        query = select(AliasMove.adapter_id).where(AliasMove.task_id == task_id, AliasMove.name == name)
        there = [] if task_id is None else list(session.scalars(query.order_by(AliasMove.number)))
        # What is not here yet is known by its place, which is no node.
        rest = _rest(
            there, [None if meant is None else here.get(meant, -1 - meant) for meant, _, _ in coming]
        )
        if rest is None:
            done.kept.append(what)
        elif rest:
            done.new.append(what)
        if rest and write:
            task = session.get_one(Task, task_id)
            for number, (meant, gate, at) in enumerate(coming[len(there) :], start=len(there) + 1):
                adapter_id = None if meant is None else session.get_one(Adapter, here[meant]).node_id
                session.add(
                    AliasMove(
                        task_id=task.node_id,
                        name=name,
                        number=number,
                        backbone_id=task.backbone_id,
                        adapter_id=adapter_id,
                        gate=gate,
                        at=at,
                    )
                )
                session.flush()


def _rest(there: Sequence[Any], coming: Sequence[Any]) -> Sequence[Any] | None:
    """What is to be appended; nothing where more happened here already, None where it went another way."""
    common = min(len(there), len(coming))
    return None if list(there[:common]) != list(coming[:common]) else coming[common:]
