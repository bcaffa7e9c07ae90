"""A task's report as one HTML file: light and dark, self-contained, every text of a user escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from shlex import quote
from typing import Any

from affinery.counting import counted
from affinery_app.charts import STYLE as CHARTS
from affinery_app.charts import bars, heat_key, line_chart
from affinery_app.figures import figures
from affinery_app.matrix import shown
from affinery_app.task_report import TaskReport, Version
from registry.metrics import recognition
from registry.records import EvaluationRecord

STYLE = (
    """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --faint: #6a6f76; --rule: #dcdfe3;
  --panel: #f6f7f9; --accent: #2563c9; --line-0: #2563c9; --line-1: #c4541c; --line-2: #2a8a4a;
  --line-3: #8a4bb8; --line-4: #b3246b; --line-5: #7a6a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --paper: #16181b; --faint: #9aa0a8;
  --rule: #33373d; --panel: #1f2226; --accent: #6aa2f7; --line-0: #6aa2f7; --line-1: #f0965f;
  --line-2: #6cc98a; --line-3: #c394ea; --line-4: #f07fb4; --line-5: #d6c55a; } }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; } p { margin: .4rem 0; } .faint { color: var(--faint); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
.wide { overflow-x: auto; } th, td { text-align: left; padding: .3rem .9rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); } th { font-weight: 600; overflow-wrap: anywhere; }
.facts th { color: var(--faint); font-weight: 400; }
.wide + .wide { margin-top: 1rem; }
img { max-width: 100%; image-rendering: pixelated; border-radius: 4px; } figure { margin: .8rem 0; }
figcaption { color: var(--faint); font-size: .9rem; } details { margin: .4rem 0; }
pre, code { font: .85rem/1.45 ui-monospace, monospace; } pre { background: var(--panel); padding: .8rem;
  overflow-x: auto; border-radius: 6px; }
"""
    + CHARTS
)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(report: TaskReport) -> str:
    """The whole file."""
    task = report.task
    sections = [
        _head(report),
        _section("Versions", _versions(report.versions)),
        _section("Figures", _figures(report)),
        _section("Recognition by class", _classes(report)),
        _section("Loss", _losses(report.versions)),
        _section("Distance over steps", _over_steps(report)),
        _section("Proof that nothing older changed", _certificates(report.versions)),
        _section("After every addition to the backbone", _retention(report.retention)),
        _section("Pictures", _pictures(report.versions)),
        _section("Do it again", _commands(report)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(task.name)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    """Nothing where there is nothing to tell."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _text(value: object) -> str:
    if value is None:
        return "–"
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _head(report: TaskReport) -> str:
    task, dataset = report.task, report.dataset
    facts = {
        "backbone": task.backbone,
        "dataset": f"{task.dataset}: {dataset.image_count:,} images, {dataset.licence}",
        "kind": f"{task.kind} {json.dumps(task.config, ensure_ascii=False)}",
        "class rows": f"[{task.block[0]}, {task.block[1]})",
        "classes": ", ".join(task.classes),
        "condition": None if task.condition is None else task.condition["name"],
        "tags": ", ".join(f"{key}={value}" for key, value in report.tags.items()) or None,
        "note": report.note,
    }
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{_text(value)}</td></tr>'
        for name, value in facts.items()
        if value is not None
    )
    state = f"a task, {task.state}, with {counted(len(report.versions), 'version')}"
    return (
        f'<h1>{escape(task.name)}</h1><p class="faint">{escape(state)}</p><table class="facts">{rows}</table>'
    )


def _versions(versions: Sequence[Version]) -> str:
    rows = [
        (
            version.adapter.ref,
            f"{version.adapter.parameters:,}",
            f"{version.adapter.size_bytes:,}",
            version.adapter.dataset,
            version.adapter.warm_start,
            None if version.run is None else version.run.config.get("steps"),
            None
            if version.run is None
            else f"{(version.run.ended_at - version.run.started_at).total_seconds():.0f}",
            f"{version.adapter.created_at:%Y-%m-%d %H:%M}",
        )
        for version in versions
    ]
    columns = [
        "adapter",
        "parameters",
        "bytes",
        "dataset",
        "begun from",
        "steps",
        "seconds",
        "published (UTC)",
    ]
    return _table(columns, rows) if rows else "<p>Nothing was learnt yet.</p>"


def _figures(report: TaskReport) -> str:
    """A table a protocol: figures of different protocols never stand in one."""
    parts = []
    for digest, found in report.evaluations.items():
        values = [figures(each.results) for each in found]
        names = list(dict.fromkeys(name for each in values for name in each))
        rows = [(name, *(each.get(name) for each in values)) for name in names]
        how = found[0].protocol
        parts.append(
            f"<h3>Protocol {escape(digest[:12])}</h3><p class='faint'>{escape(_in_words(found[0]))}</p>"
            + _table(["figure", *(each.adapter for each in found)], rows)
            + "".join(f"<p class='faint'>{escape(note)}</p>" for note in _notes(found))
            + "<details><summary>the whole protocol</summary>"
            f"<pre>{escape(json.dumps(how, indent=2, ensure_ascii=False))}</pre></details>"
        )
    if len(parts) > 1:
        parts.insert(0, "<p>Figures of different protocols are not comparable: a table each.</p>")
    return "".join(parts)


