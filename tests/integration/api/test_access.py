"""Who may do what: every route with every scope, tokens and their ends, browsers' sessions, who asked."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import select, update

from affinery_app.api import rates
from affinery_app.api.application import NOUNS, routes
from affinery_app.api.calls import UNKEYED
from affinery_app.api.guard import Limits
from affinery_app.api.rates import Buckets, Guesses
from affinery_app.api.rights import RIGHTS, SAFE
from affinery_app.wiring import Workspace
from registry import tokens
from registry.columns import utc_now
from registry.errors import RecordInvalid, TokenExists
from registry.models import BrowserSession, Event, Token
from tests.command_line import typed
from tests.integration.api.conftest import Reply, Service, serving

OWN = "sesame-sesame-sesame"
FIRST_PAGE = {"Accept": "text/html,*/*"}


def made(space: Workspace, name: str, scope: str, **given: Any) -> str:
    with space.sessions.begin() as session:
        return tokens.create(session, name, scope, by="ann", **given)[1]


def ask(service: Service, token: str, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    return service.ask(method, path, body, Authorization=f"Bearer {token}", **headers)


def every_route() -> list[APIRoute]:
    """But those that tell of a file what it is, without the file: they are its GET by another method."""
    routes = [route for noun in NOUNS for route in noun.router.routes if isinstance(route, APIRoute)]
    return [route for route in routes if route.methods != {"HEAD"}]


# --- scopes ----------------------------------------------------------------------------------------


def test_every_route_has_its_right_and_every_right_its_route(space: Workspace) -> None:
    names = [route.name for route in every_route()]
    assert sorted(names) == sorted(RIGHTS)
    described = routes(space).openapi()["paths"].values()
    assert sorted(each["operationId"] for path in described for each in path.values()) == sorted(names)
    for route in every_route():
        secretive = ("list_tokens", "list_webhooks", "get_webhook", "list_deliveries", "get_job_log")
        reading = RIGHTS[route.name].scope in (None, "read") or route.name in secretive
        about_oneself = "session" in route.name
        assert reading == ((route.methods or set()) <= SAFE) or about_oneself, route.name


def test_every_route_lets_in_every_scope_that_may_and_no_other(space: Workspace) -> None:
    shown = {scope: made(space, scope, scope) for scope in tokens.SCOPES}
    limited = made(space, "limited", "admin", tasks=["no-such-task"])
    asked = [(method, route) for route in every_route() for method in sorted(route.methods or ())]
    with serving(space) as service:
        for method, route in asked:
            right = RIGHTS[route.name]
            path = re.sub(r"\{.*?\}", "nothing", route.path)
            body = None if method in SAFE else b"{}"
            kind = {"Content_Type": "application/json"}
            nobody = service.ask(method, path, body, **kind)
            assert (nobody.status == 401) == (right.scope is not None)
            for scope, token in shown.items():
                reply = ask(service, token, method, path, body, **kind)
                may = right.scope is None or tokens.SCOPES.index(scope) >= tokens.SCOPES.index(right.scope)
                assert reply.status < 500
                assert (reply.status == 403) == (not may), (route.name, scope, reply.body)
                if not may:
                    assert reply.json["type"] == "urn:affinery:scope-missing"
            reply = ask(service, limited, method, path, body, **kind)
            if method not in SAFE and right.scope is not None and not right.tasks:
                assert (reply.status, reply.json["type"]) == (403, "urn:affinery:not-granted"), route.name


def test_a_token_for_some_tasks_changes_nothing_of_others(space: Workspace) -> None:
    token = made(space, "lab", "promote", tasks=["faces"])
    with serving(space) as service:
        any_move = {"If_None_Match": "*"}
        own = ask(service, token, "PUT", "/v1/aliases/faces@best", {"adapter": "1"}, **any_move)
        other = ask(service, token, "PUT", "/v1/aliases/digits@best", {"adapter": "1"}, **any_move)
        assert (own.status, other.status) == (200, 403)
        assert "may change only what belongs to faces" in other.json["detail"]
        new = {"task": "digits", "blob": "0" * 64}
        assert ask(service, token, "POST", "/v1/adapters", new).status == 403
        assert ask(service, token, "POST", "/v1/adapters", new | {"task": "faces"}).status == 422
        assert ask(service, token, "DELETE", "/v1/aliases/digits@best", If_Match="*").status == 403
        assert ask(service, token, "GET", "/v1/adapters/digits@1").status == 200


def test_a_token_s_tasks_are_known_by_their_new_names(space: Workspace) -> None:
    from registry import renaming

    token = made(space, "lab", "promote", tasks=["faces"])
    with space.sessions.begin() as session:
        renaming.rename(session, "task:faces", "people")
    with serving(space) as service:
        for name in ("people", "digits"):
            reply = ask(
                service, token, "PUT", f"/v1/aliases/{name}@best", {"adapter": "1"}, If_None_Match="*"
            )
            assert (reply.status == 200) == (name == "people")


# --- tokens ----------------------------------------------------------------------------------------


def test_no_secret_is_kept_anywhere(space: Workspace) -> None:
    token = made(space, "ci", "read")
    with serving(space) as service:
        assert ask(service, token, "GET", "/v1/tasks").status == 200
        cookie = service.ask("POST", "/session", {"token": token}).headers["set-cookie"]
    secret = cookie.partition("=")[2].partition(";")[0]
    for path in space.folder.glob("registry.db*"):
        held = path.read_bytes()
        assert token.split("_", 2)[2].encode() not in held
        assert secret.encode() not in held


def test_a_token_that_ended_opens_nothing(space: Workspace) -> None:
    revoked, expired = made(space, "gone", "admin"), made(space, "old", "admin", days=1)
    good = made(space, "good", "admin")
    with serving(space) as service:
        for token in (revoked, expired, good):
            assert ask(service, token, "GET", "/v1/tasks").status == 200
        with space.sessions.begin() as session:
            tokens.revoke(session, "gone", by="ann")
            late = utc_now() - timedelta(seconds=1)
            session.execute(update(Token).where(Token.name == "old").values(expires_at=late))
        for token in (revoked, expired, f"{good}x", good[:-1], good.replace("aff_", "aff-"), "aff__", "_"):
            assert ask(service, token, "GET", "/v1/tasks").status == 401
        states = {
            each["name"]: each["state"] for each in ask(service, good, "GET", "/v1/tokens").json["items"]
        }
        assert states == {"gone": "revoked", "old": "expired", "good": "active"}


def test_tokens_are_made_and_ended_over_http_and_their_text_is_told_once(space: Workspace) -> None:
    with serving(space, OWN) as service:
        new = {"name": "ci", "scope": "schedule", "tasks": ["digits"], "days": 30}
        reply = ask(service, OWN, "POST", "/v1/tokens", new)
        assert reply.status == 201
        token = reply.json["token"]
        assert ask(service, token, "GET", "/session").json["tasks"] == ["digits"]
        listed = ask(service, OWN, "GET", "/v1/tokens")
        assert token.encode() not in listed.body
        assert listed.json["items"][0]["created_by"] == "AFFINERY_TOKEN"
        assert ask(service, OWN, "POST", "/v1/tokens", new).status == 409
        assert ask(service, OWN, "DELETE", "/v1/tokens/ci").json["state"] == "revoked"
        assert ask(service, token, "GET", "/session").status == 401
        assert ask(service, OWN, "DELETE", "/v1/tokens/nobody").status == 404


def test_tokens_and_sessions_mean_the_same_on_both_engines(
    either: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("affinery_app.api.access.LOOK_SECONDS", -1.0)
    limited = made(either.space, "lab", "schedule", tasks=["digits", "faces"], days=1)
    token = made(either.space, "ann", "admin")
    assert ask(either, limited, "GET", "/session").json["tasks"] == ["digits", "faces"]
    cookie, csrf = signed_in(either, token)
    reply = either.ask("PUT", "/v1/notes/digits@1", {"text": "x"}, Cookie=cookie, X_Affinery_CSRF=csrf)
    assert reply.status == 200
    asked = ask(either, token, "GET", "/v1/events?kind=request.made").json["items"]
    assert [(each["payload"]["by"], each["payload"]["via"]) for each in asked] == [("ann", "session")]
    assert ask(either, token, "DELETE", "/v1/tokens/ann").json["state"] == "revoked"
    assert either.ask("GET", "/session", Cookie=cookie).status == 401
    with pytest.raises(Exception, match="scope"), either.space.sessions.begin() as session:
        session.execute(update(Token).values(scope="root"))


def test_when_a_token_was_used_is_remembered(space: Workspace) -> None:
    token = made(space, "ci", "read")
    with serving(space) as service:
        for _ in range(3):
            assert ask(service, token, "GET", "/v1/tasks").status == 200
    with space.sessions.read() as session:
        (record,) = tokens.list_all(session)
    assert record.used_at is not None


@pytest.mark.parametrize(
    "given",
    [
        *({"name": "1"}, {"name": "a b"}, {"name": ""}, {"scope": "root"}, {"days": 0}),
        *({"tasks": ["a/b"]}, {"tasks": []}),
    ],
)
def test_a_token_that_means_nothing_is_refused(space: Workspace, given: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="cannot be"), space.sessions.begin() as session:
        tokens.create(session, **{"name": "ci", "scope": "read", "by": "ann"} | given)
    with space.sessions.begin() as session:
        tokens.create(session, "ci", "read", by="ann")
        with pytest.raises(TokenExists):
            tokens.create(session, "ci", "read", by="ann")
        with pytest.raises(RecordInvalid):
            tokens.create(session, "cj", "read", by="ann", days=1e9)


def test_the_first_token_closes_a_service_and_the_last_one_s_end_does_not_open_it(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("affinery_app.api.access.LOOK_SECONDS", -1.0)
    with serving(space) as service:
        assert service.ask("GET", "/v1/tasks").status == 200
        assert service.get("/session")["scope"] == "admin"
        made(space, "first", "read")
        assert service.ask("GET", "/v1/tasks").status == 401
        with space.sessions.begin() as session:
            tokens.revoke(session, "first", by="ann")
        assert service.ask("GET", "/v1/tasks").status == 401


def test_the_command_line_makes_lists_and_ends_tokens(
    space: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    from affinery_app import settings

    (space.folder / settings.FILE).write_text(settings.HEADER)
    where = ("--workspace", space.folder)
    assert typed("token", "create", "ci", "--scope", "schedule", "--task", "digits", *where) == 0
    token = capsys.readouterr().out.strip()
    with serving(space) as service:
        assert ask(service, token, "GET", "/session").json["scope"] == "schedule"
        assert typed("token", "list", "--json", *where) == 0
        (listed,) = json.loads(capsys.readouterr().out)
        assert (listed["name"], listed["tasks"], listed["state"]) == ("ci", ["digits"], "active")
        assert typed("token", "revoke", "ci", *where) == 0
        assert ask(service, token, "GET", "/session").status == 401
    assert typed("token", "revoke", "cj", *where) == 2
    assert "Known: ci" in capsys.readouterr().err


# --- browsers --------------------------------------------------------------------------------------


def signed_in(service: Service, token: str) -> tuple[str, str]:
    """A browser's cookie, and its csrf."""
    reply = service.ask("POST", "/session", {"token": token})
    assert reply.status == 201, reply.body
    said = reply.headers["set-cookie"]
    assert "HttpOnly" in said
    assert "SameSite=strict" in said
    assert "Path=/" in said
    return said.partition(";")[0], reply.json["csrf"]


