"""Every noun and verb of the command line; what is called is all that is loaded."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated

import typer

from affinery_app.cli.conversion import Command, Group

ABOUT = "One frozen diffusion backbone that keeps learning: tasks, adapters, lineage, one model to ship."
PANELS: Mapping[str, Mapping[str, str]] = {
    "Begin": {
        "init": "workspace.init",
        "demo": "demo.demo",
        "doctor": "doctor.doctor",
        "migrate": "workspace.migrate",
        "config": "config.app",
    },
    "Learn": {
        "estimate": "estimate.estimate",
        "run": "run.run",
        "worker": "run.worker",
        "backbone": "backbone.app",
        "dataset": "dataset.app",
        "task": "task.app",
        "job": "job.app",
        "schedule": "schedule.app",
        "queue": "queue_limits.app",
    },
    "See what was learnt": {
        "evaluate": "evaluate.evaluate",
        "evaluations": "evaluate.evaluations",
        "compare": "evaluate.compare",
        "retention": "retention.retention",
        "report": "report.report",
        "diff": "diff.diff",
        "lineage": "lineage.lineage",
        "events": "events.events",
        "tag": "labels.tag",
        "note": "labels.note",
        "rename": "rename.rename",
        "adapter": "adapter.app",
        "alias": "alias.app",
    },
    "Ship": {
        "compose": "compose.compose",
        "sample": "sample.sample",
        "export": "compose.export",
        "download": "download.download",
        "serve-model": "serve_model.serve_model",
    },
    "Share": {
        "serve": "serve.serve",
        "token": "token.app",
        "webhook": "webhook.app",
        "registry": "registry.app",
    },
    "Look after": {
        "verify": "verify.verify",
        "reconcile": "reconcile.reconcile",
        "gc": "collection.gc",
    },
}
"""Every noun and verb, under what one wants when one looks for it, and its name in this package."""


def command_line(words: Sequence[str] = (), begun: str = "") -> typer.Typer:
    """The command that the words begin with alone, or all of them where they name none.

    Typer makes every option of every command before it looks which one was called: most of a read's time.
    begun: how the noun begins that follows, where a shell asks what to offer.
    """
    root = typer.Typer(
        name="affinery",
        cls=Group,
        help=ABOUT,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    root.callback()(_callback)
    for panel, name, where in _meant(words, begun):
        module, _, attribute = where.partition(".")
        what = getattr(import_module(f"affinery_app.cli.{module}"), attribute)
        if isinstance(what, typer.Typer):
            root.add_typer(_narrowed(what, words[1:]), name=name, rich_help_panel=panel)
        else:
            root.command(name, rich_help_panel=panel)(what)
    _finish(root)
    return root


def _meant(words: Sequence[str], begun: str) -> list[tuple[str, str, str]]:
    """→ of each command the panel, the name and where it is"""
    named = [(panel, name, where) for panel, each in PANELS.items() for name, where in each.items()]
    if not words:
        return [each for each in named if each[1].startswith(begun)]
    if words[0].startswith("-") and words[0] not in ("-h", "--help", "--"):  # as --version, which needs none
        return []
    return [each for each in named if each[1] == words[0]] or named


def _narrowed(group: typer.Typer, words: Sequence[str]) -> typer.Typer:
    """The same with the command alone that the words begin with, or all where they name none."""
    if not words:
        return group
    commands = [each for each in group.registered_commands if each.name == words[0]]
    groups = [copy.copy(each) for each in group.registered_groups if each.name == words[0]]
    if not commands and not groups:
        return group
    for each in groups:
        each.typer_instance = _narrowed(each.typer_instance or typer.Typer(), words[1:])
    narrow = copy.copy(group)
    narrow.registered_commands, narrow.registered_groups = commands, groups
    return narrow


def _finish(group: typer.Typer) -> None:
    """Every command converts as ours do; each paragraph of help is one line, for the terminal to break.

    Typer keeps the lines of the source.
    """
    for command in group.registered_commands:
        command.cls = Command
        text = command.help or inspect.getdoc(command.callback) or ""
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", text)
    for each in group.registered_groups:
        each.cls = Group
        if each.typer_instance is not None:
            _finish(each.typer_instance)


def _version(wanted: bool) -> None:
    if wanted:
        from affinery import __version__

        print(f"affinery {__version__}")
        raise typer.Exit


def _callback(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass
