"""A selection moves between registries of either engine, whole or not at all, and no archive is trusted."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from affinery.errors import ConfigInvalid
from affinery_app.cli.commands import command_line
from registry import (
    adapters,
    aliases,
    archive,
    blobs,
    errors,
    evaluations,
    events,
    notes,
    renaming,
    retirement,
    tags,
    tasks,
    transfer,
)
from registry.digests import canonical, digest_of
from registry.models import Base, Job, JobTask
from registry.session import Sessions, connect, sessions
from registry.storage.local import LocalStore
from registry.verification import verify
from tests import registry_world as world
from tests.stored_world import Files

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def source(stored_url: str) -> Sessions:
    """The stored world, on one engine and then on the other."""
    return sessions(connect(stored_url))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def target(request: pytest.FixtureRequest) -> Sessions:
    """An empty registry, on one engine and then on the other."""
    return sessions(connect(str(request.getfixturevalue(f"{request.param}_url"))))


@pytest.fixture
def other(tmp_path: Path) -> LocalStore:
    """The empty store of the target."""
    return LocalStore(tmp_path / "other")


@pytest.fixture
def file(tmp_path: Path, stored_files: Path, sqlite_template: Path) -> Path:
    """An archive of everything."""
    ledger = sessions(connect(f"sqlite:///{stored_files / 'registry.db'}"))
    transfer.export(ledger, LocalStore(stored_files / "blobs"), tmp_path / "all.tar", ())
    return tmp_path / "all.tar"


def counted(ledger: Sessions) -> dict[str, int]:
    """Rows by table."""
    with ledger.read() as session:
        return {
            table.name: session.scalar(select(func.count()).select_from(table)) or 0
            for table in Base.metadata.sorted_tables
        }


def refused(target: Sessions, store: LocalStore, path: Path, words: str) -> None:
    """The archive is refused in these words, and nothing is written: no row, no lease, no byte."""
    before, held = counted(target), sorted(store.digests())
    with pytest.raises((errors.ArchiveInvalid, errors.ArchiveConflict, errors.NameInvalid), match=words):
        transfer.bring_in(target, store, path)
    assert counted(target) == before
    assert sorted(store.digests()) == held


# --- there and back --------------------------------------------------------------------------------


def test_everything_moves_between_engines_and_comes_out_the_same_to_the_byte(
    source: Sessions, store: LocalStore, target: Sessions, other: LocalStore, tmp_path: Path
) -> None:
    there = transfer.export(source, store, tmp_path / "there.tar", ())
    done = transfer.bring_in(target, other, tmp_path / "there.tar")
    assert done.digest == there.digest
    assert (done.things, len(done.new), done.blobs) == (23, 23, 10)
    assert list(verify(target.engine, other).findings) == []
    back = transfer.export(target, other, tmp_path / "back.tar", ())
    assert back.digest == there.digest
    assert (tmp_path / "back.tar").read_bytes() == (tmp_path / "there.tar").read_bytes()


def test_importing_twice_changes_nothing(file: Path, target: Sessions, other: LocalStore) -> None:
    transfer.bring_in(target, other, file)
    before = counted(target)
    again = transfer.bring_in(target, other, file)
    assert again.new == ()
    assert counted(target) == before


def test_a_dry_run_says_what_would_be_new_and_writes_nothing(
    file: Path, target: Sessions, other: LocalStore
) -> None:
    before = counted(target)
    assert len(transfer.bring_in(target, other, file, dry_run=True).new) == 23
    assert counted(target) == before
    assert list(other.digests()) == []


def test_a_thing_moves_with_all_that_it_needs_and_no_more(
    source: Sessions, store: LocalStore, target: Sessions, other: LocalStore, tmp_path: Path
) -> None:
    transfer.export(source, store, tmp_path / "faces.tar", ["faces"])
    done = transfer.bring_in(target, other, tmp_path / "faces.tar")
    named = [ref for ref in done.new if not ref.startswith(("run", "certificate", "evaluation"))]
    # The task before it on the backbone owns the class rows before its own; its adapters stay behind.
    assert named == [
        *("backbone:dit@1", "dataset:digits@1", "task:digits", "dataset:faces@1", "task:faces"),
        "adapter:faces@1",
    ]
    assert verify(target.engine, other).sound
    transfer.export(source, store, tmp_path / "digits.tar", ["digits@2"])
    more = transfer.bring_in(target, other, tmp_path / "digits.tar")
    assert [ref for ref in more.new if ref.startswith("adapter")] == ["adapter:digits@1", "adapter:digits@2"]
    transfer.export(source, store, tmp_path / "both.tar", ["both", "birds"])
    transfer.bring_in(target, other, tmp_path / "both.tar")
    assert list(verify(target.engine, other).findings) == []


def test_results_keep_the_job_and_fence_under_which_they_were_learnt_and_no_job_comes_alive(
    file: Path, target: Sessions, other: LocalStore
) -> None:
    transfer.bring_in(target, other, file)
    with target.begin() as session:
        record = adapters.get(session, "digits@2")
        assert (record.job_id, record.fence) == ("job-digits-2", 1)
        assert {job.state for job in session.scalars(select(Job))} == {"done"}
        assert not any(session.scalars(select(JobTask.live)))
        retirement.retire(session, "digits@1", "the record can be worked with")
        world.learnt(session, "digits", 3)
        assert adapters.get(session, "digits").version == 3
        assert world.task(session, "new").block == (17, 20)


# --- what hangs on them ----------------------------------------------------------------------------


def hung(source: Sessions) -> None:
    with source.begin() as session:
        tags.put(session, "digits@2", {"stage": "approved"})
        notes.write(session, "digits@2", "sharper")
        aliases.point(session, "champion", "digits@1")
        aliases.point(session, "champion", "digits@2")
        retirement.retire(session, "digits@1", "blurred")
        renaming.rename(session, "task:faces", "people")
        renaming.rename(session, "backbone:dit", "sit")


def test_what_hangs_on_things_comes_along_with_its_history_and_twice_changes_nothing(
    source: Sessions, store: LocalStore, target: Sessions, other: LocalStore, tmp_path: Path
) -> None:
    hung(source)
    there = transfer.export(source, store, tmp_path / "there.tar", ())
    done = transfer.bring_in(target, other, tmp_path / "there.tar")
    assert {"tag stage of adapter:digits@2", "alias digits@champion"} < set(done.hung)
    with target.read() as session:
        assert tags.of(session, adapters.get(session, "digits@2").node_id) == {"stage": "approved"}
        assert notes.read(session, "digits@2").text == "sharper"
        moves = [move.adapter for move in aliases.history(session, "digits@champion")]
        assert moves == ["digits@2", "digits@1"]
        old = adapters.get(session, "digits@1").node_id
        assert retirement.of(session, [old])[old].reason == "blurred"
        assert adapters.get(session, "people").backbone == "sit@1"
        assert evaluations.list_for(session, "people")[0].results["images"] == 100
    assert list(verify(target.engine, other).findings) == []
    before = counted(target)
    again = transfer.bring_in(target, other, tmp_path / "there.tar")
    assert (again.new, again.hung, again.kept) == ((), (), ())
    assert counted(target) == before
    assert transfer.export(target, other, tmp_path / "back.tar", ()).digest == there.digest


def test_what_stands_here_already_keeps_what_it_has_and_histories_go_on_where_they_ended(
    source: Sessions, store: LocalStore, target: Sessions, other: LocalStore, file: Path, tmp_path: Path
) -> None:
    transfer.bring_in(target, other, file)
    with target.begin() as session:
        tags.put(session, "digits@2", {"stage": "ours"})
        aliases.point(session, "champion", "digits@1")
    hung(source)
    transfer.export(source, store, tmp_path / "later.tar", ())
    done = transfer.bring_in(target, other, tmp_path / "later.tar")
    assert done.new == ()
    assert "tag stage of adapter:digits@2" in done.kept
    with target.begin() as session:
        assert tags.of(session, adapters.get(session, "digits@2").node_id) == {"stage": "ours"}
        assert aliases.get(session, "digits@champion").adapter == "digits@2"
        assert adapters.get(session, "people").backbone == "sit@1"
        aliases.point(session, "champion", "digits@1")
    with source.begin() as session:
        aliases.remove(session, "digits@champion")
    transfer.export(source, store, tmp_path / "last.tar", ())
    assert "alias digits@champion" in transfer.bring_in(target, other, tmp_path / "last.tar").kept


# --- conflicts -------------------------------------------------------------------------------------


def test_a_name_that_is_taken_by_something_else_is_refused(
    file: Path, target: Sessions, other: LocalStore
) -> None:
    with target.begin() as session:
        world.backbone(session, "dit")
        world.dataset(session, "faces", classes=5)
        world.task(session, "digits")
    refused(target, other, file, r"(?s)backbone:dit@1: here that name has the digest.*dataset:faces@1: here")
    refused(target, other, file, "task:digits: here that name has the digest")


def test_class_rows_that_are_taken_are_refused_with_their_owner(
    file: Path, target: Sessions, other: LocalStore, tmp_path: Path
) -> None:
    with target.begin() as session:
        Files(other, tmp_path).backbone(session, "dit")
        world.task(session, "early", classes=2)
    refused(
        target,
        other,
        file,
        r"task:digits: its class rows \[11, 14\) belong to task 'early' on backbone:dit@1",
    )


def test_a_version_that_would_leave_a_gap_or_is_another_is_refused(
    source: Sessions, store: LocalStore, target: Sessions, other: LocalStore, tmp_path: Path
) -> None:
    transfer.export(source, store, tmp_path / "faces.tar", ["faces"])
    transfer.bring_in(target, other, tmp_path / "faces.tar")
    with target.begin() as session:
        Files(other, tmp_path).learnt(session, "faces", 5)
    with source.begin() as session:
        Files(store, tmp_path).learnt(session, "faces", 6)
    transfer.export(source, store, tmp_path / "more.tar", ["faces"])
    refused(target, other, tmp_path / "more.tar", "adapter:faces@2: here that name has the digest")


# --- archives of others ----------------------------------------------------------------------------


def members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        return [(entry, (tar.extractfile(entry) or io.BytesIO()).read()) for entry in tar]


def packed(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for entry, content in entries:
            tar.addfile(entry, io.BytesIO(content))
    return path


def entry_of(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Any:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname = len(content), kind, link
    return entry, content


@pytest.mark.parametrize(
    "extra",
    [
        entry_of("../../escaped", b"x"),
        entry_of("/absolute", b"x"),
        entry_of("blobs/../escaped", b"x"),
        entry_of("link", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        entry_of("hard", kind=tarfile.LNKTYPE, link="manifest.json"),
        entry_of("folder", kind=tarfile.DIRTYPE),
        entry_of("pipe", kind=tarfile.FIFOTYPE),
        entry_of("device", kind=tarfile.CHRTYPE),
        entry_of("n" * 200, b"x"),
        entry_of("manifest.json", b"{}"),
        entry_of("one-more", b"x"),
    ],
    ids=lambda entry: str(entry[0].name)[:20],
)
def test_an_archive_with_any_other_member_is_refused(
    file: Path, extra: tuple[tarfile.TarInfo, bytes], sqlite_url: str, other: LocalStore, tmp_path: Path
) -> None:
    target, held = sessions(connect(sqlite_url)), members(file)
    for place in (0, 1, 2, len(held)):
        made = packed(tmp_path / "made.tar", [*held[:place], extra, *held[place:]])
        refused(target, other, made, "should be|more behind|not of the format")
    assert not (tmp_path.parent / "escaped").exists()


def test_a_blob_that_is_a_link_to_another_file_is_refused(
    file: Path, sqlite_url: str, other: LocalStore, tmp_path: Path
) -> None:
    held = members(file)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE, b"9"):
        link = entry_of(held[2][0].name, b"" if kind != b"9" else held[2][1], kind, "/etc/passwd")
        made = packed(tmp_path / "made.tar", [*held[:2], link, *held[3:]])
        refused(sessions(connect(sqlite_url)), other, made, "should be|bytes")


def test_extended_headers_that_could_give_other_names_and_sizes_are_refused(
    file: Path, sqlite_url: str, other: LocalStore, tmp_path: Path
) -> None:
    held = members(file)
    held[2][0].pax_headers = {"path": "../../escaped", "size": "999999999999"}
    made = packed(tmp_path / "made.tar", held, tarfile.PAX_FORMAT)
    refused(sessions(connect(sqlite_url)), other, made, "should be")


def test_any_changed_lost_or_added_byte_is_found(
    file: Path, sqlite_url: str, other: LocalStore, tmp_path: Path
) -> None:
    target, content, made = sessions(connect(sqlite_url)), file.read_bytes(), tmp_path / "made.tar"
    used = len(content.rstrip(b"\0"))
    for at in (*range(0, 700, 9), *range(1024, used, 997), used - 1):
        changed = bytearray(content)
        changed[at] ^= 1
        made.write_bytes(changed)
        with pytest.raises(errors.ArchiveInvalid):
            archive.read(made)
    for short in (0, 100, 512, 1000, used // 2, used - 1):
        made.write_bytes(content[:short])
        refused(target, other, made, "cut off|changed|truncated|header|empty")
    made.write_bytes(content + b"x")
    refused(target, other, made, "more behind")
    made.write_bytes(content + b"\0" * 20_000)
    refused(target, other, made, "more behind")


def test_a_member_that_claims_to_be_enormous_allocates_nothing(
    file: Path, sqlite_url: str, other: LocalStore, tmp_path: Path
) -> None:
    for name, words in (("manifest.json", "larger than"), ("elsewhere", "should be")):
        entry = tarfile.TarInfo(name)
        entry.size = 1 << 50
        (tmp_path / "made.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + b"{" * 4096)
        refused(sessions(connect(sqlite_url)), other, tmp_path / "made.tar", words)


def test_what_is_no_archive_is_refused(sqlite_url: str, other: LocalStore, tmp_path: Path) -> None:
    for content in (b"", b"hello", b"\0" * 4096, b"PK\3\4" + b"x" * 4096, b"[" * 100_000):
        (tmp_path / "made.tar").write_bytes(content)
        refused(sessions(connect(sqlite_url)), other, tmp_path / "made.tar", "is not a whole archive")
    for text in (b"[]", b"{}", b'{"a":1,"a":2}', b"[" * 100_000, b'{"format":"affinery-archive-2"}'):
        packed(tmp_path / "made.tar", [entry_of("manifest.json", text)])
        refused(sessions(connect(sqlite_url)), other, tmp_path / "made.tar", "is not a whole archive")


# --- records of others: signed as ours are, and untrue ---------------------------------------------


def signed_anew(file: Path, made: Path, change: Change) -> Path:
    """The archive with another record, its digests made to fit."""
    held = members(file)
    manifest, record = json.loads(held[0][1]), json.loads(held[1][1])
    change(record)
    text = canonical(record)
    manifest["record"] = {"sha256": hashlib.sha256(text).hexdigest(), "size_bytes": len(text)}
    del manifest["digest"]
    manifest["digest"] = digest_of(manifest)
    entries = [entry_of("manifest.json", canonical(manifest)), entry_of("record.json", text), *held[2:]]
    return packed(made, entries)


def node(record: dict[str, Any], kind: str, number: int = 0) -> dict[str, Any]:
    found: list[dict[str, Any]] = [each for each in record["nodes"] if each["kind"] == kind]
    return found[number]


def put(kind: str, column: str, value: Any, number: int = 0) -> Change:
    return lambda record: node(record, kind, number)["row"].__setitem__(column, value)


UNTRUE: dict[str, tuple[Change, str]] = {
    "another schema": (lambda r: r.__setitem__("schema", 3), "schema"),
    "more than a record": (lambda r: r.__setitem__("extra", 2), "schema"),
    "an unknown kind": (lambda r: r["nodes"][0].__setitem__("kind", "dream"), "is no node"),
    "an unknown column": (put("task", "admin", True), "columns"),
    "a missing column": (lambda r: node(r, "task")["row"].pop("kind"), "columns"),
    "text for a number": (put("dataset", "size_bytes", "many"), "whole number"),
    "true for a number": (put("dataset", "size_bytes", True), "whole number"),
    "a number for text": (put("dataset", "licence", 7), "not text"),
    "a number too large": (put("dataset", "size_bytes", 2**64), "whole number"),
    "a missing value": (put("dataset", "licence", None), "missing"),
    "a name with a way": (put("task", "name", "../digits"), "cannot be the name"),
    "no instant": (lambda r: r["nodes"][0].__setitem__("created_at", "today"), "cannot be read"),
    "no digest": (lambda r: r["nodes"][0].__setitem__("digest", "../x"), "digest"),
    "a parent that is younger": (
        lambda r: r["nodes"][0]["edges"].append([5, "odd", 0]),
        "does not stand before it",
    ),
    "a parent that is none": (put("task", "backbone_id", -1), "does not stand before it"),
    "a backbone that is a dataset": (put("task", "backbone_id", 2), "is no backbone"),
    "a blob of another size": (put("adapter", "size_bytes", 1), "size of its row"),
    "a blob that is not there": (put("adapter", "golden_blob", "a" * 64), "exactly those"),
    "a blob that nothing needs": (put("adapter", "golden_blob", None), "exactly those"),
    "another task's rows": (put("task", "lo", 12, 1), "class rows"),
    "an edited task": (put("task", "config", {"d": 9}), "digest"),
    "an edited run": (put("run", "seed", 9), "digest"),
    "an edited certificate": (put("certificate", "level", "tolerance"), "digest"),
    "an edited composition": (put("composition", "mode", "merged"), "digest"),
    "an adapter of another kind": (put("adapter", "kind", "lora"), "says kind"),
    "an adapter's config": (put("adapter", "config", {"d": 1}), "says config"),
    "a backbone's spec": (put("backbone", "spec", {"arch": "unet"}), "spec differs"),
    "a backbone's fingerprint": (lambda r: node(r, "backbone")["row"].update(num_classes=9), "num_classes"),
    "a lost edge": (lambda r: node(r, "adapter")["edges"].pop(), "lineage"),
    "an edge too many": (lambda r: node(r, "task", 1)["edges"].append([2, "dataset", 9]), "lineage"),
    "a fence of nobody": (put("adapter", "fence", 9), "fence"),
    "a job of nobody": (lambda r: r["jobs"].clear(), "exactly those"),
    "a version after a gap": (put("adapter", "version", 7, 1), "the next version of that name here is 2"),
}


@pytest.mark.parametrize("name", UNTRUE)
def test_an_archive_whose_record_is_untrue_is_refused_though_it_is_signed(
    file: Path, name: str, target: Sessions, other: LocalStore, tmp_path: Path
) -> None:
    change, words = UNTRUE[name]
    made = signed_anew(file, tmp_path / "made.tar", change)
    before = counted(target)
    with pytest.raises(errors.RegistryError, match=words):
        transfer.bring_in(target, other, made)
    assert counted(target) == before


def test_an_export_of_damaged_bytes_leaves_no_archive(
    source: Sessions, store: LocalStore, tmp_path: Path
) -> None:
    with source.read() as session:
        place = store.path(adapters.get(session, "birds").blob_digest)
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.chmod(0o644)
    place.write_bytes(content)
    with pytest.raises(errors.BlobDamaged):
        transfer.export(source, store, tmp_path / "out" / "made.tar", ())
    assert list((tmp_path / "out").iterdir()) == []
    transfer.export(source, store, tmp_path / "out" / "made.tar", ["both"])


def test_what_happened_is_remembered_with_the_archives_digest(
    file: Path, target: Sessions, other: LocalStore
) -> None:
    done = transfer.bring_in(target, other, file)
    with target.read() as session:
        (event,) = events.list_after(session, kind="composition.imported")
        assert event.payload == {"ref": "composition:both@1", "archive": done.digest}
        assert blobs.live_uploads(session) == []


# --- the command -----------------------------------------------------------------------------------


def test_the_commands_move_a_selection_and_say_what_is_new(
    stored_url: str, store: LocalStore, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "affinery.toml").write_text("schema = 1\n")
    monkeypatch.setenv("AFFINERY_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("AFFINERY_REGISTRY_URL", stored_url)
    monkeypatch.setenv("AFFINERY_STORE_URL", str(store.root))
    out = str(tmp_path / "out.tar")
    made = json.loads(
        CliRunner().invoke(command_line(), ["registry", "export", out, "both", "--json"]).stdout
    )
    assert made["things"] == 13
    again = CliRunner().invoke(command_line(), ["registry", "export", out])
    assert again.exception is not None
    assert "there is a file of that name" in str(again.exception)
    monkeypatch.setenv("AFFINERY_REGISTRY_URL", sqlite_url)
    monkeypatch.setenv("AFFINERY_STORE_URL", str(tmp_path / "other"))
    with pytest.raises(ConfigInvalid, match="no such archive"):
        CliRunner().invoke(command_line(), ["registry", "import", "nowhere.tar"], catch_exceptions=False)
    shown = CliRunner().invoke(command_line(), ["registry", "import", out, "--dry-run"])
    assert "would be new" in shown.stdout
    brought = CliRunner().invoke(command_line(), ["registry", "import", out])
    assert brought.exit_code == 0
    assert "composition:both@1" in brought.stdout
    twice = json.loads(CliRunner().invoke(command_line(), ["registry", "import", out, "--json"]).stdout)
    assert twice["new"] == []
    assert twice["digest"] == made["digest"]
    with sessions(connect(sqlite_url)).read() as session:
        assert [task.name for task in tasks.list_all(session)] == ["digits", "faces"]
