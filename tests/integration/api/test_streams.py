"""What happens, as it happens: server-sent events of jobs and of the registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from affinery_app.api import streams
from affinery_app.client.nouns import _messages
from orchestration.ray_train import PROGRESS
from registry import notes
from registry.models import Job
from tests.integration.api.conftest import Service


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LOOK_SECONDS", 0.02)


class Stream:
    """A stream that is read event by event."""

    def __init__(self, service: Service, path: str, **headers: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", service.port, timeout=30)
        sent = {"Accept": "text/event-stream"} | {k.replace("_", "-"): v for k, v in headers.items()}
        self._connection.request("GET", path, headers=sent)
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200
        assert str(self._answer.getheader("content-type")).startswith("text/event-stream")
        self.events: Iterator[tuple[str, str, Any]] = _messages(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        while piece := self._answer.read1(65_536):
            yield piece

    def close(self) -> None:
        self._connection.close()


def reported(service: Service, job_id: str, *steps: int) -> None:
    """What a training of a job says in its own folder."""
    channel = service.space.runs / job_id / "attempt-1"
    channel.mkdir(parents=True, exist_ok=True)
    with (channel / PROGRESS).open("a") as file:
        for step in steps:
            line = {
                "step": step,
                "steps": 9,
                "time": 1000.0 + step,
                "idle": 0,
                "losses": {"digits": 1 / step},
            }
            file.write(json.dumps(line) + "\n")


def test_a_job_is_followed_to_its_end_and_from_where_it_broke_off(service: Service) -> None:
    with service.space.sessions.begin() as session:
        session.get_one(Job, "job-faces-1").state = "done"
    reported(service, "job-faces-1", 1, 2, 3)
    whole = list(Stream(service, "/v1/jobs/job-faces-1/events").events)
    losses = [told["step"] for name, _, told in whole if name == "loss"]
    assert losses == [1, 2, 3]
    assert [name for name, _, _ in whole][-2:] == ["state", "end"]
    second = next(number for name, number, told in whole if name == "loss" and told["step"] == 2)
    rest = Stream(service, "/v1/jobs/job-faces-1/events", Last_Event_ID=second)
    assert [told["step"] for name, _, told in rest.events if name == "loss"] == [3]
    for strange in ("nan", "inf", "x"):
        refused = service.ask("GET", "/v1/jobs/job-faces-1/events", Last_Event_ID=strange)
        assert (refused.status, refused.json["faults"][0]["where"]) == (422, "header.last-event-id")
    assert service.ask("GET", "/v1/jobs/nothing-1/events").status == 404


def test_the_registry_tells_what_happens_while_it_is_listened_to(service: Service) -> None:
    last = service.get("/v1/events?limit=500")["items"][-1]["id"]
    heard = Stream(service, f"/v1/events?after={last}")
    with service.space.sessions.begin() as session:
        notes.write(session, "digits@1", "Look at this.")
    name, number, told = next(heard.events)
    heard.close()
    assert (name, told["kind"][:4], int(number) > last) == ("happened", "note", True)
    with service.space.sessions.begin() as session:
        notes.write(session, "digits@1", "And at this.")
    again = Stream(service, "/v1/events", Last_Event_ID=number)
    _, later, _ = next(again.events)
    again.close()
    assert int(later) > int(number)
    for strange in ("nan", "-1", "x", "9" * 30):
        refused = service.ask("GET", "/v1/events", Accept="text/event-stream", Last_Event_ID=strange)
        assert (refused.status, refused.json["faults"][0]["where"]) == (422, "header.last-event-id")
    assert service.ask("GET", "/v1/events").headers["content-type"] == "application/json"
