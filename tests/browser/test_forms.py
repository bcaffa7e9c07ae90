"""What is asked for on pages and done by workers, or at once: sums, evaluations, formats, conditions."""

from __future__ import annotations

from urllib.parse import quote, urlencode

import pytest

from orchestration import chores, queue
from orchestration.tracking.compositions import key_of
from registry import backbones, blobs, compositions, datasets, tasks
from registry.errors import NotFound
from tests import registry_world as world
from tests import stored_world
from tests.browser.conftest import EVIL
from tests.browser.reading import faults, read
from tests.integration.api.conftest import Reply, Service


def send(service: Service, path: str, *fields: tuple[str, str]) -> Reply:
    body = urlencode(fields).encode()
    return service.ask("POST", path, body, Content_Type="application/x-www-form-urlencoded")


def asked(service: Service, reply: Reply) -> tuple[str, dict[str, object]]:
    """The kind of the job that came of a form, and what it is to do."""
    assert reply.status == 303, reply.body
    with service.space.sessions.read() as session:
        job = queue.get(session, reply.headers["location"].split("/")[2].partition("?")[0])
        return job.kind, chores.told(session, job.kind, job.payload)


def test_a_sum_is_composed_by_the_weights_beside_its_members(pages: Service) -> None:
    other = f"{EVIL} & more"
    with pages.space.sessions.begin() as session:
        for name in ("pen", other):  # kinds are summed by their settings, so these are real ones
            world.task(session, name, rank=4)
            blobs.commit(session, world.sha(f"adapter file job-{name}-1 {name}"), 64)
            world.learnt(session, name, config={"rank": 4})
    members = [("member", "pen@1"), ("member", f"{other}@1"), ("member", "faces@1")]
    weights = [("weight of pen@1", "0.6"), (f"weight of {other}@1", "-0.4"), ("weight of birds@1", "9")]
    made = send(pages, "/compositions", ("name", "ink"), ("merge", "yes"), ("sum", "sum"), *members, *weights)
    assert made.status == 303, made.body
    assert made.headers["location"] == "/compositions/ink@1?said=composed"
    with pages.space.sessions.read() as session:
        found = compositions.get(session, "ink")
    assert pages.space.tracking.kept.knows(key_of(found))
    (merge,) = found.recipe["merges"]
    assert (found.mode, merge["name"]) == ("merged", "sum")
    assert [found.members[each["member"]] for each in merge["of"]] == ["pen@1", f"{other}@1"]
    page = read(pages.ask("GET", "/compositions/ink").body)
    assert f"0.6 · pen@1 + -0.4 · {other}@1" in page.text
    assert faults(page) == []


@pytest.mark.parametrize("weight", ["", "much", "nan", "inf", "1e7"])
def test_a_sum_without_weights_that_can_be_is_refused_and_nothing_is_recorded(
    pages: Service, weight: str
) -> None:
    fields = [("name", "ink"), ("merge", "yes"), ("member", "digits@2"), ("weight of digits@2", weight)]
    refused = send(pages, "/compositions", *fields)
    assert refused.status == 422
    with pages.space.sessions.read() as session, pytest.raises(NotFound):
        compositions.get(session, "ink")
    again = read(refused.body)  # with what was filled in
    held = {
        each["name"]: each for each in again.of("input") if each.get("type") != "checkbox" and "name" in each
    }
    assert (held["name"]["value"], held["weight of digits@2"]["value"]) == ("ink", weight)
    ticked = {each["value"] for each in again.of("input") if "checked" in each}
    assert ticked == {"yes", "digits@2"}
    assert faults(again) == []


def test_what_is_ticked_at_first_can_be_composed_where_there_are_several_backbones(pages: Service) -> None:
    with pages.space.sessions.begin() as session:
        files = stored_world.Files(pages.space.store, pages.space.folder)
        files.backbone(session, "dit", seed=7.0)
        files.learnt(session, "later", on="dit@2")
    offered = [held for held in read(pages.ask("GET", "/compositions").body).of("input") if "value" in held]
    members = {held["value"]: "checked" in held for held in offered if held.get("name") == "member"}
    assert {"later@1": True, "digits@2": False, "faces@1": False}.items() <= members.items()
    made = send(
        pages, "/compositions", ("name", "all"), *(("member", ref) for ref in members if members[ref])
    )
    assert made.status == 303


def test_a_form_that_is_refused_leads_back_to_its_page(pages: Service) -> None:
    refused = send(pages, f"/adapters/{quote(EVIL)}@1/alias", ("other", "NO SUCH ALIAS"))
    assert refused.status == 422
    assert f"/adapters/{quote(EVIL)}@1" in [held.get("href") for held in read(refused.body).of("a")]


