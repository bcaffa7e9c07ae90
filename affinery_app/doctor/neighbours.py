"""What the registry works with: the blob store, MLflow, DVC and Ray.

Each is asked what costs little; deep asks them as a training would, which imports them and starts Ray.
"""

from __future__ import annotations

import configparser
import http.client
import os
import shlex
import socket
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from affinery.counting import counted
from affinery_app.doctor import registry
from affinery_app.doctor.check import FAIL, OK, WARN, Check

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace

ANSWER_SECONDS = 2.0
LOOKED_AT = 20
"""Of the newest blobs."""
LONGEST_SOCKET_FOLDER = 40
"""Ray's sockets stand below the temporary folder, and a socket's path has 107 characters at most."""


def store(space: Workspace, deep: bool) -> Iterator[Check]:
    """The newest blobs are there; a probe is written, read and taken away. deep: and how much there is."""
    from registry.errors import StorageError

    where = space.store_url.partition("?")[0]
    probe = f"affinery doctor {uuid.uuid4()}".encode()
    recorded = _recorded(space)
    try:
        lacking = [each for each in recorded if not space.store.exists(each)]
        if lacking:  # a probe would make the folder anew, as if it had never held anything
            what = f"{where} lacks {len(lacking)} of the newest {len(recorded)} blobs that are recorded"
            mend = "restore the store from a backup, or mend store_url; affinery verify says all that lacks"
            yield Check("store", FAIL, f"{what}, such as {lacking[0][:12]}", mend)
            return
        began = time.monotonic()
        digest = space.store.put_bytes(probe)
        with space.store.open(digest) as stream:
            same = stream.read() == probe
        space.store.remove(digest)
    except (StorageError, OSError) as error:
        mend = "let this user write there, or name another store: affinery config set store_url URL"
        yield Check("store", FAIL, str(error), mend)
        return
    took = f"wrote, read and removed a probe in {1000 * (time.monotonic() - began):.0f} ms"
    if not same:
        yield Check("store", FAIL, f"{where} gives back other bytes than it was given", "affinery verify")
    elif deep:
        yield Check("store", OK, f"{where}: {took}; {sum(1 for _ in space.store.digests()):,} blobs")
    else:
        yield Check("store", OK, f"{where}: {took}")


def _recorded(space: Workspace) -> list[str]:
    """The newest blobs; none where the registry cannot say, which is told of the registry."""
    from affinery.errors import AffineryError
    from registry import blobs

    try:
        with registry.reading(space) as session:
            return blobs.newest(session, LOOKED_AT)
    except AffineryError:
        return []


def mlflow(space: Workspace, deep: bool) -> Iterator[Check]:
    """Whether MLflow answers, and what still waits to be told to it."""
    tracking = space.tracking
    where = _plain(tracking.uri)
    reason = _mlflow_away(tracking.uri)
    if reason is None and deep:
        try:
            tracking.client().search_experiments(max_results=1)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            reason = _first(error)
    if reason is None:
        yield Check("mlflow", OK, f"{where} answers{' a search' if deep else ''}")
    else:  # no training is hindered by it: what is to be told waits in the spool
        yield Check("mlflow", WARN, f"{where}: {reason}", _mend_mlflow(tracking.uri))
    waiting = len(list(tracking.kept.pending()))
    if waiting:
        mend = "affinery reconcile --only mlflow"
        yield Check(
            "mlflow spool", WARN, f"{counted(waiting, 'run is', 'runs are')} not wholly in MLflow yet", mend
        )


def _mlflow_away(uri: str) -> str | None:
    """Why it cannot be used; None where it answers, or only itself could say."""
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.exists():
            return "not made yet"
        try:
            with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
                database.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.Error as error:
            return str(error)
        return None
    if uri.startswith(("http://", "https://")):
        return _no_answer(f"{uri.rstrip('/')}/health")
    return None


def _mend_mlflow(uri: str) -> str:
    if uri.startswith("sqlite:"):
        return "have its tables made: affinery init; a torn file is to be moved away first"
    how = "affinery config set tracking_uri URL"
    return f"start the server, or name another ({how}); a server has to allow this host's name"


