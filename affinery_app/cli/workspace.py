"""affinery init, affinery migrate."""

from __future__ import annotations

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following


def init(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Make a workspace: a registry, a blob store, an MLflow store and a DVC repository for data."""
    from affinery_app.wiring import create_workspace

    space, new = create_workspace(workspace)
    _ = space.tracking  # MLflow makes its tables at first use; better here than in the middle of a training
    space.tracking.prepare()
    if as_json:
        emit({"workspace": str(space.folder), "new": new})
        return
    fields([("workspace", space.folder), ("state", "new" if new else "was there already; up to date")])
    following("affinery backbone add FILE.safetensors", "affinery dataset add NAME FOLDER")


def migrate(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Bring the registry up to this version's schema, and make the workspace where there is none."""
    from affinery_app.wiring import create_workspace
    from registry.session import HEAD

    space, _ = create_workspace(workspace)
    if as_json:
        emit({"workspace": str(space.folder), "schema": HEAD})
    else:
        fields([("workspace", space.folder), ("schema", HEAD)])
