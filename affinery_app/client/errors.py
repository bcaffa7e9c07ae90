"""What a client says when the service refuses, or cannot be reached."""

from __future__ import annotations

from affinery.errors import AffineryError, UserError
from affinery_app.errors import WorkspaceMissing

NOT_KNOWN = (
    "The service takes no one without a token that is active. A command has it in AFFINERY_TOKEN, "
    "affinery.Client as token=…. Where the service runs one is made: affinery token create NAME"
)


class ServiceRefused(UserError):
    """The service answered with a problem. Args: status, title, detail, type."""

    @property
    def status(self) -> int:
        """The HTTP status, as 404."""
        return int(self.args[0])

    @property
    def type(self) -> str:
        """What went wrong, for programs: urn:affinery:not-found."""
        return str(self.args[3])

    def __str__(self) -> str:
        return str(self.args[2]) or str(self.args[1])


class NoWorkspace(WorkspaceMissing):
    """The same, for who writes Python. Args: folder."""

    def __str__(self) -> str:
        (folder,) = self.args
        return (
            f"There is no workspace in {folder}. Name another, or make one: affinery.Client.init({folder!r})"
        )


class ServiceUnreachable(AffineryError):
    """No service answers. Args: address, reason."""

    def __str__(self) -> str:
        address, reason = self.args
        return f"No service answers at {address}: {reason}. Start one there: affinery serve"


class JobNotDone(AffineryError):
    """A job that was waited for ended otherwise. Args: number, state, error."""

    def __str__(self) -> str:
        number, state, error = self.args
        return f"Job {number} is {state}" + (f": {error}" if error else ".")


class StillRunning(AffineryError):
    """A job that was waited for is not over yet. Args: number, state, seconds."""

    def __str__(self) -> str:
        number, state, seconds = self.args
        return f"Job {number} is {state} after {seconds:g} s. Wait longer, or see that a worker runs."


class WorksElsewhere(UserError):
    """A service's jobs are done by its workers. Args: address."""

    def __str__(self) -> str:
        return f"Jobs of {self.args[0]} are done by its workers: start one beside it with affinery worker."


class DownloadUnsafe(AffineryError):
    """An archive that would write outside its folder. Args: what, why."""

    def __str__(self) -> str:
        return f"{self.args[0]} is not unpacked: {self.args[1]}."
