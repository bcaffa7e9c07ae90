"""The errors of Affinery. Each says what happened, why, and how to mend it, and survives pickling.

    AffineryError                      exit code 1: something failed that was well asked for
    ├── ExportDiffers                  an export that, loaded back, computes something else
    ├── ExportBroken                   an export that could not be made, or not be loaded back
    ├── UserError                      exit code 2: the request itself cannot be carried out
    │   ├── BackboneFileInvalid        not safetensors, truncated, a key missing or of another shape
    │   ├── AdapterFileInvalid         an adapter file that does not fit what it claims to be
    │   ├── AdapterBackboneMismatch    an adapter of another backbone
    │   ├── BundleInvalid              a bundle whose bytes are not those that were exported
    │   ├── UnknownName                a kind, backbone, task or class that does not exist
    │   └── ConfigInvalid              a configuration value out of its range
    │       └── PlaceInvalid           a file or a folder that was named and cannot serve
    ├── affinery.serving.engine        QueueFull, TooLate, Stopped: what a server answers
    ├── registry.errors.RegistryError  what the registry refuses (see registry/errors.py)
    ├── trainers.errors                data that changed, training that diverged
    └── orchestration.errors           the queue, Ray, MLflow and DVC

Constructors take positional arguments only, so that an error raised in a Ray worker arrives whole.

What names a place of this machine, or is what a library said and may name one, is for whoever sits at it, and
an option is for who types commands: a class says `here=` which arguments these are, `options=True` that its
own words name options; `elsewhere()` gives the words for everybody else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Self


def near(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?' for the closest known name, or nothing."""
    match = get_close_matches(name, list(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def words_of(error: Exception) -> str:
    """What an error says, as a part of what another says everywhere: without places of this machine."""
    if isinstance(error, AffineryError):
        return error.elsewhere()
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


FIELDS = {"memory": "memory_bytes", "rank": "config.rank"}
"""By option, the field that it is elsewhere, where that is not its own name."""


def as_fields(told: object) -> str:
    """Options of commands as the fields of a request that they are elsewhere: `--skip-bad` is `skip_bad`, and
    `--set steps=3` is `recipe.steps=3`.
    """
    said = re.sub(r"(?<![^\s(])--set ", "recipe.", str(told))
    return re.sub(
        r"(?<![^\s(])--([a-z][a-z-]*)",
        lambda found: FIELDS.get(found[1], found[1].replace("-", "_")),
        said,
    )


Words = str | Callable[[object], str]


class AffineryError(Exception):
    """Something that was well asked for failed."""

    exit_code = 1
    here: Mapping[int, Words] = {}
    options = False

    def __init_subclass__(cls, here: Mapping[int, Words] | None = None, options: bool = False) -> None:
        """here: by position, the arguments that are told on this machine only, and what is said elsewhere:
        other words, or what makes them of these. options: whether it names options of commands in its words.
        """
        if here is not None:
            cls.here = here
        cls.options = cls.options or options

    def elsewhere(self) -> str:
        """What happened, for who asks from elsewhere: without the places of this machine."""
        told = list(self.args)
        for i, words in self.here.items():
            if i < len(told):
                told[i] = words if isinstance(words, str) else words(told[i])
        said = str(type(self)(*told))
        return as_fields(said) if self.options else said

    def called(self, place: str, name: str) -> Self:
        """The same of a file or folder that its reader knows by another name, which is no secret."""
        made = type(self)(*(str(each).replace(place, name) for each in self.args))
        made.here = {i: words for i, words in self.here.items() if not isinstance(words, str)}
        return made


class UserError(AffineryError):
    """The request itself cannot be carried out as given."""

    exit_code = 2


class ExportDiffers(AffineryError):
    """An export that, loaded back, computes something else. Args: format, difference, tolerance."""

    def __str__(self) -> str:
        name, difference, tolerance = self.args
        return (
            f"The {name} export, loaded back, differs by {difference:.2g} of the largest value, more than "
            f"{tolerance:g}; nothing was kept. Export in another format, and report this with its backbone."
        )


class ExportBroken(AffineryError, here={1: "the log says how"}):
    """An export that could not be made here, or not be loaded back. Args: format, reason."""

    def __str__(self) -> str:
        name, reason = self.args
        return f"The {name} export is broken ({reason}); nothing was kept. Export in another format."


class BackboneFileInvalid(UserError, here={0: "The file"}):
    """A backbone file that cannot be read as what it claims to be. Args: path, reason."""

    def __str__(self) -> str:
        path, reason = self.args
        return f"{path} is not a usable backbone: {reason}"


class AdapterFileInvalid(UserError, here={0: "The file"}):
    """An adapter file that does not fit what it claims to be. Args: path, reason."""

    def __str__(self) -> str:
        path, reason = self.args
        return f"{path} is not a usable adapter: {reason}"


class AdapterBackboneMismatch(UserError):
    """An adapter of another backbone. Args: task, expected fingerprint, found fingerprint."""

    def __str__(self) -> str:
        task, expected, found = self.args
        return (
            f"The adapter of {task!r} was trained on backbone {found[:12]}, but this backbone is "
            f"{expected[:12]}. Load it on the backbone it belongs to, or train it anew on this one."
        )


class BundleInvalid(UserError, here={0: "The folder"}):
    """A bundle whose files are not those that were exported. Args: path, reason."""

    def __str__(self) -> str:
        path, reason = self.args
        return f"{path} is not a whole bundle: {reason}"


class UnknownName(UserError):
    """A name that does not exist. Args: noun, name, known names."""

    def __str__(self) -> str:
        noun, name, known = self.args
        listing = ", ".join(sorted(known)) or "none yet"
        return f"There is no {noun} named {name!r}.{near(name, known)} Known: {listing}."


class ConfigInvalid(UserError, here={0: as_fields}):
    """A configuration value that cannot be. Args: what, reason."""

    def __str__(self) -> str:
        what, reason = self.args
        return f"{what}: {reason}"


class PlaceInvalid(ConfigInvalid, here={0: as_fields, 1: "what it names", 3: ""}):
    """A file or a folder that was named and cannot serve. Args: what, path, reason, words or nothing."""

    def __str__(self) -> str:
        what, path, reason, words = self.args
        return f"{what}: {path} {reason}" + (f" ({words})." if words else ".")
