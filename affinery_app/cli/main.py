"""The command `affinery`: errors become one line and an exit code here, and nowhere else."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from collections.abc import Sequence

from affinery_app.cli.ending import GoesOn, Stopped

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it
UNREAD = 141  # and of SIGPIPE


def main() -> None:
    """Runs the command line.

    Exit codes: 0 done, 1 our error, 2 usage or bad input, 130 interrupted, 141 nobody reads what is printed.
    """
    # Imports make more than a hundred thousand objects that stay: looking for garbage there is time lost.
    gc.set_threshold(200_000, 50, 50)
    atexit.register(_end)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that knows less than UTF-8 is told by numbers
        sys.stdout.reconfigure(errors="backslashreplace")

    from orchestration.threads import SPINNING

    for name, value in SPINNING.items():
        os.environ.setdefault(name, value)
    # Typer asks pydantic, which would look through every installed package for plugins of its own.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        code = _done(sys.argv[1:])
        print(end="", flush=True)
    except BrokenPipeError:
        code = UNREAD
        _let_go()
    except OSError as error:
        code = 1
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        _let_go()
    sys.exit(code)


def _done(words: Sequence[str]) -> str | int | None:
    """→ the exit code. Raises OSError, BrokenPipeError where whoever read what is printed went away."""
    from affinery.errors import AffineryError

    try:
        from affinery_app.cli import completion
        from affinery_app.cli.commands import command_line

        with completion.answering():
            command_line(*(completion.asked() or (words,)))()
    except AffineryError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interruption:
        return _interrupted(interruption)
    except Stopped:
        print("stopped, as it was told to.", file=sys.stderr)
        return 0
    except SystemExit as end:
        cause = end.__context__
        if isinstance(cause, BrokenPipeError):  # Typer and Rich make an exit code of it
            raise cause from None
        if end.code == INTERRUPTED and cause is not None:  # so Typer ends on Ctrl-C, silently
            return _interrupted(cause.__cause__)
        return end.code
    return 0


def _let_go() -> None:
    """What could not be printed is not tried once more when the process ends, which would complain of it."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _interrupted(by: BaseException | None) -> int:
    kept = isinstance(by, GoesOn)
    more = ": what was finished is kept; the same command goes on from here." if kept else "."
    print(f"\ninterrupted{more}", file=sys.stderr)
    return INTERRUPTED


def _end() -> None:
    """Spares a short command the last search for garbage, which takes longer than all else that it does.

    What comes with torch is left to it: some of its libraries complain of what nobody has collected.
    """
    if "torch" not in sys.modules:
        gc.freeze()


if __name__ == "__main__":
    main()
