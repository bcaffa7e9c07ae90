"""Whatever is changed round our own code, in the database or in the store, is found and named."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner

from affinery.adapters import files as adapter_files
from affinery.backbones import files as backbone_files
from affinery_app.cli.commands import command_line
from registry import adapters, backbones, contents, errors
from registry.findings import Finding, Report
from registry.session import connect, sessions
from registry.storage.local import LocalStore
from registry.verification import verify
from tests import registry_world as world
from tests.stored_world import Files

NOW = "2026-01-02 12:00:00+00:00"


class Vandal:
    """A connection that takes the guards away before it writes, and puts none of its conscience in the way.

    On PostgreSQL a replica's session role silences triggers and references; on SQLite the triggers are taken
    out and put back.
    """

    def __init__(self, url: str) -> None:
        self.sqlite = url.startswith("sqlite")
        self.connection: Any = (
            sqlite3.connect(str(make_url(url).database), isolation_level=None)
            if self.sqlite
            else psycopg.connect(url, autocommit=True)
        )

    def do(self, *statements: str) -> None:
        """Execute without triggers and references."""
        if not self.sqlite:
            for statement in ("SET session_replication_role = replica", *statements):
                self.connection.execute(statement)
            return
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        triggers = self.connection.execute(query).fetchall()
        for name, _ in triggers:
            self.connection.execute(f"DROP TRIGGER {name}")
        self.connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            self.connection.execute(statement)
        for _, made in triggers:
            self.connection.execute(made)

    def drop(self, table: str, constraint: str) -> None:
        """Take a constraint out of a table; on SQLite all of them, as they are of its making."""
        if self.sqlite:
            self.do(
                f"CREATE TABLE bare AS SELECT * FROM {table}",
                f"DROP TABLE {table}",
                f"ALTER TABLE bare RENAME TO {table}",
            )
        else:
            self.connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint} CASCADE")

    def one(self, query: str) -> Any:
        """The first column of the first row."""
        return self.connection.execute(query).fetchone()[0]

    def adapter(self, task: str, version: int = 1) -> int:
        """An adapter's node."""
        return int(
            self.one(
                f"SELECT a.node_id FROM adapter a JOIN task t ON t.node_id = a.task_id "
                f"WHERE t.name = '{task}' AND a.version = {version}"
            )
        )

    def node(self, table: str, name: str) -> int:
        """The first node of this name."""
        return int(self.one(f"SELECT min(node_id) FROM {table} WHERE name = '{name}'"))


@pytest.fixture
def vandal(stored_url: str) -> Iterator[Vandal]:
    """A vandal in the registry of the stored world."""
    vandal = Vandal(stored_url)
    yield vandal
    vandal.connection.close()


@pytest.fixture
def look(stored_url: str, store: LocalStore) -> Iterator[Any]:
    """Verify the stored world."""
    engine = connect(stored_url)
    yield lambda ref=None: verify(engine, store, ref)
    engine.dispose()


def told(report: Report, *words: str) -> Finding:
    """The first finding in which all these words stand."""
    for finding in report.findings:
        text = f"{finding.check}: {finding.where}: {finding.what}"
        if all(word in text for word in words):
            assert finding.mend
            return finding
    raise AssertionError(f"{words} in none of {[f.to_json() for f in report.findings]}")


def test_a_registry_that_nobody_tampered_with_is_found_sound_with_its_counts(look: Any) -> None:
    report = look()
    assert list(report.findings) == []
    assert report.counts | {"edges": 0, "bytes": 0} == {
        "adapters": 4,
        "backbones": 2,
        "certificates": 4,
        "compositions": 1,
        "datasets": 3,
        "evaluations": 1,
        "exports": 1,
        "runs": 4,
        "tasks": 3,
        "blobs": 10,
        "edges": 0,
        "bytes": 0,
    }


def test_the_keys_of_metadata_are_those_under_which_files_are_written() -> None:
    assert contents.ADAPTER_KEY == adapter_files.META_KEY
    assert contents.BACKBONE_KEY == backbone_files.SPEC_KEY


def test_every_blob_is_read_and_progress_is_told(stored_url: str, store: LocalStore) -> None:
    steps: list[tuple[int, int]] = []
    verify(connect(stored_url), store, on_progress=lambda done, of: steps.append((done, of)))
    assert steps == [(number, 10) for number in range(1, 11)]


# --- blobs -----------------------------------------------------------------------------------------


