"""The command `affinery`: one noun a file; errors become one line and an exit code here, and nowhere else."""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import typer

from affinery_app.cli import (
    adapter,
    alias,
    backbone,
    collection,
    compose,
    config,
    dataset,
    dataset_adopt,
    demo,
    diff,
    doctor,
    download,
    estimate,
    evaluate,
    events,
    job,
    labels,
    lineage,
    queue_limits,
    rebase,
    reconcile,
    registry,
    rename,
    report,
    retention,
    retirement,
    run,
    sample,
    schedule,
    serve,
    serve_model,
    task,
    token,
    verify,
    webhook,
    workspace,
)

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it

app = typer.Typer(
    name="affinery",
    help="One frozen diffusion backbone that keeps learning: tasks, adapters, lineage, one model to ship.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
PANELS: Mapping[str, Mapping[str, typer.Typer | Callable[..., None]]] = {
    "Begin": {
        "init": workspace.init,
        "demo": demo.demo,
        "doctor": doctor.doctor,
        "migrate": workspace.migrate,
        "config": config.app,
    },
    "Learn": {
        "estimate": estimate.estimate,
        "run": run.run,
        "worker": run.worker,
        "backbone": backbone.app,
        "dataset": dataset.app,
        "task": task.app,
        "job": job.app,
        "schedule": schedule.app,
        "queue": queue_limits.app,
    },
    "See what was learnt": {
        "evaluate": evaluate.evaluate,
        "evaluations": evaluate.evaluations,
        "compare": evaluate.compare,
        "retention": retention.retention,
        "report": report.report,
        "diff": diff.diff,
        "lineage": lineage.lineage,
        "events": events.events,
        "tag": labels.tag,
        "note": labels.note,
        "rename": rename.rename,
        "adapter": adapter.app,
        "alias": alias.app,
    },
    "Ship": {
        "compose": compose.compose,
        "sample": sample.sample,
        "export": compose.export,
        "download": download.download,
        "serve-model": serve_model.serve_model,
    },
    "Share": {
        "serve": serve.serve,
        "token": token.app,
        "webhook": webhook.app,
        "registry": registry.app,
    },
    "Look after": {
        "verify": verify.verify,
        "reconcile": reconcile.reconcile,
        "gc": collection.gc,
    },
}
"""Every noun and verb, under what one wants when one looks for it."""
for panel, named in PANELS.items():
    for name, what in named.items():
        if isinstance(what, typer.Typer):
            app.add_typer(what, name=name, rich_help_panel=panel)
        else:
            app.command(name, rich_help_panel=panel)(what)
backbone.app.command("rebase")(rebase.rebase)
dataset.app.command("upgrade")(rebase.upgrade)
dataset.app.command("adopt")(dataset_adopt.adopt)
adapter.app.command("retire")(retirement.retire)
adapter.app.command("restore")(retirement.restore)


def _version(wanted: bool) -> None:
    if wanted:
        from affinery import __version__

        print(f"affinery {__version__}")
        raise typer.Exit


@app.callback()
def callback(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 our error, 2 usage or bad input, 130 interrupted."""
    from affinery.errors import AffineryError
    from orchestration.threads import SPINNING

    # Imports make hundreds of thousands of objects that stay: looking for garbage among them is time lost.
    gc.set_threshold(100_000, 50, 50)
    for name, value in SPINNING.items():
        os.environ.setdefault(name, value)
    try:
        _meant(app, sys.argv[1:])()
    except AffineryError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(_interrupted())
    except SystemExit as end:  # Typer ends with this code on Ctrl-C, and says nothing
        sys.exit(_interrupted() if end.code == INTERRUPTED else end.code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)


def _meant(whole: typer.Typer, words: Sequence[str]) -> typer.Typer:
    """The same with the command alone that the words begin with, or all where they name none.

    Typer makes every option of every command before it looks which one was called: most of a read's time.
    """
    if not words:
        return whole
    commands = [each for each in whole.registered_commands if each.name == words[0]]
    groups = [copy.copy(each) for each in whole.registered_groups if each.name == words[0]]
    if not commands and not groups:
        return whole
    for each in groups:
        each.typer_instance = _meant(each.typer_instance or typer.Typer(), words[1:])
    narrow = copy.copy(whole)
    narrow.registered_commands, narrow.registered_groups = commands, groups
    return narrow


def _interrupted() -> int:
    print("\ninterrupted: what was finished is kept; the same command goes on from here.", file=sys.stderr)
    return INTERRUPTED


if __name__ == "__main__":
    main()
