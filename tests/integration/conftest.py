"""What tests of a bundle that is served share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shipped import write_both


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two tasks; it is only read."""
    return write_both(tmp_path_factory.mktemp("shipped"))