def blob_of(url: str, ref: str, column: str = "blob_digest") -> str:
    with sessions(connect(url)).read() as session:
        record = backbones.get(session, ref) if ref.startswith("dit") else adapters.get(session, ref)
        return str(getattr(record, column))


@pytest.mark.parametrize(
    ("ref", "column", "where"),
    [
        ("digits@2", "blob_digest", "file of adapter:digits@2"),
        ("digits@1", "golden_blob", "golden images of adapter:digits@1"),
        ("dit", "blob_digest", "file of backbone:dit@1"),
    ],
)
def test_one_changed_bit_of_a_blob_is_found_and_whose_it_is(
    stored_url: str, store: LocalStore, look: Any, ref: str, column: str, where: str
) -> None:
    path = store.path(blob_of(stored_url, ref, column))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    report = look()
    assert told(report, "blobs", where, "were changed").mend.startswith("Put its bytes back")
    assert len(report.findings) == 1


def test_a_lost_blob_a_cut_one_and_one_of_another_size_are_told_apart(
    stored_url: str, store: LocalStore, vandal: Vandal, look: Any
) -> None:
    store.path(blob_of(stored_url, "digits@1")).unlink()
    cut = store.path(blob_of(stored_url, "digits@2"))
    cut.chmod(0o644)
    cut.write_bytes(cut.read_bytes()[:-3])
    golden = blob_of(stored_url, "faces", "golden_blob")
    vandal.do(f"UPDATE blob SET size_bytes = 7 WHERE digest = '{golden}'")
    report = look()
    told(report, "file of adapter:digits@1", "not in the store")
    told(report, "file of adapter:digits@2", "were changed")
    told(report, "golden images of adapter:faces@1", "and the registry knows 7")


def test_a_blob_that_cannot_be_read_is_named_with_the_reason(
    stored_url: str, store: LocalStore, look: Any
) -> None:
    path = store.path(blob_of(stored_url, "digits@1"))
    path.unlink()
    path.symlink_to(path)
    told(look(), "file of adapter:digits@1")


def test_a_file_that_says_otherwise_than_its_row_is_named_field_by_field(
    stored_url: str, store: LocalStore, tmp_path: Path, look: Any
) -> None:
    files = Files(store, tmp_path)
    with sessions(connect(stored_url)).begin() as session:
        files.learnt(session, "digits", 3, task="letters", kind="lora", config={"r": 4})
        files.learnt(session, "faces", 2, block=[11, 14], backbone="0" * 64, null_index=9)
        files.backbone(session, "wrong", seed=2.0, fingerprint=world.sha("another"), spec={"arch": "unet"})
    report = look()
    for field, value in (("task", "letters"), ("kind", "lora"), ("config", "{'r': 4}")):
        told(report, "adapter files", "digits@3", f"says {field}", value)
    for field, value in (("block", "[11, 14]"), ("backbone", "0000"), ("null_index", "9")):
        told(report, "adapter files", "faces@2", f"says {field}", value)
    told(report, "backbone files", "wrong@1", "has the fingerprint", world.sha("another")[:12])
    told(report, "backbone files", "wrong@1", "spec differs", "'arch'")


def test_a_file_that_is_no_such_file_is_named(stored_url: str, store: LocalStore, look: Any) -> None:
    with sessions(connect(stored_url)).begin() as session:
        world.job(session, "text", "digits")
        digest = store.put_bytes(b"no safetensors")
        world.publish(session, "text", "digits", digest=digest, blob_digest=digest, size_bytes=14)
        text = store.put_bytes(b"neither")
        world.backbone(session, "odd", blob_digest=text, size_bytes=7)
    report = look()
    told(report, "adapter files", "digits@3", "cannot be read")
    told(report, "backbone files", "odd@1", "cannot be read")


# --- the record ------------------------------------------------------------------------------------


def test_an_edge_to_something_younger_is_named(vandal: Vandal, look: Any) -> None:
    vandal.drop("edge", "ck_edge_no_cycle")
    old, young = vandal.node("backbone", "dit"), vandal.adapter("digits")
    vandal.do(f"INSERT INTO edge VALUES ({old}, {young}, 'odd', 9)")
    told(look(), "edge backbone:dit@1 from adapter:digits@1 (odd)", "not older")


