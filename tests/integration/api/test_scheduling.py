"""Everything that changes things over HTTP: from a folder of images to a job, by the code of the commands."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from affinery_app.api import uploads
from orchestration.queue import schedules
from registry import compositions, tokens
from registry.models import Dataset, Job, Schedule, Task
from tests import learning_world as world
from tests.integration.api.conftest import Reply, Service
from tests.registry_world import sha

BINARY = {"Content_Type": "application/octet-stream"}
TINY = {"steps": 8, "batch": 4, "warmup": 2}


def new(*names: str, **more: Any) -> dict[str, Any]:
    return {"tasks": [{"name": name} for name in names], "backbone": "tiny", "recipe": TINY, **more}


def post(service: Service, path: str, body: Any, **headers: str) -> Reply:
    return service.ask("POST", path, body, **headers)


# --- tasks and jobs --------------------------------------------------------------------------------


def test_tasks_are_scheduled_as_the_command_does(learnable: Service) -> None:
    estimated = post(learnable, "/v1/tasks/estimate", new("shapes", "shades")).json
    assert [job["tasks"] for job in estimated["jobs"]] == [["shapes", "shades"]]
    assert learnable.count(Task) == learnable.count(Job) == 0
    asked = new(
        "shapes", "shades", kind="lora", config={"rank": 2}, priority=3, run_at="2030-01-01T00:00:00Z"
    )
    reply = post(learnable, "/v1/tasks", asked, Idempotency_Key="both")
    (job,) = reply.json["jobs"]
    assert (reply.status, job["new"], job["priority"]) == (201, True, 3)
    assert job["submitted_by"] == "this machine"
    assert job["run_at"].startswith("2030-01-01T00:00")
    assert learnable.get(reply.headers["location"])["tasks"] == ["shapes", "shades"]
    again = post(learnable, "/v1/tasks", asked, Idempotency_Key="both")
    assert (again.json["jobs"][0]["id"], again.headers["idempotency-replayed"]) == (job["id"], "true")
    assert learnable.count(Job) == 1
    task = learnable.get("/v1/tasks/shapes")
    assert (task["kind"], task["config"]["rank"]) == ("lora", 2)


def test_tasks_apart_wait_for_what_they_are_told_to(learnable: Service) -> None:
    first = post(learnable, "/v1/tasks", new("shapes")).json["jobs"][0]
    second = post(learnable, "/v1/tasks", new("shades", after=[str(first["number"])])).json["jobs"][0]
    assert second["needs"] == [first["id"]]
    assert second["waits"] == 1


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"backbone": "none"}, 404, "There is no backbone"),
        ({"kind": "loran"}, 404, "Did you mean"),
        ({"recipe": {"step": 1}}, 422, "step"),
        ({"recipe": {"steps": -1}}, 422, "steps"),
        ({"config": {"rank": 0}}, 422, "rank"),
        ({"tasks": [{"name": "shapes"}, {"name": "shapes"}]}, 409, "shapes"),
        ({"tasks": [{"name": "../x", "dataset": "shapes"}]}, 422, "cannot be the name"),
        ({"tasks": [{"name": "shapes", "condition": {"name": "sonar"}}]}, 404, "sonar"),
        ({"run_at": "9999-12-31T23:59:59-23:59"}, 422, "run_at"),
        ({"run_at": "2030-01-01T00:00:00"}, 422, "run_at"),
        ({"after": ["99"]}, 404, "99"),
        ({"cpus": 1e400}, 422, "cpus"),
        ({"out": "/etc"}, 422, "out"),
    ],
)
def test_what_cannot_be_scheduled_is_said_and_nothing_is_kept(
    learnable: Service, change: dict[str, Any], status: int, words: str
) -> None:
    reply = post(learnable, "/v1/tasks", new("shapes") | change)
    assert reply.status == status, reply.body
    assert words in reply.json["detail"]
    assert learnable.count(Task) == learnable.count(Job) == 0


def test_jobs_are_held_moved_ended_and_taken_up_again(learnable: Service) -> None:
    job = post(learnable, "/v1/tasks", new("shapes")).json["jobs"][0]
    place = f"/v1/jobs/{job['number']}"
    assert post(learnable, f"{place}/pause", None).json["state"] == "paused"
    assert post(learnable, f"{place}/resume", None, Idempotency_Key="r").json["state"] == "queued"
    assert (
        post(learnable, f"{place}/resume", None, Idempotency_Key="r").headers["idempotency-replayed"]
        == "true"
    )
    assert post(learnable, f"{place}/priority", {"priority": 7}).json["priority"] == 7
    assert post(learnable, f"{place}/cancel", None).json["state"] == "cancelled"
    assert post(learnable, f"{place}/pause", None).status == 409
    assert post(learnable, f"{place}/retry", {"waiting": True}).json["state"] == "queued"
    assert post(learnable, "/v1/jobs/99/cancel", None).status == 404
    assert learnable.get(f"{place}/log") == {"job": job["id"], "attempt": None, "from_byte": 0, "log": ""}
    assert learnable.ask("GET", f"{place}/log?attempt=99").status == 404
    assert learnable.get("/v1/stats")["jobs"] == {"queued": 1}


def test_a_job_is_changed_only_as_it_was_read_and_a_request_sent_again_changes_it_once(
    either: Service,
) -> None:
    place = f"/v1/jobs/{post(either, '/v1/jobs', {'kind': 'verify'}).json['number']}"
    read = either.ask("GET", place).headers["etag"]
    several = f'"another", {read}'
    moved = post(either, f"{place}/priority", {"priority": 7}, If_Match=several, Idempotency_Key="p")
    assert (moved.status, moved.json["priority"]) == (200, 7)
    assert moved.headers["etag"] == either.ask("GET", place).headers["etag"] != read
    again = post(either, f"{place}/priority", {"priority": 7}, If_Match=several, Idempotency_Key="p")
    assert (again.status, again.headers["idempotency-replayed"], again.headers["etag"]) == (
        200,
        "true",
        moved.headers["etag"],
    )
    other = post(either, f"{place}/priority", {"priority": 8}, If_Match=read, Idempotency_Key="p")
    assert (other.status, other.json["type"]) == (422, "urn:affinery:key-reused")
    for verb, body in (
        ("cancel", None),
        ("pause", None),
        ("resume", None),
        ("retry", {}),
        ("priority", {"priority": 1}),
    ):
        stale = post(either, f"{place}/{verb}", body, If_Match=read)
        assert (stale.status, stale.json["type"]) == (412, "urn:affinery:precondition-failed"), verb
    assert either.get(place)["priority"] == 7
    # Two who read the same: one of them changes it.
    found = moved.headers["etag"]
    with ThreadPoolExecutor(4) as many:
        replies = list(
            many.map(lambda i: post(either, f"{place}/priority", {"priority": i}, If_Match=found), range(4))
        )
    assert sorted(reply.status for reply in replies) == [200, 412, 412, 412]
    assert post(either, f"{place}/cancel", None, If_Match="*").json["state"] == "cancelled"


@pytest.mark.parametrize("needs", [False, True])
def test_an_export_in_a_format_that_is_none_is_refused_when_it_is_scheduled(
    service: Service, needs: bool
) -> None:
    asked = {"kind": "export", "composition": "both"}
    made = post(service, "/v1/jobs", asked | {"format": "mlflow"})
    assert made.status == 201
    before = service.count(Job)
    after = {"after": [str(made.json["number"])]} if needs else {}
    refused = post(service, "/v1/jobs", asked | after | {"format": "safetensor"})
    assert refused.status == 422
    assert "There is no export format named 'safetensor'" in refused.json["detail"]
    assert "Known: aotinductor, bundle, diffusers" in refused.json["detail"]
    assert service.count(Job) == before


def test_an_upload_that_is_begun_again_is_the_same_one(service: Service) -> None:
    first = post(service, "/v1/uploads", {"size_bytes": 3}, Idempotency_Key="u")
    again = post(service, "/v1/uploads", {"size_bytes": 3}, Idempotency_Key="u")
    assert (again.json, again.headers["idempotency-replayed"]) == (first.json, "true")
    assert first.headers["location"] == again.headers["location"] == f"/v1/uploads/{first.json['upload']}"
    assert post(service, "/v1/uploads", {"size_bytes": 4}, Idempotency_Key="u").status == 422
    assert len(list((service.space.folder / "cache" / "uploads").iterdir())) == 1


def test_a_token_for_one_task_schedules_and_ends_that_one_only(
    learnable: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("affinery_app.api.access.LOOK_SECONDS", -1.0)
    other = post(learnable, "/v1/tasks", new("shades")).json["jobs"][0]
    with learnable.space.sessions.begin() as session:
        _, token = tokens.create(session, "lab", "schedule", tasks=["shapes"], by="ann")
        schedules.add(session, "nightly", "0 3 * * *", ["shades"], {})
    shown = {"Authorization": f"Bearer {token}"}
    for verb in ("pause", "resume"):
        assert post(learnable, f"/v1/schedules/nightly/{verb}", None, **shown).status == 403
    assert post(learnable, "/v1/tasks", new("shapes"), **shown).json["jobs"][0]["submitted_by"] == "lab"
    assert post(learnable, "/v1/tasks", new("shapes", "shades"), **shown).status == 403
    assert post(learnable, f"/v1/jobs/{other['number']}/cancel", None, **shown).status == 403
    for asked in ({"kind": "verify"}, {"kind": "retention", "backbone": "tiny"}):
        assert post(learnable, "/v1/jobs", asked, **shown).status == 403
    assert post(learnable, "/v1/jobs", {"kind": "train", "tasks": ["shades"]}, **shown).status == 403
    upload = post(learnable, "/v1/uploads", {}, **shown).json["upload"]
    theirs = {"name": "shades", "upload": upload, "sha256": "0" * 64}
    assert post(learnable, "/v1/datasets", theirs, **shown).status == 403


def test_jobs_of_every_kind_are_scheduled_and_once(service: Service) -> None:
    for asked in (
        {"kind": "evaluate", "adapters": ["digits"], "samples": 10, "against": "digits"},
        {"kind": "retention", "backbone": "dit", "samples": 10},
        {"kind": "export", "composition": "both", "format": "bundle"},
        {"kind": "rebase", "old": "dit", "new": "unet"},
        {"kind": "verify"},
    ):
        first = post(service, "/v1/jobs", asked, Idempotency_Key=str(asked["kind"]))
        again = post(service, "/v1/jobs", asked, Idempotency_Key=str(asked["kind"]))
        assert (first.status, first.json["kind"]) == (201, asked["kind"]), first.body
        assert (again.json["id"], again.headers["idempotency-replayed"]) == (first.json["id"], "true")
    for wrong in (
        {"kind": "evaluate", "adapters": ["digits"], "extractor": "inception=/etc/passwd"},
        {"kind": "evaluate", "adapters": ["digits"], "condition_model": "/etc"},
        {"kind": "retention", "backbone": "dit", "extractor": "inception=/etc/passwd"},
        {"kind": "retention", "backbone": "dit", "samples": 0},
        {"kind": "export", "composition": "both", "out": "/etc"},
        {"kind": "dance"},
        {},
    ):
        assert post(service, "/v1/jobs", wrong).status == 422
    assert post(service, "/v1/jobs", {"kind": "export", "composition": "none"}).status == 404
    nowhere = {"kind": "evaluate", "adapters": ["digits"], "against": "none"}
    assert post(service, "/v1/jobs", nowhere).status == 404
    assert post(service, "/v1/jobs", {"kind": "retention", "backbone": "none"}).status == 404
    assert len(service.get("/v1/jobs?states=queued")["items"]) == 5


def test_tasks_are_trained_again_by_hand_and_by_the_clock(learnable: Service) -> None:
    post(learnable, "/v1/tasks", new("shapes"))
    busy = post(learnable, "/v1/jobs", {"kind": "train", "tasks": ["shapes"]})
    assert busy.status == 409
    nightly = {"name": "nightly", "cron": "0 3 * * *", "tasks": ["shapes"], "recipe": TINY}
    made = post(learnable, "/v1/schedules", nightly, Idempotency_Key="n")
    assert (made.status, made.json["recipe"]["steps"]) == (201, 8)
    assert post(learnable, "/v1/schedules", nightly, Idempotency_Key="n").status == 201
    assert learnable.count(Schedule) == 1
    assert post(learnable, "/v1/schedules", nightly).status == 422
    assert post(learnable, "/v1/schedules", nightly | {"name": "x", "cron": "often"}).status == 422
    kept = learnable.get("/v1/schedules/nightly")
    assert kept["tasks"] == ["shapes"]
    assert kept["memory_bytes"] > 0
    paused = post(learnable, "/v1/schedules/nightly/pause", None, Idempotency_Key="p")
    assert (paused.status, paused.json["paused"]) == (200, True)
    resumed = post(learnable, "/v1/schedules/nightly/resume", None)
    assert (resumed.status, resumed.json["paused"]) == (200, False)
    assert post(learnable, "/v1/schedules/nightly/pause", None, Idempotency_Key="p").json == paused.json
    assert not learnable.get("/v1/schedules/nightly")["paused"]  # that pause is not done again
    assert learnable.ask("DELETE", "/v1/schedules/nightly").status == 200
    assert learnable.ask("DELETE", "/v1/schedules/nightly").status == 404


# --- datasets --------------------------------------------------------------------------------------


def zipped(files: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return held.getvalue()


def pictures(folder: Path) -> dict[str, bytes]:
    made = world.image_folder(folder, "cats", "dogs", each=3, seed=9)
    return {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*.png")}


def uploaded(service: Service, content: bytes) -> dict[str, str]:
    upload = post(service, "/v1/uploads", {"size_bytes": len(content)}).json["upload"]
    sent = service.ask("PUT", f"/v1/uploads/{upload}?offset=0", content, **BINARY)
    assert sent.json == {"upload": upload, "offset": len(content)}
    return {"upload": upload, "sha256": hashlib.sha256(content).hexdigest()}


def test_a_dataset_comes_in_parts_and_goes_on_where_it_broke_off(learnable: Service, tmp_path: Path) -> None:
    content = zipped(pictures(tmp_path / "pets"))
    upload = post(learnable, "/v1/uploads", {}).json["upload"]
    place, half = f"/v1/uploads/{upload}", len(content) // 2
    assert learnable.ask("PUT", f"{place}?offset=0", content[:half], **BINARY).json["offset"] == half
    wrong = learnable.ask("PUT", f"{place}?offset=0", content, **BINARY)
    assert (wrong.status, wrong.json["type"]) == (409, "urn:affinery:upload-moved")
    assert learnable.get(place)["offset"] == half
    assert learnable.ask("PUT", f"{place}?offset={half}", content[half:], **BINARY).status == 200
    asked = {"name": "pets", "upload": upload, "sha256": "0" * 64, "licence": "CC0-1.0"}
    differs = post(learnable, "/v1/datasets", asked)
    assert (differs.status, differs.json["type"]) == (422, "urn:affinery:upload-differs")
    asked["sha256"] = hashlib.sha256(content).hexdigest()
    made = post(learnable, "/v1/datasets", asked, Idempotency_Key="pets")
    assert made.status == 201, made.body
    assert (made.json["classes"], made.json["class_counts"]) == (["cats", "dogs"], [3, 3])
    again = post(learnable, "/v1/datasets", asked, Idempotency_Key="pets")
    assert (again.status, again.json) == (201, made.json)
    assert learnable.ask("GET", place).status == 404
    assert learnable.get("/v1/datasets/pets")["image_count"] == 6


def linked() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        entry = tarfile.TarInfo("cats/a.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    return held.getvalue()


def bomb() -> bytes:
    """A picture that says it has 65,000 × 65,000 points."""
    from PIL import Image

    held = io.BytesIO()
    Image.new("L", (1, 1)).save(held, "PNG")
    content = bytearray(held.getvalue())
    content[16:24] = (65_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


def test_hostile_archives_are_refused_and_leave_nothing(learnable: Service, tmp_path: Path) -> None:
    good = pictures(tmp_path / "pets")
    hostile = [
        zipped({"../../evil.png": good["cats/0.png"]}),
        zipped({"/etc/evil/a.png": good["cats/0.png"]}),
        zipped({"C:\\evil\\a.png": good["cats/0.png"]}),
        linked(),
        zipped({"cats/bomb.png": bomb()}),
        zipped({"cats/a.png": b"no picture"}),
        zipped({"cats/zeros.png": b"\0" * (8 << 20)}),
        zipped({}),
        zipped(good)[:-30],
        b"",
        b"\x1f\x8b" + b"\0" * 100,
        b"PAR1" + b"\0" * 100 + b"PAR1",
    ]
    before = learnable.count(Dataset)
    for content in hostile:
        reply = post(learnable, "/v1/datasets", {"name": "evil", **uploaded(learnable, content)})
        assert reply.status == 422, (content[:20], reply.body)
        assert str(learnable.space.folder) not in reply.json["detail"]
    assert learnable.count(Dataset) == before
    assert not (learnable.space.data / "evil").exists()
    assert list(tmp_path.parent.rglob("evil.png")) == []


def test_what_to_choose_for_a_dataset_is_named_as_the_field_that_it_is(
    learnable: Service, tmp_path: Path
) -> None:
    image = pictures(tmp_path / "pets")["cats/0.png"]
    splits = {f"{split}/cats/0.png": image for split in ("train", "val")}
    for files, chosen, words in (
        ({"cats/0.png": image, "cats/bad.png": b"no picture"}, {}, "; skip_bad leaves out what cannot be"),
        (splits, {"split": "tests"}, "choose with split, or split all"),
    ):
        asked = {"name": "odd", **uploaded(learnable, zipped(files)), **chosen}
        refused = post(learnable, "/v1/datasets", asked)
        assert refused.status == 422
        assert words in refused.json["detail"]
        assert "--" not in refused.json["detail"]


def test_an_upload_that_makes_no_sense_is_refused(service: Service) -> None:
    assert post(service, "/v1/uploads", {"size_bytes": 2**60}).status == 507
    upload = post(service, "/v1/uploads", {}).json["upload"]
    place = f"/v1/uploads/{upload}"
    assert service.ask("PUT", f"{place}?offset=0", b"x", Content_Type="text/plain").status == 415
    assert service.ask("PUT", f"{place}?offset=-1", b"x", **BINARY).status == 422
    assert service.ask("PUT", f"/v1/uploads/{'0' * 32}?offset=0", b"x", **BINARY).status == 404
    assert service.ask("PUT", "/v1/uploads/..%2f..%2fregistry.db?offset=0", b"x", **BINARY).status in (
        404,
        422,
    )
    assert service.ask("DELETE", place).status == 204
    assert service.ask("GET", place).status == 404


def test_a_part_that_goes_past_what_was_announced_is_taken_back(service: Service) -> None:
    upload = post(service, "/v1/uploads", {"size_bytes": 3 << 20}).json["upload"]
    place = f"/v1/uploads/{upload}"
    assert service.ask("PUT", f"{place}?offset=0", b"a", **BINARY).status == 200
    past = service.ask("PUT", f"{place}?offset=1", b"b" * (3 << 20), **BINARY)
    assert (past.status, past.json["type"]) == (413, "urn:affinery:upload-overlong")
    assert service.get(place)["offset"] == 1
    rest = service.ask("PUT", f"{place}?offset=1", b"b" * ((3 << 20) - 1), **BINARY)
    assert (rest.status, rest.json["offset"]) == (200, 3 << 20)


def test_an_upload_that_is_forgotten_while_a_part_comes_in_is_gone(service: Service) -> None:
    place = f"/v1/uploads/{post(service, '/v1/uploads', {}).json['upload']}"
    sending = HTTPConnection("127.0.0.1", service.port, timeout=60)
    sending.putrequest("PUT", f"{place}?offset=0")
    sending.putheader("Content-Type", "application/octet-stream")
    sending.putheader("Content-Length", "4")
    sending.endheaders(b"ab")
    while service.ask("PUT", f"{place}?offset=9", b"x", **BINARY).json["title"] == "Upload moved":
        pass  # until the other part is coming in
    assert service.ask("DELETE", place).status == 204
    sending.send(b"cd")
    answered = sending.getresponse()
    assert (answered.status, json.loads(answered.read())["type"]) == (404, "urn:affinery:not-found")
    sending.close()
    assert service.ask("GET", place).status == 404
    assert list((service.space.folder / "cache" / "uploads").iterdir()) == []


def test_nothing_is_made_of_an_upload_of_which_some_is_missing(service: Service) -> None:
    upload = post(service, "/v1/uploads", {"size_bytes": 1234}).json["upload"]
    place = f"/v1/uploads/{upload}"
    assert service.ask("PUT", f"{place}?offset=0", b"half", **BINARY).status == 200
    for noun in ("datasets", "backbones"):
        made = post(service, f"/v1/{noun}", {"name": "half", "upload": upload, "sha256": sha("half")})
        assert (made.status, made.json["type"]) == (409, "urn:affinery:upload-unfinished")
        assert "4 of 1,234 bytes are there" in made.json["detail"]
    assert service.get(place)["offset"] == 4


@pytest.mark.parametrize("place", ["/v1/uploads/{}?offset=0", f"/v1/blobs?digest={'0' * 64}"])
def test_the_room_on_the_disk_is_looked_at_as_bytes_come(
    service: Service, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    upload = post(service, "/v1/uploads", {}).json["upload"]
    cache = service.space.folder / "cache"
    come = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield bytes(1 << 20)
        while not any(path.is_file() and path.stat().st_size for path in cache.rglob("*")):
            come.wait(0.01)
        monkeypatch.setattr(uploads, "SPARE_BYTES", 1 << 62)
        yield bytes(1 << 20)

    line = HTTPConnection("127.0.0.1", service.port, timeout=60)
    method = "PUT" if "uploads" in place else "POST"
    line.request(
        method,
        place.format(upload),
        pieces(),
        {"Content-Type": "application/octet-stream"},
        encode_chunked=True,
    )
    reply = line.getresponse()
    assert (reply.status, json.load(reply)["type"]) == (507, "urn:affinery:no-room")
    line.close()


# --- exports ---------------------------------------------------------------------------------------


@pytest.fixture
def exported(service: Service) -> Service:
    """The service of a workspace with an export of a folder, a link out of it, and one of a file."""
    folder = service.space.exports / "both"
    (folder / "deep").mkdir(parents=True)
    (folder / "bundle.json").write_text("{}")
    (folder / "deep" / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "passwd").symlink_to("/etc/passwd")
    (service.space.exports / "both.onnx").write_bytes(b"onnx" * 1000)
    with service.space.sessions.begin() as session:
        for path, kind in ((folder, "bundle"), (service.space.exports / "both.onnx", "onnx")):
            compositions.record_export(
                session, composition="both", format=kind, digest=sha(kind), path=str(path), size_bytes=1
            )
    return service


def test_an_export_is_downloaded_whole_or_from_where_it_broke_off(exported: Service) -> None:
    files = exported.get("/v1/exports/both@2/files")["items"]
    assert [(each["path"], each["size_bytes"]) for each in files] == [
        ("bundle.json", 2),
        ("deep/weights.bin", 10_240),
    ]
    whole = exported.ask("GET", "/v1/exports/both@2/download")
    with tarfile.open(fileobj=io.BytesIO(whole.body)) as archive:
        assert archive.getnames() == ["both-2/bundle.json", "both-2/deep/weights.bin"]
    etag = whole.headers["etag"]
    rest = exported.ask("GET", "/v1/exports/both@2/download", Range="bytes=100-", If_Range=etag)
    assert (rest.status, rest.body) == (206, whole.body[100:])
    changed = exported.ask("GET", "/v1/exports/both@2/download", Range="bytes=100-", If_Range='"other"')
    assert (changed.status, changed.body) == (200, whole.body)
    assert exported.ask("GET", "/v1/exports/both@2/download", Range="bytes=9999999-").status == 416
    assert exported.ask("GET", "/v1/exports/both@3/download").body == b"onnx" * 1000
    part = exported.ask("GET", "/v1/exports/both@2/files/deep/weights.bin", Range="bytes=0-3")
    assert (part.status, part.body) == (206, bytes(range(4)))


def test_of_a_download_the_head_alone_says_how_much_it_is_and_who_has_it_gets_nothing(
    exported: Service,
) -> None:
    for place, size in (
        ("/v1/exports/both@3/download", 4000),
        ("/v1/exports/both@2/files/deep/weights.bin", 10_240),
    ):
        whole = exported.ask("GET", place)
        head = exported.ask("HEAD", place)
        assert (head.status, head.headers["content-length"], head.body) == (200, str(size), b"")
        assert (head.headers["etag"], head.headers["accept-ranges"]) == (whole.headers["etag"], "bytes")
        had = f'"other", W/{whole.headers["etag"]}'
        same = exported.ask("GET", place, If_None_Match=had, Range="bytes=0-3")
        assert (same.status, same.body, same.headers["etag"]) == (304, b"", whole.headers["etag"])
        assert exported.ask("GET", place, If_None_Match='"other"').body == whole.body
    assert exported.ask("HEAD", "/v1/exports/both@2/files/passwd").status == 404


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=abc", "items=0-1", "bytes=", "bytes", "bytes=0-1,x"])
def test_a_range_that_is_none_is_ignored(exported: Service, asked: str) -> None:
    for place in ("/v1/exports/both@3/download", "/v1/exports/both@2/files/deep/weights.bin"):
        reply = exported.ask("GET", place, Range=asked)
        assert (reply.status, reply.body) == (200, exported.ask("GET", place).body)


@pytest.mark.parametrize("asked", ["bytes=99999999999-", "bytes=-0", "bytes=4000-", "bytes=4000-4001,9999-"])
def test_a_range_of_which_nothing_is_there_is_a_problem_that_says_the_size(
    exported: Service, asked: str
) -> None:
    reply = exported.ask("GET", "/v1/exports/both@3/download", Range=asked)
    assert (reply.status, reply.headers["content-type"]) == (416, "application/problem+json")
    assert reply.json["type"] == "urn:affinery:range-not-satisfiable"
    assert reply.headers["content-range"] == "bytes */4000"


def test_of_several_ranges_those_are_sent_that_are_there(exported: Service) -> None:
    place = "/v1/exports/both@3/download"
    for asked, held in (
        ("bytes=9999-,2-5", b"nxon"),
        ("BYTES=-2", b"nx"),
        ("bytes=3990-9999", b"nxonnxonnx"),
    ):
        reply = exported.ask("GET", place, Range=asked)
        assert (reply.status, reply.body) == (206, held)
    several = exported.ask("GET", place, Range="bytes=0-1, 8-9")
    assert (several.status, several.headers["content-type"][:20]) == (206, "multipart/byteranges")


def test_nothing_but_what_was_written_is_downloaded(exported: Service) -> None:
    for path in (
        "passwd",
        "../../registry.db",
        "%2e%2e/%2e%2e/registry.db",
        "/etc/passwd",
        "deep",
        "",
        "%00",
    ):
        reply = exported.ask("GET", f"/v1/exports/both@2/files/{path}")
        assert reply.status in (404, 307), path
        assert b"root:" not in reply.body
    gone = exported.ask("GET", "/v1/exports/both@1/download")
    assert (gone.status, gone.json["type"]) == (404, "urn:affinery:file-gone")
    assert "/b" not in gone.json["detail"].split()


# --- what there is ---------------------------------------------------------------------------------


def test_search_evaluations_and_numbers(service: Service) -> None:
    found = service.get("/v1/search?q=digits")
    assert found["meant"]["ref"] == "adapter:digits@2"
    assert [task["name"] for task in found["tasks"]] == ["digits"]
    assert [each["ref"] for each in found["things"]] == ["dataset:digits@1"]
    alike = service.get("/v1/search?q=OT")
    assert (alike["meant"], [each["ref"] for each in alike["things"]]) == (None, ["composition:both@1"])
    assert [each["ref"] for each in service.get("/v1/search?q=kind%3Daffiner")["adapters"]]
    assert service.get("/v1/search?q=%25%00x".replace("%00", ""))["tasks"] == []
    (measured,) = service.get("/v1/evaluations?adapter=faces")["items"]
    assert measured["results"]["kid"]["mean"] == 0.02
    same = service.get("/v1/evaluations/compare?left=faces&right=faces")
    assert same["figures"]["kid.mean"] == {"left": 0.02, "right": 0.02}
    assert service.ask("GET", "/v1/evaluations/compare?left=faces&right=digits").status == 422
    assert service.get("/v1/stats")["things"]["adapter"] == 4
