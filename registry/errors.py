"""What the registry refuses, and how to mend it.

RegistryError                      exit code 1
├── NotFound                       (usage) no thing of this kind has this name or digest
│   ├── Renamed                    (usage) an old name of something that has a new one
│   └── AllRetired                 (usage) a task of whose adapter versions none is in use
├── AmbiguousRef                   (usage) a reference that several things answer to
├── RefInvalid                     (usage) a reference that cannot be read
├── NameInvalid                    (usage) a name that could not be used in references and paths
├── RecordInvalid                  (usage) a value that cannot be recorded
├── RequirementInvalid             (usage) a bound on a metric that cannot be read
├── FilterInvalid                  (usage) a filter of a search that cannot be read
├── ProtocolAmbiguous              (usage) a beginning with which the digests of several protocols begin
├── ProtocolsDiffer                (usage) two adapters that were never measured alike
├── NotMeasured                    (usage) an adapter of which nothing was measured
├── TaskExists                     (usage) a task name that is taken
├── TokenExists                    (usage) a token's name that is taken, or was
├── WebhookExists                  (usage) a webhook's name that is taken
├── NameTaken                      (usage) a name that something else has, or once had
├── TaskHeld                       (usage) a task that a job holds, which keeps its name
├── KeyReused                      (usage) an idempotency key of another request
├── AliasMoved                     an alias that no longer means what was expected
├── GateClosed                     an adapter whose metrics do not hold what an alias requires
├── ArchiveInvalid                 (usage) an archive that is not what it should be
├── ArchiveConflict                (usage) an archive against which something stands here
├── StaleFence                     a worker that publishes after its job was given to another
├── Refused                        the database's own refusal: an invariant of the record
├── RegistryMissing                there is no registry at this address
├── RegistryOutdated               a registry of an older schema
├── RegistryTooNew                 a registry of a newer schema than this program knows
├── RegistryDamaged                a registry whose guards are gone, or whose file is not a database
├── RegistryReadOnly               a registry that may not be written
├── RegistryFull                   no space left for the registry
├── RegistryBusy                   another process held the registry too long
├── RegistryUnreachable            the database server does not answer
└── StorageError                   blobs
    ├── BlobMissing                bytes that are not in the store
    ├── BlobDamaged                bytes that are not what their digest says
    ├── BlobUnknown                a digest that was never committed to the registry
    ├── StorageFull                no space left for a blob
    ├── StorageReadOnly            a store that may not be written
    ├── StorageBroken              a store that the system does not let work
    ├── StorageUnreachable         a store that does not answer, or does not let us in
    ├── StorageUrlInvalid          (usage) an address that its store cannot use
    └── StorageUnknown             (usage) no store speaks this URL scheme
"""

from __future__ import annotations

from shlex import quote

from affinery.errors import AffineryError, UserError, near


class RegistryError(AffineryError):
    """Something that the registry refuses or cannot do."""


class NotFound(RegistryError, UserError):
    """Nothing answers to this reference. Args: noun, ref, known names."""

    def __str__(self) -> str:
        noun, ref, known = self.args
        listing = ", ".join(list(known)[:12]) or "none yet"
        more = f" and {len(known) - 12} more" if len(known) > 12 else ""
        return f"There is no {noun} {ref!r}.{near(ref, known)} Known: {listing}{more}."


class Renamed(NotFound):
    """A name that was changed since. Args: noun, ref, what to write now."""

    def __str__(self) -> str:
        noun, ref, now = self.args
        return f"There is no {noun} {ref!r} any more: it was renamed. Write {now!r} now."


class AllRetired(NotFound):
    """Every version that a bare name could mean is retired. Args: noun, ref, the versions."""

    def __str__(self) -> str:
        noun, ref, versions = self.args
        return (
            f"Every version of {noun} {ref!r} is retired: {', '.join(versions[:12])}. Name one to look "
            f"at it, or take it into use again: affinery adapter restore {quote(versions[-1])}"
        )


class AmbiguousRef(RegistryError, UserError):
    """Several things answer to this reference. Args: ref, candidates as unambiguous references."""

    def __str__(self) -> str:
        ref, candidates = self.args
        return f"{ref!r} could be any of: {', '.join(candidates)}. Say which, written as it stands here."