def test_a_lineage_that_disagrees_with_its_row_is_named_both_ways(vandal: Vandal, look: Any) -> None:
    adapter, other = vandal.adapter("faces"), vandal.node("dataset", "digits")
    own = vandal.node("dataset", "faces")
    vandal.do(f"UPDATE edge SET parent = {other} WHERE child = {adapter} AND parent = {own}")
    report = look()
    told(report, "lineage: adapter:faces@1", "lacks the edge from dataset:faces@1")
    told(report, "lineage: adapter:faces@1", "names dataset:digits@1 (dataset), and its row does not")


def test_an_edge_to_nothing_and_a_node_without_its_row_are_named(vandal: Vandal, look: Any) -> None:
    export = vandal.node("export", "both")
    vandal.do(
        f"INSERT INTO edge VALUES ({export}, -5, 'odd', 9)",
        f"INSERT INTO node (id, kind, digest, created_at) VALUES (9000, 'dataset', '{'7' * 64}', '{NOW}')",
        f"INSERT INTO node (id, kind, digest, created_at) VALUES (9001, 'dream', '{'7' * 64}', '{NOW}')",
        f"UPDATE node SET kind = 'run' WHERE id = {vandal.node('backbone', 'unet')}",
    )
    report = look()
    told(report, "edge export:both@1 from node -5", "names a node that does not exist")
    told(report, "dataset:777777777777", "its dataset row is gone")
    told(report, "node 9001", "no kind 'dream'")
    told(report, "called a run, and its row is that of a backbone")


def test_overlapping_class_blocks_are_named_with_their_owners(vandal: Vandal, look: Any) -> None:
    vandal.drop("class_block", "ex_class_block_no_overlap")
    vandal.do(f"UPDATE class_block SET lo = 12 WHERE owner_id = {vandal.node('task', 'faces')}")
    report = look()
    told(report, "class blocks: task:digits", "[11, 14) overlap [12, 17) of task:faces")
    told(report, "task:faces", "has not the class block that it names")


def test_class_rows_in_the_backbones_own_range_and_gaps_are_named(vandal: Vandal, look: Any) -> None:
    vandal.drop("class_block", "ex_class_block_no_overlap")
    dit, unet = vandal.node("backbone", "dit"), vandal.node("backbone", "unet")
    digits, faces = vandal.node("task", "digits"), vandal.node("task", "faces")
    vandal.do(
        f"UPDATE class_block SET hi = 10 WHERE owner_id = {dit}",
        f"UPDATE class_block SET lo = 9, hi = 12 WHERE owner_id = {digits}",
        f"UPDATE class_block SET lo = 20, hi = 23 WHERE owner_id = {faces}",
        f"DELETE FROM class_block WHERE owner_id = {unet}",
    )
    report = look()
    told(report, "class blocks: backbone:dit@1", "should be [0, 11), and it has [0, 10)")
    told(report, "class blocks: backbone:dit@1", "[0, 10) overlap [9, 12) of task:digits")
    told(report, "class blocks: task:faces", "start at 20, and those before it end at 12")
    told(report, "class blocks: backbone:unet@1", "and it has none")


def test_a_composition_across_backbones_is_named(vandal: Vandal, look: Any) -> None:
    birds, both = vandal.adapter("birds"), vandal.node("composition", "both")
    vandal.do(f"UPDATE composition_member SET adapter_id = {birds} WHERE composition_id = {both} AND pos = 1")
    report = look()
    told(report, "composition:both@1", "no adapter of that task on the composition's backbone")
    told(report, "lineage: composition:both@1", "adapter:birds@1 (member)")
    told(report, "digests: composition:both@1")


def test_two_versions_of_one_task_in_a_composition_are_named(vandal: Vandal, look: Any) -> None:
    vandal.drop("composition_member", "uq_composition_member_composition_id_task_id")
    task, both = vandal.node("task", "digits"), vandal.node("composition", "both")
    vandal.do(
        f"UPDATE composition_member SET adapter_id = {vandal.adapter('digits', 2)}, task_id = {task} "
        f"WHERE composition_id = {both} AND pos = 1"
    )
    report = look()
    told(report, "composition:both@1", "two versions of one task")
    told(report, "uq_composition_member_composition_id_task_id", "it is gone")


def test_a_member_that_is_gone_is_missed(vandal: Vandal, look: Any) -> None:
    both = vandal.node("composition", "both")
    vandal.do(f"DELETE FROM composition_member WHERE composition_id = {both} AND pos = 1")
    report = look()
    told(report, "members: composition:both@1", "2 members, and 1 are there")
    told(report, "composition:both@1", "last member is missing")


