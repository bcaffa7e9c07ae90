"""What the service writes: once, whole or not at all, and only over what was seen."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from safetensors.numpy import save

from affinery_app.api.guard import Limits
from affinery_app.wiring import Workspace
from orchestration.queue import schedules
from orchestration.tracking import compositions as tracked
from registry import backbones, certificates, collection, compositions, tasks
from registry.digests import canonical
from registry.models import Adapter, AliasMove, Blob, Composition, Request, Upload
from registry.session import Sessions
from registry.verification import verify
from tests import registry_world as world
from tests.integration.api.conftest import Reply, Service, serving

BYTES = "application/octet-stream"


def adapter_file(sessions: Sessions, name: str, seed: float = 1.0, **said: Any) -> bytes:
    """A file as an adapter of this task has it; said overrides what it says of itself."""
    with sessions.read() as session:
        task = tasks.get(session, name)
        backbone = backbones.by_id(session, task.backbone_id)
    meta = {
        "task": name,
        "kind": task.kind,
        "config": task.config,
        "backbone": backbone.digest,
        "null_index": backbone.null_index,
        "block": list(task.block),
        "class_names": list(task.classes),
        "layout": "append",
    }
    tensors: dict[str, Any] = {
        "class_rows": np.full((3, 4), seed, np.float32),
        "layers.a.up": np.ones(5, np.float16),
    }
    return save(tensors, metadata={"affinery.adapter": canonical(meta | said).decode()})


def test_a_limit_is_changed_only_as_it_was_read(either: Service) -> None:
    place = "/v1/limits/backbone/dit"
    assert either.ask("GET", place).status == 404
    assert either.ask("PUT", place, {"most": 1}, If_Match="*").status == 412
    made = either.ask("PUT", place, {"most": 1})
    assert (made.status, made.json) == (200, {"scope": "backbone", "key": "dit@1", "most": 1.0})
    assert either.ask("GET", place).headers["etag"] == made.headers["etag"]
    moved = either.ask("PUT", place, {"most": 2}, If_Match=made.headers["etag"])
    assert (moved.status, moved.json["most"]) == (200, 2.0)
    for method, body in (("PUT", {"most": 3}), ("DELETE", None)):
        late = either.ask(method, place, body, If_Match=made.headers["etag"])
        assert (late.status, late.json["type"]) == (412, "urn:affinery:precondition-failed")
    for most in (-1, 0.5, 10**400, "2", None, True):
        assert either.ask("PUT", place, {"most": most}).status == 422, most
    assert either.ask("PUT", "/v1/limits/resource/memory_bytes", {"most": 2**40}).status == 200
    assert either.ask("DELETE", place, If_Match=moved.headers["etag"]).json["most"] == 2.0
    assert either.ask("DELETE", place).status == 404
    kinds = [each["kind"] for each in either.get("/v1/events?kind=limit.removed")["items"]]
    assert kinds == ["limit.removed"]
    assert [each["key"] for each in either.get("/v1/limits")["items"]] == ["memory_bytes"]


def test_a_composition_is_told_to_mlflow_as_soon_as_it_is_recorded_and_once(service: Service) -> None:
    new = {"name": "pair", "backbone": "dit", "members": ["digits", "faces"]}
    made = service.ask("POST", "/v1/compositions", new, Idempotency_Key="pair")
    assert made.status == 201, made.body
    with service.space.sessions.read() as session:
        key = tracked.key_of(compositions.get(session, "pair"))
    kept = service.space.tracking.kept
    told = list(kept.operations(key))
    assert [each["name"] for each in told if each["op"] == "model"] == ["composition.pair"]
    assert service.ask("POST", "/v1/compositions", new, Idempotency_Key="pair").json == made.json
    assert service.ask("POST", "/v1/compositions", new).json == made.json
    assert list(kept.operations(key)) == told


def sent(service: Service, content: bytes, **headers: str) -> Reply:
    digest = hashlib.sha256(content).hexdigest()
    return service.ask("POST", f"/v1/blobs?digest={digest}", content, Content_Type=BYTES, **headers)


def test_an_adapter_trained_elsewhere_becomes_the_next_version_and_the_record_still_verifies(
    either: Service,
) -> None:
    content = adapter_file(either.space.sessions, "digits")
    upload = sent(either, content)
    assert upload.status == 201, upload.body
    new = {
        "task": "digits",
        "blob": upload.json["digest"],
        "upload": upload.json["upload"],
        "metrics": {"recognition": {"share": 0.75}},
        "provenance": {"where": "a laptop"},
        "mlflow_run_id": "run-elsewhere",
        "warm_start": "digits@1",
        "tags": {"owner": "ann", "stage": "trial"},
    }
    reply = either.ask("POST", "/v1/adapters", new)
    assert reply.status == 201, reply.body
    made = reply.json
    assert (made["ref"], made["digest"], made["job_id"]) == ("digits@3", upload.json["digest"], None)
    assert (made["parameters"], made["warm_start"], made["tags"]) == (17, "digits@1", new["tags"])
    assert made["provenance"] == {"where": "a laptop", "imported": True}
    assert either.get(reply.headers["location"]) == made  # with all that hangs on it
    assert [each["level"] for each in made["certificates"]] == ["unverified"]
    (found,) = either.get("/v1/adapters?filter=run%3Drun-elsewhere+and+metric.recognition%3D0.75")["items"]
    assert {name: made[name] for name in found} == found
    with either.space.sessions.read() as session:
        assert [each.level for each in certificates.list_for(session, "digits@3")] == ["unverified"]
    assert either.count(Upload) == 0
    findings = verify(either.space.sessions.engine, either.space.store, "adapter:digits@3").findings
    assert findings == []
    again = either.ask("POST", "/v1/adapters", new)
    assert (again.status, again.json) == (201, made)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("of another backbone", {"backbone": "0" * 64}, "trained on backbone"),
    ("of another task", {"task": "faces"}, "it says task faces"),
    ("of other rows", {"block": [200, 203]}, "it says block"),
    ("of another kind", {"kind": "lora"}, "it says kind lora"),
    ("of another config", {"config": {"d": 9}}, "it says config"),
    ("of other classes", {"class_names": ["a", "b", "c"]}, "it says class_names"),
    ("of another null row", {"null_index": 9}, "it says null_index"),
    ("told a condition", {"condition": {"name": "canny", "channels": 1}}, "it says condition"),
]


def test_a_file_that_is_not_of_its_task_is_refused_and_nothing_is_written(service: Service) -> None:
    sessions, before = service.space.sessions, service.count(Adapter)
    bad: list[tuple[bytes, str]] = [
        (adapter_file(sessions, "digits", **said), words) for _, said, words in REFUSED
    ]
    bad.append((adapter_file(sessions, "digits", float("nan")), "not finite"))
    bad.append((adapter_file(sessions, "digits", float("inf")), "not finite"))
    bad.append((b"no safetensors at all", "not a safetensors file"))
    bad.append((b"", "not a safetensors file"))
    for content, words in bad:
        digest = sent(service, content).json["digest"]
        reply = service.ask("POST", "/v1/adapters", {"task": "digits", "blob": digest})
        assert reply.status == 422, reply.body
        assert words in reply.json["detail"]
        assert str(service.space.folder) not in reply.json["detail"]
    assert service.count(Adapter) == before
    unknown = service.ask("POST", "/v1/adapters", {"task": "digits", "blob": "0" * 64})
    assert (unknown.status, unknown.json["type"]) == (422, "urn:affinery:blob-unknown")
    assert service.ask("POST", "/v1/adapters", {"task": "nobody", "blob": "0" * 64}).status == 404


def test_bytes_that_are_not_those_announced_are_refused_and_leave_nothing(service: Service) -> None:
    before = service.count(Blob), list(service.space.store.digests())
    path = f"/v1/blobs?digest={'0' * 64}"
    reply = service.ask("POST", path, b"something else", Content_Type=BYTES)
    assert (reply.status, reply.json["type"]) == (422, "urn:affinery:upload-differs")
    assert service.ask("POST", path, b"x", Content_Type="text/plain").status == 415
    assert service.ask("POST", "/v1/blobs?digest=abc", b"x", Content_Type=BYTES).status == 422
    assert (service.count(Blob), list(service.space.store.digests())) == before
    assert service.count(Upload) == 0
    assert list((service.space.folder / "cache").iterdir()) == []


def test_what_was_sent_is_kept_until_it_is_needed_and_is_in_the_store_whole(service: Service) -> None:
    content = os.urandom(3_000_000)
    reply = sent(service, content)
    assert reply.status == 201
    collection.collect(service.space.sessions, service.space.store, grace_seconds=0)
    digest = reply.json["digest"]
    service.space.store.verify(digest)
    assert service.get(f"/v1/blobs/{digest}") == {"digest": digest, "size_bytes": len(content)}
    assert list((service.space.folder / "cache").iterdir()) == []


def test_more_bytes_than_are_taken_are_refused_with_and_without_a_length(space: Workspace) -> None:
    limits = Limits(body_bytes=1000, upload_bytes=5000)
    with serving(space, limits=limits) as service:
        digest = hashlib.sha256(bytes(6000)).hexdigest()
        for path, kind in ((f"/v1/blobs?digest={digest}", BYTES), ("/v1/compositions", "application/json")):
            reply = service.ask("POST", path, bytes(6000), Content_Type=kind)
            assert reply.status == 413, path
            assert chunked(service, path, kind, [bytes(1000)] * 6) == 413, path
        assert service.count(Upload) == 0
        assert service.get("/healthz") == {"status": "ok"}


def chunked(service: Service, path: str, kind: str, chunks: list[bytes]) -> int:
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", service.port, timeout=30)
    try:
        headers = {"Content-Type": kind, "Transfer-Encoding": "chunked"}
        connection.request("POST", path, iter(chunks), headers, encode_chunked=True)
        return connection.getresponse().status
    finally:
        connection.close()


# --- done once -------------------------------------------------------------------------------------


def test_a_request_sent_again_under_its_key_is_answered_alike_and_done_once(either: Service) -> None:
    new = {"name": "pair", "backbone": "dit", "members": ["digits", "faces"]}
    first = either.ask("POST", "/v1/compositions", new, Idempotency_Key="k-1")
    with either.space.sessions.begin() as session:
        world.learnt(session, "digits", 3)  # the same words would mean another composition now
    again = either.ask("POST", "/v1/compositions", new, Idempotency_Key="k-1")
    assert (first.status, again.status) == (201, 201)
    assert again.json == first.json
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"] == "/v1/compositions/pair@1"
    other = either.ask("POST", "/v1/compositions", new | {"name": "else"}, Idempotency_Key="k-1")
    assert (other.status, other.json["type"]) == (422, "urn:affinery:key-reused")
    assert either.ask("POST", "/v1/compositions", new, Idempotency_Key="k-2").json["ref"] == "pair@2"


def test_a_key_is_its_sender_s_alone(space: Workspace) -> None:
    new = {"name": "pair", "backbone": "dit", "members": ["digits", "faces"]}
    own = "a-secret-of-this-machine"
    with serving(space, own) as service:
        ann = replace(service, headers={"Authorization": f"Bearer {own}"})
        made = ann.ask("POST", "/v1/tokens", {"name": "bob", "scope": "promote"}).json["token"]
        bob = replace(service, headers={"Authorization": f"Bearer {made}"})
        assert ann.ask("POST", "/v1/compositions", new, Idempotency_Key="1").status == 201
        other = bob.ask("POST", "/v1/compositions", new | {"name": "two"}, Idempotency_Key="1")
        assert (other.status, other.json["ref"]) == (201, "two@1")
        assert ann.ask("POST", "/v1/compositions", new | {"name": "two"}, Idempotency_Key="1").status == 422


def test_a_key_of_a_job_is_its_sender_s_alone_too(space: Workspace) -> None:
    own = "a-secret-of-this-machine"
    with serving(space, own) as service:
        ann = replace(service, headers={"Authorization": f"Bearer {own}"})
        made = ann.ask("POST", "/v1/tokens", {"name": "bob", "scope": "schedule"}).json["token"]
        bob = replace(service, headers={"Authorization": f"Bearer {made}"})
        first = ann.ask("POST", "/v1/jobs", {"kind": "verify"}, Idempotency_Key="nightly")
        again = ann.ask("POST", "/v1/jobs", {"kind": "verify"}, Idempotency_Key="nightly")
        assert (again.json["id"], again.headers["idempotency-replayed"]) == (first.json["id"], "true")
        alike = bob.ask("POST", "/v1/jobs", {"kind": "verify"}, Idempotency_Key="nightly")
        assert (alike.status, alike.json["id"] == first.json["id"]) == (201, False)
        other = ann.ask("POST", "/v1/jobs", {"kind": "verify", "ref": "digits@1"}, Idempotency_Key="nightly")
        assert other.json["type"] == "urn:affinery:key-taken"


def test_bytes_sent_again_under_their_key_hold_one_lease(service: Service) -> None:
    first = sent(service, b"some bytes", Idempotency_Key="bytes")
    again = sent(service, b"some bytes", Idempotency_Key="bytes")
    assert (again.status, again.json) == (201, first.json)
    assert sent(service, b"other bytes", Idempotency_Key="bytes").status == 422
    assert service.count(Upload) == 1


def test_a_request_that_was_refused_leaves_its_key_free(service: Service) -> None:
    bad = {"name": "pair", "backbone": "unet", "members": ["digits"]}
    assert service.ask("POST", "/v1/compositions", bad, Idempotency_Key="k").status == 422
    assert service.count(Request) == 0
    good = bad | {"backbone": "dit"}
    assert service.ask("POST", "/v1/compositions", good, Idempotency_Key="k").status == 201


def test_eight_that_send_one_request_at_once_make_one_record(either: Service) -> None:
    new = {"name": "pair", "backbone": "dit", "members": ["digits", "faces"]}
    before = either.count(Composition)

    def send(_: int) -> Reply:
        return either.ask("POST", "/v1/compositions", new, Idempotency_Key="one")

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(send, range(8)))
    assert {reply.status for reply in replies} == {201}
    assert all(reply.json == replies[0].json for reply in replies)
    assert sum("idempotency-replayed" in reply.headers for reply in replies) == 7
    assert either.count(Composition) == before + 1


# --- over what was seen ----------------------------------------------------------------------------


def test_an_alias_moves_only_from_the_move_that_was_read(either: Service) -> None:
    path = "/v1/aliases/digits@champion"
    assert either.ask("GET", path).status == 404
    assert either.ask("PUT", path, {"adapter": "1"}).status == 428
    made = either.ask("PUT", path, {"adapter": "1"}, If_None_Match="*")
    assert (made.status, made.json["adapter"]) == (200, "digits@1")
    seen = made.headers["etag"]
    assert either.ask("GET", path).headers["etag"] == seen
    assert either.ask("PUT", path, {"adapter": "2"}, If_None_Match="*").status == 412
    moved = either.ask("PUT", path, {"adapter": "2"}, If_Match=seen)
    assert (moved.status, moved.json["adapter"]) == (200, "digits@2")
    late = either.ask("PUT", path, {"adapter": "1"}, If_Match=seen)
    assert (late.status, late.json["type"]) == (412, "urn:affinery:alias-moved")
    assert either.ask("PUT", path, {"adapter": "2"}, If_Match="").status == 412
    listed = f'"77", {moved.headers["etag"]}'
    assert either.ask("PUT", path, {"adapter": "1"}, If_Match=listed).status == 200
    assert either.ask("PUT", path, {"adapter": "2"}, If_Match=listed).status == 412
    # There and back again is not where one was.
    either.ask("PUT", path, {"adapter": "1"}, If_Match="*")
    assert either.ask("PUT", path, {"adapter": "2"}, If_Match=seen).status == 412
    assert either.ask("DELETE", path, If_Match=seen).status == 412
    assert either.ask("DELETE", path).status == 428
    assert either.ask("DELETE", path, If_Match="*").status == 200
    assert either.ask("GET", path).status == 404
    moves = [each["adapter"] for each in either.get(f"{path}/history")["items"]]
    assert moves == [None, "digits@1", "digits@2", "digits@1"]


def test_an_alias_takes_versions_of_its_own_task_that_hold_what_is_required(service: Service) -> None:
    path = "/v1/aliases/digits@champion"
    other = service.ask("PUT", path, {"adapter": "faces@1"}, If_Match="*")
    assert (other.status, service.count(AliasMove)) == (422, 0)
    gate = {"adapter": "1", "require": ["loss<=0.1"]}
    assert service.ask("PUT", path, gate, If_Match="*").status == 409
    assert service.ask("PUT", path, gate | {"require": ["loss<=0.3"]}, If_Match="*").status == 200
    assert service.ask("PUT", path, gate | {"require": ["loss"]}, If_Match="*").status == 422
    assert service.ask("PUT", "/v1/aliases/digits", {"adapter": "1"}, If_Match="*").status == 422
    assert service.ask("PUT", path, {"adapter": "1"}, If_Match="W/nothing").status == 412


def test_of_eight_that_move_an_alias_from_one_move_one_does(either: Service) -> None:
    path = "/v1/aliases/digits@champion"
    seen = either.ask("PUT", path, {"adapter": "1"}, If_None_Match="*").headers["etag"]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: either.ask("PUT", path, {"adapter": "2"}, If_Match=seen), range(8)))
    assert sorted(reply.status for reply in replies) == [200] + [412] * 7
    assert either.count(AliasMove) == 2


def test_tags_and_notes_change_and_only_over_what_was_read_where_that_is_said(either: Service) -> None:
    path = "/v1/tags/adapter:digits@1"
    first = either.ask("PATCH", path, {"owner": "ann", "stage": "trial"})
    assert first.json == {"owner": "ann", "stage": "trial"}
    second = either.ask("PATCH", path, {"owner": "bob", "stage": None}, If_Match=first.headers["etag"])
    assert second.json == {"owner": "bob"}
    assert either.ask("PATCH", path, {"owner": "eve"}, If_Match=first.headers["etag"]).status == 412
    assert either.get(path) == {"owner": "bob"}
    assert either.ask("PATCH", path, {"0bad": "x"}).status == 422
    note = "/v1/notes/digits@1"
    said = either.ask("PUT", note, {"text": "Good.\nReally."})
    assert said.json["text"] == "Good.\nReally."
    assert either.ask("DELETE", note, If_Match='"else"').status == 412
    assert either.ask("DELETE", note, If_Match=said.headers["etag"]).json["text"] is None
    kinds = {each["kind"] for each in either.get("/v1/events?limit=500")["items"]}
    assert kinds >= {"tag.set", "tag.changed", "tag.removed", "note.set", "note.removed"}


def test_nothing_is_lost_and_nothing_fails_when_eight_threads_write_and_read(service: Service) -> None:
    """Load, on SQLite: aliases by compare-and-swap, tags and a counter in a tag, while others read."""
    rounds, writers = 6, 4
    bad: list[int] = []
    done = threading.Event()
    service.ask("PATCH", "/v1/tags/faces@1", {"count": "0"})

    def told(reply: Reply) -> Reply:
        if reply.status >= 500:
            bad.append(reply.status)
        return reply

    def write(number: int) -> None:
        for turn in range(rounds):
            told(service.ask("PATCH", "/v1/tags/digits@1", {f"t{number}.{turn}": "x"}))
            alias = f"/v1/aliases/digits@own-{number}"
            told(service.ask("PUT", alias, {"adapter": str(1 + turn % 2)}, If_Match="*"))
            while True:
                seen = told(service.ask("GET", "/v1/tags/faces@1"))
                count = {"count": str(int(seen.json["count"]) + 1)}
                etag = seen.headers["etag"]
                if told(service.ask("PATCH", "/v1/tags/faces@1", count, If_Match=etag)).status == 200:
                    break

    def read(number: int) -> None:
        paths = ("/v1/adapters", "/v1/tags/digits@1", "/v1/aliases?task=digits", "/v1/lineage/both")
        while not done.is_set():
            assert told(service.ask("GET", paths[number])).status == 200

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read, number) for number in range(4)]
        for each in [pool.submit(write, number) for number in range(writers)]:
            each.result(timeout=120)
        done.set()
        for each in readers:
            each.result(timeout=60)
    assert bad == []
    assert service.get("/v1/tags/faces@1")["count"] == str(rounds * writers)
    assert len(service.get("/v1/tags/digits@1")) == rounds * writers
    moves = [len(service.get(f"/v1/aliases/digits@own-{n}/history")["items"]) for n in range(writers)]
    assert moves == [rounds] * writers
    assert service.count(AliasMove) == rounds * writers


def test_a_name_is_changed_once_its_references_are_told_and_nobody_else_gets_it(service: Service) -> None:
    before = service.get("/v1/tasks/birds")
    wanted = {"of": "task:birds", "name": "flyers"}
    reply = service.ask("POST", "/v1/renamings", wanted, Idempotency_Key="name")
    assert (reply.status, reply.json["was"], reply.json["name"]) == (201, "birds", "flyers")
    again = service.ask("POST", "/v1/renamings", wanted, Idempotency_Key="name")
    assert (again.status, again.json) == (201, reply.json)
    assert [each["was"] for each in service.get(reply.headers["location"])["items"]] == ["birds"]
    assert service.get("/v1/tasks/flyers")["digest"] == before["digest"]
    gone = service.ask("GET", "/v1/tasks/birds")
    assert gone.status == 404
    assert "flyers" in gone.json["detail"]
    taken = service.ask("POST", "/v1/renamings", {"of": "task:faces", "name": "birds"})
    assert (taken.status, taken.json["type"]) == (409, "urn:affinery:name-taken")
    assert service.ask("POST", "/v1/renamings", {"of": "faces@1", "name": "people"}).status == 422


def test_an_adapter_is_retired_and_restored_only_as_it_was_read(either: Service) -> None:
    place = "/v1/adapters/digits@1"
    seen = either.ask("GET", place).headers["etag"]
    either.ask("PATCH", "/v1/tags/digits@1", {"stage": "approved"})
    late = either.ask("POST", f"{place}/retire", {"reason": "blurred"}, If_Match=seen)
    assert (late.status, late.json["type"]) == (412, "urn:affinery:precondition-failed")
    now = either.ask("GET", place)
    assert now.json["retired"] is None
    retired = either.ask("POST", f"{place}/retire", {"reason": "blurred"}, If_Match=now.headers["etag"])
    assert (retired.status, retired.json["retired"]["reason"]) == (200, "blurred")
    assert retired.headers["etag"] == either.ask("GET", place).headers["etag"]
    assert either.ask("POST", f"{place}/restore", If_Match=now.headers["etag"]).status == 412
    assert either.ask("POST", f"{place}/restore", If_Match=retired.headers["etag"]).json["retired"] is None


def test_a_schedule_is_changed_only_as_it_was_read(either: Service) -> None:
    place = "/v1/schedules/nightly"
    with either.space.sessions.begin() as session:
        schedules.add(session, "nightly", "0 3 * * *", ["digits"], {"steps": 2})
    seen = either.ask("GET", place).headers["etag"]
    paused = either.ask("POST", f"{place}/pause", If_Match=seen)
    assert (paused.status, paused.json["paused"]) == (200, True)
    for method, path in (("POST", f"{place}/resume"), ("DELETE", place)):
        late = either.ask(method, path, If_Match=seen)
        assert (late.status, late.json["type"]) == (412, "urn:affinery:precondition-failed")
    assert either.ask("GET", place).json["paused"] is True
    assert either.ask("DELETE", place, If_Match=paused.headers["etag"]).status == 200
