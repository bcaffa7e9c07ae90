"""What the HTTP API refuses by itself; all else are the errors of what it speaks for."""

from __future__ import annotations

from affinery.errors import UserError


class PreconditionFailed(UserError):
    """It changed since it was read. Args: what, its ETag now (or none)."""

    def __str__(self) -> str:
        what, now = self.args
        return f"{what} is not what If-Match says: it changed, and is {now} now. Read it again, then decide."


class PreconditionRequired(UserError):
    """A change that does not say what it expects to find. Args: what."""

    def __str__(self) -> str:
        return (
            f"Say what {self.args[0]} means now: If-Match with the ETag that was read, If-Match: * for "
            "whatever it means, or If-None-Match: * for nothing."
        )


class UploadDiffers(UserError):
    """Bytes that are not those that were announced. Args: announced digest, found digest."""

    def __str__(self) -> str:
        announced, found = self.args
        return f"The bytes hash to {found}, not to {announced}. Nothing was kept; send them again."


class ListensOpenly(UserError):
    """A service that anybody could reach, without a token. Args: host."""

    def __str__(self) -> str:
        return (
            f"Without a token nothing listens on {self.args[0]}, which others can reach. Make one: affinery "
            "token create NAME --scope admin; or set AFFINERY_TOKEN to a secret of 16 characters or more; or "
            "listen on 127.0.0.1."
        )


class ScopeMissing(UserError):
    """A token that may not do this. Args: its name, its scope, the scope that is needed."""

    def __str__(self) -> str:
        name, scope, wanted = self.args
        return f"The token {name!r} has the scope {scope}; this needs {wanted}. Ask for a token that has it."


class NotGranted(UserError):
    """A token that may change certain tasks only. Args: its name, what was to be changed, its tasks."""

    def __str__(self) -> str:
        name, wanted, granted = self.args
        return f"The token {name!r} may change only what belongs to {granted}, and this concerns {wanted}."


class TokenInvalid(UserError):
    """A token that protects nothing. Args: reason."""

    def __str__(self) -> str:
        return f"The service's token cannot be used: {self.args[0]}."
