"""affinery adapter kinds | list | show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affinery.counting import counted
from affinery_app.cli import completion, retirement
from affinery_app.cli.adapter_files import export
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, fields, following, say, table
from affinery_app.cli.place import UrlOption, place
from affinery_app.figures import size

if TYPE_CHECKING:
    from registry.records import CertificateRecord, EvaluationRecord
    from registry.retirement import Retirement

app = typer.Typer(help="What was learnt: versions of adapter sets.", no_args_is_help=True)
app.command("export")(export)


@app.command("kinds")
def list_kinds(as_json: JsonOption = False) -> None:
    """All adapter kinds, with their settings."""
    from affinery.adapters import kind, kinds
    from affinery.kind_settings import about

    found = [
        {"kind": name, "about": about(name), "settings": kind(name).config({}).to_dict()} for name in kinds()
    ]
    if as_json:
        emit(found)
        return
    table(
        ["kind", "settings", "what it is"],
        [
            (
                one["kind"],
                [f"{name}={_default(value)}" for name, value in one["settings"].items()],
                one["about"],
            )
            for one in found
        ],
        "",
    )
    following("affinery estimate --arch dit-xl-2", "affinery task add NAME --backbone NAME --kind KIND")


def _default(value: object) -> str:
    """A setting's default as it would be typed; … stands for what the method itself names."""
    if value is None or value == []:
        return "…"
    return ",".join(map(str, value)) if isinstance(value, list) else json.dumps(value)


@app.command("list")
def list_all(
    task: Annotated[
        str | None, typer.Option(help="Only of this task.", autocompletion=completion.tasks)
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Only on this backbone.", autocompletion=completion.backbones)
    ] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """All adapter versions."""
    with place(url, workspace) as where:
        found = where.adapters(task, backbone)
    if as_json:
        emit([record.to_json() for record in found])
        return
    table(
        ["adapter", "digest", "kind", "backbone", "dataset", "parameters", "size"],
        [
            (r.ref, r.digest[:12], r.kind, r.backbone, r.dataset, f"{r.parameters:,}", size(r.size_bytes))
            for r in found
        ],
        "No adapter yet. Schedule a task and train it: affinery task add …, affinery run",
    )


@app.command("search")
def search(
    query: Annotated[
        str,
        typer.Argument(
            metavar="FILTER",
            help="Such as 'kind=affiner and metric.recognition>=0.9 and below=dataset:digits'.",
        ),
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    before: Annotated[
        int | None, typer.Option(min=1, max=2**63 - 1, help="What was published before this id.")
    ] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Adapter versions for which a filter holds, the newest first. The language: docs/guides/registry.md."""
    with place(url, workspace) as where:
        page = where.search(query, before, limit)
    if as_json:
        emit(page.to_json())
        return
    table(
        ["id", "adapter", "kind", "backbone", "dataset", "published"],
        [
            (r.node_id, r.ref, r.kind, r.backbone, r.dataset, f"{r.created_at:%Y-%m-%d %H:%M}")
            for r in page.adapters
        ],
        "No adapter version is like that.",
    )
    if page.next is not None:
        say(f"There are more: --before {page.next}")


@app.command("show")
def show(
    ref: Annotated[str, typer.Argument(help="task, or task@version.", autocompletion=completion.adapters)],
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """One adapter version: what it was made from, what was found of it, and what hangs on it."""
    with place(url, workspace) as where:
        found = where.adapter(ref)
    if as_json:
        emit(found.to_json())
        return
    record, made = found.record, found.record.provenance
    last = {each.protocol_digest: each.node_id for each in found.evaluations}
    newest = [each for each in found.evaluations if each.node_id == last[each.protocol_digest]]
    seen = _recognition(record.metrics)
    fields(
        [
            ("adapter", record.ref),
            ("state", "usable" if found.retired is None else _ended(found.retired)),
            ("aliases", found.aliases or None),
            ("tags", [f"{key}={value}" for key, value in found.tags.items()] or None),
            ("digest", record.digest),
            ("kind", f"{record.kind} {json.dumps(record.config)}"),
            ("parameters", f"{record.parameters:,}"),
            ("size", size(record.size_bytes)),
            ("class rows", f"[{record.block[0]}, {record.block[1]})"),
            ("backbone", record.backbone),
            ("dataset", record.dataset),
            ("begun from", record.warm_start),
            ("mlflow run", record.mlflow_run_id),
            ("job", record.job_id),
            ("strategy", made.get("strategy")),
            ("trained with", made.get("trained_with") or "–"),
            ("seed", made.get("seed")),
            ("code", made.get("code_version")),
            ("published", f"{record.created_at:%Y-%m-%d %H:%M} UTC"),
            *([] if seen is None else [("recognition", seen)]),
            *(("certificate", _proven(each)) for each in found.certificates),
            *(("evaluation", _measured(each)) for each in newest),
            *(("note", line) for line in (found.note or "").splitlines()),
        ]
    )
    following(f"affinery lineage {quote(record.ref)}", f"affinery compose NAME --task {quote(record.task)}")


def _recognition(metrics: Mapping[str, Any]) -> str | None:
    """As far as it is told: what was learnt elsewhere comes with any figures, or with none."""
    from registry.metrics import recognition

    seen = recognition(metrics)
    if seen.share is None:
        return None
    words = f"{seen.share:.1%} of {'its' if seen.samples is None else seen.samples} samples"
    if seen.real_accuracy is None or seen.real_images is None:
        return words
    return f"{words}; the same classifier on {seen.real_images} real images: {seen.real_accuracy:.1%}"


def _proven(certificate: CertificateRecord) -> str:
    if not certificate.proves:
        return f"{certificate.level}: learnt elsewhere, and nothing was proved here"
    older = counted(len(certificate.results.get("adapters", ())), "older adapter")
    return f"{certificate.level}: backbone, null row and {older} unchanged"


def _ended(retired: Retirement) -> str:
    return f"retired since {retired.since:%Y-%m-%d %H:%M} UTC: {retired.reason}"


def _measured(evaluation: EvaluationRecord) -> str:
    """Its figures, with the protocol by which they may be compared."""
    from registry.metrics import numbers

    found = [f"{name} {number:.4g}" for name, number in list(numbers(evaluation.results).items())[:8]]
    how = f"protocol {evaluation.protocol_digest[:12]}, against {evaluation.reference}"
    return f"{', '.join(found)}; {how}"


app.command("retire")(retirement.retire)
app.command("restore")(retirement.restore)
