"""What connects the pieces of a team that is started by hand: names, published ports, questions.

A port of a container is published through a Unix socket: one process waits inside the namespaces and one
outside, and a socket in a folder is what both can see.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import socketserver
import tarfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class CannotStart(Exception):
    """What is missing or went wrong, for whoever started it."""


class OnLoopback(socketserver.ThreadingTCPServer):
    """A published port: hands every connection on to the Unix socket of the inside."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, port: int, path: Path) -> None:
        super().__init__(("127.0.0.1", port), _handing_on_to(lambda: unix(path)))


class IntoContainer(socketserver.ThreadingUnixStreamServer):
    """The inside of a published port: hands every connection on to the container."""

    daemon_threads = True

    def __init__(self, path: Path, address: tuple[str, int]) -> None:
        super().__init__(str(path), _handing_on_to(lambda: socket.create_connection(address, 10)))
        path.chmod(0o600)


class Questions(socketserver.ThreadingUnixStreamServer):
    """One JSON object a connection, answered by another."""

    daemon_threads = True

    def __init__(self, path: Path, answer: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        class Asked(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                try:
                    told = answer(json.loads(self.rfile.readline()))
                except (CannotStart, KeyError, ValueError) as error:
                    told = {"error": str(error)}
                self.wfile.write(json.dumps(told).encode() + b"\n")

        super().__init__(str(path), Asked)
        path.chmod(0o600)


class Names(socketserver.ThreadingUDPServer):
    """The names of the services, as an engine's own name server tells them: A records, and nothing else."""

    daemon_threads = True

    def __init__(self, address: str, names: Mapping[str, str]) -> None:
        class Asked(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                query, channel = self.request
                channel.sendto(resolved(query, names), self.client_address)

        super().__init__((address, 53), Asked)


def resolved(query: bytes, names: Mapping[str, str]) -> bytes:
    """One answer of RFC 1035, section 4: the question again, and the address of a name that is known."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii", "replace").lower())
        at += 1 + length
    question, kind = query[12 : at + 5], query[at + 1 : at + 3]
    address = names.get(".".join(labels))
    record = b""
    if address is not None and kind == b"\0\1":
        record = b"\xc0\x0c\0\1\0\1" + (60).to_bytes(4, "big") + b"\0\4" + socket.inet_aton(address)
    code = b"\x81\x80" if address is not None else b"\x81\x83"
    counts = b"\0\1\0" + (b"\1" if record else b"\0") + b"\0\0\0\0"
    return query[:2] + code + counts + question + record


def serve(server: socketserver.BaseServer) -> None:
    """In a thread of its own, as long as the process lives."""
    threading.Thread(target=server.serve_forever, daemon=True).start()


def _handing_on_to(reach: Callable[[], socket.socket]) -> type[socketserver.BaseRequestHandler]:
    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), reach() as other:
                other.settimeout(None)
                back = threading.Thread(target=_copy, args=(other, self.request), daemon=True)
                back.start()
                _copy(self.request, other)
                back.join()

    return Forward


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def unix(path: Path) -> socket.socket:
    """A connection to a Unix socket. Raises OSError."""
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(path))
    return made


def ask(folder: Path, **asked: Any) -> dict[str, Any]:
    """One question to the team that runs in a folder. Raises CannotStart where none does."""
    try:
        with unix(folder / "control") as channel, channel.makefile("rwb") as file:
            file.write(json.dumps(asked).encode() + b"\n")
            file.flush()
            line = file.readline()
    except OSError as error:
        raise CannotStart(f"Nothing runs in {folder} ({error}).") from error
    answer: dict[str, Any] = json.loads(line or b'{"error": "it has ended"}')
    if "error" in answer:
        raise CannotStart(answer["error"])
    return answer


def copy_in(folder: Path, source: Path, service: str, target: str) -> None:
    """Puts a folder into a service's container. Raises CannotStart."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(source, ".")
    packed = base64.b64encode(content.getvalue()).decode()
    script = f"mkdir -p {target} && tar --extract --no-same-owner --directory {target}"
    done = ask(folder, do="exec", service=service, argv=["sh", "-c", script], stdin=packed)
    if done["code"]:
        raise CannotStart(done["stderr"])
