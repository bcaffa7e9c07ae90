"""The schema: made by the migrations, equal to the models, guarded, and refused where it is newer."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, inspect, make_url, select, text
from sqlalchemy.orm import Session

import migrations.guards
from affinery import __version__
from migrations import guards_0001
from registry import (
    adapters,
    beginnings,
    compositions,
    errors,
    evaluations,
    exports,
    guards,
    invariants,
    protection,
    tasks,
)
from registry.models import Attempt, Base, Job, Metric
from registry.session import HEAD, KNOWN, Sessions, check_schema, connect, sessions
from tests import first_schema
from tests import registry_world as world


def test_what_the_migrations_make_is_what_the_models_say(engine: Engine) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_every_check_of_the_models_is_in_the_database(engine: Engine) -> None:
    from sqlalchemy import CheckConstraint

    inspector = inspect(engine)
    for table in Base.metadata.sorted_tables:
        wanted = {str(check.name) for check in table.constraints if isinstance(check, CheckConstraint)}
        found = {str(check["name"]) for check in inspector.get_check_constraints(table.name)}
        assert found == wanted, table.name


def test_this_program_s_schema_is_the_last_migration() -> None:
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(migrations.config())
    assert script.get_current_head() == HEAD
    assert sorted(revision.revision for revision in script.walk_revisions()) == sorted(KNOWN)


def test_the_triggers_after_migration_are_those_that_are_checked_at_start(engine: Engine) -> None:
    with engine.connect() as connection:
        assert guards.found(connection) == guards.EXPECTED[engine.dialect.name]
    assert migrations.guards.digests() == guards.EXPECTED, "write it anew: python -m migrations.guards"


def test_bringing_up_twice_changes_nothing(engine: Engine, registry_url: str, ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.learnt_on_new_backbone(session)
    migrations.upgrade(registry_url)
    check_schema(engine)
    with ledger.read() as session:
        assert [adapter.ref for adapter in adapters.list_all(session)] == ["digits@1"]


def test_a_registry_remembers_which_version_made_it(engine: Engine) -> None:
    with engine.connect() as connection:
        made_by = connection.execute(text("SELECT value FROM registry_info WHERE key = 'affinery_version'"))
        assert made_by.scalar() is not None


def _make_newer(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("UPDATE registry_info SET value = '9.9.9' WHERE key = 'affinery_version'"))


def test_a_registry_of_a_newer_schema_is_refused_with_the_version_to_install(
    engine: Engine, registry_url: str
) -> None:
    _make_newer(engine)
    for touch in (lambda: check_schema(engine), lambda: migrations.upgrade(registry_url)):
        with pytest.raises(errors.RegistryTooNew) as caught:
            touch()
        assert caught.value.args == ("9999", HEAD, "9.9.9")
        assert "Affinery 9.9.9" in str(caught.value)
        assert "pip install 'affinery>=9.9.9'" in str(caught.value)


def test_the_version_that_runs_is_not_the_one_to_install(engine: Engine) -> None:
    _make_newer(engine)
    with engine.begin() as connection:
        own = {"own": __version__}
        connection.execute(text("UPDATE registry_info SET value = :own WHERE key = 'affinery_version'"), own)
        (finding,) = protection.at_head(connection)
    with pytest.raises(errors.RegistryTooNew) as caught:
        check_schema(engine)
    mend = "Install the newer version of Affinery: pip install --upgrade affinery"
    assert "made by a newer Affinery" in str(caught.value)
    assert str(caught.value).endswith(mend)
    assert finding.mend == mend


def test_a_registry_of_an_older_schema_is_said_to_be_outdated(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.session.KNOWN", ("0000", HEAD))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    with pytest.raises(errors.RegistryOutdated, match=f"schema 0000; this one needs {HEAD}"):
        check_schema(engine)


def test_a_registry_so_new_that_it_does_not_say_what_made_it_is_refused_too(engine: Engine) -> None:
    _make_newer(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE registry_info"))
    with pytest.raises(errors.RegistryTooNew, match="a newer Affinery"):
        check_schema(engine)


def test_refusing_a_newer_registry_does_not_touch_its_file(sqlite_url: str) -> None:
    engine = connect(sqlite_url)
    _make_newer(engine)
    engine.dispose()
    path = Path(str(make_url(sqlite_url).database))
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(errors.RegistryTooNew):
        migrations.upgrade(sqlite_url)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_a_registry_that_lost_a_guard_is_refused_by_name(engine: Engine) -> None:
    with engine.begin() as connection:
        table = " ON adapter" if engine.dialect.name == "postgresql" else ""
        connection.execute(text(f"DROP TRIGGER adapter_no_update{table}"))
    with pytest.raises(errors.RegistryDamaged, match="'adapter_no_update'"):
        check_schema(engine)


@pytest.mark.postgres
def test_a_guard_that_is_switched_off_counts_as_lost(postgresql_url: str) -> None:
    engine = connect(postgresql_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE adapter DISABLE TRIGGER adapter_fence"))
    with pytest.raises(errors.RegistryDamaged, match="'adapter_fence'"):
        check_schema(engine)
    engine.dispose()


def test_a_missing_registry_is_said_to_be_missing_and_looking_creates_nothing(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'registry.db'}")
    with pytest.raises(errors.RegistryMissing, match="affinery init"):
        check_schema(engine)
    with pytest.raises(errors.RegistryMissing), sessions(engine).read() as session:
        tasks.list_all(session)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_is_said_to_be_missing(tmp_path: Path, empty_postgres_url: str) -> None:
    (tmp_path / "empty.db").touch()
    for url in (f"sqlite:///{tmp_path / 'empty.db'}", empty_postgres_url):
        engine = connect(url)
        with pytest.raises(errors.RegistryMissing):
            check_schema(engine)
        engine.dispose()


def test_a_file_that_is_no_database_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"not a database, but long enough to be read as one\n" * 40)
    with pytest.raises(errors.RegistryDamaged, match="not a whole SQLite database"):
        check_schema(connect(f"sqlite:///{tmp_path / 'registry.db'}"))
    with pytest.raises(errors.RegistryDamaged):
        migrations.upgrade(f"sqlite:///{tmp_path / 'registry.db'}")


def test_a_server_that_does_not_answer_is_said_to_be_unreachable_without_its_password() -> None:
    with pytest.raises(errors.RegistryUnreachable) as caught:
        check_schema(connect("postgresql://someone:secret@127.0.0.1:9/none"))
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_migration_that_fails_half_way_leaves_nothing(
    tmp_path: Path, empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = dict(guards_0001.sqlite()) | {"zz_broken": "CREATE TRIGGER zz_broken BEFORE NONSENSE"}
    broken_pg = dict(guards_0001.postgresql()) | {"zz_broken": ("SELECT 1", "CREATE TRIGGER NONSENSE")}
    monkeypatch.setattr(guards_0001, "sqlite", lambda: broken)
    monkeypatch.setattr(guards_0001, "postgresql", lambda: broken_pg)
    for url in (f"sqlite:///{tmp_path / 'registry.db'}", empty_postgres_url):
        with pytest.raises(Exception, match=r"(?i)syntax"):
            migrations.upgrade(url)
        engine = connect(url)
        assert inspect(engine).get_table_names() == []
        engine.dispose()
    monkeypatch.undo()
    migrations.upgrade(empty_postgres_url)
    check_schema(connect(empty_postgres_url))


# --- from earlier revisions, with data -----------------------------------------------------------


def test_a_registry_of_the_first_schema_is_brought_up_with_what_it_holds(
    tmp_path: Path, empty_postgres_url: str
) -> None:
    from alembic import command

    for url in (f"sqlite:///{tmp_path / 'registry.db'}", empty_postgres_url):
        engine = connect(url, create=True)
        settings = migrations.config()
        with engine.begin() as connection:
            settings.attributes["connection"] = connection
            command.upgrade(settings, "0001")
            first_schema.fill(connection)
        with pytest.raises(errors.RegistryOutdated, match="schema 0001"):
            check_schema(engine)
        migrations.upgrade(url)
        check_schema(engine)
        with sessions(engine).read() as session:
            assert [(a.ref, a.metrics, a.fence) for a in adapters.list_all(session)] == [
                (f"{name}@1", metrics, 1) for name, metrics in first_schema.METRICS.items()
            ]
            metrics = select(Metric.name, Metric.value).order_by(Metric.adapter_id)
            found = [tuple(row) for row in session.execute(metrics)]
            assert found == [("loss", 0.25), ("recognition.share", 0.5)]
            jobs = {job.id: job for job in session.scalars(select(Job))}
            assert [job.id for job in sorted(jobs.values(), key=lambda job: job.number)] == [
                *first_schema.STATES
            ]
            assert {job.id: job.payload["recipe"]["steps"] for job in jobs.values()} == {
                name: place for place, name in enumerate(first_schema.STATES)
            }
            assert {name: job.state for name, job in jobs.items()} == first_schema.STATES | {"failed": "dead"}
            waits = {job.id: (job.waits, job.lost_need_id) for job in jobs.values() if job.waits}
            assert waits == {"hopeless": (1, "failed"), "waiting": (1, None)}
            assert {(job.attempts, job.failures) for job in jobs.values()} == {(1, 0), (1, 1)}
            assert {job.backbone_id for job in jobs.values()} == {1}
        with sessions(engine).begin() as session:
            session.add(Job(id="next", payload={}))
            session.flush()
            assert session.get_one(Job, "next").number == len(first_schema.STATES) + 1
        engine.dispose()


LATER = {
    "0002": ("tag", "note", "alias_move"),
    "0003": ("request",),
    "0004": ("schedule", "queue_limit"),
    "0005": ("evaluation", "figure", "renaming"),
}


@pytest.mark.parametrize("revision", KNOWN[:-1])
def test_a_registry_of_any_earlier_schema_becomes_one_that_verifies(
    revision: str, tmp_path: Path, empty_postgres_url: str
) -> None:
    from alembic import command
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    for url in (f"sqlite:///{tmp_path / 'registry.db'}", empty_postgres_url):
        engine = connect(url, create=True)
        settings = migrations.config()
        for name in ("0001", *([revision] if revision > "0001" else ())):
            with engine.begin() as connection:
                settings.attributes["connection"] = connection
                command.upgrade(settings, name)
                if name == "0001":
                    first_schema.fill(connection)
        with engine.begin() as connection:
            first_schema.fill_later(connection, revision)
            counted = {name: _count(connection, name) for name in inspect(connection).get_table_names()}
        migrations.upgrade(url)
        check_schema(engine)
        with engine.connect() as connection:
            now = {name: _count(connection, name) for name in counted}
            changed = {name for name, count in counted.items() if now[name] != count}
            assert changed <= {"registry_info"}
            assert all(now[table] for at, tables in LATER.items() if at <= revision for table in tables)
            assert guards.found(connection) == guards.EXPECTED[engine.dialect.name]
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, Base.metadata) == []
        assert list(protection.protected(engine)) == []
        with sessions(engine).read() as session:
            assert list(invariants.broken(session)) == []
            _means_what_it_meant(session, revision)
        engine.dispose()


def _means_what_it_meant(session: Session, revision: str) -> None:
    """What was recorded under the earlier schema is found, under the names that it had last."""
    named = revision >= "0005"
    first, whole = ("numerals", "everything") if named else ("digits", "all")
    assert [each.ref for each in adapters.list_all(session)] == [f"{first}@1", "faces@1"]
    assert [(each.ref, each.members) for each in compositions.list_all(session)] == [
        (f"{whole}@1", (f"{first}@1",))
    ]
    assert exports.get(session, whole).path == "/all"
    for kind in (Job, Attempt):
        [(told, here)] = session.execute(select(kind.error, kind.error_here).where(kind.error.is_not(None)))
        assert ("/srv" in str(told), here) == (False, first_schema.WHY)
    awaited = session.scalars(select(Job.id).where(Job.awaited))
    assert set(awaited) == {need for _, need in first_schema.NEEDS}
    if revision >= "0002":
        assert adapters.get(session, f"{first}@champion").ref == f"{first}@1"
    if named:
        with pytest.raises(errors.Renamed, match="numerals"):
            tasks.get(session, "digits")
        (found,) = evaluations.list_for(session, "numerals")
        assert found.results["kid"] == {"mean": 0.5}
        successor = tasks.get(session, "digits.dit-2")
        assert (successor.backbone, successor.predecessor) == ("transformer@2", "numerals")
        assert (successor.dataset, successor.state) == ("digits@2", "scheduled")
        assert beginnings.of(session, "again")[successor.node_id].warm_start_id == 5


def _count(connection: Connection, table: str) -> int:
    return int(connection.execute(text(f'SELECT count(*) FROM "{table}"')).scalar_one())
