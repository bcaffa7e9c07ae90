"""References resolved, and walks through the lineage, on both engines."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session

from registry import compositions, errors, lineage
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
        assert len(up.nodes) == len(down.nodes) == 67
        assert len(up.edges) == 88
        assert len(text.splitlines()) == 89