def test_versions_are_measured_by_a_job_and_nonsense_schedules_none(pages: Service) -> None:
    both = [("adapter", "digits@1"), ("adapter", f"{EVIL}@1")]
    kind, payload = asked(pages, send(pages, "/evaluate", *both, ("samples", "64"), ("guidance", "1.5")))
    assert kind == "evaluate"
    assert payload["adapters"] == ["adapter:digits@1", f"adapter:{EVIL}@1"]
    assert (payload["samples"], payload["guidance"]) == (64, 1.5)
    _, payload = asked(pages, send(pages, "/evaluate", *both[:1], ("against", "digits")))
    assert payload["against"] == "dataset:digits@1"
    for wrong in ([], [*both, ("samples", "0")], [*both, ("guidance", "-1")], [*both, ("steps", "x")]):
        assert send(pages, "/evaluate", *wrong).status == 422
    assert send(pages, "/evaluate", ("adapter", "nobody")).status == 404


def test_what_a_backbone_remembers_is_measured_by_a_job_and_then_told_with_the_page(pages: Service) -> None:
    sent = send(pages, "/backbones/dit@1/retention", ("samples", "32"), ("steps", ""))
    kind, payload = asked(pages, sent)
    assert (kind, payload) == ("retention", {"backbone": "backbone:dit@1", "samples": 32})
    told = read(pages.ask("GET", "/backbones/dit@1").body)
    assert "It is being measured" in told.text
    assert [held for held in told.of("form") if held.get("action", "").endswith("/retention")] == []
    assert send(pages, "/backbones/dit@1/retention", ("samples", "0")).status == 422
    assert send(pages, "/backbones/nobody/retention").status == 404


def test_an_export_is_of_the_format_that_was_chosen(pages: Service) -> None:
    page = read(pages.ask("GET", "/compositions/both").body)
    assert [each for each in ("diffusers", "mlflow", "onnx", "torch-export") if each not in page.text] == []
    fields = [("format", "safetensors"), ("task", "digits"), ("unverified", "yes")]
    kind, payload = asked(pages, send(pages, "/compositions/both/export", *fields))
    assert (kind, payload["format"], payload["unverified"]) == ("export", "safetensors", True)
    assert payload["task"] == "task:digits"


def test_a_rebase_is_of_the_tasks_that_were_ticked(pages: Service) -> None:
    place = "/backbones/dit/rebase"
    assert send(pages, place, ("to", "unet")).status == 422  # none is not all
    assert send(pages, place, ("to", ""), ("only", "digits")).status == 422
    kind, payload = asked(pages, send(pages, place, ("to", "unet"), ("only", "digits"), ("only", EVIL)))
    assert (kind, payload["warm"]) == ("rebase", False)
    assert payload["only"] == ["task:digits", f"task:{EVIL}"]


def test_a_rebase_onto_a_backbone_whose_record_describes_no_model_says_so(pages: Service) -> None:
    reply = pages.ask("GET", "/backbones/dit/rebase?to=unet")
    told = read(reply.body).text
    assert reply.status == 200, told
    assert "it does not fit unet@1" in told
    assert "affinery backbone add" in told


def test_from_nothing_to_a_task_with_a_condition_by_forms_alone(ready: Service) -> None:
    assert send(ready, "/backbones/shipped").headers["location"] == "/backbones/tiny-dit@1?said=added"
    assert send(ready, "/backbones/shipped").headers["location"] == "/backbones/tiny-dit@1?said=added"
    assert send(ready, "/datasets/shipped", ("name", "nothing")).status == 404
    added = send(ready, "/datasets/shipped", ("name", "animals"))
    assert added.headers["location"] == "/new?dataset=animals%401&said=imported"
    with ready.space.sessions.read() as session:
        assert len(backbones.list_all(session)) == 1
        assert datasets.get(session, "animals").image_count > 1000
    task = {"name": "edges", "dataset": "animals", "backbone": "tiny-dit", "kind": "affiner"}
    estimate = ready.ask("GET", f"/new/estimate?{urlencode(task | {'condition': 'depth'})}").body.decode()
    assert "have no map" in estimate
    assert send(ready, "/new", *task.items(), ("low", "50")).status == 422  # thresholds of nothing
    assert send(ready, "/new", *task.items(), ("condition", "depth")).status == 422
    kind, _ = asked(ready, send(ready, "/new", *task.items(), ("condition", "canny"), ("low", "50")))
    assert kind == "train"
    with ready.space.sessions.read() as session:
        found = tasks.get(session, "edges").condition or {}
    assert (found["name"], found["low"], found["high"]) == ("canny", 50, 200)