def test_a_version_that_is_gone_and_a_counter_turned_back_are_named(vandal: Vandal, look: Any) -> None:
    vandal.do(
        f"DELETE FROM adapter WHERE node_id = {vandal.adapter('digits', 1)}",
        "UPDATE task SET next_version = 1 WHERE name = 'faces'",
        "UPDATE task SET next_version = 5 WHERE name = 'birds'",
        "DELETE FROM series WHERE kind = 'backbone' AND name = 'unet'",
    )
    report = look()
    told(report, "versions: adapter:digits", "version 1 is missing")
    told(report, "versions: adapter:faces", "would give version 1 out again")
    told(report, "versions: adapter:birds", "version 2 was given out, and nothing")
    told(report, "versions: backbone:unet", "nothing counts")


def test_an_adapter_whose_blob_the_registry_does_not_know_is_named(vandal: Vandal, look: Any) -> None:
    node = vandal.adapter("faces")
    vandal.do(
        f"DELETE FROM blob WHERE digest = (SELECT blob_digest FROM adapter WHERE node_id = {node})",
        f"UPDATE adapter SET golden_blob = '{'8' * 64}' WHERE node_id = {vandal.adapter('birds')}",
    )
    report = look()
    told(report, "adapter:faces@1", "no such blob of that size")
    told(report, "adapter:birds@1", "no blob of its golden images")


def test_a_result_under_another_fence_than_its_jobs_is_named(vandal: Vandal, look: Any) -> None:
    vandal.do("UPDATE job SET fence = 3 WHERE id = 'job-faces-1'")
    told(look(), "fences: adapter:faces@1", "under fence 1, and its job job-faces-1 is done under fence 3")


def test_a_job_that_is_done_and_holds_its_task_is_named(vandal: Vandal, look: Any) -> None:
    vandal.do("UPDATE job_task SET live = true WHERE job_id = 'job-faces-1'")
    told(look(), "jobs: task:faces", "job job-faces-1 is done, and still holds it")


def test_a_lost_certificate_is_missed(vandal: Vandal, look: Any) -> None:
    certificate = vandal.one(f"SELECT node_id FROM certificate WHERE adapter_id = {vandal.adapter('faces')}")
    vandal.do(
        f"DELETE FROM certificate WHERE node_id = {certificate}",
        f"DELETE FROM edge WHERE child = {certificate}",
        f"DELETE FROM event WHERE subject = {certificate}",
        f"DELETE FROM node WHERE id = {certificate}",
    )
    report = look()
    assert [(finding.check, finding.where) for finding in report.findings] == [
        ("certificates", "adapter:faces@1")
    ]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("UPDATE task SET kind = 'lora' WHERE name = 'birds'", "task:birds"),
        ("UPDATE run SET seed = 8 WHERE job_id = 'job-birds-1'", "run:"),
        ("UPDATE certificate SET level = 'tolerance'", "certificate:"),
        ("UPDATE composition SET mode = 'merged'", "composition:both@1"),
    ],
)
def test_an_edited_row_no_longer_has_its_digest(vandal: Vandal, look: Any, change: str, where: str) -> None:
    vandal.do(change)
    told(look(), f"digests: {where}", "its row is not what its digest")


# --- beside the rows -------------------------------------------------------------------------------


def test_an_edge_in_a_role_that_nothing_of_its_kind_has_is_named(vandal: Vandal, look: Any) -> None:
    adapter, run = vandal.adapter("digits"), vandal.one("SELECT min(node_id) FROM run")
    vandal.do(
        f"INSERT INTO edge VALUES ({adapter}, {vandal.node('dataset', 'digits')}, 'inspired-by', 9)",
        f"UPDATE edge SET parent = {vandal.node('backbone', 'unet')} "
        f"WHERE child = {run} AND role = 'backbone'",
    )
    told(look(), "lineage: adapter:digits@1", "dataset:digits@1 (inspired-by), which nothing of its kind")
    told(look(), "lineage: run:", "backbone:unet@1 (backbone), which is not its task's")


def test_what_no_event_tells_of_is_named(vandal: Vandal, look: Any) -> None:
    vandal.do(f"DELETE FROM event WHERE subject = {vandal.adapter('faces')}")
    told(look(), "events: adapter:faces@1", "no event tells")


def test_a_metric_that_the_adapter_does_not_say_and_one_that_it_no_longer_says_are_named(
    vandal: Vandal, look: Any
) -> None:
    vandal.do(f"INSERT INTO metric VALUES ({vandal.adapter('faces')}, 'kid', 0.001)")
    vandal.do("UPDATE evaluation SET results = '{\"kid\": 0.001}'")
    report = look()
    told(report, "numbers: adapter:faces@1", "another 'kid'")
    told(report, "numbers: evaluation:", "than it says")


