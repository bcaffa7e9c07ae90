"""A task's report: one file that loads nothing and believes nobody."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from affinery_app.charts import heat_table, line_chart
from affinery_app.figures import figures
from affinery_app.report_page import page
from affinery_app.task_report import TaskReport, Version
from registry.records import (
    AdapterRecord,
    CertificateRecord,
    DatasetRecord,
    EvaluationRecord,
    RunRecord,
    TaskRecord,
)

EVIL = '<script>alert("1")</script> & \' "'
NOW = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)
NODE: dict[str, Any] = {"node_id": 1, "digest": "a" * 64, "created_at": NOW}


class Reader(HTMLParser):
    """Checks that a page is well-formed and takes down its tags, their attributes and its text."""

    VOID = ("meta", "img", "line", "polyline", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def version(tmp_path: Path, number: int, **changes: Any) -> Version:
    (tmp_path / "samples.png").write_bytes(b"a picture")
    adapter = AdapterRecord(
        **NODE,
        name=EVIL,
        version=number,
        task_id=1,
        backbone="dit@1",
        backbone_id=2,
        dataset=EVIL,
        dataset_id=3,
        block=(4, 6),
        kind="affiner",
        blob_digest="b" * 64,
        size_bytes=10,
        parameters=1000,
        config={},
        provenance={},
        metrics={"recognition": {"by_class": [0.5, 1.0]}},
        mlflow_run_id=None,
        golden_blob=None,
        run_id=None,
        warm_start=None,
        job_id=None,
        fence=None,
    )
    proof = CertificateRecord(
        **NODE, adapter=EVIL, adapter_id=1, level="bit-exact", results={"adapters": [1]}
    )
    curve = [(i, 1.0 / (i + number)) for i in range(1, 20)]
    made = Version(adapter, None, [proof], curve, {f"samples {EVIL}": tmp_path / "samples.png"})
    return replace(made, **changes)


def evaluated(digest: str, value: float) -> EvaluationRecord:
    return EvaluationRecord(
        **NODE,
        adapter=EVIL,
        adapter_id=1,
        reference=EVIL,
        reference_id=3,
        protocol={"extractor": {"name": EVIL}, "samples": 10},
        protocol_digest=digest,
        results={"FD[recogniser]": value, "KD[recogniser]": {"mean": 0.2, "low": 0.1, "high": 0.3}},
        job_id=None,
        fence=None,
    )


@pytest.fixture
def report(tmp_path: Path) -> TaskReport:
    """A task whose every name is an attack."""
    task = TaskRecord(
        **NODE,
        name=EVIL,
        backbone=EVIL,
        backbone_id=2,
        dataset=EVIL,
        dataset_id=3,
        kind="affiner",
        config={"rank": EVIL},
        condition={"name": EVIL},
        image_size=None,
        block=(4, 6),
        classes=(EVIL, "bag"),
        state="learnt",
        latest_version=2,
        predecessor=None,
    )
    dataset = DatasetRecord(
        **NODE,
        name=EVIL,
        version=1,
        dvc_path="digits",
        dvc_md5="c" * 32,
        classes=(EVIL, "bag"),
        class_counts=(1, 1),
        image_count=2,
        size_bytes=3,
        parent=None,
        licence=EVIL,
        source=EVIL,
    )
    matrix = {
        "figure": EVIL,
        "more_is_better": False,
        "stages": [EVIL],
        "tasks": [EVIL],
        "matrix": [[0.5]],
        "step_0": [None],
        "average": 0.5,
        "forgetting_first_last": {EVIL: 0.0},
        "forgetting_max_last": {EVIL: 0.0},
        "learnt_since_step_0": {EVIL: None},
        "recognition": None,
    }
    measured = {digest: [evaluated(digest, value)] for digest, value in (("d" * 64, 1.5), ("e" * 64, 2.5))}
    versions = [version(tmp_path, 1), version(tmp_path, 2)]
    return TaskReport(task, dataset, EVIL, {EVIL: EVIL}, versions, measured, matrix)


def test_what_users_wrote_is_text_and_never_markup(report: TaskReport) -> None:
    reader = read(page(report))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert reader.text.count(EVIL) > 15


def test_nothing_is_loaded_from_anywhere(report: TaskReport) -> None:
    text = page(report)
    reader = read(text)
    sources = [attributes["src"] for _, attributes in reader.tags if "src" in attributes]
    assert sources
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in sources)
    assert not any("href" in attributes for _, attributes in reader.tags)
    assert "url(" not in text
    assert "@import" not in text
    policies = [attributes["content"] for _, attributes in reader.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_page_has_colours_for_light_and_for_dark(report: TaskReport) -> None:
    text = page(report)
    assert "color-scheme: light dark" in text
    light, dark = text.split("prefers-color-scheme: dark")
    names = {part.split(":")[0] for part in light.split(":root")[1].split("--")[1:]}
    assert {"ink", "paper", "accent", "line-0", "line-5"} <= names
    assert all(f"--{name}:" in dark for name in ("ink", "paper", "accent", "line-0", "line-5"))


def test_figures_of_two_protocols_stand_in_tables_of_their_own(report: TaskReport) -> None:
    text = page(report)
    one, other = (text.index(f"Protocol {digit * 12}") for digit in "de")
    first, second = text[one:other], text[other:]
    assert ("1.5" in first, "2.5" in first) == (True, False)
    assert "2.5" in second
    assert "0.2 (0.1 to 0.3)" in first


def test_recognition_by_class_is_that_of_the_newest_evaluation_where_the_training_measured_none(
    report: TaskReport,
) -> None:
    bare = [replace(each, adapter=replace(each.adapter, metrics={})) for each in report.versions]
    assert "Recognition by class" not in read(page(replace(report, versions=bare))).text
    [digest, *_] = report.evaluations
    older = replace(report.evaluations[digest][-1], adapter=bare[-1].adapter.ref)
    shares = [{"recognition": {"by_class": [share, 1.0]}} for share in (0.25, 0.75)]
    newer = [replace(older, node_id=older.node_id + i, results=each) for i, each in enumerate(shares, 1)]
    told = {"f" * 64: [newer[1]], digest: [older], "0" * 64: [newer[0]]}
    text = page(replace(report, versions=bare, evaluations=told))
    chart = text[text.index("Recognition by class") :]
    assert "<td>75%</td>" in chart
    assert "<td>25%</td>" not in chart


def test_what_was_left_out_of_an_evaluation_is_told_below_its_figures(report: TaskReport) -> None:
    [digest, *_] = report.evaluations
    found = report.evaluations[digest][0]
    told = replace(found, results=found.results | {"notes": [f"recognition is left out: {EVIL}"]})
    text = read(page(replace(report, evaluations={digest: [told]}))).text
    assert f"{found.adapter}: recognition is left out: {EVIL}" in text


def test_a_task_that_learnt_nothing_yet_has_a_report_all_the_same(report: TaskReport) -> None:
    reader = read(page(replace(report, versions=[], evaluations={}, retention=None)))
    assert "Nothing was learnt yet." in reader.text
    assert "Figures" not in reader.text


def test_the_steps_to_the_first_versions_loss_are_told_for_each_later_one(report: TaskReport) -> None:
    text = read(page(report)).text
    assert "Steps to the loss at which" in text


def run_of(steps: int) -> RunRecord:
    return RunRecord(
        **NODE,
        job_id=None,
        task=EVIL,
        task_id=1,
        mlflow_run_id=None,
        mlflow_experiment=None,
        config={"steps": steps},
        seed=0,
        code_version="1",
        environment={},
        started_at=NOW,
        ended_at=NOW,
    )


def test_a_version_begun_from_another_stands_after_the_steps_of_both(report: TaskReport) -> None:
    first, second = (replace(each, run=run_of(300)) for each in report.versions)
    second = replace(second, adapter=replace(second.adapter, warm_start=first.adapter.ref))
    refs = first.adapter.ref, second.adapter.ref
    measured = [
        replace(evaluated("d" * 64, value), adapter=ref) for ref, value in zip(refs, (8, 2), strict=True)
    ]
    told = replace(report, versions=[first, second], evaluations={"d" * 64: measured})
    assert told.over_steps() == {"d" * 64: {"FD[recogniser]": [(300, 8), (600, 2)]}}
    text = page(told)
    chart = text[text.index("Distance over steps") :]
    assert "FD[recogniser]" in chart
    read(text)
    alone = replace(told, evaluations={"d" * 64: measured[:1]})
    assert "Distance over steps" not in page(alone)


def test_charts_stand_where_there_is_one_value_and_vanish_where_there_is_none() -> None:
    assert line_chart({}, "x", "y", "t") == ""
    read(line_chart({"a": [(1, 2.0)]}, "x", "y", "t"))
    assert '<td aria-label="not learnt yet"></td>' in heat_table([("a", [None])], ["b"], "c", True)


@pytest.mark.parametrize(("more_is_better", "shades"), [(True, ["0", "10"]), (False, ["10", "0"])])
def test_the_darkest_cell_of_a_column_is_its_best_whatever_the_other_columns_hold(
    more_is_better: bool, shades: list[str]
) -> None:
    table = heat_table([("first", [1.0, 500.0]), ("last", [2.0, 900.0])], ["a", "b"], "", more_is_better)
    found = re.findall(r'class="shade-(\d+)"', table)
    assert (found[0::2], found[1::2]) == (shades, shades)


def test_figures_of_quality_come_first_and_an_interval_is_one_line() -> None:
    found = figures({"nearest": {"distance": 0.5}, "samples": 3, "FD": 1.0, "x": {"by_class": [1]}})
    assert list(found) == ["FD", "nearest.distance", "samples"]
    assert figures({"KD": {"mean": 1, "low": 0, "high": 2}}) == {"KD": "1 (0 to 2)"}
