"""What the HTTP API refuses by itself; all else are the errors of what it speaks for."""

from __future__ import annotations

from affinery.errors import UserError


class PreconditionFailed(UserError):
    """It changed since it was read. Args: what, its ETag now (or none)."""

    def __str__(self) -> str:
        what, now = self.args
        told = f"the ETag of {what} is {now} now, which is not what If-Match says"
        return f"It changed: {told}. Read it again, then decide."


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
        return (
            f"The bytes hash to {found}, not to {announced}. Nothing was made of them: say the digest that "
            "is theirs, or send them anew."
        )


class UploadMoved(UserError):
    """A part that does not follow what is there. Args: upload, where it ends, where the part begins."""

    def __str__(self) -> str:
        upload, size, offset = self.args
        return f"The upload {upload} has {size} bytes, and this part begins at {offset}. Go on at {size}."


class UploadOverlong(UserError):
    """A part that goes past what was announced. Args: upload, announced bytes, where the part begins."""

    def __str__(self) -> str:
        upload, announced, offset = self.args
        return (
            f"The upload {upload} was announced with {announced:,} bytes, and this part goes past them. It "
            f"has {offset:,} as before: send what is missing, or begin another upload."
        )


class UploadUnfinished(UserError):
    """An upload of which some is missing, when it is to be used. Args: upload, bytes, announced bytes."""

    def __str__(self) -> str:
        upload, size, announced = self.args
        return f"Of the upload {upload} {size:,} of {announced:,} bytes are there. Go on at {size} first."


class NoRoom(UserError):
    """An upload for which there is no room. Args: bytes, reason."""

    def __str__(self) -> str:
        return f"{self.args[0]:,} bytes cannot be taken in: {self.args[1]}."


class FileGone(UserError):
    """A file of an export that is not there. Args: export, what of it."""

    def __str__(self) -> str:
        ref, what = self.args
        return f"{what} of the export {ref} is not on this machine. Export it again, or ask where it is."


class ListensOpenly(UserError):
    """A service that anybody could reach, without a token. Args: host."""

    def __str__(self) -> str:
        return (
            f"Without a token nothing listens on {self.args[0]}, which others can reach. Make one: affinery "
            "token create NAME --scope admin; or set AFFINERY_TOKEN to a secret of 16 characters or more; or "
            "listen on 127.0.0.1."
        )


class CannotListen(UserError):
    """An address that nothing can listen on here. Args: host, port, the system's reason, what to do."""

    def __str__(self) -> str:
        host, port, reason, mend = self.args
        return f"Nothing can listen on {host}, port {port}: {reason}. {mend}"


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
