"""The workspace's DVC repository: each version of a dataset is a pack in `data/<name>/<digest>/`, pinned.

Every version is pushed when it is added: DVC deletes a cache object that it finds tampered with, so the cache
is no copy. Inside a git work tree DVC works with git, and the `.dvc` files are there to be committed;
elsewhere, or where git ignores the folder, it works without.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery import tensor_files
from affinery.errors import ConfigInvalid
from orchestration.datasets import objects
from orchestration.errors import DatasetUnavailable, DataUnwritable
from trainers import packs
from trainers.errors import DatasetChanged

if TYPE_CHECKING:
    from dvc.repo import Repo

REMOTE, LOCAL = "dvc-remote", "local"
LOCK, INCOMING = ".affinery.lock", ".incoming-*"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)


@dataclass(frozen=True)
class Remote:
    """Where DVC keeps further copies. default: to and from which it copies by itself."""

    name: str
    url: str
    default: bool


def init_data(root: Path) -> None:
    """Makes a workspace's DVC repository, and its remote in a folder beside it. Again, it changes nothing."""
    with taking_in(root):
        root.mkdir(parents=True, exist_ok=True)
    with taking_in(root), serialised(root):
        if (root / ".dvc" / "config").exists() and (root / ".dvc" / "affinery").exists():
            return
        _quiet()
        from dvc.config_schema import RelPath
        from dvc.repo import Repo

        _quiet()  # importing DVC set its loggers up anew
        repo = Repo(str(root)) if (root / ".dvc" / "config").exists() else _made(root)
        with repo, repo.config.edit() as config:
            # Relative, so that a workspace that was moved, or cloned, finds its own.
            config["remote"].setdefault(LOCAL, {})["url"] = RelPath((root.parent / REMOTE).absolute())
            config["remote"][LOCAL]["verify"] = True
            config["core"]["remote"] = config["core"].get("remote") or LOCAL
            config["core"]["analytics"] = False
            config["core"]["check_update"] = False
        (root.parent / REMOTE).mkdir(exist_ok=True)
        (root / ".dvc" / "affinery").touch()


def _made(root: Path) -> Repo:
    from dvc.repo import Repo

    if not _in_git(root):
        return Repo.init(str(root), no_scm=True)
    (root / ".gitignore").write_text(f"/{LOCK}\n/{INCOMING}\n")
    return Repo.init(str(root), subdir=True)


def _in_git(root: Path) -> bool:
    """Whether a git work tree holds the folder and would take files in it."""
    from dvc.scm import SCM, SCMError

    try:
        scm = SCM(str(root), search_parent_directories=True)
    except SCMError:
        return False
    try:
        return not scm.is_ignored(str(root / ".dvc"))
    finally:
        scm.close()


