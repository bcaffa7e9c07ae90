"""Tiny models: one thread does them fastest, and always sums in the same order."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)
