"""A web application as a Ray Serve deployment: copies of it on a cluster, behind one address.

The application is the caller's: `build` makes it in every copy, and is sent there by its name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.errors import RayUnavailable
from orchestration.local_ray import LocalRay, address_in
from orchestration.ray_train import connect_ray

NAME = "affinery"
PATIENCE = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
"""Serve ends a proxy that has not started within 5 s, which is too short on a machine that does much else."""


@dataclass(frozen=True)
class Copies:
    """How many copies, and what each may use. at_once: requests that a copy may have under way."""

    count: int = 1
    cpus: float = 1.0
    at_once: int = 256


@contextmanager
def deployed(
    build: Callable[[], Any], copies: Copies, host: str, port: int, address: str | None = None
) -> Iterator[str]:
    """Copies of an application for as long as this lasts. → under which URL they are reached

    address: of a cluster; None starts Ray on this machine, for these copies alone. Raises RayUnavailable.
    """
    own = None
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    if address is None:
        own = LocalRay(math.ceil(copies.count * copies.cpus), 0)
        address = address_in(Path(own.ready()))
    try:
        connect_ray(address)
        yield _started(build, copies, host, port)
    finally:
        _shut_down()
        if own is not None:
            own.stop()


def _started(build: Callable[[], Any], copies: Copies, host: str, port: int) -> str:
    try:
        from ray import serve
    except ImportError as error:
        reason = f"Ray Serve is not installed ({error.name}): pip install 'affinery[serve]'."
        raise RayUnavailable("this machine", reason) from error

    def made() -> Any:  # Serve takes a plain function for a builder, and a method for an application
        return build()

    deployment = serve.deployment(
        serve.ingress(made)(),
        name=NAME,
        num_replicas=copies.count,
        max_ongoing_requests=copies.at_once,
        ray_actor_options={"num_cpus": copies.cpus},
    )
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(deployment.bind(), name=NAME, route_prefix="/")
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise RayUnavailable("this machine", f"its Serve did not start ({reason})") from error
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _shut_down() -> None:
    import ray

    if ray.is_initialized():
        from ray import serve

        serve.shutdown()
        ray.shutdown()