@contextmanager
def serialised(root: Path) -> Iterator[None]:
    """One at a time: DVC's own lock waits three seconds and gives up."""
    with (root / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _quiet() -> None:
    """DVC sends no usage reports, and says on the terminal only what we say."""
    import logging

    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    for noisy in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


@contextmanager
def taking_in(data: Path) -> Iterator[None]:
    """What the system says to a write, in words. Raises DataUnwritable."""
    try:
        yield
    except OSError as error:
        raise DataUnwritable(str(data), error.strerror or str(error)) from error


# --- a version comes in --------------------------------------------------------------------------------


@contextmanager
def in_place(incoming: Path, target: Path, digest: str) -> Iterator[None]:
    """Moves a pack to its place, where an equal one may stand; takes it away again if the block fails."""
    pinned = pin_file(target)
    if target.exists() and not is_whole(target, digest):
        shutil.rmtree(target)  # changed or torn since; what comes in is what was pinned under this digest
    new = not target.exists()
    if new:
        target.parent.mkdir(parents=True, exist_ok=True)
        _make_durable(incoming)
        incoming.replace(target)
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(target, ignore_errors=True)
            pinned.unlink(missing_ok=True)
            with suppress(OSError):  # other versions of the dataset keep the folder
                target.parent.rmdir()
        raise


def pin_file(target: Path) -> Path:
    """DVC's own file beside a pack, which holds the pin."""
    return target.with_name(target.name + ".dvc")


def is_whole(pack: Path, digest: str) -> bool:
    """Whether a pack is there as it was pinned, to the byte."""
    try:
        packs.verify_pack(pack, digest)
    except DatasetChanged:
        return False
    return True


def _make_durable(folder: Path) -> None:
    for name in (packs.IMAGES, packs.MANIFEST):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def pin(data: Path, target: Path) -> str:
    """Puts a pack under DVC and into the default remote. → the MD5 of its `.dir` object"""
    if pinned_md5(target) is None:
        pin_file(target).unlink(missing_ok=True)  # torn: DVC would not touch it
    with opened(data) as repo:
        return _kept(repo, target, None)


def _kept(repo: Repo, target: Path, remote: str | None) -> str:
    """Cache and remote have the pack's objects, whole. → the MD5 of the `.dir` object"""
    from dvc_objects.errors import ObjectFormatError

    try:
        md5 = _added(repo, target)
    except ObjectFormatError:  # DVC met a torn object in its cache, and has deleted it
        md5 = _added(repo, target)
    objects.make_way(repo.cache.local, md5)
    if not objects.holding(repo.cache.local, md5).whole:
        md5 = _added(repo, target)
    store = objects.forget_seen(repo, remote)
    objects.make_way(store, md5)
    repo.push([str(pin_file(target))], remote=remote)
    return md5


def _added(repo: Repo, target: Path) -> str:
    return str(repo.add([str(target)])[0].outs[0].hash_info.value)


def pin_again(data: Path, dvc_path: str, md5: str) -> None:
    """Writes the `.dvc` file of a version anew, as the registry knows its pin."""
    target = data / dvc_path
    with taking_in(data):
        target.parent.mkdir(parents=True, exist_ok=True)
        text = f"outs:\n- md5: {md5}\n  hash: md5\n  path: {target.name}\n"
        tensor_files.write_whole(pin_file(target), text.encode())


def pinned_md5(target: Path) -> str | None:
    """What the `.dvc` file of a pack pins; None where there is none, or it is torn."""
    import yaml

    try:
        out = yaml.safe_load(pin_file(target).read_bytes())["outs"][0]
        return str(out["md5"]) if out["path"] == target.name else None
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError):
        return None


@contextmanager
def opened(data: Path) -> Iterator[Repo]:
    """The repository, its errors in words. Raises DatasetUnavailable."""
    _quiet()
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError
    from dvc.ui import ui
    from rich.console import Console

    _quiet()
    ui.error_console = Console(quiet=True, force_terminal=False)  # it would tear the bars of a command
    _mend_locks(data)
    try:
        with Repo(str(data)) as repo:
            yield repo
    except (DvcException, SCMError) as error:
        cause: Any = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            raise cause from error
        raise DatasetUnavailable(str(data), str(cause) or type(cause).__name__) from error
    except Exception as error:
        if _of_a_store(error):
            raise DatasetUnavailable(str(data), str(error) or type(error).__name__) from error
        raise


def _of_a_store(error: Exception) -> bool:
    """A remote that is away raises whatever its own library has for it."""
    module = type(error).__module__.split(".")[0]
    return module in ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec", "dvc_objects", "dvc_data") or (
        isinstance(error, OSError) and error.errno not in NO_ROOM
    )


def _mend_locks(data: Path) -> None:
    """A full disk tears DVC's list of who reads and writes what, and DVC then refuses everything."""
    path = data / ".dvc" / "tmp" / "rwlock"
    try:
        json.loads(path.read_bytes() or b"{}")
    except FileNotFoundError:
        return
    except ValueError:
        path.unlink(missing_ok=True)


# --- a version is needed -------------------------------------------------------------------------------


def ensure(data: Path, dvc_path: str, digest: str) -> Path:
    """The folder of a pinned version, every byte checked; fetched through DVC where files are merely missing.

    Raises DatasetChanged, saying exactly what differs, and DatasetUnavailable where DVC has no copy.
    """
    target = data / dvc_path
    if not all((target / name).exists() for name in (packs.IMAGES, packs.MANIFEST)):
        pull(data, dvc_path)
    packs.verify_pack(target, digest)
    return target


