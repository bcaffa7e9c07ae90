"""What each form of the pages asks of who sends it: the one list, as api/rights.py is that of the API."""

from __future__ import annotations

from affinery_app.api.rights import Right

FORMS: dict[str, Right] = {
    "/tasks/{ref}/train": Right("schedule", tasks=True),
    "/adapters/{ref}/alias": Right("promote", tasks=True),
    "/adapters/{ref}/retire": Right("promote", tasks=True),
    "/adapters/{ref}/restore": Right("promote", tasks=True),
    "/jobs/{ref}/{verb}": Right("schedule", tasks=True),
    "/evaluate": Right("schedule", tasks=True),
    "/backbones/{ref}/retention": Right("schedule"),
    "/datasets/shipped": Right("schedule", tasks=True),
    "/backbones/shipped": Right("admin"),
    "/compositions": Right("promote"),
    "/compositions/{ref}/export": Right("promote"),
    "/backbones/{ref}/rebase": Right("admin"),
    "/new": Right("schedule", tasks=True),
}
