"""What goes wrong between the registry, the queue, Ray, MLflow and DVC."""

from __future__ import annotations

import errno
from shlex import quote

from affinery.errors import AffineryError, UserError, as_fields


class OrchestrationError(AffineryError):
    """A service that Affinery relies on did not do its part."""


class JobNotFound(OrchestrationError, UserError):
    """No job, or more than one, has an id that begins so. Args: id, how many."""

    def __str__(self) -> str:
        job_id, count = self.args
        what = "No job has an id that begins" if not count else "Several jobs have ids that begin"
        if job_id.isdecimal() and not count:
            return f"No job has the number {job_id}, or an id that begins so. List them: affinery job list"
        return f"{what} with {job_id!r}. List them: affinery job list"


class TaskIsBusy(OrchestrationError, UserError):
    """A task has a live job already. Args: task, its state."""

    def __str__(self) -> str:
        task, state = self.args
        return f"Task {task!r} is {state} already. Wait for it, or cancel its job first."


class TasksDoNotMatch(OrchestrationError, UserError):
    """Tasks that cannot train together. Args: task, reason."""

    def __str__(self) -> str:
        task, reason = self.args
        return f"These tasks cannot train together: {task!r} {reason}."


class NeedNotMet(OrchestrationError, UserError):
    """A job waits for another that will never be done. Args: that job, its tasks, its state, its error."""

    def __str__(self) -> str:
        job, tasks, state, error = self.args
        reason = f" ({error if len(error) <= 300 else error[:299] + '…'})" if error else ""
        return (
            f"It was to run after job {job[:8]} ({', '.join(tasks)}), which is {state}{reason}. "
            f"Schedule that again first, then this."
        )


class JobsWaitForEachOther(OrchestrationError, UserError):
    """Jobs of which each is to run after the next. Args: what they train, around the circle."""

    def __str__(self) -> str:
        circle = " after ".join(repr(name) for name in self.args[0])
        return f"These jobs would wait for each other for ever: {circle}. Take one `after` away."


class JobIsOver(OrchestrationError, UserError):
    """A job is not in a state for what was asked of it. Args: job, its state, what."""

    def __str__(self) -> str:
        job, state, what = self.args
        mend = {
            "dead": f"Take it up again: affinery job retry {job[:8]}",
            "cancelled": f"Take it up again: affinery job retry {job[:8]}",
            "done": f"See what it did, and ask for that anew: affinery job show {job[:8]}",
        }.get(state, f"Cancel it first: affinery job cancel {job[:8]}")
        return f"Job {job[:8]} is {state} and cannot be {what}. {mend}"


class LimitInvalid(OrchestrationError, UserError):
    """A limit of the queue that cannot be set. Args: limit, reason."""

    def __str__(self) -> str:
        limit, reason = self.args
        return f"The limit {limit} cannot be set: {reason}."


class ScheduleInvalid(OrchestrationError, UserError, here={1: as_fields}):
    """A schedule that cannot be kept. Args: name, reason."""

    def __str__(self) -> str:
        name, reason = self.args
        return f"The schedule {name!r} cannot be kept: {reason}."


class JobInvalid(OrchestrationError, UserError):
    """What a job is asked to do cannot be understood. Args: its kind, what is wrong, field by field."""

    def __str__(self) -> str:
        kind, found = self.args
        return f"{kind} cannot be done as it was asked for: {found.removesuffix('.')}. Ask for it anew."


class PlanInvalid(OrchestrationError, UserError, here={0: "The file"}):
    """A plan of tasks that cannot be read. Args: file, what is wrong, place by place."""

    def __str__(self) -> str:
        path, found = self.args
        return "\n  ".join([f"{path} cannot be read as a plan; nothing was scheduled:", *found])


