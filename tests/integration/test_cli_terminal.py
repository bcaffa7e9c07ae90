"""What a command shows on a terminal, as a pseudo-terminal has it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affinery_app import wiring
from tests.command_line import typed
from tests.integration.api.conftest import serving

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def shown(*words: str | Path) -> str:
    """Runs a command on a terminal. → what it writes there; it has to end with 0"""
    command = [str(Path(sys.executable).with_name("affinery")), *map(str, words)]
    terminal, its = pty.openpty()
    process = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env=os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    )
    os.close(its)
    said = b""
    try:
        while piece := os.read(terminal, 65_536):
            said += piece
    except OSError:  # nobody has it open any more
        pass
    finally:
        os.close(terminal)
    assert process.wait(60) == 0, said
    return said.decode()


def test_a_dataset_that_is_added_leaves_a_whole_bar_and_no_broken_colours(tmp_path: Path) -> None:
    space, images = tmp_path / "space", tmp_path / "images" / "noise"
    wiring.create_workspace(space)
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(3):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    said = shown("dataset", "add", "noise", images.parent, "--workspace", space)
    plain = CONTROL.sub("", said)
    assert "Checking graph" not in plain  # DVC's own
    assert "\x1b" not in plain
    assert "[0m" not in plain
    bar, said_next = plain.replace("\r\n", "\n").split("\n")[:2]
    assert bar.rstrip().rpartition("\r")[2].startswith("reading noise")
    assert said_next == "note: one class: the dataset is learnt as one without classes"


def test_a_file_that_is_sent_has_a_bar_of_its_bytes_on_a_terminal_and_none_in_a_pipe(
    tmp_path: Path, tiny_backbone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space, _ = wiring.create_workspace(tmp_path / "space")
    with serving(space) as service:
        url = f"http://127.0.0.1:{service.port}"
        plain = CONTROL.sub("", shown("backbone", "add", tiny_backbone, "--name", "tiny", "--url", url))
        assert typed("backbone", "add", str(tiny_backbone), "--name", "other", "--url", url) == 0
    bar = plain.replace("\r\n", "\n").split("\n")[0].rpartition("\r")[2]
    amount = re.search(r"^sending tiny ━+ ([0-9.]+)/([0-9.]+) [KM]iB", bar)
    assert amount is not None, plain
    assert amount[1] == amount[2]
    assert "sending" not in "".join(capfd.readouterr())