def test_a_list_of_no_tasks_makes_no_token_for_all(space: Workspace) -> None:
    operator = made(space, "operator", "admin")
    with serving(space) as service:
        for tasks, status in (([], 422), (None, 201), (["digits"], 201)):
            new = {"name": f"of-{status}-{len(tasks or ())}", "scope": "schedule", "tasks": tasks}
            reply = ask(service, operator, "POST", "/v1/tokens", new)
            assert reply.status == status
            assert status == 422 or reply.json["tasks"] == tasks


def test_a_browser_shows_its_token_once(space: Workspace) -> None:
    token = made(space, "ann", "admin")
    with serving(space) as service:
        cookie, csrf = signed_in(service, token)
        told = service.ask("GET", "/session", Cookie=cookie).json
        assert (told["name"], told["via"], told["csrf"]) == ("ann", "session", csrf)
        assert service.ask("GET", "/v1/tasks", Cookie=cookie).status == 200
        assert service.ask("GET", "/v1/tasks", Cookie=f"{cookie}x").status == 401
        # A wrong token beside it is not made good by it.
        assert ask(service, "wrong", "GET", "/v1/tasks", Cookie=cookie).status == 401
        assert service.ask("DELETE", "/session", Cookie=cookie, X_Affinery_CSRF=csrf).status == 204
        assert service.ask("GET", "/v1/tasks", Cookie=cookie).status == 401
        assert service.ask("POST", "/session", {"token": "aff_x_y"}).status == 401
        assert service.ask("POST", "/session", {"tokens": "aff_x_y"}).status == 422
        assert service.ask("POST", "/session", b"{", Content_Type="application/json").status == 400
        forced = service.ask("POST", "/session", {"token": token}, Origin="https://evil.example")
        assert (forced.status, "set-cookie" in forced.headers) == (403, False)


