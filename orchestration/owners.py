"""Workers' names, from which other processes of the same machine see whether they live."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def own_name() -> str:
    """This process, as a worker's name: host, number and start, so that a reused number is another name."""
    return f"{socket.gethostname()}:{os.getpid()}:{started(os.getpid())}"


def started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty where it is gone, or dead and not yet buried."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if facts[0] in "ZX" else facts[19]


def is_dead(owner: str) -> bool:
    """Whether a worker of this machine is known to be gone; of others, only their lease tells."""
    host, _, rest = owner.partition(":")
    pid, _, began = rest.partition(":")
    if host != socket.gethostname() or not pid.isdigit() or not Path("/proc/self/stat").exists():
        return False
    return started(int(pid)) != began
