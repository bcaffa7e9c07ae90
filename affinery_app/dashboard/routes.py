"""Every page, where it is and who may see it. Browsers keep static files until their content changes."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

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
from affinery_app.dashboard.visit import HERE, Page, Visit, shown

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

CHANGE: dict[str, tuple[Page, str]] = {
    "/tasks/{ref}/train": (tasks.train, "schedule"),
    "/adapters/{ref}/alias": (adapters.alias, "promote"),
    "/adapters/{ref}/retire": (adapters.retire, "promote"),
    "/adapters/{ref}/restore": (adapters.restore, "promote"),
    "/jobs/{ref}/{verb}": (jobs.change, "schedule"),
    "/evaluate": (measuring.evaluate, "schedule"),
    "/backbones/{ref}/retention": (measuring.retention, "schedule"),
    "/datasets/shipped": (datasets.add_shipped, "schedule"),
    "/backbones/shipped": (backbones.add_shipped, "admin"),
    "/compositions": (compositions.compose, "promote"),
    "/compositions/{ref}/export": (compositions.export, "promote"),
    "/backbones/{ref}/rebase": (backbones.start_rebase, "admin"),
    "/new": (new_task.schedule, "schedule"),
}
"""What changes something, and the scope that it needs (api/rights.py has those of the API)."""


def login(visit: Visit) -> Response:
    """Where one shows a token; the API opens the session (api/sessions.py)."""
    wrong, ended = bool(visit.asked("wrong")), bool(visit.asked("ended"))
    return visit.answer("login.html", wrong=wrong, ended=ended, changing=False, following=visit.asked("next"))


class Assets(StaticFiles):
    """Files whose addresses change with their content."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def routes() -> list[BaseRoute]:
    """What the application adds to its own."""
    return [
        Route("/login", shown(login, None), methods=["GET"]),
        *(Route(path, shown(page, "read"), methods=["GET"]) for path, page in READ.items()),
        *(Route(path, shown(page, "admin"), methods=["GET"]) for path, page in OPERATE.items()),
        *(Route(path, shown(page, scope), methods=["POST"]) for path, (page, scope) in CHANGE.items()),
        Mount("/static", Assets(directory=HERE / "static")),
    ]
