"""What is not there, not allowed or broken: a page for whoever reads pages, a problem for machines."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import pytest

from affinery_app.api.guard import Limits
from affinery_app.api.problems import MEDIA_TYPE, problem
from affinery_app.dashboard.refusals import as_pages
from registry import tokens
from tests.browser.conftest import EVIL_CLASS
from tests.browser.reading import Read, faults, read
from tests.integration.api.conftest import Reply, Service, serving

READER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FORM = {"Content_Type": "application/x-www-form-urlencoded"}


def shown(reply: Reply, status: int) -> str:
    assert reply.status == status, reply.body
    assert reply.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in reply.headers["content-security-policy"]
    found = read(reply.body)
    assert faults(found) == []
    return found.text


@pytest.mark.parametrize("path", ["/nowhere", "/tasks/digits/more", "/lineage", "/static/nothing.css"])
def test_an_unknown_address_is_a_page_to_a_browser_and_a_problem_to_a_machine(
    looked_at: Service, path: str
) -> None:
    assert "Nothing here" in shown(looked_at.ask("GET", path, **READER), 404)
    assert looked_at.ask("GET", path).headers["content-type"] == MEDIA_TYPE


def test_what_was_nearly_right_is_offered(looked_at: Service) -> None:
    reply = looked_at.ask("GET", "/task/digits", **READER)
    assert "Did you mean /tasks?" in shown(reply, 404)
    assert "/search?q=digits" in [held.get("href") for held in read(reply.body).of("a")]


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/exports/both/download", "/openapi.json/x"])
def test_the_api_answers_browsers_too_as_it_always_does(looked_at: Service, path: str) -> None:
    assert looked_at.ask("GET", path, **READER).headers["content-type"] == MEDIA_TYPE


def test_a_form_sent_to_a_page_is_told_what_the_page_takes(looked_at: Service) -> None:
    reply = looked_at.ask("POST", "/tasks", b"", **READER, **FORM)
    assert "Not to be opened" in shown(reply, 405)
    assert "GET" in reply.headers["allow"]


def test_a_job_that_is_over_is_no_longer_paused_and_a_page_says_so(pages: Service) -> None:
    reply = pages.ask("POST", "/jobs/job-digits-2/pause", b"", **READER, **FORM)
    assert "This cannot be done now" in shown(reply, 409)


def test_who_is_not_let_in_sees_nothing_of_the_workspace(pages: Service) -> None:
    text = shown(
        pages.ask("POST", "/jobs/job-waits/cancel", b"", Sec_Fetch_Site="cross-site", **READER, **FORM), 403
    )
    assert "another site" in text
    assert pages.space.folder.name not in text
    shown(pages.ask("GET", "/tasks", Host="evil.example", **READER), 421)


def test_who_asks_too_often_is_told_when_to_come_again(pages: Service) -> None:
    secret = "a-token-of-some-length"
    once = Limits(burst=1, per_second=0.001)
    with serving(pages.space, token=secret, limits=once) as closed:
        headers = READER | {"Authorization": f"Bearer {secret}"}
        assert closed.ask("GET", "/health", **headers).status == 200
        reply = closed.ask("GET", "/health", **headers)
        assert "too often" in shown(reply, 429)
        assert int(reply.headers["retry-after"]) > 1


SECRET = "a-token-of-some-length"
OVER = {"Cookie": "affinery_session=of-another-day"}


def following(page: Read) -> str:
    """Where one is led after signing in there."""
    return next(held["value"] for held in page.of("input") if held.get("name") == "next")


@pytest.mark.parametrize(
    "asked", ["/tasks?q=a%26b&before=3", "/tasks/%C3%A4%3F", "/adapters?filter=a%20%3E%3D%201"]
)
def test_who_signs_in_again_is_led_to_the_whole_address_that_was_asked_for(
    pages: Service, asked: str
) -> None:
    with serving(pages.space, token=SECRET) as closed:
        reply = closed.ask("GET", asked, **READER, **OVER)
        assert reply.status == 303
        login = closed.ask("GET", reply.headers["location"])
        assert "Your session has ended" in shown(login, 200)
        again = signs_in(closed, "wrong", following(read(login.body)))
        login = closed.ask("GET", again.headers["location"])
        assert "no active token" in shown(login, 200)
        assert signs_in(closed, SECRET, following(read(login.body))).headers["location"] == asked


@pytest.mark.parametrize("place", ["//evil.example", "https://evil.example", "/\\evil.example", "evil"])
def test_who_signs_in_is_led_to_no_other_site_after_a_wrong_token_too(pages: Service, place: str) -> None:
    with serving(pages.space, token=SECRET) as closed:
        assert signs_in(closed, "wrong", place).headers["location"] == "/login?next=/&wrong=1"
        assert signs_in(closed, SECRET, place).headers["location"] == "/"


def test_a_form_sent_when_the_session_is_over_is_not_lost(pages: Service) -> None:
    with serving(pages.space, token=SECRET) as closed:
        here = f"http://127.0.0.1:{closed.port}"
        told = {"csrf": "of-another-day", "name": "köln & co", "steps": "12"}
        sent = urlencode(told).encode()
        came = {"Referer": f"{here}/new?dataset=digits%401&said=imported"}
        reply = closed.ask("POST", "/new", sent, **READER, **FORM, **OVER, **came)
        assert "so nothing was changed" in shown(reply, 401)
        place = signs_in(closed, SECRET, following(read(reply.body)))
        cookie = place.headers["set-cookie"].partition(";")[0]
        found = read(closed.ask("GET", place.headers["location"], Cookie=cookie).body)
        filled = {held.get("name"): held.get("value") for held in found.of("input")}
        assert (filled["name"], filled["steps"]) == ("köln & co", "12")
        assert "was checked, packed" not in found.text
        elsewhere = closed.ask("POST", "/new", sent, **READER, **FORM, Referer="https://evil.example/new")
        assert following(read(elsewhere.body)) == "/"
        much = closed.ask("POST", "/new", b"name=" + b"a" * 3000, **READER, **FORM, **came)
        assert following(read(much.body)) == "/new"
        of_a_task = {"Referer": f"{here}/tasks/digits"}
        reply = closed.ask("POST", "/tasks/digits/train", sent, **READER, **FORM, **of_a_task)
        assert following(read(reply.body)) == "/tasks/digits"


def test_who_signs_out_of_a_session_that_is_over_comes_to_the_sign_in(pages: Service) -> None:
    with serving(pages.space, token=SECRET) as closed:
        reply = closed.ask("POST", "/session/end", b"csrf=of-another-day", **READER, **FORM, **OVER)
        assert (reply.status, reply.headers["location"]) == (303, "/login")
        cookie = signs_in(closed, SECRET, "/").headers["set-cookie"].partition(";")[0]
        forged = closed.ask("POST", "/session/end", b"csrf=of-another-day", Cookie=cookie, **READER, **FORM)
        assert "This page is out of date" in shown(forged, 403)
        assert closed.ask("GET", "/tasks", Cookie=cookie, **READER).status == 200


def test_a_form_of_an_earlier_session_leads_back_to_its_page_with_what_was_filled_in(pages: Service) -> None:
    with serving(pages.space, token=SECRET) as closed:
        cookie = signs_in(closed, SECRET, "/").headers["set-cookie"].partition(";")[0]
        sent = {"csrf": "of-another-day", "name": "köln & co", "steps": "12", "note": "a" * 300}
        came = {"Referer": f"http://127.0.0.1:{closed.port}/new?dataset=digits%401", "Cookie": cookie}
        reply = closed.ask("POST", "/new", urlencode(sent).encode(), **READER, **FORM, **came)
        text = shown(reply, 403)
        assert "This page is out of date" in text
        assert "so nothing was changed" in text
        assert "csrf" not in text.lower()
        back = next(held["href"] for held in read(reply.body).of("a") if held["href"].startswith("/new"))
        found = read(closed.ask("GET", back, Cookie=cookie).body)
        filled = {held.get("name"): held.get("value") for held in found.of("input")}
        assert (filled["name"], filled["steps"]) == ("köln & co", "12")
        sent["csrf"] = str(filled["csrf"])
        reply = closed.ask("POST", "/new", urlencode(sent).encode(), **READER, **FORM, **came)
        assert "out of date" not in read(reply.body).text
        unsaid = closed.ask("POST", "/evaluate", b"", Cookie=cookie, **READER, **FORM)
        assert "out of date" in shown(unsaid, 403)
        machine = closed.ask("POST", "/new", b"", Cookie=cookie, **FORM)
        assert machine.json["type"] == "urn:affinery:csrf-missing"


def test_who_is_signed_in_may_sign_in_again_and_as_somebody_else(pages: Service) -> None:
    with pages.space.sessions.begin() as session:
        _, secret = tokens.create(session, "ann", "read", by="tests")
    with serving(pages.space, token=SECRET) as closed:
        cookie = signs_in(closed, SECRET, "/").headers["set-cookie"].partition(";")[0]
        again = urlencode({"token": secret, "next": "/tasks"}).encode()
        reply = closed.ask("POST", "/session", again, Cookie=cookie, **READER, **FORM)
        assert (reply.status, reply.headers["location"]) == (303, "/tasks")
        new = reply.headers["set-cookie"].partition(";")[0]
        assert closed.ask("GET", "/session", Cookie=new).json["name"] == "ann"
        ended = closed.ask("DELETE", "/session", Cookie=new)
        assert ended.json["type"] == "urn:affinery:csrf-missing"


def test_who_shows_too_many_wrong_tokens_is_told_so_where_one_signs_in(pages: Service) -> None:
    with serving(pages.space, token=SECRET, limits=Limits(wrong_burst=1, wrong_per_second=0.01)) as closed:
        assert signs_in(closed, "wrong", "/tasks").status == 303
        reply = signs_in(closed, "wrong", "/tasks?q=a%26b", **READER)
        assert "Too many wrong tokens" in shown(reply, 429)
        assert int(reply.headers["retry-after"]) > 1
        assert following(read(reply.body)) == "/tasks?q=a%26b"
        assert signs_in(closed, SECRET, following(read(reply.body)), **READER).status == 303
        machine = closed.ask("POST", "/session", {"token": "wrong"}, **READER)
        assert (machine.status, machine.headers["content-type"]) == (429, MEDIA_TYPE)


@pytest.mark.parametrize(("token", "status"), [("", 422), ("a" * 501, 422), ("a" * (1 << 21), 413)])
def test_what_can_be_no_token_is_told_where_one_signs_in(pages: Service, token: str, status: int) -> None:
    with serving(pages.space, token=SECRET) as closed:
        text = shown(signs_in(closed, token, "/tasks", **READER), status)
        assert "no token: one has 500 characters" in text or status == 413


def signs_in(service: Service, secret: str, place: str, **headers: str) -> Reply:
    sent = urlencode({"token": secret, "next": place}).encode()
    return service.ask("POST", "/session", sent, **FORM, **headers)


@pytest.mark.parametrize("status", [401, 413, 500, 503])
def test_whatever_a_problem_says_is_escaped_on_its_page(looked_at: Service, status: int) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def nothing() -> Any:
        raise AssertionError("a problem reads no body")

    scope: Any = {
        "type": "http",
        "method": "POST",
        "path": "/new",
        "query_string": b"",
        "headers": [(b"accept", b"text/html")],
        "state": {"who": None},
    }
    refused = problem(status, "Refused", EVIL_CLASS, headers={"Retry-After": "7"})
    answered = refused(scope, nothing, as_pages(looked_at.space)(scope, nothing, send))
    with ThreadPoolExecutor(1) as apart:  # a browser's loop may run in this one
        apart.submit(asyncio.run, answered).result()
    start, body = sent
    assert start["status"] == status
    assert (b"retry-after", b"7") in start["headers"]
    assert (b"content-length", str(len(body["body"])).encode()) in start["headers"]
    found = read(body["body"])
    assert EVIL_CLASS in found.text
    assert faults(found) == []
