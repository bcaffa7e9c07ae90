"""What a task is told, when the record that says so stands in a file of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from affinery.errors import ConfigInvalid
from affinery_app.drawing import Telling
from tests import tiny_models as tiny

MODEL = {"name": "depth", "channels": 1, "source": "model", "folder": "/etc", "digest": "0" * 64}


def told(record: dict[str, Any]) -> torch.Tensor | None:
    model = tiny.composed(tiny.adapter(tiny.meta("told", (4, 5), condition=record)))
    telling = Telling(made_from=lambda size, channels, _: np.zeros((channels, size, size), np.uint8))
    return telling.to(model, "told")


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (MODEL, "depth is not drawn from pictures here; give its map"),
        ({"name": "canny", "channels": 1, "low": "100", "high": 200}, "not drawn from pictures here"),
        ({"name": "canny", "channels": 1, "low": 200, "high": 100}, "not 0 ≤ low ≤ high"),
    ],
)
def test_no_model_is_looked_for_and_nothing_drawn_by_a_records_word(record: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigInvalid, match=why):
        told(record)


def test_edges_are_drawn_with_the_usual_thresholds_where_the_record_says_none() -> None:
    drawn = told({"name": "canny", "channels": 1})
    assert drawn is not None
    assert drawn.shape == (1, 8, 8)
