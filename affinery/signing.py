"""A bundle's detached signature, in the format of OpenSSF's model signing and through its library.

Keys are elliptic ones in PEM, as `openssl ecparam -name prime256v1 -genkey -noout` makes them. No network.
"""

from __future__ import annotations

from pathlib import Path

from affinery.bundle import SIGNATURE
from affinery.errors import BundleInvalid, ConfigInvalid
from affinery.optional import needed
from affinery.tensor_files import written_whole


def sign(folder: Path, private_key: Path) -> Path:
    """Signs every file of a bundle. → the signature's path. Raises ConfigInvalid where the key is none."""
    signing, hashing = (needed(f"model_signing.{part}", "a signature") for part in ("signing", "hashing"))
    signature = folder / SIGNATURE
    with written_whole(signature) as part:
        ignored = hashing.Config().set_ignored_paths(paths=[signature, part])
        config = signing.Config().set_hashing_config(ignored)
        try:
            config = config.use_elliptic_key_signer(private_key=private_key)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigInvalid(
                str(private_key), f"it is no private elliptic key in PEM: {error}."
            ) from error
        config.sign(folder, part)
    return signature


def verify_signature(folder: Path, public_key: Path) -> None:
    """Raises BundleInvalid unless the bundle is, file by file, what the key's owner signed."""
    verifying, hashing = (needed(f"model_signing.{part}", "a signature") for part in ("verifying", "hashing"))
    signature = folder / SIGNATURE
    if not signature.is_file() or signature.is_symlink():
        raise BundleInvalid(str(folder), f"it has no signature ({SIGNATURE}).")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigInvalid(str(public_key), f"it is no public elliptic key in PEM: {error}.") from error
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[signature]))
    try:
        config.verify(folder, signature)
    except Exception as error:  # the library's own errors, its parsers' and the key's have no common base
        said = str(error) or type(error).__name__
        raise BundleInvalid(str(folder), f"{SIGNATURE} is not its signature by this key: {said}") from error
