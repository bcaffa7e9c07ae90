"""DVC: every recorded version is here, pinned, and in the default remote; what was changed is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from affinery.errors import AffineryError
from orchestration.datasets import repository
from orchestration.datasets.states import AWAY, CHANGED, MISSING, Place, state_of
from orchestration.reconcile.findings import Finding, Progress
from orchestration.services import Services
from registry import datasets
from registry.records import DatasetRecord

NAME = "datasets"


def reconcile(services: Services, dry_run: bool, on_progress: Progress) -> Iterator[Finding]:
    with services.sessions.read() as session:
        records = datasets.list_all(session)
    if not (services.data / ".dvc" / "config").exists():
        if records:
            yield Finding(NAME, str(services.data), "there is no DVC repository", mend="affinery init")
        return
    away: set[str] = set()
    for done, record in enumerate(records, start=1):
        yield from _version(services.data, record, away, dry_run)
        on_progress(done, len(records))
    yield from _unrecorded(services.data, {record.dvc_path for record in records})


def _version(data: Path, record: DatasetRecord, away: set[str], dry_run: bool) -> Iterator[Finding]:
    where = f"dataset {record.ref}"
    state = state_of(data, record)
    if not state.pinned:
        if not dry_run:
            repository.pin_again(data, record.dvc_path, record.dvc_md5)
        yield Finding(
            NAME,
            where,
            "its .dvc file is missing or says something else",
            "it was written as the registry has it",
        )
    pack = state.pack
    if pack == MISSING:
        finding = _fetch(data, record, where, dry_run)
        pack = pack if finding.done is None else "whole"
        yield finding
    elif pack == CHANGED:
        mend = f"see what it is, then: affinery dataset pull {quote(record.ref)} --force"
        yield Finding(NAME, where, f"its files were changed: {state.reason}", mend=mend)
    for place in state.places:
        if place.state == AWAY:
            if place.remote not in away:
                away.add(place.remote)
                what = f"it does not answer: {place.reason}"
                move = f"affinery dataset remote add {quote(place.remote)} URL"
                mend = f"start it, or say where it is now: {move}"
                yield Finding(NAME, f"remote {place.remote}", what, mend=mend)
        elif not place.sound:
            yield _send(data, record, place, pack, dry_run)


def _fetch(data: Path, record: DatasetRecord, where: str, dry_run: bool) -> Finding:
    what, done = "its files are not on this machine", "they were fetched, every byte checked"
    if dry_run:
        return Finding(NAME, where, what, done)
    try:
        repository.restore(data, record.dvc_path, record.digest)
    except AffineryError as error:
        mend = f"add the same images again: affinery dataset add {quote(record.name)} SOURCE"
        return Finding(NAME, where, f"{what}, and no remote gives them: {error}", mend=mend)
    return Finding(NAME, where, what, done)


def _send(data: Path, record: DatasetRecord, place: Place, pack: str, dry_run: bool) -> Finding:
    where = f"dataset {record.ref} in remote {place.remote}"
    if pack in (MISSING, CHANGED):
        mend = "no whole copy is here to send; mend that first"
        return Finding(NAME, where, place.reason, mend=mend)
    if not dry_run:
        try:
            repository.push(data, record.dvc_path, place.remote)
        except AffineryError as error:
            again = f"affinery dataset push {quote(record.ref)} --remote {quote(place.remote)}"
            return Finding(NAME, where, f"{place.reason}, and it takes nothing: {error}", mend=again)
    return Finding(NAME, where, place.reason, "it was sent")


def _unrecorded(data: Path, known: set[str]) -> Iterator[Finding]:
    """Packs that an import which died had pinned, but not yet recorded."""
    for file in sorted(data.glob("*/*.dvc")):
        path = file.relative_to(data).with_suffix("").as_posix()
        if path not in known:
            name = file.parent.name
            again = f"affinery dataset add {quote(name)} {quote(str(data / path))}"
            mend = f"{again}, or delete it and {file.name}"
            yield Finding(
                NAME, path, "no version in the registry is this; an import died, perhaps", mend=mend
            )
