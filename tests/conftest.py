"""Fixtures that tests in several folders share."""

from __future__ import annotations

import os

# As the command line does, before torch is loaded: threads that wait do not starve Ray's processes.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

pytest_plugins = ("tests.postgres",)
