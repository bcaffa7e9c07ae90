"""The command line as its documentation and other files rely on it: which commands and options there are."""

from __future__ import annotations

from functools import cache
from importlib import import_module

import click
import typer.main


@cache
def root_command() -> click.Group:
    """The whole command line of Affinery, as click sees it."""
    command = typer.main.get_command(import_module("affinery_app.cli.main").app)
    assert isinstance(command, click.Group)
    return command


def assert_command_exists(argv: list[str]) -> None:
    """argv, without `affinery` itself, names a command that exists, and only options that it has."""
    command: click.Command = root_command()
    path = ["affinery"]
    words = list(argv)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        known = sorted(command.commands)
        word = words.pop(0)
        assert word in command.commands, f"`{' '.join(path)}` has no command {word!r}; it has {known}"
        command = command.commands[word]
        path.append(word)
    options = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for word in words:
        if word.startswith("-"):
            name = word.split("=", 1)[0]
            assert name in options | {"--help"}, (
                f"`{' '.join(path)}` has no option {name}; it has {sorted(options)}"
            )
