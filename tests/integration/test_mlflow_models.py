"""An exported MLflow model: loaded by MLflow, served by `mlflow models serve`, with the bundle's pictures."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import affinery
from affinery.errors import ConfigInvalid, UnknownName
from affinery.formats.contract import Shipment
from affinery.pictures import png_of
from affinery.pyfunc import Drawing
from orchestration.mlflow_models import MlflowModel
from tests import tiny_models as tiny

pytestmark = pytest.mark.slow

ROWS = [
    {"task": "digits", "label": "digits 1", "seed": 5, "steps": 3},
    {"task": "letters", "label": "letters 2", "seed": 6, "steps": 3},
    {"task": "digits", "label": "digits 0", "seed": 7, "steps": 2, "guidance": 1.0},
]


@pytest.fixture(scope="module")
def model(bundle: Path) -> Path:
    folder = bundle.parent / "model"
    shipment = Shipment(affinery.load(bundle), facts={"affinery.ref": "both@1"})
    (note,) = form(bundle).write(shipment, folder)
    assert "mlflow models serve" in note
    return folder


def form(bundle: Path) -> MlflowModel:
    return MlflowModel(lambda folder: shutil.copytree(bundle, folder))


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)))


def drawn(bundle: Path, row: dict[str, Any]) -> Any:
    """The row's image, drawn alone by the Python API."""
    image = affinery.draw(
        affinery.load(bundle),
        row["task"],
        row["label"],
        seed=row["seed"],
        steps=row["steps"],
        guidance=row.get("guidance"),
    )[0]
    return pixels(png_of(image)).astype(int)


def near(bundle: Path, row: dict[str, Any], found: dict[str, Any]) -> bool:
    """A step of a pixel's 255 is what another batch may round to."""
    return bool(np.abs(drawn(bundle, row) - pixels(base64.b64decode(found["image"])).astype(int)).max() <= 1)


def test_the_model_is_the_composition_and_is_told_so_before_it_is_kept(bundle: Path, model: Path) -> None:
    assert form(bundle).compare(Shipment(affinery.load(bundle)), model) == 0
    other = affinery.load(bundle)
    other.unload("letters")
    other.load(tiny.adapter(tiny.meta("letters", (6, 9), 2, backbone=other.fingerprint), 77))
    assert form(bundle).compare(Shipment(other), model) > 1e-2


def test_nothing_in_it_is_pickled_and_whence_it_came_stands_in_it(model: Path) -> None:
    files = [path for path in model.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".pt", ".bin"}]
    described = (model / "MLmodel").read_text(encoding="utf-8")
    assert "affinery.ref: both@1" in described
    assert "loader_module: affinery.pyfunc" in described


def test_a_table_is_answered_row_by_row_whatever_tasks_and_settings_it_mixes(bundle: Path) -> None:
    import pandas

    answer = Drawing(affinery.load(bundle)).predict(pandas.DataFrame(ROWS))
    assert [(row["task"], row["label"], row["seed"]) for row in answer] == [
        (row["task"], row["label"], row["seed"]) for row in ROWS
    ]
    assert all(near(bundle, row, found) for row, found in zip(ROWS, answer, strict=True))
    assert Drawing(affinery.load(bundle)).predict([]) == []


@pytest.mark.parametrize(
    ("row", "error", "what"),
    [
        ({"task": "digits"}, ConfigInvalid, "label"),
        ({"task": "digits", "label": "digits 0", "sede": 3}, ConfigInvalid, "sede"),
        ({"task": "digits", "label": "digits 0", "seed": "x"}, ConfigInvalid, "row"),
        ({"task": "digits", "label": "digits 0", "steps": 0}, ConfigInvalid, "steps"),
        ({"task": "digits", "label": "seven"}, UnknownName, "seven"),
        ({"task": "../digits", "label": "digits 0"}, UnknownName, "digits"),
    ],
)
def test_a_row_that_cannot_be_drawn_is_refused_by_what_is_wrong(
    bundle: Path, row: dict[str, Any], error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        Drawing(affinery.load(bundle)).predict([row])


def test_a_model_of_which_a_byte_was_changed_does_not_load(bundle: Path, tmp_path: Path) -> None:
    import mlflow.pyfunc

    folder = tmp_path / "model"
    form(bundle).write(Shipment(affinery.load(bundle)), folder)
    broken = next(folder.rglob("adapters/1.safetensors"))
    body = bytearray(broken.read_bytes())
    body[-1] ^= 1
    broken.write_bytes(body)
    with pytest.raises(Exception, match=r"adapters/1\.safetensors"):
        mlflow.pyfunc.load_model(str(folder))


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
    log = (model.parent / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=log,
        stderr=log,
        start_new_session=True,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    address = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/ping", timeout=5).close()  # noqa: S310
            break
        except OSError:
            assert process.poll() is None, (model.parent / "log").read_text()
            assert time.monotonic() < until, (model.parent / "log").read_text()
            time.sleep(0.2)
    yield address
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    log.close()


def asked(address: str, body: object) -> tuple[int, Any]:
    request = urllib.request.Request(  # noqa: S310
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.timeout(300)
def test_mlflow_serves_it_and_refuses_what_it_cannot_draw(served: str, bundle: Path) -> None:
    status, answer = asked(served, {"dataframe_records": ROWS[:2]})
    assert status == 200, answer
    assert all(near(bundle, *pair) for pair in zip(ROWS, answer["predictions"], strict=False))
    assert len(answer["predictions"]) == 2
    status, answer = asked(served, {"dataframe_records": [{"task": "digits"}]})
    assert status == 400
    assert "label" in json.dumps(answer)