class RefInvalid(RegistryError, UserError):
    """A reference that cannot be read. Args: ref, reason."""

    def __str__(self) -> str:
        ref, reason = self.args
        forms = "name, name@version, name@alias, kind:name@version, a digest or node:number"
        return f"{ref!r} is not a reference: {reason} Write {forms}."


def article(noun: str) -> str:
    """What stands before it: an adapter, a task."""
    return "an" if noun[:1] in "aeio" else "a"


class NameInvalid(RegistryError, UserError):
    """A name that could not be used in references and paths. Args: what, name, reason."""

    def __str__(self) -> str:
        what, name, reason = self.args
        shown = repr(name) if len(name) <= 60 else repr(name[:57]) + "…"
        return f"{shown} cannot be the name of {article(what)} {what}: {reason}."


class RecordInvalid(RegistryError, UserError):
    """A value that cannot be recorded. Args: what, reason."""

    def __str__(self) -> str:
        what, reason = self.args
        return f"{what} cannot be recorded: {reason}."


class TaskExists(RegistryError, UserError):
    """A task name that is taken. Args: name."""

    def __str__(self) -> str:
        (name,) = self.args
        return (
            f"There is already a task named {name!r}. Choose another name, or see it: "
            f"affinery task show {quote(name)}"
        )


class TokenExists(RegistryError, UserError):
    """A token's name that is taken, or was. Args: name."""

    def __str__(self) -> str:
        (name,) = self.args
        return f"There is or was a token named {name!r}, and names are not given twice. Choose another."


class WebhookExists(RegistryError, UserError):
    """A webhook's name that is taken. Args: name."""

    def __str__(self) -> str:
        (name,) = self.args
        remove = f"affinery webhook rm {quote(name)}"
        return f"There is a webhook named {name!r}. Choose another, or remove it: {remove}"


class RequirementInvalid(RegistryError, UserError):
    """A bound on a metric that cannot be read. Args: text."""

    def __str__(self) -> str:
        (text,) = self.args
        shown = text if len(text) <= 60 else text[:57] + "…"
        return f"{shown!r} requires nothing that can be read: write metric>=number, as in recognition>=0.8."


class FilterInvalid(RegistryError, UserError):
    """A filter that cannot be read. Args: filter, position from 0, reason."""

    def __str__(self) -> str:
        text, position, reason = self.args
        start = max(position - 30, 0)
        shown = "".join(each if each.isprintable() else "·" for each in text[start : position + 30])
        mark = " " * (position - start) + "^"
        return f"The filter cannot be read at character {position + 1}: {reason}.\n  {shown}\n  {mark}"


class ProtocolAmbiguous(RegistryError, UserError):
    """A protocol, or a metric of several protocols, that is not named well enough. Args: name, digests."""

    def __str__(self) -> str:
        name, found = self.args
        listing = ", ".join(digest[:12] for digest in found)
        return (
            f"{name!r} stands for figures of {len(found)} protocols, which are never compared: {listing}. "
            "Name one by the first digits of its digest."
        )


class ProtocolsDiffer(RegistryError, UserError):
    """Two adapters that were never measured alike. Args: left, right, differences in words, against.

    against: the dataset that both are to be measured against; None where it was the same for both, and ""
    where none can be, for they learnt other classes.
    """

    def __str__(self) -> str:
        left, right, found, against = self.args
        told = (
            f"{left} and {right} were never measured under one protocol, so their figures are not compared. "
            f"Between their last ones differ: {'; '.join(found)}. "
        )
        if against == "":
            return f"{told}They learnt other classes, so nothing measures both alike."
        which = "" if against is None else f" --against {quote(against)}"
        return f"{told}Measure both alike: affinery evaluate {quote(left)} {quote(right)}{which}"


class NotMeasured(RegistryError, UserError):
    """An adapter without an evaluation. Args: adapter, the protocol's digest or None for any."""

    def __str__(self) -> str:
        name, protocol = self.args
        under = "" if protocol is None else f" under the protocol {protocol[:12]}"
        return f"{name} was never measured{under}. Measure it: affinery evaluate {quote(name)}"


