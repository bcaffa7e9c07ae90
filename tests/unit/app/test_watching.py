"""Watching jobs: how much time is left, and what is said of a job that moves."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from affinery_app.cli.watching import Lines, Pace, left, losses
from orchestration.jobs import JobRecord

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job(state: str = "running", **progress: Any) -> JobRecord:
    known: dict[str, Any] = {each.name: None for each in fields(JobRecord)}
    known |= {"id": "0123456789ab", "number": 7, "kind": "train", "state": state, "tasks": ("digits",)}
    known |= {"needs": (), "waits": 0, "owner": "host", "created_at": NOW, "run_at": NOW}
    return JobRecord(**known | {"progress": progress or None})


def test_the_time_left_follows_the_pace_that_was_seen() -> None:
    pace = Pace()
    assert pace.seconds_left(job(step=100, of=1000), 0.0) is None
    assert pace.seconds_left(job(step=200, of=1000), 10.0) == pytest.approx(80.0)
    # Nothing new for four seconds: they have passed all the same.
    assert pace.seconds_left(job(step=200, of=1000), 14.0) == pytest.approx(76.0)
    assert pace.seconds_left(job(step=1000, of=1000), 100.0) == 0.0


def test_an_attempt_that_goes_on_from_a_checkpoint_is_paced_anew() -> None:
    pace = Pace()
    pace.seconds_left(job(step=100, of=1000), 0.0)
    pace.seconds_left(job(step=900, of=1000), 10.0)
    assert pace.seconds_left(job(step=500, of=1000), 20.0) is None
    assert pace.seconds_left(job(step=510, of=1000), 30.0) == pytest.approx(490.0)


def test_what_does_not_run_has_no_time_left_and_waiting_does_not_count() -> None:
    pace = Pace()
    pace.seconds_left(job(step=100, of=1000), 0.0)
    assert pace.seconds_left(job("paused", step=100, of=1000), 5.0) is None
    assert pace.seconds_left(job(step=100, of=1000), 1000.0) is None
    assert pace.seconds_left(job(step=200, of=1000), 1010.0) == pytest.approx(80.0)


def test_a_job_says_what_it_is_doing_while_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(as_json=False)
    for state, what in (("running", "checking the data"), ("running", "drawing\x1b"), ("paused", "drawing")):
        lines.show(job(state, step=3, of=9, doing=what))
    first, second, paused = capsys.readouterr().out.splitlines()
    assert "checking the data, by host" in first
    assert "drawing\\x1b, by host" in second
    assert "drawing" not in paused


def test_durations_and_losses_are_for_people() -> None:
    assert [left(each) for each in (None, 9.4, 75.0, 7384.0)] == [
        "",
        "9 s left",
        "1 min 15 s left",
        "2 h 03 min left",
    ]
    assert losses(job(step=1, of=2, losses={"digits": 0.12345})) == "loss 0.1235"
    assert losses(job(step=1, of=2, losses={"a": 0.5, "b\x1b[31m": 0.25})) == "a 0.5000  b\\x1b[31m 0.2500"
    assert losses(job()) == ""


def test_a_line_comes_only_with_something_new(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(as_json=False)
    moving = job(step=10, of=800, losses={"digits": 0.5})
    lines.show(moving)
    lines.show(moving)
    lines.show(replace(moving, progress={"step": 20, "of": 800, "losses": {"digits": 0.25}}))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "7 01234567 running   digits  10 / 800  loss 0.5000  by host"
    assert "20 / 800  loss 0.2500" in second
    assert second.count("left") == 1


def test_programs_get_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(as_json=True)
    lines.show(job(step=10, of=800, losses={"digits": 0.5}))
    lines.show(job("done", step=800, of=800))
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["state"], one["progress"]["step"]) for one in told] == [("running", 10), ("done", 800)]
    assert [one["seconds_left"] for one in told] == [None, None]