def test_a_name_that_was_anothers_and_one_that_nothing_bears_are_named(vandal: Vandal, look: Any) -> None:
    past = "INSERT INTO renaming (kind, origin, was, name, at) VALUES"
    vandal.do(
        f"{past} ('task', 'mine', 'digits', 'numerals', '{NOW}')",
        f"{past} ('dataset', 'gone', 'gone', 'lost', '{NOW}')",
    )
    report = look()
    told(report, "names: task:digits", "belonged to something else")
    told(report, "names: dataset:lost", "nothing is called so")


def test_jobs_that_wait_for_each_other_are_named(vandal: Vandal, look: Any) -> None:
    one, two = "job-digits-1", "job-digits-2"
    pairs = ((one, two), (two, one), ("job-faces-1", two))
    for pair in pairs:
        vandal.do(f"INSERT INTO job_dependency VALUES {pair}")
    told(look(), f"jobs: job {one}", "wait for each other")


def test_an_edit_that_puts_the_guards_back_behind_itself_is_named(vandal: Vandal, look: Any) -> None:
    adapter, dataset = vandal.adapter("faces"), vandal.node("dataset", "faces")
    vandal.do(f"UPDATE adapter SET provenance = '{{}}' WHERE node_id = {adapter}")
    vandal.do(f"UPDATE dataset SET licence = 'mine' WHERE node_id = {dataset}")
    vandal.do("UPDATE export SET path = '/elsewhere'")
    report = look()
    told(report, "events: adapter:faces@1", "it was recorded with other values")
    told(report, "events: dataset:faces@1", "it was recorded with other values")
    told(report, "events: export:both@1", "it was recorded with other values")


# --- the guards ------------------------------------------------------------------------------------


def test_a_dropped_trigger_is_named_though_the_registry_cannot_be_opened_without_it(
    vandal: Vandal, look: Any
) -> None:
    on = "" if vandal.sqlite else " ON adapter"
    vandal.connection.execute(f"DROP TRIGGER adapter_no_update{on}")
    told(look(), "triggers: trigger adapter_no_update", "gone or switched off")


@pytest.mark.postgres
def test_a_switched_off_trigger_and_a_dropped_exclusion_are_named(
    stored_postgresql_url: str, store: LocalStore
) -> None:
    vandal = Vandal(stored_postgresql_url)
    vandal.connection.execute("ALTER TABLE node DISABLE TRIGGER node_no_delete")
    vandal.drop("class_block", "ex_class_block_no_overlap")
    vandal.drop("edge", "ck_edge_no_cycle")
    vandal.connection.execute("DROP INDEX uq_job_task_live")
    report = verify(connect(stored_postgresql_url), store)
    told(report, "trigger node_no_delete")
    told(report, "constraint ex_class_block_no_overlap of table class_block", "gone")
    told(report, "constraint ck_edge_no_cycle of table edge", "gone")
    told(report, "index uq_job_task_live of table job_task", "gone")


def test_a_trigger_and_a_check_of_the_same_name_that_say_something_else_are_named(
    vandal: Vandal, look: Any
) -> None:
    if vandal.sqlite:
        vandal.connection.execute("DROP TRIGGER adapter_no_update")
        vandal.connection.execute(
            "CREATE TRIGGER adapter_no_update BEFORE UPDATE ON adapter WHEN false BEGIN SELECT 1; END"
        )
        vandal.connection.execute("PRAGMA writable_schema = ON")
        vandal.connection.execute(
            "UPDATE sqlite_master "
            "SET sql = replace(sql, 'parent < child', 'parent <> child') WHERE name = 'edge'"
        )
        vandal.connection.execute("PRAGMA writable_schema = RESET")
    else:
        vandal.connection.execute(
            "CREATE OR REPLACE FUNCTION affinery_adapter_no_update() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RETURN NEW; END $$"
        )
        vandal.connection.execute("ALTER TABLE edge DROP CONSTRAINT ck_edge_no_cycle")
        vandal.connection.execute("ALTER TABLE edge ADD CONSTRAINT ck_edge_no_cycle CHECK (parent <> child)")
        vandal.connection.execute("ALTER TABLE class_block DROP CONSTRAINT ex_class_block_no_overlap")
        vandal.connection.execute(
            "ALTER TABLE class_block ADD CONSTRAINT ex_class_block_no_overlap "
            "EXCLUDE USING gist (int8range(owner_id, owner_id + 1) WITH &&)"
        )
        told(look(), "constraint ex_class_block_no_overlap of table class_block", "should say")
    told(look(), "triggers: trigger adapter_no_update", "says something else")
    told(look(), "constraint ck_edge_no_cycle of table edge", "should say")


