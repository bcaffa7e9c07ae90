"""affinery.Client: the same verbs for a workspace here and a service elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import affinery
from affinery.errors import ConfigInvalid, PlaceInvalid
from affinery_app import settings
from affinery_app.client import Client, files
from affinery_app.client.errors import (
    JobNotDone,
    NoWorkspace,
    ServiceRefused,
    ServiceUnreachable,
    WorksElsewhere,
)
from affinery_app.client.nouns import Place
from affinery_app.wiring import Workspace
from orchestration.errors import DatasetInvalid
from registry import compositions, tokens
from tests import learning_world as world
from tests.integration.api.conftest import serving
from tests.registry_world import sha

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "python.md"


@pytest.fixture(params=["local", "remote"])
def client(request: pytest.FixtureRequest, space: Workspace) -> Iterator[Client]:
    """A client of a workspace in which everything is recorded."""
    folder = space.exports / "both"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights.bin").write_bytes(b"w" * 3_000_000)
    with space.sessions.begin() as session:
        compositions.record_export(
            session, composition="both", format="bundle", digest=sha("x"), path=str(folder), size_bytes=1
        )
    if request.param == "local":
        (space.folder / settings.FILE).write_text(settings.HEADER)
        with affinery.Client(space.folder) as made:
            yield made
        return
    with space.sessions.begin() as session:
        _, token = tokens.create(session, "ann", "admin", by="ann")
    with serving(space) as service, Client(f"http://127.0.0.1:{service.port}", token) as made:
        yield made


def test_every_noun_is_read_alike(client: Client, tmp_path: Path) -> None:
    assert [each["ref"] for each in client.adapters.list("task=digits")] == ["digits@2", "digits@1"]
    assert len(list(client.adapters.list(limit=1))) == 4
    assert [task["name"] for task in client.tasks.list()] == ["digits", "faces", "birds"]
    assert client.aliases.set("digits@best", "1")["adapter"] == "digits@1"
    assert [each["ref"] for each in client.aliases.list("digits")] == ["digits@best"]
    made = client.compositions.add("pair", ["digits@best", "faces"])
    assert made["members"] == ["digits@1", "faces@1"]
    assert client.search("pair")["meant"]["ref"].endswith("pair@1")
    assert {each["ref"] for each in client.lineage("pair")["nodes"]} >= {
        "adapter:digits@1",
        "adapter:faces@1",
    }
    differing = client.diff("digits@1", "digits@2")
    assert (differing["kind"], [each["apart"] for each in differing["tensors"]]) == ("adapter", [12**0.5])
    assert client.diff("digits@1", "digits@2", tensors=False)["tensors"] is None
    assert b"<h1>digits</h1>" in client.tasks.report("digits", tmp_path / "new" / "d.html").read_bytes()
    with pytest.raises(PlaceInvalid, match="is a folder"):
        client.tasks.report("digits", tmp_path)
    job = client.exports.start("pair")
    assert client.jobs.prioritise(job["number"], 3)["priority"] == 3
    assert client.jobs.cancel(job["number"])["state"] == "cancelled"
    assert [what for what, _ in client.jobs.follow(job["number"])] == ["state", "end"]
    with pytest.raises(JobNotDone, match="is cancelled"):
        client.jobs.wait(job["number"])
    where = client.exports.download("both", tmp_path / "bundle")
    assert (where / "deep" / "weights.bin").read_bytes() == b"w" * 3_000_000
    assert client.tokens.create("ben", "read")["token"].startswith("aff_")
    assert client.tokens.revoke("ben")["state"] == "revoked"
    asked = [each["payload"]["did"] for each in client.events.list(kind="request.made")]
    assert "POST /v1/compositions" in asked
    last = list(client.events.list())[-3]["id"]
    assert [each["id"] > last for each in client.events.list(after=last)] == [True, True]
    with pytest.raises(ConfigInvalid, match="one adapter or more"):
        client.compositions.add("none", [])


def test_what_people_say_about_a_thing_and_call_it_is_changed_alike(client: Client) -> None:
    assert client.tags.set("digits@1", {"owner": "ann", "draft": "yes"}) == {"draft": "yes", "owner": "ann"}
    assert client.tags.set("digits@1", {"draft": None, "absent": None}) == {"owner": "ann"}
    assert client.tags.get("adapter:digits@1") == {"owner": "ann"}
    assert client.notes.write("digits@1", "sharp\nand small") == client.notes.get("digits@1")
    assert client.notes.get("digits@1") == {"ref": "adapter:digits@1", "text": "sharp\nand small"}
    assert client.notes.remove("digits@1")["text"] is None
    client.aliases.set("digits@best", "1")
    client.aliases.set("digits@best", "2")
    client.aliases.remove("digits@best")
    moves = [each["adapter"] for each in client.aliases.history("digits@best")]
    assert moves == [None, "digits@2", "digits@1"]
    assert client.names.rename("task:digits", "numbers")["ref"] == "task:numbers"
    assert [(each["was"], each["name"]) for each in client.names.history("task:numbers")] == [
        ("digits", "numbers")
    ]
    assert client.tags.get("numbers@1") == {"owner": "ann"}
    with pytest.raises(ServiceRefused, match="it was renamed"):
        client.notes.get("adapter:digits@1")


def test_limits_of_the_queue_are_changed_alike(client: Client) -> None:
    assert list(client.limits.list()) == []
    assert client.limits.set("backbone", "dit", 2) == client.limits.get("backbone", "dit@1")
    client.limits.set("submitter", "a/b", 3)
    assert client.limits.set("submitter", "a/b", 4)["most"] == 4
    assert [each["key"] for each in client.limits.list()] == ["dit@1", "a/b"]
    assert client.limits.remove("submitter", "a/b")["most"] == 4
    with pytest.raises(ServiceRefused, match="backbone dit@1") as caught:
        client.limits.get("submitter", "a/b")
    assert caught.value.status == 404


def test_every_verb_of_every_noun_is_in_the_guide(client: Client) -> None:
    nouns = {name: noun for name, noun in vars(client).items() if isinstance(noun, Place)}
    rows = dict(re.findall(r"^\| `client\.(\w+)` \| (.*) \|$", GUIDE.read_text(), re.M))
    assert rows.keys() == nouns.keys()
    for name, noun in nouns.items():
        verbs = {each for each in vars(type(noun)) if each.islower() and not each.startswith("_")}
        assert verbs <= set(re.findall(r"\w+", rows[name])), name


def test_every_noun_that_has_get_has_a_route_for_it(client: Client) -> None:
    routes = client.ask("GET", "/openapi.json")["paths"]
    read = {path.partition("/{")[0] for path, asked in routes.items() if "get" in asked and path[-1] == "}"}
    gets = {noun.PLACE for noun in vars(client).values() if isinstance(noun, Place) and hasattr(noun, "get")}
    assert gets <= read
    assert len(gets) > 10


def test_a_file_that_cannot_be_read_is_told_before_anything_is_sent(client: Client, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(PlaceInvalid, match=r"absent.* cannot be read: .*No such file"):
        client.datasets.add("q", absent)
    with pytest.raises(PlaceInvalid, match=r"absent.* cannot be read: .*No such file"):
        client.backbones.add("q", absent)
    with pytest.raises(PlaceInvalid, match=r"cannot be read: .*[Dd]irectory"):
        client.backbones.add("q", tmp_path)
    asked = [each["payload"]["did"] for each in client.events.list(kind="request.made")]
    assert "POST /v1/uploads" not in asked


def test_who_sends_a_file_is_told_how_many_bytes_have_gone(client: Client, tmp_path: Path) -> None:
    (file := tmp_path / "whole").write_bytes(b"w" * 3_000_000)
    told: list[tuple[int, int]] = []
    files.upload(client, file, lambda sent, of: told.append((sent, of)))
    assert {of for _, of in told} == {3_000_000}
    assert [sent for sent, _ in told] == sorted({sent for sent, _ in told})
    assert 0 < told[0][0] < told[-1][0] == 3_000_000


def test_a_folder_is_sent_only_where_all_of_it_can_be_read(client: Client, tmp_path: Path) -> None:
    (folder := tmp_path / "images" / "cats").mkdir(parents=True)
    (folder / "a.png").write_bytes(b"whatever it is")
    for name, words in (
        (b"gone.png", r"gone\.png: it is a link"),
        (b"\xff.png", r"cannot be read: its name is not UTF-8"),
    ):
        odd = folder / os.fsdecode(name)
        odd.symlink_to("/nowhere") if b"gone" in name else odd.touch()
        with pytest.raises((DatasetInvalid, PlaceInvalid), match=words):
            client.datasets.add("q", tmp_path / "images")
        odd.unlink()
    asked = [each["payload"]["did"] for each in client.events.list(kind="request.made")]
    assert "POST /v1/uploads" not in asked


@pytest.mark.parametrize("closed", ["cats/a.png", "cats"])
def test_a_file_or_a_folder_that_may_not_be_read_is_named_by_whoever_looks(closed: str) -> None:
    code = (
        "import os, sys; from pathlib import Path; from affinery.errors import AffineryError;"
        "from affinery_app.client.files import as_file; from orchestration.datasets.examining import read;"
        "from orchestration.datasets.listing import Found; folder = Path(sys.argv[1]);"
        "os.geteuid() or os.setuid(65534);"
        "found = Found(folder, 'cats/a.png', 0, 'cats/a.png')\n"
        "for look in (lambda: as_file(folder).__enter__(), lambda: read(found)):\n"
        "    try: look()\n"
        "    except AffineryError as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as name:  # where anybody may look, unlike tmp_path
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "cats").mkdir()
        (folder / "cats" / "a.png").write_bytes(b"whatever it is")
        (folder / closed).chmod(0)
        command = [sys.executable, "-c", code, name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        (folder / closed).chmod(0o755)
    sent, learnt = done.stdout.splitlines()
    assert re.search(rf"{folder / closed}:? (it )?cannot be read: Permission denied\.", sent)
    assert learnt.startswith("cats/a.png: it cannot be read: Permission denied.")


def test_a_job_is_changed_only_as_it_was_read(client: Client) -> None:
    made = client.exports.start("both")
    job = made["number"]
    seen = client.jobs.get(job)
    assert seen["etag"] == made["etag"]
    moved = client.jobs.prioritise(job, 2, if_match=seen["etag"])
    for change in (client.jobs.cancel, client.jobs.pause, client.jobs.resume, client.jobs.retry):
        with pytest.raises(ServiceRefused, match="changed") as caught:
            change(job, if_match=seen["etag"])
        assert (caught.value.status, caught.value.type) == (412, "urn:affinery:precondition-failed")
    with pytest.raises(ServiceRefused) as caught:
        client.jobs.prioritise(job, 9, if_match=seen["etag"])
    assert caught.value.status == 412
    assert client.jobs.get(job)["priority"] == 2
    paused = client.jobs.pause(job, if_match=moved["etag"])
    resumed = client.jobs.resume(job, if_match=paused["etag"])
    ended = client.jobs.cancel(job, if_match=resumed["etag"])
    again = client.jobs.retry(job, if_match=ended["etag"])
    states = [each["state"] for each in (paused, resumed, ended, again)]
    assert states == ["paused", "queued", "cancelled", "queued"]


def test_an_alias_is_moved_only_as_it_was_read(client: Client) -> None:
    made = client.aliases.set("digits@best", "1", if_match=None)
    assert client.aliases.get("digits@best") == made
    moved = client.aliases.set("digits@best", "2", if_match=made["etag"])
    assert (moved["adapter"], moved["number"]) == ("digits@2", 2)
    for late in (
        lambda: client.aliases.set("digits@best", "1", if_match=None),
        lambda: client.aliases.set("digits@best", "1", if_match=made["etag"]),
        lambda: client.aliases.remove("digits@best", if_match=made["etag"]),
    ):
        with pytest.raises(ServiceRefused, match="somebody moved it") as caught:
            late()
        assert caught.value.status == 412
    assert client.aliases.remove("digits@best", if_match=moved["etag"])["adapter"] is None
    assert client.aliases.set("digits@best", "1", if_match=None)["number"] == 4


def test_who_has_no_token_is_told_where_one_is_given(space: Workspace) -> None:
    with serving(space, token="a-token-of-some-length") as service:
        stranger = Client(f"http://127.0.0.1:{service.port}")
        with pytest.raises(ServiceRefused, match=r"AFFINERY_TOKEN.*token=") as caught:
            stranger.tasks.get("digits")
    assert caught.value.status == 401


def test_signing_in_is_refused_where_nobody_has_to(client: Client) -> None:
    with pytest.raises(ServiceRefused) as caught:
        client.ask("POST", "/session", {"token": "aff_0_nothing"})
    assert caught.value.status == (409 if client._space is not None else 401)


def test_a_refusal_reads_alike(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ServiceRefused, match="Did you mean 'digits'") as caught:
        client.tasks.get("digit")
    assert (caught.value.status, caught.value.type) == (404, "urn:affinery:not-found")
    with pytest.raises(ServiceRefused, match="at least 1 item"):
        client.schedules.add("n", "often", [])
    (tmp_path / "broken").write_bytes(b"no backbone")
    with pytest.raises(ServiceRefused, match="the upload is not a usable backbone"):
        client.backbones.add("broken", tmp_path / "broken")
    if client._space is None:
        with pytest.raises(WorksElsewhere):
            client.run()


@pytest.mark.parametrize("there", [False, True])
def test_a_workspace_is_made_only_where_that_is_asked_for(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "space"
    if there:
        folder.mkdir()
    with pytest.raises(
        NoWorkspace, match=r"no workspace in .*space\. .*make one: affinery\.Client\.init\('.*space'\)"
    ):
        affinery.Client(folder)
    assert list(tmp_path.rglob("*")) == [folder] * there
    with affinery.Client.init(folder) as made:
        assert list(made.tasks.list()) == []
    with affinery.Client(folder) as again, affinery.Client.init(folder) as once_more:
        assert again.stats() == once_more.stats()


def test_where_nobody_answers_it_is_said() -> None:
    with pytest.raises(ServiceUnreachable, match="affinery serve"):
        Client("http://127.0.0.1:9").stats()


def test_the_core_is_imported_without_the_application() -> None:
    code = (
        "import sys, affinery; before = {each.partition('.')[0] for each in sys.modules};"
        "affinery.Client; print(sorted({'affinery_app', 'fastapi', 'registry'} & before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError):
        _ = affinery.Clint


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_guide_s_ten_lines_lead_from_nothing_to_a_bundle(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.image_folder(tmp_path / "shapes", "x", "y")
    (tmp_path / "backbone.safetensors").symlink_to(tiny_backbone)
    monkeypatch.chdir(tmp_path)
    found = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    assert found is not None
    lines = found[1].replace('{"steps": 600}', '{"steps": 8, "batch": 4, "warmup": 2}')
    assert len([line for line in lines.splitlines() if line.strip()]) == 10
    told: dict[str, Client] = {}
    exec(lines, told)  # noqa: S102 - the guide's own words
    told["client"].close()
    model = affinery.load(tmp_path / "bundle")
    assert affinery.draw(model, "shapes", "x", n=2, steps=2).shape == (2, 1, 16, 16)
