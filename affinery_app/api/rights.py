"""What each route asks of who calls it: the one list of scopes. A route that is not in it cannot be served.

read < schedule < promote < admin, each with what is before it. A token for certain tasks only may change what
belongs to them, by the routes that look (`tasks=True`), and nothing by the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from affinery_app.api import bodies, etags
from affinery_app.api.access import Who
from affinery_app.api.errors import NotGranted, ScopeMissing
from affinery_app.api.problems import of_error

CONDITIONS = ("if-match", "if-none-match", "if-unmodified-since")
SAFE = frozenset(("GET", "HEAD", "OPTIONS"))


@dataclass(frozen=True)
class Right:
    """scope: what is needed; None for nothing at all. tasks: the route looks at a token's tasks."""

    scope: str | None
    tasks: bool = False

    def refusal(self, who: Who | None, *, changes: bool) -> ScopeMissing | NotGranted | None:
        """Why somebody has it not. changes: whether something is to be changed."""
        if self.scope is None:
            return None
        if who is None:
            return ScopeMissing("", "none", self.scope)
        if not who.may(self.scope):
            return ScopeMissing(who.name, who.scope, self.scope)
        if who.tasks is not None and not self.tasks and changes:
            return NotGranted(who.name, "more than tasks", ", ".join(who.tasks))
        return None


OPEN = Right(None)
READ = Right("read")
RIGHTS: dict[str, Right] = {
    "get_health": OPEN,
    "open_session": OPEN,
    "get_session": READ,
    "close_session": Right("read", tasks=True),
    "end_session": OPEN,
    "list_tokens": Right("admin"),
    "create_token": Right("admin"),
    "revoke_token": Right("admin"),
    "list_webhooks": Right("admin"),
    "get_webhook": Right("admin"),
    "create_webhook": Right("admin"),
    "delete_webhook": Right("admin"),
    "test_webhook": Right("admin"),
    "list_deliveries": Right("admin"),
    "list_backbones": READ,
    "get_backbone": READ,
    "create_backbone": Right("admin"),
    "list_datasets": READ,
    "get_dataset": READ,
    "list_tasks": READ,
    "get_task": READ,
    "list_versions": READ,
    "get_report": READ,
    "list_adapters": READ,
    "get_adapter": READ,
    "create_adapter": Right("promote", tasks=True),
    "retire_adapter": Right("promote", tasks=True),
    "restore_adapter": Right("promote", tasks=True),
    "get_lineage": READ,
    "list_lineage": READ,
    "get_diff": READ,
    "list_aliases": READ,
    "get_alias": READ,
    "list_moves": READ,
    "put_alias": Right("promote", tasks=True),
    "delete_alias": Right("promote", tasks=True),
    "get_tags": READ,
    "patch_tags": Right("promote"),
    "get_note": READ,
    "put_note": Right("promote"),
    "delete_note": Right("promote"),
    "list_renamings": READ,
    "rename": Right("admin"),
    "list_compositions": READ,
    "get_composition": READ,
    "create_composition": Right("promote"),
    "list_exports": READ,
    "get_export": READ,
    "create_blob": Right("promote", tasks=True),
    "get_blob": READ,
    "create_tasks": Right("schedule", tasks=True),
    "estimate_tasks": Right("schedule", tasks=True),
    "create_job": Right("schedule", tasks=True),
    "cancel_job": Right("schedule", tasks=True),
    "pause_job": Right("schedule", tasks=True),
    "resume_job": Right("schedule", tasks=True),
    "retry_job": Right("schedule", tasks=True),
    "prioritise_job": Right("schedule", tasks=True),
    "get_job_log": Right("schedule", tasks=True),
    "follow_job": READ,
    "list_schedules": READ,
    "get_schedule": READ,
    "create_schedule": Right("schedule", tasks=True),
    "pause_schedule": Right("schedule", tasks=True),
    "resume_schedule": Right("schedule", tasks=True),
    "delete_schedule": Right("schedule", tasks=True),
    "list_limits": READ,
    "get_limit": READ,
    "put_limit": Right("admin"),
    "delete_limit": Right("admin"),
    "create_upload": Right("schedule", tasks=True),
    "get_upload": READ,
    "put_part": Right("schedule", tasks=True),
    "delete_upload": Right("schedule", tasks=True),
    "create_dataset": Right("schedule", tasks=True),
    "list_files": READ,
    "get_file": READ,
    "download_export": READ,
    "list_evaluations": READ,
    "compare_evaluations": READ,
    "find": READ,
    "get_stats": READ,
    "list_jobs": READ,
    "get_job": READ,
    "list_attempts": READ,
    "list_events": READ,
}


class Entitled(APIRoute):
    """A route behind its right, then behind what may be asked of it and the kind of its body; nothing of the
    request is read before. What was read before and is the same is not sent again.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **given: Any) -> None:
        super().__init__(path, endpoint, **given)
        self.right = RIGHTS[self.name]
        said = (self.openapi_extra or {}).get("requestBody", {}).get("content", {})
        self.kinds = tuple(said) or ((bodies.JSON,) if self.body_field is not None else ())
        self.queried = _queried(self.dependant)
        self.conditions = frozenset(field.alias for field in self.dependant.header_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in (self.methods or ()):
            refusal = self._refusal(scope)
            if refusal is not None:
                await of_error(refusal)(scope, receive, send)
                return
            headers = Headers(scope=scope)
            self._check_query(QueryParams(scope["query_string"]))
            if scope["method"] not in SAFE:
                self._check_conditions(headers)
            bodies.check(headers, self.kinds)
            if scope["method"] in SAFE:
                send = etags.unless_had(headers, send)
        await super().handle(scope, receive, send)

    def _check_query(self, asked: QueryParams) -> None:
        """Raises RequestValidationError: a filter that is misspelt would find everything."""
        known = f"there are {', '.join(sorted(self.queried))}" if self.queried else "this address takes none"
        faults = [
            {"type": "unknown", "loc": ("query", name), "msg": f"there is no such parameter here; {known}"}
            for name in dict.fromkeys(asked)
            if name not in self.queried
        ]
        if faults:
            raise RequestValidationError(faults)

    def _check_conditions(self, headers: Headers) -> None:
        """Raises RequestValidationError: what was meant for what was read would be done to anything."""
        faults = [
            {
                "type": "unknown",
                "loc": ("header", name),
                "msg": "this address does not look at it; leave it out",
            }
            for name in CONDITIONS
            if name in headers and name not in self.conditions and (name, headers[name]) != ("if-match", "*")
        ]
        if faults:
            raise RequestValidationError(faults)

    def _refusal(self, scope: Scope) -> ScopeMissing | NotGranted | None:
        who: Who | None = scope.get("state", {}).get("who")
        return self.right.refusal(who, changes=scope["method"] not in SAFE)


def _queried(dependant: Dependant) -> frozenset[str]:
    """The names of the parameters that a route, and what it depends on, takes of an address."""
    own = frozenset(field.alias for field in dependant.query_params)
    return own.union(*(_queried(each) for each in dependant.dependencies))


def nouns(prefix: str, tag: str) -> APIRouter:
    """A router whose routes stand behind their rights."""
    return APIRouter(prefix=prefix, tags=[tag], route_class=Entitled)
