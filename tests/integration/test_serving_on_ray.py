"""`affinery serve-model --ray`: copies of the same server behind Ray Serve."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import affinery
from affinery.pictures import png_of

pytestmark = [pytest.mark.slow, pytest.mark.ray]
SECRET = "shown-by-whoever-asks"


@pytest.fixture(scope="module")
def url(bundle: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "affinery_app.cli.main", "serve-model", str(bundle)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [*command, "--ray", "--replicas", "1", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1", "AFFINERY_TOKEN": SECRET},
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line == "}\n":
            break
    yield json.loads(said)["url"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0


def generate(url: str, secret: str = SECRET, **asked: Any) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"}
    request = urllib.request.Request(f"{url}/v1/generate", json.dumps(asked).encode(), headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=240) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.timeout(900)
def test_requests_of_two_tasks_at_once_are_drawn_by_a_copy_on_ray(url: str, bundle: Path) -> None:
    asks = [
        {"task": "digits", "label": "digits 1", "n": 2, "seed": 5, "steps": 3},
        {"task": "letters@1", "label": "letters 2", "n": 1, "seed": 9, "steps": 3},
    ]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda asked: generate(url, **asked), asks))
    model = affinery.load(bundle)
    for asked, (status, answer) in zip(asks, answers, strict=True):
        task = str(asked["task"]).partition("@")[0]
        assert status == 200, answer
        assert (answer["task"], answer["version"]) == (task, 1)
        images = affinery.draw(model, task, asked["label"], asked["n"], asked["seed"], 3)  # type: ignore[arg-type]
        for ours, theirs in zip(images, answer["images"], strict=True):
            found = np.asarray(Image.open(io.BytesIO(base64.b64decode(theirs)))).astype(int)
            wanted = np.asarray(Image.open(io.BytesIO(png_of(ours)))).astype(int)
            assert np.abs(found - wanted).max() <= 1
    assert generate(url, secret="of-somebody-else!", **asks[0])[0] == 401
    assert generate(url, task="numbers", label=0)[0] == 404
