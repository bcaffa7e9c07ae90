"""What was learnt elsewhere comes with any metrics: no page, command or export fails on them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from affinery_app import settings
from affinery_app.figures import figures
from affinery_app.wiring import Workspace
from registry import adapters, blobs, certificates
from registry.metrics import recognition
from registry.session import Sessions
from tests.command_line import typed
from tests.integration.api.conftest import serving
from tests.registry_world import sha

ODD: tuple[Any, ...] = (
    0.9,
    1,
    7,
    -0.5,
    True,
    10**400,
    "high",
    None,
    [],
    [0.5, 0.5],
    {},
    {"mean": 0.7},
    {"share": "most", "samples": "many", "by_class": "all"},
    {"share": None, "samples": None, "by_class": None},
    {"share": 0.9, "samples": 2.5, "by_class": {"0": 1.0}, "real_accuracy": [], "real_images": {}},
    {"share": {"share": 0.9}, "samples": [[]], "by_class": [[0.1], {"x": {}}]},
    {"share": 0.5, "by_class": [0.5, None, "x"]},
    {"mean": "x", "low": None, "high": {}},
)
SHARES = (0.9, 1.0, *[None] * 9, 0.7, None, None, 0.9, None, 0.5, None)


def bring_in(sessions: Sessions) -> list[str]:
    """A further version of `digits` with each of these metrics, learnt elsewhere. → what they are called"""
    made = []
    with sessions.begin() as session:
        for place, told in enumerate(ODD):
            file = sha(f"file {place}")
            blobs.commit(session, file, 64)
            record = adapters.bring_in(
                session,
                task="digits",
                blob_digest=file,
                parameters=1,
                provenance={},
                metrics={"recognition": told},
            )
            made.append(record.ref)
    return made


@pytest.mark.parametrize(("told", "share"), list(zip(ODD, SHARES, strict=True)))
def test_a_recognition_is_read_as_far_as_it_says_one(told: Any, share: float | None) -> None:
    read = recognition({"recognition": told})
    assert read.share == share
    assert (read.samples, read.by_class, read.real_accuracy, read.real_images) == (None,) * 4
    assert isinstance(figures({"recognition": told}), dict)


def test_a_recognition_that_was_measured_is_read_whole() -> None:
    told = {"share": 0.75, "samples": 4, "by_class": [0.5, 1], "real_accuracy": 1.0, "real_images": 9}
    read = recognition({"recognition": told})
    assert (read.share, read.samples, read.by_class) == (0.75, 4, (0.5, 1.0))
    assert (read.real_accuracy, read.real_images) == (1.0, 9)


def test_odd_metrics_break_no_page(space: Workspace) -> None:
    refs = bring_in(space.sessions)
    pages = ["/", "/tasks/digits", "/adapters"]
    pages += [f"/adapters/{ref}" for ref in refs]
    pages += [f"/compare?left={ref}&right=digits@1" for ref in refs]
    with serving(space) as service:
        for page in pages:
            reply = service.ask("GET", page, Accept="text/html")
            assert reply.status == 200, (page, reply.body[:500])


def test_odd_metrics_break_no_command(
    space: Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (space.folder / settings.FILE).write_text(settings.HEADER)
    monkeypatch.setenv("AFFINERY_WORKSPACE", str(space.folder))
    refs = bring_in(space.sessions)
    lines: list[tuple[object, ...]] = [
        ("task", "show", "digits"),
        ("report", "digits", "--out", tmp_path / "report.html"),
        ("adapter", "list"),
        *[("adapter", "show", ref) for ref in refs],
    ]
    for words in lines:
        assert typed(*words) == 0, (words, capfd.readouterr().err)
    capfd.readouterr()
    assert typed("adapter", "show", refs[-1], "--json") == 0
    assert json.loads(capfd.readouterr().out)["metrics"] == {"recognition": ODD[-1]}


def test_of_what_was_learnt_elsewhere_nobody_says_that_it_was_proved(
    space: Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (space.folder / settings.FILE).write_text(settings.HEADER)
    monkeypatch.setenv("AFFINERY_WORKSPACE", str(space.folder))
    brought = bring_in(space.sessions)[0]
    with space.sessions.begin() as session:
        certificates.record(session, stage_adapter=brought, results={"imported": True}, level="unverified")
    assert typed("adapter", "show", brought) == 0
    (line,) = [each for each in capfd.readouterr().out.splitlines() if each.startswith("certificate")]
    assert "nothing was proved here" in line
    assert "unchanged" not in line
    with serving(space) as service:
        page = service.ask("GET", f"/adapters/{brought}", Accept="text/html").body.decode()
    assert "It was learnt elsewhere, and nothing was proved here." in page
    assert "were proved" not in page
    report = tmp_path / "report.html"
    assert typed("report", "digits", "--out", report) == 0
    told = re.search(rf"{brought}</td><td>unverified</td><td[^>]*>(.+?)</td>", report.read_text())
    assert told is not None
    assert told[1] == "–"
