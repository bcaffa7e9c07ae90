"""Fixtures that tests in several folders share."""

from __future__ import annotations

import os
import signal

# As the command line does, before torch is loaded: threads that wait do not starve Ray's processes.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A shell has what it starts in the background ignore Ctrl-C, and so all that these tests start:
# those of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ("tests.postgres",)
