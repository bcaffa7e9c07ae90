"""The command line against a service: what it prints is what it prints of the workspace that is served."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from affinery_app import settings
from affinery_app.wiring import Workspace
from registry import aliases, compositions, notes, retirement, tags, tokens
from registry.digests import digest_of
from tests import learning_world, registry_world
from tests.command_line import typed
from tests.integration.api.conftest import Service, serving
from tests.learnt_space import learn
from tests.registry_world import sha

PROTOCOL = digest_of({"extractor": "pixels", "samples": 100})[:8]
READS = [
    ("backbone", "list"),
    ("backbone", "show", "dit"),
    ("dataset", "list"),
    ("dataset", "show", "digits"),
    ("dataset", "versions", "digits"),
    ("task", "list"),
    ("task", "show", "digits"),
    ("adapter", "list"),
    ("adapter", "list", "--task", "digits"),
    ("adapter", "show", "digits@1"),
    ("adapter", "show", "digits@2"),
    ("adapter", "search"),
    ("adapter", "search", "tag.owner=ann or task=faces"),
    ("adapter", "search", "kind=affiner", "--limit", "2"),
    ("adapter", "search", "--before", "12", "--limit", "1"),
    ("adapter", "search", "version>=90"),
    ("compare", "digits@1", "faces"),
    ("compare", "digits@1", "faces", "--protocol", PROTOCOL),
    ("diff", "digits@1", "digits@2"),
    ("diff", "digits@1", "digits@1"),
    ("diff", "digits@2", "faces", "--no-tensors"),
    ("diff", "both@1", "both@1"),
    ("alias", "list"),
    ("alias", "list", "--task", "digits"),
    ("alias", "history", "digits@champion"),
    ("tag", "digits@1"),
    ("tag", "task:faces"),
    ("note", "digits@1"),
    ("note", "task:faces"),
    ("job", "list"),
    ("job", "list", "--state", "queued"),
    ("job", "list", "--task", "faces", "--kind", "train", "--limit", "1"),
    ("job", "show", "1"),
    ("job", "show", "job-waits"),
    ("job", "logs", "1"),
    ("lineage", "digits"),
    ("lineage", "digits", "--format", "dot"),
    ("lineage", "dit", "--down", "--depth", "1"),
    ("lineage", "dit", "--down", "--kind", "adapter", "--limit", "2"),
    ("evaluations", "digits@1"),
    ("events", "--limit", "7"),
    ("events", "--kind", "adapter.published"),
]
REFUSED = [
    ("task", "show", "digts"),
    ("task", "watch", "digts"),
    ("adapter", "show", "digits@9"),
    ("backbone", "show", "dot"),
    ("dataset", "show", "nope"),
    ("job", "show", "999"),
    ("job", "list", "--task", "digts"),
    ("job", "list", "--state", "bogus"),
    ("job", "list", "--kind", "train", "--kind", "bogus"),
    ("lineage", "nothing"),
    ("evaluations", "nobody"),
    ("token", "create", "ann"),
    ("token", "create", "no name"),
    ("token", "revoke", "nobody"),
    ("webhook", "add", "chat", "ftp://elsewhere.example"),
    ("webhook", "add", "chat", "http://127.0.0.1:9/hook"),
    ("webhook", "add", "chat", "https://93.184.215.14/", "--kind", "weather.*"),
    ("webhook", "rm", "nobody"),
    ("webhook", "test", "nobody"),
    ("webhook", "deliveries", "nobody"),
    ("schedule", "rm", "nightly"),
    ("schedule", "pause", "nightly"),
    ("schedule", "resume", "nightly"),
    ("schedule", "add", "n", "--cron", "often", "--task", "digits"),
    ("schedule", "add", "n", "--cron", "0 3 * * *", "--task", "digts"),
    ("schedule", "add", "n", "--cron", "0 3 * * *", "--task", "digits", "--tz", "Mars/Olympus"),
    ("job", "add", "export", "nobody"),
    ("job", "add", "export", "both", "--format", "floppy"),
    ("job", "add", "evaluate", "digits@9"),
    ("job", "add", "verify", "--after", "999"),
    ("job", "add", "rebase", "dit", "dot"),
    ("queue", "limit", "set", "backbone", "nobody", "1"),
    ("queue", "limit", "set", "colour", "red", "1"),
    ("queue", "limit", "set", "submitter", "ann", "1.5"),
    ("queue", "limit", "set", "submitter", "", "1"),
    ("queue", "limit", "set", "resource", "gpus", "nan"),
    ("queue", "limit", "rm", "backbone", "nobody"),
    ("queue", "limit", "rm", "submitter", "nobody"),
    ("adapter", "search", "kind="),
    ("adapter", "search", "colour=red"),
    ("compare", "digits@1", "digits@2"),
    ("compare", "digits@1", "nobody"),
    ("diff", "digits@1", "nobody"),
    ("diff", "digits@1", "both"),
    ("diff", "dataset:digits", "dataset:digits"),
    ("alias", "history", "digits@nobody"),
    ("alias", "set", "No Alias", "digits"),
    ("alias", "set", "best", "digits@9", "--expect", "1"),
    ("alias", "set", "best", "digits@2", "--expect", "9"),
    ("alias", "set", "best", "digits@2", "--expect", "nobody@1"),
    ("alias", "remove", "digits@nobody", "--expect", "1"),
    ("alias", "remove", "digits@nobody"),
    ("alias", "remove", "digits"),
    ("tag", "nothing"),
    ("tag", "digits@1", "--remove", "absent"),
    ("tag", "digits@1", "novalue"),
    ("tag", "digits@1", "9=x"),
    ("note", "nothing"),
    ("note", "digits@1", "a text", "--remove"),
    ("rename", "task:digts", "numbers"),
    ("rename", "digits@1", "numbers"),
    ("rename", "task:digits", "a@b"),
]


def answered(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capfd.readouterr()
    code = typed(*words)
    said = capfd.readouterr()
    return code, said.out, said.err


def told(capfd: pytest.CaptureFixture[str], *words: object) -> Any:
    code, out, err = answered(capfd, *words, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def address(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A service over a workspace in which there is something of everything."""
    monkeypatch.delenv("AFFINERY_WORKSPACE", raising=False)
    monkeypatch.delenv("AFFINERY_URL", raising=False)
    (space.folder / settings.FILE).write_text(settings.HEADER)
    (space.exports / "pair").mkdir(parents=True)
    (space.exports / "pair" / "weights.bin").write_bytes(b"w" * 1000)
    with space.sessions.begin() as session:
        _, token = tokens.create(session, "ann", "admin", by="ann")
        aliases.point(session, "champion", "digits@1")
        tags.put(session, "digits@1", {"owner": "ann"})
        notes.write(session, "adapter:digits@1", "sharp\nand small")
        retirement.retire(session, "digits@1", "blurred")
        registry_world.evaluated(session, "digits@1")
        registry_world.evaluated(session, "faces")
        registry_world.job(session, "job-waits", "birds", state="queued")
        compositions.record_export(
            session,
            composition="both",
            format="bundle",
            digest=sha("pair"),
            path=str(space.exports / "pair"),
            size_bytes=1000,
        )
    monkeypatch.setenv("AFFINERY_TOKEN", token)
    with serving(space) as service:
        yield f"http://127.0.0.1:{service.port}"