def dvc(space: Workspace, deep: bool) -> Iterator[Check]:
    """The repository of datasets and its remotes."""
    if not (space.data / ".dvc" / "affinery").exists():
        yield Check(
            "dvc",
            FAIL,
            f"{space.data} is no repository of datasets",
            f"affinery init -w {shlex.quote(str(space.folder))}",
        )
        return
    if deep:
        from affinery.errors import AffineryError
        from orchestration.datasets.states import remotes_away

        try:
            found = remotes_away(space.data)
        except AffineryError as error:
            yield Check("dvc", FAIL, str(error), "mend data/.dvc/config")
            return
    else:
        try:
            found = {name: _remote_away(space.data, url) for name, url in _remotes(space.data)}
        except (OSError, configparser.Error) as error:
            yield Check("dvc", FAIL, f"data/.dvc/config: {_first(error)}", "mend the file, or restore it")
            return
    away = {name: why for name, why in found.items() if why is not None}
    for name, why in away.items():
        mend = f"mend the remote: affinery dataset remote add {shlex.quote(name)} URL"
        yield Check("dvc", WARN, f"remote {name}: {why}", mend)
    if not found:
        how = "affinery dataset remote add NAME URL"
        mend = f"keep copies, for DVC deletes what was changed in its cache: {how}"
        yield Check("dvc", WARN, "there is no remote", mend)
    elif not away:
        yield Check("dvc", OK, f"{space.data}; remotes: {', '.join(found)}")


def _remotes(data: Path) -> list[tuple[str, str]]:
    """As DVC's own file names them; its library takes a second to load."""
    config = configparser.ConfigParser(interpolation=None)
    for name in ("config", "config.local"):
        if (data / ".dvc" / name).exists():
            config.read_string((data / ".dvc" / name).read_text(encoding="utf-8"))
    named = [section for section in config.sections() if section.strip("'").startswith('remote "')]
    return [(section.split('"')[1], config[section].get("url", "")) for section in named]


def _remote_away(data: Path, url: str) -> str | None:
    if "://" not in url:
        folder = data / ".dvc" / url  # relative ones are meant from the file that names them
        return None if folder.is_dir() else f"the folder {folder.resolve()} is not there"
    scheme = urlsplit(url).scheme
    if scheme == "s3" and find_spec("dvc_s3") is None:
        return f"{url} needs dvc-s3: pip install 'affinery[team]'"
    return None


def ray(space: Workspace, deep: bool) -> Iterator[Check]:
    """A cluster's address answers; without one, what Ray on this machine needs is there. deep: it starts."""
    address = space.settings.ray_address
    if find_spec("ray") is None:
        yield Check("ray", FAIL, "Ray is not installed", "pip install affinery")
    elif address is None:
        yield from _local_ray(deep)
    elif address.startswith(("http://", "https://")):
        yield _answering(address, _no_answer(f"{address.rstrip('/')}/api/version"))
    else:
        yield _answering(address, _nobody_at(address))


def _answering(address: str, reason: str | None) -> Check:
    if reason is None:
        return Check("ray", OK, f"the cluster at {_plain(address)} answers")
    how = "affinery config set ray_address ADDRESS"
    mend = f"start the cluster, or name another ({how}); docs/guides/larger-clusters.md"
    return Check("ray", FAIL, f"the cluster at {_plain(address)} does not answer: {reason}", mend)


def _nobody_at(address: str) -> str | None:
    """Why nobody can be spoken to there."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
        try:
            address = address or Path("/tmp/ray/ray_current_cluster").read_text(encoding="utf-8")  # noqa: S108
        except OSError:
            return "no Ray was started on this machine (ray start)"
    host, _, port = address.strip().removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return "it is neither auto, host:port nor http://host:port"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _local_ray(deep: bool) -> Iterator[Check]:
    base = Path("/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir())  # noqa: S108 - where it will stand
    if not os.access(base, os.W_OK) or len(str(base)) > LONGEST_SOCKET_FOLDER:
        mend = "make /tmp writable for this user: Ray's sockets stand there"
        yield Check("ray", FAIL, f"{base} cannot hold Ray's files", mend)
    elif deep:
        yield _started()
    else:
        yield Check("ray", OK, "no cluster is named: each worker starts its own (--deep tries it)")


def _started() -> Check:
    from orchestration import local_ray
    from orchestration.errors import RayUnavailable

    own = local_ray.LocalRay(1, 0)
    began = time.monotonic()
    try:
        address = local_ray.address_in(Path(own.ready()))
    except RayUnavailable as error:
        mend = "look at memory, /dev/shm and the rights of /tmp below; then affinery doctor --deep again"
        return Check("ray", FAIL, str(error), mend)
    finally:
        own.stop()
    return Check("ray", OK, f"started on {address} in {time.monotonic() - began:.0f} s, and stopped again")


def _no_answer(url: str) -> str | None:
    """Why an HTTP server does not answer; one that refuses us is there."""
    try:
        with closing(urlopen(Request(url), timeout=ANSWER_SECONDS)) as answer:  # noqa: S310 - http only
            return None if answer.status < http.client.BAD_REQUEST else f"it answers {answer.status}"
    except (URLError, OSError, http.client.HTTPException) as error:
        if getattr(error, "code", None) in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            return f"it lets nobody in ({getattr(error, 'code', '')})"
        return str(getattr(error, "reason", None) or error)


def _plain(url: str) -> str:
    """Without a password."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