class NameTaken(RegistryError, UserError):
    """A name that something else has, or once had. Args: noun, name."""

    def __str__(self) -> str:
        noun, name = self.args
        return (
            f"There is, or once was, another {noun} named {name!r}. Choose a name that nothing had: old "
            "references must not come to mean another thing."
        )


class TaskHeld(RegistryError, UserError):
    """A task that keeps its name while a job holds it. Args: task."""

    def __str__(self) -> str:
        (task,) = self.args
        return (
            f"A job holds the task {task!r}, which keeps its name until the job ends. Wait for that, or "
            f"cancel it: affinery task show {quote(task)}"
        )


class KeyReused(RegistryError, UserError):
    """An idempotency key that belongs to another request. Args: key."""

    def __str__(self) -> str:
        (key,) = self.args
        return (
            f"The idempotency key {key[:60]!r} was sent with another request. Choose a new key for this one."
        )


class AliasMoved(RegistryError):
    """An alias no longer means what was expected. Args: alias, expected, found."""

    def __str__(self) -> str:
        alias, expected, found = self.args
        return (
            f"{alias} means {found} now, not {expected}: somebody moved it. Nothing was changed; see "
            f"affinery alias history {quote(alias)}"
        )


class GateClosed(RegistryError):
    """The metrics do not hold what is required. Args: adapter, requirement, metric, found (or None)."""

    def __str__(self) -> str:
        adapter, wanted, metric, found = self.args
        why = f"has no metric {metric!r}" if found is None else f"has {metric} {found:g}"
        see = f"affinery adapter show {quote(adapter)}"
        return f"{adapter} {why}, and {wanted} is required. Nothing was changed; see {see}"


class ArchiveInvalid(RegistryError, UserError, here={0: "The file"}):
    """An archive that is not what it should be. Args: path, reason."""

    def __str__(self) -> str:
        path, reason = self.args
        return f"{path} is not a whole archive: {reason}. Export it anew, or copy it again."


class ArchiveConflict(RegistryError, UserError):
    """An archive against which something stands in this registry. Args: what, thing by thing."""

    def __str__(self) -> str:
        (conflicts,) = self.args
        more = f"\n  and {len(conflicts) - 20} more" if len(conflicts) > 20 else ""
        listing = "".join(f"\n  {conflict}" for conflict in conflicts[:20])
        return (
            f"The archive cannot be brought in; nothing was written:{listing}{more}\n"
            "Bring it into a registry where these are free."
        )


class StaleFence(RegistryError):
    """A worker published after its job was given to another. Args: job id, fence given, fence now, state."""

    def __str__(self) -> str:
        job, given, current, state = self.args
        return (
            f"Job {job} is {state} under fence {current}, and this result carries fence {given}: the job was "
            "taken from this worker while it trained. Nothing was published; its holder publishes its own."
        )


class Refused(RegistryError):
    """The database refused to break an invariant of the record. Args: its words."""

    def __str__(self) -> str:
        (words,) = self.args
        return f"The registry refused the change: {words}. Nothing was written."


class RegistryMissing(RegistryError, here={0: "the address that is set"}):
    """There is no registry at this address. Args: where."""

    def __str__(self) -> str:
        (where,) = self.args
        return f"There is no registry at {where}. Create the workspace first: affinery init"


class RegistryOutdated(RegistryError):
    """A registry of an older schema. Args: found revision, known revision."""

    def __str__(self) -> str:
        found, known = self.args
        return (
            f"The registry has schema {found}; this one needs {known}. Bring it up to date: affinery migrate"
        )


class RegistryTooNew(RegistryError, UserError):
    """A registry of a newer schema. Args: found revision, known revision, version that made it (or '')."""

    def __str__(self) -> str:
        found, known, made_by = self.args
        maker = f"Affinery {made_by}" if made_by else "a newer Affinery"
        return (
            f"The registry has schema {found}, made by {maker}; this Affinery knows schemas up to {known}. "
            f"Nothing was touched. {self.mend}"
        )

    @property
    def mend(self) -> str:
        """What to do about it."""
        made_by = self.args[2]
        newer = f"'affinery>={made_by}'" if made_by else "--upgrade affinery"
        return f"Install the newer version of Affinery: pip install {newer}"


