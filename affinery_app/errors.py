"""What the application refuses: workspaces that are not there or cannot be used."""

from __future__ import annotations

from affinery.errors import AffineryError, UserError


class WorkspaceMissing(UserError, here={0: "this folder"}):
    """There is no workspace. Args: folder."""

    def __str__(self) -> str:
        return f"There is no workspace in {self.args[0]}. Make one: affinery init. Or name one: --workspace"


class UrlNotTaken(UserError):
    """A service is meant, and what was asked for is done in a workspace. Args: address."""

    def __str__(self) -> str:
        return (
            f"AFFINERY_URL means the service at {self.args[0]}, and this command knows workspaces alone: "
            "name one with --workspace. What a service measures, verifies or rebases is a job: affinery "
            "job add verify, and its like"
        )


class WorkspaceInvalid(UserError, here={0: "The workspace's file"}):
    """A workspace's settings cannot be read. Args: path, reason."""

    def __str__(self) -> str:
        path, reason = self.args
        return f"{path} cannot be used: {reason}."


class WorkspaceUnusable(UserError, here={0: "itself"}):
    """A workspace cannot be made or written. Args: folder, reason."""

    def __str__(self) -> str:
        folder, reason = self.args
        mend = "Free space, or choose a folder that you may write."
        return f"The workspace {folder} cannot be written: {reason}. {mend}"


class DemoIncomplete(AffineryError):
    """The demo did not come to its end. Args: what is lacking, reason."""

    def __str__(self) -> str:
        what, reason = self.args
        return (
            f"The demo could not finish: {what} ({reason}). Run the same command again; it goes on from here."
        )
