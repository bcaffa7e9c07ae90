"""MLflow: what the spool kept is there, runs of ended jobs have ended, what was published is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from affinery.counting import counted
from orchestration import queue
from orchestration.jobs import JobRecord
from orchestration.reconcile.findings import Finding, Progress
from orchestration.services import Services
from orchestration.tracking import Tracking, compositions, trainings
from orchestration.tracking.replay import KEY_TAG, gone
from orchestration.tracking.spool import REFUSED
from registry import adapters
from registry import compositions as recorded
from registry.records import AdapterRecord

if TYPE_CHECKING:
    from mlflow.entities import Run

NAME = "mlflow"
STATUSES = {"done": "FINISHED", "cancelled": "KILLED", "dead": "FAILED", "failed": "FAILED"}
PAGE = 500


def reconcile(services: Services, dry_run: bool, on_progress: Progress) -> Iterator[Finding]:
    tracking = services.tracking
    with services.sessions.read() as session:
        jobs = {job.id: job for job in queue.list_all(session)}
        learnt = adapters.list_all(session)
    yield from _ended(tracking, jobs, learnt, dry_run)
    yield from _compositions(services, dry_run)
    if not _there(tracking):
        reason = (
            f"it does not answer ({tracking.last_error}); {tracking.pending()} runs wait in {tracking.spool}"
        )
        yield Finding(
            NAME, tracking.uri, reason, mend="start it; what waits is sent by the next run of anything"
        )
        return
    yield from _sent(tracking, dry_run)
    waiting = tracking.kept.pending()  # of these it is said already
    keys = [key for key in tracking.kept.begun() if key not in waiting]
    for done, key in enumerate(keys, start=1):
        yield from _kept(tracking, key, dry_run)
        on_progress(done, len(keys))
    yield from _open(tracking, jobs, {*keys, *waiting}, dry_run)
    yield from _unknown(tracking, learnt)


def _there(tracking: Tracking) -> bool:
    try:
        tracking.client().search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001 - whatever it raises, it is not there
        tracking.last_error = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        return False
    return True


def _ended(
    tracking: Tracking, jobs: Mapping[str, JobRecord], learnt: Sequence[AdapterRecord], dry_run: bool
) -> Iterator[Finding]:
    """Jobs that ended while nobody could tell MLflow so: their driver died right after the commit, say."""
    for job in jobs.values():
        status = STATUSES.get(job.state)
        keys = [key for key in trainings.keys_of(job).values() if tracking.kept.knows(key)]
        if status is None or not keys or all(_last_status(tracking, key) == status for key in keys):
            continue
        published = [record for record in learnt if record.job_id == job.id and record.task in job.tasks]
        if not dry_run:
            if job.state == "done":
                trainings.conclude(tracking, job, published)
            else:
                trainings.end(tracking, job, status)
        what = f"its job is {job.state}, and left {counted(len(keys), 'run')} open"
        done = f"they end as {status}" + (", their adapters registered" if published else "")
        yield Finding(NAME, f"job {job.id[:8]} ({', '.join(job.tasks)})", what, done)


def _last_status(tracking: Tracking, key: str) -> str | None:
    ends = [op["status"] for op in tracking.kept.operations(key) if op["op"] == "finish"]
    return ends[-1] if ends else None


def _compositions(services: Services, dry_run: bool) -> Iterator[Finding]:
    with services.sessions.read() as session:
        records = recorded.list_all(session)
    for record in records:
        if not services.tracking.kept.knows(compositions.key_of(record)):
            if not dry_run:
                compositions.tell(services.tracking, services.sessions, record)
            yield Finding(NAME, f"composition {record.ref}", "it is no model in MLflow", "it was registered")


def _sent(tracking: Tracking, dry_run: bool) -> Iterator[Finding]:
    waiting = tracking.kept.pending()
    if waiting and not dry_run:
        tracking.flush_all()
    left = set(tracking.kept.pending()) if not dry_run else set()
    for key in waiting:
        if key in left:
            mend = f"MLflow says: {tracking.last_error}. Mend that, then: affinery reconcile"
            yield Finding(NAME, f"run {_name(tracking, key)}", "not everything of it has arrived", mend=mend)
        else:
            yield Finding(NAME, f"run {_name(tracking, key)}", "it waited in the spool", "it was sent")


def _kept(tracking: Tracking, key: str, dry_run: bool) -> Iterator[Finding]:
    """Whether MLflow still has what it was told; else it is told again."""
    folder = tracking.spool / key
    if (folder / REFUSED).exists():
        mend = f"read it, then delete it: {folder / REFUSED}"
        yield Finding(NAME, f"run {_name(tracking, key)}", "MLflow refuses a part of it", mend=mend)
    run_id = tracking.run_id(key)
    if run_id is None:
        return
    if _deleted(tracking, run_id):
        if not dry_run:
            tracking.client().restore_run(run_id)
        yield Finding(NAME, f"run {_name(tracking, key)}", "it was deleted in MLflow", "it was restored")
    lacking = _lacking(tracking, run_id, tracking.kept.operations(key))
    if not lacking:
        return
    where, what = f"run {_name(tracking, key)}", f"MLflow lacks {', '.join(lacking)}"
    if not dry_run:
        tracking.replay_anew(key)
        tracking.flush(key)
        found = tracking.run_id(key)
        if found is None or _lacking(tracking, found, tracking.kept.operations(key)):
            reason = tracking.last_error or "what is told arrives, and is not there then"
            mend = f"MLflow does not keep it: {reason}"
            yield Finding(NAME, where, what, mend=mend)
            return
    yield Finding(NAME, where, what, "it was told again")


def _deleted(tracking: Tracking, run_id: str) -> bool:
    """Whether it lies in MLflow's bin; what is gone for good is lacking."""
    try:
        return bool(tracking.client().get_run(run_id).info.lifecycle_stage == "deleted")
    except Exception as error:
        if gone(error):
            return False
        raise


