"""The pages in a real Chromium: by keyboard, on a phone, with much in them, nothing on the console."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

from registry import aliases, datasets
from registry import pages as listed
from tests.browser.conftest import EVIL, Visitor
from tests.integration.api.conftest import Service, serving
from tests.learning_world import image_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
E = quote(EVIL)
PLACES = ("/", "/tasks", "/tasks/digits", f"/tasks/{E}", "/adapters", f"/adapters/{E}@1", "/jobs/job-runs")
MORE = (
    "/backbones/dit",
    "/compositions/both",
    f"/lineage/adapter:{E}@1",
    "/new",
    "/events",
    "/health",
    "/compare",
)


@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_fits_its_screen_and_says_nothing_on_the_console(
    looked_at: Service, visitor: Visitor, width: int
) -> None:
    visitor.page.set_viewport_size({"width": width, "height": 844})
    for path in PLACES + MORE:
        page = visitor.goes_to(looked_at, path)
        page.wait_for_selector("main")
        beside = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert beside == 0, path
        assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0, path


@pytest.mark.parametrize(("width", "least"), [(390, 9), (1280, 11)])
def test_the_rows_of_the_class_table_are_large_enough_to_be_seen(
    looked_at: Service, visitor: Visitor, width: int, least: int
) -> None:
    visitor.page.set_viewport_size({"width": width, "height": 844})
    page = visitor.goes_to(looked_at, "/backbones/dit")
    drawn = page.locator(".class-map:visible")
    assert drawn.count() == 1
    assert drawn.locator(".null path").bounding_box()["width"] >= least  # type: ignore[index]


def test_everything_is_reached_by_keyboard(pages: Service, visitor: Visitor) -> None:
    page = visitor.goes_to(pages, "/adapters/digits@1")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the page"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "find"
    page.focus("#alias > summary")
    page.keyboard.press("Enter")
    assert page.evaluate("document.getElementById('alias').open")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.getElementById('alias').open")
    assert page.evaluate("document.activeElement.parentElement.id") == "alias"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("mine")
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # where one is, is seen
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.wait_for_selector("text=The alias was moved")
    with pages.space.sessions.read() as session:
        assert aliases.get(session, "digits@mine").adapter == "digits@1"


def test_what_is_learnt_moves_without_a_reload_and_keeps_the_focus(pages: Service, visitor: Visitor) -> None:
    page = visitor.goes_to(pages, "/")
    page.wait_for_selector("text=step 10 of 40")
    link = page.locator("[data-live] .over h3 a")
    link.focus()
    page.evaluate("window.kept = true")
    progress = pages.space.runs / "job-runs" / "attempt-1" / "progress.jsonl"
    with progress.open("a") as file:
        file.write('{"step": 30, "steps": 40, "losses": {"running": 0.2}, "time": 1000000060.0}\n')
    page.wait_for_selector("text=step 30 of 40")
    assert page.evaluate("window.kept")
    told = page.text_content("[data-tell]")  # to who listens instead of looking
    assert told is not None
    assert "running: step" in told
    assert page.evaluate("document.activeElement.textContent") == "running"


def test_a_page_that_stays_open_says_when_its_session_has_ended(pages: Service, visitor: Visitor) -> None:
    secret = "a-token-of-some-length"
    with serving(pages.space, token=secret) as closed:
        page = visitor.goes_to(closed, "/jobs/job-runs?said=scheduled")
        page.fill("#token", secret)
        page.click("text=Sign in")
        page.wait_for_selector("text=step 10 of 40")
        page.context.clear_cookies()
        page.click("text=Sign in again")
        page.wait_for_url("**/login?*")
        assert page.input_value("input[name=next]") == "/jobs/job-runs?said=scheduled"
        page.fill("#token", "wrong")
        page.click("text=Sign in")
        page.wait_for_selector("text=There is no active token")
        page.fill("#token", secret)
        page.click("text=Sign in")
        page.wait_for_selector("text=step 10 of 40")


def test_images_that_cannot_be_read_are_left_out_of_an_upload_where_that_is_ticked(
    ready: Service, visitor: Visitor, tmp_path: Path
) -> None:
    folder = image_folder(tmp_path / "shapes", "round", "flat")
    for name in ("broken", "torn"):
        (folder / "round" / f"{name}.png").write_bytes(b"no image")
    images = shutil.make_archive(str(tmp_path / "shapes"), "zip", folder)
    page = visitor.goes_to(ready, "/new")
    page.set_input_files("#archive", images)
    page.click("[data-upload] button")
    page.wait_for_selector("#upload-told.bad >> text=2 of")
    assert "skip_bad" in (page.text_content("#upload-told") or "")
    visitor.complaints.clear()  # the browser's own line of a 422
    with ready.space.sessions.read() as session:
        assert listed.counts(session).get("dataset", 0) == 0
    page.check("[name=skip_bad]")
    page.click("[data-upload] button")
    page.wait_for_url("**/new?dataset=shapes*")
    page.wait_for_selector(".said >> text=2 images were left out")
    with ready.space.sessions.read() as session:
        whole = sum(1 for _ in folder.rglob("*.png")) - 2
        assert datasets.get(session, "shapes").image_count == whole
    page.reload()
    assert page.locator("text=2 images were left out").count() == 0


def test_the_theme_is_switched_and_kept(looked_at: Service, visitor: Visitor) -> None:
    page = visitor.goes_to(looked_at, "/tasks")
    colours = set()
    for _ in range(2):
        page.click("[data-theme-switch]")
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
    visitor.goes_to(looked_at, "/jobs")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_ten_thousand_versions_are_paged_and_found(large: Service, visitor: Visitor) -> None:
    page = visitor.goes_to(large, "/adapters")
    first = page.locator("tbody th a").first.text_content()
    page.click("text=Older")
    page.wait_for_selector(f"tbody th a:not(:text-is('{first}'))")
    assert page.locator("tbody tr").count() == 50
    page.fill("#filter", "task=task-7 and version=3")
    page.keyboard.press("Enter")
    page.wait_for_url("**/adapters?filter=*")
    assert page.locator("tbody th a").all_text_contents() == ["task-7@3"]


def test_a_lineage_of_thousands_stays_readable_and_opens_hop_by_hop(large: Service, visitor: Visitor) -> None:
    page = visitor.goes_to(large, "/lineage/backbone:dit@1")
    page.wait_for_function("() => window.affineryGraph && window.affineryGraph.nodes().length > 30")
    before = page.evaluate("window.affineryGraph.nodes().length")
    assert before <= 70  # not the ten thousand that came of it
    assert "more than 60" in page.text_content("#told").lower()  # type: ignore[union-attr]
    page.evaluate("window.affineryGraph.nodes('[kind = \"task\"]')[0].emit('tap')")
    page.wait_for_function(f"() => window.affineryGraph.nodes().length > {before}")
    page.focus("#graph")
    page.keyboard.press("ArrowLeft")
    assert "backbone dit@1" in page.text_content("#told")  # type: ignore[operator]
    page.uncheck("#roles input[value=backbone]")
    page.wait_for_function(f"() => window.affineryGraph.nodes().length < {before}")


def test_on_a_phone_a_lineage_runs_downwards_and_its_names_can_be_read(
    looked_at: Service, visitor: Visitor
) -> None:
    visitor.page.set_viewport_size({"width": 390, "height": 844})
    page = visitor.goes_to(looked_at, "/lineage/digits")
    page.wait_for_selector("#told:has-text('drawn')")
    rises, size = page.evaluate(
        """() => [affineryGraph.edges().filter((edge) =>
             edge.target().position("y") <= edge.source().position("y")).length,
           11 * affineryGraph.zoom()]"""
    )
    assert rises == 0
    assert size >= 7  # smaller names are left out
    root = page.evaluate("Number(document.getElementById('graph').dataset.id)")
    chosen = "Number(affineryGraph.nodes('.chosen').id())"
    page.focus("#graph")
    page.keyboard.press("ArrowUp")
    older = page.evaluate(chosen)
    page.keyboard.press("ArrowDown")
    assert older < root
    assert page.evaluate(f"{chosen} > {older}")


def test_a_graph_of_five_thousand_nodes_is_drawn_and_moved(large: Service, visitor: Visitor) -> None:
    page = visitor.goes_to(large, "/lineage/backbone:dit@1")
    page.wait_for_function("() => window.affineryGraph")
    page.evaluate(
        """() => {
          const more = Array.from({ length: 5000 }, (_, i) => ({
            data: { id: `n${i}`, kind: "adapter", label: `n${i}` },
            position: { x: 200 + 40 * (i % 100), y: 40 * Math.floor(i / 100) } }));
          window.affineryGraph.add(more);
          window.affineryGraph.fit();
        }"""
    )
    page.hover("#graph")
    page.mouse.wheel(0, 200)
    page.wait_for_function(
        "() => window.affineryGraph.nodes().length > 5000 && window.affineryGraph.zoom() < 2"
    )
    page.click("#fit")
