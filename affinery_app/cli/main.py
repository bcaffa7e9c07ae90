"""The command `affinery`: errors become one line and an exit code here, and nowhere else."""

from __future__ import annotations

import atexit
import gc
import os
import sys

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 our error, 2 usage or bad input, 130 interrupted."""
    # Imports make more than a hundred thousand objects that stay: looking for garbage there is time lost.
    gc.set_threshold(200_000, 50, 50)
    atexit.register(_end)

    from affinery.errors import AffineryError
    from orchestration.threads import SPINNING

    for name, value in SPINNING.items():
        os.environ.setdefault(name, value)
    try:
        from affinery_app.cli.commands import command_line

        command_line(sys.argv[1:])()
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


def _interrupted() -> int:
    print("\ninterrupted: what was finished is kept; the same command goes on from here.", file=sys.stderr)
    return INTERRUPTED


def _end() -> None:
    """Spares a short command the last search for garbage, which takes longer than all else that it does.

    What comes with torch is left to it: some of its libraries complain of what nobody has collected.
    """
    if "torch" not in sys.modules:
        gc.freeze()


if __name__ == "__main__":
    main()
