"""/compositions: tasks put together, and the bundles that were written of them, to be taken away."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from starlette.responses import FileResponse, Response, StreamingResponse

from affinery_app.dashboard.visit import HEADERS, Visit
from orchestration import chores
from orchestration.additions import compose_tasks
from registry import adapters, compositions, exports, pages, retirement, search
from registry.errors import RecordInvalid

A_PAGE, CHOICE = 50, 100
PIECE = 1 << 20


def listing(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        ids = pages.newest_of_kind(session, "composition", visit.number("before"), A_PAGE + 1)
        found = [compositions.by_id(session, node_id) for node_id in ids[:A_PAGE]]
        newest: dict[str, str] = {}
        for each in search.search(session, "state=usable", limit=CHOICE).adapters:
            newest.setdefault(each.task, each.ref)
    more = ids[A_PAGE - 1] if len(ids) > A_PAGE else None
    return visit.answer("compositions.html", compositions=found, more=more, choice=sorted(newest.values()))


def page(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        found = compositions.get(session, visit.named())
        members = adapters.by_ids(session, found.member_ids)
        retired = retirement.of(session, found.member_ids)
        written = exports.list_all(session, composition_id=found.node_id)[::-1]
    here = {each.ref: Path(each.path).exists() for each in written}
    return visit.answer(
        "composition.html", composition=found, members=members, retired=retired, exports=written, here=here
    )


def compose(visit: Visit) -> Response:
    members = visit.chosen.get("member", [])
    made = compose_tasks(visit.space.sessions, visit.form.get("name", ""), members)
    return visit.on_to("compositions", made.ref, said="composed")


def export(visit: Visit) -> Response:
    """A job that writes a bundle."""
    asked = chores.Export(composition=visit.named(), unverified=visit.form.get("unverified") == "yes")
    job = chores.schedule(visit.space.sessions, asked, submitted_by=visit.by).job
    return visit.on_to("jobs", job.id, said="scheduled")


def download(visit: Visit) -> Response:
    """What was written: a file as it is, a folder as an archive."""
    with visit.space.sessions.read() as session:
        found = exports.get(session, visit.named())
    path = Path(found.path)
    name = found.ref.replace("@", "-")
    if path.is_file():
        return FileResponse(path, filename=f"{name}{path.suffix}", headers=HEADERS)
    if not path.is_dir():
        raise RecordInvalid("The export", f"{path} is not on this machine; export it again")
    disposition = f"attachment; filename*=UTF-8''{quote(name, safe='')}.zip"
    headers = HEADERS | {"Content-Disposition": disposition}
    return StreamingResponse(_archive(path), media_type="application/zip", headers=headers)


class _Pipe:
    """What an archive is written to, taken out piece by piece: it is never held whole."""

    def __init__(self) -> None:
        self.held = bytearray()

    def write(self, content: bytes) -> int:
        self.held += content
        return len(content)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is held open."""

    def taken(self) -> bytes:
        content = bytes(self.held)
        self.held.clear()
        return content


def _archive(folder: Path) -> Iterator[bytes]:
    """A folder's files as a ZIP, not compressed: tensors would not be smaller."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for root, folders, files in os.walk(folder):
            folders.sort()
            for file in sorted(Path(root) / name for name in files):
                entry = zipfile.ZipInfo.from_file(file, Path(folder.name) / file.relative_to(folder))
                with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                    while piece := source.read(PIECE):
                        target.write(piece)
                        yield pipe.taken()
    yield pipe.taken()
