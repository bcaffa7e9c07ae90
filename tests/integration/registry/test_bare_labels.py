"""What the database refuses of aliases, tags, notes and metrics, and remembers, whoever writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bare_database import NOW, Bare, adapter_of, node_of


@pytest.fixture
def bare(recorded_url: str) -> Iterator[Bare]:
    """A bare connection to a registry in which everything is recorded at least once."""
    bare = Bare(recorded_url)
    yield bare
    bare.connection.close()


def move(bare: Bare, number: int, adapter: str, task: str = "digits", backbone: str = "dit") -> str:
    """A statement that moves the alias champion of a task."""
    owner = bare.connection.execute(f"SELECT node_id FROM task WHERE name = '{task}'").fetchone()
    owner = owner[0] if owner else 99999
    base = node_of(bare, "backbone", f"name = '{backbone}'")
    row = f"VALUES ({owner}, 'champion', {number}, {base}, {adapter}, NULL, '{NOW}')"
    return f"INSERT INTO alias_move (task_id, name, number, backbone_id, adapter_id, gate, at) {row}"


def happened(bare: Bare, kind: str) -> list[Any]:
    """(subject, payload) of the events of a kind."""
    rows = bare.connection.execute(f"SELECT subject, payload FROM event WHERE kind = '{kind}' ORDER BY id")
    return [(row[0], json.loads(row[1]) if bare.sqlite else row[1]) for row in rows.fetchall()]


def test_an_alias_cannot_point_at_nothing_at_another_task_or_at_another_backbone(bare: Bare) -> None:
    first, faces = adapter_of(bare, "digits"), adapter_of(bare, "faces")
    dataset = node_of(bare, "dataset", "name = 'digits'")
    for adapter in ("99999", str(faces), str(dataset)):
        bare.refused(move(bare, 1, adapter))
    bare.refused(move(bare, 1, str(first), backbone="unet"))
    bare.refused(move(bare, 1, str(first), task="nowhere"))
    bare.refused(move(bare, 1, "NULL", backbone="unet"))
    bare.do(move(bare, 1, str(first)))


def test_the_moves_of_an_alias_are_counted_and_only_what_is_set_is_taken_away(bare: Bare) -> None:
    first, second = str(adapter_of(bare, "digits")), str(adapter_of(bare, "digits", 2))
    bare.refused(move(bare, 1, "NULL"), words="points at nothing")
    for number in (0, 2, -1):
        bare.refused(move(bare, number, first))
    bare.do(move(bare, 1, first))
    bare.refused(move(bare, 1, second), words="(?i)unique|counted")
    bare.do(move(bare, 2, second), move(bare, 3, "NULL"))
    bare.refused(move(bare, 4, "NULL"), words="points at nothing")
    bare.do(move(bare, 4, first))


def test_the_history_of_an_alias_cannot_be_edited_and_every_move_is_an_event(bare: Bare) -> None:
    first, second = adapter_of(bare, "digits"), adapter_of(bare, "digits", 2)
    bare.do(move(bare, 1, str(first)), move(bare, 2, str(second)), move(bare, 3, "NULL"))
    bare.refused("UPDATE alias_move SET adapter_id = adapter_id", words="never changed")
    bare.refused("DELETE FROM alias_move", words="never deleted")
    if bare.sqlite:
        bare.refused("INSERT OR REPLACE INTO alias_move SELECT * FROM alias_move WHERE number = 1")
    else:
        bare.refused("TRUNCATE alias_move", words="never deleted")
    task = node_of(bare, "task", "name = 'digits'")
    assert happened(bare, "alias.set")[-2:] == [
        (first, {"alias": "champion", "number": 1, "ref": "digits@1", "was": None, "gate": None}),
        (second, {"alias": "champion", "number": 2, "ref": "digits@2", "was": "digits@1", "gate": None}),
    ]
    assert happened(bare, "alias.removed")[-1] == (
        task,
        {"alias": "champion", "number": 3, "ref": None, "was": "digits@2", "gate": None},
    )


def test_every_change_of_a_tag_or_a_note_is_an_event_even_by_plain_sql(bare: Bare) -> None:
    node = node_of(bare, "dataset", "name = 'digits'")
    tag = f"INSERT INTO tag (node_id, key, value, changed_at) VALUES ({node}, 'owner', 'ann', '{NOW}')"
    note = f"INSERT INTO note (node_id, text, changed_at) VALUES ({node}, 'as ''found''', '{NOW}')"
    bare.do(tag, note)
    bare.do("UPDATE tag SET value = 'bob'", "UPDATE tag SET value = 'bob'", "UPDATE note SET text = 'mended'")
    bare.do(f"DELETE FROM tag WHERE node_id = {node}", f"DELETE FROM note WHERE node_id = {node}")
    assert happened(bare, "tag.set")[-1] == (node, {"key": "owner", "value": "ann"})
    assert happened(bare, "tag.changed") == [(node, {"key": "owner", "value": "bob", "was": "ann"})]
    assert happened(bare, "tag.removed") == [(node, {"key": "owner", "was": "bob"})]
    assert happened(bare, "note.set")[-1] == (node, {"text": "as 'found'"})
    assert happened(bare, "note.changed") == [(node, {"text": "mended", "was": "as 'found'"})]
    assert happened(bare, "note.removed") == [(node, {"was": "mended"})]


def test_labels_stand_on_what_people_name_and_do_not_wander(bare: Bare) -> None:
    run = node_of(bare, "run", "1 = 1")
    node = node_of(bare, "dataset", "name = 'digits'")
    other = node_of(bare, "dataset", "name = 'faces'")
    still = "stays where it is|never changes its place"
    for table, rest in (("tag", "'k', 'v'"), ("note", "'text'")):
        for wrong in (run, 99999):
            bare.refused(f"INSERT INTO {table} VALUES ({wrong}, {rest}, '{NOW}')")
        bare.do(f"INSERT INTO {table} VALUES ({node}, {rest}, '{NOW}')")
        bare.refused(f"UPDATE {table} SET node_id = {other}", words=still)
        if bare.sqlite:
            bare.refused(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")
        else:
            bare.refused(f"TRUNCATE {table}", words="never deleted")
    bare.refused("UPDATE tag SET key = 'other'", words=still)
    bare.refused("UPDATE tag SET value = ''")
    bare.refused(f"INSERT INTO tag VALUES ({other}, 'k', '{'x' * 501}', '{NOW}')")
    bare.refused(f"INSERT INTO note VALUES ({other}, '', '{NOW}')")


def test_a_metric_is_what_the_adapter_says_and_cannot_be_invented(bare: Bare) -> None:
    adapter = adapter_of(bare, "digits")
    assert bare.one(f"SELECT value FROM metric WHERE adapter_id = {adapter} AND name = 'loss'") == 0.25
    for values in (f"{adapter}, 'recognition', 1.0", f"{adapter}, 'loss', 0.1", "99999, 'loss', 0.25"):
        bare.refused(f"INSERT INTO metric (adapter_id, name, value) VALUES ({values})")
    bare.refused("UPDATE metric SET value = 0", words="never changed")
    bare.refused("DELETE FROM metric", words="never deleted")
