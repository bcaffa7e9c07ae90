"""What the registry's functions promise, on SQLite and on PostgreSQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import (
    adapters,
    backbones,
    blobs,
    certificates,
    compositions,
    datasets,
    errors,
    events,
    exports,
    runs,
    tasks,
)
from registry.columns import utc_now
from registry.models import Blob, Job, Node, Series, Upload
from registry.session import Sessions
from tests import registry_world as world


def count(session: Session, table: Any) -> int:
    return session.scalar(select(func.count()).select_from(table)) or 0


# --- backbones and datasets ------------------------------------------------------------------------


def test_a_backbone_registered_twice_is_one_record_and_another_fingerprint_is_the_next_version(
    ledger: Sessions,
) -> None:
    with ledger.begin() as session:
        first = world.backbone(session)
        again = world.backbone(session)
        second = world.backbone(session, salt="retrained", parent="dit@1")
    assert again == first
    assert (first.ref, second.ref, second.parent) == ("dit@1", "dit@2", "dit@1")
    assert first.fingerprint == first.digest
    with ledger.read() as session:
        assert backbones.get(session, "dit") == second
        assert backbones.get(session, "backbone:dit@v1") == first
        assert backbones.list_all(session) == [first, second]


@pytest.mark.parametrize(
    "given", [{"fingerprint": "abc"}, {"fingerprint": "A" * 64}, {"null_index": 9}, {"num_classes": -1}]
)
def test_a_backbone_that_contradicts_itself_is_refused_and_nothing_is_recorded(
    ledger: Sessions, given: dict[str, Any]
) -> None:
    with pytest.raises(errors.RecordInvalid), ledger.begin() as session:
        world.backbone(session, **given)
    with ledger.read() as session:
        assert [count(session, table) for table in (Node, Series, Blob)] == [0, 0, 0]


def test_a_backbone_that_does_not_exist_is_answered_with_the_nearest_name(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.backbone(session, "small-dit")
    for ref in ("smal-dit", "small-dit@7"):
        with (
            pytest.raises(errors.NotFound, match=r"Did you mean 'small-dit(@1)?'\?"),
            ledger.read() as session,
        ):
            backbones.get(session, ref)
    with pytest.raises(errors.RefInvalid, match="a backbone is wanted"), ledger.read() as session:
        backbones.get(session, "dataset:small-dit")


def test_a_dataset_keeps_its_classes_in_order_in_unicode_s_composed_form(ledger: Sessions) -> None:
    with ledger.begin() as session:
        made = datasets.register(
            session,
            name="Blumen im Frühling",
            digest=world.sha("flowers"),
            dvc_md5="x.dir",
            dvc_path="data/flowers",
            size_bytes=10,
            image_count=6,
            classes=["Veilchen", "Gänseblümchen", "日本 桜"],
            class_counts=[1, 2, 3],
            licence="CC0-1.0",
            source="",
        )
    assert made.name == "Blumen im Frühling"
    assert made.classes == ("Veilchen", "Gänseblümchen", "日本 桜")
    assert made.class_counts == (1, 2, 3)
    with ledger.read() as session:
        assert datasets.get(session, "Blumen im Frühling") == made


@pytest.mark.parametrize(
    ("classes", "counts", "images"),
    [
        ([], [], 0),
        (["a", "a"], [1, 1], 2),
        (["é", "é"], [1, 1], 2),
        (["a"], [1], 2),
        (["a"], [-1], -1),
        (["a"], [], 1),
    ],
)
def test_a_dataset_whose_classes_do_not_add_up_is_refused(
    ledger: Sessions, classes: list[str], counts: list[int], images: int
) -> None:
    with pytest.raises(errors.RecordInvalid), ledger.begin() as session:
        datasets.register(
            session,
            name="odd",
            digest=world.sha("odd"),
            dvc_md5="",
            dvc_path="",
            size_bytes=1,
            image_count=images,
            classes=classes,
            class_counts=counts,
            licence="",
            source="",
        )


def test_a_dataset_s_new_content_is_its_next_version_and_its_old_content_again_is_the_old_one(
    ledger: Sessions,
) -> None:
    with ledger.begin() as session:
        first = world.dataset(session)
        second = world.dataset(session, salt="more images")
        assert world.dataset(session) == first
    assert (first.ref, second.ref) == ("digits@1", "digits@2")


# --- tasks -----------------------------------------------------------------------------------------


def test_each_task_s_class_rows_come_after_everything_already_there(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.backbone(session, "dit")
        world.backbone(session, "unet")
        blocks = [world.task(session, name, classes=n).block for name, n in (("a", 3), ("b", 1), ("c", 200))]
        elsewhere = world.task(session, "d", on="unet").block
    assert blocks == [(11, 14), (14, 15), (15, 215)]
    assert elsewhere == (11, 14)


def test_a_task_name_used_twice_is_refused_and_nothing_changes(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.backbone(session, "dit")
        world.backbone(session, "unet")
        world.task(session, "digits")
    with ledger.read() as session:
        before = [tasks.list_all(session), count(session, Node), len(events.list_after(session))]
    for backbone in ("dit", "unet"):
        with (
            pytest.raises(errors.TaskExists, match="already a task named 'digits'"),
            ledger.begin() as session,
        ):
            tasks.register(
                session, name="digits", backbone=backbone, dataset="digits", kind="lora", config={}
            )
    with ledger.read() as session:
        assert [tasks.list_all(session), count(session, Node), len(events.list_after(session))] == before


def test_a_task_on_a_backbone_or_dataset_that_does_not_exist_is_refused(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        world.dataset(session)
    for backbone, dataset, noun in (("dti", "digits", "backbone"), ("dit", "digit", "dataset")):
        with pytest.raises(errors.NotFound, match=f"no {noun}"), ledger.begin() as session:
            tasks.register(session, name="t", backbone=backbone, dataset=dataset, kind="affiner", config={})


def test_a_task_s_state_follows_its_jobs_and_adapters(ledger: Sessions) -> None:
    def state() -> str:
        with ledger.read() as session:
            return tasks.get(session, "digits").state

    def turn(job: str, to: str) -> None:
        with ledger.begin() as session:
            session.get_one(Job, job).state = to

    with ledger.begin() as session:
        world.backbone(session)
        world.task(session)
    assert state() == "registered"
    with ledger.begin() as session:
        world.job(session, "one", "digits", state="queued")
    assert state() == "scheduled"
    turn("one", "running")
    assert state() == "learning"
    turn("one", "dead")
    assert state() == "failed"
    with ledger.begin() as session:
        world.learnt(session, "digits")
    assert state() == "learnt"
    with ledger.begin() as session:
        world.job(session, "two", "digits")
    assert state() == "learning"
    turn("two", "dead")
    assert state() == "learnt"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, "\ud800", "a\0b"])
def test_a_config_that_is_not_plain_json_is_refused_alike_on_both_engines(
    ledger: Sessions, value: Any
) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        world.dataset(session)
    with pytest.raises(errors.RecordInvalid, match="The task's config"), ledger.begin() as session:
        tasks.register(
            session, name="t", backbone="dit", dataset="digits", kind="affiner", config={"lr": value}
        )


# --- adapters --------------------------------------------------------------------------------------


def test_a_published_adapter_names_everything_it_was_made_from(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        first = world.learnt(session, "digits", 1)
        world.job(session, "second", "digits")
        run = world.run(session, "second", "digits")
        second = world.publish(session, "second", "digits", warm_start="digits@1")
    assert (first.ref, second.ref, second.task) == ("digits@1", "digits@2", "digits")
    assert (second.backbone, second.dataset, second.warm_start) == ("dit@1", "digits@1", "digits@1")
    assert (second.run_id, second.job_id, second.fence, second.block) == (run, "second", 1, first.block)
    with ledger.read() as session:
        assert adapters.get(session, "digits") == second
        assert adapters.get(session, "digits@1") == first
        assert adapters.list_all(session, task="digits") == [first, second]
        assert adapters.list_all(session, backbone="dit@1") == [first, second]
        assert [record.node_id for record in runs.list_all(session, task="digits")] == [first.run_id, run]
        assert tasks.get(session, "digits").latest_version == 2


def test_publishing_the_same_result_again_changes_nothing_even_after_the_job_is_done(
    ledger: Sessions,
) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        first = world.learnt(session, "digits")
    with ledger.begin() as session:
        assert world.publish(session, "job-digits-1", "digits") == first
        assert world.run(session, "job-digits-1", "digits") == first.run_id
    with ledger.read() as session:
        assert adapters.list_all(session) == [first]
        assert len(events.list_after(session, kind="adapter.published")) == 1


def test_a_worker_whose_job_was_given_to_another_cannot_publish(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        world.task(session)
        world.job(session, "one", "digits", fence=2)
    with (
        pytest.raises(errors.StaleFence, match="fence 2, and this result carries fence 1"),
        ledger.begin() as session,
    ):
        world.publish(session, "one", "digits", fence=1)
    with ledger.begin() as session:
        published = world.publish(session, "one", "digits", fence=2)
    assert published.version == 1


@pytest.mark.parametrize("state", ["queued", "done", "dead", "cancelled"])
def test_a_job_that_does_not_run_cannot_publish(ledger: Sessions, state: str) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        world.task(session)
        world.job(session, "one", "digits", state=state)
    with pytest.raises(errors.StaleFence, match=f"is {state}"), ledger.begin() as session:
        world.publish(session, "one", "digits")


def test_a_job_cannot_publish_for_a_task_it_does_not_train_nor_one_that_does_not_exist(
    ledger: Sessions,
) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        world.task(session, "digits")
        world.task(session, "faces")
        world.job(session, "one", "digits")
    with pytest.raises(errors.RecordInvalid, match="does not train"), ledger.begin() as session:
        world.publish(session, "one", "faces")
    with pytest.raises(errors.NotFound, match="no job 'two'"), ledger.begin() as session:
        world.publish(session, "two", "digits")


def test_a_publication_that_fails_gives_its_version_number_to_nobody_and_leaves_nothing(
    ledger: Sessions,
) -> None:
    with ledger.begin() as session:
        world.backbone(session)
        world.task(session)
        world.job(session, "one", "digits")
    with pytest.raises(errors.BlobUnknown), ledger.begin() as session:
        world.publish(session, "one", "digits", golden_blob=world.sha("never committed"))
    with pytest.raises(ZeroDivisionError), ledger.begin() as session:  # noqa: PT012 - undone whole
        world.publish(session, "one", "digits")
        raise ZeroDivisionError
    with ledger.read() as session:
        assert adapters.list_all(session) == []
        assert not blobs.known(session, world.sha("adapter file one digits"))
    with ledger.begin() as session:
        assert world.publish(session, "one", "digits").version == 1


def test_a_refusal_of_the_database_is_told_in_its_own_words(ledger: Sessions) -> None:
    with ledger.begin() as session:
        adapter = world.learnt_on_new_backbone(session)
    with (
        pytest.raises(errors.Refused, match="a published node row is never changed"),
        ledger.begin() as session,
    ):
        session.get_one(Node, adapter.node_id).kind = "dataset"


# --- certificates, compositions, exports -----------------------------------------------------------


def test_certificates_stand_with_the_adapter_they_were_made_for(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.learnt_on_new_backbone(session)
        made = certificates.record(
            session, stage_adapter="digits", results={"replay": {"equal": True}}, level="bit-exact"
        )
        again = certificates.record(
            session, stage_adapter="digits@1", results={"replay": {"equal": True}}, level="bit-exact"
        )
        assert again == made
        with pytest.raises(errors.RecordInvalid):
            certificates.record(session, stage_adapter="digits", results={}, level="likely")  # type: ignore[arg-type]
    with ledger.read() as session:
        assert certificates.list_for(session, "digits") == [made]


def test_a_composition_again_is_the_same_and_other_members_are_its_next_version(ledger: Sessions) -> None:
    def compose(session: Session, *members: str) -> Any:
        return compositions.register(
            session, name="all", backbone="dit", mode="routed", recipe={}, members=members
        )

    with ledger.begin() as session:
        world.backbone(session)
        for name in ("digits", "faces"):
            world.learnt(session, name)
        first = compose(session, "digits", "faces")
        assert compose(session, "digits@1", "adapter:faces") == first
        second = compose(session, "faces")
        assert compose(session, "digits", "faces") == first
    assert (first.ref, first.members) == ("all@1", ("digits@1", "faces@1"))
    assert (second.ref, second.members) == ("all@2", ("faces@1",))
    with ledger.read() as session:
        assert compositions.get(session, "all") == second
        assert compositions.list_all(session) == [first, second]


def test_a_composition_that_cannot_be_is_refused_with_the_reason(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.backbone(session, "dit")
        world.backbone(session, "unet")
        world.learnt(session, "digits", 1)
        world.learnt(session, "digits", 2)
        world.learnt(session, "birds", on="unet")
    for members, reason in (
        (["digits", "birds"], "belongs to backbone unet@1, not to dit@1"),
        (["digits@1", "digits@2"], "are of one task"),
        (["digits@1", "digits@1"], "are of one task"),
        ([], "no members"),
    ):
        with pytest.raises(errors.RecordInvalid, match=reason), ledger.begin() as session:
            compositions.register(
                session, name="x", backbone="dit", mode="routed", recipe={}, members=members
            )
    with ledger.read() as session:
        assert compositions.list_all(session) == []


def test_a_composition_of_sixty_members_is_recorded_in_order(ledger: Sessions) -> None:
    names = [f"task {number:03}" for number in range(60)]
    with ledger.begin() as session:
        world.backbone(session)
        for name in names:
            world.task(session, name, classes=1)
            world.job(session, name, name)
            world.publish(session, name, name)
        made = compositions.register(
            session, name="all", backbone="dit", mode="routed", recipe={}, members=names
        )
    assert made.members == tuple(f"{name}@1" for name in names)


def test_exports_count_by_themselves_under_the_name_of_their_composition(ledger: Sessions) -> None:
    def export(session: Session, path: str) -> Any:
        return compositions.record_export(
            session, composition="all", format="bundle", digest=world.sha("bytes"), path=path, size_bytes=9
        )

    with ledger.begin() as session:
        world.learnt_on_new_backbone(session)
        made = compositions.register(
            session, name="all", backbone="dit", mode="routed", recipe={}, members=["digits"]
        )
        first, again, second = export(session, "/a"), export(session, "/a"), export(session, "/b")
    assert again == first
    assert (first.ref, second.ref, second.composition) == ("all@1", "all@2", "all@1")
    with ledger.read() as session:
        assert exports.get(session, "all@1") == first
        assert exports.list_all(session, composition_id=made.node_id) == [first, second]
        with pytest.raises(errors.NotFound):
            exports.get(session, "none")


# --- events and blobs ------------------------------------------------------------------------------


def test_every_change_appends_its_event_and_a_change_undone_appends_none(ledger: Sessions) -> None:
    with ledger.begin() as session:
        adapter = world.learnt_on_new_backbone(session)
    with pytest.raises(errors.TaskExists), ledger.begin() as session:  # noqa: PT012 - undone whole
        world.task(session, "undone")
        world.task(session, "digits")
    with ledger.read() as session:
        happened = events.list_after(session)
        kinds = [event.kind for event in happened if event.kind != "blob.committed"]
        assert kinds == [
            *("backbone.registered", "dataset.registered", "task.registered"),
            *("run.recorded", "adapter.published"),
        ]
        assert [event.id for event in happened] == sorted(event.id for event in happened)
        assert events.list_after(session, happened[0].id, limit=1) == [happened[1]]
        assert [event.kind for event in events.list_after(session, subject=adapter.node_id)] == [
            "adapter.published"
        ]
        assert happened[-1].to_json()["payload"]["ref"] == "digits@1"


def test_an_upload_holds_a_lease_until_it_is_committed_or_its_time_is_over(ledger: Sessions) -> None:
    with ledger.begin() as session:
        lease = blobs.begin_upload(session, "worker 1")
        forgotten = blobs.begin_upload(session, "worker 2", lease_seconds=0)
    with ledger.read() as session:
        assert [upload.id for upload in blobs.live_uploads(session)] == [lease.id]
        assert forgotten.expires_at - forgotten.started_at == timedelta(0)
    with ledger.begin() as session:
        blobs.commit(session, world.sha("bytes"), 5, upload_id=lease.id)
        blobs.end_upload(session, forgotten.id)
    with ledger.read() as session:
        assert blobs.live_uploads(session) == []
        assert count(session, Upload) == 0
        assert blobs.known(session, world.sha("bytes"))


def test_a_blob_is_in_use_when_a_published_row_names_it(ledger: Sessions) -> None:
    with ledger.begin() as session:
        adapter = world.learnt_on_new_backbone(session)
        blobs.commit(session, world.sha("nobody's"), 5)
        blobs.commit(session, world.sha("nobody's"), 5)
        with pytest.raises(errors.RecordInvalid, match="5 bytes, not 6"):
            blobs.commit(session, world.sha("nobody's"), 6)
    with ledger.read() as session:
        assert blobs.in_use(session, adapter.blob_digest)
        assert not blobs.in_use(session, world.sha("nobody's"))


def test_instants_come_back_aware_and_in_utc(ledger: Sessions) -> None:
    before = utc_now()
    with ledger.begin() as session:
        adapter = world.learnt_on_new_backbone(session)
    with ledger.read() as session:
        run = runs.by_id(session, adapter.run_id or 0)
        assert run.started_at == world.NOON
        assert str(run.started_at.tzinfo) == "UTC"
        assert before <= adapters.get(session, "digits").created_at <= utc_now()


def test_a_reading_transaction_cannot_write(ledger: Sessions) -> None:
    with pytest.raises(errors.RegistryReadOnly), ledger.read() as session:
        world.backbone(session)
    with ledger.begin() as session:
        world.backbone(session)


def test_a_reading_transaction_sees_one_moment(ledger: Sessions) -> None:
    with ledger.read() as reader:
        assert backbones.list_all(reader) == []
        with ledger.begin() as writer:
            world.backbone(writer)
        assert backbones.list_all(reader) == []
