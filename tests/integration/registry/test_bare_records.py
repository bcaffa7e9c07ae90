"""What the database refuses of evaluations, names, successors and waiting jobs: plain SQL, both engines."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from registry import renaming, tasks
from registry.session import connect, sessions
from tests import registry_world as world
from tests.bare_database import NOW, Bare, adapter_of, node_of
from tests.integration.registry.test_bare_database import new_job


@pytest.fixture
def bare(recorded_url: str) -> Iterator[Bare]:
    """A bare connection to a registry in which everything is recorded at least once."""
    bare = Bare(recorded_url)
    yield bare
    bare.connection.close()


def new_evaluation(bare: Bare, adapter: int, dataset: int, **given: str) -> list[str]:
    """The statements of an evaluation as it must be."""
    values = {"kind": "evaluation", "job": "NULL", "fence": "NULL", "reference": "reference"} | given
    edges = [
        f"INSERT INTO edge (child, parent, role, pos) VALUES ({bare.new_id}, {parent}, '{role}', {pos})"
        for pos, (parent, role) in enumerate([(adapter, "adapter"), (dataset, values["reference"])])
    ]
    row = (
        "INSERT INTO evaluation "
        "(node_id, adapter_id, dataset_id, protocol, protocol_digest, results, job_id, fence) "
        f"VALUES ({bare.new_id}, {adapter}, {dataset}, '{{}}', '{'6' * 64}', '{{\"kid\": 0.5}}', "
        f"{values['job']}, {values['fence']})"
    )
    return [bare.node(values["kind"]), *edges, row]


def test_an_evaluation_needs_its_lineage_its_kind_and_what_it_measures(bare: Bare) -> None:
    adapter, dataset = adapter_of(bare, "faces"), node_of(bare, "dataset", "name = 'faces'")
    bare.refused(*new_evaluation(bare, adapter, dataset, kind="certificate"), words="not an evaluation")
    bare.refused(*new_evaluation(bare, adapter, dataset, reference="other"), words="lineage")
    bare.refused(*new_evaluation(bare, dataset, dataset), words="(?i)adapter version|duplicate|unique")
    bare.refused(*new_evaluation(bare, adapter, adapter_of(bare, "digits")), words="dataset version")
    bare.refused(
        *new_evaluation(bare, adapter, dataset, job="'job-faces-1'", fence="1"), words="no longer held"
    )
    bare.refused(*new_evaluation(bare, adapter, dataset, fence="1"))
    bare.do(*new_evaluation(bare, adapter, dataset))
    assert bare.one("SELECT value FROM figure WHERE name = 'kid'") == 0.5


def test_a_figure_that_its_evaluation_does_not_say_is_refused_and_so_is_an_edge_added_later(
    bare: Bare,
) -> None:
    measured = node_of(bare, "evaluation", "true")
    bare.refused(f"INSERT INTO figure VALUES ({measured}, 'fid', 1)", words="what the results")
    edge = f"INSERT INTO edge (child, parent, role, pos) VALUES ({measured}, 1, 'extra', 9)"
    bare.refused(edge, words="never added to")


def new_name(kind: str, was: str, name: str, origin: str | None = None) -> str:
    return (
        "INSERT INTO renaming (kind, origin, was, name, at) "
        f"VALUES ('{kind}', '{origin or was}', '{was}', '{name}', '{NOW}')"
    )


@pytest.mark.parametrize("table", ["backbone", "dataset", "task", "composition", "export", "series"])
def test_a_name_is_changed_by_a_row_of_renaming_and_never_otherwise(bare: Bare, table: str) -> None:
    bare.refused(f"UPDATE {table} SET name = 'mine'", words="(?i)never changed otherwise|unique|duplicate")
    one = f"SELECT min(name) FROM {table}" + (" WHERE kind = 'dataset'" if table == "series" else "")
    bare.refused(f"UPDATE {table} SET name = 'mine' WHERE name = ({one})", words="never changed otherwise")


def test_a_renaming_must_tell_the_truth_and_an_old_name_is_never_given_again(bare: Bare) -> None:
    bare.refused(new_name("export", "both", "all"), words="only backbones")
    bare.refused(new_name("task", "nobody", "all"), words="nothing of this kind")
    bare.refused(new_name("task", "faces", "digits"), words="taken")
    bare.refused(new_name("task", "faces", "people", origin="digits"), words="origin")
    bare.refused(new_name("dataset", "photos", "pictures", origin="photos"), words="origin")
    bare.refused(new_name("dataset", "faces", "snaps"), words="belonged to something else")
    bare.refused(
        "INSERT INTO series (kind, name, next_version) VALUES ('dataset', 'snaps', 1)", words="belonged"
    )
    bare.do(new_name("dataset", "photos", "snaps", origin="snaps"))  # back to what it was first
    assert bare.one("SELECT count(*) FROM dataset WHERE name = 'snaps'") == 1
    bare.do(new_name("composition", "both", "all"))
    assert bare.one("SELECT count(*) FROM export WHERE name = 'all'") == 1
    assert bare.one("SELECT count(*) FROM event WHERE kind = 'composition.renamed'") == 1


def test_a_task_that_a_job_holds_keeps_its_name(bare: Bare) -> None:
    bare.do(*new_job(bare, "first", "faces"))
    bare.refused(new_name("task", "faces", "people"), words="while a job holds it")
    bare.do("UPDATE job SET state = 'cancelled' WHERE id = 'first'")
    bare.do(new_name("task", "faces", "people"))


def test_a_successor_of_other_classes_or_on_the_same_backbone_is_refused(recorded_url: str) -> None:
    ledger = sessions(connect(recorded_url))
    for other, on in (("faces", "dit"), ("wide", "unet")):
        with ledger.begin() as session:
            world.dataset(session, "wide", classes=4)
        with pytest.raises(Exception, match=r"successor|other classes"), ledger.begin() as session:
            tasks.register(
                session, name="next", backbone=on, dataset=other, kind="lora", config={}, predecessor="faces"
            )
    with ledger.begin() as session:
        made = tasks.register(
            session,
            name="next",
            backbone="unet",
            dataset="faces",
            kind="lora",
            config={},
            predecessor="faces",
        )
        assert (made.predecessor, made.classes) == ("faces", tasks.get(session, "faces").classes)
    with pytest.raises(Exception, match=r"(?i)unique"), ledger.begin() as session:
        tasks.register(
            session,
            name="twin",
            backbone="unet",
            dataset="faces",
            kind="lora",
            config={},
            predecessor="faces",
        )


def test_what_a_job_begins_from_is_said_before_it_is_claimed_and_keeps_the_classes(bare: Bare) -> None:
    bare.do(*new_job(bare, "first", "faces"))
    own, other = node_of(bare, "dataset", "name = 'faces'"), node_of(bare, "dataset", "name = 'photos'")
    bare.do(f"UPDATE job_task SET dataset_id = {own} WHERE job_id = 'first'")
    bare.do(f"UPDATE job_task SET dataset_id = {other} WHERE job_id = 'first'")  # of the same classes
    bare.do("UPDATE job SET fence = 1 WHERE id = 'first'")
    bare.refused(
        f"UPDATE job_task SET dataset_id = {own} WHERE job_id = 'first'", words="before it is claimed"
    )


def waits(job: str, needed: str) -> str:
    return f"INSERT INTO job_dependency (job_id, needs_job_id) VALUES ('{job}', '{needed}')"


def test_jobs_never_wait_for_each_other_in_a_circle(bare: Bare) -> None:
    for name, task in (("a", "faces"), ("b", "digits"), ("c", "birds")):
        bare.do(*new_job(bare, name, task))
    bare.do(waits("a", "b"))
    bare.do(waits("b", "c"))
    for job, needed in (("c", "a"), ("b", "a"), ("c", "b"), ("a", "a")):
        with pytest.raises(Exception, match=r"(?i)circle|constraint|not_itself"):
            bare.do(waits(job, needed))
    bare.do(waits("a", "c"))
    with pytest.raises(Exception, match="never changed"):
        bare.do("UPDATE job_dependency SET needs_job_id = 'a' WHERE job_id = 'b'")


@pytest.mark.postgres
def test_two_who_write_half_of_a_circle_each_do_not_both_succeed(postgresql_url: str) -> None:
    with sessions(connect(postgresql_url)).begin() as session:
        world.backbone(session)
        for name in ("a", "b"):
            world.task(session, name)
            world.job(session, name, name, state="queued", fence=0)
    one, two = psycopg.connect(postgresql_url), psycopg.connect(postgresql_url)
    one.execute(waits("a", "b"))
    failed: list[Exception] = []

    def other() -> None:
        try:
            two.execute(waits("b", "a"))
            two.commit()
        except psycopg.Error as error:
            failed.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    one.commit()
    thread.join(30)
    assert ["circle" in str(error) for error in failed] == [True]
    one.close()
    two.close()


def test_a_name_that_was_renamed_is_said_and_can_be_taken_back(recorded_url: str) -> None:
    with sessions(connect(recorded_url)).begin() as session:
        assert renaming.called_now(session, "dataset", "snaps") == "photos"
        renaming.rename(session, "dataset:photos", "snaps")
        assert renaming.called_now(session, "dataset", "snaps") == "snaps"
        assert renaming.names_ever(session, "dataset", "snaps") == {"snaps", "photos"}


@pytest.mark.postgres
def test_temporary_tables_tell_the_triggers_nothing(bare: Bare) -> None:
    if bare.sqlite:
        pytest.skip("its triggers see the tables of their own file only")
    adapter, dataset = adapter_of(bare, "faces"), node_of(bare, "dataset", "name = 'faces'")
    for table in ("adapter", "job", "edge", "task", "class_block", "evaluation", "dataset", "node"):
        bare.connection.execute(f"CREATE TEMPORARY TABLE {table} AS SELECT * FROM public.{table} LIMIT 0")
    with pytest.raises(psycopg.IntegrityError, match="never added to"):
        bare.connection.execute(f"INSERT INTO public.edge SELECT {adapter}, {dataset}, 'inspired-by', 9")
    base = "(SELECT min(node_id) FROM public.backbone)"
    with pytest.raises(psycopg.IntegrityError, match="starts where the last one ends"):
        bare.connection.execute(f"INSERT INTO public.class_block SELECT {adapter}, {base}, 0, 3")


TABLES = ["node", "edge", "event", "backbone", "class_block", "dataset", "run", "adapter", "certificate"]


@pytest.mark.parametrize("table", [*TABLES, "composition", "composition_member", "export", "alias_move"])
def test_a_conflict_does_not_turn_an_insert_into_an_edit(bare: Bare, table: str) -> None:
    first = {"edge": "child, parent, role", "composition_member": "composition_id, pos"}
    key = first.get(table, "owner_id" if table == "class_block" else "node_id")
    key = "id" if table in ("node", "event") else key
    if table == "alias_move":
        key = "task_id, name, number"
        owner, base = node_of(bare, "task", "name = 'digits'"), node_of(bare, "backbone", "name = 'dit'")
        bare.do(
            "INSERT INTO alias_move (task_id, name, number, backbone_id, adapter_id, at) "
            f"VALUES ({owner}, 'champion', 1, {base}, {adapter_of(bare, 'digits')}, '{NOW}')"
        )
    column = str(bare.connection.execute(f"SELECT * FROM {table}").description[-1][0])
    bare.refused(
        f"INSERT INTO {table} SELECT * FROM {table} WHERE true "
        f"ON CONFLICT ({key}) DO UPDATE SET {column} = excluded.{column}"
    )
