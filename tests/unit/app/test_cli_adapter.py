"""What `affinery adapter show` says of figures that came from elsewhere."""

from __future__ import annotations

import pytest

from affinery_app.cli.adapter import _recognition

WHOLE = {"share": 0.945, "samples": 200, "real_accuracy": 0.997, "real_images": 270}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (WHOLE, "94.5% of 200 samples; the same classifier on 270 real images: 99.7%"),
        (WHOLE | {"real_images": None}, "94.5% of 200 samples"),
        ({"share": 0.75}, "75.0% of its samples"),
        ({"share": "most"}, None),
        ({}, None),
        (0.75, "75.0% of its samples"),
        (75, None),
        (None, None),
    ],
)
def test_a_recognition_is_told_as_far_as_it_is_known(told: object, said: str | None) -> None:
    assert _recognition({"recognition": told}) == said