def test_a_browser_s_session_ends_with_its_token_and_with_time(space: Workspace) -> None:
    first, second = made(space, "ann", "admin"), made(space, "ben", "admin")
    with serving(space, OWN) as service:
        ann, ben, own = (signed_in(service, token)[0] for token in (first, second, OWN))
        with space.sessions.begin() as session:
            tokens.revoke(session, "ann", by="ann")
            digest = tokens.digest(ben.partition("=")[2])
            late = utc_now() - timedelta(seconds=1)
            row = update(BrowserSession).where(BrowserSession.digest == digest)
            session.execute(row.values(expires_at=late))
        assert [service.ask("GET", "/session", Cookie=each).status for each in (ann, ben, own)] == [
            401,
            401,
            200,
        ]
    with serving(space, OWN * 2) as service:  # another token in AFFINERY_TOKEN since
        assert service.ask("GET", "/session", Cookie=own).status == 401


def test_a_form_signs_in_and_is_sent_on_to_this_service_only(space: Workspace) -> None:
    token = made(space, "ann", "read")
    with serving(space) as service:
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        for place, where in (("/tasks?a=1", "/tasks?a=1"), ("//evil.example", "/"), ("https://evil", "/")):
            reply = service.ask("POST", "/session", f"token={token}&next={place}".encode(), **form)
            assert (reply.status, reply.headers["location"]) == (303, where)
        reply = service.ask("POST", "/session", b"token=wrong", **form)
        assert (reply.status, reply.headers["location"]) == (303, "/login?next=/&wrong=1")
        page = service.ask("GET", "/tasks/digits", Accept="text/html")
        assert (page.status, page.headers["location"]) == (303, "/login?next=/tasks/digits")
        assert service.ask("GET", "/v1/tasks", Accept="text/html").status == 401


