"""What a command shows on a terminal, as a pseudo-terminal has it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from affinery_app import wiring

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
