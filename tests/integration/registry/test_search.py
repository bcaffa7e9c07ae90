"""Searches of adapters: what filters find, page by page, and that nothing hostile goes through them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from affinery_app.cli.commands import command_line
from registry import adapters, aliases, certificates, compositions, errors, retirement, search, tags
from registry.columns import utc_now
from registry.models import Node
from registry.session import Sessions, connect, sessions
from tests import registry_world as world
from tests.postgres import copy_of


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def told_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> Iterator[str]:
    """A registry that these tests only read, on one engine and then on the other."""
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("told") / "registry.db"
        shutil.copy(sqlite_template, path)
        yield f"sqlite:///{path}"
    else:
        template = request.getfixturevalue("postgres_template")
        yield from copy_of(request.getfixturevalue("postgres_url"), template)


@pytest.fixture(scope="module")
def told(told_url: str) -> Iterator[Sessions]:
    """digits@1, digits@2, faces@1 on dit and birds@1 on unet, each with something of its own."""
    engine = connect(told_url)
    ledger = sessions(engine)
    with ledger.begin() as session:
        world.backbone(session, "dit")
        world.backbone(session, "unet")
        world.learnt(
            session, "digits", 1, metrics={"recognition": {"share": 0.5, "samples": 200}, "kid": 0.03}
        )
        world.learnt(session, "digits", 2, metrics={"recognition": {"share": 0.9}, "kid": 0.01}, kind="lora")
        world.learnt(session, "faces", 1, metrics={"recognition": 0.95}, parameters=1000)
        world.learnt(session, "birds", 1, on="unet", metrics={})
        tags.put(session, "digits@1", {"owner": "ann"})
        tags.put(session, "digits@2", {"owner": "bob o'hara", "stage": "approved"})
        aliases.point(session, "champion", "digits@1")
        aliases.point(session, "champion", "digits@2")
        aliases.point(session, "candidate", "faces")
        certificates.record(session, stage_adapter="faces", results={}, level="bit-exact")
        retirement.retire(session, "birds", "blurred")
        compositions.register(
            session, name="both", backbone="dit", mode="routed", recipe={}, members=["digits@1", "faces"]
        )
    yield ledger
    engine.dispose()


def found(ledger: Sessions, text: str) -> list[str]:
    with ledger.read() as session:
        return [record.ref for record in search.search(session, text).adapters]


FOUND = [
    ("", ["birds@1", "faces@1", "digits@2", "digits@1"]),
    ("kind=affiner", ["birds@1", "faces@1", "digits@1"]),
    ("kind!=affiner", ["digits@2"]),
    ("task=digits", ["digits@2", "digits@1"]),
    ("task!=digits", ["birds@1", "faces@1"]),
    ("backbone=unet", ["birds@1"]),
    ("backbone=dit@1 and dataset=faces@1", ["faces@1"]),
    ("version>=2", ["digits@2"]),
    ("parameters=1000", ["faces@1"]),
    ("parameters<1000 and size<=64", ["birds@1", "digits@2", "digits@1"]),
    ("metric.recognition>=0.9", ["faces@1", "digits@2"]),
    ("metric.recognition>0.9", ["faces@1"]),
    ("metric.recognition.share>=0.5", ["digits@2", "digits@1"]),
    ("metric.recognition.samples=200", ["digits@1"]),
    ("metric.kid<0.02", ["digits@2"]),
    ("metric.kid!=0.01", ["digits@1"]),
    ("not metric.kid<1", ["birds@1", "faces@1"]),
    ("tag.owner=ann", ["digits@1"]),
    ("tag.owner!=ann", ["birds@1", "faces@1", "digits@2"]),
    ('tag.owner="bob o\'hara" and tag.stage=approved', ["digits@2"]),
    ("alias=champion", ["digits@2"]),
    ("alias!=champion and task=digits", ["digits@1"]),
    ("alias=candidate or alias=champion", ["faces@1", "digits@2"]),
    ("certificate=bit-exact", ["faces@1"]),
    ("state=retired", ["birds@1"]),
    ("state=usable", ["faces@1", "digits@2", "digits@1"]),
    ("state!=usable", ["birds@1"]),
    ("below=dataset:digits@1", ["digits@2", "digits@1"]),
    ("below=unet", ["birds@1"]),
    ("above=both", ["faces@1", "digits@1"]),
    ("below=dit and not above=both", ["digits@2"]),
    ("run=mlflow-job-faces-1-faces", ["faces@1"]),
    ("job=job-digits-2", ["digits@2"]),
    ("job!=job-digits-2 and task=digits", ["digits@1"]),
    ("created>2099-01-01", []),
    ("created>=2020-01-01T00:00+02:00 and kind=lora", ["digits@2"]),
    ("kind=lora and tag.stage=approved and metric.recognition>=0.9 and below=digits@1", ["digits@2"]),
    ("(kind=lora or task=faces) and not metric.recognition>0.9", ["digits@2"]),
]


@pytest.mark.parametrize(("text", "refs"), FOUND)
def test_a_filter_finds_what_it_says(told: Sessions, text: str, refs: list[str]) -> None:
    assert found(told, text) == refs


def test_a_filter_finds_the_same_where_many_rows_could_match(
    told: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_FEW", 0)
    for text, refs in FOUND:
        assert found(told, text) == refs, text


def test_when_something_was_published_can_be_asked_to_the_second(told: Sessions) -> None:
    with told.read() as session:
        at = session.scalars(select(Node.created_at).where(Node.kind == "adapter").limit(1)).one()
    assert len(found(told, f"created>={(at - timedelta(minutes=1)).isoformat()}")) == 4
    assert found(told, f"created<{(at - timedelta(minutes=1)).isoformat()}") == []


HOSTILE = [
    "kind=affiner'; DROP TABLE adapter; --",
    "tag.owner=\"' OR '1'='1\"",
    'tag.owner="\') UNION SELECT 1 --"',
    "tag.x' OR 1=1 --=y",
    "metric.kid) OR 1=1 --<5",
    "metric.kid<1e999",
    "metric.kid<nan",
    "metric.kid<1_000",
    "metric.kid<０.5",
    "metric.kid<0x10",
    "version>=99999999999999999999",
    "version>=-1",
    "parameters=9223372036854775808",
    "parameters>=1.5",
    "kind>=affiner",
    "created>=yesterday",
    "created>=0001-01-01T00:00+23:59",
    "state=sleeping",
    "flavour=sweet",
    "tag.=x",
    "metric.=1",
    "below=nothing-like-this",
    "below=a@b@c",
    'tag.owner="a\x00b"',
    "task=\ud800",
    "%=%",
]


def refusal(ledger: Sessions, text: str) -> str | None:
    """What is said of a filter that is refused; None where it finds nothing."""
    try:
        assert found(ledger, text) == []
    except (errors.FilterInvalid, errors.NotFound, errors.RefInvalid) as refused:
        return str(refused)
    return None


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_input_finds_nothing_changes_nothing_and_is_one_clear_error(
    told: Sessions, text: str
) -> None:
    refused = refusal(told, text)
    if refused is not None:
        assert len(refused) < 700
        assert "sqlite" not in refused.lower()
        refused.encode()
    assert len(found(told, "")) == 4


def test_a_wrong_field_is_answered_with_the_near_one_and_its_position(told: Sessions) -> None:
    with pytest.raises(errors.FilterInvalid, match="Did you mean 'backbone'") as caught:
        found(told, "kind=lora and backbon=dit")
    assert caught.value.args[1] == 14
    assert str(caught.value).splitlines()[-1].index("^") == 2 + 14


def test_pages_put_together_are_everything_once_while_more_is_published(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        for number in range(1, 8):
            world.learnt(session, "digits", number)
    seen: list[str] = []
    before: int | None = None
    while True:
        with ledger.begin() as session:
            page = search.search(session, "task=digits", before=before, limit=3)
            world.learnt(session, f"later {len(seen)}")
            world.learnt(session, "digits", 100 + len(seen))
        seen += [record.ref for record in page.adapters]
        before = page.next
        if before is None:
            break
    assert seen == [f"digits@{number}" for number in range(7, 0, -1)]


def test_searching_from_the_command_line(told: Sessions, tmp_path: Path, told_url: str) -> None:
    (tmp_path / "affinery.toml").write_text(f'registry_url = "{told_url}"\n')

    def run(*words: str) -> str:
        command = ["adapter", "search", *words, "-w", str(tmp_path)]
        done = CliRunner().invoke(command_line(), command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    first = json.loads(run("backbone=dit", "--limit", "2", "--json"))
    assert [each["ref"] for each in first["adapters"]] == ["faces@1", "digits@2"]
    rest = json.loads(run("backbone=dit", "--before", str(first["next"]), "--json"))
    assert [each["ref"] for each in rest["adapters"]] == ["digits@1"]
    assert rest["next"] is None
    assert "faces@1" in run("metric.recognition>=0.9 and not kind=lora")
    with pytest.raises(errors.FilterInvalid):
        run("kind~lora")


def test_records_come_in_the_order_in_which_they_are_asked_for(told: Sessions) -> None:
    with told.read() as session:
        everything = adapters.list_all(session)
        backwards = [record.node_id for record in reversed(everything)]
        assert adapters.by_ids(session, backwards) == everything[::-1]
        assert adapters.by_ids(session, []) == []
        assert utc_now() > everything[0].created_at