class RegistryDamaged(RegistryError, here={0: "the address that is set"}):
    """A registry that can no longer protect its record. Args: where, reason."""

    def __str__(self) -> str:
        where, reason = self.args
        return f"The registry at {where} is damaged: {reason}. Restore it from a backup; nothing was changed."


class RegistryReadOnly(RegistryError, here={0: "the address that is set"}):
    """A registry that may not be written. Args: where."""

    def __str__(self) -> str:
        (where,) = self.args
        return (
            f"The registry at {where} may be read but not written. Nothing was changed; give this user write "
            "permission on the file and its folder, or work in a copy."
        )


class RegistryFull(RegistryError, here={0: "the address that is set"}):
    """No space left for the registry. Args: where."""

    def __str__(self) -> str:
        (where,) = self.args
        return (
            f"The disk of the registry at {where} is full. Nothing was changed; make room and run this again."
        )


class RegistryBusy(RegistryError, here={0: "the address that is set"}):
    """Another process held the registry longer than we wait. Args: where, seconds waited."""

    def __str__(self) -> str:
        where, seconds = self.args
        return (
            f"Another process held the registry at {where} for more than {seconds} seconds. "
            "Nothing was changed; run this again."
        )


class RegistryUnreachable(RegistryError, here={0: "the address that is set", 1: "the log says why"}):
    """The database does not answer. Args: where, reason."""

    def __str__(self) -> str:
        where, reason = self.args
        return (
            f"The registry at {where} does not answer: {reason}. Start the database, or correct the address."
        )


class StorageError(RegistryError):
    """Blobs that cannot be stored or read."""


class BlobMissing(StorageError, here={1: "the store"}):
    """Bytes that are not in the store. Args: digest, where."""

    def __str__(self) -> str:
        digest, where = self.args
        return f"Blob {digest[:12]} is not in {where}. Restore it from a backup or another store."


class BlobDamaged(StorageError, here={2: "the store"}):
    """Bytes that are not what their digest says. Args: digest, found digest, where."""

    def __str__(self) -> str:
        digest, found, where = self.args
        return (
            f"Blob {digest[:12]} in {where} was changed: its bytes hash to {found[:12]}. "
            "Restore it from a backup."
        )


class BlobUnknown(StorageError):
    """A digest that the registry has not been told of. Args: digest."""

    def __str__(self) -> str:
        (digest,) = self.args
        return (
            f"Blob {digest[:12]} was never committed to the registry. Put its bytes in the store, then "
            "commit its digest and size in the transaction that uses it."
        )


class StorageFull(StorageError, here={0: "the store"}):
    """No space left for a blob. Args: where, size wanted in bytes."""

    def __str__(self) -> str:
        where, size_bytes = self.args
        return (
            f"No space in {where} for {size_bytes:,} bytes. "
            "Nothing was left behind; make room and run this again."
        )


class StorageReadOnly(StorageError, here={0: "The store"}):
    """A store that may not be written. Args: where."""

    def __str__(self) -> str:
        (where,) = self.args
        return (
            f"{where} may not be written. Nothing was stored; give this user write permission on the folder."
        )


class StorageBroken(StorageError, here={0: "The store", 1: "the log says why"}):
    """A store that the system does not let work. Args: where, reason."""

    def __str__(self) -> str:
        where, reason = self.args
        return f"{where} cannot take a blob in: {reason}. Nothing was stored."


class StorageUnknown(StorageError, UserError):
    """No store speaks this URL scheme. Args: scheme, known schemes."""

    def __str__(self) -> str:
        scheme, known = self.args
        return f"No blob store speaks {scheme!r}.{near(scheme, known)} Known: {', '.join(sorted(known))}."


class StorageUnreachable(StorageError, here={0: "that is set", 1: "the log says why"}):
    """A store that does not answer, or does not let us in. Args: where, reason."""

    def __str__(self) -> str:
        where, reason = self.args
        return (
            f"The store {where} cannot be used: {reason}. Nothing was stored; check its address, and the "
            "credentials that boto3 finds."
        )


class StorageUrlInvalid(StorageError, UserError):
    """An address that its store cannot use. Args: scheme, reason. The address itself may hold a secret."""

    def __str__(self) -> str:
        scheme, reason = self.args
        return f"The store's {scheme}:// address cannot be used: {reason}."
