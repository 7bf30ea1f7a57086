"""The signature of an artifact: `model.sig`, in the format of OpenSSF Model Signing.

The checksums in `sae.json` detect accidents. They do not stop a person, who can change a file and its checksum
together. A signature does: it covers the content of every file of the folder, `sae.json` included, and only the owner
of the private key can make it.

Source: https://github.com/ossf/model-signing-spec
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..arrays.arguments import as_path
from ..errors import InputError, SAEError, SignatureError

SIGNATURE = "model.sig"
"""Name of the file with the signature. It is the only file of the folder that the signature does not cover."""

CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


class Folder(Protocol):
    """A folder whose manifest was read."""

    @property
    def path(self) -> Path:
        """Its path, as it was given."""

    @property
    def sha256(self) -> str:
        """The sha256 of its manifest."""


Signed = TypeVar("Signed", bound=Folder)


def read_signed(
    path: str | os.PathLike[str],
    public_key: str | os.PathLike[str] | None,
    read: Callable[[str | os.PathLike[str]], Signed],
    manifest: str,
) -> Signed:
    """Return a folder, as `read` reads it. With a key, its manifest must be the one that the owner has signed.

    The signature is checked first, and then the manifest that was read is compared with it. The manifest has the sha256
    of every other file, and a file is compared with it where it is read. So nothing can be exchanged in between.

    Raises:
        SignatureError: As for `check_signature`, or another artifact has taken the place of the one that was checked.
        InputError: `public_key` cannot be read as a key or as certificates.
        SAEError: model-signing is not installed.
        ArtifactError: The owner of the key has signed something that `read` does not read.
    """
    if public_key is None:
        return read(path)
    signed = check_signature(path, public_key).get(manifest)
    folder = read(path)
    if folder.sha256 != signed:
        raise SignatureError(
            f"{folder.path} was replaced while its signature was checked: the sha256 of {manifest} is "
            f"{folder.sha256}, and {signed} is signed. Open it again."
        )
    return folder


def check_signature(path: str | os.PathLike[str], public_key: str | os.PathLike[str]) -> dict[str, str]:
    """Check that the owner of a key has signed an artifact, and that every file is as it was signed.

    The network is not used. No file of the artifact is trusted: a file that was changed, added or removed after the
    signing is found.

    Args:
        path: Folder of the artifact.
        public_key: PEM file with the public key of the signer, or with the certificates of the authorities that the
            signer's certificate must come from.

    Returns:
        The signed sha256 of each file, by its path in the folder.

    Raises:
        SignatureError: The artifact is not signed, is signed with another key, or was changed after it was signed.
        InputError: `public_key` cannot be read as a key or as certificates.
        SAEError: model-signing is not installed.
    """
    folder, key = as_path("path", path), as_path("public_key", public_key)
    hashing, verifier = hashing_config(), _verifier(key)
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise SignatureError(
            f"{folder} is not signed: it has no {SIGNATURE}. Get the signed artifact, sign it (saeexport sign), or do "
            "not ask for a signature."
        )
    check_folder(folder)
    try:
        verifier.set_hashing_config(hashing).verify(folder, signature)
    except _refusals() as error:
        raise SignatureError(
            f"{folder} is not what the owner of {key} signed: {_reason(error)}. Do not use it. Get the artifact again, "
            "or the right key."
        ) from error
    return dict(hashing.hashed)


def check_folder(folder: Path) -> None:
    """Check that a folder holds nothing that a signature does not cover, and nothing that has no end.

    Raises:
        SignatureError: It has a link to a folder, or something that is neither a file nor a folder.
    """
    for place, folders, files in os.walk(folder):
        strange = [name for name in folders if os.path.islink(os.path.join(place, name))]
        strange += [name for name in files if not os.path.isfile(os.path.join(place, name))]
        if strange:
            raise SignatureError(
                f"{place} has {', '.join(sorted(strange))}, which a signature does not cover: it covers ordinary files "
                "and links to them. Remove it, or get the artifact again."
            )


def hashing_config() -> Any:
    """Return what a signature covers: every file but the signature itself, by sha256.

    Files are read through symbolic links, as in the cache of the Hugging Face Hub. The list of files to ignore that a
    signature may carry is not followed.

    Returns:
        A `model_signing.hashing.Config`. Its attribute `hashed` is the sha256 of each file, by its path in the folder,
        once they were hashed.

    Raises:
        SAEError: model-signing is not installed.
    """
    try:
        from model_signing import hashing
    except ModuleNotFoundError as error:
        raise SAEError(
            f'Signatures need model-signing, and {error.name} is not installed: pip install "saeexport[signing]".'
        ) from None

    class Hashing(hashing.Config):
        hashed: dict[str, str]

        def hash(self, *arguments: Any, **options: Any) -> Any:
            found = super().hash(*arguments, **options)
            self.hashed = {file.identifier: file.digest.digest_hex for file in found.resource_descriptors()}
            return found

        def add_ignored_paths(self, **ignored: Any) -> None:
            pass

    config = Hashing().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=True)
    return config.set_allow_symlinks(True).set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _verifier(key: Path) -> Any:
    """Return the library's verifier for a PEM file, which says itself whether it holds a key or certificates."""
    from model_signing import verifying

    try:
        if CERTIFICATE in key.read_bytes():
            return verifying.Config().use_certificate_verifier(certificate_chain=[key])
        return verifying.Config().use_elliptic_key_verifier(public_key=key)
    except _refusals() as error:
        raise InputError(
            f"{key} cannot be read as a public key or a certificate: {error}. It must be a PEM file with a key on the "
            "curve P-256, P-384 or P-521, or with certificates."
        ) from error


def _refusals() -> tuple[type[Exception], ...]:
    """Return the exceptions with which the library refuses a signature or a key; a damaged file may cause any."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from OpenSSL import crypto

    return (
        ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError,
        InvalidSignature, UnsupportedAlgorithm, crypto.Error, crypto.X509StoreContextError,
    )  # fmt: skip


def _reason(error: Exception) -> str:
    """Return the library's message, or what happened if it has none that a reader would understand."""
    from cryptography.exceptions import InvalidSignature

    if isinstance(error, InvalidSignature):
        return f"{SIGNATURE} was made with another key, or was changed"
    if isinstance(error, ValueError) and str(error).startswith(("Signature mismatch: ", "Key mismatch: ")):
        return str(error).strip().rstrip(".")
    return f"{SIGNATURE} is damaged, or was made in another way ({type(error).__name__}: {error})"