class KeyTaken(OrchestrationError, UserError):
    """An idempotency key that another job has. Args: key, that job's number, its tasks, the new ones."""

    def __str__(self) -> str:
        key, number, there, wanted = self.args
        of = f" ({', '.join(there)})" if there else ""
        return (
            f"The key {key!r} is that of job {number}{of}; {', '.join(wanted)} cannot be scheduled with it. "
            f"Nothing was scheduled. Choose another key."
        )


class WorkersDied(OrchestrationError):
    """A job has outlived too many of its workers. Args: how many."""

    def __str__(self) -> str:
        return (
            f"{self.args[0]} workers were lost while they ran it; it may need more memory than there is. "
            f"Schedule it again with a smaller batch, or on a larger machine."
        )


class StageMoved(OrchestrationError):
    """Another job published on the same backbone while this one was being proved. Args: backbone."""

    def __str__(self) -> str:
        return (
            f"Another task was published on {self.args[0]} meanwhile; the proof is made again with it, "
            f"from the finished checkpoint."
        )


class DataUnwritable(OrchestrationError, here={0: "The data folder"}):
    """The folder of datasets takes nothing in. Args: folder, reason."""

    def __str__(self) -> str:
        folder, reason = self.args
        return (
            f"{folder} cannot take data in: {reason}. Nothing was added. Make room, or allow writing there."
        )


class LeaseLost(OrchestrationError):
    """The job belongs to another worker by now, or was cancelled. Args: job, fence."""

    def __str__(self) -> str:
        job, fence = self.args
        return f"Job {job} is no longer this worker's (fence {fence}): it was cancelled, or given to another."


class RayUnavailable(OrchestrationError, here={0: "the address that is set", 1: "the log says why"}):
    """Ray cannot be started or reached. Args: where, reason."""

    def __str__(self) -> str:
        where, reason = self.args
        return f"Ray on {where} cannot be used: {reason}"


class RayAddressInvalid(OrchestrationError, UserError, here={0: "what is set"}):
    """An address at which no driver can stand. Args: address."""

    def __str__(self) -> str:
        return (
            f"{self.args[0]!r} is no address of Ray that a worker can use. Trainings are submitted with "
            f"AFFINERY_RAY_ADDRESS=http://host:8265; on a node of the cluster it may be auto or host:port."
        )


class TrainingFailed(OrchestrationError, here={0: "the log says how"}):
    """A training ended with an error that is not one of ours. Args: reason."""

    def __str__(self) -> str:
        return f"The training failed: {self.args[0]}"


class DiskFull(OrchestrationError, here={0: "the job's folder"}):
    """No room for what a job keeps while it runs. Args: its folder."""

    def __str__(self) -> str:
        return (
            f"No space left on the disk of {self.args[0]}. What was saved before is whole; make room, "
            "and the job goes on from there."
        )

    @staticmethod
    def is_behind(error: BaseException) -> bool:
        """Whether an error of the system says so."""
        return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OlderTaskDisturbed(OrchestrationError):
    """An addition would change something older; it is not published. Args: what, how."""

    def __str__(self) -> str:
        what, how = self.args
        return (
            f"Nothing was published: {what} is not what it was ({how}). "
            f"Restore it from the store or a backup."
        )


class DatasetInvalid(OrchestrationError, UserError, here={0: "The dataset", 1: as_fields}):
    """A folder or a file that cannot be learnt from. Args: path, reason."""

    def __str__(self) -> str:
        path, reason = self.args
        return f"{path}: {reason}. Nothing was added."


class DatasetUnavailable(OrchestrationError, here={0: "the data folder", 1: "the log says why"}):
    """DVC cannot give back or take in a dataset. Args: where, reason."""

    def __str__(self) -> str:
        where, reason = self.args
        return f"DVC in {where} failed: {reason}"


class DriverDied(OrchestrationError, here={1: ""}):
    """The process of an attempt ended without a word. Args: how, its last lines."""

    def __str__(self) -> str:
        how, talk = self.args
        said = f" It said last: {talk}" if talk else ""
        return f"The process of this attempt {how}.{said}"


