"""Every error of the orchestration says something, and arrives whole out of a Ray worker."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from affinery.errors import AffineryError
from orchestration import errors

ARGUMENTS: dict[str, tuple[object, ...]] = {
    "JobNotFound": ("abc", 2),
    "TaskIsBusy": ("digits", "learning"),
    "TasksDoNotMatch": ("digits", "is named twice"),
    "NeedNotMet": ("0123456789", ("digits", "letters"), "dead", "the loss is no number"),
    "JobsWaitForEachOther": (["digits", "letters", "digits"],),
    "JobIsOver": ("0123456789", "done", "paused"),
    "LimitInvalid": ("resource:cups", "there is no such resource"),
    "ScheduleInvalid": ("nightly", "there is no zone 'Moon'"),
    "PlanInvalid": ("plan.yaml", ["line 3, jobs[0].steps: it is no number"]),
    "KeyTaken": ("nightly", 3, ("digits",), ("letters",)),
    "WorkersDied": (5,),
    "StageMoved": ("dit@1",),
    "DataUnwritable": ("/data", "No space left on device"),
    "LeaseLost": ("abc", 3),
    "RayUnavailable": ("this machine", "no port is free"),
    "RayAddressInvalid": ("ray://head:10001",),
    "TrainingFailed": ("out of memory",),
    "OlderTaskDisturbed": ("digits@1", "its stored file has been changed"),
    "DatasetInvalid": ("cats/1.png", "it is empty"),
    "DatasetUnavailable": ("/data", "the remote is away"),
    "DriverDied": ("was ended by SIGKILL", "out of memory"),
    "AttemptFailed": ("no such file",),
    "Requested": ("pause",),
    "FailpointReached": ("uploaded",),
    "NeverFits": ("abcdef12", "8 GPUs", "this worker has 2 processors"),
    "DiskFull": ("/runs/abcdef12",),
    "JobInvalid": ("export", "composition: Field required"),
    "TooLarge": ("40 GiB", ["2 GiB of weights"], "this machine has 24 GiB of memory", ["--set batch=8"]),
    "OverLimit": ("It takes", "40 GiB", "24 GiB", ["--set batch=8"], 40 << 30),
    "NothingLearnt": ("tiny-dit@1",),
    "ExportRefused": ("all@1", "digits@2 is retired (blurred)", "restore it"),
    "OtherClasses": ("digits@1", "letters@1", "without 'one' and with 'a'"),
    "TooFewImages": ("digits", "digits@1", 2, 3),
    "TimedOut": (60.0, 2),
}


def every_class() -> list[type[AffineryError]]:
    return [
        found
        for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.OrchestrationError) and found is not errors.OrchestrationError
    ]


def test_every_error_has_an_example_here() -> None:
    assert {found.__name__ for found in every_class()} == ARGUMENTS.keys()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_error_survives_pickling_with_its_words_and_its_exit_code(name: str) -> None:
    kind: type[AffineryError] = getattr(errors, name)
    error = kind(*ARGUMENTS[name])
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(arrived) is kind
    assert arrived.args == error.args
    assert str(arrived) == str(error)
    assert arrived.exit_code == error.exit_code in (1, 2)
    assert inspect.getdoc(kind)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_error_names_everything_that_it_was_given_in_words(name: str) -> None:
    text = str(getattr(errors, name)(*ARGUMENTS[name]))
    for value in ARGUMENTS[name]:
        if isinstance(value, str) and not value.isdigit():
            assert value in text
    assert "(" not in text[:1]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_error_names_options_elsewhere_in_whole_commands_only(name: str) -> None:
    told = getattr(errors, name)(*ARGUMENTS[name]).elsewhere()
    assert " --" not in re.sub(r"affinery [^,.:;]*", "", told).replace("(", " ")