def test_a_change_in_a_session_needs_its_csrf_and_its_own_site(space: Workspace) -> None:
    token = made(space, "ann", "admin")
    with serving(space) as service:
        cookie, csrf = signed_in(service, token)

        def note(body: Any = None, **headers: str) -> int:
            said = {"text": "x"} if body is None else body
            return service.ask("PUT", "/v1/notes/digits@1", said, Cookie=cookie, **headers).status

        own = f"http://127.0.0.1:{service.port}"
        assert note() == 403
        assert note(X_Affinery_CSRF="0" * 32) == 403
        assert note(X_Affinery_CSRF=csrf) == 200
        assert note(X_Affinery_CSRF=csrf, Origin=own, Sec_Fetch_Site="same-origin") == 200
        assert note(X_Affinery_CSRF=csrf, Origin="https://evil.example") == 403
        assert note(X_Affinery_CSRF=csrf, Origin="null") == 403
        assert note(X_Affinery_CSRF=csrf, Sec_Fetch_Site="same-site") == 403
        form = "application/x-www-form-urlencoded"
        assert note(f"csrf={csrf}&text=x".encode(), Content_Type=form) == 415  # let in, and no JSON
        assert note(f"text=x&csrf={csrf}".encode(), Content_Type=form) == 403
        parts = f'--b\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n{csrf}\r\n--b--\r\n'
        assert note(parts.encode(), Content_Type="multipart/form-data; boundary=b") == 415
        assert note(parts.replace(csrf, "x").encode(), Content_Type="multipart/form-data; boundary=b") == 403


def test_a_page_of_another_site_changes_nothing_where_no_token_is_asked_for(service: Service) -> None:
    new = {"name": "n", "backbone": "dit", "members": ["digits"]}
    for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"Origin": "null"}):
        reply = service.ask("POST", "/v1/compositions", new, **headers)
        assert (reply.status, reply.json["type"]) == (403, "urn:affinery:cross-site")
    assert service.ask("POST", "/v1/compositions", new).status == 201


# --- how often, and who ----------------------------------------------------------------------------


def test_a_token_that_asks_too_often_waits_and_others_do_not(space: Workspace) -> None:
    eager, calm = made(space, "eager", "read"), made(space, "calm", "read")
    few = Limits(burst=3, per_second=0.001, wrong_burst=2, wrong_per_second=0.001)
    with serving(space, limits=few) as service:
        found = [ask(service, eager, "GET", "/v1/tasks") for _ in range(4)]
        assert [reply.status for reply in found] == [200, 200, 200, 429]
        assert int(found[-1].headers["retry-after"]) > 0
        assert [ask(service, "wrong", "GET", "/v1/tasks").status for _ in range(3)] == [401, 401, 429]
        assert ask(service, calm, "GET", "/v1/tasks").status == 200


def test_a_bucket_fills_again_with_time() -> None:
    now = [0.0]
    buckets = Buckets(2, 0.5, lambda: now[0])
    assert [buckets.take("a") for _ in range(3)] == [None, None, 2]
    assert buckets.take("b") is None
    now[0] = 2.0
    assert [buckets.take("a") for _ in range(2)] == [None, 2]


