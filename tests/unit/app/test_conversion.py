"""What is typed becomes what Typer would make of it, with pydantic asked or not."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from affinery_app.cli.conversion import Command


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


def shout(text: str) -> str:
    return text.upper()


def text(value: Annotated[str, typer.Option()] = "word") -> None:
    said(value)


def maybe(value: Annotated[str | None, typer.Option()] = None) -> None:
    said(value)


def several(value: Annotated[list[str] | None, typer.Option()] = None) -> None:
    said(value)


def numbers(value: Annotated[list[int] | None, typer.Option(min=1)] = None) -> None:
    said(value)


def whole(value: Annotated[int, typer.Option(min=2, max=100)] = 50) -> None:
    said(value)


def clamped(value: Annotated[int, typer.Option(min=2, max=100, clamp=True)] = 50) -> None:
    said(value)


def share(value: Annotated[float, typer.Option(min=0.0)] = 0.5) -> None:
    said(value)


def flag(value: Annotated[bool, typer.Option(envvar="FLAG_OF_A_TEST")] = False) -> None:
    said(value)


def folder(value: Annotated[Path | None, typer.Option()] = None) -> None:
    said(value)


def there(value: Annotated[Path, typer.Option(exists=True, dir_okay=False)] = Path()) -> None:
    said(value)


def whole_path(value: Annotated[Path, typer.Option(resolve_path=True)] = Path()) -> None:
    said(value)


def choice(value: Annotated[Literal["one", "two"], typer.Option(case_sensitive=False)] = "one") -> None:
    said(value)


def choices(value: Annotated[list[Colour] | None, typer.Option()] = None) -> None:
    said(value)


def chosen(value: Annotated[Colour, typer.Option()] = Colour.BLUE) -> None:
    said(value)


def parsed(value: Annotated[str, typer.Option(parser=shout)] = "x") -> None:
    said(value)


def pair(value: Annotated[tuple[str, int], typer.Option()] = ("a", 1)) -> None:
    said(value)


def argument(value: Annotated[list[str], typer.Argument()]) -> None:
    said(value)


def said(value: object) -> None:
    print(type(value).__name__, ascii(value))


HUGE = "9" * 5000
TYPED: list[tuple[Any, list[str]]] = [
    *((each, []) for each in (text, maybe, several, numbers, whole, clamped, share, flag, folder, there)),
    *((each, []) for each in (whole_path, choice, choices, chosen, parsed, pair, argument)),
    *((each, ["--value", typed]) for each in (text, maybe) for typed in ("", " a b ", "猫", "--", "-", "0")),
    *((several, ["--value", *typed.split()]) for typed in ("a", "a --value b", "a --value 猫")),
    *((numbers, ["--value", *typed.split()]) for typed in ("1", "1 --value 2", "0", "1 --value x")),
    *(
        (each, ["--value", typed])
        for each in (whole, clamped)
        for typed in (
            "2",
            "100",
            "1",
            "101",
            "-3",
            "+5",
            "007",
            "1_0",
            "１０",
            "²",
            " 7 ",
            "1.0",
            "x",
            "",
            HUGE,
        )
    ),
    *((share, ["--value", typed]) for typed in ("0.25", "1", "-1", "nan", "1e3", "x")),
    *(
        (each, ["--value", typed])
        for each in (folder, there, whole_path)
        for typed in ("", "/", "no/such", "~")
    ),
    *((choice, ["--value", typed]) for typed in ("two", "TWO", "three", "")),
    *((choices, ["--value", *typed.split()]) for typed in ("red", "red --value blue", "green")),
    *((chosen, ["--value", typed]) for typed in ("red", "RED", "")),
    (parsed, ["--value", "loud"]),
    (pair, ["--value", "a", "2"]),
    (pair, ["--value", "a", "b"]),
    (argument, ["a", "猫", "--", "-x"]),
]


@pytest.mark.parametrize(("command", "words"), TYPED)
def test_what_is_typed_becomes_what_typer_makes_of_it(command: Any, words: list[str]) -> None:
    assert answered(command, words, Command) == answered(command, words, None)


@pytest.mark.parametrize("told", ["1", "0", "yes", "", "perhaps"])
def test_a_flag_is_read_from_a_variable(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("FLAG_OF_A_TEST", told)
    assert answered(flag, [], Command) == answered(flag, [], None)


def test_a_folder_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    ours = answered(folder, ["--value", str(tmp_path)], Command)
    assert ours == answered(folder, ["--value", str(tmp_path)], None)
    assert ours[0] == 2


def answered(command: Any, words: list[str], cls: type[Command] | None) -> tuple[int, str]:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command(cls=cls)(command)
    done = CliRunner().invoke(app, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output
