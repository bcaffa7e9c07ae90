"""Where bytes are kept. One file here is one kind of store; open_store chooses by the URL's scheme."""

from __future__ import annotations

import importlib
import pkgutil

from registry.errors import StorageUnknown
from registry.storage.contract import BlobStore

_NOT_STORES = {"contract"}


def open_store(url: str) -> BlobStore:
    """The store at a URL (file:///folder, memory://name) or, without a scheme, in a folder."""
    scheme = url.partition("://")[0] if "://" in url else "file"
    known = schemes()
    if scheme not in known:
        raise StorageUnknown(scheme, sorted(known))
    return known[scheme].from_url(url)


def schemes() -> dict[str, type[BlobStore]]:
    """The stores, by the scheme of their URLs."""
    modules = (importlib.import_module(f"{__name__}.{name}") for name in stores())
    return {module.STORE.scheme: module.STORE for module in modules}


def stores() -> list[str]:
    """The modules of this folder that are stores."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_STORES)
