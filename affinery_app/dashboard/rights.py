"""What each form of the pages asks of who sends it: what the API asks for the same (api/rights.py)."""

from __future__ import annotations

from affinery_app.api.rights import RIGHTS

SAME = {
    "/tasks/{ref}/train": "create_job",
    "/adapters/{ref}/alias": "put_alias",
    "/adapters/{ref}/retire": "retire_adapter",
    "/adapters/{ref}/restore": "restore_adapter",
    "/jobs/{ref}/{verb}": "cancel_job",
    "/evaluate": "create_job",
    "/backbones/{ref}/retention": "create_job",
    "/datasets/shipped": "create_dataset",
    "/backbones/shipped": "create_backbone",
    "/compositions": "create_composition",
    "/compositions/{ref}/export": "create_job",
    "/backbones/{ref}/rebase": "create_job",
    "/new": "create_tasks",
}
"""By form, the route that does the same."""

FORMS = {form: RIGHTS[route] for form, route in SAME.items()}
