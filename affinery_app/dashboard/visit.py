"""One visit of a page: what was asked, and how it is answered. Errors are pages too."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from affinery.counting import counted
from affinery.errors import AffineryError
from affinery_app.api.access import Who
from affinery_app.api.errors import NotGranted
from affinery_app.api.jobs import ordered
from affinery_app.api.problems import STATUSES, said_of
from affinery_app.api.rights import SAFE, Right
from affinery_app.charts import heat_key
from affinery_app.dashboard.beginning import next_step
from affinery_app.dashboard.rights import FORMS
from affinery_app.dashboard.words import ago, duration, moment, plain, recognised
from affinery_app.demo import shipped_datasets
from affinery_app.figures import signed, size
from affinery_app.wiring import Workspace
from orchestration.chores import Chore

HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# Same origin, and not less: without it a form's request would not say where it comes from.
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}
NOBODY = Who("nobody", "read", "session", tasks=())
SAID = {
    "aliased": "The alias was moved.",
    "retired": "The version is retired: no new composition takes it.",
    "restored": "The version may be used again.",
    "scheduled": "Scheduled. A worker takes it when it has room.",
    "cancelled": "Cancelled, or its worker was asked to.",
    "paused": "Paused, or its worker was asked to.",
    "resumed": "It goes on.",
    "retried": "It is taken up again.",
    "moved": "Its place in the queue was changed.",
    "composed": "Recorded. Export it to take it elsewhere.",
    "added": "It was checked and registered. It never changes from now on.",
    "imported": "The dataset was checked, packed and pinned.",
}
"""What a page says after something was done, by the word in its address; nobody else's words are shown."""

TITLES = {
    403: "Not allowed",
    404: "Nothing here",
    405: "Not to be opened",
    409: "This cannot be done now",
    413: "Too large",
    429: "Too often",
    500: "Something broke here",
    503: "The registry does not answer",
    507: "There is no room",
}


@dataclass(frozen=True)
class Visit:
    """A request for a page. form: what was filled in, the last of each field; chosen: all of each."""

    request: Request
    space: Workspace
    form: Mapping[str, str] = field(default_factory=dict)
    chosen: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def who(self) -> Who | None:
        """Who came in; the guard before all routes saw to it."""
        found: Who | None = self.request.scope.get("state", {}).get("who")
        return found

    @property
    def by(self) -> str:
        """Who is recorded as having asked for a job."""
        return self.who.name if self.who is not None else "nobody"

    def refused(self, form: str, tasks: Iterable[str] | None = None) -> str:
        """Why the visitor may not send a form of rights.py, about these tasks; "" where they may."""
        who = self.who or NOBODY
        refusal: AffineryError | None = FORMS[form].refusal(who, changes=True)
        if refusal is None and tasks is not None and who.tasks is not None:
            try:
                self.check_tasks(*tasks)
            except NotGranted as error:
                refusal = error
        return "" if refusal is None else said_of(refusal)

    def scheduled(self, chore: Chore) -> Response:
        """Queue a job, and on to its page. Raises what the API raises for it."""
        who = self.who or NOBODY
        job = ordered(self.space, who, chore, submitted_by=who.name).job
        return self.on_to("jobs", job.id, said="scheduled")

    def check_tasks(self, *names: str) -> None:
        """Raises NotGranted where one of these tasks is none that the visitor may change."""
        with self.space.sessions.read() as session:
            (self.who or NOBODY).check_tasks(session, names)

    def named(self, part: str = "ref") -> str:
        """A part of the address."""
        return str(self.request.path_params[part])

    def asked(self, name: str, default: str = "") -> str:
        """A word of the query."""
        return self.request.query_params.get(name, default)

    def number(self, name: str) -> int | None:
        """A whole number of the query; None for anything else."""
        said = self.asked(name)
        return int(said) if said.isascii() and said.isdigit() and len(said) < 19 else None

    def answer(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page."""
        known = {
            "path": self.request.url.path,
            "space_name": self.space.folder.name,
            "said": SAID.get(self.asked("said"), ""),
            "query": self.asked("q"),
            "who": self.who,
            "refused": self.refused,
            "next_step": lambda: next_step(self.space),
        }
        text = environment().get_template(template).render(known | values)
        return HTMLResponse(text.encode(errors="backslashreplace"), status, HEADERS)

    def on_to(self, *parts: str, said: str = "", **query: str) -> Response:
        """Somewhere else, after something was done there."""
        words = query | ({"said": said} if said else {})
        return RedirectResponse(address(*parts) + (f"?{urlencode(words)}" if words else ""), 303)


Page = Callable[[Visit], Response]


def shown(page: Page, right: Right) -> Callable[[Request], Any]:
    """A page as a route takes it, for who has this right. Its errors are told as pages."""

    async def endpoint(request: Request) -> Response:
        visit = Visit(request, request.app.state.space)
        if request.method == "POST":
            pairs = parse_qsl((await request.body()).decode(errors="replace"), keep_blank_values=True)
            chosen: dict[str, list[str]] = {}
            for name, value in pairs:
                chosen.setdefault(name, []).append(value)
            last = {name: values[-1].strip() for name, values in chosen.items()}
            visit = Visit(request, visit.space, last, chosen)
        return await run_in_threadpool(_answered, page, right, visit)

    return endpoint


def _answered(page: Page, right: Right, visit: Visit) -> Response:
    try:
        refusal = right.refusal(visit.who, changes=visit.request.method not in SAFE)
        if refusal is not None:
            raise refusal
        return page(visit)
    except AffineryError as error:
        return told(visit, status_of(error), said_of(error))


def status_of(error: AffineryError) -> int:
    """As the API answers it."""
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def told(visit: Visit, status: int, detail: str, near: str = "") -> Response:
    """What went wrong, and where to go on. near: the address that was meant, perhaps."""
    title = TITLES.get(status, "This cannot be done")
    *page, last = visit.request.scope["path"].strip("/").split("/")
    wanted = last[:80] if status == 404 else ""
    # The address of a form is that of its page, and a word.
    back = address(*page) if page and visit.request.method == "POST" and status not in (404, 405) else ""
    return visit.answer("error.html", status, title=title, detail=detail, near=near, wanted=wanted, back=back)


def address(*parts: object) -> str:
    """A path of these parts, each quoted: names may hold anything but a slash."""
    return "/" + "/".join(quote(str(part), safe="@:") for part in parts)


@cache
def environment() -> Environment:
    """The templates: every text escaped, a name that is not there an error."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"ago": ago, "bytes": size, "drawn": Markup, "duration": duration, "moment": moment}
    made.filters["counted"] = counted
    made.filters["plain"] = plain
    made.filters["quoted"] = shlex.quote
    made.filters["signed"] = signed
    made.filters["recognised"] = recognised
    made.globals |= {"address": address, "asset": asset, "shipped": shipped_datasets, "heat_key": heat_key}
    return made


@cache
def asset(name: str) -> str:
    """The address of a static file, which changes with its content, so that browsers may keep it."""
    digest = hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"
