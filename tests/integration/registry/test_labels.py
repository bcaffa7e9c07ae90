"""Aliases, tags and notes: what moves on a record that does not; the same from the command line."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner

from affinery_app.cli.commands import command_line
from registry import adapters, aliases, errors, events, metrics, notes, refs, tags
from registry.session import Sessions
from tests import registry_world as world


@pytest.fixture
def told(ledger: Sessions) -> Sessions:
    """Two versions of digits, the second better than the first, and one of faces without metrics."""
    with ledger.begin() as session:
        world.backbone(session)
        world.learnt(session, "digits", 1, metrics={"recognition": {"share": 0.5, "samples": 200}})
        world.learnt(session, "digits", 2, metrics={"recognition": {"share": 0.9}, "kid": 0.02})
        world.learnt(session, "faces", 1, metrics={})
    return ledger


# --- aliases ---------------------------------------------------------------------------------------


def test_an_alias_moves_and_its_history_says_where_it_was(told: Sessions) -> None:
    with told.begin() as session:
        assert aliases.point(session, "champion", "digits@1").number == 1
        assert aliases.point(session, "champion", "digits@2").adapter == "digits@2"
        assert aliases.point(session, "champion", "digits@2").number == 2
        assert aliases.point(session, "champion", "faces").ref == "faces@champion"
        assert aliases.remove(session, "digits@champion").adapter is None
        assert aliases.point(session, "candidate", "digits@1").number == 1
    with told.read() as session:
        assert [(a.ref, a.adapter) for a in aliases.list_all(session)] == [
            ("digits@candidate", "digits@1"),
            ("faces@champion", "faces@1"),
        ]
        assert [a.ref for a in aliases.list_all(session, task="digits")] == ["digits@candidate"]
        assert [move.adapter for move in aliases.history(session, "digits@champion")] == [
            *(None, "digits@2", "digits@1")
        ]
        happened = [
            (event.kind, event.payload["ref"], event.payload["was"])
            for event in events.list_after(session)
            if event.kind.startswith("alias.") and event.payload["number"] > 1
        ]
        assert happened == [
            ("alias.set", "digits@2", "digits@1"),
            ("alias.removed", None, "digits@2"),
        ]


def test_an_alias_moves_only_from_where_it_is_expected(told: Sessions) -> None:
    with told.begin() as session:
        aliases.point(session, "champion", "digits@1", expect="none")
        aliases.point(session, "champion", "digits@2", expect="1")
    for expect in ("none", "1", "digits@1"):
        with pytest.raises(errors.AliasMoved, match="means digits@2 now"), told.begin() as session:
            aliases.point(session, "champion", "digits@1", expect=expect)
        with pytest.raises(errors.AliasMoved), told.begin() as session:
            aliases.remove(session, "digits@champion", expect=expect)
    with told.begin() as session:
        aliases.remove(session, "digits@champion", expect="digits@champion")
        aliases.point(session, "champion", "digits@1", expect="none")
        assert aliases.history(session, "digits@champion")[0].number == 4


def test_of_many_who_move_an_alias_from_the_same_place_one_succeeds(told: Sessions) -> None:
    with told.begin() as session:
        aliases.point(session, "champion", "digits@1")
    outcomes: list[str] = []

    def move() -> None:
        try:
            with told.begin() as session:
                aliases.point(session, "champion", "digits@2", expect="1")
            outcomes.append("moved")
        except errors.AliasMoved:
            outcomes.append("refused")

    threads = [threading.Thread(target=move) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["moved"] + ["refused"] * 5
    with told.read() as session:
        assert [move.number for move in aliases.history(session, "digits@champion")] == [2, 1]


@pytest.mark.parametrize(
    ("ref", "required", "reason"),
    [
        ("digits@1", "recognition>=0.8", "has recognition 0.5"),
        ("digits@1", "recognition.share > 0.5", "has recognition.share 0.5"),
        ("digits@2", "kid<0.02", "has kid 0.02"),
        ("digits@1", "kid<0.02", "has no metric 'kid'"),
        ("faces", "recognition>=0", "has no metric"),
    ],
)
def test_a_gate_keeps_an_alias_from_what_is_not_good_enough(
    told: Sessions, ref: str, required: str, reason: str
) -> None:
    with pytest.raises(errors.GateClosed, match=reason), told.begin() as session:
        aliases.point(session, "champion", ref, require=[metrics.requirement(required)])
    with told.read() as session:
        assert aliases.list_all(session) == []


def test_what_a_gate_let_through_stands_in_the_history(told: Sessions) -> None:
    with told.begin() as session:
        required = [metrics.requirement("recognition>=0.8"), metrics.requirement("kid<=0.02")]
        aliases.point(session, "champion", "digits", require=required)
    with told.read() as session:
        (move,) = aliases.history(session, "digits@champion")
        assert move.gate[0] == {
            "metric": "recognition",
            "comparison": ">=",
            "bound": 0.8,
            "found": 0.9,
        }
        assert json.dumps(move.to_json()["gate"])


@pytest.mark.parametrize(
    "text", ["recognition", ">=1", "a>=", "a>=x", "a>=nan", "a>=inf", "a>=1_0", "a>=１", "a==1", "a b>=1", ""]
)
def test_a_requirement_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(errors.RequirementInvalid):
        metrics.requirement(text)


def test_an_alias_of_nothing_is_refused(told: Sessions) -> None:
    for ref in ("digits@9", "nothing", "untrained"):
        with pytest.raises(errors.NotFound), told.begin() as session:
            aliases.point(session, "champion", ref)
    with pytest.raises(errors.NameInvalid), told.begin() as session:
        aliases.point(session, "v2", "digits")
    with told.begin() as session:
        aliases.point(session, "champion", "digits")
        for action in (aliases.history, aliases.remove):
            with pytest.raises(errors.NotFound, match="Did you mean 'digits@champion'"):
                action(session, "digits@champio")
            with pytest.raises(errors.RefInvalid, match="names no alias"):
                action(session, "digits@1")


# --- tags and notes --------------------------------------------------------------------------------


def test_tags_change_and_every_change_is_an_event(told: Sessions) -> None:
    with told.begin() as session:
        assert tags.put(session, "digits@1", {"owner": "ann", "stage": "try"}) == {
            "owner": "ann",
            "stage": "try",
        }
        tags.put(session, "digits@1", {"owner": "ann"})
        tags.put(session, "digits@1", {"owner": "bob"})
        assert tags.remove(session, "digits@1", ["stage"]) == {"owner": "bob"}
        for ref in ("backbone:dit", "dataset:digits", "task:digits"):
            assert tags.put(session, ref, {"owner": ref}) == {"owner": ref}
    with told.read() as session:
        adapter = refs.find(session, "adapter", "digits@1")
        happened = [
            (event.kind, event.payload)
            for event in events.list_after(session, subject=adapter)
            if event.kind.startswith("tag.")
        ]
        assert happened == [
            ("tag.set", {"key": "owner", "value": "ann"}),
            ("tag.set", {"key": "stage", "value": "try"}),
            ("tag.changed", {"key": "owner", "value": "bob", "was": "ann"}),
            ("tag.removed", {"key": "stage", "was": "try"}),
        ]


def test_a_tag_that_is_not_there_takes_nothing_with_it(told: Sessions) -> None:
    with told.begin() as session:
        tags.put(session, "digits", {"owner": "ann"})
    with pytest.raises(errors.NotFound, match="tag 'ownr'"), told.begin() as session:
        tags.remove(session, "digits", ["owner", "ownr"])
    with told.read() as session:
        assert tags.of(session, refs.find(session, "adapter", "digits")) == {"owner": "ann"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("", "x"),
        ("1a", "x"),
        ("a b", "x"),
        ("a=b", "x"),
        ("x" * 65, "x"),
        ("k", ""),
        ("k", " "),
        ("k", "a\x1b[2J"),
        *(("k", "a\nb"), ("k", "x" * 501), ("k", "a\x00b"), ("k", "\ud800")),
    ],
)
def test_a_hostile_tag_is_refused(told: Sessions, key: str, value: str) -> None:
    with pytest.raises(errors.RecordInvalid), told.begin() as session:
        tags.put(session, "digits", {key: value})


def test_a_note_is_one_text_that_may_change(told: Sessions) -> None:
    with told.begin() as session:
        assert notes.read(session, "digits").text is None
        notes.write(session, "digits", "first\nthought ✓ 'quoted' -- ;")
        notes.write(session, "digits", "second thought")
        assert notes.read(session, "digits@2").text == "second thought"
        assert notes.read(session, "digits@1").text is None
        assert notes.remove(session, "digits").text is None
        for text in ("", "x" * 10_001, "\x1b[2J"):
            with pytest.raises(errors.RecordInvalid):
                notes.write(session, "digits", text)
    with told.read() as session:
        adapter = refs.find(session, "adapter", "digits")
        kinds = [each.kind for each in events.list_after(session, subject=adapter)]
        assert kinds[-3:] == ["note.set", "note.changed", "note.removed"]


def test_a_run_has_neither_tag_nor_note(told: Sessions) -> None:
    with told.begin() as session:
        adapter = refs.find(session, "adapter", "digits")
        run = refs.describe(session, [adapters.by_id(session, adapter).run_id or 0])
        (node,) = run.values()
        with pytest.raises(errors.RecordInvalid, match="only backbone, dataset"):
            tags.put(session, f"run:{node.digest}", {"a": "b"})


# --- the command line ------------------------------------------------------------------------------


class Shell:
    """The command line on a registry; what it prints as JSON."""

    def __init__(self, folder: Path, url: str) -> None:
        (folder / "affinery.toml").write_text(f'schema = 1\nregistry_url = "{url}"\n')
        self.folder = str(folder)

    def run(self, *words: str) -> Any:
        """What a command that succeeds prints, with --json."""
        done = CliRunner().invoke(
            command_line(), [*words, "--workspace", self.folder, "--json"], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def read(self, *words: str) -> str:
        """What a command that succeeds prints for people."""
        done = CliRunner().invoke(
            command_line(), [*words, "--workspace", self.folder], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        return done.stdout


@pytest.fixture
def shell(told: Sessions, tmp_path: Path, registry_url: str) -> Shell:
    """The command line on what was told."""
    return Shell(tmp_path, make_url(registry_url).render_as_string(hide_password=False))


def test_aliases_from_the_command_line(shell: Shell) -> None:
    made = shell.run(
        "alias", "set", "champion", "digits", "--require", "recognition>=0.8", "--expect", "none"
    )
    assert (made["ref"], made["adapter"], made["number"]) == ("digits@champion", "digits@2", 1)
    assert shell.run("adapter", "show", "digits@champion")["ref"] == "digits@2"
    assert "digits@2" in shell.read("alias", "list")
    assert "recognition>=0.8 (0.9)" in " ".join(shell.read("alias", "history", "digits@champion").split())
    assert shell.run("alias", "list", "--task", "faces") == []
    assert shell.run("alias", "remove", "digits@champion")["adapter"] is None
    assert [move["number"] for move in shell.run("alias", "history", "digits@champion")] == [2, 1]
    with pytest.raises(errors.AliasMoved):
        shell.run("alias", "set", "champion", "digits@1", "--expect", "2")


def test_tags_and_notes_from_the_command_line(shell: Shell) -> None:
    assert shell.run("tag", "dataset:digits", "owner=ann", "source=a=b") == {
        "ref": "dataset:digits@1",
        "tags": {"owner": "ann", "source": "a=b"},
    }
    assert shell.run("tag", "dataset:digits", "owner=bob", "--remove", "source")["tags"] == {"owner": "bob"}
    assert "owner  bob" in shell.read("tag", "dataset:digits")
    assert shell.run("note", "digits@1", "two\nlines")["text"] == "two\nlines"
    assert shell.read("note", "digits@1") == "two\nlines\n"
    assert shell.run("note", "digits@1", "--remove")["text"] is None
