"""The command line's lists, read from a service: the same as from the workspace that it serves."""

from __future__ import annotations

import json

import pytest

from affinery_app import settings
from affinery_app.wiring import Workspace
from registry import tokens
from tests.command_line import typed
from tests.integration.api.conftest import serving

LISTS = [
    ("backbone", "list"),
    ("dataset", "list"),
    ("task", "list"),
    ("adapter", "list"),
    ("adapter", "list", "--task", "digits"),
]


def test_lists_of_a_service_are_those_of_its_workspace(
    space: Workspace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AFFINERY_WORKSPACE", raising=False)
    (space.folder / settings.FILE).write_text(settings.HEADER)
    with space.sessions.begin() as session:
        _, token = tokens.create(session, "ann", "read", by="ann")
    monkeypatch.setenv("AFFINERY_REGISTRY_URL", space.registry_url)
    monkeypatch.setenv("AFFINERY_TOKEN", token)
    with serving(space) as service:
        address = f"http://127.0.0.1:{service.port}"
        for words in LISTS:
            for form in ((), ("--json",)):
                assert typed(*words, *form, "--workspace", space.folder) == 0
                here = capfd.readouterr()
                assert typed(*words, *form, "--url", address) == 0
                there = capfd.readouterr()
                assert (there.out, there.err) == (here.out, here.err), words
                assert len(there.out) > 20
        assert typed("task", "list", "--url", address, "--workspace", space.folder) == 2
        monkeypatch.setenv("AFFINERY_URL", address)
        capfd.readouterr()
        assert typed("task", "list", "--json") == 0
        assert len(json.loads(capfd.readouterr().out)) == 3
        monkeypatch.setenv("AFFINERY_TOKEN", "aff_wrong")
        assert typed("task", "list") == 2
        capfd.readouterr()
    assert typed("task", "list") == 1
    assert "No service answers" in capfd.readouterr().err


def test_what_is_done_in_a_workspace_is_not_done_here_when_a_service_is_meant(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AFFINERY_WORKSPACE", raising=False)
    monkeypatch.setenv("AFFINERY_URL", "http://127.0.0.1:1")
    for words in (("gc",), ("task", "show", "digits"), ("config", "list"), ("init",)):
        assert typed(*words) == 2
        assert "AFFINERY_URL means the service" in capfd.readouterr().err
