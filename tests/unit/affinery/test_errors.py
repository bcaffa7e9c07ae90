"""Every error of the core and the trainers says what happened and arrives whole from another process."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import pytest

import affinery.errors
import trainers.errors
from affinery.errors import AffineryError, UnknownName, UserError, near

ERRORS = sorted(
    {
        found
        for module in (affinery.errors, trainers.errors)
        for found in vars(module).values()
        if inspect.isclass(found) and issubclass(found, AffineryError)
    },
    key=lambda error: error.__name__,
)
ARGUMENTS: dict[str, tuple[object, ...]] = {
    "UnknownName": ("task", "digts", ("digits", "letters")),
    "AdapterBackboneMismatch": ("digits", "a" * 64, "b" * 64),
    "TrainingDiverged": ("digits", 17),
    "SamplesNotNumbers": ("digits", 3, 200),
    "PlaceInvalid": ("extractor", "weights.pth", "is not there", "No such file"),
    "ExportDiffers": ("onnx", 0.5, 0.25),
    "ExportBroken": ("onnx", "no memory"),
}
SPEAKING = [error for error in ERRORS if "Args:" in (error.__doc__ or "")]


def example(error: type[AffineryError]) -> AffineryError:
    return error(*ARGUMENTS.get(error.__name__, ("the first thing", "the second thing")))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_arrives_whole_from_another_process(error: type[AffineryError]) -> None:
    raised = example(error)
    arrived = pickle.loads(pickle.dumps(raised))  # noqa: S301  (our own bytes: this is how Ray sends errors)
    assert type(arrived) is error
    assert arrived.args == raised.args
    assert str(arrived) == str(raised)
    assert arrived.exit_code == raised.exit_code


@pytest.mark.parametrize("error", SPEAKING, ids=lambda error: error.__name__)
def test_an_error_says_all_that_it_was_given(error: type[AffineryError]) -> None:
    said = str(example(error))
    for argument in example(error).args:
        for part in argument if isinstance(argument, tuple) else (argument,):
            assert str(part)[:12] in said


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_bad_requests_end_with_2_and_failures_with_1(error: type[AffineryError]) -> None:
    assert error.exit_code == (2 if issubclass(error, UserError) else 1)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+) ", affinery.errors.__doc__ or "")
    own = [error.__name__ for error in ERRORS if error.__module__ == "affinery.errors"]
    assert sorted(drawn) == sorted(set(own) - {"AffineryError"})


def test_an_unknown_name_without_any_known_one_says_so() -> None:
    assert "Known: none yet." in str(UnknownName("task", "digits", ()))
    assert near("zzz", ["digits"]) == ""


def test_no_module_of_the_core_raises_a_bare_exception() -> None:
    root = Path(affinery.errors.__file__).parent
    for path in [*root.rglob("*.py"), *Path(trainers.errors.__file__).parent.rglob("*.py")]:
        assert not re.search(r"raise (Exception|RuntimeError|AssertionError)\b", path.read_text()), path
