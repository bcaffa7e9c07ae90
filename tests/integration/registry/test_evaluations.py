"""Evaluations: recorded once, found by search and gates, and never compared across protocols."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from registry import aliases, comparison, errors, evaluations, metrics
from registry.models import Job
from registry.search import search
from registry.session import Sessions
from tests import registry_world as world


def found(session: object, text: str) -> list[str]:
    return [record.ref for record in search(session, text).adapters]  # type: ignore[arg-type]


def test_figures_of_two_protocols_are_asked_for_by_their_protocol(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.learnt_on_new_backbone(session)
        world.learnt(session, "faces")
        one = world.evaluated(session, "digits", 0.5)
        assert world.evaluated(session, "digits", 0.5) == one
        world.evaluated(session, "digits", 0.01)
        assert found(session, "kid<0.02") == ["digits@1"]
        assert found(session, "metric.kid.mean>0.4") == []  # the last one counts
        other = world.evaluated(session, "faces", 0.01, protocol={"samples": 5})
        with pytest.raises(errors.FilterInvalid, match="never compared"):
            found(session, "kid<0.02")
        assert found(session, f"kid@{other.protocol_digest[:8]}<0.02") == ["faces@1"]
        assert found(session, "loss<1") == ["faces@1", "digits@1"]
        gate = metrics.requirement(f"kid@{one.protocol_digest[:6]}<=0.02")
        moved = aliases.point(session, "champion", "digits", require=[gate])
        assert moved.gate[0]["protocol"] == one.protocol_digest
        with pytest.raises(errors.GateClosed):
            aliases.point(session, "champion", "faces", require=[gate])


def test_the_figure_that_the_guide_asks_for_is_one_that_evaluations_record(ledger: Sessions) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "registry.md").read_text()
    asked = re.findall(r'affinery adapter search "(metric\.[^"]*)"', guide)
    assert asked == ["metric.KD[recogniser]<0.02"]
    with ledger.begin() as session:
        world.learnt_on_new_backbone(session)
        world.learnt(session, "faces")
        results = {"KD[recogniser]": {"mean": 0.01, "low": 0.0, "high": 0.02}}
        made = world.evaluated(session, "digits", results=results)
        assert found(session, asked[0]) == ["digits@1"]
        named = asked[0].replace("<", f"@{made.protocol_digest[:6]}<")
        assert found(session, named) == ["digits@1"]
        gate = metrics.requirement(named.removeprefix("metric."))
        assert aliases.point(session, "champion", "digits", require=[gate]).adapter == "digits@1"


def test_an_evaluation_of_a_job_that_was_given_away_is_refused(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.learnt_on_new_backbone(session)
        world.job(session, "measuring", state="running", fence=2)
        made = world.evaluated(session, "digits", job_id="measuring", fence=2)
        assert (made.job_id, made.fence) == ("measuring", 2)
        session.get_one(Job, "measuring").fence = 3
        session.flush()
        with pytest.raises(errors.StaleFence):
            world.evaluated(session, "digits", 0.7, job_id="measuring", fence=2)
        assert evaluations.latest(session, "digits", made.protocol_digest) == made


@pytest.mark.parametrize(("classes", "mend"), [(3, "--against faces@1"), (2, "learnt other classes")])
def test_adapters_measured_against_two_datasets_are_to_be_measured_against_one_of_their_classes(
    ledger: Sessions, classes: int, mend: str
) -> None:
    with ledger.begin() as session:
        world.learnt_on_new_backbone(session)
        world.task(session, "faces", classes=classes)
        world.learnt(session, "faces")
        for name in ("digits", "faces"):
            world.evaluated(session, name, 0.5, protocol={"reference": {"dataset": name}})
        with pytest.raises(errors.ProtocolsDiffer, match=mend):
            comparison.compare(session, "digits", "faces")


def test_adapters_are_compared_under_one_protocol_and_otherwise_the_difference_is_named(
    ledger: Sessions,
) -> None:
    with ledger.begin() as session:
        world.learnt_on_new_backbone(session)
        world.learnt(session, "faces")
        with pytest.raises(errors.NotMeasured, match="affinery evaluate digits@1"):
            comparison.compare(session, "digits", "faces")
        how = {"samples": 10, "sampler": {"steps": 4}}
        world.evaluated(session, "digits", 0.5, protocol=how)
        world.evaluated(session, "faces", 0.2, protocol={"samples": 20, "sampler": {"steps": 4}, "seed": 1})
        with pytest.raises(errors.ProtocolsDiffer, match="samples 10 and 20; seed absent and 1"):
            comparison.compare(session, "digits", "faces")
        world.evaluated(session, "faces", 0.3, protocol=how)
        world.evaluated(session, "faces", 0.1, protocol=how)  # the last one counts
        found = comparison.compare(session, "digits", "faces")
        assert found.figures["kid.mean"] == (0.5, 0.1)
        assert comparison.compare(session, "digits", "faces", found.left.protocol_digest[:8]) == found
        other = world.evaluated(session, "faces", 0.1, protocol={"samples": 99})
        with pytest.raises(errors.NotMeasured, match=other.protocol_digest[:12]):
            comparison.compare(session, "digits", "faces", other.protocol_digest)
