"""What the database refuses, whoever asks: plain SQL over the bare driver, round all of our own code.

On SQLite the connection is as sqlite3 gives it: foreign keys and recursive triggers off.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from registry import blobs
from registry.session import connect, sessions
from tests import registry_world as world
from tests.bare_database import NOW, WRITTEN_ONCE, Bare, adapter_of, node_of


@pytest.fixture
def bare(recorded_url: str) -> Iterator[Bare]:
    """A bare connection to a registry in which everything is recorded at least once."""
    bare = Bare(recorded_url)
    yield bare
    bare.connection.close()


def first_column(bare: Bare, table: str) -> str:
    return str(bare.connection.execute(f'SELECT * FROM "{table}"').description[-1][0])


# --- what is published stays -----------------------------------------------------------------------


@pytest.mark.parametrize("table", WRITTEN_ONCE)
def test_a_published_row_cannot_be_edited_even_to_what_it_was(bare: Bare, table: str) -> None:
    column = first_column(bare, table)
    bare.refused(f'UPDATE "{table}" SET {column} = {column}', words="never changed")


@pytest.mark.parametrize("table", [*WRITTEN_ONCE, "task", "series", "job", "job_task"])
def test_a_published_row_cannot_be_deleted(bare: Bare, table: str) -> None:
    bare.refused(f'DELETE FROM "{table}"', words="never deleted")


@pytest.mark.parametrize("table", [*WRITTEN_ONCE, "task", "series", "job", "job_task", "blob"])
def test_a_published_row_cannot_be_replaced(bare: Bare, table: str) -> None:
    if bare.sqlite:
        columns = ", ".join(bare.columns(table))
        bare.refused(f'INSERT OR REPLACE INTO "{table}" ({columns}) SELECT {columns} FROM "{table}"')
    elif table != "blob":
        bare.refused(f'TRUNCATE "{table}" CASCADE', words="never deleted")


def test_no_row_of_sqlite_is_moved_or_written_over_by_its_rowid(
    recorded_sqlite: Path, tmp_path: Path
) -> None:
    shutil.copy(recorded_sqlite, tmp_path / "registry.db")
    bare = Bare(f"sqlite:///{tmp_path / 'registry.db'}")
    for table in [*WRITTEN_ONCE, "task", "series", "job", "job_task", "blob"]:
        first = f'WHERE rowid = (SELECT min(rowid) FROM "{table}")'
        bare.refused(f'UPDATE "{table}" SET rowid = 777777 {first}', words="never")
        bare.refused(
            f'UPDATE OR REPLACE "{table}" SET _rowid_ = (SELECT max(oid) FROM "{table}") + 1 {first}'
        )
        columns = ", ".join(bare.columns(table))
        bare.refused(
            f'INSERT OR REPLACE INTO "{table}" (rowid, {columns}) SELECT rowid, {columns} FROM "{table}"'
        )
    digest = world.sha("another")
    for row in (
        f"blob (rowid, digest, size_bytes, created_at) VALUES (1, '{digest}', 1, '{NOW}')",
        "series (rowid, kind, name, next_version) VALUES (1, 'backbone', 'new', 1)",
        f"edge (rowid, child, parent, role, pos) VALUES (1, {bare.new_id}, 1, 'made', 0)",
    ):
        bare.refused(bare.node("run"), f"INSERT OR REPLACE INTO {row}", words="in this place already")
    bare.connection.close()


def test_a_cycle_is_refused_even_where_checks_are_left_out(recorded_sqlite: Path, tmp_path: Path) -> None:
    shutil.copy(recorded_sqlite, tmp_path / "registry.db")
    bare = Bare(f"sqlite:///{tmp_path / 'registry.db'}")
    bare.connection.execute("PRAGMA ignore_check_constraints = ON")
    older = "(SELECT max(id) - 1 FROM node)"
    bare.refused(
        bare.node("run"),
        bare.node("run"),
        f"INSERT INTO edge VALUES ({older}, {bare.new_id}, 'younger', 0)",
        words="a parent is older",
    )
    bare.connection.close()


def test_replacing_by_name_and_version_instead_of_by_id_is_refused_too(bare: Bare) -> None:
    dataset = node_of(bare, "dataset", "name = 'digits'")
    columns = (
        "name, version, dvc_md5, dvc_path, size_bytes, image_count, classes, class_counts, licence, source"
    )
    insert = "INSERT OR REPLACE" if bare.sqlite else "INSERT"
    bare.refused(
        bare.node("dataset"),
        f"{insert} INTO dataset (node_id, {columns}) SELECT {bare.new_id}, {columns} FROM dataset "
        f"WHERE node_id = {dataset}",
        words="(?i)unique",
    )


@pytest.mark.parametrize(
    "column", ["predecessor_id", "backbone_id", "dataset_id", "kind", "config", "classes", "lo", "hi"]
)
def test_a_task_keeps_everything_but_its_counter(bare: Bare, column: str) -> None:
    bare.refused(f"UPDATE task SET {column} = {column}", words="never changed")


def test_a_series_keeps_its_name_so_that_its_numbers_are_not_given_out_again(bare: Bare) -> None:
    bare.refused("UPDATE series SET name = 'other' WHERE name = 'dit'", words="never changed")


@pytest.mark.parametrize("step", ["- 1", "+ 0", "+ 2"])
def test_a_version_counter_moves_by_one_and_never_back(bare: Bare, step: str) -> None:
    bare.refused(f"UPDATE task SET next_version = next_version {step}", words="never given out twice")
    bare.refused(f"UPDATE series SET next_version = next_version {step}", words="never given out twice")
    bare.do("UPDATE task SET next_version = next_version + 1 WHERE name = 'digits'")


@pytest.mark.parametrize("table", ["backbone", "dataset", "export"])
def test_a_version_number_is_the_last_one_given_out_for_its_name(bare: Bare, table: str) -> None:
    columns = [str(each[0]) for each in bare.connection.execute(f'SELECT * FROM "{table}"').description][1:]

    def written(version: int) -> list[str]:
        values = [str(version) if each == "version" else each for each in columns]
        composition = node_of(bare, "composition", "name = 'both'")
        return [
            bare.node(table),
            f"INSERT INTO edge VALUES ({bare.new_id}, {composition}, 'composition', 0)",
            (
                f'INSERT INTO "{table}" (node_id, {", ".join(columns)}) '
                f"SELECT {bare.new_id}, {', '.join(values)} "
                f'FROM "{table}" WHERE node_id = (SELECT min(node_id) FROM "{table}")'
            ),
        ]

    counted = (
        f"UPDATE series SET next_version = next_version + 1 WHERE kind = '{table}' "
        f'AND name = (SELECT name FROM "{table}" ORDER BY node_id LIMIT 1)'
    )
    bare.refused(*written(2), words="version number")
    bare.refused(counted, *written(3), words="version number")
    foreign = [bare.node("task"), *written(2)[1:]]
    bare.refused(counted, *foreign, words=f"not a {table}")
    bare.do(counted, *written(2))


def test_a_blob_that_a_published_row_needs_cannot_be_deleted_and_another_can(
    bare: Bare, recorded_url: str
) -> None:
    with sessions(connect(recorded_url)).begin() as session:
        blobs.commit(session, world.sha("golden"), 5)
        world.job(session, "golden", "faces")
        world.publish(session, "golden", "faces", golden_blob=world.sha("golden"))
        blobs.commit(session, world.sha("unused"), 5)
    for used in (
        world.sha("backbone file dit "),
        world.sha("adapter file job-faces-1 faces"),
        world.sha("golden"),
    ):
        bare.refused(f"DELETE FROM blob WHERE digest = '{used}'")
    bare.refused("UPDATE blob SET size_bytes = 1", words="never changed")
    bare.do(f"DELETE FROM blob WHERE digest = '{world.sha('unused')}'")


# --- class blocks ----------------------------------------------------------------------------------


def block(bare: Bare, lo: int, hi: int, backbone: str = "dit") -> tuple[str, str]:
    owner = node_of(bare, "backbone", f"name = '{backbone}'")
    row = f"VALUES ({bare.new_id}, {owner}, {lo}, {hi})"
    return bare.node("task"), f"INSERT INTO class_block (owner_id, backbone_id, lo, hi) {row}"


@pytest.mark.parametrize(
    ("lo", "hi"),
    [
        pytest.param(0, 3, id="the backbone's own rows"),
        pytest.param(10, 13, id="the null row"),
        pytest.param(11, 14, id="the first task's rows, again"),
        pytest.param(12, 16, id="rows across two tasks"),
        pytest.param(16, 20, id="the last row that is taken"),
        pytest.param(18, 21, id="a gap before it"),
        pytest.param(17, 17, id="no row at all"),
        pytest.param(17, 16, id="rows that end before they start"),
        pytest.param(-1, 3, id="rows before the first"),
        pytest.param(17, 2**31, id="more rows than a table may have"),
    ],
)
def test_a_class_block_neither_overlaps_nor_is_used_again(bare: Bare, lo: int, hi: int) -> None:
    bare.refused(*block(bare, lo, hi))


def test_a_class_block_after_the_last_is_accepted_and_other_backbones_count_by_themselves(bare: Bare) -> None:
    bare.do(*block(bare, 17, 20))
    bare.refused(*block(bare, 17, 20))
    bare.do(*block(bare, 14, 15, "unet"))


def test_two_open_transactions_cannot_both_take_the_next_block(bare: Bare) -> None:
    if bare.sqlite:
        bare.connection.execute("BEGIN IMMEDIATE")
        path = bare.one("SELECT file FROM pragma_database_list")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            sqlite3.connect(path, timeout=0.1, isolation_level=None).execute("BEGIN IMMEDIATE")
        return
    other = psycopg.connect(bare.connection.info.dsn)
    statements = block(bare, 17, 20)
    other.execute("SET lock_timeout = '200ms'")
    bare.connection.execute("BEGIN")
    for statement in statements:
        bare.connection.execute(statement)
        if "node" in statement.split("(")[0]:
            other.execute(statement)
    owner = node_of(bare, "backbone", "name = 'dit'")
    # It waits for the first transaction, whose trigger it could not see: the exclusion constraint does.
    with pytest.raises(psycopg.errors.LockNotAvailable):
        other.execute(
            f"INSERT INTO class_block (owner_id, backbone_id, lo, hi) VALUES ({bare.new_id}, {owner}, 17, 20)"
        )
    other.close()
    bare.connection.execute("ROLLBACK")


def test_a_backbone_s_first_block_is_its_own(bare: Bare) -> None:
    bare.refused(*block(bare, 0, 11, "unet"))


def test_a_task_cannot_be_written_without_its_block(bare: Bare) -> None:
    source = node_of(bare, "task", "name = 'digits'")
    backbone = node_of(bare, "backbone", "name = 'dit'")
    dataset = node_of(bare, "dataset", "name = 'digits'")
    bare.refused(
        bare.node("task"),
        f"INSERT INTO edge VALUES ({bare.new_id}, {backbone}, 'backbone', 0)",
        f"INSERT INTO edge VALUES ({bare.new_id}, {dataset}, 'dataset', 1)",
        "INSERT INTO task "
        "(node_id, name, backbone_id, dataset_id, kind, config, classes, lo, hi, next_version) "
        f"SELECT {bare.new_id}, 'squatter', backbone_id, dataset_id, kind, config, classes, lo, hi, 1 "
        f"FROM task WHERE node_id = {source}",
    )


def test_a_task_is_not_published_without_the_lineage_it_claims(bare: Bare) -> None:
    bare.refused(
        *block(bare, 17, 20),
        "INSERT INTO task "
        "(node_id, name, backbone_id, dataset_id, kind, config, classes, lo, hi, next_version) "
        f"SELECT {bare.new_id}, 'squatter', backbone_id, dataset_id, kind, config, classes, 17, 20, 1 "
        "FROM task WHERE name = 'digits'",
        words="the lineage of this task",
    )


# --- lineage ---------------------------------------------------------------------------------------


def test_a_cycle_cannot_be_written(bare: Bare) -> None:
    composition = node_of(bare, "composition", "name = 'both'")
    adapter = adapter_of(bare, "faces")
    bare.refused(f"INSERT INTO edge VALUES ({adapter}, {composition}, 'loop', 0)")
    bare.refused(bare.node("run"), f"INSERT INTO edge VALUES ({bare.new_id}, {bare.new_id}, 'itself', 0)")


def test_the_lineage_of_a_published_thing_cannot_be_added_to(bare: Bare) -> None:
    composition = node_of(bare, "composition", "name = 'both'")
    bare.refused(
        f"INSERT INTO edge VALUES ({composition}, {adapter_of(bare, 'digits', 2)}, 'member', 9)",
        words="never added to",
    )


def test_an_edge_joins_only_what_is_recorded(bare: Bare) -> None:
    bare.refused(bare.node("run"), f"INSERT INTO edge VALUES (99999, {bare.new_id}, 'run', 0)")


def test_a_row_that_contradicts_its_node_or_its_lineage_is_refused(bare: Bare) -> None:
    adapter = adapter_of(bare, "faces")
    values = f"{bare.new_id}, {adapter}, 'bit-exact', '{{}}'"
    insert = f"INSERT INTO certificate (node_id, adapter_id, level, results) VALUES ({values})"
    bare.refused(bare.node("certificate"), insert, words="lineage")
    edge = f"INSERT INTO edge VALUES ({bare.new_id}, {adapter}, 'adapter', 0)"
    bare.refused(bare.node("dataset"), edge, insert, words="not a certificate")
    bare.do(bare.node("certificate"), edge, insert)


MADE_FROM = ["run", "certificate", "composition", "export", "backbone"]


@pytest.mark.parametrize("table", MADE_FROM)
def test_nothing_is_published_without_the_lineage_it_claims(bare: Bare, table: str) -> None:
    columns = [str(each[0]) for each in bare.connection.execute(f'SELECT * FROM "{table}"').description]
    values = ["parent.node_id" if each == "parent_id" else f"old.{each}" for each in columns[1:]]
    bare.refused(
        bare.node(table),
        f'INSERT INTO "{table}" ({", ".join(columns)}) SELECT {bare.new_id}, {", ".join(values)} '
        f'FROM "{table}" AS old, backbone AS parent LIMIT 1',
        words=f"the lineage of this {table}",
    )


# --- adapters --------------------------------------------------------------------------------------

COPIED = "kind, blob_digest, size_bytes, parameters, config, provenance, metrics"


def new_adapter(bare: Bare, task: str, version: int, backbone: str = "dit", **given: str) -> tuple[str, ...]:
    owner = node_of(bare, "task", f"name = '{task}'")
    base = node_of(bare, "backbone", f"name = '{backbone}'")
    dataset = bare.one(f"SELECT dataset_id FROM task WHERE node_id = {owner}")
    columns = {"job_id": "NULL", "fence": "NULL"} | given
    return (
        bare.node("adapter"),
        f"INSERT INTO edge VALUES ({bare.new_id}, {owner}, 'task', 0)",
        f"INSERT INTO edge VALUES ({bare.new_id}, {base}, 'backbone', 1)",
        f"INSERT INTO edge VALUES ({bare.new_id}, {dataset}, 'dataset', 2)",
        (
            "INSERT INTO adapter "
            f"(node_id, task_id, backbone_id, dataset_id, version, job_id, fence, {COPIED}) "
            f"SELECT {bare.new_id}, {owner}, {base}, {dataset}, {version}, "
            f"{columns['job_id']}, {columns['fence']}, "
            f"{COPIED} FROM adapter WHERE node_id = {adapter_of(bare, 'digits')}"
        ),
    )


COUNT = "UPDATE task SET next_version = next_version + 1 WHERE name = 'faces'"


def test_a_version_number_that_was_not_given_out_is_refused(bare: Bare) -> None:
    for version in (1, 2, 3):
        bare.refused(*new_adapter(bare, "faces", version), words="(?i)version|unique")
    bare.refused(COUNT, *new_adapter(bare, "faces", 3), words="version")
    bare.do(COUNT, *new_adapter(bare, "faces", 2))


@pytest.mark.parametrize("role", ["task", "backbone", "dataset"])
def test_an_adapter_is_not_published_without_the_lineage_it_claims(bare: Bare, role: str) -> None:
    statements = [each for each in new_adapter(bare, "faces", 2) if f"'{role}'" not in each]
    bare.refused(COUNT, *statements, words="the lineage of this adapter")


def test_an_adapter_of_another_backbone_than_its_task_s_is_refused(bare: Bare) -> None:
    bare.refused(COUNT, *new_adapter(bare, "faces", 2, backbone="unet"))


def test_a_stale_fence_a_finished_job_and_a_foreign_job_cannot_publish(bare: Bare, recorded_url: str) -> None:
    with sessions(connect(recorded_url)).begin() as session:
        world.job(session, "now", "faces", fence=5)
    for fence in ("4", "6"):
        bare.refused(COUNT, *new_adapter(bare, "faces", 2, job_id="'now'", fence=fence), words="fence")
    bare.refused(COUNT, *new_adapter(bare, "faces", 2, job_id="'job-faces-1'", fence="1"), words="fence")
    bare.refused(COUNT, *new_adapter(bare, "faces", 2, job_id="'now'"))
    other = COUNT.replace("faces", "digits")
    bare.refused(other, *new_adapter(bare, "digits", 3, job_id="'now'", fence="5"))
    bare.do(COUNT, *new_adapter(bare, "faces", 2, job_id="'now'", fence="5"))


# --- compositions ----------------------------------------------------------------------------------


def new_composition(
    bare: Bare,
    members: list[tuple[int, str]],
    backbone: str = "dit",
    last: int | None = None,
    version: int = 2,
    step: int = 1,
) -> list[str]:
    """members: (adapter, its task's name)."""
    base = node_of(bare, "backbone", f"name = '{backbone}'")
    last = len(members) - 1 if last is None else last
    statements = [
        "UPDATE series SET next_version = next_version + 1 WHERE kind = 'composition' AND name = 'both'",
        bare.node("composition"),
        f"INSERT INTO edge VALUES ({bare.new_id}, {base}, 'backbone', 0)",
        *(f"INSERT INTO edge VALUES ({bare.new_id}, {adapter}, 'member', 1)" for adapter, _ in members),
        (
            "INSERT INTO composition (node_id, name, version, backbone_id, mode, recipe, last_pos) "
            f"VALUES ({bare.new_id}, 'both', {version}, {base}, 'routed', '{{}}', {last})"
        ),
    ]
    for pos, (adapter, task) in enumerate(members):
        owner = node_of(bare, "task", f"name = '{task}'")
        row = f"VALUES ({bare.new_id}, {pos * step}, {adapter}, {owner}, {base})"
        statements.append(
            f"INSERT INTO composition_member (composition_id, pos, adapter_id, task_id, backbone_id) {row}"
        )
    return statements


def test_a_composition_across_backbones_is_refused(bare: Bare) -> None:
    faces, birds = (adapter_of(bare, "faces"), "faces"), (adapter_of(bare, "birds"), "birds")
    bare.refused(*new_composition(bare, [faces, birds]))
    bare.refused(*new_composition(bare, [faces], backbone="unet"))
    bare.do(*new_composition(bare, [birds], backbone="unet"))


def test_a_composition_of_two_versions_of_one_task_is_refused_under_any_name(bare: Bare) -> None:
    first, second = adapter_of(bare, "digits", 1), adapter_of(bare, "digits", 2)
    bare.refused(*new_composition(bare, [(first, "digits"), (second, "digits")]))
    bare.refused(*new_composition(bare, [(first, "digits"), (second, "faces")]))


def test_a_member_cannot_be_added_to_a_composition_that_is_published(bare: Bare) -> None:
    composition = node_of(bare, "composition", "name = 'both'")
    base, owner = node_of(bare, "backbone", "name = 'dit'"), node_of(bare, "task", "name = 'digits'")
    adapter = adapter_of(bare, "digits", 2)
    for pos in (0, 1, 2, 7):
        bare.refused(
            f"INSERT INTO composition_member VALUES ({composition}, {pos}, {adapter}, {owner}, {base})"
        )


def test_a_composition_with_fewer_members_than_it_says_is_refused_at_commit(bare: Bare) -> None:
    if bare.sqlite:
        bare.connection.execute("PRAGMA foreign_keys = ON")
    bare.refused(*new_composition(bare, [(adapter_of(bare, "faces"), "faces")], last=1))
    bare.refused(*new_composition(bare, [], last=0))
    bare.refused(*new_composition(bare, []))


def test_members_stand_in_order_without_holes(bare: Bare) -> None:
    members = [(adapter_of(bare, "faces"), "faces"), (adapter_of(bare, "digits"), "digits")]
    bare.refused(*new_composition(bare, members, last=2, step=2), words="in order")
    bare.refused(*new_composition(bare, members, last=0), words="in order")
    bare.do(*new_composition(bare, members))


@pytest.mark.parametrize("version", [1, 3, 7])
def test_a_composition_s_version_is_the_one_given_out(bare: Bare, version: int) -> None:
    members = [(adapter_of(bare, "faces"), "faces")]
    bare.refused(*new_composition(bare, members, version=version), words="(?i)version|unique")


def test_a_member_that_the_lineage_does_not_name_is_refused(bare: Bare) -> None:
    statements = new_composition(bare, [(adapter_of(bare, "faces"), "faces")])
    bare.refused(*(each for each in statements if "'member'" not in each), words="lineage")


# --- jobs ------------------------------------------------------------------------------------------


def new_job(bare: Bare, name: str, task: str, state: str = "queued", live: str = "true") -> tuple[str, str]:
    owner = node_of(bare, "task", f"name = '{task}'")
    return (
        (
            "INSERT INTO job (id, number, kind, strategy, workers, state, priority, payload, run_at, "
            "created_at, fence, generation, attempts, failures, max_attempts, waits) "
            f"VALUES ('{name}', (SELECT count(*) FROM job) + 100, 'train', 'sequential', 1, "
            f"'{state}', 0, '{{}}', '{NOW}', '{NOW}', 0, 0, 0, 0, 5, 0)"
        ),
        f"INSERT INTO job_task (job_id, task_id, live) VALUES ('{name}', {owner}, {live})",
    )


def test_a_task_has_at_most_one_live_job(bare: Bare) -> None:
    bare.do(*new_job(bare, "first", "faces"))
    bare.refused(*new_job(bare, "second", "faces"))
    bare.do(*new_job(bare, "other", "digits"))
    bare.do("UPDATE job SET state = 'running' WHERE id = 'first'")
    bare.refused(*new_job(bare, "second", "faces"))
    bare.do("UPDATE job SET state = 'dead' WHERE id = 'first'")
    bare.do(*new_job(bare, "second", "faces"))
    bare.refused("UPDATE job SET state = 'queued' WHERE id = 'first'")
    bare.do("UPDATE job SET state = 'cancelled' WHERE id = 'second'")
    bare.do("UPDATE job SET state = 'queued' WHERE id = 'first'")


def test_replace_does_not_go_round_the_one_live_job(bare: Bare) -> None:
    bare.do(*new_job(bare, "first", "faces"))
    bare.do("UPDATE job SET state = 'dead' WHERE id = 'first'")
    bare.do(*new_job(bare, "second", "faces"))
    if bare.sqlite:
        bare.refused("UPDATE OR REPLACE job SET state = 'queued' WHERE id = 'first'")
        job, link = new_job(bare, "third", "faces")
        bare.refused(job, link.replace("INSERT", "INSERT OR REPLACE"))


def test_whether_a_job_is_live_cannot_be_written_against_its_state(bare: Bare) -> None:
    bare.refused(*new_job(bare, "first", "faces", live="false"))
    bare.refused(*new_job(bare, "first", "faces", state="done"))
    bare.do(*new_job(bare, "first", "faces"))
    bare.refused("UPDATE job_task SET live = false WHERE job_id = 'first'")


def test_a_fence_never_falls_and_a_job_keeps_what_it_was_asked_to_do(bare: Bare) -> None:
    bare.do(*new_job(bare, "first", "faces"), "UPDATE job SET fence = 3 WHERE id = 'first'")
    bare.refused("UPDATE job SET fence = 2 WHERE id = 'first'", words="never falls")
    bare.refused("UPDATE job SET payload = '[]' WHERE id = 'first'", words="never changed")


def test_a_state_level_or_mode_that_does_not_exist_is_refused(bare: Bare) -> None:
    bare.refused("UPDATE job SET state = 'sleeping'")
    bare.refused(*new_job(bare, "first", "faces", state="sleeping", live="false"))