def test_every_change_says_who_asked_for_it_and_from_where(space: Workspace) -> None:
    token = made(space, "ann", "promote")
    with serving(space) as service:
        assert ask(service, token, "PATCH", "/v1/tags/digits@1", {"a": "b"}).status == 200
        assert ask(service, token, "PATCH", "/v1/tags/nothing@1", {"a": "b"}).status == 404
        assert ask(service, token, "GET", "/v1/tags/digits@1").status == 200
    with space.sessions.read() as session:
        query = select(Event).where(Event.kind.in_(("request.made", "tag.set"))).order_by(Event.id)
        found = [(event.kind, event.payload) for event in session.scalars(query)]
    assert [kind for kind, _ in found].count("request.made") == 1
    assert (
        "request.made",
        {"by": "ann", "via": "token", "from": "127.0.0.1", "did": "PATCH /v1/tags/digits@1"},
    ) in found


# --- guessing --------------------------------------------------------------------------------------


def test_who_guesses_at_the_sign_in_waits_and_a_right_token_opens_all_the_same(space: Workspace) -> None:
    token, other = made(space, "ann", "read"), made(space, "ben", "read")
    few = Limits(wrong_burst=2, wrong_per_second=0.001)
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    with serving(space, limits=few) as service:
        found = [service.ask("POST", "/session", {"token": f"aff_x_{i}"}) for i in range(2)]
        found.append(service.ask("POST", "/session", b"token=aff_x_2", **form))
        assert [reply.status for reply in found] == [401, 401, 429]
        assert int(found[-1].headers["retry-after"]) > 0
        assert ask(service, "aff_x_3", "GET", "/v1/tasks").status == 429  # it is one count for both doors
        assert service.ask("POST", "/session", {"token": token}).status == 201
        assert ask(service, other, "GET", "/v1/tasks").status == 200


def test_guesses_from_one_network_take_turns_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    guesses = Guesses(Buckets(1, 0.001, lambda: now[0]))
    monkeypatch.setattr(rates, "SLOW_SECONDS", 0.01)

    async def guess(address: str, shown: str, together: list[int]) -> bool:
        async with guesses.turn(address, shown) as has_turn:
            if has_turn:
                together[0] += 1
                together[1] = max(together)
                await asyncio.sleep(0.001)
                together[0] -= 1
        return has_turn

    async def many() -> None:
        guesses.right("good")
        assert guesses.wrong("2001:db8::1", "x") is None
        together = [0, 0]
        turns = await asyncio.gather(*(guess(f"2001:db8::{i}", "x", together) for i in range(1, 40)))
        assert sum(turns) == rates.MOST_WAITING  # one household is one, however many addresses it has
        assert together[1] == 1
        for address, shown in (("2001:db8::1", "good"), ("2001:db8:0:1::1", "x"), ("10.0.0.1", "x")):
            lane = asyncio.gather(*(guess("2001:db8::1", "x", [0, 0]) for _ in range(20)))
            others = [0, 0]
            assert all(await asyncio.gather(*(guess(address, shown, others) for _ in range(5))))
            assert others[1] == 5
            await lane
        assert guesses.wrong("2001:db8::1", "good") is not None
        assert not all(await asyncio.gather(*(guess("2001:db8::1", "good", [0, 0]) for _ in range(20))))

    with ThreadPoolExecutor(1) as apart:  # a browser's loop may run in this one
        apart.submit(asyncio.run, many()).result()


def test_a_network_is_an_address_or_what_one_household_has() -> None:
    assert rates.network_of("10.0.0.1") == rates.network_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert rates.network_of("2001:db8::1%eth0") == rates.network_of("2001:db8::2") == "2001:db8::/64"
    assert rates.network_of("testclient") == "testclient"


# --- sent again ------------------------------------------------------------------------------------


def test_every_post_takes_an_idempotency_key_or_says_why_it_does_not(space: Workspace) -> None:
    guide = (Path(__file__).resolve().parents[3] / "docs" / "guides" / "http-api.md").read_text()
    posted = {
        operation["operationId"]: (place, operation)
        for place, path in routes(space).openapi()["paths"].items()
        for method, operation in path.items()
        if method == "post"
    }
    assert posted.keys() >= UNKEYED.keys()
    for name, (place, operation) in posted.items():
        taken = {each["name"] for each in operation.get("parameters", [])}
        assert ("idempotency-key" in taken) == (name not in UNKEYED), name
        if name in UNKEYED:
            assert f"| `POST {place}` | {UNKEYED[name]} |" in guide