def _notes(found: Sequence[EvaluationRecord]) -> list[str]:
    """What was left out of evaluations, and why."""
    return [f"{each.adapter}: {note}" for each in found for note in each.results.get("notes", [])]


def _in_words(evaluation: EvaluationRecord) -> str:
    how = evaluation.protocol
    facts = [f"against {evaluation.reference}"]
    if "samples" in how:
        facts.insert(0, f"{how['samples']} samples")
    if isinstance(how.get("extractor"), dict):
        facts.append(f"looked at by {how['extractor'].get('name')}")
    return ", ".join(facts)


def _classes(report: TaskReport) -> str:
    """Of the newest version that was measured so: by its training, else by its newest evaluation."""
    about = "The share of samples that a classifier of the real images takes for the class asked for."
    measured = sorted((each for found in report.evaluations.values() for each in found), key=_recorded)
    for version in reversed(report.versions):
        evaluated = [each.results for each in reversed(measured) if each.adapter == version.adapter.ref]
        for results in (version.adapter.metrics, *evaluated):
            shares = recognition(results).by_class
            if shares and len(shares) == len(report.task.classes):
                about = (
                    "The share of samples that a classifier of the real images takes for the class asked for."
                )
                named = dict(zip(report.task.classes, shares, strict=True))
                return f"<p class='faint'>{escape(version.adapter.ref)}. {about}</p>{bars(named)}"
    return ""


def _recorded(evaluation: EvaluationRecord) -> int:
    """Later ones have higher numbers."""
    return evaluation.node_id


def _losses(versions: Sequence[Version]) -> str:
    from trainers.evaluation.continual import smoothed, steps_to

    curves = {version.adapter.ref: version.curve for version in versions if version.curve}
    if not curves:
        return ""
    chart = line_chart(
        {name: smoothed(curve) for name, curve in curves.items()}, "step", "loss", "Training loss over steps"
    )
    about = "<p class='faint'>Running mean of the training loss (L_simple).</p>"
    first, *later = curves
    if not later:
        return about + chart
    goal = smoothed(curves[first])[-1][1]
    rows = [
        (
            version.adapter.ref,
            version.adapter.warm_start or "afresh",
            steps_to(version.curve, goal) or "never",
        )
        for version in versions
        if version.curve
    ]
    told = f"<h3>Steps to the loss at which {escape(first)} ended ({goal:.4g})</h3>"
    return about + chart + told + _table(["adapter", "begun", "steps"], rows)


def _over_steps(report: TaskReport) -> str:
    """A chart a protocol that measured several versions: what the steps of each, on those before, came to."""
    parts = []
    for digest, lines in report.over_steps().items():
        drawn = line_chart(lines, "steps", "distance", "Distance over steps")
        parts.append(f"<h3>Protocol {escape(digest[:12])}</h3>{drawn}")
    about = "A version begun from another of this task counts that one's steps too. Lower is better."
    return f"<p class='faint'>{about}</p>{''.join(parts)}" if parts else ""


def _certificates(versions: Sequence[Version]) -> str:
    rows = [
        (version.adapter.ref, proof.level, len(proof.results.get("adapters", [])) if proof.proves else "–")
        for version in versions
        for proof in version.certificates
    ]
    return _table(["added", "level", "older adapters unchanged"], rows) if rows else ""


def _retention(found: dict[str, Any] | None) -> str:
    about = "What was learnt or forgotten is told so that more than 0 is more of it."
    return "".join(
        f"<h3>{escape(each.figure)}</h3><p class='faint'>R[stage, task]; {each.better}: {heat_key()}. "
        f"Average after the last stage: {each.average:.4g}. {about}</p><div class='wide'>{each.table}</div>"
        for each in shown(found)
    )


def _pictures(versions: Sequence[Version]) -> str:
    parts = []
    for version in reversed(versions):
        for name, path in version.pictures.items():
            about = f"{version.adapter.ref}: {name.removesuffix('.png')}"
            if name.startswith("nearest"):
                about += "; samples above, below each the training image that is nearest"
            parts.append(
                f'<figure><img alt="{escape(about)}" src="{_data(path)}">'
                f"<figcaption>{escape(about)}</figcaption></figure>"
            )
    return "".join(parts)


def _data(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _commands(report: TaskReport) -> str:
    name = report.task.name
    lines = [
        f"affinery task show {quote(name)}",
        f"affinery evaluate {quote(name)}",
        f"affinery task train {quote(name)}",
    ]
    if report.versions:
        lines.insert(0, f"affinery lineage {quote(report.versions[-1].adapter.ref)}")
    return f"<pre>{escape(chr(10).join(lines))}</pre>"