class AttemptFailed(OrchestrationError, here={0: "An error that is none of ours ended it; see its log."}):
    """An error of an attempt's process that is not one of ours. Args: what it said."""

    def __str__(self) -> str:
        return str(self.args[0])


class Requested(OrchestrationError):
    """An attempt ends because it was asked to. Args: what for (cancel, pause, release)."""

    def __str__(self) -> str:
        return f"It was asked to end ({self.args[0]}); its checkpoints are kept."


class FailpointReached(OrchestrationError):
    """A test had this attempt fail here. Args: the point."""

    def __str__(self) -> str:
        return f"Failpoint {self.args[0]!r} was reached."


class NeverFits(OrchestrationError, UserError, options=True):
    """A job needs more than there is. Args: job, what it needs, what there is."""

    def __str__(self) -> str:
        job, needs, there = self.args
        return (
            f"Job {job} needs {needs}, and {there}. Schedule it with less (--cpus, --gpus, --memory, "
            f"--workers), or start a worker on a larger machine."
        )


class TooLarge(OrchestrationError, UserError, options=True):
    """A training needs more memory than there is. Args: how much, of what, what there is, what would help."""

    def __str__(self) -> str:
        least, parts, there, advice = self.args
        return (
            f"This training needs at least {least} of memory ({', '.join(parts)}), and {there}. "
            f"Schedule it anew (affinery task train TASK) with one of: {'; '.join(advice)}."
        )


class OverLimit(OrchestrationError, UserError, options=True):
    """A job takes more memory than all jobs together may. Args: what, GiB, the limit, what helps, bytes."""

    def __str__(self) -> str:
        what, takes, limit, advice, size_bytes = self.args
        return (
            f"{what} {takes} of memory, and the queue's limit is {limit} for all jobs together: it would "
            f"wait for ever. Nothing was scheduled. Schedule it with one of: {'; '.join(advice)}. "
            f"Or raise the limit: affinery queue limit set resource memory_bytes {size_bytes}"
        )


class ExportRefused(OrchestrationError, UserError, here={2: as_fields}):
    """A composition that is not to be shipped. Args: composition, why, what to do."""

    def __str__(self) -> str:
        composition, why, how = self.args
        return f"{composition} is not exported: {why}. To mend it, {how}."


class NothingLearnt(OrchestrationError, UserError):
    """A backbone on which nothing was learnt yet. Args: backbone."""

    def __str__(self) -> str:
        (backbone,) = self.args
        add = f"affinery task add NAME --dataset NAME --backbone {quote(backbone)}"
        return f"Nothing was learnt on {backbone} yet. First: {add}, then: affinery run"


class OtherClasses(OrchestrationError, UserError):
    """An adapter that cannot be measured against a dataset. Args: adapter, dataset, what differs in words."""

    def __str__(self) -> str:
        adapter, dataset, changed = self.args
        return (
            f"{adapter} cannot be measured against {dataset}, which has other classes ({changed}). "
            "Name a dataset version with the classes that it learnt, in their order."
        )


class TooFewImages(OrchestrationError, UserError, options=True):
    """A task of which no distance can be measured. Args: task, of what there are too few, how many, how many
    are needed.
    """

    def __str__(self) -> str:
        task, what, count, least = self.args
        if what == "samples":
            return f"--samples {count} is too few for a distance of task {task!r}: ask for {least} or more."
        return (
            f"No distance of task {task!r} can be measured: of {what} it learns from {count} image(s), and "
            f"{least} are needed. Add images (affinery dataset add NAME FOLDER), then: "
            f"affinery dataset upgrade {quote(task)}"
        )


class TimedOut(OrchestrationError):
    """An attempt took longer than its job allows. Args: seconds, which attempt."""

    def __str__(self) -> str:
        seconds, attempt = self.args
        return (
            f"Attempt {attempt} took longer than the {seconds:g} s that its job allows; "
            f"its checkpoints are kept."
        )