def test_what_is_read_from_a_service_is_what_its_workspace_says(
    address: str, space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in READS:
        for form in ((), ("--json",)):
            here = answered(capfd, *words, *form, "--workspace", space.folder)
            there = answered(capfd, *words, *form, "--url", address)
            assert there == here, words
            assert here[0] == 0, here
            assert len(here[1] + here[2]) > 10, words


def test_what_is_refused_is_refused_in_the_same_words(
    address: str, space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in REFUSED:
        here = answered(capfd, *words, "--workspace", space.folder)
        there = answered(capfd, *words, "--url", address)
        assert there == here, words
        assert (here[0], here[1]) == (2, ""), here
        assert "bogus" not in words or "Known: " in here[2]


def test_what_is_typed_counts_before_what_a_variable_says(
    address: str, space: Workspace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFINERY_WORKSPACE", "/nowhere")
    assert answered(capfd, "task", "list", "--url", address)[0] == 0
    monkeypatch.setenv("AFFINERY_URL", "http://127.0.0.1:1")
    assert answered(capfd, "task", "list", "--workspace", space.folder)[0] == 0
    assert answered(capfd, "task", "list", "--url", address)[0] == 0
    for words in ((), ("--url", address, "--workspace", space.folder)):
        code, _, err = answered(capfd, "task", "list", *words)
        assert (code, "give one of them" in err) == (2, True)
        assert ("AFFINERY_URL" in err) == (not words)
    monkeypatch.delenv("AFFINERY_WORKSPACE")
    monkeypatch.chdir(space.folder)
    for variable in (address, ""):
        monkeypatch.setenv("AFFINERY_URL", variable)
        code, _, err = answered(capfd, "task", "list", "--url", address, "--workspace", ".")
        assert (code, "give one of them" in err) == (2, True)
    for asked in (("task", "list"), ("tag", "digits@1"), ("webhook", "add", "w", "https://93.184.215.14/")):
        monkeypatch.setenv("AFFINERY_URL", "http://127.0.0.1:1")
        assert answered(capfd, *asked, "--workspace", ".")[0] == 0
        monkeypatch.setenv("AFFINERY_URL", address)
        assert answered(capfd, *asked, "--url", "http://127.0.0.1:1")[0] == 1


def test_what_is_changed_by_a_service_is_changed_in_its_workspace(
    address: str, space: Workspace, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    there, here = ("--url", address), ("--workspace", space.folder)
    (moved,) = told(capfd, "job", "priority", "job-waits", "-5", *there)
    assert told(capfd, "job", "show", "job-waits", *here)["priority"] == moved["priority"] == -5
    for verb, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        (changed,) = told(capfd, "job", verb, "job-waits", *there)
        assert told(capfd, "job", "show", "job-waits", *here)["state"] == changed["state"] == state
    assert told(capfd, "job", "retry", "job-waits", *there)[0]["state"] == "queued"
    assert told(capfd, "job", "cancel", "job-waits", *there)[0]["state"] == "cancelled"
    assert answered(capfd, "job", "watch", "job-waits", *there)[0] == 1

    named = told(capfd, "alias", "set", "best", "digits@2", *there)
    assert named in told(capfd, "alias", "list", *here)
    retired = told(capfd, "adapter", "retire", "digits@2", "--reason", "grey", *there)
    assert told(capfd, "adapter", "show", "digits@2", *here)["retired"]["since"] == retired["retired"]
    assert told(capfd, "adapter", "restore", "digits@2", *there)["retired"] is None
    assert told(capfd, "adapter", "show", "digits@2", *here)["retired"] is None
    made = told(capfd, "compose", "two", "-t", "digits@2", "-t", "faces", *there)
    assert made == told(capfd, "compose", "two", "-t", "digits@2", "-t", "faces", *there)
    assert made["members"] == ["digits@2", "faces@1"]

    for name, where in (("from-there", there), ("from-here", here)):
        fetched = told(capfd, "download", "both", tmp_path / name, *where)
        assert fetched["export"] == "both@2"
        assert (tmp_path / name / "weights.bin").read_bytes() == b"w" * 1000
    assert answered(capfd, "download", "both", tmp_path / "from-there", *there)[0] == 2


def test_a_report_that_a_service_makes_is_the_one_its_workspace_writes(
    address: str,
    space: Workspace,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there, here = ("--url", address), ("--workspace", space.folder)
    with space.sessions.begin() as session:
        for kid, extractor in ((0.1, "other"), (0.2, "pixels"), (0.3, "other")):
            how = {"extractor": extractor, "samples": 100}
            registry_world.evaluated(session, "digits@2", kid, protocol=how)
    place = ("--out", tmp_path / "deep" / "digits.html")
    for form in ((), ("--json",)):
        printed = answered(capfd, "report", "digits", *place, *form, *there)
        sent = place[1].read_bytes()
        assert printed == answered(capfd, "report", "digits", *place, *form, *here)
        assert sent == place[1].read_bytes()
    found = told(capfd, "report", "digits", *place, *there)
    assert (len(found["protocols"]), found["versions"]) == (2, ["digits@1", "digits@2"])
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["digits.html"]
    monkeypatch.chdir(tmp_path)
    assert told(capfd, "report", "faces", *there)["report"] == str(tmp_path / "reports" / "faces.html")
    monkeypatch.chdir(tmp_path / "deep")
    for words in (("report", "digts"), ("report", "digits", "--out", tmp_path)):
        refused = answered(capfd, *words, *there)
        assert refused == answered(capfd, *words, *here)
        assert refused[:2] == (2, "")
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_what_is_said_of_a_thing_by_a_service_is_said_in_its_workspace(
    address: str, space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    there, here = ("--url", address), ("--workspace", space.folder)
    said = told(capfd, "tag", "digits@1", "size=small", "owner=ben", *there)
    assert said == {"ref": "adapter:digits@1", "tags": {"owner": "ben", "size": "small"}}
    assert said == told(capfd, "tag", "digits@1", *here)
    assert told(capfd, "tag", "digits@1", "owner=cy", "--remove", "owner", "--remove", "size", *there) == {
        "ref": "adapter:digits@1",
        "tags": {"owner": "cy"},
    }
    written = told(capfd, "note", "task:faces", "all\nof them", *there)
    assert (
        written == told(capfd, "note", "task:faces", *here) == {"ref": "task:faces", "text": "all\nof them"}
    )
    assert told(capfd, "note", "task:faces", "--remove", *there) == told(capfd, "note", "task:faces", *here)
    gone = told(capfd, "alias", "remove", "digits@champion", *there)
    assert gone["adapter"] is None
    assert gone == told(capfd, "alias", "history", "digits@champion", *here)[0]
    renamed = told(capfd, "rename", "task:digits", "numbers", *there)
    assert (renamed["was"], renamed["name"]) == ("digits", "numbers")
    assert told(capfd, "task", "show", "numbers", *here)["name"] == "numbers"
    assert told(capfd, "rename", "task:numbers", "numbers", *there)["at"] is None


def test_an_alias_is_moved_by_a_service_only_from_what_it_is_expected_to_mean(
    address: str, space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    there, here = ("--url", address), ("--workspace", space.folder)
    for words in (
        ("set", "champion", "digits@2", "--expect", "none"),
        ("set", "champion", "digits@2", "--expect", "2"),
        ("set", "best", "digits@2", "--expect", "1"),
        ("remove", "digits@champion", "--expect", "digits@2"),
        ("remove", "digits@champion", "--expect", "none"),
    ):
        refused = answered(capfd, "alias", *words, *there)
        assert refused == answered(capfd, "alias", *words, *here)
        assert (refused[:2], "now, not" in refused[2]) == ((1, ""), True), words
    held = told(capfd, "alias", "list", *here)
    assert [(each["ref"], each["adapter"]) for each in held] == [("digits@champion", "digits@1")]
    for words in (
        ("set", "champion", "digits@2", "--expect", "1"),
        ("set", "champion", "digits@1", "--expect", "digits@2"),
        ("set", "champion", "digits@2", "--expect", "digits@champion"),
        ("set", "best", "digits@1", "--expect", "none"),
        ("remove", "digits@best", "--expect", "digits@1"),
        ("set", "best", "digits@2", "--expect", "none"),
    ):
        moved = told(capfd, "alias", *words, *there)
        assert told(capfd, "alias", "history", moved["ref"], *here)[0] == moved


def test_what_a_service_is_to_do_later_is_a_job_in_its_workspace(
    address: str, space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    there, here = ("--url", address), ("--workspace", space.folder)
    terms = ("--priority", "3", "--timeout", "60", "--run-at", "2030-01-01T00:00", "--after", "job-waits")
    own = ("id", "number", "submitted_by", "created_at", "changed_at", "key", "new", "queued_at")
    for words in (
        ("export", "both", "--format", "bundle", "--no-backbone"),
        ("evaluate", "digits@1", "faces", "--samples", "9", "--seed", "4", "--guidance", "2"),
        ("evaluate", "digits@1", "--cpus", "2", "--gpus", "0.5", "--extractor", "recogniser"),
        ("retention", "dit", "--steps", "7"),
        ("retention", "dit", "--cpus", "1", "--gpus", "0", "--extractor", "recogniser"),
        ("rebase", "dit", "dit", "--task", "digits", "--set", "steps=5", "--cold"),
        ("verify",),
        ("verify", "digits@1"),
    ):
        made = told(capfd, "job", "add", *words, *terms, *there)
        again = told(capfd, "job", "add", *words, *terms, *here)
        assert made["new"]
        assert {k: v for k, v in made.items() if k not in own} == {
            k: v for k, v in again.items() if k not in own
        }
        assert told(capfd, "job", "show", made["id"], *here)["asked"] is not None
    first = told(capfd, "job", "add", "verify", "--key", "weekly", *there)
    once_more = told(capfd, "job", "add", "verify", "--key", "weekly", *there)
    assert (first["new"], once_more["new"], once_more["id"]) == (True, False, first["id"])


def test_tokens_and_webhooks_are_kept_by_a_service_as_in_its_workspace(
    address: str, space: Workspace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = ("--url", address), ("--workspace", space.folder)

    def alike(*words: object) -> Any:
        for form in ((), ("--json",)):
            assert answered(capfd, *words, *form, *there) == answered(capfd, *words, *form, *here)
        return told(capfd, *words, *there)

    made = told(capfd, "token", "create", "ben", "--scope", "read", "--task", "digits", "--days", "3", *there)
    assert (made["name"], made["scope"], made["tasks"], made["created_by"]) == (
        "ben",
        "read",
        ["digits"],
        "ann",
    )
    assert [each["name"] for each in alike("token", "list")] == ["ann", "ben"]
    admin = os.environ["AFFINERY_TOKEN"]
    monkeypatch.setenv("AFFINERY_TOKEN", made["token"])
    assert answered(capfd, "task", "list", *there)[0] == 0
    assert answered(capfd, "token", "list", *there)[0] == 2
    monkeypatch.setenv("AFFINERY_TOKEN", admin)
    assert told(capfd, "token", "revoke", "ben", *there) == told(capfd, "token", "list", *here)[1]

    hook = told(capfd, "webhook", "add", "chat", "https://93.184.215.14/x", "--kind", "job.*", *there)
    assert hook["secret"]
    (listed,) = alike("webhook", "list")
    assert listed == {name: value for name, value in hook.items() if name != "secret"}
    tested = [told(capfd, "webhook", "test", "chat", *way) for way in (there, here)]
    assert alike("webhook", "deliveries", "chat") == tested[::-1]
    assert alike("webhook", "deliveries", "chat", "--limit", "1") == tested[1:]
    assert alike("webhook", "deliveries", "chat", "--state", "delivered") == []
    assert told(capfd, "webhook", "rm", "chat", *there)["waiting"] == 2
    assert alike("webhook", "list") == []


def test_what_only_a_workspace_does_says_so_in_one_sentence(
    address: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "backbone: dit\njobs:\n  - task: {name: a, dataset: digits}\n  - task: {name: b, dataset: digits}\n"
    )
    refused = [
        ("job", "add", "export", "both", "--out", tmp_path / "bundle"),
        ("job", "add", "evaluate", "digits", "--extractor", f"clip={tmp_path}"),
        ("job", "add", "retention", "dit", "--extractor", f"timm:vit={tmp_path}"),
        ("job", "add", "evaluate", "digits", "--condition-model", tmp_path),
        ("dataset", "show", "digits", "--contact-sheet", tmp_path / "sheet.png"),
        ("compose", "sum", "--merge", "digits:0.5,faces:0.5"),
        ("task", "add", "--from", plan),
        ("task", "train", "digits", "--begin-from", "digits@1"),
        ("task", "list", "--workspace", tmp_path),
    ]
    for words in refused:
        code, out, err = answered(capfd, *words, "--url", address)
        assert (code, out) == (2, ""), (words, err)
        assert err.startswith("error: ")
        assert err.count("\n") == 1, words
    monkeypatch.setenv("AFFINERY_URL", address)
    assert len(told(capfd, "task", "list")) == 3
    for words in (
        ("gc",),
        ("sample", "digits"),
        ("config", "list"),
        ("init",),
        ("verify",),
    ):
        code, _, err = answered(capfd, *words)
        assert code == 2
        assert "AFFINERY_URL means the service" in err
        assert "this command knows workspaces alone" in err
    monkeypatch.setenv("AFFINERY_TOKEN", "aff_wrong")
    assert answered(capfd, "task", "list")[0] == 2


def test_limits_of_the_queue_are_set_by_a_service_as_in_its_workspace(
    address: str, space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    there, here = ("--url", address), ("--workspace", space.folder)
    wanted = (("backbone", "dit", "2"), ("submitter", "*", "4"), ("submitter", "LAB/ann b?", "1"))
    for words in (*wanted, ("resource", "gpus", "0.5")):
        for form in ((), ("--json",)):
            printed = answered(capfd, "queue", "limit", "set", *words, *form, *there)
            assert printed == answered(capfd, "queue", "limit", "set", *words, *form, *here)
            assert printed[0] == 0
    listed = told(capfd, "queue", "limit", "list", *there)
    assert listed[0] == {"scope": "backbone", "key": "dit@1", "most": 2.0}
    for form in ((), ("--json",)):
        kept = [answered(capfd, "queue", "limit", "list", *form, *way) for way in (there, here)]
        assert kept[0] == kept[1]
    for words in wanted:
        gone = told(capfd, "queue", "limit", "rm", *words[:2], *there)
        assert gone == {"removed": f"{words[0]} {words[1]}"}
    assert told(capfd, "queue", "limit", "list", *here) == [{"scope": "resource", "key": "gpus", "most": 0.5}]


def test_a_service_that_is_not_there_is_said_to_be_away(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AFFINERY_WORKSPACE", raising=False)
    code, _, err = answered(capfd, "task", "list", "--url", "http://127.0.0.1:1")
    assert code == 1
    assert "No service answers" in err


@pytest.fixture
def both_ways(learnable: Service, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[object, ...], ...]:
    """--url and --workspace, for a place with a backbone and datasets that can be learnt from."""
    for variable in ("AFFINERY_WORKSPACE", "AFFINERY_URL", "AFFINERY_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    folder = learnable.space.folder
    if not (folder / settings.FILE).exists():
        (folder / settings.FILE).write_text(settings.HEADER)
    return ("--url", f"http://127.0.0.1:{learnable.port}"), ("--workspace", folder)


def test_images_are_sent_and_learnt_from_elsewhere(
    both_ways: tuple[tuple[object, ...], ...], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    there, here = both_ways
    images = learning_world.image_folder(tmp_path / "images", "x", "y", seed=5)
    sent = told(capfd, "dataset", "add", "sent", images, "--licence", "CC0-1.0", "--source", "a walk", *there)
    assert sent["source"] == "a walk"
    assert told(capfd, "dataset", "show", "sent", *here) | {"notes": sent["notes"]} == sent
    again = told(capfd, "dataset", "add", "sent", images, "--licence", "CC0-1.0", "--source", "a walk", *here)
    assert again["digest"] == sent["digest"]

    short = ("--backbone", "tiny", "--steps", "8", "--batch", "4", "--set", "warmup=2")
    asked = ("task", "add", "shapes", "sent", *short, "--kind", "lora", "--rank", "2")
    rehearsed = told(capfd, *asked, "--dry-run", *there)
    assert rehearsed == told(capfd, *asked, "--dry-run", *here)
    assert told(capfd, "task", "list", *here) == []
    job = told(capfd, *asked, "--priority", "3", "--run-at", "2030-01-01T00:00", *there)
    assert (job["tasks"], job["priority"], job["new"]) == (["shapes", "sent"], 3, True)
    assert told(capfd, "job", "show", job["id"], *here)["run_at"] == job["run_at"]
    (one, other) = told(
        capfd,
        "task",
        "add",
        "shapes2",
        "sent2",
        *short,
        "--apart",
        "--dataset",
        "shapes",
        "--dataset",
        "sent",
        *there,
    )
    assert (one["tasks"], other["tasks"]) == (["shapes2"], ["sent2"])
    told(capfd, "job", "cancel", job["id"], *there)
    trained = told(capfd, "task", "train", "shapes", "--steps", "4", *there)
    assert (trained["tasks"], trained["payload"]["recipe"]["steps"]) == (["shapes"], 4)


def test_what_a_service_is_to_do_again_and_again_stands_in_its_workspace(
    both_ways: tuple[tuple[object, ...], ...], capfd: pytest.CaptureFixture[str]
) -> None:
    there, here = both_ways
    told(capfd, "task", "add", "shapes", "shades", "--backbone", "tiny", "--steps", "8", *here)
    asked = ("schedule", "add", "nightly", "--cron", "0 3 * * *", "--task", "shapes", "--task", "shades")
    how = ("--when-changed", "--together", "--tz", "Europe/Berlin", "--steps", "600", "--priority", "2")
    made = told(capfd, *asked, *how, *there)
    for form in ((), ("--json",)):
        listed = answered(capfd, "schedule", "list", *form, *there)
        assert listed == answered(capfd, "schedule", "list", *form, *here)
    assert [made] == told(capfd, "schedule", "list", *here)
    for verb, stands in (("pause", True), ("pause", True), ("resume", False), ("resume", False)):
        changed = told(capfd, "schedule", verb, "nightly", *there)
        assert changed["paused"] == stands
        assert [changed] == told(capfd, "schedule", "list", *here)
    printed = [answered(capfd, "schedule", "pause", "nightly", *way) for way in (there, here)]
    assert printed[0] == printed[1]
    assert "paused" in printed[0][1]
    assert told(capfd, "schedule", "rm", "nightly", *there) == {"removed": "nightly"}
    assert told(capfd, "schedule", "list", *there) == told(capfd, "schedule", "list", *here) == []
    again = told(capfd, *asked, *how, *here)
    own = ("id", "created_at", "submitted_by", "next_run_at")
    assert {k: v for k, v in again.items() if k not in own} == {k: v for k, v in made.items() if k not in own}


def test_what_a_service_exports_is_fetched_and_is_what_its_workspace_would_write(
    both_ways: tuple[tuple[object, ...], ...],
    learnable: Service,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    there, here = both_ways
    services = learning_world.open_space(learnable.space.folder)
    learning_world.schedule(services, "shapes", steps=2)
    learn(services, tmp_path / "learnt")
    services.sessions.engine.dispose()
    told(capfd, "compose", "alone", "-t", "shapes", *here)
    refused = [
        ("export", "alone", "--sign", tmp_path / "key.pem"),
        ("export", "alone", "--out", tmp_path),
        ("export", "alone", "--format", "floppy"),
        ("export", "nobody"),
    ]
    for words in refused:
        assert answered(capfd, *words, *there)[0] == 2, words
    assert told(capfd, "job", "list", "--kind", "export", *here) == []
    with working(learnable.space.folder):
        sent = told(capfd, "export", "alone", "--out", tmp_path / "there", *there)
        kept = told(capfd, "export", "alone", *there)
        failed = answered(capfd, "export", "alone", "--format", "safetensors", *there)
    assert failed[:2] == (1, "")
    assert "is not wholly in the weights" in failed[2]
    written = told(capfd, "export", "alone", "--out", tmp_path / "here", *here)
    assert (sent["digest"], sent["path"]) == (written["digest"], str(tmp_path / "there"))
    assert sent.keys() == written.keys() == kept.keys()
    assert kept == sent | {"path": None}
    one, other = (
        {each.relative_to(place): each.read_bytes() for each in place.rglob("*") if each.is_file()}
        for place in (tmp_path / "there", tmp_path / "here")
    )
    assert one == other
    assert len(one) > 2


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """A worker beside a service, which does what there is to do."""
    over = threading.Event()

    def work() -> None:
        services = learning_world.open_space(folder)
        worker = learning_world.worker_here(services, learning_world.Heard())
        while not over.is_set():
            if worker.run_next() is None:
                over.wait(0.1)
        services.sessions.engine.dispose()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_backbone_is_sent_from_elsewhere(
    both_ways: tuple[tuple[object, ...], ...],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_backbone: Path,
) -> None:
    there, here = both_ways
    sent = told(capfd, "backbone", "add", tiny_backbone, "--name", "copy", *there)
    assert sent["ref"] == "copy@1"
    for way in (there, here):
        assert told(capfd, "backbone", "add", tiny_backbone, "--name", "copy", *way) == sent
    assert sent | told(capfd, "backbone", "show", "copy", *here) == (
        told(capfd, "backbone", "show", "copy", *there) | {"parameters": sent["parameters"]}
    )
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no backbone")
    for file, *more in (
        (broken,),
        (tmp_path / "absent",),
        (tiny_backbone, "--name", "a@b"),
        (tiny_backbone, "--name", "other", "--parent", "nobody"),
    ):
        refused = answered(capfd, "backbone", "add", file, *more, *there)
        assert refused == answered(capfd, "backbone", "add", file, *more, *here)
        assert (refused[0], refused[1]) == (2, ""), refused
    names = {each["name"] for each in told(capfd, "backbone", "list", *here)}
    assert names == {"tiny", "copy"}
