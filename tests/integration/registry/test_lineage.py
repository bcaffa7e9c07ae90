"""References resolved, and walks through the lineage, on both engines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal

import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from affinery.errors import ConfigInvalid
from affinery_app.cli.commands import command_line
from registry import compositions, errors, invariants, lineage
from registry.models import Edge, Node
from registry.records import NodeRecord
from registry.session import Sessions
from tests import registry_world as world


@pytest.fixture
def told(ledger: Sessions) -> Sessions:
    """A backbone, three adapters of two tasks, a composition and its export."""
    with ledger.begin() as session:
        world.backbone(session)
        world.learnt(session, "digits", 1)
        world.learnt(session, "digits", 2)
        world.learnt(session, "faces", 1)
        world.task(session, "untrained")
        compositions.register(
            session, name="all", backbone="dit", mode="routed", recipe={}, members=["digits", "faces"]
        )
        compositions.record_export(
            session, composition="all", format="bundle", digest=world.sha("bundle"), path="/x", size_bytes=1
        )
    return ledger


@pytest.mark.parametrize(
    ("ref", "meant"),
    [
        ("dit", "backbone:dit@1"),
        ("dit@1", "backbone:dit@1"),
        ("adapter:digits", "adapter:digits@2"),
        ("adapter:digits@1", "adapter:digits@1"),
        ("digits@2", "adapter:digits@2"),
        ("task:digits", "task:digits"),
        ("dataset:digits", "dataset:digits@1"),
        ("all", "composition:all@1"),
        ("export:all@v1", "export:all@1"),
        (world.sha("bundle")[:6], "export:all@1"),
        (world.sha("bundle").upper(), "export:all@1"),
        ("adapter:" + world.sha("adapter job-digits-1 digits")[:12], "adapter:digits@1"),
    ],
)
def test_a_reference_means_one_thing(told: Sessions, ref: str, meant: str) -> None:
    with told.read() as session:
        assert lineage.resolve(session, ref).full_ref == meant


def test_a_reference_that_several_things_answer_to_is_refused_with_the_candidates(told: Sessions) -> None:
    with told.read() as session:
        with pytest.raises(errors.AmbiguousRef) as caught:
            lineage.resolve(session, "digits")
        assert caught.value.args == ("digits", ["adapter:digits@2", "dataset:digits@1"])
        with pytest.raises(errors.AmbiguousRef, match="dataset:untrained@1, task:untrained"):
            lineage.resolve(session, "untrained")
        assert lineage.resolve(session, "digits", prefer=["adapter"]).full_ref == "adapter:digits@2"
        for candidate in caught.value.args[1]:
            assert lineage.resolve(session, candidate).full_ref == candidate


def test_a_digest_prefix_shared_by_two_nodes_is_refused_with_both(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.backbone(session, "one", fingerprint="ab" * 32)
        world.backbone(session, "two", fingerprint="ab" * 31 + "cd")
    with ledger.read() as session:
        with pytest.raises(errors.AmbiguousRef, match="backbone:one@1, backbone:two@1"):
            lineage.resolve(session, "ababab")
        assert lineage.resolve(session, "ab" * 31 + "c").name == "two"


def test_a_name_wins_over_the_digest_it_looks_like(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.backbone(session, "one", fingerprint="facade" + "0" * 58)
        world.backbone(session, "facade")
    with ledger.read() as session:
        assert lineage.resolve(session, "facade").name == "facade"
        assert lineage.resolve(session, "facade0").name == "one"


@pytest.mark.parametrize("ref", ["digit@2", "adapter:untrained", "digits@9", "ffffffffffff", "abc"])
def test_a_reference_to_nothing_is_refused_with_what_is_known(told: Sessions, ref: str) -> None:
    with pytest.raises(errors.NotFound, match="digits"), told.read() as session:
        lineage.resolve(session, ref)


def refs(graph: lineage.LineageGraph) -> set[str]:
    return {node.full_ref for node in graph.nodes.values()}


def walk(session: Session, ref: str) -> NodeRecord:
    return lineage.resolve(session, ref)


def test_an_export_s_ancestors_name_backbone_datasets_runs_and_adapters(told: Sessions) -> None:
    with told.read() as session:
        export = walk(session, "export:all")
        graph = lineage.ancestors(session, export.node_id)
        assert refs(graph) == {
            *("export:all@1", "composition:all@1", "backbone:dit@1"),
            *("adapter:digits@2", "adapter:faces@1", "task:digits", "task:faces"),
            *("dataset:digits@1", "dataset:faces@1"),
            *("run:mlflow-job-digits-2-digits", "run:mlflow-job-faces-1-faces"),
        }
        assert not graph.truncated
        text = lineage.tree(graph, export.node_id)
        assert text.splitlines()[0] == f"export all@1  [{world.sha('bundle')[:12]}]"
        for line in (
            "member: adapter digits@2",
            "run: run mlflow-job-digits-2-digits",
            "dataset: dataset faces@1",
        ):
            assert line in text


def test_what_contains_data_of_a_dataset_is_found_downwards(told: Sessions) -> None:
    with told.read() as session:
        faces = refs(lineage.descendants(session, walk(session, "dataset:faces").node_id))
        assert {"export:all@1", "adapter:faces@1"} <= faces
        assert not any("digits" in ref for ref in faces)


def test_a_walk_keeps_to_its_depth_and_roles(told: Sessions) -> None:
    with told.read() as session:
        export = walk(session, "export:all").node_id
        assert refs(lineage.ancestors(session, export, depth=0)) == {"export:all@1"}
        assert refs(lineage.ancestors(session, export, depth=1)) == {"export:all@1", "composition:all@1"}
        two = refs(lineage.ancestors(session, export, depth=2))
        assert two == refs(lineage.ancestors(session, export, depth=1)) | {
            *("backbone:dit@1", "adapter:digits@2", "adapter:faces@1")
        }
        assert lineage.ancestors(session, export, depth=99) == lineage.ancestors(session, export)
        spine = lineage.ancestors(session, export, roles=["composition", "member"])
        assert refs(spine) == {"export:all@1", "composition:all@1", "adapter:digits@2", "adapter:faces@1"}
        assert {edge.role for edge in spine.edges} == {"composition", "member"}
        assert refs(lineage.ancestors(session, export, roles=[])) == {"export:all@1"}


def test_a_walk_that_reaches_its_bound_says_so(told: Sessions) -> None:
    with told.read() as session:
        backbone = walk(session, "dit").node_id
        for depth in (None, 9):
            graph = lineage.descendants(session, backbone, depth=depth, max_nodes=3)
            assert (len(graph.nodes), graph.truncated, backbone in graph.nodes) == (3, True, True)
            assert lineage.tree(graph, backbone, "down").splitlines()[-1].startswith("… more is recorded")


def test_a_ladder_of_twenty_two_diamonds_is_walked_and_drawn_once(ledger: Sessions) -> None:
    with ledger.begin() as session:
        ids = [world.backbone(session).node_id]
        for rung in range(22):
            made = [
                Node(kind="run", digest=world.sha(f"{rung} {side}")) for side in ("left", "right", "foot")
            ]
            session.add_all(made)
            session.flush()
            left, right, foot = (node.id for node in made)
            pairs = [(left, ids[-1]), (right, ids[-1]), (foot, left), (foot, right)]
            session.execute(insert(Edge), [{"child": c, "parent": p, "role": "rung"} for c, p in pairs])
            ids += [left, right, foot]
    with ledger.read() as session:
        start = time.process_time()
        up = lineage.ancestors(session, ids[-1])
        down = lineage.descendants(session, ids[0])
        text = lineage.tree(up, ids[-1])
        assert time.process_time() - start < 2  # 2^22 paths would take minutes
        took = []
        for _ in range(5):
            began = time.process_time()
            assert len(session.scalars(lineage.reach(ids[-1], down=False)).all()) == 67
            took.append(time.process_time() - began)
        assert min(took) < 0.01
        assert len(up.nodes) == len(down.nodes) == 67
        assert len(up.edges) == 88
        assert len(text.splitlines()) == 89


def test_a_lineage_says_with_what_code_seed_and_environment_a_run_was_made(told: Sessions) -> None:
    with told.read() as session:
        graph = lineage.ancestors(session, walk(session, "adapter:digits@1").node_id)
    (made,) = graph.facts.values()
    assert (made["code"], made["seed"], made["python"]) == ("abc123", 7, "3.11")
    assert made["mlflow_run_id"] == "mlflow-job-digits-1-digits"
    assert {"lock", "environment", "gpus", "processor"} <= made.keys()
    assert "(code abc123, seed 7)" in lineage.tree(graph, graph.root)
    (run,) = (node for node in graph.to_json()["nodes"] if node["kind"] == "run")
    assert run["made_with"] == made


@pytest.mark.parametrize("few", [0, 1000])
def test_the_exports_that_contain_data_of_a_dataset_are_listed(
    told: Sessions, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "_FEW", few)
    with told.read() as session:
        dataset = walk(session, "dataset:digits").node_id
        page = lineage.page(session, dataset, "down", kinds=["export"])
        assert [node.full_ref for node in page.nodes] == ["export:all@1"]
        assert page.next is None
        untrained = walk(session, "dataset:untrained").node_id
        assert lineage.page(session, untrained, "down", kinds=["export"]).nodes == ()
        over = lineage.page(session, dataset, "down", roles=["dataset"], kinds=["adapter", "task"])
        assert {node.kind for node in over.nodes} == {"adapter", "task"}


@pytest.mark.parametrize("few", [0, 1000])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_pages_put_together_are_everything_once_even_while_more_is_recorded(
    told: Sessions, direction: Literal["up", "down"], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "_FEW", few)  # whether descendants are gathered, or walked and asked
    with told.read() as session:
        root = walk(session, "export:all" if direction == "up" else "dit").node_id
        walker = lineage.ancestors if direction == "up" else lineage.descendants
        everything = sorted(walker(session, root).nodes.keys() - {root})
    seen: list[int] = []
    after: int | None = 0
    while after is not None:
        with told.begin() as session:
            page = lineage.page(session, root, direction, after=after, limit=3)
            if len(seen) == 3:
                world.learnt(session, "later")
        assert len(page.nodes) <= 3
        seen += [node.node_id for node in page.nodes]
        after = page.next
    assert seen == sorted(set(seen))
    assert seen[: len(everything)] == everything


def test_lineage_from_the_command_line(told: Sessions, tmp_path: Path, registry_url: str) -> None:
    (tmp_path / "affinery.toml").write_text(f'registry_url = "{registry_url}"\n')

    def run(*words: str) -> str:
        done = CliRunner().invoke(
            command_line(), ["lineage", *words, "-w", str(tmp_path)], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "run: run mlflow-job-digits-2-digits" in run("digits")
    assert json.loads(run("digits", "--format", "json")) == json.loads(run("digits", "--json"))
    listed = json.loads(run("dataset:faces", "--down", "--kind", "export", "--format", "json"))
    assert [node["ref"] for node in listed["nodes"]] == ["export:all@1"]
    assert "export:all@1" in run("dataset:faces", "--down", "--kind", "export")
    first = json.loads(run("dit", "--down", "--after", "0", "--limit", "2", "--json"))
    assert len(first["nodes"]) == 2
    assert first["next"] == first["nodes"][-1]["id"]
    assert run("export:all", "--role", "composition", "--format", "mermaid").count("-->") == 1
    assert "digraph" in run("export:all", "--depth", "1", "--format", "dot")
    with pytest.raises(ConfigInvalid):
        run("dit", "--kind", "export", "--format", "dot")
    for odd in (("--kind", "exprot"), ("--role", "datset")):
        with pytest.raises(ConfigInvalid, match="Did you mean"):
            run("dit", "--down", *odd)
    beyond = ["lineage", "dit", "--after", str(2**63), "-w", str(tmp_path)]
    assert CliRunner().invoke(command_line(), beyond).exit_code == 2


def test_every_role_that_the_record_writes_can_be_asked_for() -> None:
    written = {role for edges in invariants.EDGES.values() for _, role in edges} | {"member"}
    assert sorted(written) == sorted(lineage.ROLES)
