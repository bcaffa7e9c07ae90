"""Every page over plain HTTP: what it shows, what it escapes, what its forms do, and who may send them."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from sqlalchemy import func, select

from affinery.counting import counted
from affinery_app.dashboard import new_task
from affinery_app.dashboard.rights import FORMS
from affinery_app.dashboard.routes import CHANGE, OPERATE, READ
from orchestration import chores, queue
from orchestration.evaluations import folder_of
from registry import adapters, aliases, renaming, retirement, tasks, tokens
from registry.digests import digest_of
from registry.models import Job
from tests import registry_world as world
from tests.browser.conftest import EVIL, EVIL_CLASS, picture, trained
from tests.browser.reading import Read, faults, read
from tests.integration.api.conftest import Reply, Service, serving

E = quote(EVIL)
EXAMPLES = {
    "/": ["/"],
    "/live": ["/live"],
    "/tasks": ["/tasks", "/tasks?q=dig", "/tasks?q=%25&before=3"],
    "/tasks/{ref}": ["/tasks/digits", f"/tasks/{E}", "/tasks/running", "/tasks/waiting"],
    "/adapters": ["/adapters", "/adapters?filter=task%3Ddigits", f"/adapters?{urlencode({'filter': EVIL})}"],
    "/adapters/{ref}": ["/adapters/digits@2", f"/adapters/{E}@1"],
    "/adapters/{ref}/pictures/{name}": ["/adapters/digits@2/pictures/samples.png"],
    "/compare": [
        "/compare",
        "/compare?left=digits@1&right=digits@2",
        f"/compare?{urlencode({'left': f'{EVIL}@1', 'right': 'faces@1'})}",
    ],
    "/jobs": ["/jobs", "/jobs?state=live", "/jobs?state=nonsense"],
    "/jobs/{ref}": ["/jobs/job-runs", "/jobs/job-waits", "/jobs/job-died", "/jobs/job-digits-2"],
    "/jobs/{ref}/live": ["/jobs/job-runs/live"],
    "/lineage/{ref}": ["/lineage/digits", f"/lineage/adapter:{E}@1", "/lineage/backbone:dit"],
    "/backbones": ["/backbones"],
    "/backbones/{ref}": ["/backbones/dit", "/backbones/unet@1"],
    "/backbones/{ref}/rebase": ["/backbones/dit/rebase"],
    "/datasets": ["/datasets"],
    "/datasets/{ref}": ["/datasets/digits", f"/datasets/{E}"],
    "/datasets/{ref}/sheet.png": [],
    "/compositions": ["/compositions"],
    "/compositions/{ref}": ["/compositions/both", f"/compositions/{E}"],
    "/new": ["/new", f"/new?{urlencode({'dataset': f'{EVIL}@1', 'name': EVIL, 'steps': EVIL})}"],
    "/new/preview": [f"/new/preview?{urlencode({'dataset': EVIL})}"],
    "/new/estimate": [f"/new/estimate?{urlencode({'name': EVIL, 'dataset': 'd', 'steps': EVIL})}"],
    "/search": ["/search", "/search?q=dig", f"/search?{urlencode({'q': EVIL})}", "/search?q=job-runs"],
    "/events": ["/events", f"/events?{urlencode({'kind': EVIL})}"],
    "/health": ["/health"],
}
PLACES = [place for places in EXAMPLES.values() for place in places]


def page_of(service: Service, path: str, status: int = 200) -> Read:
    reply = service.ask("GET", path)
    assert reply.status == status, reply.body
    assert reply.headers["content-type"].startswith("text/html")
    return read(reply.body)


def send(service: Service, path: str, **fields: str) -> Reply:
    headers = {"Content_Type": "application/x-www-form-urlencoded"}
    return service.ask("POST", path, urlencode(fields).encode(), **headers)


def test_every_page_has_an_example_here() -> None:
    assert EXAMPLES.keys() == READ.keys() | OPERATE.keys()


@pytest.mark.parametrize("path", [place for place in PLACES if not place.endswith(".png")])
def test_a_page_is_whole_and_has_nothing_of_others_in_it(looked_at: Service, path: str) -> None:
    is_whole(looked_at, path)


@pytest.mark.postgres
def test_every_page_is_the_same_on_postgresql(looked_at_on_postgresql: Service) -> None:
    for path in PLACES:
        if not path.endswith(".png"):
            is_whole(looked_at_on_postgresql, path)


def is_whole(service: Service, path: str) -> None:
    reply = service.ask("GET", path)
    assert reply.status in (200, 422), (path, reply.body)
    found = read(reply.body)
    assert faults(found) == [], path
    assert [held for held in found.of("img") if held.get("src") == "x"] == []
    assert "49" not in re.findall(r"'></script><script>alert\(2\)</script>(\S+)", found.text)
    policy = reply.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "/",
            [
                "Learning now",
                "running",
                "step 10 of 40",
                "1 min 00 s left",
                "Waiting",
                EVIL,
                f"Now: {EVIL_CLASS}",
            ],
        ),
        ("/tasks", ["digits", EVIL, "learnt", "failed", "learning", "scheduled"]),
        (f"/tasks/{E}", [EVIL_CLASS, "bit-exact", f"owner={EVIL_CLASS}"]),
        ("/tasks/digits", ["digits@2", "digits@1", "11 to 13 (3)", "Compare…"]),
        ("/adapters/digits@2", ["bit-exact", "mlflow-job-digits-2-digits", "affiner"]),
        ("/compare?left=digits@1&right=digits@2", ["digits@1", "digits@2", "Provenance"]),
        ("/jobs/job-runs", ["step 10 of 40", "1 min 00 s left", "Pause", f"Now: {EVIL_CLASS}"]),
        ("/jobs/job-died", [EVIL_CLASS, "Try again"]),
        (
            "/backbones/dit",
            ["the unconditional row", "11–13", "KD[pixels].mean", "+1.5", "less is better", EVIL],
        ),
        ("/datasets/digits", ["CC0-1.0", "class 0"]),
        ("/compositions/both", ["digits@1", "faces@1", "not on this machine"]),
        ("/lineage/digits", ["warm-start", "backbone", "dit@1", "certificate"]),
        ("/events", ["adapter.published", "task.registered"]),
        ("/health", ["queue", "1 running, 1 ready to run"]),
        ("/search?q=dig", ["digits"]),
        ("/search?q=OT", ["both@1", "composition"]),
        ("/search?q=UNE", ["unet@1", "backbone"]),
        ("/search?q=ace", ["faces@1", "dataset"]),
        ("/search?q=task%3Ddigits", ["digits@1", "digits@2"]),
    ],
)
def test_a_page_shows_what_is_recorded(looked_at: Service, path: str, words: list[str]) -> None:
    text = page_of(looked_at, path).text
    assert [word for word in words if word not in text] == []


def test_the_matrix_has_the_names_of_today_and_needs_no_file(pages: Service) -> None:
    assert not pages.space.evaluations.exists()
    with pages.space.sessions.begin() as session:
        renaming.rename(session, "task:digits", "ciphers")
        renaming.rename(session, "backbone:dit", "dot")
    found = page_of(pages, "/backbones/dot")
    assert all(word in found.text for word in ("ciphers@1", f"{EVIL}@1", "KD[pixels].mean", "+1.5"))
    assert "digits" not in found.text


def test_two_versions_stand_side_by_side_with_samples_figures_under_one_protocol_and_recipes(
    pages: Service,
) -> None:
    protocol = digest_of({"extractor": "pixels", "samples": 100})[:12]
    with pages.space.sessions.begin() as session:
        for number, steps in ((1, 40), (2, 80)):
            made = world.learnt(session, "pens", number, provenance={"recipe": {"steps": steps}, "code": "x"})
            world.evaluated(session, made.ref, kid=0.5 / number)
            drawn = folder_of(pages.space.evaluations, made) / protocol
            drawn.mkdir(parents=True)
            picture(drawn / "samples.png")
    found = page_of(pages, "/compare?left=pens@1&right=pens@2")
    assert [held["alt"] for held in found.of("img")] == ["Samples of pens@1", "Samples of pens@2"]
    for held in found.of("img"):
        assert pages.ask("GET", held["src"]).headers["content-type"] == "image/png"
    told = found.text
    assert "kid.mean0.50.25−0.25" in told  # cell after cell
    assert told.count(protocol) == 1  # what stands side by side is not told again as a difference
    assert "recipe.steps" in told[told.index("Recipe") : told.index("Provenance")]
    assert faults(found) == []


@pytest.mark.parametrize("notes", [["FD is <left> out."], 5, {"FD": [1]}, None])
def test_what_an_evaluation_left_out_is_told_beside_its_figures(pages: Service, notes: object) -> None:
    with pages.space.sessions.begin() as session:
        world.evaluated(session, "digits@1", results={"kid": {"mean": 0.1}, "notes": notes})
    found = page_of(pages, "/adapters/digits@1")
    assert ("FD is <left> out." in found.text) == isinstance(notes, list)
    assert faults(found) == []


def test_home_shows_the_newest_version_of_each_task_that_learnt_lately(pages: Service) -> None:
    with pages.space.sessions.begin() as session:
        for number in range(1, 11):
            world.learnt(session, "pens", number)
    shown = re.findall(
        r"([^>\n]+)</a> <span class=\"faint\">@(\d+)</span>", pages.ask("GET", "/").body.decode()
    )
    assert shown[0] == ("pens", "10")
    assert {("digits", "2"), ("faces", "1"), ("birds", "1")} < set(shown)
    assert len(shown) == len({name for name, _ in shown})


def test_what_an_evaluation_drew_stands_for_a_version_whose_training_left_no_samples(pages: Service) -> None:
    with pages.space.sessions.read() as session:
        learnt = adapters.get(session, "faces@1")
    drawn = folder_of(pages.space.evaluations, learnt) / "0123456789ab"
    drawn.mkdir(parents=True)
    picture(drawn / "samples.png")
    for path in ("/", "/tasks/faces", "/compare?left=faces@1&right=digits@1"):
        shown = [held["src"] for held in page_of(pages, path).of("img") if "faces@1" in held["alt"]]
        assert len(shown) == 1, path
        assert pages.ask("GET", shown[0]).headers["content-type"] == "image/png"


def test_a_job_that_trains_nothing_says_in_the_queue_what_it_is_of(pages: Service) -> None:
    orders = (
        chores.Retention(backbone="dit"),
        chores.Export(composition="both"),
        chores.Verification(),
        chores.Evaluation(adapters=["digits@1", "digits@2", "faces", f"{EVIL}@1"]),
    )
    for order in orders:
        chores.schedule(pages.space.sessions, order)
    for path in ("/", "/jobs"):
        found = page_of(pages, path)
        linked = {held["href"] for held in found.of("a") if "href" in held}
        assert {"/backbones/dit@1", "/compositions/both@1", "/adapters/digits@2"} <= linked
        assert "and 1 more" in found.text
        assert faults(found) == []


def test_two_versions_that_nothing_measures_alike_are_not_offered_to_be_measured_alike(
    pages: Service,
) -> None:
    with pages.space.sessions.begin() as session:
        world.evaluated(session, "digits@1", protocol={"dataset": 1})
    apart, alike = (
        page_of(pages, f"/compare?{urlencode({'left': 'digits@1', 'right': other})}")
        for other in (f"{EVIL}@1", "digits@2")
    )
    assert "They learnt other classes, so nothing measures both alike." in apart.text
    assert [held for held in apart.of("form") if held.get("action") == "/evaluate"] == []
    assert [held for held in alike.of("form") if held.get("action") == "/evaluate"] != []


def test_beside_a_version_with_samples_one_without_is_told_to_have_none(looked_at: Service) -> None:
    found = page_of(looked_at, "/compare?left=digits@1&right=digits@2")
    assert "No samples of digits@1 are on this machine." in found.text
    assert [held["alt"] for held in found.of("img")] == ["Samples of digits@2"]


@pytest.mark.parametrize(("count", "told"), [(0, "0 classes"), (1, "1 class"), (2000, "2,000 classes")])
def test_amounts_agree_with_their_words(count: int, told: str) -> None:
    assert counted(count, "class", "classes") == told


def test_versions_measured_against_two_datasets_are_offered_to_be_measured_against_one(
    pages: Service,
) -> None:
    with pages.space.sessions.begin() as session:
        world.dataset(session, "digits", salt="grown")
        for number in (1, 2):
            ref = f"digits@{number}"
            world.evaluated(session, ref, reference=ref, protocol={"dataset": number})
    found = page_of(pages, "/compare?left=digits@1&right=digits@2")
    assert "affinery evaluate digits@1 digits@2 --against digits@2" in found.text
    assert [held["value"] for held in found.of("input") if held.get("name") == "against"] == ["digits@2"]
    assert "measures them against the images of digits@2, both under one protocol" in found.text
    assert faults(found) == []


@pytest.mark.parametrize(
    ("path", "next_step"),
    [
        ("/", "affinery demo"),
        ("/tasks", "No task yet"),
        ("/jobs", "affinery worker"),
        ("/events", "Nothing happened yet"),
        ("/datasets", "affinery dataset add"),
        ("/backbones", "affinery backbone add"),
        ("/compositions", "Tasks are put together once they are learnt"),
        ("/adapters", "Nothing was learnt yet"),
        ("/new", "There is no backbone yet"),
        ("/compare", "Two versions can be compared"),
        ("/search", "What are you looking for?"),
    ],
)
def test_an_empty_workspace_says_what_to_do_first(nothing: Service, path: str, next_step: str) -> None:
    found = page_of(nothing, path)
    assert next_step in found.text
    assert faults(found) == []


STEPS = (
    ("/backbones#add", "affinery backbone add"),
    ("/datasets#add", "affinery dataset add"),
    ("/new", "affinery task add"),
    ("/jobs", "affinery worker"),
)


def test_every_page_of_what_is_not_there_yet_leads_to_the_step_that_is_next(nothing: Service) -> None:
    makes = (
        world.backbone,
        lambda session: world.dataset(session),
        lambda session: trained(session, "job-waits", "digits", state="queued"),
    )
    for step, (href, command) in enumerate(STEPS):
        empty = ["/", "/adapters", "/compositions", "/compare"]
        empty += ["/events", "/new"] if step == 0 else []
        empty += ["/tasks", "/jobs"] if step < 3 else []
        for path in empty:
            found = page_of(nothing, path)
            assert command in found.text, (path, href)
            assert href in [held.get("href") for held in found.of("a")], (path, href)
            assert faults(found) == []
        if step < 3:
            with nothing.space.sessions.begin() as session:
                makes[step](session)
    with nothing.space.sessions.begin() as session:
        queue.cancel(session, "job-waits")
    assert "affinery task add" in page_of(nothing, "/backbones/dit").text  # nothing waits for a worker


def test_what_a_new_task_is_made_of_is_chosen_however_old_it_is(pages: Service, monkeypatch: Any) -> None:
    monkeypatch.setattr(new_task, "CHOICE", 1)
    found = page_of(pages, "/new?dataset=digits@1&backbone=dit@1")
    chosen = [held["value"] for held in found.of("option") if "selected" in held and "value" in held]
    assert chosen == ["digits@1", "dit@1"]
    assert "/datasets/digits@1" in [held.get("href") for held in found.of("a")]  # the preview is of it
    gone = page_of(pages, "/new?dataset=nobody@1&backbone=dit@1", 404)
    assert "nobody@1" in gone.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/tasks/nobody", 404),
        ("/adapters/digits@9", 404),
        ("/adapters/digits@2/pictures/..%2Fattempt-1%2Fprogress.jsonl", 404),
        ("/adapters/digits@2/pictures/progress.jsonl", 404),
        ("/jobs/nothing", 404),
        ("/lineage/node:0", 422),
        ("/adapters?filter=task%3D%3D", 422),
        (f"/compare?{urlencode({'left': EVIL_CLASS, 'right': 'x'})}", 404),
        (f"/datasets/{quote(EVIL_CLASS, safe='')}", 404),
        ("/backbones/dit/rebase?to=dit", 422),
    ],
)
def test_what_is_not_there_is_told_and_nothing_breaks(looked_at: Service, path: str, status: int) -> None:
    reply = looked_at.ask("GET", path)
    assert reply.status == status, reply.body
    if reply.headers["content-type"].startswith("text/html"):
        assert faults(read(reply.body)) == []


def test_the_api_answers_as_before(looked_at: Service) -> None:
    assert looked_at.ask("GET", "/v1/nothing").headers["content-type"] == "application/problem+json"
    assert not any(path.startswith("/tasks") for path in looked_at.get("/openapi.json")["paths"])


def test_a_picture_is_a_picture_and_static_files_are_kept(looked_at: Service) -> None:
    picture = looked_at.ask("GET", "/adapters/digits@2/pictures/samples.png")
    assert (picture.status, picture.headers["content-type"]) == (200, "image/png")
    style = page_of(looked_at, "/").of("link")[1]["href"]
    reply = looked_at.ask("GET", style)
    assert reply.status == 200
    assert "immutable" in reply.headers["cache-control"]
    assert looked_at.ask("GET", "/static/../visit.py").status == 404
    assert looked_at.ask("GET", "/static/%2e%2e/visit.py").status == 404


def test_what_goes_on_changes_by_itself_and_only_that(pages: Service) -> None:
    before = pages.ask("GET", "/live").body
    progress = pages.space.runs / "job-runs" / "attempt-1" / "progress.jsonl"
    with progress.open("a") as file:
        file.write('{"step": 20, "steps": 40, "losses": {"running": 0.25}, "time": 1000000040.0}\n')
    after = pages.ask("GET", "/live").body
    assert b"step 20 of 40" in after
    assert b"step 20 of 40" not in before
    assert b"<html" not in after


def test_ten_thousand_versions_come_page_by_page_each_once(large: Service) -> None:
    def walked(path: str, wanted: str) -> list[str]:
        seen: list[str] = []
        following: str | None = path
        while following is not None:
            found = page_of(large, following)
            seen += [held["href"] for held in found.of("a") if re.fullmatch(wanted, held.get("href", ""))]
            older = [held["href"] for held in found.of("a") if "before=" in held.get("href", "")]
            following = older[0] if older else None
        return seen

    tasks_seen = walked("/tasks", r"/tasks/task-\d+")
    assert len(tasks_seen) == len(set(tasks_seen)) == 200
    versions = walked("/adapters?filter=task%3Dtask-7", r"/adapters/task-7@\d+")
    assert versions == [f"/adapters/task-7@{number}" for number in range(50, 0, -1)]


# --- forms -------------------------------------------------------------------------------------------


def test_an_alias_is_moved_by_a_form(pages: Service) -> None:
    reply = send(pages, "/adapters/digits@1/alias", alias="champion", other="")
    assert (reply.status, reply.headers["location"]) == (303, "/adapters/digits@1?said=aliased")
    assert "The alias was moved" in page_of(pages, reply.headers["location"]).text
    with pages.space.sessions.read() as session:
        assert aliases.get(session, "digits@champion").adapter == "digits@1"


def test_an_alias_of_ones_own_wins_over_the_list(pages: Service) -> None:
    send(pages, "/adapters/digits@1/alias", alias="champion", other="mine")
    with pages.space.sessions.read() as session:
        assert [each.name for each in aliases.list_all(session, task="digits")] == ["mine"]
    assert send(pages, "/adapters/digits@1/alias", other=EVIL).status == 422


def test_a_version_is_retired_with_its_reason_and_restored(pages: Service) -> None:
    assert send(pages, "/adapters/digits@2/retire", reason="").status == 422
    assert send(pages, "/adapters/digits@2/retire", reason=EVIL_CLASS).status == 303
    found = page_of(pages, "/adapters/digits@2")
    assert EVIL_CLASS in found.text
    assert faults(found) == []
    assert send(pages, "/adapters/digits@2/restore").status == 303
    with pages.space.sessions.read() as session:
        meant = tasks.get(session, "digits").node_id
        assert retirement.of(session, [meant]) == {}


@pytest.mark.parametrize(
    ("job", "verb", "state"),
    [("job-waits", "pause", "paused"), ("job-waits", "cancel", "cancelled"), ("job-died", "retry", "queued")],
)
def test_a_job_is_asked_by_a_form(pages: Service, job: str, verb: str, state: str) -> None:
    assert send(pages, f"/jobs/{job}/{verb}").status == 303
    with pages.space.sessions.read() as session:
        assert queue.get(session, job).state == state


def test_a_job_of_a_higher_priority_goes_first_and_nonsense_is_refused(pages: Service) -> None:
    assert send(pages, "/jobs/job-waits/prioritise", priority="7").status == 303
    assert send(pages, "/jobs/job-waits/prioritise", priority="soon").status == 422
    assert send(pages, "/jobs/job-waits/explode").status == 404
    with pages.space.sessions.read() as session:
        assert queue.get(session, "job-waits").priority == 7


def test_a_composition_is_made_and_its_export_queued(pages: Service) -> None:
    body = urlencode([("name", "pair"), ("member", "digits@2"), ("member", "faces@1")]).encode()
    made = pages.ask("POST", "/compositions", body, Content_Type="application/x-www-form-urlencoded")
    assert made.headers["location"] == "/compositions/pair@1?said=composed"
    queued = send(pages, "/compositions/pair@1/export")
    assert "queued" in page_of(pages, queued.headers["location"]).text
    assert send(pages, "/compositions", name="none").status == 422


def test_a_new_task_that_cannot_be_is_told_beside_what_was_filled_in(pages: Service) -> None:
    with pages.space.sessions.read() as session:
        before = session.scalar(select(func.count()).select_from(Job))
    given = {"name": "digits", "dataset": "digits@1", "backbone": "dit@1", "kind": "no-such", "steps": "12"}
    reply = send(pages, "/new", **given)
    found = read(reply.body)
    assert 400 <= reply.status < 500
    assert {"value": "12"}.items() <= next(h for h in found.of("input") if h.get("name") == "steps").items()
    assert send(pages, "/new", **(given | {"kind": "affiner", "steps": "many"})).status == 422
    assert send(pages, "/new").status == 422
    with pages.space.sessions.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == before


# --- who may ---------------------------------------------------------------------------------------


def test_another_site_can_send_no_form(pages: Service) -> None:
    for headers in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "https://evil.example"}):
        reply = pages.ask(
            "POST",
            "/jobs/job-waits/cancel",
            b"",
            Content_Type="application/x-www-form-urlencoded",
            **headers,
        )
        assert reply.status == 403
    with pages.space.sessions.read() as session:
        assert queue.get(session, "job-waits").state == "queued"


def test_whoever_shows_no_token_is_asked_for_one_and_static_files_are_open(pages: Service) -> None:
    with serving(pages.space, token="a-token-of-some-length") as closed:
        reply = closed.ask("GET", "/tasks", Accept="text/html")
        assert (reply.status, reply.headers["location"]) == (303, "/login?next=/tasks")
        assert faults(page_of(closed, "/login?next=/tasks&wrong=1")) == []
        style = page_of(closed, "/login").of("link")[1]["href"]
        assert closed.ask("GET", style).status == 200
        opened = send(closed, "/session", token="a-token-of-some-length", next="/tasks")
        assert (opened.status, opened.headers["location"]) == (303, "/tasks")
        cookie = opened.headers["set-cookie"].partition(";")[0]
        found = read(closed.ask("GET", "/adapters/digits@1", Cookie=cookie).body)
        forms = [held for held in found.of("form") if held.get("method") == "post"]
        secrets = [held["value"] for held in found.of("input") if held.get("name") == "csrf"]
        assert len(secrets) == len(forms) > 2  # each form carries it
        form = "application/x-www-form-urlencoded"
        place = "/adapters/digits@1/alias"
        bare = closed.ask("POST", place, b"alias=champion", Cookie=cookie, Content_Type=form)
        assert bare.status == 403
        sent = urlencode({"csrf": secrets[0], "alias": "champion"}).encode()
        assert closed.ask("POST", place, sent, Cookie=cookie, Content_Type=form).status == 303


@pytest.mark.parametrize("scope", ["read", "schedule", "promote", "admin"])
def test_every_form_asks_for_its_scope(pages: Service, scope: str) -> None:
    with pages.space.sessions.begin() as session:
        _, secret = tokens.create(session, f"of-{scope}", scope, by="tests")
    headers = {"Authorization": f"Bearer {secret}", "Content_Type": "application/x-www-form-urlencoded"}
    with serving(pages.space) as closed:
        for path, right in FORMS.items():
            place = path.format(ref="nothing", verb="cancel")
            reply = closed.ask("POST", place, b"", **headers)
            may = tokens.SCOPES.index(scope) >= tokens.SCOPES.index(str(right.scope))
            assert (reply.status != 403) == may, (place, reply.status)
            assert reply.status < 500, reply.body


JOBS = {
    "/compositions/both/export": {"kind": "export", "composition": "both"},
    "/backbones/dit/rebase": {"kind": "rebase", "old": "dit", "new": "unet"},
    "/backbones/dit/retention": {"kind": "retention", "backbone": "dit"},
}


@pytest.mark.parametrize("scope", tokens.SCOPES)
@pytest.mark.parametrize("tasks", [None, ["digits"]])
@pytest.mark.parametrize("form", JOBS)
def test_a_form_for_a_job_is_for_whom_the_api_lets_schedule_it(
    pages: Service, form: str, tasks: list[str] | None, scope: str
) -> None:
    with pages.space.sessions.begin() as session:
        _, secret = tokens.create(session, "ann", scope, tasks=tasks, by="tests")
    asked = {"to": "unet", "only": "digits"} | JOBS[form]
    headers = {"Authorization": f"Bearer {secret}"}
    with serving(pages.space) as closed:
        by_form = closed.ask(
            "POST",
            form,
            urlencode(asked).encode(),
            **headers,
            Content_Type="application/x-www-form-urlencoded",
        )
        by_api = closed.ask("POST", "/v1/jobs", JOBS[form], **headers)
    may = tasks is None and scope != "read"
    assert (by_form.status != 403, by_api.status != 403) == (may, may), (by_form.status, by_api.json)


def test_every_form_has_a_right() -> None:
    assert FORMS.keys() == CHANGE.keys()


@pytest.mark.parametrize("granted", [None, ["digits"]])
@pytest.mark.parametrize("scope", ["read", "schedule", "promote", "admin"])
def test_who_visits_is_offered_what_they_may_and_nothing_else(
    pages: Service, scope: str, granted: list[str] | None
) -> None:
    with pages.space.sessions.begin() as session:
        _, secret = tokens.create(session, "ann", scope, tasks=granted, by="tests")
    offered = set()
    about = {f"/{noun}/{ref}" for noun in ("tasks", "adapters", "jobs") for ref in OF_DIGITS}
    with serving(pages.space) as closed:
        for place in PLACES:
            reply = closed.ask("GET", place, Authorization=f"Bearer {secret}")
            if place.endswith(".png") or (place == "/health" and scope != "admin"):
                continue
            found = read(reply.body)
            assert faults(found) == [], place
            for held in found.of("form"):
                if held.get("method") != "post":
                    continue
                offered.add(form_of(held["action"]))
                right = FORMS[form_of(held["action"])]
                assert tokens.SCOPES.index(scope) >= tokens.SCOPES.index(str(right.scope)), place
                assert granted is None or right.tasks, place
                if granted and "{" in form_of(held["action"]):
                    assert held["action"].rpartition("/")[0] in about, place
            leads = any(held.get("href", "").startswith("/new") for held in found.of("a"))
            assert not (leads and scope == "read"), place
    assert ("/tasks/{ref}/train" in offered, "/adapters/{ref}/retire" in offered) == (
        scope != "read",
        scope in ("promote", "admin"),
    )


OF_DIGITS = ("digits", "digits@1", "digits@2", "job-digits-1", "job-digits-2")


def form_of(action: str) -> str:
    """The address in FORMS that an address is of."""
    fitting = [each for each in FORMS if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", each), action)]
    return min(fitting, key=lambda each: each.count("{"))


@pytest.mark.parametrize("path", ["/compositions", *JOBS])
def test_a_token_for_certain_tasks_changes_nothing_else_by_forms_either(pages: Service, path: str) -> None:
    with pages.space.sessions.begin() as session:
        _, secret = tokens.create(session, "ann", "admin", tasks=["digits"], by="tests")
    body = urlencode({"name": "mine", "member": "digits@2", "to": "unet", "only": "digits"}).encode()
    headers = {"Authorization": f"Bearer {secret}", "Content_Type": "application/x-www-form-urlencoded"}
    with serving(pages.space) as closed:
        reply = closed.ask("POST", path, body, **headers)
        assert reply.status == 403
        assert "may change only what belongs to digits" in read(reply.body).text
        assert closed.ask("GET", "/compositions/mine", **headers).status == 404
        assert closed.ask("POST", "/adapters/digits@1/alias", b"alias=mine", **headers).status == 303
