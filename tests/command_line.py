"""The command line as its documentation relies on it: every line that people are told to type parses."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module

import typer.main
from typer.core import TyperGroup


@cache
def root_command() -> TyperGroup:
    """The whole command line of Affinery, as it parses what people type."""
    command = typer.main.get_command(import_module("affinery_app.cli.commands").command_line())
    assert isinstance(command, TyperGroup)
    return command


def assert_command_exists(argv: list[str]) -> None:
    """argv, without `affinery` itself, names a command and gives it what it takes. Nothing is run.

    Raises typer's own usage error otherwise: no such option, missing argument.
    """
    group, path, words = root_command(), "affinery", list(argv)
    while True:
        assert words, f"`{path}` needs a command: {sorted(group.commands)}"
        word = words.pop(0)
        assert word in group.commands, f"`{path}` has no command {word!r}: {sorted(group.commands)}"
        command, path = group.commands[word], f"{path} {word}"
        if not isinstance(command, TyperGroup):
            command.make_context(path, words)
            return
        group = command


def typed(*arguments: object) -> int:
    """Runs a command line in this process, which saves the seconds of a new one. → its exit code"""
    before, sys.argv = sys.argv, ["affinery", *map(str, arguments)]
    try:
        import_module("affinery_app.cli.main").main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0
