"""The command `affinery`: one noun a file; errors become one line and an exit code here, and nowhere else."""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections.abc import Sequence
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
    demo,
    diff,
    doctor,
    estimate,
    evaluate,
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
app.command("init")(workspace.init)
app.command("doctor")(doctor.doctor)
app.add_typer(config.app, name="config")
app.command("migrate")(workspace.migrate)
app.command("demo")(demo.demo)
app.add_typer(backbone.app, name="backbone")
app.add_typer(dataset.app, name="dataset")
app.command("estimate")(estimate.estimate)
app.add_typer(task.app, name="task")
app.add_typer(job.app, name="job")
app.add_typer(schedule.app, name="schedule")
app.add_typer(queue_limits.app, name="queue")
app.command("run")(run.run)
app.command("worker")(run.worker)
app.command("serve")(serve.serve)
app.command("serve-model")(serve_model.serve_model)
app.add_typer(token.app, name="token")
app.add_typer(webhook.app, name="webhook")
app.add_typer(adapter.app, name="adapter")
app.add_typer(alias.app, name="alias")
app.command("tag")(labels.tag)
app.command("note")(labels.note)
app.command("rename")(rename.rename)
app.command("diff")(diff.diff)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(evaluate.compare)
app.command("retention")(retention.retention)
app.command("report")(report.report)
app.command("lineage")(lineage.lineage)
app.command("verify")(verify.verify)
app.command("gc")(collection.gc)
app.command("reconcile")(reconcile.reconcile)
app.add_typer(registry.app, name="registry")
backbone.app.command("rebase")(rebase.rebase)
dataset.app.command("upgrade")(rebase.upgrade)
adapter.app.command("retire")(retirement.retire)
adapter.app.command("restore")(retirement.restore)
app.command("compose")(compose.compose)
app.command("export")(compose.export)
app.command("sample")(sample.sample)


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
