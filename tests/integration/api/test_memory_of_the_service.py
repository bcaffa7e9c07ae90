"""What the service keeps in memory does not grow with the threads that answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SERVED = """
import ctypes, sys, threading
from affinery_app.api.application import server
server(None)
held, there = [], threading.Barrier(17)
def work():
    held.append([bytes(1000) for _ in range(1000)])
    there.wait()
    there.wait()
threads = [threading.Thread(target=work) for _ in range(16)]
for each in threads: each.start()
there.wait()
library = ctypes.CDLL(None)
library.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(library.fopen(sys.argv[1].encode(), b"w"))
library.malloc_info(0, file)
library.fclose(file)
there.wait()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc")
def test_sixteen_threads_share_two_heaps(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SERVED, tmp_path / "told.xml"], check=True, timeout=120)
    assert (tmp_path / "told.xml").read_text().count("<heap ") <= 2