def test_what_goes_round_the_triggers_or_was_added_to_them_is_named(vandal: Vandal, look: Any) -> None:
    if vandal.sqlite:
        vandal.connection.execute(
            "CREATE TRIGGER silent AFTER INSERT ON tag BEGIN UPDATE tag SET value = 'other'; END"
        )
        told(look(), "triggers: trigger silent", "no Affinery made it")
        return
    vandal.connection.execute("CREATE RULE silent AS ON DELETE TO tag DO INSTEAD NOTHING")
    vandal.connection.execute("ALTER TABLE edge ENABLE REPLICA TRIGGER edge_no_update")
    name = vandal.one("SELECT current_database()")
    vandal.connection.execute(f"ALTER DATABASE {name} SET session_replication_role = replica")
    report = look()
    told(report, "triggers: rule silent of table tag", "go round")
    told(report, "triggers: setting session_replication_role", "go round")
    told(report, "triggers: trigger edge_no_update", "gone or switched off")


@pytest.mark.postgres
def test_what_hides_rows_or_adds_to_them_or_turns_references_off_is_named(
    stored_postgresql_url: str, store: LocalStore
) -> None:
    vandal = Vandal(stored_postgresql_url)
    for statement in (
        "CREATE TABLE heir () INHERITS (adapter)",
        "ALTER TABLE note ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE tag DISABLE TRIGGER ALL",
        "ALTER TABLE tag ENABLE TRIGGER USER",
        "ALTER FUNCTION affinery_edge_sealed() RESET search_path",
    ):
        vandal.connection.execute(statement)
    report = verify(connect(stored_postgresql_url), store)
    told(report, "table heir inherits adapter", "go round")
    told(report, "row security of table note", "go round")
    told(report, "references of table tag, switched off", "go round")
    told(report, "trigger edge_sealed", "says something else")


def test_a_registry_of_another_schema_is_named_and_nothing_else_is_asked(vandal: Vandal, look: Any) -> None:
    vandal.connection.execute("UPDATE alembic_version SET version_num = '9999'")
    (finding,) = look().findings
    assert finding.check == "migrations"
    assert "9999" in finding.what
    assert "newer" in finding.mend


def test_where_there_is_no_registry_that_is_said(tmp_path: Path, store: LocalStore) -> None:
    with pytest.raises(errors.RegistryMissing):
        verify(connect(f"sqlite:///{tmp_path / 'none.db'}"), store)


# --- one reference ---------------------------------------------------------------------------------


def test_a_reference_is_verified_with_all_that_it_was_made_from_and_no_more(
    stored_url: str, store: LocalStore, look: Any
) -> None:
    for ref in ("digits@2", "birds"):
        store.path(blob_of(stored_url, ref)).unlink()
    assert look("both").sound
    assert look("both").counts["adapters"] == 2
    assert [finding.where for finding in look("digits").findings] == [
        f"blob {blob_of(stored_url, 'digits@2')[:12]} (file of adapter:digits@2)"
    ]
    with pytest.raises(errors.NotFound):
        look("nothing")


# --- the command -----------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_and_exits_1_and_0_where_nothing_is(
    stored_url: str, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "affinery.toml").write_text("schema = 1\n")
    monkeypatch.setenv("AFFINERY_REGISTRY_URL", stored_url)
    monkeypatch.setenv("AFFINERY_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("AFFINERY_STORE_URL", str(store.root))
    sound = CliRunner().invoke(command_line(), ["verify"])
    assert sound.exit_code == 0
    assert "adapters      4" in sound.stdout
    store.path(blob_of(stored_url, "birds")).unlink()
    found = CliRunner().invoke(command_line(), ["verify", "birds", "--json"])
    assert found.exit_code == 1
    said = json.loads(found.stdout)
    assert not said["sound"]
    assert [finding["what"] for finding in said["findings"]] == ["its bytes are not in the store"]
    shown = CliRunner().invoke(command_line(), ["verify"])
    assert shown.exit_code == 1
    assert "(file of adapter:birds@1): its bytes are not in the store" in shown.stdout