def pull(data: Path, dvc_path: str, remote: str | None = None) -> None:
    """Brings a version back from the cache or a remote: the one named, or whichever has it.

    Raises DatasetUnavailable.
    """
    if remote is not None:
        _check_known(data, remote)
    if pinned_md5(data / dvc_path) is None:
        reason = f"{pin_file(data / dvc_path).name} is missing or torn; affinery reconcile writes it anew"
        raise DatasetUnavailable(str(data), reason)
    with serialised(data):
        names = [remote] if remote is not None else [each.name for each in remotes(data)]
        for i, name in enumerate(names):
            try:
                with opened(data) as repo:
                    repo.pull([str(pin_file(data / dvc_path))], force=True, remote=name)
                return
            except DatasetUnavailable:
                if i + 1 == len(names):
                    raise


def restore(data: Path, dvc_path: str, digest: str, remote: str | None = None) -> None:
    """Puts back what was pinned, over what stands there. Raises DatasetUnavailable or DatasetChanged."""
    target = data / dvc_path
    aside = target.with_name(f".{target.name}.changed")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.replace(aside)
    try:
        pull(data, dvc_path, remote)
        packs.verify_pack(target, digest)
    except BaseException:
        if aside.exists():
            shutil.rmtree(target, ignore_errors=True)
            aside.replace(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def push(data: Path, dvc_path: str, remote: str | None = None) -> None:
    """Copies a pack that is whole to a remote, or to the default one. Raises DatasetUnavailable."""
    if remote is not None:
        _check_known(data, remote)
    with taking_in(data), serialised(data), opened(data) as repo:
        _kept(repo, data / dvc_path, remote)


@contextmanager
def fetched(data: Path, md5: str, remote: str | None = None) -> Iterator[Path]:
    """What a remote (the default one) has under this MD5, as a folder or a file, until the `with` ends.

    Raises ConfigInvalid, DatasetInvalid and DatasetUnavailable.
    """
    if not (data / ".dvc").is_dir():
        raise ConfigInvalid("remote", "this workspace has none yet. Make its first: affinery init")
    if remote is not None:
        _check_known(data, remote)
    cache = data.parent / "cache"
    with taking_in(data):
        cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetched-") as folder:
        with opened(data) as repo:
            found = objects.fetch(repo.cloud.get_remote_odb(remote, "fetch"), md5, Path(folder))
        yield found


# --- remotes -------------------------------------------------------------------------------------------


def remotes(data: Path) -> list[Remote]:
    """The remotes, the default one first."""
    with opened(data) as repo:
        default = repo.config["core"].get("remote")
        found = [
            Remote(name, str(options["url"]), name == default)
            for name, options in repo.config["remote"].items()
        ]
    return sorted(found, key=lambda remote: not remote.default)


def add_remote(data: Path, name: str, url: str, options: Mapping[str, str], *, default: bool) -> None:
    """Adds a remote, or changes it. url: a folder, or s3://bucket/prefix.

    Raises ConfigInvalid or DataUnwritable.
    """
    from voluptuous import Invalid

    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise ConfigInvalid("remote", f"{name!r} is no name for one; take letters, digits, - and _.")
    if "://" not in url:
        url = str(Path(url).expanduser().absolute())
    elif not url.startswith("s3://"):
        raise ConfigInvalid("remote", f"{url} is neither a folder nor s3://bucket/prefix.")
    from dvc.config import ConfigError

    with taking_in(data), serialised(data), opened(data) as repo:
        try:
            with repo.config.edit() as config:
                config["remote"][name] = {"url": url, "verify": True, **options}
                if default:
                    config["core"]["remote"] = name
        except (ConfigError, Invalid) as error:
            raise ConfigInvalid("remote", f"{error}.") from error


def remove_remote(data: Path, name: str) -> None:
    """Forgets a remote; what lies in it stays there. Raises ConfigInvalid."""
    _check_known(data, name)
    if name == LOCAL:
        raise ConfigInvalid("remote", f"{LOCAL!r} is the workspace's own; it stays.")
    with taking_in(data), serialised(data), opened(data) as repo, repo.config.edit() as config:
        del config["remote"][name]
        if config["core"].get("remote") == name:
            config["core"]["remote"] = LOCAL


def _check_known(data: Path, name: str) -> None:
    known = [remote.name for remote in remotes(data)]
    if name not in known:
        raise ConfigInvalid("remote", f"{name!r} is none of {', '.join(known)}.")
