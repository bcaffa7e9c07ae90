"""Every page, where it is and who may see it. Browsers keep static files until their content changes."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from affinery_app.api.rights import OPEN, Right
from affinery_app.dashboard import (
    adapters,
    backbones,
    compositions,
    datasets,
    finding,
    happenings,
    home,
    jobs,
    lineage,
    measuring,
    new_task,
    tasks,
)
from affinery_app.dashboard.rights import FORMS
from affinery_app.dashboard.visit import HERE, Page, Visit, shown

SEEING, OPERATING = Right("read"), Right("admin")
READ: dict[str, Page] = {
    "/": home.page,
    "/live": home.live,
    "/tasks": tasks.listing,
    "/tasks/{ref}": tasks.page,
    "/adapters": adapters.listing,
    "/adapters/{ref}": adapters.page,
    "/adapters/{ref}/pictures/{name}": adapters.picture,
    "/compare": adapters.compare,
    "/jobs": jobs.listing,
    "/jobs/{ref}": jobs.page,
    "/jobs/{ref}/live": jobs.live,
    "/lineage/{ref}": lineage.page,
    "/backbones": backbones.listing,
    "/backbones/{ref}": backbones.page,
    "/backbones/{ref}/rebase": backbones.rebase,
    "/datasets": datasets.listing,
    "/datasets/{ref}": datasets.page,
    "/datasets/{ref}/sheet.png": datasets.sheet,
    "/compositions": compositions.listing,
    "/compositions/{ref}": compositions.page,
    "/new": new_task.page,
    "/new/preview": new_task.preview,
    "/new/estimate": new_task.estimate,
    "/search": finding.page,
    "/events": happenings.events_page,
}
OPERATE: dict[str, Page] = {"/health": happenings.health}
"""What names places of the service's machine: for tokens of the scope admin."""

CHANGE: dict[str, Page] = {
    "/tasks/{ref}/train": tasks.train,
    "/adapters/{ref}/alias": adapters.alias,
    "/adapters/{ref}/retire": adapters.retire,
    "/adapters/{ref}/restore": adapters.restore,
    "/jobs/{ref}/{verb}": jobs.change,
    "/evaluate": measuring.evaluate,
    "/backbones/{ref}/retention": measuring.retention,
    "/datasets/shipped": datasets.add_shipped,
    "/backbones/shipped": backbones.add_shipped,
    "/compositions": compositions.compose,
    "/compositions/{ref}/export": compositions.export,
    "/backbones/{ref}/rebase": backbones.start_rebase,
    "/new": new_task.schedule,
}
"""What changes something: rights.py has what each asks of who sends it."""

SIGN_IN = {
    "wrong": "There is no active token of this text.",
    "ended": "Your session has ended. Sign in again, and you are back where you were.",
}
"""What the page where one shows a token says, by the word in its address."""


def login(visit: Visit) -> Response:
    """Where one shows a token; the API opens the session (api/sessions.py)."""
    wrong = next((words for name, words in SIGN_IN.items() if visit.asked(name)), "")
    return visit.answer("login.html", wrong=wrong, following=visit.asked("next"))


class Assets(StaticFiles):
    """Files whose addresses change with their content."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def routes() -> list[BaseRoute]:
    """What the application adds to its own."""
    return [
        Route("/login", shown(login, OPEN), methods=["GET"]),
        *(Route(path, shown(page, SEEING), methods=["GET"]) for path, page in READ.items()),
        *(Route(path, shown(page, OPERATING), methods=["GET"]) for path, page in OPERATE.items()),
        *(Route(path, shown(page, FORMS[path]), methods=["POST"]) for path, page in CHANGE.items()),
        Mount("/static", Assets(directory=HERE / "static")),
    ]