def _lacking(tracking: Tracking, run_id: str, operations: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of a run's operations MLflow does not have: by its newest points, parameters, tags and end."""
    try:
        run = tracking.client().get_run(run_id)
    except Exception as error:
        if gone(error):
            return ["the whole run"]
        raise
    newest: dict[str, int] = {}
    params: set[str] = set()
    tags: set[str] = set()
    status = "RUNNING"
    for operation in operations:
        match operation["op"]:
            case "metrics":
                for name, _, step, _ in operation["points"]:
                    newest[name] = max(step, newest.get(name, step))
            case "params":
                params |= operation["values"].keys()
            case "tags":
                tags |= operation["values"].keys()
            case "finish":
                status = operation["status"]
            case _:
                pass
    client = tracking.client()
    lost = [
        name
        for name, step in newest.items()
        if name not in run.data.metrics
        or max(point.step for point in client.get_metric_history(run_id, name)) < step
    ]
    found = [f"points of {', '.join(lost)}"] if lost else []
    found += ["parameters"] if params - run.data.params.keys() else []
    found += ["tags"] if tags - run.data.tags.keys() else []
    return found + (["its end"] if status != run.info.status else [])


def _open(
    tracking: Tracking, jobs: Mapping[str, JobRecord], spooled: set[str], dry_run: bool
) -> Iterator[Finding]:
    """Runs that are open in MLflow, of jobs that ended, and of which this machine has no spool."""
    for run in _running(tracking):
        key, job = run.data.tags.get(KEY_TAG), jobs.get(run.data.tags.get("affinery.job", ""))
        if key is None or key in spooled:
            continue
        where = f"run {run.info.run_name} ({run.info.run_id})"
        if job is None:
            mend = "another registry's, perhaps; end it in MLflow if not"
            yield Finding(NAME, where, "it is open, and the registry has no such job", mend=mend)
        elif (status := STATUSES.get(job.state)) is not None:
            if not dry_run:
                tracking.client().set_terminated(run.info.run_id, status)
            yield Finding(NAME, where, f"it is open, and its job is {job.state}", f"it ends as {status}")


def _running(tracking: Tracking) -> Iterator[Run]:
    client = tracking.client()
    experiment = client.get_experiment_by_name(trainings.EXPERIMENT)
    token = None
    while experiment is not None:
        query = "attributes.status = 'RUNNING'"
        page = client.search_runs([experiment.experiment_id], query, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _unknown(tracking: Tracking, learnt: Sequence[AdapterRecord]) -> Iterator[Finding]:
    """Adapters without their run: published rows never change; the key in the provenance leads to it."""
    client = tracking.client()
    experiment = client.get_experiment_by_name(trainings.EXPERIMENT)
    for record in learnt:
        key = record.provenance.get("tracking_key")
        if record.mlflow_run_id is not None or not isinstance(key, str) or tracking.run_id(key) is not None:
            continue
        tagged = f"tags.`{KEY_TAG}` = '{key}'"
        if experiment is None or not client.search_runs([experiment.experiment_id], tagged, max_results=1):
            mend = "nothing is kept of it here; bring its spool back from where it was trained"
            yield Finding(NAME, f"adapter {record.ref}", "MLflow has no run of it", mend=mend)


def _name(tracking: Tracking, key: str) -> str:
    begun = next((op for op in tracking.kept.operations(key) if op["op"] == "create"), {"name": key})
    return str(begun["name"])
